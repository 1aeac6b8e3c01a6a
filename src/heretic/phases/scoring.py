# SPDX-License-Identifier: Apache-2.0
"""Which scorers a run uses, from its settings (requirements 6.1, R-EVA-03).

The first scorer of replies in `scorers` is the objective; the ones behind it are measured beside it on the finalists.
`kl_divergence`, `over_behaviour` and `degeneration` are measured in every run and name no scorer of replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from heretic.config.tables import ScorerSettings
from heretic.phases.state import Run
from heretic.scorers import ReplyScorer, ScorerContext, build_scorer

MEASURED_ALWAYS: Final = ("kl_divergence", "over_behaviour", "degeneration", "log_odds")
"""Names in `scorers` that judge no replies: they are figures of the engine or of the run."""


def reply_scorers(run: Run) -> tuple[ScorerSettings, ...]:
    """The configured scorers of replies, the objective first; the markers where none is named."""
    named = tuple(entry for entry in run.settings.scorers or () if entry.name not in MEASURED_ALWAYS)
    return named or (ScorerSettings(name="markers"),)


def make_scorer(run: Run) -> ReplyScorer:
    """The objective: the first scorer of replies."""
    return _built(run, reply_scorers(run)[0])


def beside(run: Run) -> dict[str, ReplyScorer]:
    """Name -> the further scorers of replies."""
    return {entry.name: _built(run, entry) for entry in reply_scorers(run)[1:]}


def _built(run: Run, entry: ScorerSettings) -> ReplyScorer:
    return build_scorer(entry.name, {**_common(run, entry.name), **entry.options}, context_of(run))


def context_of(run: Run) -> ScorerContext:
    """What scorers may need beside their tables."""
    model, labels = run.model, run.resolved.behaviour.header.labels

    def count_tokens(text: str) -> int:
        assert model is not None
        return len(model.encoder.tokenizer(text, add_special_tokens=False)["input_ids"])

    return ScorerContext(
        limit=run.settings.max_response_length,
        count_tokens=count_tokens,
        labels=dict(labels.hypotheses),
        counted=labels.counted,
        offline=run.settings.offline,
    )


def _common(run: Run, name: str) -> Mapping[str, object]:
    """Options that have settings of their own, which the scorer's table may override."""
    settings = run.settings
    if name == "markers":
        return {
            "core": settings.refusal_markers,
            "soft": settings.soft_refusal_markers,
            "evasive": settings.evasive_patterns,
            "mode": settings.refusal_detection_mode,
            "detect_soft": settings.detect_soft_refusals,
            "detect_evasive": settings.detect_evasive_responses,
        }
    if name == "nli":
        return {
            "model": settings.neural_detection_model,
            "threshold": settings.neural_detection_threshold,
            "batch_size": settings.neural_detection_batch_size,
        }
    return {}
