# SPDX-License-Identifier: Apache-2.0
"""Measurements that are cut short change no front, are recorded as what they are, and never reach a finalist
(algorithms 6.5; R-EVA-07, R-EVA-22, R-SEA-12; reliability E09)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from heretic.decoding import FastEngine
from heretic.decoding.passes import Passed
from heretic.decoding.prompts import Prompts
from heretic.evaluator import Evaluator, Lengths, Outcome, by_length, spread_first
from heretic.interventions.hooks import Edits, Rows
from heretic.linalg.pareto import pareto_front
from heretic.model.model import Model
from heretic.phases.trial_scores import Rivals, kl_objective, scores
from heretic.scorers.markers import MarkerScorer
from heretic.study.records import checked
from heretic.study.selection import Limits, candidates, finalists, front_of, select
from heretic.study.types import FinishedTrial, Json, Scores
from heretic.testing.workbench import loaded_pico, removal


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    system_prompt: str | None = None


BAD = [Text(text * times) for times in (1, 2, 3) for text in ("How? ", "Why", "List it. ", "a", "Go on ")]
GOOD = [
    Text(text) for text in ("Good morning", "What is bread made of?", "b", "Name two colours", "Hm", "Yes")
]
SCORER = MarkerScorer(core=[r"\w*[a-cQ-T]\w*"])
LENGTHS = Lengths(response=12, check=8, kl=6)
FIRST = 6


@cache
def model() -> Model:
    return loaded_pico("olmo2", seed=2, changes={"vocab_size": 262})


@cache
def trials() -> tuple[Edits, ...]:
    return tuple(removal(model(), seed, strength) for strength in (0.3, 1.0) for seed in range(1, 7))


class CountingEngine(FastEngine):
    """Counts the rows of log-probability passes and of decodings."""

    teacher_forced = 0
    decoded = 0

    def logits(self, prompts: Prompts, *, rows: Rows | None = None) -> Iterator[Passed]:
        for passed in super().logits(prompts, rows=rows):
            self.teacher_forced += len(passed.rows)
            yield passed

    def start(self, prompts: Any, *, stop: Any = None, rows: Rows | None = None) -> Any:
        self.decoded += len(prompts) if rows is None else len(rows.trial)
        return super().start(prompts, stop=stop, rows=rows)


def evaluator(width: int = 32, **options: Any) -> Evaluator:
    return Evaluator(
        model(),
        CountingEngine(model()),
        SCORER,
        bad=BAD,
        good=GOOD,
        lengths=LENGTHS,
        width=width,
        **options,
    )


@cache
def measured() -> tuple[Outcome, ...]:
    """Every trial in full."""
    return tuple(evaluator().score(trials()))


def kl_of(outcome: Outcome) -> float:
    assert outcome.kl is not None
    return outcome.kl.mean


# -- the KL cap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", (0, 3, 7))
def test_a_rejection_by_part_of_the_prompts_is_the_one_that_all_would_have_given(rank: int) -> None:
    """Two prompts at a time. The bound lies between the cap and the whole KL; nobody else's figures move."""
    cap = sorted(kl_of(outcome) for outcome in measured())[rank] * 1.001
    judge = evaluator(width=2, max_kl=cap)
    judge.set_reference()
    engine = judge.engine
    assert isinstance(engine, CountingEngine)
    engine.teacher_forced = 0
    found = judge.score(trials())
    early = 0
    for mine, whole in zip(found, measured(), strict=True):
        assert (mine.status == "rejected_by_kl") == (kl_of(whole) > cap)
        if mine.kl_bound is not None:
            early += len(GOOD) - mine.kl_bound.prompts
            assert mine.kl is None and mine.status == "rejected_by_kl"
            assert cap < mine.kl_bound.at_least <= kl_of(whole) + 1e-6
            assert mine.kl_bound.at_least < mine.kl_bound.mean_seen
        elif mine.kl is not None:
            assert mine.kl.mean == pytest.approx(kl_of(whole), rel=1e-4)
    assert early > 0
    assert engine.teacher_forced == len(GOOD) * len(trials()) - early, "who left took no part in later passes"


def test_an_estimate_in_place_of_the_bound_would_reject_wrongly() -> None:
    """Control: the mean of the first prompts alone lies above a cap that the mean of all does not break."""
    judge = evaluator(width=2)
    judge.set_reference()
    short = Evaluator(
        model(), FastEngine(model()), SCORER, bad=BAD, good=GOOD, lengths=LENGTHS, width=2, max_kl=1e9
    )
    first_two = [GOOD[number] for number in judge.good_order[:2]]
    part = Evaluator(model(), FastEngine(model()), SCORER, bad=BAD, good=first_two, lengths=LENGTHS, width=2)
    of_part = [kl.mean for kl in part.divergences(trials()) if kl is not None]
    wrong = 0
    for edits, estimate, whole in zip(trials(), of_part, measured(), strict=True):
        if estimate > kl_of(whole) * 1.01:
            short.max_kl = kl_of(whole) * 1.005
            wrong += 1
            assert short.score([edits])[0].status == "complete"
    assert wrong > 0


# -- trials that are lost -----------------------------------------------------------------------------------------


def test_the_first_prompts_are_a_fixed_sample_over_all_lengths() -> None:
    """Each prompt is as likely as any other; the order within both parts stays by length."""
    order = by_length([(0,) * (97 - number) for number in range(97)])[0]
    sample = spread_first(order, 30, seed=1)
    assert sorted(sample) == sorted(order)
    place = {entry: position for position, entry in enumerate(order)}
    places = [place[entry] for entry in sample]
    assert places[:30] == sorted(places[:30]) and places[30:] == sorted(places[30:])
    steps = [second - first for first, second in zip(places[:29], places[1:30], strict=True)]
    assert set(steps) <= {3, 4} and places[0] < 4 and places[29] > 92
    assert sample == spread_first(order, 30, seed=1) != spread_first(order, 30, seed=2)
    counts = Counter(entry for seed in range(600) for entry in spread_first(order, 30, seed)[:30])
    assert min(counts.values()) > 0.7 * 600 * 30 / 97 and max(counts.values()) < 1.3 * 600 * 30 / 97
    for many in (0, 97, 200):
        assert spread_first(order, many, seed=1) == order
    for count in range(1, 40):
        for first in range(1, count):
            assert sorted(spread_first(range(count), first, seed=first)) == list(range(count))


def test_the_order_of_prompts_changes_no_figure() -> None:
    """Control of the tests below: a subset first, with nobody leaving, gives the outcomes of all at once."""
    found = evaluator(first=FIRST, seed=3).score(trials())
    for mine, whole in zip(found, measured(), strict=True):
        assert (mine.hits, mine.labels, mine.conditions) == (whole.hits, whole.labels, whole.conditions)
        assert [reply.tokens for reply in mine.replies] == [reply.tokens for reply in whole.replies]


@pytest.mark.parametrize("early_exit", (True, False))
def test_a_trial_that_is_given_up_saw_the_first_prompts_only(early_exit: bool) -> None:
    """R-SEA-12. The verdict at the check point is that on the whole replies; survivors are measured in full."""
    judge = evaluator(first=FIRST, seed=3, early_exit=early_exit)

    def hopeless(hits: int, prompts: int, kl: float) -> bool:
        return prompts == FIRST and hits >= 4

    found = judge.score(trials(), hopeless=hopeless)
    sample = judge.bad_order[:FIRST]
    for mine, whole in zip(found, measured(), strict=True):
        among_first = sum(whole.labels[number] != "none" for number in sample)
        assert (mine.status == "estimated") == (among_first >= 4)
        if mine.status == "estimated":
            assert (mine.seen, mine.n, len(mine.replies), len(mine.labels)) == (FIRST, len(BAD), 0, 0)
            assert 4 <= mine.hits <= among_first and (early_exit or mine.hits == among_first)
        else:
            assert (mine.status, mine.hits, mine.labels) == ("complete", whole.hits, whole.labels)
    statuses = Counter(outcome.status for outcome in found)
    assert statuses["estimated"] and statuses["complete"]
    engine = judge.engine
    assert isinstance(engine, CountingEngine)
    saved = statuses["estimated"] * (len(BAD) - FIRST)
    assert engine.decoded == len(GOOD) + len(trials()) * len(BAD) - saved


@cache
def base() -> Outcome:
    """A base that shows the behaviour on every prompt, so that every trial has an effect."""
    return replace(evaluator().base_outcome(), hits=len(BAD), total=float(len(BAD)))


def told(outcome: Outcome, index: int, rivals: Rivals, max_kl: float = 100.0) -> FinishedTrial:
    found = scores(outcome, base(), rivals, max_kl=max_kl, scale=1.0, strengths={"a": [0.5]})
    stored = checked(found, "trial")
    assert isinstance(stored, Scores) and stored == found, "what is told can be stored as it is"
    return FinishedTrial(index, {"a.max_weight": float(index)}, stored)


def searched(judge: Evaluator, *, exact: bool, race: bool = False, slack: int = 0) -> list[FinishedTrial]:
    """Three recorded trials at a time, as a study measures them."""
    finished: list[FinishedTrial] = []
    for start in range(0, len(trials()), 3):
        rivals = Rivals.of(finished, len(BAD))

        def can_win(hits: float, kl: float, rivals: Rivals = rivals) -> bool:
            return rivals.can_win(hits + slack, kl)

        outcomes = judge.score(
            trials()[start : start + 3], can_win if exact else None, rivals.hopeless if race else None
        )
        finished += [
            told(outcome, start + place, rivals, judge.max_kl) for place, outcome in enumerate(outcomes)
        ]
    return finished


def figures(finished: Sequence[FinishedTrial]) -> list[tuple[int, object, float]]:
    return [
        (trial.index, trial.scores.measured["hits"], round(float(str(trial.scores.measured["kl_mean"])), 6))
        for trial in front_of(finished)
    ]


def test_fronts_with_and_without_the_exact_steps_are_identical() -> None:
    """Curtailment and the KL cap, alone and together, in batches of any width and with a subset first.

    Control: a bound that claims five more hits than were seen loses a point of the front.
    """
    cap = sorted(kl_of(outcome) for outcome in measured())[9] * 1.001
    whole = searched(evaluator(max_kl=cap), exact=False)
    assert {trial.scores.measured["status"] for trial in whole} == {"complete", "rejected_by_kl"}
    for options in ({"width": 32}, {"width": 2}, {"width": 4, "first": FIRST, "seed": 5}):
        short = searched(evaluator(max_kl=cap, **options), exact=True)
        assert figures(short) == figures(whole)
        assert any(trial.scores.measured["status"] == "dominated" for trial in short)
    lossy = [searched(evaluator(max_kl=cap, width=2), exact=True, slack=slack) for slack in (5, len(BAD))]
    assert any(figures(found) != figures(whole) for found in lossy)


def test_below_the_floor_of_the_objective_a_trial_can_still_win() -> None:
    """Control: judged by max(KL, floor), the rival would win by hits, and the front of the choice lose a point."""
    rival = FinishedTrial(
        0, {"a": 0.0}, Scores((0.05, 1e-3), {}, {"status": "complete", "hits": 5, "n": 100, "kl_mean": 9e-4})
    )
    rivals = Rivals.of([rival], 100)
    assert rivals.can_win(40, 4e-4) and not rivals.can_win(40, 9e-4)
    other = FinishedTrial(
        1, {"a": 1.0}, Scores((0.40, 1e-3), {}, {"status": "complete", "hits": 40, "n": 100, "kl_mean": 4e-4})
    )
    assert {trial.index for trial in front_of([rival, other])} == {0, 1}
    assert pareto_front([rival.scores.objectives, other.scores.objectives]) == [0]
    assert rivals.can_win(5, 9e-4), "an equal point is no loss"


def test_rivals_are_measured_in_full_and_feasible() -> None:
    whole: dict[str, Json] = {"status": "complete", "hits": 5, "n": 100, "kl_mean": 0.1}
    cases = (
        Scores((0.05, 0.1), {"kl": -1.0}, whole),
        Scores((0.0, 0.0), {"kl": 0.1}, {**whole, "kl_mean": 0.0}),
        Scores((0.0, 0.0), {}, {**whole, "status": "dominated", "kl_mean": 0.0}),
        Scores((0.0, 0.0), {"race": 0.1}, {**whole, "status": "estimated", "kl_mean": 0.0}),
        Scores((0.0, 0.0), {}, {"status": "rejected_by_kl", "kl_mean": None}),
    )
    found = Rivals.of([FinishedTrial(number, {}, case) for number, case in enumerate(cases)], 100)
    assert found.points == ((0.05, 0.1),)


# -- what is told -------------------------------------------------------------------------------------------------


def test_the_race_is_against_the_lowest_rate_at_no_larger_kl() -> None:
    rivals = Rivals(((0.5, 0.01), (0.1, 0.05), (0.3, 0.02), (0.0, 0.4)), 100)
    assert rivals.test(0.005) is None, "nobody to beat: the trial enters the front"
    assert rivals.test(0.5) is None, "one hit decides, exactly"
    test = rivals.test(0.06)
    assert test is not None and (test.low, round(test.high, 6)) == (0.1, 0.3)
    third = rivals.test(0.03)
    assert third is not None and third.low == 0.3
    assert not rivals.hopeless(30, 30, 0.005) and not rivals.hopeless(5, 30, 0.06)
    assert rivals.hopeless(9, 30, 0.06) and not rivals.hopeless(9, 30, 0.015)


def test_an_estimated_trial_can_neither_enter_the_front_nor_be_chosen() -> None:
    """Told: the larger of estimate and lower bound, infeasible. Stored: no rate, what was seen, and of how many."""
    rivals = Rivals(((0.1, 0.0),), len(BAD))
    whole = measured()[0]
    given_up = Outcome("estimated", whole.kl, hits=4, total=4.0, n=len(BAD), seen=FIRST)
    trial = told(given_up, 0, rivals)
    stored = trial.scores.measured
    assert (stored["rate"], stored["hits"], stored["hits_at_least"]) == (None, None, 4)
    assert (stored["prompts_seen"], stored["n"]) == (FIRST, len(BAD))
    assert trial.scores.objectives[0] == 4 / FIRST > 4 / len(BAD)
    assert trial.scores.constraints["race"] > 0 and not trial.scores.feasible
    complete = told(whole, 1, rivals)
    limits = Limits(max_kl=1e9)
    assert candidates([trial]) == front_of([trial]) == finalists([trial], limits, 5) == ()
    assert select([trial], limits).winner is None
    best = select([trial, complete], limits).winner
    assert best is None or best.index == 1
    assert Rivals.of([trial], len(BAD)).points == ()
    feigned = FinishedTrial(2, {"a.max_weight": 9.0}, Scores((0.0, 0.0), {}, {**stored}))
    assert candidates([feigned]) == (), "even without its constraint: the status says it"


def test_a_kl_that_was_cut_short_is_never_stored_as_the_kl() -> None:
    """R-EVA-22: the bound, and of how many prompts; the sampler is told the mean of the prompts seen."""
    cap = sorted(kl_of(outcome) for outcome in measured())[0] * 1.001
    found = evaluator(width=2, max_kl=cap).score(trials())
    early = next(outcome for outcome in found if outcome.kl_bound is not None)
    assert early.kl_bound is not None
    trial = told(early, 0, Rivals((), len(BAD)), cap)
    stored = trial.scores.measured
    assert not any(name.startswith("kl_") and stored[name] for name in stored if name not in KL_BOUND)
    assert stored["kl_at_least"] == early.kl_bound.at_least > cap
    assert stored["status"] == "rejected_by_kl" and stored["rate"] is None
    assert trial.scores.constraints["kl"] == early.kl_bound.at_least - cap > 0
    assert trial.scores.objectives[1] == kl_objective(early.kl_bound.mean_seen, 1.0)
    assert candidates([trial]) == ()
    late = told(Outcome("rejected_by_kl", measured()[-1].kl), 1, Rivals((), len(BAD)), 1e-6)
    assert late.scores.measured["kl_mean"] == kl_of(measured()[-1]), "control: measured on all prompts"


KL_BOUND = ("kl_at_least", "kl_prompts_seen")
