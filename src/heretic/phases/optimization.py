# SPDX-License-Identifier: Apache-2.0
"""Step 7 of the flow: the study, its fingerprint, and the function that measures a batch of trials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from heretic.architectures.resolve import text_config
from heretic.architectures.site import Architecture
from heretic.config import SearchSpace, public_settings, settings_for_fingerprint
from heretic.constants import ALGORITHM_VERSION
from heretic.evaluator import Outcome
from heretic.evaluator.copies import copied, processes_for
from heretic.exceptions import UnknownSettingError
from heretic.export.digest import weight_digest
from heretic.phases.method import strategy_defaults, strategy_dimensions
from heretic.phases.odds import trial_odds
from heretic.phases.state import Run
from heretic.phases.throughput import trials_per_batch
from heretic.phases.trial_scores import Rivals, kl_objective, scores
from heretic.phases.workers import LocalWorkers, shared_threads, worker_count
from heretic.study.records import plain
from heretic.study.runner import StudyOutcome, run_study
from heretic.study.sharing import Terms, share, terms_of
from heretic.study.space import SCOPES, default_space, reached
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
from heretic.transfer.profiles import detect_family, load_profiles, measured_profile
from heretic.transfer.warm_start import warm_start_points

logger = logging.getLogger("heretic.phases")


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
    """Direction, one kernel for each component that the strategy edits, and what the strategy adds to them."""
    assert run.model is not None
    base = reachable_space(run.model.architecture, run.settings.search_space, edited_components(run))
    return (*base, *strategy_dimensions(run))


def edited_components(run: Run) -> tuple[str, ...]:
    """Components that the run's strategy can edit at all: head edits reach nothing but output projections."""
    assert run.model is not None and run.extraction is not None
    sites, chosen = run.model.architecture.sites, run.extraction.findings.head_sites
    if run.settings.strategy != "heads":
        return run.model.architecture.components
    return tuple(dict.fromkeys(site.component for site in sites if site.path in chosen))


def reachable_space(
    architecture: Architecture, ranges: SearchSpace, components: Sequence[str] | None = None
) -> tuple[Dimension, ...]:
    """The space without components that no kernel of it can reach (algorithms 5.2: no dead dimensions)."""
    components, layers = components or architecture.components, architecture.layers
    space = default_space(
        components,
        layers,
        overrides=overrides(ranges, components, layers),
        scopes=ranges.direction_scope or SCOPES,
    )
    sites = {
        name: [site.layer for site in architecture.sites if site.component == name] for name in components
    }
    dead = [name for name in components if not reached(space, name, sites[name])]
    if not dead:
        return space
    logger.warning("Not searched, because no kernel reaches its layers: %s.", ", ".join(dead))
    return tuple(
        dimension
        for dimension in space
        if not any(dimension.name.startswith(f"{component}.") for component in dead)
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


FRONT_KL = 0.1
"""KL at which the measured area under the front ends: more is lost than an edit should cost."""

Anchor = tuple[str, float | None, float, tuple[float, float]]
"""Scope, relative index, peak, tent."""

WIDE, MIDDLE = (0.5, 0.6), (0.6, 0.38)
"""Relative position and half-width of even tents: the whole depth but its ends, and without the first blocks too."""

ANCHORS: Final[tuple[Anchor, ...]] = (
    ("global", 0.9, 1.0, WIDE),
    ("global", 0.9, 1.5, WIDE),
    ("global", 0.95, 1.0, MIDDLE),
    ("global", 0.95, 1.25, MIDDLE),
    ("global", 0.8, 1.25, WIDE),
    ("global", 0.65, 1.25, WIDE),
    ("per_layer", None, 1.25, WIDE),
    ("global", 0.8, 1.0, MIDDLE),
)
"""Even removal of directions from all over the upper half, at strengths around 1
(docs/decisions/0013-wider-space-and-anchors.md)."""


def enqueue_warm_start_trials(run: Run) -> list[dict[str, Value]]:
    """Points tried first, before the start-up design: even edits, then priors of the model's family (R-WST-03), or of
    where the classes separate when the family is unknown (R-WST-04)."""
    anchors = anchor_points(run, ANCHORS)
    settings = run.settings
    assert run.model is not None and run.extraction is not None
    if not settings.use_warm_start_params or not settings.warm_start_n_trials:
        return anchors
    family = model_family(run)
    profile = load_profiles()[family] if family else measured_profile(run.extraction.effect_size)
    points = warm_start_points(
        profile,
        components=edited_components(run),
        layers=run.model.architecture.layers,
        count=settings.warm_start_n_trials,
        ranges={d.name: (d.low, d.high) for d in search_space(run) if d.kind != "categorical"},
    )
    return [*anchors, *({**strategy_defaults(run), **point} for point in points)]


def model_family(run: Run) -> str | None:
    """The family whose profile fits: the setting, else the configuration, else the name; None = unknown."""
    assert run.model is not None
    return detect_family(
        configured=run.settings.model_family,
        model_type=str(text_config(run.model.network).model_type),
        name=run.model.source.basename,
    )


def anchor_points(run: Run, anchors: Sequence[Anchor]) -> list[dict[str, Value]]:
    """The parameters of even edits: every component alike, at one strength within the tent."""
    assert run.model is not None
    architecture = run.model.architecture
    last = float(architecture.layers - 1)
    # Every second one, so that the search meets both ways of reading.
    covectors = any("covector" in d.choices for d in strategy_dimensions(run))
    points: list[dict[str, Value]] = []
    for number, (scope, index, peak, (position, half_width)) in enumerate(anchors):
        point: dict[str, Value] = {
            **strategy_defaults(run),
            **({"direction_source": "covector"} if number % 2 == 0 and covectors else {}),
            "direction_scope": scope,
            "direction_index": None if index is None else index * last,
        }
        for component in edited_components(run):
            point[f"{component}.max_weight"] = peak
            point[f"{component}.max_weight_position"] = position * last
            point[f"{component}.min_weight"] = 1.0
            point[f"{component}.min_weight_distance"] = max(1.0, half_width * last)
        points.append(point)
    return points


def front_reference(run: Run) -> tuple[float, float]:
    """The objectives that span the hypervolume: base rate, and the KL up to which a front counts (algorithms 8)."""
    assert run.baseline is not None
    return run.baseline.rate, kl_objective(FRONT_KL, run.settings.kl_divergence_scale)


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
    with trial_evaluation(run) as (evaluate, batch_size):
        return run_study(
            study,
            evaluate,
            space=search_space(run),
            seed=settings.seed,
            n_trials=total,
            batch_size=batch_size,
            sampler=settings.sampler,
            n_startup_trials=startup_trials(run),
            warm_start=enqueue_warm_start_trials(run),
            deadline=deadline,
            stop=lambda: bool(run.stop),
            on_progress=on_progress,
            max_trial_retries=settings.max_trial_retries,
            reference=front_reference(run),
            stop_on_stall=settings.stop_on_stall,
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
    with trial_evaluation(run) as (evaluate, batch_size):
        return search_shared(
            study,
            evaluate,
            space=search_space(run),
            seed=settings.seed,
            batch_size=batch_size,
            sampler=settings.sampler,
            n_startup_trials=startup_trials(run),
            warm_start=enqueue_warm_start_trials(run),
            deadline=None if settings.time_budget is None else run.started + settings.time_budget,
            stop=stop,
            on_progress=on_progress,
            on_told=on_told,
            reference=front_reference(run),
            stop_on_stall=settings.stop_on_stall,
        )


Evaluate = Callable[[Sequence[Proposal], Sequence[FinishedTrial]], list[Scores | TrialFailure]]


@contextmanager
def trial_evaluation(run: Run) -> Iterator[tuple[Evaluate, int]]:
    """The function the study calls (parameters -> plans -> passes of the engine -> scores), and trials per batch."""
    assert run.evaluator is not None
    batch_size = trials_per_batch(run)
    with copied(run.evaluator, processes_for(run.evaluator.model.device, batch_size)) as copies:
        yield scored_with(run, copies.score), batch_size


def scored_with(run: Run, score: Callable[..., list[Outcome]]) -> Evaluate:
    """Parameters -> plans -> `score`, which is `Evaluator.score` or does the same -> scores."""
    baseline = run.baseline
    assert baseline is not None
    settings, total = run.settings, baseline.outcome.n
    odds = trial_odds(run)

    def evaluate(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial], /
    ) -> list[Scores | TrialFailure]:
        plans = [run.plan(proposal.parameters) for proposal in proposals]
        rivals = Rivals.of(finished, total)
        stops = settings.early_stop_trials
        edits = [plan.edits(run.writers) for plan in plans]
        outcomes = score(
            edits,
            rivals.can_win if stops else None,
            rivals.hopeless if stops and settings.racing else None,
        )
        return [
            scores(
                outcome,
                baseline.outcome,
                rivals,
                max_kl=settings.max_trial_kl,
                scale=settings.kl_divergence_scale,
                strengths=plan.effective_strengths(),
                log_odds=odds(edit) if odds is not None and outcome.status == "complete" else None,
            )
            for outcome, plan, edit in zip(outcomes, plans, edits, strict=True)
        ]

    return evaluate
