# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.strengths [MODEL] [SETTINGS]`: rate and KL of flat edits, from gentle to strong.

Shows the trade-off of a model before any search, and what the anchors of `heretic.phases.optimization` are worth. Each
line is one edit: where the direction comes from, its strength in every layer, hits of the search prompts, mean KL and
first-token KL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.interventions.planners import PlanContext
from heretic.interventions.schedule import LayerProfile
from heretic.phases import steps
from heretic.phases.optimization import create_study
from heretic.phases.state import Run
from heretic.stop import StopFlag

STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0)
SOURCES: tuple[tuple[str, float | None], ...] = (
    ("per_layer", None),
    ("global", 0.45),
    ("global", 0.65),
    ("global", 0.8),
)
Parameters = Mapping[str, "float | int | str | None"]


def prepared(tokens: list[str]) -> Run:
    """A run up to its plan context, with the study in memory."""
    resolved = resolve_settings(tokens, environ={}, cwd=Path.cwd())
    run = Run(resolved, Console(quiet=True), StopFlag())
    source = steps.preflight(run)
    run.bundle = steps.load_prompts(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
    run.context = steps.plan_context(run)
    return run


def points(run: Run) -> Iterator[tuple[str, Parameters]]:
    """Every source at every strength, the same in all layers and components."""
    assert run.model is not None
    architecture = run.model.architecture
    last = float(architecture.layers - 1)
    for scope, index in SOURCES:
        for strength in STRENGTHS:
            parameters: dict[str, float | int | str | None] = {
                "direction_scope": scope,
                "direction_index": None if index is None else index * last,
            }
            for component in architecture.components:
                parameters[f"{component}.max_weight"] = strength
                parameters[f"{component}.max_weight_position"] = last / 2
                parameters[f"{component}.min_weight"] = 1.0
                parameters[f"{component}.min_weight_distance"] = last + 1.0
            where = "each layer's own" if index is None else f"layer {index * last:.1f}"
            yield f"{where:<18} {strength:>4.2f}", parameters


def main(arguments: list[str]) -> None:
    """Print the table."""
    tokens = arguments or [str(model_path()), "--behaviour=demo", "--offline"]
    run = prepared([*tokens, "--storage=", "--max-trial-kl=1000000"])
    assert run.model is not None and run.extraction is not None and run.evaluator is not None
    assert run.baseline is not None
    run.context = PlanContext(run.model.architecture, run.extraction.bank, LayerProfile(), 2.0)
    sys.stdout.write(f"base: {run.baseline.outcome.hits}/{run.baseline.outcome.n}\n")
    sys.stdout.write("direction        strength   hits        KL   first token\n")
    for name, parameters in points(run):
        outcome = run.evaluator.score([run.edits(parameters)])[0]
        kl = outcome.kl
        figures = "not finite" if kl is None else f"{kl.mean:>9.5f} {kl.first_token:>9.5f}"
        sys.stdout.write(f"{name}   {outcome.hits:>4}   {figures}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
