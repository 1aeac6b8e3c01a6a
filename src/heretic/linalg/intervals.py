# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests for counts, with the reference values of algorithms 7.7. Plain floats, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
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
    found = _wilson(hits / total, total, z)
    # At 0 and at `total` one bound is exact in theory; rounding would leave it at 1e-19.
    return Interval(0.0 if hits == 0 else found.low, 1.0 if hits == total else found.high)


def _wilson(rate: float, total: float, z: float) -> Interval:
    square = z * z
    centre = (rate + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * sqrt(rate * (1 - rate) / total + square / (4 * total * total))
    return Interval(
        0.0 if rate == 0 else max(0.0, centre - half), 1.0 if rate == 1 else min(1.0, centre + half)
    )


def mean_interval(values: Sequence[float], z: float = Z_95) -> Interval:
    """Interval of the mean of values in 0 ... 1: Wilson's, with as many prompts as the smaller spread is worth.

    Values with mean m vary at most as hits do, by m (1 - m). With the share f of that which they do vary by, n values
    tell as much as n / f hits. One pseudo-value at the full spread keeps f above 0 where all are alike; for zeros and
    ones f is 1 and the interval Wilson's. (0, 1) for no values.
    """
    count, total = len(values), sum(values)
    if not count:
        return Interval(0.0, 1.0)
    mean, guess = total / count, (total + 1.0) / (count + 2.0)
    full = guess * (1.0 - guess)
    spread = sum((value - mean) ** 2 for value in values)
    share = (spread + full) / (count * mean * (1.0 - mean) + full)
    return _wilson(mean, count / min(1.0, share), z)


def paired_interval(first: Sequence[float], second: Sequence[float], z: float = Z_95) -> Interval:
    """Interval of the mean of (first - second) over the same prompts; (-1, 1) scaled to the data for fewer than two.

    Plain normal interval of the mean of the differences: they need not be bounded. With no spread at all it is a point.
    """
    assert len(first) == len(second)
    count = len(first)
    if count < 2:
        return Interval(float("-inf"), float("inf"))
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1)
    half = z * sqrt(variance / count)
    return Interval(mean - half, mean + half)


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


def paired_rates(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Interval of the mean of (first - second) of degrees in 0 ... 1: Bonett-Price where all are 0 or 1."""
    assert len(first) == len(second)
    if all(value in (0.0, 1.0) for value in (*first, *second)):
        only_first = sum(a > b for a, b in zip(first, second, strict=True))
        only_second = sum(b > a for a, b in zip(first, second, strict=True))
        return bonett_price(only_first, only_second, len(first))
    return paired_interval(first, second)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p-value: min(1, 2 P[Bin(f12 + f21, 1/2) <= min(f12, f21)]) (algorithms 7.7)."""
    assert only_first >= 0 and only_second >= 0
    discordant = only_first + only_second
    # Integers stay exact where floats would underflow (2^-n for n above 1074).
    tail = sum(comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << discordant))
