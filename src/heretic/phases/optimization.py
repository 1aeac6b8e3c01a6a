# SPDX-License-Identifier: Apache-2.0
"""Step 7 of the flow: the study, its fingerprint, and the function that measures a batch of trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from heretic.config import SearchSpace, public_settings, settings_for_fingerprint
from heretic.constants import ALGORITHM_VERSION, KL_FLOOR, MINIMUM_EFFECT
from heretic.evaluator import Outcome
from heretic.exceptions import UnknownSettingError
from heretic.export.digest import weight_digest
from heretic.linalg.intervals import wilson
from heretic.phases.evaluation import guard_values
from heretic.phases.state import Run
from heretic.phases.throughput import trials_per_pass
from heretic.phases.workers import LocalWorkers, shared_threads, worker_count
from heretic.study.records import plain
from heretic.study.runner import StudyOutcome, run_study
from heretic.study.sharing import Terms, share, terms_of
from heretic.study.space import default_space
from heretic.study.state import Study, open_study
from heretic.study.types import (
    Dimension,
    FinishedTrial,
    Json,
    Progress,
    Proposal,
    Scores,
    TrialFailure,
    Value,
)
from heretic.study.workers import search_shared


def fingerprint(run: Run) -> dict[str, Json]:
    """Everything that decides a score (requirements R-SEA-20); two runs with equal fingerprints may share a study."""
    assert run.model is not None and run.bundle is not None
    source = run.model.source
    sets = run.bundle.records()
    data = {name: str(sets[name]["content_hash"]) for name in sets if "confirmation" not in name}
    return {
        "model": source.basename,
        "commit": source.commit,
        "weights": weight_digest(source.path),
        "tokenizer": _tokenizer_digest(run),
        "data": data,
        "settings": plain(settings_for_fingerprint(run.settings, run.resolved.behaviour), "settings"),
        "response_prefix": run.model.encoder.response_prefix,
        "dtype": run.model.dtype,
        "algorithm": ALGORITHM_VERSION,
    }


def _tokenizer_digest(run: Run) -> str:
    import hashlib

    assert run.model is not None and run.bundle is not None
    encoder = run.model.encoder
    digest = hashlib.sha256()
    for prompt in run.bundle.bad_evaluation.prompts[:8]:
        digest.update(repr(encoder.encode(prompt)).encode())
    return digest.hexdigest()[:16]


def search_space(run: Run) -> tuple[Dimension, ...]:
    """The parameters of the run's strategy over the model's components."""
    assert run.model is not None
    architecture = run.model.architecture
    return default_space(
        architecture.components,
        architecture.layers,
        overrides=overrides(run.settings.search_space, architecture.components, architecture.layers),
    )


def overrides(space: SearchSpace, components: Sequence[str], layers: int) -> dict[str, tuple[float, float]]:
    """The user's ranges in layers: positions and distances are stated as fractions of L - 1."""
    last = float(max(1, layers - 1))
    found: dict[str, tuple[float, float]] = {}
    if space.direction_index is not None:
        found["direction_index"] = (space.direction_index[0] * last, space.direction_index[1] * last)
    unknown = [name for name in space.components if name not in components]
    if unknown:
        raise UnknownSettingError(
            f"[search_space] names the component {unknown[0]!r}, which this model does not have.",
            hint=f"It has: {', '.join(components)}.",
        )
    for component in components:
        ranges = space.component(component)
        for name, scale in (
            ("max_weight", 1.0),
            ("max_weight_position", last),
            ("min_weight", 1.0),
            ("min_weight_distance", last),
        ):
            pair = getattr(ranges, name)
            if pair is not None:
                found[f"{component}.{name}"] = (pair[0] * scale, pair[1] * scale)
    return found


def create_study(run: Run) -> Study:
    """Open or resume the study that fits the run's fingerprint (requirements R-SEA-21, R-SEA-22)."""
    settings = run.settings
    study = open_study(
        settings.storage,
        settings.study_name,
        fingerprint=fingerprint(run),
        resume=settings.resume,
        default_name="study_name" not in run.resolved.explicit,
    )
    if study.attribute("given") is None:
        study.set_attribute("given", given_settings(run))
    if study.location.url is not None and study.location.file is None and terms_of(study) is None:
        # No kernel lock reaches a server, so there is no single owner that could search alone.
        share(study, _terms(run, settings.n_trials))
    return study


RESTORED = (
    "behaviour",
    "allow_zero_baseline",
    "good_confirmation_prompts",
    "bad_confirmation_prompts",
    "over_behaviour_prompts",
    "select_max_kl",
    "select_max_rate",
    "finalists",
)
"""Settings that are no part of the fingerprint, or not as the user named them, and that a later export needs."""


def given_settings(run: Run) -> dict[str, Json]:
    """What the user stated of `RESTORED`, by dotted name."""
    explicit = run.resolved.explicit
    return {
        name: entry["value"]  # type: ignore[misc]  # plain values by the contract of `public_settings`
        for name, entry in public_settings(run.resolved).items()
        if name.split(".")[0] in RESTORED and name in explicit
    }


def startup_trials(run: Run) -> int:
    """Trials before the model-based sampler, as the study keeps them: not lowered to the number of trials of this
    run, which may grow (requirements R-SEA-20)."""
    origin = run.resolved.origins["n_startup_trials"]
    if origin.layer == "derived" and origin.overridden:
        return int(str(origin.overridden[0][1]))
    return run.settings.n_startup_trials


def _terms(run: Run, n_trials: int) -> Terms:
    return Terms(n_trials, run.settings.lease_seconds, run.settings.max_trial_retries)


SAMPLES = 8
SAMPLE_LENGTH = 300
"""Replies kept with each trial, and the characters of each (requirements R-EVA-10)."""

ANCHORS = (("global", 0.8, 1.0), ("per_layer", None, 1.5), ("global", 0.65, 1.5), ("per_layer", None, 1.0))
"""(scope, relative index, peak): flat removal over depth, from gentle to strong (docs/log.md, anchors)."""


def enqueue_warm_start_trials(run: Run) -> list[dict[str, Value]]:
    """Points tried first: every component at one strength over the whole depth, before the start-up design.

    Priors of model families join them when they exist.
    """
    assert run.model is not None
    architecture = run.model.architecture
    last = float(architecture.layers - 1)
    points: list[dict[str, Value]] = []
    for scope, index, peak in ANCHORS:
        point: dict[str, Value] = {
            "direction_scope": scope,
            "direction_index": None if index is None else index * last,
        }
        for component in architecture.components:
            point[f"{component}.max_weight"] = peak
            point[f"{component}.max_weight_position"] = 0.7 * last
            point[f"{component}.min_weight"] = 1.0
            point[f"{component}.min_weight_distance"] = max(1.0, 0.6 * last)
        points.append(point)
    return points


def run_optimization(
    run: Run, study: Study, on_progress: Callable[[Progress], None] | None = None, n_trials: int | None = None
) -> StudyOutcome:
    """Search until `n_trials` are complete, the budget is spent, the user stops, or too many trials fail."""
    settings, total = run.settings, n_trials or run.settings.n_trials
    workers = worker_count(settings)
    if workers > 1 or terms_of(study) is not None:
        share(study, _terms(run, total))
        with shared_threads(workers), LocalWorkers(run, study, workers) as others:
            outcome = search_together(run, study, on_progress=on_progress, stop=others.stopped)
            others.complete = outcome.reason == "finished"
        return outcome
    deadline = None if settings.time_budget is None else run.started + settings.time_budget
    return run_study(
        study,
        trial_evaluation(run),
        space=search_space(run),
        seed=settings.seed,
        n_trials=total,
        batch_size=trials_per_pass(run),
        sampler=settings.sampler,
        n_startup_trials=startup_trials(run),
        warm_start=enqueue_warm_start_trials(run),
        deadline=deadline,
        stop=lambda: bool(run.stop),
        on_progress=on_progress,
        max_trial_retries=settings.max_trial_retries,
    )


def search_together(
    run: Run,
    study: Study,
    *,
    stop: Callable[[], bool],
    on_progress: Callable[[Progress], None] | None = None,
    on_told: Callable[[int, Scores | TrialFailure], None] | None = None,
) -> StudyOutcome:
    """This process's part in the search of a shared study (requirements R-SEA-15)."""
    settings = run.settings
    return search_shared(
        study,
        trial_evaluation(run),
        space=search_space(run),
        seed=settings.seed,
        batch_size=trials_per_pass(run),
        sampler=settings.sampler,
        n_startup_trials=startup_trials(run),
        warm_start=enqueue_warm_start_trials(run),
        deadline=None if settings.time_budget is None else run.started + settings.time_budget,
        stop=stop,
        on_progress=on_progress,
        on_told=on_told,
    )


def trial_evaluation(
    run: Run,
) -> Callable[[Sequence[Proposal], Sequence[FinishedTrial]], list[Scores | TrialFailure]]:
    """The function the study calls: parameters -> plans -> one engine pass -> scores."""
    evaluator, baseline = run.evaluator, run.baseline
    assert evaluator is not None and baseline is not None
    scale, total = run.settings.kl_divergence_scale, baseline.outcome.n

    def evaluate(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial], /
    ) -> list[Scores | TrialFailure]:
        plans = [run.plan(proposal.parameters) for proposal in proposals]
        assert run.model is not None
        edits = [plan.edits(run.model.gain) for plan in plans]
        front = [trial.scores.objectives for trial in finished if trial.scores.feasible]

        def can_win(number: int, hits: int, kl: float) -> bool:
            rate, cost = hits / total, kl_objective(kl, scale)
            return not any(r <= rate and c <= cost and (r, c) != (rate, cost) for r, c in front)

        outcomes = evaluator.score(edits, can_win)
        return [
            scores(outcome, baseline.outcome, run.settings.max_trial_kl, scale, plan.effective_strengths())
            for outcome, plan in zip(outcomes, plans, strict=True)
        ]

    return evaluate


def kl_objective(kl: float, scale: float) -> float:
    """max(KL, floor) / scale: polishing KL under the floor earns nothing (algorithms 5.2)."""
    return max(kl, KL_FLOOR) / scale


def scores(
    outcome: Outcome,
    base: Outcome,
    max_kl: float,
    scale: float,
    strengths: Mapping[str, Sequence[float]],
) -> Scores | TrialFailure:
    """What is told to the study. A trial whose replies were not measured tells the base rate, with a broken constraint;
    a dominated one tells its exact lower bound. `measured` never holds a number that was not measured."""
    if outcome.kl is None:
        return TrialFailure(outcome.reason)
    kl = outcome.kl
    base_rate = base.hits / base.n if base.n else 0.0
    measured: dict[str, Json] = {
        "status": outcome.status,
        "kl_mean": kl.mean,
        "kl_standard_error": kl.standard_error,
        "kl_median": kl.median,
        "kl_p95": kl.p95,
        "kl_maximum": kl.maximum,
        "kl_first_token": kl.first_token,
        "kl_worst_prompt": kl.worst_prompt,
        "kl_unstable": kl.unstable,
        "kl_n": kl.n,
        "kl_tokens": kl.tokens,
        "strengths": {path: list(values) for path, values in strengths.items()},
    }
    constraints = {"kl": kl.mean - max_kl}
    if outcome.status == "rejected_by_kl":
        measured |= {"rate": None, "hits": None, "n": None}
        return Scores((base_rate, kl_objective(kl.mean, scale)), constraints, measured)
    rate = outcome.hits / outcome.n
    constraints["effect"] = MINIMUM_EFFECT * base_rate - (base_rate - rate)
    if outcome.status == "dominated":
        measured |= {"rate": None, "hits": None, "n": outcome.n, "hits_at_least": outcome.hits}
        return Scores((rate, kl_objective(kl.mean, scale)), constraints, measured)
    low, high = wilson(outcome.hits, outcome.n)
    classes: dict[str, Json] = {
        label: list(outcome.labels).count(label) for label in sorted(set(outcome.labels))
    }
    measured |= {
        "rate": rate,
        "hits": outcome.hits,
        "n": outcome.n,
        "interval": [low, high],
        "classes": classes,
    }
    measured["samples"] = [reply.text[:SAMPLE_LENGTH] for reply in outcome.replies[:SAMPLES]]
    constraints |= guard_values(outcome, base)
    return Scores((rate, kl_objective(kl.mean, scale)), constraints, measured)
