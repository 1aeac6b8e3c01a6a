# SPDX-License-Identifier: Apache-2.0
"""One question each: does this reply show the behaviour, is it still a reply at all."""

from __future__ import annotations

from heretic.scorers.classifier import classifier_scorer
from heretic.scorers.hedging import hedging_scorer
from heretic.scorers.judge import judge_scorer
from heretic.scorers.length import length_scorer, padding_scorer
from heretic.scorers.markers import marker_scorer
from heretic.scorers.nli import nli_scorer
from heretic.scorers.protocol import SCORERS, Judgement, ReplyScorer, ScorerContext, build_scorer
from heretic.scorers.regex import regex_scorer

SCORERS.register("markers")(marker_scorer)
SCORERS.register("nli")(nli_scorer)
SCORERS.register("classifier")(classifier_scorer)
SCORERS.register("length")(length_scorer)
SCORERS.register("padding")(padding_scorer)
SCORERS.register("hedging")(hedging_scorer)
SCORERS.register("regex")(regex_scorer)
SCORERS.register("judge")(judge_scorer)

__all__ = ["SCORERS", "Judgement", "ReplyScorer", "ScorerContext", "build_scorer"]
