# SPDX-License-Identifier: Apache-2.0
"""The goal `induce` as something that is to become rare: replies without the behaviour (requirements R-SEA-01).

With a hit for each of them the search, its early decisions and its intervals are those of suppressing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from heretic.scorers.protocol import Judgement, ReplyScorer


class Absence:
    """Judges as `scorer` does, with a hit where it finds none. Labels stay: they name what the reply shows."""

    direction: Literal["lower", "higher"] = "lower"
    # A reply without the behaviour may still come to show it, so a hit is certain only at its end.
    monotone = False

    def __init__(self, scorer: ReplyScorer) -> None:
        self.scorer = scorer
        self.name = f"absence of {scorer.name}"
        self.needs = scorer.needs

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`; a text that may still grow is no hit."""
        found = self.scorer.judge(requests, replies, final=final)
        return [_inverted(verdict) if final else Judgement(False, verdict.label) for verdict in found]


def _inverted(verdict: Judgement) -> Judgement:
    degree = None if verdict.degree is None else 1.0 - verdict.degree
    return Judgement(not verdict.hit, verdict.label, degree)
