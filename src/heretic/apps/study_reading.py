# SPDX-License-Identifier: Apache-2.0
"""A stored study as it is now, for watching while another process searches (requirements R-UI-24). Reads only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from optuna.trial import FrozenTrial, TrialState

from heretic.phases.choice import strengths_of
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.findings_store import stored_extraction
from heretic.study.catalogue import list_studies
from heretic.study.selection import front_of, knee_of
from heretic.study.sharing import terms_of, visit_study
from heretic.study.types import FinishedTrial
from heretic.trial_display import figure_texts, rate_and_divergence

RECENT: Final = 40
"""Trials over which the present speed is measured."""


@dataclass(frozen=True, slots=True, eq=False)
class StudyReading:
    """One look. wanted: trials asked for, None where the study does not say. ended: seconds since its start at which
    each finished trial ended, by index. per_second: the recent speed, 0 when unknown."""

    name: str
    trials: tuple[FinishedTrial, ...]
    front: tuple[FinishedTrial, ...]
    failed: Mapping[int, str]
    running: int
    wanted: int | None
    ended: Mapping[int, float]
    per_second: float
    idle_s: float | None
    made_with: Mapping[str, Any]
    knee: int | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds left, where it can be known."""
        if self.wanted is None or not self.per_second or not self.running:
            return None
        return max(0, self.wanted - len(self.trials)) / self.per_second

    def best_first(self) -> list[FinishedTrial]:
        """The front with its knee, the best compromise, in front."""
        return sorted(self.front, key=lambda trial: trial.index != self.knee)

    def trial(self, index: int | None) -> FinishedTrial | None:
        """The trial of a number."""
        return next((trial for trial in self.trials if trial.index == index), None)


def study_names(storage: str | None) -> tuple[str, ...]:
    """Studies of a storage; raises `StorageError` and its kin."""
    return tuple(study.name for study in list_studies(storage))


def read_study(storage: str | None, name: str) -> StudyReading:
    """The study as it is now. Raises `StudyNotFoundError`, `StorageError`, `StudyCorruptError`."""
    with visit_study(storage, name) as study:
        trials = study.finished_trials()
        failed = study.failed_trials()
        rows = study.inner.get_trials(deepcopy=False)
        terms = terms_of(study)
        stated = study.attribute("n_trials")
        fingerprint = (study.stored("heretic") or {}).get("fingerprint", {})
    goal = fingerprint.get("settings", {}).get("goal", "suppress")
    wanted = terms.n_trials if terms is not None else stated
    ended, idle = _times(rows)
    knee = knee_of(trials, goal)
    return StudyReading(
        name=name,
        trials=trials,
        front=front_of(trials, goal),
        failed=failed,
        running=sum(row.state == TrialState.RUNNING for row in rows),
        wanted=int(wanted) if isinstance(wanted, int) else None,
        ended=ended,
        per_second=_speed(sorted(ended.values())),
        idle_s=idle,
        made_with=fingerprint,
        knee=None if knee is None else knee.index,
    )


def read_directions(storage: str | None, name: str) -> DirectionExtractionResult | None:
    """What the study found before its search; None where it is not stored."""
    with visit_study(storage, name) as study:
        return stored_extraction(study)


def _times(rows: Sequence[FrozenTrial]) -> tuple[dict[int, float], float | None]:
    done = [
        (int(row.user_attrs["proposal"]["index"]), row.datetime_complete)
        for row in rows
        if row.state == TrialState.COMPLETE and row.datetime_complete and "proposal" in row.user_attrs
    ]
    starts = [row.datetime_start for row in rows if row.datetime_start]
    if not done or not starts:
        return {}, None
    first = min(starts)
    last = max(when for _, when in done)
    return {index: (when - first).total_seconds() for index, when in done}, _since(last)


def _since(moment: datetime) -> float:
    return max(0.0, (datetime.now(moment.tzinfo) - moment).total_seconds())


def _speed(ended: Sequence[float]) -> float:
    recent = ended[-RECENT:]
    span = recent[-1] - recent[0] if len(recent) > 1 else 0.0
    return (len(recent) - 1) / span if span > 0 else 0.0


def kernels(trial: FinishedTrial) -> dict[str, list[float | None]]:
    """Component -> strength at each block, as the trial applied it: the largest over its directions."""
    found: dict[str, dict[int, float]] = {}
    for path, values in strengths_of(trial).items():
        parts = path.split(".")
        block = next((int(part) for part in parts if part.isdecimal()), None)
        if block is None or not values:
            continue
        component = ".".join(part for part in parts[parts.index(str(block)) + 1 :] if part != "weight")
        table = found.setdefault(component, {})
        table[block] = max(table.get(block, 0.0), *values)
    last = max((block for table in found.values() for block in table), default=-1)
    return {name: [table.get(block) for block in range(last + 1)] for name, table in found.items()}


def samples(trial: FinishedTrial) -> list[str]:
    """Replies that are stored with a trial."""
    stored = trial.scores.measured.get("samples")
    return [str(text) for text in stored] if isinstance(stored, list | tuple) else []


def figures(trial: FinishedTrial) -> tuple[float, float]:
    """(behaviour rate, KL) for drawing: the measured figures, else the objectives."""
    return rate_and_divergence(trial)


def texts(trial: FinishedTrial) -> tuple[str, str]:
    """The same for reading; what was not measured is never shown as a figure."""
    return figure_texts(trial)


def importances(trials: Sequence[FinishedTrial]) -> dict[str, float]:
    """Parameter -> share of the rank variance of the behaviour objective that it explains alone, largest first.

    The squared rank correlation (Spearman) for numbers, the correlation ratio for choices; each alone, so shares need
    not sum to 1. Nothing for fewer than 8 trials.
    """
    if len(trials) < 8:
        return {}
    target = _ranks([trial.scores.objectives[0] for trial in trials])
    found: dict[str, float] = {}
    for name in dict.fromkeys(key for trial in trials for key in trial.parameters):
        pairs = [(trial.parameters.get(name), rank) for trial, rank in zip(trials, target, strict=True)]
        known = [(value, rank) for value, rank in pairs if value is not None]
        if len(known) >= 8:
            found[name] = _explained([value for value, _ in known], [rank for _, rank in known])
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _explained(values: Sequence[float | int | str], target: Sequence[float]) -> float:
    total = statistics.pvariance(target)
    if total == 0:
        return 0.0
    numbers = [float(value) for value in values if not isinstance(value, str)]
    if len(numbers) == len(values):
        ranks = _ranks(numbers)
        if statistics.pvariance(ranks) == 0:
            return 0.0
        return statistics.correlation(ranks, target) ** 2
    groups: dict[str, list[float]] = {}
    for value, rank in zip(values, target, strict=True):
        groups.setdefault(str(value), []).append(rank)
    mean = statistics.fmean(target)
    between = sum(len(group) * (statistics.fmean(group) - mean) ** 2 for group in groups.values())
    return between / len(target) / total


def _ranks(values: Sequence[float]) -> list[float]:
    """Average ranks; values that are not finite come last."""
    keyed = [value if math.isfinite(value) else math.inf for value in values]
    order = sorted(range(len(keyed)), key=lambda place: keyed[place])
    ranks = [0.0] * len(keyed)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and keyed[order[end + 1]] == keyed[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2
        start = end + 1
    return ranks
