# SPDX-License-Identifier: Apache-2.0
"""Patterns that decide a reply (algorithms 7.4, R-EVA-04 to R-EVA-06, R-PRF-09)."""

from __future__ import annotations

import random
import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heretic.demo import corpus
from heretic.exceptions import ConfigurationError
from heretic.scorers import build_scorer
from heretic.scorers import markers as room
from heretic.scorers.markers import CLASSES, MarkerScorer, marker_scorer, shipped_markers
from heretic.scorers.text import normalise

TABLE: dict[str, list[str]] = tomllib.loads(
    (Path(__file__).parent / "marker_examples.toml").read_text(encoding="utf-8")
)
EXAMPLES = [(label, reply) for label, replies in TABLE.items() for reply in replies]
HITS = [reply for label, reply in EXAMPLES if label != "none"]
SCORER = marker_scorer({})


def test_the_tables_and_the_shipped_lists_have_the_required_size() -> None:
    """R-EVA-06."""
    shipped = shipped_markers()
    assert len(HITS) >= 60
    assert len(TABLE["none"]) >= 60
    assert [len(shipped[name]) >= least for name, least in zip(CLASSES, (22, 24, 8), strict=True)] == [
        True
    ] * 3
    assert sum("\u2019" in reply for reply in HITS) >= 30


@pytest.mark.parametrize(("label", "reply"), EXAMPLES)
def test_each_example_gets_its_label_with_curly_and_with_straight_quotes(label: str, reply: str) -> None:
    """R-EVA-04, R-EVA-05: near misses, code and lists are no hits."""
    assert SCORER.label(reply) == label
    assert SCORER.label(reply.replace("\u2019", "'")) == label


def test_control_without_the_normaliser_curly_quotes_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithms 7.4, control: identity instead of the normaliser (R-EVA-04)."""
    monkeypatch.setattr(room, "normalise", lambda text: text.lower())
    fresh = marker_scorer({})  # the other one may remember labels
    missed = [reply for reply in HITS if "\u2019" in reply and fresh.label(reply) == "none"]
    assert len(missed) > 20


@pytest.mark.parametrize(
    "reply",
    (
        "I can\u2018t help with that.",
        "I can\u02bct help with that.",
        "I can\u2032t help with that.",
        "I can\uff07t help with that.",
        "I\u00a0can\u2019t\u202fhelp with that.",
        "I can\u200bnot help with that.",
        "I **can\u2019t** help\nwith that.",
        "  I  CAN\u2019T  HELP  with that",
    ),
)
def test_other_apostrophes_spaces_and_emphasis_are_mapped(reply: str) -> None:
    """R-EVA-04."""
    assert SCORER.label(reply) == "core"


def test_every_refusal_of_the_demo_is_found_and_no_answer_is() -> None:
    """R-EVA-06 on the demo model's whole grammar of replies."""
    rng = random.Random(0)
    names = ("refusal-bad", "refusal-good", "refusal-borderline", "verbosity-bad", "verbosity-good")
    for _ in range(300):
        assert SCORER.label(corpus.refusal(rng, corpus.request(rng, "refusal-bad"))) != "none"
        for name in (*names, "hedging-bad", "hedging-good"):
            assert SCORER.label(corpus.answer(rng, corpus.request(rng, name))) == "none"


def test_an_empty_list_matches_nothing_and_an_empty_marker_is_an_error() -> None:
    """R-EVA-05; a list whose joined pattern is empty once matched every reply."""
    assert MarkerScorer(core=()).label("I can't help.") == "none"
    assert MarkerScorer(core=()).label("") == "none"
    for entry in ("", "  ", "x*", "(?:no)?"):
        with pytest.raises(ConfigurationError, match="refusal_markers holds the empty marker"):
            MarkerScorer(core=["no", entry])


@pytest.mark.parametrize("pattern", ("(unclosed", "a)(b", "[z-a]", "(?i)sorry", r"(a)\1", "(?P<x>a)(?P=x)"))
def test_an_invalid_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid pattern") as caught:
        MarkerScorer(core=["fine", pattern])
    assert caught.value.hint


def test_a_users_pattern_keeps_its_escapes_and_loses_its_case() -> None:
    r"""`\S` is not `\s`: only letters outside escapes are folded."""
    scorer = MarkerScorer(core=[r"CODE\S+RED", r"don\u2019t"])
    assert scorer.label("code-red") == "core"
    assert scorer.label("code red") == "none", "control: the folded pattern would match"
    assert MarkerScorer(core=["Don\u2019t do THAT"]).label("I say: don't do that!") == "core"


@pytest.mark.parametrize(
    ("mode", "expected"),
    (
        ("strict", {"core"}),
        ("moderate", {"core", "soft"}),
        ("lenient", {"core", "soft", "evasive"}),
    ),
)
def test_the_mode_says_which_classes_are_hits(mode: str, expected: set[str]) -> None:
    scorer = build_scorer("markers", {"mode": mode})
    replies = {label: TABLE[label][0] for label in TABLE}
    verdicts = dict(zip(replies, scorer.judge([""] * 4, list(replies.values())), strict=True))
    assert {label for label, verdict in verdicts.items() if verdict.hit} == expected
    assert {verdict.label for verdict in verdicts.values()} == set(replies), (
        "labels are the same in every mode"
    )


def test_switches_override_the_mode_and_an_unknown_mode_is_an_error() -> None:
    soft, evasive = TABLE["soft"][0], TABLE["evasive"][0]
    scorer = marker_scorer({"mode": "strict", "detect_evasive": True})
    assert [v.hit for v in scorer.judge(["", ""], [soft, evasive])] == [False, True]
    both = f"{evasive} {soft}"
    assert scorer.judge([""], [both])[0].hit, "a later soft phrase does not take an evasive hit back"
    with pytest.raises(ConfigurationError, match="sharp"):
        marker_scorer({"mode": "sharp"})


def test_a_cut_last_word_decides_nothing() -> None:
    """Algorithms 7.4: a right word boundary counts once the next character is seen."""
    cut = "As an ai"
    assert SCORER.judge([""], [cut], final=False)[0].hit is False
    assert SCORER.judge([""], [f"{cut},"], final=False)[0].hit
    assert SCORER.judge([""], ["As an airline, I"], final=True)[0].hit is False
    ending = MarkerScorer(core=["sorry,"])
    assert ending.judge([""], ["sorry,"], final=False)[0].hit is False, "the next character may be a letter"
    assert ending.judge([""], ["sorry,"], final=True)[0].hit


PIECES = st.sampled_from(
    [
        *HITS,
        *TABLE["none"],
        "I can",
        "I can\u2019t",
        " help",
        " but",
        "\n",
        "  ",
        "**",
        "\u200b",
        ",",
        ". ",
        "As an AI",
    ]
)
WHOLE = st.lists(st.one_of(PIECES, st.text(max_size=6)), min_size=1, max_size=4).map("".join)


@settings(max_examples=100, deadline=None)
@given(
    whole=WHOLE, share=st.floats(0.0, 1.0), mode=st.sampled_from(["strict", "moderate", "lenient", "evasive"])
)
def test_a_hit_on_a_prefix_is_a_hit_on_the_whole(whole: str, share: float, mode: str) -> None:
    """The property early exit stands on (algorithms 6.4, 7.4; R-EVA-08)."""
    if mode == "evasive":
        scorer = marker_scorer({"mode": "strict", "detect_evasive": True})
    else:
        scorer = {name: marker_scorer({"mode": name}) for name in ("strict", "moderate", "lenient")}[mode]
    assert scorer.monotone
    prefix = whole[: int(share * len(whole))]
    assert normalise(whole).startswith(normalise(prefix).rstrip(" "))
    if scorer.judge([""], [prefix], final=False)[0].hit:
        assert scorer.judge([""], [whole], final=True)[0].hit
        assert scorer.judge([""], [whole], final=False)[0].hit


@pytest.mark.parametrize("pattern", ("sorry$", r"sorry\Z", "sorry(?! to)", "(?<!not )sorry"))
def test_a_pattern_that_more_text_can_undo_is_not_monotone(pattern: str) -> None:
    """Algorithms 6.4: such scorers get whole replies (control: the shipped patterns are monotone)."""
    assert not MarkerScorer(core=[pattern]).monotone
    assert SCORER.monotone


def _fastest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def test_matching_is_five_times_faster_than_a_loop_over_patterns() -> None:
    """R-PRF-09, on replies of some hundred characters that hold no marker; measured 10 to 14 times."""
    shipped = shipped_markers()
    loop = [re.compile(rf"(?<!\w)(?:{entry})(?!\w)") for name in CLASSES for entry in shipped[name]]
    texts = [normalise(" ".join(TABLE["none"][start : start + 8])) for start in range(0, 64, 4)]
    joined = [SCORER._patterns[name] for name in CLASSES]

    def one_by_one() -> int:
        return sum(any(pattern.search(text) for pattern in loop) for text in texts)

    def together() -> int:
        return sum(any(pattern.search(text) for pattern in joined if pattern) for text in texts)

    assert one_by_one() == together()
    ratio = _fastest(one_by_one) / _fastest(together)
    assert ratio >= 5.0, ratio
