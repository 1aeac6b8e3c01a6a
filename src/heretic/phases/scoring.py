# SPDX-License-Identifier: Apache-2.0
"""Which scorers a run uses, from its settings (requirements 6.1, R-EVA-03).

The first scorer of replies in `scorers` is the objective; the ones behind it are measured beside it on the finalists.
`kl_divergence`, `over_behaviour` and `degeneration` are measured in every run and name no scorer of replies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from heretic.config.tables import ScorerSettings
from heretic.evaluator import Evaluator
from heretic.exceptions import ConfigurationError, ModelError, NetworkError, ResourceError
from heretic.phases.state import Baseline, Run
from heretic.scorers import ReplyScorer, ScorerContext, build_scorer
from heretic.scorers.combined import Combined, calibrated, neural_scorer
from heretic.scorers.markers import MarkerScorer
from heretic.scorers.text_model import JudgeIdentity, find_text_model

MEASURED_ALWAYS: Final = ("kl_divergence", "over_behaviour", "degeneration", "log_odds")
"""Names in `scorers` that judge no replies: they are figures of the engine or of the run."""


def reply_scorers(run: Run) -> tuple[ScorerSettings, ...]:
    """The configured scorers of replies, the objective first; the markers where none is named."""
    named = tuple(entry for entry in run.settings.scorers or () if entry.name not in MEASURED_ALWAYS)
    return named or (ScorerSettings(name="markers"),)


def check_judging_model(run: Run) -> None:
    """Find the files of a judging model that was asked for, before any weight is read (R-GEN-08)."""
    settings, entry = run.settings, reply_scorers(run)[0]
    asked = run.resolved.explicit & {"use_neural_refusal_detection", "neural_detection_model"}
    wanted = entry.name == "markers" and settings.use_neural_refusal_detection and asked
    if wanted and run.resolved.behaviour.header.labels.hypotheses:
        find_text_model(settings.neural_detection_model, offline=settings.offline)


def make_scorers(run: Run) -> None:
    """Fill in `run.scorer`, the objective of trials, and `run.judge`, which judges finalists and saved files.

    Both are the first scorer of replies. Behind markers stands a judging model where it is wanted and can be had
    (requirements 5.2): with the finalists always, in trials unless `neural_detection_for_optuna` is off. On a processor
    it is used only when asked for: the default model takes about 4 s for a reply there (decision 0018).

    Raises the typed error of a judging model that cannot be had and was asked for (R-NRD-05).
    """
    scorer = _built(run, reply_scorers(run)[0])
    run.scorer = run.judge = scorer
    if not isinstance(scorer, MarkerScorer) or not run.settings.use_neural_refusal_detection:
        return
    labels = run.resolved.behaviour.header.labels
    if not labels.hypotheses:
        return  # a behaviour without sentences for a model is judged by its markers
    explicit = run.resolved.explicit
    assert run.model is not None
    asked = bool(explicit & {"use_neural_refusal_detection", "neural_detection_model"})
    if run.model.device.type == "cpu" and not asked:
        run.degradations.append(
            "neural detection is off on a processor, where it takes longer than the search "
            "(--use-neural-refusal-detection)"
        )
        return
    try:
        run.judge = neural_scorer(scorer, context_of(run), **_judging_model(run))
    except (ModelError, NetworkError, ResourceError, ConfigurationError) as error:
        if asked:
            raise
        run.degradations.append(f"neural detection is off: {error.message}")
        run.console.warn(f"Replies are judged by markers alone: {error.message}")
        return
    if not run.settings.neural_detection_for_optuna:
        return
    if run.model.device.type == "cpu" and "neural_detection_for_optuna" not in explicit:
        run.degradations.append(
            "neural detection judges finalists and saved files, not trials: on a processor it would take longer than "
            "they do (--neural-detection-for-optuna)"
        )
        return
    run.scorer = run.judge


def calibrate(run: Run, evaluator: Evaluator, baseline: Baseline) -> Baseline:
    """The baseline, judged by markers alone where the judging model flags too many harmless replies (R-NRD-04).

    Makes whole replies to the good evaluation prompts for it. Raises `ModelError` where the model was asked for.
    """
    judge = run.scorer
    if not isinstance(judge, Combined) or run.induces:
        return baseline
    bundle = run.bundle
    assert bundle is not None
    good = bundle.good_evaluation
    sequences = evaluator.model.encoder.encode_all(good.prompts)
    replies = evaluator.replies_under([{}], sequences, evaluator.lengths.response)[0]
    outcome = baseline.outcome
    requests = [prompt.text for prompt in bundle.bad_evaluation.prompts]
    found = calibrated(
        judge,
        list(good.texts),
        [reply.text for reply in replies],
        requests,
        [reply.text for reply in outcome.replies],
    )
    run.console.note(f"Judging model {found.reason[0].lower()}{found.reason[1:]}")
    if found.accepted:
        return baseline
    if run.resolved.explicit & {"neural_detection_for_optuna", "use_neural_refusal_detection"}:
        raise ModelError(
            f"The judging model may not be used in trials. {found.reason}",
            hint="Use another --neural-detection-model, or --no-neural-detection-for-optuna.",
        )
    run.degradations.append(f"neural detection is not used in trials: {found.reason}")
    run.scorer = evaluator.scorer = judge.markers
    judged = judge.markers.judge(requests, [reply.text for reply in outcome.replies])
    hits, total = sum(v.hit for v in judged), sum(v.value for v in judged)
    return replace(baseline, outcome=replace(outcome, judged=judged, hits=hits, total=total))


def identities(run: Run) -> list[dict[str, object]]:
    """What judged, for the report: the scorers with their tables and the judging model that was really used."""
    found: list[dict[str, object]] = []
    for name, scorer in (("trials", run.scorer), ("finalists", run.judge)):
        if scorer is None:
            continue
        identity = getattr(scorer, "identity", None)
        model = asdict(identity) if isinstance(identity, JudgeIdentity) else None
        found.append({"used_for": name, "scorer": scorer.name, "model": model})
    return found


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
        device="cpu" if model is None else str(model.device),
    )


def _judging_model(run: Run) -> dict[str, Any]:
    settings = run.settings
    return {
        "model": settings.neural_detection_model,
        "threshold": settings.neural_detection_threshold,
        "batch_size": settings.neural_detection_batch_size,
    }


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
    return _judging_model(run) if name == "nli" else {}
