# SPDX-License-Identifier: Apache-2.0
"""Each registered scorer of replies keeps the contract; broken ones are found (R-EVA-01, R-EVA-02; algorithms 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heretic.exceptions import ConfigurationError
from heretic.scorers import SCORERS, Judgement, ScorerContext, build_scorer
from heretic.scorers.absence import Absence
from heretic.scorers.markers import MarkerScorer, marker_scorer
from heretic.scorers.regex import regex_scorer
from heretic.testing.scorers import (
    EXTENSIONS,
    PROMISES,
    REPLIES,
    REPLY_SCORER_CASES,
    broken_promises,
    check_reply_scorer,
    opened,
    refuses_unknown_options,
)

LOOPBACK = {"judge": pytest.mark.loopback}
NAMES = [pytest.param(name, marks=LOOPBACK.get(name, ())) for name in REPLY_SCORER_CASES]


def test_every_registered_scorer_has_a_case() -> None:
    """Architecture rule 12: a scorer that is registered is under the contract."""
    assert set(SCORERS) <= set(REPLY_SCORER_CASES)


@pytest.mark.parametrize("name", NAMES)
def test_a_scorer_keeps_every_promise(name: str) -> None:
    with REPLY_SCORER_CASES[name]() as case, opened(name) as build:
        check_reply_scorer(build, shown=case.shown)
        assert build().name == name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LOOPBACK.get(name, ())) for name in REPLY_SCORER_CASES],
)
def test_a_mistyped_option_is_an_error(name: str) -> None:
    """It would measure something else without a word. Control: the table itself is accepted."""
    with REPLY_SCORER_CASES[name]() as case:
        assert case.factory is not None
        case.factory(case.table, case.context)
        assert refuses_unknown_options(case.factory, case.table, case.context)


def test_options_given_as_null_are_the_defaults() -> None:
    """A settings file cannot leave a key out of a table that another file has set."""
    assert build_scorer("markers", {"core": None}).judge([""], [REPLIES[0]])[0].hit


class Broken:
    """A scorer that keeps every promise; tests replace one part of it."""

    name = "broken"
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()
    monotone = True
    seen = 0

    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return Judgement("cannot " in reply, "said" if "cannot " in reply else "none")

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        return [self.one(request, reply, final) for request, reply in zip(requests, replies, strict=True)]


def test_the_pattern_of_the_broken_ones_keeps_the_contract() -> None:
    """Control of the cases below."""
    check_reply_scorer(Broken, shown="I cannot do it")


class NoLabel(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), label=" ")


class TooMuch(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), degree=len(reply) / 50)


class HitOfNothing(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), degree=0.0)


class EmptyCounts(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return Judgement(True, "all")


class Forgets(Broken):
    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        return super().judge(requests[1:], replies[1:], final=final)


class Neighbours(Broken):
    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        verdicts = super().judge(requests, replies, final=final)
        return [replace(verdict, label=f"of {len(replies)}") for verdict in verdicts]


class Counts(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        self.seen += 1
        return replace(super().one(request, reply, final), label=str(self.seen))


class Drifts(Broken):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = type(self).made

    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), label=f"by {self.number}")


class Peeks(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), label=f"to {request}")


class Hasty(Broken):
    """The last word of a growing text decides."""

    def one(self, request: str, reply: str, final: bool) -> Judgement:
        hit = super().one(request, reply, final).hit or (not final and reply.endswith("c"))
        return Judgement(hit, "said" if hit else "none")


class TakesBack(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        hit = super().one(request, reply, final).hit and "help" not in reply
        return Judgement(hit, "said" if hit else "none")


class Graded(Broken):
    """A hit grows from a degree below 1."""

    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return replace(super().one(request, reply, final), degree=0.5 if "cannot " in reply else 0.0)


class Odd(Broken):
    needs = frozenset({"residuals"})


BROKEN: tuple[tuple[Callable[[], Broken], str], ...] = (
    (Odd, "described"),
    (NoLabel, "well formed"),
    (TooMuch, "well formed"),
    (HitOfNothing, "well formed"),
    (EmptyCounts, "empty reply"),
    (Forgets, "one each"),
    (Neighbours, "order and batches"),
    (Counts, "order and batches"),
    (Drifts, "deterministic"),
    (Peeks, "request"),
    (Hasty, "growing"),
    (TakesBack, "growing"),
    (Graded, "growing"),
)


@pytest.mark.parametrize(("scorer", "promise"), BROKEN)
def test_a_broken_promise_is_found(scorer: Callable[[], Broken], promise: str) -> None:
    assert promise in broken_promises(scorer, shown="I cannot do it")


class OnlyGrowing(Broken):
    def one(self, request: str, reply: str, final: bool) -> Judgement:
        return Judgement(not final and "Four" in reply, "none")


def test_a_hit_only_while_growing_and_a_scorer_that_never_hits_are_found() -> None:
    assert "cut is never more" in broken_promises(OnlyGrowing)
    assert set(broken_promises(lambda: MarkerScorer(core=()))) == {"shows"}
    with pytest.raises(AssertionError, match="shows: nothing is a hit"):
        check_reply_scorer(lambda: MarkerScorer(core=()))


def test_every_promise_is_broken_by_one_of_the_cases_above() -> None:
    assert {promise for _, promise in BROKEN} | {"cut is never more", "shows"} == set(PROMISES)


def test_an_option_that_is_swallowed_is_found() -> None:
    assert not refuses_unknown_options(lambda table, context: Broken(), {}, ScorerContext())
    with pytest.raises(ConfigurationError, match="pattern"):
        regex_scorer({"pattern": ["x"]})


def test_a_scorer_in_a_file_is_held_to_the_same_contract(tmp_path: Path) -> None:
    """R-EVA-02."""
    source = tmp_path / "loud.py"
    source.write_text(
        "from heretic.scorers import Judgement\n"
        "class Loud:\n"
        "    name, direction, needs, monotone = 'loud', 'lower', frozenset(), True\n"
        "    def __init__(self, settings): self.mark = settings['mark']\n"
        "    def judge(self, requests, replies, *, final=True):\n"
        "        found = [self.mark in reply for reply in replies]\n"
        "        return [Judgement(hit, 'said' if hit else 'none') for hit in found]\n",
        encoding="utf-8",
    )
    check_reply_scorer(lambda: build_scorer(f"{source}:Loud", {"mark": "I"}), shown="I")
    assert "empty reply" in broken_promises(lambda: build_scorer(f"{source}:Loud", {"mark": ""})), "control"


def test_the_goal_induce_keeps_the_shape_of_the_contract() -> None:
    """What counts the absence is no scorer of a behaviour: an empty reply counts; the rest holds."""
    assert set(broken_promises(lambda: Absence(marker_scorer({})))) == {"empty reply"}


PIECES = st.sampled_from([*REPLIES, *EXTENSIONS, "I can", "CANNOT", "cut", "a cut"])
WHOLE = st.lists(st.one_of(PIECES, st.text(max_size=5)), min_size=1, max_size=4).map("".join)


@settings(max_examples=150, deadline=None)
@given(whole=WHOLE, share=st.floats(0.0, 1.0))
def test_a_hit_on_any_prefix_is_a_hit_of_degree_one_on_the_whole(whole: str, share: float) -> None:
    """Algorithms 6.4, over random splits, for every monotone scorer that reads the text alone."""
    found = 0
    for name in ("markers", "length", "hedging", "padding", "regex"):
        with opened(name) as build:
            scorer = build()
        if scorer.monotone:
            found += 1
            prefix = whole[: int(share * len(whole))]
            if scorer.judge([""], [prefix], final=False)[0].hit:
                for final in (True, False):
                    verdict = scorer.judge([""], [whole], final=final)[0]
                    assert verdict.hit and verdict.value == 1.0
    assert found == 2, "markers and regex"
