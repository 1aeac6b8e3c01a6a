# SPDX-License-Identifier: Apache-2.0
"""Local refinement: part of the trials vary the best edit found so far instead of exploring (docs/log.md).

A search of 40 trials in nine dimensions has no time to learn a model of the whole space; what decides its result is how
well it polishes the few good points. The parent is the best for a balance of both objectives that is drawn anew each
time, so that the whole front is refined, most where it is worth most (Zhang and Golovin 2020, arXiv:2006.04655: random
hypervolume scalarisations).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from heretic.study.points import PointSampler
from heretic.study.types import Dimension, Value

WIDTHS: Final = (0.1, 0.2, 0.4)
"""Standard deviation of a step as a share of a dimension's range."""

CHANGED: Final = 0.5
"""Probability that a dimension takes a step."""

FLIPPED: Final = 0.1
"""Probability that a category changes."""

STARTUP_EVERY: Final = 1
"""During the start-up, every so many trials one is a refinement; 0 would be never."""

REFINE_EVERY: Final = 2
"""The same after the start-up, when the sampler has something to learn from."""

NEEDED: Final = 2
"""Finished trials before there is something to refine."""


class LocalSampler(PointSampler):
    """A variation of a good trial; `fallback` gives the dimensions that the parent did not have.

    reference: the objectives (rate, KL) at which a trial is worth nothing.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        seed: int,
        fallback: Mapping[str, Value],
        reference: tuple[float, float],
    ) -> None:
        super().__init__(fallback)
        self._reference = reference
        self._space = {dimension.name: dimension for dimension in space}
        self._random = np.random.default_rng(seed)
        self._drawn: dict[str, Value] | None = None

    def point(self, study: optuna.Study) -> Mapping[str, Value]:
        """Drawn at the first call, in the declared order of the dimensions."""
        if self._drawn is None:
            self._drawn = self._varied(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        return self._drawn

    def _varied(self, trials: Sequence[FrozenTrial]) -> dict[str, Value]:
        angle = float(self._random.uniform(0.0, math.pi / 2))
        width = float(self._random.choice(WIDTHS))
        parent = best_at(trials, angle, self._reference)
        if parent is None:
            return dict(self._values)
        point = {**self._values, **parent.params}
        free = [
            name
            for name, dimension in self._space.items()
            if name in parent.params and dimension.kind != "categorical" and dimension.low < dimension.high
        ]
        # One dimension moves in any case: a copy of the parent would be a trial for nothing.
        always = free[int(self._random.integers(len(free)))] if free else None
        for name, dimension in self._space.items():
            step, chance = float(self._random.normal()), float(self._random.random())
            if name not in parent.params:
                continue
            if dimension.kind == "categorical":
                if chance < FLIPPED and len(dimension.choices) > 1:
                    others = [choice for choice in dimension.choices if choice != point[name]]
                    point[name] = others[int(step > 0) % len(others)]
            elif name == always or (name in free and chance < CHANGED):
                stepped = float(parent.params[name]) + step * width * (dimension.high - dimension.low)
                moved = (reflected if name == always else clipped)(stepped, dimension.low, dimension.high)
                point[name] = round(moved) if dimension.kind == "int" else moved
        return point


def clipped(value: float, low: float, high: float) -> float:
    """The nearest value in [low, high]. Good edits lie at edges (flat, strong), and a step out of the range leads
    there: folding every step back was worse (docs/log.md).
    """
    return min(high, max(low, value))


def reflected(value: float, low: float, high: float) -> float:
    """The value folded back into [low, high], low < high."""
    span = high - low
    offset = (value - low) % (2 * span)
    return min(high, low + (offset if offset <= span else 2 * span - offset))


def best_at(
    trials: Sequence[FrozenTrial], angle: float, reference: tuple[float, float]
) -> FrozenTrial | None:
    """The feasible trial that reaches furthest from the reference point in the direction of `angle` (radians).

    Gains over the reference are counted as shares of it. The mean over all angles of the squared reach is, up to a
    constant, the hypervolume of the front. Without a trial better than the reference in both: the lowest rate, then KL.
    """
    feasible = [trial for trial in trials if trial.values is not None and _feasible(trial)]
    toward = (max(math.cos(angle), 1e-9), max(math.sin(angle), 1e-9))

    def reach(trial: FrozenTrial) -> float:
        values = [float(value) for value in trial.values]
        gains = [(worst - value) / max(worst, 1e-12) for value, worst in zip(values, reference, strict=True)]
        return min(max(0.0, gain) / share for gain, share in zip(gains, toward, strict=True))

    return min(feasible, key=lambda trial: (-reach(trial), *trial.values, trial.number), default=None)


def _feasible(trial: FrozenTrial) -> bool:
    constraints = [value for key, value in trial.system_attrs.items() if key.startswith("constraints:")]
    return all(float(value) <= 0.0 for value in constraints)
