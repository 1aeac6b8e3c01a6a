# SPDX-License-Identifier: Apache-2.0
"""Word salad: replies that the base model finds far less likely than its own (algorithms 7.6).

Empty text and loops are seen in the text itself; a fluent-looking sequence of unrelated words is seen only by a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from statistics import median
from typing import Final

from heretic.exceptions import DatasetError
from heretic.linalg.intervals import bonett_price
from heretic.validation.subject import Subject

MARGIN: Final = 3.0
"""Nats per token below the median of the base's own replies."""

GUARD_MARGIN: Final = 0.05
"""Lower bound of a rise that breaks the guard."""


@dataclass(frozen=True, slots=True)
class Salad:
    """Replies of base and edited model to the same prompts, as the base model reads them.

    threshold: mean log-likelihood per token below which a reply is salad. median_base, median_edited: of the replies,
    nats per token. base, edited: number of salad replies among n; low, high: 95 % Bonett-Price interval of the rise.
    Replies without a token are no salad.
    """

    n: int
    threshold: float
    median_base: float
    median_edited: float
    base: int
    edited: int
    low: float
    high: float


def reply_likelihoods(
    base: Subject, prompts: Sequence[tuple[int, ...]], replies: Sequence[Sequence[int]]
) -> list[float | None]:
    """Mean log-likelihood per token, in nats, of each reply after its prompt under the base model; None for a reply
    without tokens, minus infinity where the base gives a token no probability at all."""
    pairs = zip(prompts, replies, strict=True)
    rows = {n: (*prompt, *reply) for n, (prompt, reply) in enumerate(pairs) if reply}
    found = base.log_likelihoods(list(rows.values()), [len(replies[number]) for number in rows])
    means = {
        number: fsum(values) / len(values) if all(map(isfinite, values)) else float("-inf")
        for number, values in zip(rows, found, strict=True)
    }
    return [means.get(number) for number in range(len(replies))]


def salad_threshold(own: Sequence[float | None], margin: float = MARGIN) -> float:
    """The median of the base's own replies less `margin`; raises `DatasetError` where it has none."""
    known = [value for value in own if value is not None]
    if not known:
        raise DatasetError("The base model's replies are all empty, so none can be compared with them.")
    return median(known) - margin


def is_salad(value: float | None, threshold: float) -> bool:
    """Below the threshold; what has no tokens is not."""
    return value is not None and value < threshold


def compare_salad(
    own: Sequence[float | None], found: Sequence[float | None], *, margin: float = MARGIN
) -> Salad:
    """own, found: `reply_likelihoods` of the base's and of the edited model's replies to the same prompts."""
    threshold = salad_threshold(own, margin)
    before = [is_salad(value, threshold) for value in own]
    after = [is_salad(value, threshold) for value in found]
    more = sum(a and not b for a, b in zip(after, before, strict=True))
    less = sum(b and not a for a, b in zip(after, before, strict=True))
    low, high = bonett_price(more, less, len(own))
    known = [value for value in found if value is not None and isfinite(value)]
    return Salad(
        n=len(own),
        threshold=threshold,
        median_base=threshold + margin,
        median_edited=median(known) if known else threshold,
        base=sum(before),
        edited=sum(after),
        low=low,
        high=high,
    )


def salad_guard(salad: Salad) -> float:
    """Constraint, broken above 0: the lower bound of the rise less 0.05 (algorithms 7.6)."""
    return salad.low - GUARD_MARGIN
