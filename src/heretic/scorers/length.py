# SPDX-License-Identifier: Apache-2.0
"""How long a reply is, and how much of it is filler (requirements R-EVA-01; algorithms 7.6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from heretic.exceptions import ConfigurationError
from heretic.scorers.degeneration import is_empty
from heretic.scorers.lexicon import LexiconScorer, lexicon_scorer, word_count
from heretic.scorers.protocol import Judgement, ScorerContext
from heretic.scorers.table import read_table
from heretic.scorers.text import normalise, whole_words

WORDS_PER_TOKEN: Final = 0.75
"""English text under the usual vocabularies; only the default of `scale` depends on it."""

CHARACTERS_PER_WORD: Final = 4.0
UNITS: Final = ("words", "tokens", "characters")


class LengthScorer:
    """degree: min(1, length / scale). hit: degree >= long. Labels `long`, `short`, `empty`.

    The map is a straight line up to `scale`, so below it the mean degree times `scale` is the mean length: the search
    makes the mean length of the replies small, and a degree lowered by a fifth is a mean length lowered by a fifth.
    A logarithm (algorithms 7.6) would make the geometric mean small instead: two words saved of four would count as
    much as forty of eighty, and half of a scale of 75 words would be reached at eight. Replies are cut at the token
    limit, so no heavy tail has to be tamed. What lies beyond `scale` counts as 1: replies there are not told apart.

    A reply without letter and digit has degree 0. The guards against empty replies count it.
    """

    name = "length"
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()
    monotone = False  # a prefix is shorter, so its degree is not that of the whole

    def __init__(self, count: Callable[[str], int], scale: float, long: float = 0.5) -> None:
        self._count = count
        self.scale = scale
        self.long = long

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`; a last word that may still grow is not counted."""
        return [self._verdict(reply if final else whole_words(reply)) for reply in replies]

    def _verdict(self, reply: str) -> Judgement:
        if is_empty(reply):
            return Judgement(False, "empty", 0.0)
        degree = min(1.0, self._count(reply) / self.scale)
        return Judgement(degree >= self.long, "long" if degree >= self.long else "short", degree)


def length_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> LengthScorer:
    """From a settings table: unit, scale (length of degree 1; None = of the token limit), long (degree of a hit).

    unit: `words` (default; scale 0.75 x limit), `tokens` (limit), `characters` (4 x that of words).
    Raises `ConfigurationError` for an unknown option or unit, a scale that is not positive, a `long` outside 0 ... 1.
    """
    context = context or ScorerContext()
    given = {key: value for key, value in settings.items() if value is not None}
    options = read_table("length", given, {"unit": "words", "scale": 0.0, "long": 0.5})
    unit, scale, long = str(options["unit"]), _number(options["scale"]), _number(options["long"])
    words = WORDS_PER_TOKEN * context.limit
    scales = {"words": words, "tokens": float(context.limit), "characters": CHARACTERS_PER_WORD * words}
    if unit not in scales:
        raise ConfigurationError(
            f"The option 'unit' of the scorer 'length' is {unit!r}.", hint=f"Known: {', '.join(UNITS)}."
        )
    if "scale" in given and not (scale > 0 and math.isfinite(scale)):
        raise ConfigurationError(
            f"The option 'scale' of the scorer 'length' is {scale!r}.",
            hint="It is the length at which the degree is 1, above 0.",
        )
    if not 0.0 < long <= 1.0:
        raise ConfigurationError(
            f"The option 'long' of the scorer 'length' is {long!r}.",
            hint="It is the degree from which a reply counts as long, above 0 and at most 1.",
        )
    counters: dict[str, Callable[[str], int]] = {
        "words": word_count,
        "tokens": context.count_tokens,
        "characters": _characters,
    }
    return LengthScorer(counters[unit], scale if "scale" in given else scales[unit], long)


def padding_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> LexiconScorer:
    """Share of sentences with a filler phrase (openings, announcements, closings). Labels `padded`, `none`, `empty`.

    From a settings table: words (list of patterns; None = the packaged list).
    """
    return lexicon_scorer("padding", "padded", settings)


def _characters(text: str) -> int:
    return len(normalise(text).rstrip())


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
