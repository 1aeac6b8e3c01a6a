# SPDX-License-Identifier: Apache-2.0
"""Scorers that grade: the mean degree is the objective, counted hits stand beside it (requirements R-EVA-01)."""

from __future__ import annotations

import random

import pytest

from heretic.evaluator.outcome import Outcome
from heretic.linalg.intervals import bonett_price, mean_interval, paired_interval, paired_rates, wilson
from heretic.phases.evaluation import rate_from
from heretic.phases.trial_scores import Rivals
from heretic.report import Rate
from heretic.scorers.absence import Absence
from heretic.scorers.protocol import Judgement
from heretic.study.selection import Limits, select
from heretic.study.types import FinishedTrial, Json, Scores


def graded(*degrees: float) -> list[Judgement]:
    return [Judgement(degree >= 0.5, "long", degree) for degree in degrees]


def test_a_rate_of_degrees_is_their_mean_with_its_own_interval() -> None:
    rate = rate_from(graded(0.9, 0.1, 0.3, 0.7))
    assert (rate.hits, rate.n, rate.value) == (2, 4, 0.5)
    assert rate.low < 0.5 < rate.high
    counted = rate_from([Judgement(True, "core"), Judgement(False, "none")])
    assert counted.mean is None and counted.value == 0.5, "control: hits alone are counted"
    turned = rate.complement
    assert (turned.hits, turned.value, turned.low, turned.high) == (2, 0.5, 1 - rate.high, 1 - rate.low)
    assert Rate(3, 10, 0.1, 0.6).complement.mean is None


def test_the_absence_of_a_degree_is_its_complement_and_nothing_while_the_text_may_grow() -> None:
    class Lengths:
        name, direction, needs, monotone = "lengths", "lower", frozenset[str](), False

        def judge(self, requests: object, replies: list[str], *, final: bool = True) -> list[Judgement]:
            return graded(*(min(1.0, len(reply) / 10) for reply in replies))

    absence = Absence(Lengths())  # type: ignore[arg-type]  # its judge takes a list
    found = absence.judge(["", ""], ["aaa", "aaaaaaaaaa"])
    assert [verdict.value for verdict in found] == [pytest.approx(0.7), 0.0]
    assert [verdict.value for verdict in absence.judge([""], ["aaa"], final=False)] == [0.0]


@pytest.mark.parametrize(("rate", "spread"), [(0.05, 1.0), (0.3, 1.0), (0.3, 0.2), (0.9, 0.4)])
@pytest.mark.parametrize("count", [50, 200])
def test_the_interval_of_a_mean_covers_it(rate: float, spread: float, count: int) -> None:
    """Degrees mixed of a coin and the mean itself. Control: half of the width covers less."""
    generator, covered, halved, runs = random.Random(1), 0, 0, 400
    for _ in range(runs):
        values = [spread * (generator.random() < rate) + (1 - spread) * rate for _ in range(count)]
        low, high = mean_interval(values)
        covered += low <= rate <= high
        centre = (low + high) / 2
        halved += abs(rate - centre) <= (high - low) / 4
    assert covered / runs >= 0.92, covered
    assert halved < covered


def test_the_interval_of_a_mean_has_edges() -> None:
    assert mean_interval([]) == (0.0, 1.0)
    low, high = mean_interval([0.0] * 100)
    assert low == 0.0 and 0.0 < high < 0.06
    low, high = mean_interval([1.0] * 100)
    assert high == 1.0 and low > 0.94
    assert mean_interval([1.0] * 30 + [0.0] * 70) == pytest.approx(wilson(30, 100), abs=1e-3)
    low, high = mean_interval([0.3] * 50)
    assert 0.2 < low < 0.3 < high < 0.4, "alike, but only fifty"


def test_pairs_of_hits_keep_their_interval_and_degrees_have_one_of_the_differences() -> None:
    assert paired_rates([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]) == bonett_price(1, 0, 4)
    first, second = [0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.6, 0.7]
    assert paired_rates(first, second) == paired_interval(first, second)
    low, high = paired_interval(first, second)
    assert low == pytest.approx(0.1) and high == pytest.approx(0.1), "all differences are alike"
    low, high = paired_interval([0.5, 0.6], [0.4, 0.9])
    assert low < 0 < high
    assert paired_interval([0.5], [0.1]) == (float("-inf"), float("inf"))


def trial(index: int, degrees: list[float], kl: float) -> FinishedTrial:
    outcome = Outcome("complete", None, judged=graded(*degrees), n=len(degrees), total=sum(degrees))
    measured: dict[str, Json] = {
        "status": "complete", "rate": outcome.rate, "hits": sum(j.hit for j in outcome.judged), "n": outcome.n,
        "graded": True, "kl_mean": kl, "verdicts": degrees,
    }  # fmt: skip
    return FinishedTrial(index, {"x": index}, Scores((outcome.rate, kl), {}, measured))


def test_the_choice_goes_by_the_mean_and_not_by_the_hits() -> None:
    fewer_hits = trial(0, [0.49] * 10, 0.01)
    shorter = trial(1, [0.6, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05], 0.01)
    chosen = select([fewer_hits, shorter], Limits(0.5))
    assert chosen.winner is shorter
    assert chosen.separable is True
    assert fewer_hits.scores.measured["hits"] == 0, "control: by hits the other one would win"


def test_a_trial_that_grades_can_still_win_by_its_sum() -> None:
    rivals = Rivals(((0.3, 0.1),), total=10)
    assert rivals.can_win(2.9, 0.1)
    assert not rivals.can_win(3.1, 0.1)
