# SPDX-License-Identifier: Apache-2.0
"""A run of this project inside the benchmark's own process, up to the point where trials could begin.

Only public steps are used: settings, the phases before the search, and `Evaluator.score`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.memory import highest_resident_bytes
from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.evaluator import Outcome
from heretic.interventions.hooks import Edits
from heretic.phases import steps
from heretic.phases.optimization import create_study, search_space
from heretic.phases.state import Run
from heretic.stop import StopFlag
from heretic.study.space import resolve, sobol_point
from heretic.study.types import Value

EVERYTHING_MEASURED = ("--early-stop-trials=false",)
"""No trial is cut short: each is generated and judged at full length."""
DEPTHS = (0.45, 0.65, 0.8)
GOLDEN = 0.6180339887498949
"""Multiples of it modulo 1 fill an interval evenly however many are taken."""


def prepared(tokens: Sequence[str]) -> Run:
    """A run up to its plan context, with the study in memory; `tokens` as on the command line."""
    resolved = resolve_settings(list(tokens), environ={}, cwd=Path.cwd())
    run = Run(resolved, Console(quiet=True), StopFlag())
    source = steps.preflight(run)
    run.bundle = steps.load_prompts(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
    run.context = steps.plan_context(run)
    return run


def demo_run(
    model: Path | None = None, *, prompts: int = 100, threads: int = 0, extra: Sequence[str] = ()
) -> Run:
    """A run on the demo's prompts, everything measured, with the demo model or another that speaks as it does.

    prompts: how many of each kind are scored, at most 100. threads: 0 = as the process has it.
    """
    if threads:
        torch.set_num_threads(threads)
    tokens = [str(model or model_path()), "--behaviour=demo", "--offline", "--storage=", "--progress=none"]
    for kind in ("good", "bad"):
        tokens += [f"--{kind}-evaluation-prompts.dataset=heretic:refusal-{kind}"]
        tokens += [f"--{kind}-evaluation-prompts.split=validation[:{prompts}]"]
    # A random model shows no behaviour; its trials cost the same whether it does or not.
    return prepared([*tokens, "--allow-zero-baseline", *EVERYTHING_MEASURED, *extra])


def flat_point(
    components: Sequence[str], layers: int, scope: str, index: float | None, strength: float
) -> Mapping[str, Value]:
    """Parameters of one strength in all layers and components; index: relative depth of a global direction."""
    last = float(layers - 1)
    point: dict[str, Value] = {
        "direction_scope": scope,
        "direction_index": None if index is None else index * last,
    }
    for component in components:
        point[f"{component}.max_weight"] = strength
        point[f"{component}.max_weight_position"] = last / 2
        point[f"{component}.min_weight"] = 1.0
        point[f"{component}.min_weight_distance"] = last + 1.0
    return point


def trial_edits(run: Run, count: int, seed: int = 0) -> list[Edits]:
    """`count` different edits as a search meets them: every second one a point of its quasi-random start.

    Those are mostly weak, so that replies are decided after a few tokens; the others are flat edits from gentle to
    strong, under which most replies run on to their end. Positions are relative to the depth, so models of any depth
    get comparable edits.
    """
    assert run.model is not None
    architecture, space = run.model.architecture, search_space(run)
    found: list[Edits] = []
    for number in range(count):
        step = number // 2
        if number % 2:
            point = sobol_point(space, seed, step)
            found.append(run.edits(resolve(space, lambda dimension, point=point: point[dimension.name])))  # type: ignore[misc]  # no type is inferred for a default of a lambda
            continue
        index, strength = DEPTHS[step % len(DEPTHS)], 0.5 + (step * GOLDEN) % 1.0
        flat = flat_point(architecture.components, architecture.layers, "global", index, strength)
        found.append(run.edits(flat))
    return found


def timed_score(run: Run, edits: Sequence[Edits], together: int) -> tuple[float, list[Outcome]]:
    """Seconds for all trials, `together` in each call of the evaluator, and what they measured."""
    assert run.evaluator is not None
    outcomes: list[Outcome] = []
    begin = time.perf_counter()
    for start in range(0, len(edits), together):
        outcomes += run.evaluator.score(edits[start : start + together])
    seconds = time.perf_counter() - begin
    return seconds, outcomes


def own_peak_bytes() -> int:
    """Highest resident memory of this process so far; 0 where there is no /proc."""
    return highest_resident_bytes(os.getpid())
