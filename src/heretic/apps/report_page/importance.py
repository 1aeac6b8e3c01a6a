# SPDX-License-Identifier: Apache-2.0
"""Which parameters decided whether a trial was good: PED-ANOVA (Watanabe et al. 2023, conditional form 2026), with the
spread over resamples of the trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from heretic.apps.report_page.reading import mapping, number, sequence
from heretic.study.types import FinishedTrial

MINIMUM: Final = 20
"""Trials below which nothing is said: the good ones would be fewer than five."""
MOST: Final = 1_000
"""Trials that are looked at, the first ones of a longer study."""
GOOD: Final = 0.25
"""Share of the trials that counts as good."""
RESAMPLES: Final = 30
TAIL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Importance:
    """One parameter: its share of what all explain together, and the 10th and 90th percentile over resamples."""

    parameter: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ObjectiveImportance:
    """objective: what was to be made small. trials: how many had it measured. rows: largest first; empty where
    `missing` says why."""

    objective: str
    trials: int
    rows: tuple[Importance, ...] = ()
    missing: str = ""


def importances(
    trials: Sequence[FinishedTrial], space: object, *, seed: int = 0
) -> tuple[ObjectiveImportance, ...]:
    """Both objectives, from the trials in which they were really measured.

    space: as stored with the plan of the study (`describe_space`). The same input gives the same figures.
    """
    distributions = _distributions(mapping(space))
    targets: tuple[tuple[str, str, int], ...] = (("behaviour rate", "rate", 0), ("KL", "kl_mean", 1))
    found = []
    for name, key, place in targets:
        usable = [trial for trial in trials if _measured(trial, key)][:MOST]
        found.append(_objective(name, usable, distributions, place, seed))
    return tuple(found)


def _measured(trial: FinishedTrial, key: str) -> bool:
    values = (trial.scores.measured.get(key), *trial.scores.objectives)
    return all(number(value) is not None for value in values)


def _objective(
    name: str,
    trials: Sequence[FinishedTrial],
    distributions: Mapping[str, BaseDistribution],
    place: int,
    seed: int,
) -> ObjectiveImportance:
    count = len(trials)
    if not distributions:
        return ObjectiveImportance(name, count, missing="the study holds no search space")
    if count < MINIMUM:
        return ObjectiveImportance(
            name, count, missing=f"{count} trials measured it, and fewer than {MINIMUM} say nothing reliable"
        )
    target, drawer = _target(place), random.Random(seed)
    try:
        rows = [_frozen(trial, distributions) for trial in trials]
        whole = _shares(rows, target)
        again = [_shares(drawer.choices(rows, k=count), target) for _ in range(RESAMPLES if whole else 0)]
    except (ValueError, ArithmeticError) as error:  # a space or trials that this program did not write
        return ObjectiveImportance(name, count, missing=f"it cannot be computed ({type(error).__name__})")
    if not whole:
        return ObjectiveImportance(name, count, missing="no parameter tells good trials from the others")
    ordered = sorted(whole, key=lambda parameter: (-whole[parameter], parameter))
    return ObjectiveImportance(name, count, tuple(_row(p, whole[p], again) for p in ordered))


def _row(parameter: str, share: float, again: Sequence[Mapping[str, float]]) -> Importance:
    spread = sorted(resample.get(parameter, 0.0) for resample in again)
    last = len(spread) - 1
    low, high = spread[round(TAIL * last)], spread[round((1 - TAIL) * last)]
    # The whole sample may lie outside of what resamples of it give; the interval always holds the point.
    return Importance(parameter, share, min(low, share), max(high, share))


def _target(place: int) -> Callable[[FrozenTrial], float]:
    def value(trial: FrozenTrial) -> float:
        return float(trial.values[place])

    return value


def _shares(rows: Sequence[FrozenTrial], target: Callable[[FrozenTrial], float]) -> dict[str, float]:
    """Shares that add up to 1; empty where nothing explains anything."""
    with warnings.catch_warnings():
        # About parameters that are equal in all good trials; they get 0, which is what the table shows.
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=["minimize", "minimize"])
        study.add_trials(rows)
        raw = PedAnovaImportanceEvaluator(target_quantile=GOOD).evaluate(study, target=target)
    known = {name: found for name, value in raw.items() if (found := number(value)) is not None}
    total = sum(known.values())
    return {name: value / total for name, value in known.items()} if total > 0 else {}


def _frozen(trial: FinishedTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """The trial with the parameters that were active in it."""
    active = {
        name: value
        for name, value in trial.parameters.items()
        if name in distributions and _inside(distributions[name], value)
    }
    return create_trial(
        state=TrialState.COMPLETE,
        values=list(trial.scores.objectives),
        params=active,
        distributions={name: distributions[name] for name in active},
    )


def _inside(distribution: BaseDistribution, value: object) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    found = number(value)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return found is not None and distribution.low <= found <= distribution.high


def _distributions(space: Mapping[str, object]) -> dict[str, BaseDistribution]:
    """The dimensions that are not fixed."""
    found: dict[str, BaseDistribution] = {}
    for name, stored in space.items():
        entry = mapping(stored)
        low, high = number(entry.get("low")), number(entry.get("high"))
        choices = [value for value in sequence(entry.get("choices")) if isinstance(value, str | int | float)]
        if entry.get("kind") == "categorical":
            if len(choices) > 1:
                found[name] = CategoricalDistribution(choices)
        elif low is not None and high is not None and low < high:
            whole = entry.get("kind") == "int"
            found[name] = IntDistribution(int(low), int(high)) if whole else FloatDistribution(low, high)
    return found
