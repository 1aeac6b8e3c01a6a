# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests for counts, with the reference values of algorithms 7.7. Plain floats, no tensors."""

from __future__ import annotations

from math import comb, sqrt
from typing import NamedTuple

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


class Interval(NamedTuple):
    """Lower and upper bound of a rate or of a difference of rates."""

    low: float
    high: float


def wilson(hits: int, total: int, z: float = Z_95) -> Interval:
    """Wilson score interval of hits/total (Wilson 1927; algorithms 7.7); (0, 1) when nothing was counted."""
    assert 0 <= hits <= total
    if total == 0:
        return Interval(0.0, 1.0)
    rate = hits / total
    square = z * z
    centre = (rate + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    # At 0 and at `total` one bound is exact in theory; rounding would leave it at 1e-19.
    return Interval(
        0.0 if hits == 0 else max(0.0, centre - half), 1.0 if hits == total else min(1.0, centre + half)
    )


def bonett_price(only_first: int, only_second: int, total: int, z: float = Z_95) -> Interval:
    """Interval of (rate of the first - rate of the second) on the same `total` prompts (Bonett and Price
    2012).

    only_first, only_second: prompts that hit under exactly one of the two edits (f12 and f21 of algorithms
    7.7). The two are separable when the interval excludes 0.
    """
    assert only_first >= 0 and only_second >= 0 and only_first + only_second <= total
    first = (only_first + 1) / (total + 2)
    second = (only_second + 1) / (total + 2)
    difference = first - second
    half = z * sqrt((first + second - difference * difference) / (total + 2))
    return Interval(max(-1.0, difference - half), min(1.0, difference + half))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value: min(1, 2 P[Bin(f12 + f21, 1/2) <= min(f12, f21)]) (algorithms 7.7)."""
    assert only_first >= 0 and only_second >= 0
    discordant = only_first + only_second
    # Integers stay exact where floats would underflow (2^-n for n above 1074).
    tail = sum(comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << discordant))
