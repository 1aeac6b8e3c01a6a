# SPDX-License-Identifier: Apache-2.0
"""One question each: does this reply show the behaviour, is it still a reply at all."""

from __future__ import annotations

from heretic.scorers.markers import marker_scorer
from heretic.scorers.protocol import SCORERS, Judgement, ReplyScorer, ScorerContext, build_scorer

SCORERS.register("markers")(marker_scorer)

__all__ = ["SCORERS", "Judgement", "ReplyScorer", "ScorerContext", "build_scorer"]
