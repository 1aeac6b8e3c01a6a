# SPDX-License-Identifier: Apache-2.0
"""How unsure a reply sounds: perhaps, it seems, some would say (requirements R-EVA-01; algorithms 7.6).

The list names what makes a statement weaker than it could be (Hyland, Hedging in Scientific Research Articles, 1998:
modal verbs, epistemic verbs and adverbs, sources). Whether the doubt is justified is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from heretic.scorers.lexicon import LexiconScorer, lexicon_scorer, rate_per_hundred
from heretic.scorers.protocol import ScorerContext

NAME = "hedging"


def hedging_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> LexiconScorer:
    """From a settings table: words (list of patterns; None = the packaged list). Labels `hedged`, `none`, `empty`."""
    return lexicon_scorer(NAME, "hedged", settings)


def per_hundred_words(text: str) -> float:
    """Phrases of the packaged list per hundred words of the text; 0 for a text without words."""
    return rate_per_hundred(_shipped().pattern, text)


@cache
def _shipped() -> LexiconScorer:
    return hedging_scorer({})
