# SPDX-License-Identifier: Apache-2.0
"""The figures this project set itself, beside what was measured: reached or not, by the less favourable reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.records import (
    OURS,
    THEIRS,
    RunRecord,
    final_hypervolume,
    middle,
    seconds_to_reach,
)

PER_TRIAL = {"demo": 10.0, "grown": 3.0}
HYPERVOLUME = {"demo": 25.0}
START_UP = {"demo": 5.0, "grown": 5.0}
MEMORY_ABOVE_MODEL = {"demo": 1.5e9}
"""By kind of model; where a kind is missing nothing was promised and the figure stands alone."""
HYPERVOLUME_TRIALS = 200
Figure = Callable[[RunRecord], "float | None"]


@dataclass(frozen=True, slots=True)
class Target:
    """One promised figure. found: measured values, seed by seed; at_least: the value wanted, or None.

    A figure is compared by its median. `lower` means that the value wanted is an upper bound.
    """

    figure: str
    found: Sequence[float]
    wanted: float | None
    unit: str
    lower: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the median meets the value wanted; None where nothing was measured or promised."""
        if self.wanted is None or not self.found:
            return None
        value = middle(self.found)
        return value <= self.wanted if self.lower else value >= self.wanted


def pairs(runs: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
    """(theirs, ours) of every seed that both ran."""
    ours = {run.seed: run for run in runs if run.program == OURS}
    return [(run, ours[run.seed]) for run in runs if run.program == THEIRS and run.seed in ours]


def ratios(runs: Sequence[RunRecord], figure: Figure) -> list[float]:
    """Theirs over ours, seed by seed."""
    both = [(figure(theirs), figure(ours)) for theirs, ours in pairs(runs)]
    return [left / right for left, right in both if left is not None and right]


def _worst(runs: Sequence[RunRecord], *figures: Figure) -> list[float]:
    """The ratios of the figure that is least favourable to us, by median."""
    found = [values for values in (ratios(runs, figure) for figure in figures) if values]
    return min(found, key=middle, default=[])


def race(theirs: RunRecord, ours: RunRecord, reference: float) -> tuple[float, float] | None:
    """Seconds until each had the hypervolume that theirs ended with; None where one never had it.

    Theirs is charged up to the moment at which it first had it, not up to its last trial.
    """
    goal = final_hypervolume(theirs, reference)
    left, right = seconds_to_reach(theirs, goal, reference), seconds_to_reach(ours, goal, reference)
    return None if left is None or not right else (left, right)


def race_ratios(runs: Sequence[RunRecord], reference: float) -> list[float]:
    """How much sooner ours was there; 0 where it never was. A run of theirs that found nothing sets no goal."""
    found = [
        race(theirs, ours, reference)
        for theirs, ours in pairs(runs)
        if final_hypervolume(theirs, reference) > 0
    ]
    return [0.0 if times is None else times[0] / times[1] for times in found]


def targets_of(results: Mapping[str, Any], runs: Sequence[RunRecord]) -> list[Target]:
    """Every promised figure of a result document."""
    kind = str(results.get("kind") or ("demo" if results["model"] == "demo model" else "other"))
    told = results["conditions"]
    trials = int(told["trials"])
    partial = "" if told["everything_measured"] else "measurements were skipped"
    promised = kind not in HYPERVOLUME or trials == HYPERVOLUME_TRIALS
    elsewhere = "" if promised else f"promised for {HYPERVOLUME_TRIALS} trials"
    found = [
        Target(
            "time per trial",
            _worst(runs, lambda run: run.per_trial_s, lambda run: middle(run.trial_seconds) or None),
            PER_TRIAL.get(kind),
            "x",
            note=partial,
        ),
        Target(
            f"time to the hypervolume of {THEIRS} after {trials} trials",
            race_ratios(runs, float(results["kl_reference"])),
            HYPERVOLUME.get(kind),
            "x",
            note=elsewhere,
        ),
        Target(
            "start-up, to the begin or the end of the first trial",
            _worst(runs, lambda run: run.first_start_s, lambda run: run.first_trial_s),
            START_UP.get(kind),
            "x",
        ),
    ]
    size = results.get("model_bytes")
    above = [
        (run.peak_memory_bytes - int(size)) / 1e9
        for run in runs
        if run.program == OURS and run.peak_memory_bytes is not None and size
    ]
    limit = MEMORY_ABOVE_MODEL.get(kind)
    return [
        *found,
        Target(
            "peak memory above the model", above, None if limit is None else limit / 1e9, "GB", lower=True
        ),
    ]


def lines(targets: Sequence[Target]) -> list[str]:
    """Markdown table of the figures with a verdict."""
    made = ["| figure | wanted | measured | verdict |", "|---|---|---|---|"]
    for target in targets:
        sign = "at most" if target.lower else "at least"
        wanted = "-" if target.wanted is None else f"{sign} {target.wanted:g} {target.unit}"
        shown = "not measured"
        if target.found:
            shown = f"{middle(target.found):.2f} {target.unit}"
            if len(target.found) > 1:
                shown += f" ({min(target.found):.2f} to {max(target.found):.2f})"
        verdict = {None: "-", True: "reached", False: "**not reached**"}[target.reached]
        made.append(
            f"| {target.figure} | {wanted} | {shown} | {verdict}{f' ({target.note})' if target.note else ''} |"
        )
    return made
