# SPDX-License-Identifier: Apache-2.0
"""What a display needs after each batch, and when the search has stopped paying (requirements R-SEA-14)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from heretic.linalg.pareto import hypervolume, pareto_front
from heretic.study.types import FinishedTrial, Progress

STALL_GROWTH: Final = 0.005
STALL_TRIALS: Final = 40
STALL_SHARE: Final = 0.2
"""Stall: less than 0.5 % growth of the hypervolume over the last max(40, 20 %) of trials (algorithms section
8).
"""


def scaled_points(
    trials: Sequence[FinishedTrial], reference: tuple[float, float]
) -> list[tuple[float, float]]:
    """(KL, behaviour) of the feasible trials over the worst point, as the hypervolume wants them."""
    worst_behaviour, worst_divergence = (max(value, 1e-12) for value in reference)
    return [
        (trial.scores.objectives[1] / worst_divergence, trial.scores.objectives[0] / worst_behaviour)
        for trial in trials
        if trial.scores.feasible
    ]


def has_stalled(trials: Sequence[FinishedTrial], reference: tuple[float, float]) -> bool:
    """True when the last trials hardly enlarged the front."""
    recent = max(STALL_TRIALS, int(STALL_SHARE * len(trials)))
    if len(trials) <= recent:
        return False
    now = hypervolume(scaled_points(trials, reference))
    before = hypervolume(scaled_points(trials[:-recent], reference))
    return now > 0 and now - before < STALL_GROWTH * now


class Meter:
    """Makes `Progress` values; speed and remaining time count the trials of this process only."""

    def __init__(
        self,
        wanted: int,
        reference: tuple[float, float],
        kl_limit: float | None,
        clock: Callable[[], float],
        already: int,
    ) -> None:
        self._wanted = wanted
        self._reference = reference
        self._kl_limit = kl_limit
        self._clock = clock
        self._start = clock()
        self._already = already

    def reading(
        self, trials: Sequence[FinishedTrial], failed: int, batch: tuple[FinishedTrial, ...]
    ) -> Progress:
        """The state after a batch."""
        elapsed = max(self._clock() - self._start, 1e-9)
        speed = (len(trials) - self._already) / elapsed
        points = scaled_points(trials, self._reference)
        return Progress(
            finished=len(trials),
            wanted=self._wanted,
            failed=failed,
            best=self._best(trials),
            front_size=len(pareto_front(points)),
            hypervolume=hypervolume(points),
            trials_per_second=speed,
            eta_s=max(0, self._wanted - len(trials)) / speed if speed > 0 else None,
            batch=batch,
        )

    def _best(self, trials: Sequence[FinishedTrial]) -> FinishedTrial | None:
        allowed = [
            trial
            for trial in trials
            if trial.scores.feasible
            and (self._kl_limit is None or trial.scores.objectives[1] <= self._kl_limit)
        ]
        return min(allowed, key=lambda trial: (*trial.scores.objectives, trial.index), default=None)
