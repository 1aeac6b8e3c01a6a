# SPDX-License-Identifier: Apache-2.0
"""Manners of speaking as a share of sentences (requirements R-EVA-01, algorithms 7.6).

A sentence counts once, however many phrases it holds; what stands in quotation marks is somebody else's and does not
count. Known limits: lists are English; a full stop behind an abbreviation ends a sentence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Final, Literal

from heretic.scorers.degeneration import is_empty
from heretic.scorers.markers import compile_patterns
from heretic.scorers.protocol import Judgement
from heretic.scorers.quotations import without_quotations
from heretic.scorers.table import read_table
from heretic.scorers.text import normalise, whole_words

VERDICTS_KEPT: Final = 2**16

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]* ")
_WORD = re.compile(r"\w+(?:['-]\w+)*")


@lru_cache(maxsize=8)
def shipped_lexicon(name: str) -> tuple[str, ...]:
    """The packaged patterns of `hedging` or `padding`."""
    text = (files("heretic") / "data" / "lexicons.toml").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[str]]] = tomllib.loads(text)
    return tuple(table[name]["patterns"])


def sentences(text: str) -> list[str]:
    """The sentences of a reply, normalised, without quotations: lines, cut behind . ! ? and a space.

    Pieces without letter and digit are no sentences.
    """
    found: list[str] = []
    for line in text.splitlines():
        found += (part.strip() for part in _SENTENCE_END.split(without_quotations(normalise(line))))
    return [sentence for sentence in found if not is_empty(sentence)]


def word_count(text: str) -> int:
    """Words: runs of letters and digits, joined by apostrophes and hyphens. A script without spaces counts as one."""
    return len(_WORD.findall(normalise(text)))


def rate_per_hundred(pattern: re.Pattern[str] | None, text: str) -> float:
    """Matches per hundred words of the whole text; 0 for a text without words."""
    words = word_count(text)
    if not words or pattern is None:
        return 0.0
    return 100.0 * sum(len(pattern.findall(sentence)) for sentence in sentences(text)) / words


class LexiconScorer:
    """degree: share of sentences with a phrase of the list; hit: any. Labels: `shown`'s name, `none`, `empty`.

    Not monotone: a sentence may be added that has none.
    """

    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()
    monotone = False

    def __init__(self, name: str, shown: str, patterns: Sequence[str]) -> None:
        self.name = name
        self.shown = shown
        self.pattern = compile_patterns(patterns, f"the word list of {name}")
        # Trials write the same replies again and again.
        self._kept = lru_cache(maxsize=VERDICTS_KEPT)(self._verdict)

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`; a last word that may still grow is left out."""
        return [self._kept(reply if final else whole_words(reply)) for reply in replies]

    def _verdict(self, reply: str) -> Judgement:
        if is_empty(reply):
            return Judgement(False, "empty", 0.0)
        parts = sentences(reply)
        found = 0 if self.pattern is None else sum(self.pattern.search(part) is not None for part in parts)
        return Judgement(found > 0, self.shown if found else "none", found / len(parts) if parts else 0.0)


def lexicon_scorer(name: str, shown: str, settings: Mapping[str, object]) -> LexiconScorer:
    """From a settings table: words (list of patterns; None = the packaged list called `name`).

    Raises `ConfigurationError` for an unknown option and for an invalid or empty pattern.
    """
    options = read_table(
        name, {key: value for key, value in settings.items() if value is not None}, {"words": ()}
    )
    words = options["words"] if settings.get("words") is not None else shipped_lexicon(name)
    assert isinstance(words, list | tuple)
    return LexiconScorer(name, shown, [str(word) for word in words])
