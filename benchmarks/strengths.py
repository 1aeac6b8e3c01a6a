# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.strengths [MODEL] [SETTINGS]`: rate and KL of flat edits, from gentle to strong.

Shows the trade-off of a model before any search, and what the anchors of `heretic.phases.optimization` are worth. Each
line is one edit: where the direction comes from, its strength in every layer, hits of the search prompts, mean KL and
first-token KL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from benchmarks.prepared import flat_point, prepared
from heretic.demo import model_path
from heretic.interventions.placement import PlanContext
from heretic.interventions.schedule import LayerProfile
from heretic.phases.state import Run
from heretic.study.types import Value

STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0)
SOURCES: tuple[tuple[str, float | None], ...] = (
    ("per_layer", None),
    ("global", 0.45),
    ("global", 0.65),
    ("global", 0.8),
)


def points(run: Run) -> Iterator[tuple[str, Mapping[str, Value]]]:
    """Every source at every strength, the same in all layers and components."""
    assert run.model is not None
    architecture = run.model.architecture
    for scope, index in SOURCES:
        for strength in STRENGTHS:
            where = "each layer's own" if index is None else f"layer {index * (architecture.layers - 1):.1f}"
            point = flat_point(architecture.components, architecture.layers, scope, index, strength)
            yield f"{where:<18} {strength:>4.2f}", point


def main(arguments: list[str]) -> None:
    """Print the table."""
    tokens = arguments or [str(model_path()), "--behaviour=demo", "--offline"]
    run = prepared([*tokens, "--storage=", "--early-stop-trials=false"])
    assert run.model is not None and run.extraction is not None and run.evaluator is not None
    assert run.baseline is not None
    run.context = PlanContext(run.model.architecture, run.extraction.findings, LayerProfile(), 2.0)
    sys.stdout.write(f"base: {run.baseline.outcome.hits}/{run.baseline.outcome.n}\n")
    sys.stdout.write("direction        strength   hits        KL   first token\n")
    for name, parameters in points(run):
        outcome = run.evaluator.score([run.edits(parameters)])[0]
        kl = outcome.kl
        figures = "not finite" if kl is None else f"{kl.mean:>9.5f} {kl.first_token:>9.5f}"
        sys.stdout.write(f"{name}   {outcome.hits:>4}   {figures}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
