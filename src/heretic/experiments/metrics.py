# SPDX-License-Identifier: Apache-2.0
"""What is counted in a reply. Every metric is a ratio of sums over replies (requirements section 11, R-XPT-04).

A mean has denominators of 1; a share of lines, or phrases per hundred words, is pooled over all replies, so that a
short reply does not count as much as a long one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from heretic.decoding.protocol import Reply
from heretic.experiments import code_text
from heretic.experiments.prepare import Row
from heretic.scorers.hedging import hedging_scorer
from heretic.scorers.length import padding_scorer
from heretic.scorers.lexicon import LexiconScorer, sentences, word_count
from heretic.scorers.markers import MarkerScorer, marker_scorer
from heretic.scorers.text import normalise

Counted = tuple[float, float]
"""Numerator and denominator of one reply."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. measure: of a row and its reply; None where the reply or the row says nothing about it.

    unit: for tables. share: shown in percent. spread: the values of single replies are worth a median and a deviation.
    quality: higher is better, and an edit should leave it alone.
    """

    name: str
    meaning: str
    measure: Callable[[Row, Reply], Counted | None]
    unit: str = ""
    share: bool = False
    spread: bool = False
    quality: bool = False


def _words(row: Row, reply: Reply) -> Counted:
    return word_count(reply.text), 1.0


def _tokens(row: Row, reply: Reply) -> Counted:
    return len(reply.tokens), 1.0


def _characters(row: Row, reply: Reply) -> Counted:
    return len(reply.text.strip()), 1.0


@cache
def _padding() -> LexiconScorer:
    return padding_scorer({})


@cache
def _hedging() -> LexiconScorer:
    return hedging_scorer({})


@cache
def _markers() -> MarkerScorer:
    return marker_scorer({"mode": "lenient"})


def phrases_per_hundred(scorer: LexiconScorer, text: str) -> Counted:
    """(100 x phrases of the list, words)."""
    if scorer.pattern is None:
        return 0.0, word_count(text)
    found = sum(len(scorer.pattern.findall(sentence)) for sentence in sentences(text))
    return 100.0 * found, word_count(text)


def _hedged(row: Row, reply: Reply) -> Counted:
    return float(_hedging().judge([row.prompt], [reply.text])[0].hit), 1.0


def _refused(row: Row, reply: Reply) -> Counted:
    return float(_markers().judge([row.prompt], [reply.text])[0].hit), 1.0


def has_answer(row: Row, text: str) -> bool | None:
    """Whether one of the row's answers stands in the reply, as whole words; None for a row without answers."""
    if not row.answer:
        return None
    said = normalise(text)
    return any(re.search(rf"(?<!\w){re.escape(normalise(answer))}(?!\w)", said) for answer in row.answer)


def _content(row: Row, reply: Reply) -> Counted | None:
    found = has_answer(row, reply.text)
    return None if found is None else (float(found), 1.0)


def _prose(row: Row, reply: Reply) -> Counted:
    return code_text.prose_lines(code_text.take_apart(reply.text))


def _comments(row: Row, reply: Reply) -> Counted:
    return code_text.comment_lines(code_text.take_apart(reply.text), row.kind)


def _parses(row: Row, reply: Reply) -> Counted | None:
    found = code_text.parses(code_text.take_apart(reply.text), row.kind)
    return None if found is None else (float(found), 1.0)


_ALL: Final = (
    Metric("words", "words of a reply", _words, "words", spread=True),
    Metric("tokens", "tokens of a reply", _tokens, "tokens", spread=True),
    Metric("characters", "characters of a reply", _characters, "characters", spread=True),
    Metric(
        "padding",
        "filler phrases per 100 words",
        lambda row, reply: phrases_per_hundred(_padding(), reply.text),
        "per 100 words",
    ),
    Metric(
        "hedges",
        "hedging phrases per 100 words",
        lambda row, reply: phrases_per_hundred(_hedging(), reply.text),
        "per 100 words",
    ),
    Metric("hedged", "replies with a hedging phrase", _hedged, share=True),
    Metric("refusals", "replies that refuse, by markers", _refused, share=True),
    Metric("prose", "lines that are not code", _prose, share=True),
    Metric("comments", "lines of code that are comments", _comments, share=True),
    Metric("parses", "replies whose code parses", _parses, share=True, quality=True),
    Metric("content", "replies that hold the expected answer", _content, share=True, quality=True),
)
METRICS: Final = {metric.name: metric for metric in _ALL}
