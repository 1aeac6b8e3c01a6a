# SPDX-License-Identifier: Apache-2.0
"""What goes into a measurement and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from heretic.decoding.protocol import Reply
from heretic.report import Divergence
from heretic.scorers.protocol import Judgement

CanWin = Callable[[float, float], bool]
"""(sum of degrees so far, mean KL) -> may the trial still enter the front? Asked again as it grows; exact."""

Hopeless = Callable[[int, int, float], bool]
"""(hits, among so many prompts, mean KL) -> is the trial given up, at a stated risk of error? True stays true when hits
grow. Not asked of trials that cannot win anyway."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: response, the length at which a reply is finally judged; check, the first look; kl, teacher-forced."""

    response: int
    check: int
    kl: int


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What KL is measured against: prompt + base reply, aligned at the end.

    sequences: token ids of prompt and all but the last reply token. log_probabilities: [n, T, V] float32 on the CPU,
    the last T positions. counts: reply tokens per prompt, at most T; 0 = excluded.
    """

    sequences: Sequence[tuple[int, ...]]
    log_probabilities: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True)
class KlBound:
    """A KL whose measurement was cut short, in nats per token.

    at_least: sum over the prompts seen, divided by the number of all: terms are not negative. mean_seen: their mean, an
    estimate. prompts: how many were seen.
    """

    at_least: float
    mean_seen: float
    prompts: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One trial measured; per-prompt values stand in the order of the prompts.

    status: `complete`; `failed` with a reason; or what ended the measurement: `rejected_by_kl` (no replies; `kl_bound`
    in place of `kl` where not all prompts were needed), `dominated` (hits is an exact lower bound of those of all n
    prompts) or `estimated` (a sequential test gave it up). The latter two saw hits among `seen` prompts and have no
    per-prompt values. total: sum of degrees; hits and total are those of `judged` where there are some.
    """

    status: str
    kl: Divergence | None
    hits: int = 0
    total: float = 0.0
    n: int = 0
    judged: Sequence[Judgement] = ()
    conditions: Sequence[str] = ()
    replies: Sequence[Reply] = ()
    reason: str = ""
    kl_bound: KlBound | None = None
    seen: int = 0

    @property
    def rate(self) -> float:
        """Mean degree over all prompts, in 0 ... 1; of a stopped trial its lower bound."""
        return self.total / self.n if self.n else 0.0

    @property
    def labels(self) -> list[str]:
        """Class of each reply."""
        return [judgement.label for judgement in self.judged]

    @property
    def graded(self) -> bool:
        """The scorer grades replies and does not only count them."""
        return any(judgement.degree is not None for judgement in self.judged)
