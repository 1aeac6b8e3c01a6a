# SPDX-License-Identifier: Apache-2.0
"""Length, padding, hedging and a user's own patterns (R-EVA-01, R-EVA-04; algorithms 6.4, 7.6)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heretic.demo import corpus
from heretic.exceptions import ConfigurationError
from heretic.scorers import Judgement, ReplyScorer, ScorerContext
from heretic.scorers.hedging import hedging_scorer, per_hundred_words
from heretic.scorers.length import length_scorer, padding_scorer
from heretic.scorers.lexicon import rate_per_hundred, sentences, shipped_lexicon, word_count
from heretic.scorers.quotations import QUOTATION_LIMIT, without_quotations
from heretic.scorers.regex import may_be_undone, regex_scorer
from heretic.scorers.text import normalise


def verdict(scorer: ReplyScorer, reply: str, *, final: bool = True) -> Judgement:
    return scorer.judge([""], [reply], final=final)[0]


# Length


def test_the_degree_is_the_length_over_the_scale() -> None:
    """0.75 words a token and 4 characters a word are the defaults; what is longer than the scale counts as 1."""
    context = ScorerContext(limit=40, count_tokens=lambda text: 2 * len(text.split()))
    reply = "one two three four five six"
    cases = {"words": 6 / 30, "tokens": 12 / 40, "characters": len(reply) / 120}
    for unit, degree in cases.items():
        scorer = length_scorer({"unit": unit}, context)
        assert verdict(scorer, reply).degree == pytest.approx(degree)
        assert (verdict(scorer, reply).hit, verdict(scorer, reply).label) == (False, "short")
        assert verdict(scorer, reply * 40).degree == 1.0
    assert verdict(length_scorer({}, context), reply).degree == pytest.approx(cases["words"]), (
        "words by default"
    )
    assert verdict(length_scorer({"scale": 12}, context), reply) == Judgement(True, "long", 0.5)


def test_the_mean_degree_is_the_mean_length_of_uncensored_replies() -> None:
    """What the search makes small, in words; a logarithm (control) would say something else."""
    scorer = length_scorer({"scale": 100})
    lengths = (3, 10, 80)
    found = scorer.judge([""] * 3, ["word " * length for length in lengths])
    assert sum(each.value for each in found) / 3 * 100 == pytest.approx(sum(lengths) / 3)
    cut = scorer.judge([""] * 3, ["word " * (length // 2 if length > 5 else length) for length in lengths])
    saved = sum(each.value for each in found) - sum(each.value for each in cut)
    assert saved * 100 == pytest.approx(45)


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=2, unique=True))
@settings(max_examples=40, deadline=None)
def test_below_the_scale_a_longer_reply_has_a_larger_degree(counts: list[int]) -> None:
    fewer, more = sorted(counts)
    for unit in ("words", "tokens", "characters"):
        scorer = length_scorer(
            {"unit": unit, "scale": 600.0}, ScorerContext(count_tokens=lambda text: len(text))
        )
        first, second = (verdict(scorer, "word " * count).degree for count in (fewer, more))
        assert first is not None and second is not None and first < second


def test_hits_begin_at_the_named_degree() -> None:
    scorer = length_scorer({"scale": 10, "long": 0.8})
    assert [verdict(scorer, "w " * count).hit for count in (7, 8, 9)] == [False, True, True]
    assert [verdict(scorer, "w " * count).label for count in (7, 8)] == ["short", "long"]
    assert not scorer.monotone


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("", 0),
        ("- * ... \u2014", 0),
        ("Don\u2019t stop: it\u2019s well-made.", 4),
        ("**two** words", 2),
        ("a\u00a0b\u200bc", 2),
        ("1. one\n2. two", 4),
    ),
)
def test_words_are_runs_of_letters_and_digits(text: str, words: int) -> None:
    assert word_count(text) == words


def test_a_reply_without_letters_is_empty_and_of_degree_0() -> None:
    for scorer in (length_scorer({"unit": "characters"}), hedging_scorer({}), padding_scorer({})):
        for reply in ("", " \n", "\u200b", "...", "**"):
            assert verdict(scorer, reply) == Judgement(False, "empty", 0.0)


@pytest.mark.parametrize(
    ("table", "message"),
    (
        ({"unit": "lines"}, "'lines'"),
        ({"scale": 0}, "'scale'"),
        ({"scale": -3.0}, "'scale'"),
        ({"scale": float("inf")}, "'scale'"),
        ({"scale": float("nan")}, "'scale'"),
        ({"scale": "long"}, "'scale'"),
        ({"long": 0.0}, "'long'"),
        ({"long": 1.5}, "'long'"),
        ({"long": float("nan")}, "'long'"),
        ({"units": "words"}, "'units'"),
    ),
)
def test_a_wrong_length_option_is_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        length_scorer(table)
    assert length_scorer({"unit": None, "scale": None, "long": 1.0}).long == 1.0, "control"


# Sentences and quotations


def test_sentences_are_lines_cut_behind_full_stops() -> None:
    text = "It is 3.5 m long. Is it? Yes!\n\n- One point\n- **Another** one\n...\n\u201cNo.\u201d He left."
    assert sentences(text) == [
        "it is 3.5 m long.", "is it?", "yes!", "- one point", "- another one", '"" he left.',
    ]  # fmt: skip


def test_quotations_are_left_out() -> None:
    cut = without_quotations
    assert cut('he said "perhaps" and left') == 'he said "" and left'
    assert cut('a 5" pipe, perhaps') == 'a 5" pipe, perhaps', "a length"
    assert cut('("maybe")') == '("")'
    assert cut('"i cannot" is short') == '"" is short'
    assert cut('"i cannot" is short, "no" too', keep_opening=True) == '"i cannot" is short, "" too'
    endless = cut('"' + "a" * QUOTATION_LIMIT + " perhaps")
    assert endless == '" perhaps', "a mark without a partner does not hide the rest"


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='ab "5(', max_size=40), cut=st.integers(0, 40), opening=st.booleans())
def test_leaving_out_quotations_keeps_prefixes(text: str, cut: int, opening: bool) -> None:
    """Algorithms 7.4: what is kept depends on earlier characters alone."""
    whole = without_quotations(text, keep_opening=opening)
    assert whole.startswith(without_quotations(text[:cut], keep_opening=opening))


# Hedging and padding

HEDGED = (
    "Perhaps it is the yeast.",
    "It seems that tea helps.",
    "Some would say so.",
    "I believe it is older.",
    "The yeast may have been too old.",
    "It might be so.",
    "Frost may damage the shoots.",
    "I\u2019m not sure.",
    "In my opinion it is fine.",
    "As far as I know, it is.",
    "**Probably** not.",
    "I don\u2019t think so.",
    "It could\u00a0be the cold.",
    "Studies suggest that it works.",
    "It is hard to say.",
    "More or less.",
    "Cats tend to sleep by day.",
    "Nobody knows for sure.",
)
FIRM = (
    "Sow beans in May.",
    "May 5 is a holiday.",
    "The second half of May is warm.",
    "They pulled with might and main.",
    "Its might decided the war.",
    "Boil it for about 5 minutes.",
    "You may park here.",
    "A likely story!",
    "I believe in you.",
    "They appear at dusk.",
    "The appearance of a comet is rare.",
    "I think of you.",
    "A kind of berry.",
    "Could you name a fruit?",
    "I suggest a walk.",
    "The word \u201cperhaps\u201d marks doubt.",
    "We know it for sure.",
    "As possible causes are known, it is done.",
)
PADDED = (
    "Great question!",
    "Certainly!",
    "Certainly! Use two cups.",
    "Sure, I\u2019d be happy to help!",
    "Of course!",
    "It is important to note that salt is white.",
    "I hope this helps!",
    "In conclusion, it is round.",
    "Let me know if you have any questions.",
    "Feel free to ask.",
    "Please don\u2019t hesitate to write.",
    "Needless to say, it is good.",
    "Thank you for your question.",
    "Is there anything else?",
    "**Absolutely!**",
)
PLAIN = (
    "Certainly not the favourite.",
    "It is certainly cold.",
    "The question is great.",
    "Of course he came.",
    "I am sure of it.",
    "In conclusion lies its strength.",
    "Note the important word.",
    "Thank you for the flowers.",
    "Hope is the thing with feathers.",
    "Feel the edge; it is free of burrs.",
    "The overall length is 5 m.",
    "He said \u201cgreat question\u201d and sat down.",
)


@pytest.mark.parametrize("reply", HEDGED)
def test_a_hedge_is_found_with_any_apostrophe_and_emphasis(reply: str) -> None:
    """R-EVA-04 holds for lists of words too."""
    assert verdict(hedging_scorer({}), reply) == Judgement(True, "hedged", 1.0)
    assert verdict(hedging_scorer({}), reply.replace("\u2019", "'").upper()).hit


@pytest.mark.parametrize("reply", FIRM)
def test_a_false_friend_is_no_hedge(reply: str) -> None:
    assert verdict(hedging_scorer({}), reply) == Judgement(False, "none", 0.0)


@pytest.mark.parametrize("reply", PADDED)
def test_filler_is_found(reply: str) -> None:
    assert verdict(padding_scorer({}), reply).label == "padded"


@pytest.mark.parametrize("reply", PLAIN)
def test_the_same_words_in_a_statement_are_no_filler(reply: str) -> None:
    assert verdict(padding_scorer({}), reply) == Judgement(False, "none", 0.0)


def test_the_degree_is_the_share_of_sentences() -> None:
    """A sentence counts once; lines are sentences. Control: without the hedged ones it is 0."""
    reply = "Perhaps it may be so, I think. It is late. Go home.\nMaybe not"
    assert verdict(hedging_scorer({}), reply) == Judgement(True, "hedged", 0.5)
    assert verdict(hedging_scorer({}), "It is late. Go home.").degree == 0.0
    assert verdict(padding_scorer({}), "Great question! Water boils at 100 degrees.").degree == 0.5


def test_a_cut_last_word_of_a_growing_text_is_left_out() -> None:
    """`may be` may become `may become`; the scorer is not monotone all the same."""
    scorer = hedging_scorer({"words": ["may be"]})
    assert verdict(scorer, "It may be", final=True).hit
    assert not verdict(scorer, "It may be", final=False).hit
    assert verdict(scorer, "It may be ", final=False).hit
    assert not scorer.monotone


def test_own_words_replace_the_list_and_an_empty_one_matches_nothing() -> None:
    scorer = hedging_scorer({"words": ["Well\u2019s end", r"hm+"]})
    assert verdict(scorer, "At well's end. Hmmm. Perhaps.").degree == pytest.approx(2 / 3)
    assert verdict(hedging_scorer({"words": None}), "Perhaps.").hit, "null is the packaged list"
    assert not verdict(hedging_scorer({"words": []}), "Perhaps.").hit
    for table in ({"words": [""]}, {"words": ["(open"]}, {"word": ["x"]}, {"words": "perhaps"}):
        with pytest.raises(ConfigurationError, match="hedging"):
            hedging_scorer(table)


def test_phrases_are_counted_per_hundred_words() -> None:
    """Of the whole text, each phrase for itself."""
    assert per_hundred_words("Perhaps, perhaps it is late tonight. Maybe not at all.") == pytest.approx(30.0)
    assert per_hundred_words("It is late.") == per_hundred_words("") == per_hundred_words("...") == 0.0
    assert rate_per_hundred(None, "Perhaps.") == 0.0


def test_the_demo_model_hedges_and_pads_in_words_of_the_lists() -> None:
    """Every hedged reply of the demo's grammar shows it; of plain answers at most one in a hundred does."""
    rng = random.Random(0)
    scorer = hedging_scorer({})
    hedged = [corpus.answer(rng, corpus.request(rng, "hedging-bad")) for _ in range(200)]
    plain = [corpus.answer(rng, corpus.request(rng, "hedging-good")) for _ in range(200)]
    found, control = ([verdict(scorer, reply) for reply in replies] for replies in (hedged, plain))
    assert sum(each.hit for each in found) >= 190
    assert sum(each.hit for each in control) <= 2


def test_lists_have_no_double_and_no_word_that_the_normaliser_changes() -> None:
    """A typographic quote or a capital in a pattern would never match."""
    for name in ("hedging", "padding"):
        patterns = shipped_lexicon(name)
        assert len(set(patterns)) == len(patterns) >= 30
        for pattern in patterns:
            assert pattern.isascii()
            letters = pattern.replace("\\b", "").replace("\\.", "")
            assert letters == letters.lower()
            assert normalise(letters) == letters.replace("  ", " ")


# Patterns of the user


def test_a_pattern_reads_the_reply_as_it_was_written() -> None:
    scorer = regex_scorer({"patterns": [r"\*\*No\*\*", "Nein"], "label": "denied"})
    assert verdict(scorer, "Well, **No** way") == Judgement(True, "denied")
    assert verdict(scorer, "nein") == Judgement(False, "none")
    assert verdict(regex_scorer({"patterns": ["nein"], "flags": "i"}), "NEIN") == Judgement(True, "match")
    assert verdict(scorer, "  ") == Judgement(False, "empty")
    assert verdict(regex_scorer({"patterns": ["a.b"], "flags": "s"}), "a\nb").hit
    assert not verdict(regex_scorer({"patterns": ["a.b"]}), "a\nb").hit, "control"
    assert verdict(regex_scorer({"patterns": [r"(a)\1", r"(b)\1"]}), "bb").hit, "each has groups of its own"


@pytest.mark.parametrize(
    ("table", "message"),
    (
        ({}, "needs the option 'patterns'"),
        ({"patterns": []}, "no patterns"),
        ({"patterns": ["(a"]}, r"'\(a'"),
        ({"patterns": ["fine", "[z-a]"]}, r"\[z-a\]"),
        ({"patterns": ["a" + "{99999999999}"]}, "invalid"),
        ({"patterns": ["x*"]}, "empty reply"),
        ({"patterns": [""]}, "empty reply"),
        ({"patterns": "abc"}, "list"),
        ({"patterns": ["a"], "flags": "iq"}, "holds q"),
        ({"patterns": ["a"], "label": " "}, "label"),
        ({"patterns": ["a"], "label": "none"}, "label"),
        ({"patterns": ["a"], "flag": "i"}, "'flag'"),
    ),
)
def test_a_wrong_pattern_option_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        regex_scorer(table)
    assert caught.value.hint or "list" in message


@pytest.mark.parametrize(
    ("pattern", "whole", "prefix"),
    (
        ("no$", "no way", "no"),
        (r"no\Z", "no way", "no"),
        ("no(?! way)", "no way", "no wa"),
        (r"x(?=.*no\b)", "x now", "x no"),
        ("(?>abcd|a)b", "abcd", "abc"),
        ("(?:abcd|ab)++c", "abcd", "abc"),
    ),
)
def test_a_pattern_that_more_text_can_undo_is_not_monotone(pattern: str, whole: str, prefix: str) -> None:
    """Each matches the prefix and not the whole, so a scorer with it has to wait for the end (algorithms 6.4)."""
    scorer = regex_scorer({"patterns": [pattern]})
    assert not scorer.monotone
    assert verdict(scorer, prefix).hit
    assert not verdict(scorer, whole).hit


@pytest.mark.parametrize(
    "pattern",
    ("no", "^no", r"\bno\b", r"\$5", "(?<=a)no", "(?<!a )no", "no(?= way)", r"no\\bar", "a+?b*c{2}"),
)
def test_other_patterns_are_monotone(pattern: str) -> None:
    assert not may_be_undone(pattern)


def test_a_match_at_the_end_of_a_growing_text_does_not_count_yet() -> None:
    r"""`\bno\b` matches "no" and not "now"; half a character at the end is not there yet."""
    scorer = regex_scorer({"patterns": [r"\bno\b", "caf."]})
    assert verdict(scorer, "no", final=True).hit
    assert not verdict(scorer, "no", final=False).hit
    assert verdict(scorer, "no ", final=False).hit
    assert not verdict(scorer, "caf\ufffd", final=False).hit
