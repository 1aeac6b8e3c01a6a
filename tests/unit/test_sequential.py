# SPDX-License-Identifier: Apache-2.0
"""Wald's test against the figures of algorithms 6.5, by exact enumeration of its paths in place of a simulation."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import pytest

from heretic.linalg.sequential import SequentialTest, worse_rate

TEST = SequentialTest(0.10, 0.30)
LONGEST = 600
"""Prompts after which what is undecided weighs less than 1e-6."""


class Characteristic(NamedTuple):
    """Average number of prompts, and the probabilities of the two decisions."""

    prompts: float
    high: float
    low: float


def characteristic(test: SequentialTest, rate: float, every: int = 1) -> Characteristic:
    """With a look after each `every` prompts, where `rate` is true."""
    undecided = {0: 1.0}
    prompts = high = low = 0.0
    for number in range(1, LONGEST + 1):
        prompts += sum(undecided.values())
        after: dict[int, float] = defaultdict(float)
        for hits, weight in undecided.items():
            after[hits + 1] += weight * rate
            after[hits] += weight * (1 - rate)
        undecided = {}
        for hits, weight in after.items():
            look = number % every == 0
            if look and test.is_high(hits, number):
                high += weight
            elif look and test.is_low(hits, number):
                low += weight
            else:
                undecided[hits] = weight
    assert sum(undecided.values()) < 1e-6
    return Characteristic(prompts, high, low)


def test_average_numbers_of_prompts_are_those_of_the_design() -> None:
    """24 at .10, 20 at .30, 38 at most in between (from a simulation, hence the tolerance of half a prompt)."""
    assert characteristic(TEST, 0.10).prompts == pytest.approx(24, abs=0.6)
    assert characteristic(TEST, 0.30).prompts == pytest.approx(20, abs=0.6)
    between = {rate: characteristic(TEST, rate / 100).prompts for rate in range(10, 31, 2)}
    assert max(between.values()) == pytest.approx(38, abs=0.6)
    assert max(between, key=lambda rate: between[rate]) == 18


def test_errors_are_those_of_the_design_and_within_walds_bounds() -> None:
    """3.6 % and 4.3 %, simulated; exactly 3.4 % and 4.5 %. Wald bounds their sum by alpha + beta."""
    given_up, spared = characteristic(TEST, 0.10).high, characteristic(TEST, 0.30).low
    assert given_up == pytest.approx(0.036, abs=0.003) and spared == pytest.approx(0.043, abs=0.003)
    assert given_up + spared <= TEST.alpha + TEST.beta
    assert given_up <= TEST.alpha / (1 - TEST.beta) and spared <= TEST.beta / (1 - TEST.alpha)
    careless = characteristic(SequentialTest(0.10, 0.30, alpha=0.4, beta=0.4), 0.10)
    assert careless.high > 0.1, "control: other limits, other errors"


def test_looking_less_often_never_adds_errors_of_the_first_kind() -> None:
    """A search looks after a subset, not after every prompt."""
    often, seldom = (characteristic(TEST, 0.10, every).high for every in (1, 30))
    assert seldom < often <= TEST.alpha


def test_better_rates_than_the_target_are_hardly_ever_given_up() -> None:
    errors = [characteristic(TEST, rate).high for rate in (0.02, 0.05, 0.08, 0.10)]
    assert errors == sorted(errors) and errors[0] < 1e-4 < errors[-1]


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.07), (0.1, 0.3), (0.6, 0.85), (0.97, 0.99)])
def test_the_verdict_of_a_lower_bound_of_hits_stands(low: float, high: float) -> None:
    """Evidence grows with hits at a given number of prompts, so a decision at the check point is that of the end."""
    test = SequentialTest(low, high)
    for total in (10, 30, 100):
        values = [test.evidence(hits, total) for hits in range(total + 1)]
        assert values == sorted(values)
        decided = [hits for hits in range(total + 1) if test.is_high(hits, total)]
        assert all(hits / total > low for hits in decided), (
            "an estimate above the target, hence a broken constraint"
        )
        assert not any(test.is_low(hits, total) for hits in decided)


def test_the_worse_rate_has_a_fixed_ratio_of_odds() -> None:
    assert worse_rate(0.10) == pytest.approx(0.30)
    for rate in (0.001, 0.1, 0.5, 0.9, 0.999):
        worse = worse_rate(rate, 5.0)
        assert rate < worse < 1
        assert worse / (1 - worse) == pytest.approx(5.0 * rate / (1 - rate))
        assert worse_rate(1 - worse, 5.0) == pytest.approx(1 - rate), "the same towards 0 as towards 1"


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.3), (0.3, 0.3), (0.3, 0.1), (0.5, 1.0), (math.nan, 0.5)])
def test_rates_that_cannot_be_told_apart_are_refused(low: float, high: float) -> None:
    with pytest.raises(AssertionError):
        SequentialTest(low, high)
