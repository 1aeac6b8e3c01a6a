# SPDX-License-Identifier: Apache-2.0
"""Intervals against the reference values of algorithms 7.7 and against exact enumeration."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest

from heretic.linalg.intervals import Z_95, bonett_price, mcnemar_exact, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(0, 100, 0.0, 3.7), (3, 100, 1.0, 8.5), (8, 100, 4.1, 15.0), (3, 400, 0.3, 2.2)],
)
def test_wilson_reference_values(hits: int, total: int, low: float, high: float) -> None:
    interval = wilson(hits, total)
    assert (round(100 * interval.low, 1), round(100 * interval.high, 1)) == (low, high)


def test_wilson_is_symmetric_and_solves_the_score_equation() -> None:
    for hits, total in product(range(0, 13, 3), (12, 50)):
        interval, mirrored = wilson(hits, total), wilson(total - hits, total)
        assert math.isclose(interval.low, 1 - mirrored.high, abs_tol=1e-12)
        rate = hits / total
        for bound in interval:
            if 0 < bound < 1:  # the bounds are the rates whose own z-test just rejects the observed one
                assert math.isclose(
                    abs(rate - bound), Z_95 * math.sqrt(bound * (1 - bound) / total), rel_tol=1e-9
                )
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7).low == 0.0 and wilson(7, 7).high == 1.0


def test_bonett_price_by_hand_and_antisymmetric() -> None:
    # f12 = 10, f21 = 2, n = 98: p12 = 0.11, p21 = 0.03, half = z sqrt((0.14 - 0.0064) / 100)
    interval = bonett_price(10, 2, 98)
    half = Z_95 * math.sqrt(0.1336 / 100)
    assert math.isclose(interval.low, 0.08 - half) and math.isclose(interval.high, 0.08 + half)
    assert bonett_price(2, 10, 98) == pytest.approx((-interval.high, -interval.low))


def test_bonett_price_covers_where_wald_does_not() -> None:
    """7.7: 94.8 to 100 % coverage; the plain Wald interval (the control) falls far below for rare
    discordance.
    """
    generator = random.Random(0)
    total, first, second = 50, 0.04, 0.0
    covered = wald_covered = 0
    for _ in range(1000):
        draws = [generator.random() for _ in range(total)]
        only_first = sum(draw < first for draw in draws)
        only_second = sum(first <= draw < first + second for draw in draws)
        interval = bonett_price(only_first, only_second, total)
        covered += interval.low <= first - second <= interval.high
        observed = (only_first - only_second) / total
        half = Z_95 * math.sqrt(max(0.0, (only_first + only_second) / total - observed**2) / total)
        wald_covered += observed - half <= first - second <= observed + half
    assert covered >= 940
    assert wald_covered < 900


def test_mcnemar_equals_enumeration() -> None:
    for only_first, only_second in product(range(6), range(6)):
        discordant = only_first + only_second
        outcomes = [sum(bits) for bits in product((0, 1), repeat=discordant)]
        tail = sum(count <= min(only_first, only_second) for count in outcomes) / len(outcomes)
        assert mcnemar_exact(only_first, only_second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_exact(0, 0) == 1.0
    assert 0.0 <= mcnemar_exact(0, 5000) < 1e-300  # no overflow where floats would have 0/0
