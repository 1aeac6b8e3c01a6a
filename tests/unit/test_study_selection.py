# SPDX-License-Identifier: Apache-2.0
"""The automatic choice: a table of fronts and a total order (R-SEL-01 to R-SEL-03, reliability section 6)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from heretic.study.selection import Limits, candidates, finalists, front_of, knee_of, select
from heretic.study.types import FinishedTrial, Json, Scores

LIMITS = Limits(max_kl=0.5)


def trial(
    index: int,
    hits: int,
    divergence: float,
    *,
    n: int = 100,
    constraints: Mapping[str, float] | None = None,
    weight: float | None = None,
    **measured: Json,
) -> FinishedTrial:
    figures: dict[str, Json] = {"rate": hits / n, "hits": hits, "n": n, "kl_mean": divergence, **measured}
    scores = Scores(
        (hits / n, divergence if math.isfinite(divergence) else 0.0), dict(constraints or {}), figures
    )
    return FinishedTrial(index, {"a.max_weight": 0.1 + index if weight is None else weight}, scores)


def chosen(*trials: FinishedTrial, limits: Limits = LIMITS) -> int | None:
    winner = select(trials, limits).winner
    return None if winner is None else winner.index


def test_r_sel_01_lowest_rate_within_the_limits() -> None:
    assert chosen(trial(0, 90, 0.01), trial(1, 5, 0.4), trial(2, 1, 0.6), trial(3, 20, 0.1)) == 1


def test_r_sel_01_ties_by_kl_then_knee_then_index() -> None:
    assert chosen(trial(0, 5, 0.2), trial(1, 5, 0.1)) == 1
    assert chosen(trial(0, 5, 0.1000000004), trial(1, 5, 0.1), trial(2, 9, 0.01)) == 0, (
        "equal to 1e-6: the index"
    )
    assert chosen(trial(0, 5, 0.100002), trial(1, 5, 0.1), trial(2, 9, 0.01)) == 1, (
        "control: 2e-6 is a difference"
    )


def test_counts_come_before_floats() -> None:
    """0.1 + 0.2 is not 0.3: equal counts must not be ordered by the rounding of a rate."""
    first, second = trial(0, 30, 0.2, rate=0.1 + 0.2), trial(1, 30, 0.1, rate=0.3)
    assert chosen(first, second) == 1
    assert chosen(trial(0, 3, 0.2, n=10), trial(1, 29, 0.4, n=100)) == 1, (
        "shares of different totals compare exactly"
    )


def test_limits_are_inclusive_despite_binary_fractions() -> None:
    assert chosen(trial(0, 15, 0.1), limits=Limits(0.5, 0.15)) == 0
    assert select([trial(0, 15, 0.1)], Limits(0.5, 0.15)).qualified
    assert select([trial(0, 15, 0.5)], LIMITS).qualified
    assert not select([trial(0, 16, 0.1)], Limits(0.5, 0.15)).qualified
    assert not select([trial(0, 15, 0.500002)], LIMITS).qualified


def test_vetoes() -> None:
    """Broken guards, non-finite figures and cut-short measurements cannot win, however good they look."""
    good = trial(9, 50, 0.1)
    for bad in (
        trial(0, 0, 0.0, constraints={"loops": 0.01}),
        trial(0, 0, float("nan")),
        trial(0, 0, float("inf")),
        trial(0, 0, 0.0, status="dominated"),
        trial(0, 0, 0.0, status="rejected_by_kl"),
        FinishedTrial(
            0, {}, Scores((float("nan"), 0.0), {}, {"hits": 0, "n": 9, "rate": 0.0, "kl_mean": 0.0})
        ),
        FinishedTrial(0, {}, Scores((0.0, 0.0), {}, {})),
    ):
        assert chosen(bad, good) == 9
        assert select([bad], LIMITS).winner is None
    assert chosen(trial(0, 0, 0.0, constraints={"loops": 0.0}), good) == 0, "control: a guard that just holds"


def test_r_sel_02_nothing_qualifies() -> None:
    trials = [trial(0, 90, 0.7), trial(1, 10, 0.9), trial(2, 0, 3.0)]
    fallback = select(trials, LIMITS, fallback="knee")
    assert not fallback.qualified and fallback.winner is not None and fallback.winner.index == 1
    assert knee_of(trials) == fallback.winner
    nothing = select(trials, LIMITS, fallback="none")
    assert nothing.winner is None and nothing.closest is not None and nothing.closest.index == 0
    assert "None is chosen" in nothing.reason
    assert select([], LIMITS).winner is None and knee_of([]) is None


def test_r_sel_03_reason_names_limits_winner_and_runner_up() -> None:
    selection = select([trial(0, 20, 0.1), trial(1, 5, 0.4), trial(2, 0, 0.9)], Limits(0.5, 0.3))
    assert selection.runner_up is not None and selection.runner_up.index == 0
    for part in (
        "KL <= 0.5",
        "rate <= 0.3",
        "Of 3 trials 3 are valid and 2 meet",
        "trial 1",
        "Runner-up: trial 0",
    ):
        assert part in selection.reason
    assert selection.separable is None


def test_separable_needs_a_paired_interval_without_zero() -> None:
    ones, few = [1] * 30 + [0] * 70, [1] * 28 + [0] * 72
    clear = select([trial(0, 30, 0.1, verdicts=ones), trial(1, 0, 0.4, verdicts=[0] * 100)], LIMITS)
    close = select([trial(0, 30, 0.1, verdicts=ones), trial(1, 28, 0.4, verdicts=few)], LIMITS)
    assert clear.separable is True and close.separable is False


def test_induce_prefers_many_hits() -> None:
    trials = [trial(0, 90, 0.3), trial(1, 10, 0.1)]
    induced = select(trials, LIMITS, goal="induce").winner
    assert induced is not None and induced.index == 0
    assert chosen(*trials) == 1, "control: suppress prefers few"


def test_front_and_finalists() -> None:
    trials = [trial(0, 50, 0.1), trial(1, 60, 0.2), trial(2, 20, 0.3), trial(3, 20, 0.3), trial(4, 0, 0.8)]
    assert [entry.index for entry in front_of(trials)] == [0, 2, 4]
    assert [entry.index for entry in finalists(trials, LIMITS, 2)] == [2, 0]
    assert [entry.index for entry in finalists(trials, LIMITS, 9)] == [2, 0, 4], (
        "those beyond the limits come last"
    )
    twice = [trial(0, 5, 0.1, weight=1.0), trial(1, 5, 0.1, weight=1.0)]
    assert [entry.index for entry in candidates(twice)] == [0], "one edit counts once"


@pytest.mark.parametrize("seed", range(40))
def test_order_is_total_and_ignores_the_order_of_input(seed: int) -> None:
    """Random trials with many ties, NaN and broken guards, shuffled: one ranking, and the rule holds for its
    first.
    """
    generator = random.Random(seed)
    trials = [
        trial(
            index,
            generator.randrange(4),
            generator.choice([0.1, 0.1 + 1e-9, 0.2, 0.7, float("nan"), float("inf")]),
            n=generator.choice([4, 8]),
            constraints={"guard": generator.choice([-1.0, 0.0, 0.5])},
        )
        for index in range(generator.randrange(1, 15))
    ]
    reference = select(trials, LIMITS)
    for _ in range(5):
        generator.shuffle(trials)
        again = select(trials, LIMITS)
        assert [entry.index for entry in again.ranking] == [entry.index for entry in reference.ranking]
        assert again.reason == reference.reason and again.winner == reference.winner
    legal = [entry for entry in candidates(trials) if entry.scores.objectives[1] <= 0.5]
    assert reference.qualified == bool(legal)
    if legal and reference.winner is not None:
        assert reference.winner.scores.objectives[0] == min(entry.scores.objectives[0] for entry in legal)
