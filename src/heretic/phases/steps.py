# SPDX-License-Identifier: Apache-2.0
"""The steps that `main.run` names, each shown and timed (requirements 2.1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from heretic.architectures.site import Architecture
from heretic.config import Settings
from heretic.directions.findings import Findings
from heretic.evaluator import Evaluator
from heretic.exceptions import AbliterationError, ModelValidationError
from heretic.export.folder import inspect_folder
from heretic.interventions.placement import PlanContext
from heretic.interventions.schedule import LayerProfile
from heretic.model.model import Model
from heretic.model.source import ModelSource
from heretic.phases import loading
from heretic.phases.captures import Captures
from heretic.phases.choice import Confirmed, confirm
from heretic.phases.confirmation import Confirmation
from heretic.phases.dataset_loading import DatasetBundle, load_datasets
from heretic.phases.direction_extraction import DirectionExtractionResult, extract_refusal_directions
from heretic.phases.environment import accelerator
from heretic.phases.evaluation import (
    LATE_SHARE,
    describe_model,
    detect_response_prefix,
    make_evaluator,
    measure_baseline,
    sides,
    verify_no_thought,
)
from heretic.phases.findings_store import store_extraction, stored_extraction
from heretic.phases.findings_view import describe_findings
from heretic.phases.method import captures_of, extraction_options
from heretic.phases.model_saving import chosen_folder
from heretic.phases.odds import agreement
from heretic.phases.optimization import run_optimization
from heretic.phases.report_store import residual_view, store_residual_view
from heretic.phases.scoring import calibrate, check_judging_model
from heretic.phases.state import Baseline, Run
from heretic.phases.throughput import require_fitting
from heretic.phases.validation_base import check_validation
from heretic.report_view import rate_text
from heretic.study.catalogue import check_ready
from heretic.study.runner import StudyOutcome
from heretic.study.types import Progress

logger = logging.getLogger("heretic.phases")


def announce(run: Run) -> None:
    """What this run is about (requirements R-FLOW-13)."""
    settings, console = run.settings, run.console
    run.degradations.extend(run.resolved.degradations)
    console.note(f"Device: {accelerator()}")
    console.note(
        f"Behaviour: {run.resolved.behaviour.name}, goal: {settings.goal}, strategy: {settings.strategy}"
    )
    for notice in run.resolved.notices:
        console.note(notice)
    for degradation in run.resolved.degradations:
        console.detail(f"Off: {degradation}")
    if settings.trial is None and settings.auto_select:
        console.note(f"Output: {chosen_folder(run)}")


def preflight(run: Run) -> ModelSource:
    """Everything that can be known before data and weights: files, memory, disk, output, upload (R-SEL-04, REL-R09)."""
    settings = run.settings
    with run.phase("preflight", "Checking model files, memory and disk") as phase:
        source = loading.find_model(settings)
        check_judging_model(run)
        loading.check_memory(settings, source)
        if settings.auto_select:
            target = chosen_folder(run)
            if loading.check_output(target, overwrite=settings.overwrite):
                run.console.confirm_word(
                    f"Replace the saved model {target}?",
                    lost=(f"the saved model in {target}",),
                    explicit="auto_select_path" in run.resolved.explicit,
                )
            loading.check_disk(target, inspect_folder(source.path).total_bytes)
        check_ready(settings.storage, settings.study_name, settings.resume)
        if settings.hf_upload is not None:
            loading.check_upload(settings.hf_upload)
        phase.result(f"{source.basename}, {loading.weight_bytes(source) / 1e6:,.0f} MB of weights")
    return source


def begin(run: Run) -> None:
    """The first steps, up to the figures of the unedited model, for what is not a search."""
    source = preflight(run)
    run.bundle = load_prompts(run)
    run.model = load_network(run, source)
    run.evaluator, run.baseline = measure_base(run)


def load_prompts(run: Run) -> DatasetBundle:
    """All prompt sets, with what was noticed on the way."""
    with run.phase("data", "Loading prompts") as phase:
        bundle = load_datasets(run.settings, run.resolved.explicit)
        phase.result(
            f"{len(bundle.bad)} + {len(bundle.good)} for directions, {len(bundle.bad_evaluation)} + "
            f"{len(bundle.good_evaluation)} for trials, {len(bundle.bad_confirmation or ())} + "
            f"{len(bundle.good_confirmation or ())} held out"
        )
    for notice in bundle.notices:
        run.console.note(notice)
    for degradation in bundle.degradations:
        run.console.warn(degradation)
    run.degradations.extend(bundle.degradations)
    return bundle


def prepare_validation(run: Run) -> None:
    """What the report on the saved model will ask, checked while nothing is lost (requirements 6.4, R-GEN-08)."""
    run.questions = check_validation(run.settings, run.resolved.explicit, output=chosen_folder(run))


def load_network(run: Run, source: ModelSource) -> Model:
    """The model with its structure; template notes are warnings."""
    with run.phase("model", "Loading the model") as phase:
        model = loading.load(run.settings, source)
        phase.result(describe_model(model))
    for note in (*model.encoder.notes, *model.architecture.notes):
        run.console.warn(note)
    share = model.architecture.covered_share()
    if share < 1.0:
        run.degradations.append(f"only {share:.1%} of the writing parameters are covered (--allow-partial)")
    return model


def measure_base(run: Run) -> tuple[Evaluator, Baseline]:
    """Base replies and log-probabilities, once (requirements R-FLOW-05)."""
    bundle = run.bundle
    assert bundle is not None
    with run.phase("baseline", "Measuring the unedited model") as phase:
        prefix = detect_response_prefix(run)
        verify_no_thought(run)
        counted, kept = sides(run, bundle.bad_evaluation, bundle.good_evaluation)
        evaluator = make_evaluator(
            run,
            counted.prompts,
            kept.prompts,
            early_exit=run.settings.early_exit,
            early_stop=run.settings.early_stop_trials,
        )
        run.evaluator = evaluator
        require_fitting(run)
        _note_idle_race(run, len(evaluator.bad))
        baseline = calibrate(run, evaluator, measure_baseline(run, evaluator))
        outcome = baseline.outcome
        shown = outcome.n - outcome.hits if run.induces else outcome.hits
        phase.result(f"{shown}/{outcome.n} show the behaviour; noise floor of the KL {baseline.floor:.1e}")
    if prefix:
        run.console.note(f"Every reply starts with {prefix!r}; it is appended to the prompts.")
    if baseline.late > LATE_SHARE * outcome.n:
        run.console.note(
            f"{baseline.late} of {outcome.hits} hits start after {evaluator.lengths.check} tokens; trials that could "
            f"win are judged at {evaluator.lengths.response}."
        )
    return evaluator, baseline


def _note_idle_race(run: Run, prompts: int) -> None:
    settings = run.settings
    if settings.racing and settings.early_stop_trials and settings.racing_prompts >= prompts:
        run.degradations.append(
            f"racing: {prompts} evaluation prompts are not more than racing_prompts = {settings.racing_prompts}, so no "
            "trial is raced"
        )


def extract(run: Run) -> DirectionExtractionResult:
    """The directions: from the study where they are stored, else from the prompts (reliability REL-R03, B05)."""
    study, model = run.study, run.model
    assert study is not None and model is not None

    def found() -> DirectionExtractionResult:
        stored = stored_extraction(study)
        if stored is not None:
            return stored
        captures = captures_of(run)
        captures.keep = True
        result = _from_prompts(run, captures)
        store_extraction(study, model.source.name, result)
        run.deferred.append(lambda: keep_residual_view(run, captures, result))
        return result

    return _extracted(run, found)


def keep_residual_view(run: Run, captures: Captures, result: DirectionExtractionResult) -> None:
    """Residuals from two sides, into the study, for the page of `heretic report`."""
    study, bundle = run.study, run.bundle
    assert study is not None and bundle is not None
    target, control = (captures.residuals(entry.prompts) for entry in (bundle.bad, bundle.good))
    view = residual_view(
        target,
        control,
        result.bank.directions[:, 0],
        auroc=result.auroc,
        effect_size=result.effect_size,
        stability=result.stability,
        seed=run.settings.seed,
    )
    store_residual_view(study, view)


def extract_without_study(run: Run, captures: Captures) -> DirectionExtractionResult:
    """The directions from the prompts, kept nowhere."""
    return _extracted(run, lambda: _from_prompts(run, captures))


def _from_prompts(run: Run, captures: Captures) -> DirectionExtractionResult:
    assert run.bundle is not None
    return extract_refusal_directions(captures, run.bundle, extraction_options(run))


def _extracted(run: Run, found: Callable[[], DirectionExtractionResult]) -> DirectionExtractionResult:
    """What `found` returns, shown and timed; warnings are errors with --strict."""
    with run.phase("directions", "Finding directions") as phase:
        result = found()
        best = result.best_layer
        phase.result(
            f"{result.bank.layers} layers; layer {best} separates best: AUROC {result.auroc[best]:.3f}, "
            f"d' {result.effect_size[best]:.1f}, accuracy {result.stability[best]:.2f}"
        )
    for line in describe_findings(result.findings):
        run.console.note(line)
    for degradation in result.degradations:
        run.console.warn(degradation)
        run.degradations.append(degradation)
    if result.warnings and run.settings.strict:
        raise AbliterationError(" ".join(result.warnings), hint="Leave out --strict to go on.")
    for warning in result.warnings:
        run.console.warn(warning)
    return result


def profiled(settings: Settings) -> bool:
    """Whether strength follows the ranges of depth: heads are chosen by what each of them writes, at any depth."""
    return settings.enable_layer_profiles and settings.strategy != "heads"


def plan_context(run: Run) -> PlanContext:
    """What the planner needs besides a trial's parameters."""
    assert run.model is not None and run.extraction is not None
    return context_of(run.settings, run.model.architecture, run.extraction.findings)


def context_of(settings: Settings, architecture: Architecture, findings: Findings) -> PlanContext:
    """The same of any findings; the architecture may be that of a configuration alone."""
    ranges = [
        (r.start, r.end, r.multiplier) for r in sorted(settings.layer_range_profiles, key=lambda r: r.start)
    ]
    if not architecture.sites:
        raise ModelValidationError("The model has no writer that could be edited.")
    return PlanContext(
        architecture=architecture,
        findings=findings,
        profile=LayerProfile(tuple(ranges) if profiled(settings) else ()),
        cap=settings.max_strength,
        goal=settings.goal,
    )


def search(run: Run) -> StudyOutcome:
    """The trials, with a display."""
    study, settings = run.study, run.settings
    assert study is not None
    for note in study.notes:
        run.console.note(note)
    study.set_attribute("n_trials", settings.n_trials)
    already = len(study.finished_trials())
    if already:
        run.console.note(f"Study {study.name!r} goes on: {already} of {settings.n_trials} trials are done.")
    begin = time.monotonic()

    def on_progress(progress: Progress) -> None:
        if not run.first_trial_s:
            run.first_trial_s = time.monotonic() - run.started
        run.do_deferred()
        display.update(progress)

    run.console.note(
        f"> Searching: {settings.n_trials} trials, sampler {settings.sampler}, seed {settings.seed}"
    )
    with run.console.trials(settings.n_trials) as display:
        outcome = run_optimization(run, study, on_progress)
    run.seconds["search"] = time.monotonic() - begin
    told = agreement(outcome.finished)
    if told:
        run.console.note(f"Log-odds of the first token, {told}.")
    run.trials_here = len(outcome.finished) - already
    if outcome.reason != "finished":
        done = f"{len(outcome.finished)} of {settings.n_trials} trials"
        run.console.note(f"The search ended before its end ({outcome.reason}): {done}.")
    return outcome


def confirm_finalists(run: Run, outcome: StudyOutcome) -> tuple[Confirmation, list[Confirmed]]:
    """The best of the front on prompts not used before; left out when there is no time (SIGTERM) or no trial."""
    confirmation = Confirmation(run)
    if run.stop.urgent or not outcome.finished:
        return confirmation, []
    with run.phase("confirmation", "Confirming the best trials on held-out prompts") as phase:
        base = confirmation.measure_base()
        confirmed = confirm(run, confirmation, outcome.finished)
        best = min(confirmed, key=lambda entry: entry.measurement.rate.hits, default=None)
        shown = "no usable trial" if best is None else f"best {rate_text(best.measurement.behaviour)}"
        phase.result(f"{len(confirmed)} trials; base {rate_text(base.behaviour)}, {shown}")
    if not confirmation.held_out:
        run.degradations.append("no held-out prompts: the confirmed figures are those of the search prompts")
        run.console.warn("No held-out prompts could be loaded; figures are optimistic by selection.")
    return confirmation, confirmed
