# SPDX-License-Identifier: Apache-2.0
"""Values that pass between the search and whoever evaluates: the study knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"
Value: TypeAlias = "float | int | str | None"
"""A parameter; None marks an inactive dimension, so that equal edits have equal keys (algorithms 5.2)."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One parameter of the search space.

    kind `float` and `int` use low and high (inclusive); `categorical` uses choices. A dimension whose low
    equals high, or that has one choice, is fixed. `active` decides from the parameters declared before it
    whether it is sampled. clamp: values below it are raised to it (a peak weight sampled in [-0.25, 1.5] is
    clamped at 0).
    """

    name: str
    kind: Literal["float", "int", "categorical"]
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str | int | float, ...] = ()
    clamp: float | None = None
    active: Callable[[Mapping[str, Value]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a trial should try. index: the logical number k of the trial in its study, never reused."""

    index: int
    parameters: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one trial measured.

    objectives: (behaviour objective, KL objective), both minimised, finite.
    constraints: name -> value; feasible when every value is <= 0.
    measured: everything else, JSON only: rate, hits, n, kl statistics, guards, effective strengths, and for
    trials whose measurement was cut short `status` = "rejected_by_kl" | "dominated" | "estimated" (else
    "complete").
    """

    objectives: tuple[float, float]
    constraints: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Json] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """True when no constraint is broken."""
        return all(value <= 0.0 for value in self.constraints.values())


@dataclass(frozen=True, slots=True)
class TrialFailure:
    """A trial that could not be measured; the run goes on (requirements R-SEA-11)."""

    reason: str


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial as read back from the storage."""

    index: int
    parameters: Mapping[str, Value]
    scores: Scores


class Evaluate(Protocol):
    """Measures a batch of proposals in one engine pass; one result per proposal, in order.

    `finished` are all complete trials so far (a trial that can no longer enter their front may be cut short).
    Deterministic given the proposal: every random generator is seeded from (study seed, stream,
    proposal.index).
    """

    def __call__(
        self, proposals: Sequence[Proposal], finished: Sequence[FinishedTrial], /
    ) -> Sequence[Scores | TrialFailure]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """What a display needs after each batch; `best` is the best feasible trial under the KL limit, if any."""

    finished: int
    wanted: int
    failed: int
    best: FinishedTrial | None
    front_size: int
    hypervolume: float
    trials_per_second: float
    eta_s: float | None
    batch: tuple[FinishedTrial, ...] = ()
