# SPDX-License-Identifier: Apache-2.0
"""The steps that `main.run` names, each shown and timed (requirements 2.1)."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Final

import safetensors.torch

from heretic.directions.bank import DirectionBank
from heretic.evaluator import Evaluator
from heretic.exceptions import AbliterationError, ModelValidationError, StudyCorruptError
from heretic.export.folder import inspect_folder
from heretic.interventions.planners import PlanContext
from heretic.interventions.schedule import LayerProfile
from heretic.model.model import Model
from heretic.model.source import ModelSource
from heretic.phases import loading
from heretic.phases.choice import Confirmed, confirm
from heretic.phases.dataset_loading import DatasetBundle, load_datasets
from heretic.phases.direction_extraction import DirectionExtractionResult, extract_refusal_directions
from heretic.phases.environment import accelerator
from heretic.phases.evaluation import (
    LATE_SHARE,
    Confirmation,
    describe_model,
    detect_response_prefix,
    make_evaluator,
    measure_baseline,
    verify_no_thought,
)
from heretic.phases.model_saving import chosen_folder
from heretic.phases.optimization import run_optimization
from heretic.phases.state import Baseline, Run
from heretic.phases.throughput import require_fitting
from heretic.report_view import rate_text
from heretic.study.catalogue import check_ready
from heretic.study.records import plain
from heretic.study.runner import StudyOutcome
from heretic.study.sharing import keep_file, kept_file
from heretic.study.types import Progress

logger = logging.getLogger("heretic.phases")

DIRECTIONS_FILE: Final = "directions.safetensors"


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
        evaluator = make_evaluator(
            run,
            bundle.bad_evaluation.prompts,
            bundle.good_evaluation.prompts,
            early_exit=run.settings.early_exit,
            early_stop=run.settings.early_stop_trials,
        )
        run.evaluator = evaluator
        require_fitting(run)
        _note_idle_race(run, len(evaluator.bad))
        baseline = measure_baseline(run, evaluator)
        outcome = baseline.outcome
        phase.result(
            f"{outcome.hits}/{outcome.n} show the behaviour; noise floor of the KL {baseline.floor:.1e}"
        )
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
    """The direction bank: from the study where it is stored, else from the prompts (reliability REL-R03, B05)."""
    assert run.model is not None and run.bundle is not None and run.engine is not None
    with run.phase("directions", "Finding directions") as phase:
        stored = stored_extraction(run)
        result = stored or extract_refusal_directions(
            run.model,
            run.bundle,
            prepare=run.engine.prepare,
            width=run.settings.batch_size or run.settings.max_batch_size,
            project=run.settings.project_direction,
            seed=run.settings.seed,
        )
        if stored is None:
            _store_extraction(run, result)
        best = result.best_layer
        phase.result(
            f"{result.bank.layers} layers; layer {best} separates best: AUROC {result.auroc[best]:.3f}, "
            f"d' {result.effect_size[best]:.1f}, accuracy {result.stability[best]:.2f}"
        )
    for warning in result.warnings:
        if run.settings.strict:
            raise AbliterationError(warning, hint="Leave out --strict to go on.")
        run.console.warn(warning)
    return result


def _store_extraction(run: Run, result: DirectionExtractionResult) -> None:
    study = run.study
    assert study is not None and run.model is not None
    study.set_attribute("model", run.model.source.name)
    if study.location.url is None:
        return
    data = safetensors.torch.save({"directions": result.bank.directions, "spread": result.bank.spread})
    digest = hashlib.sha256(data).hexdigest()
    known = study.attribute("directions")
    if known is not None and known["sha256"] != digest:
        raise StudyCorruptError(
            f"The stored directions of the study {study.name!r} are gone, and the new ones differ from them.",
            hint="Use --resume fresh; the old trials belong to the old directions.",
        )
    keep_file(study, DIRECTIONS_FILE, data)
    study.set_attribute(
        "directions",
        {
            "sha256": digest,
            "provenance": plain(result.bank.provenance, "provenance"),
            "stability": list(result.stability),
            "auroc": list(result.auroc),
            "effect_size": list(result.effect_size),
            "warnings": list(result.warnings),
        },
    )


def stored_extraction(run: Run) -> DirectionExtractionResult | None:
    """The directions that belong to the study, if they are stored: beside a SQLite file, inside a server."""
    study = run.study
    assert study is not None
    known = study.attribute("directions")
    data = None if known is None else kept_file(study, DIRECTIONS_FILE)
    if data is None:
        return None
    if hashlib.sha256(data).hexdigest() != known["sha256"]:
        raise StudyCorruptError(
            f"The directions of {study.name!r} ({DIRECTIONS_FILE}) are not those the study was made with.",
            hint="Remove it to have them found again, or use --resume fresh.",
        )
    tensors = safetensors.torch.load(data)
    return DirectionExtractionResult(
        bank=DirectionBank(tensors["directions"], tensors["spread"], known["provenance"]),
        stability=tuple(known["stability"]),
        auroc=tuple(known["auroc"]),
        effect_size=tuple(known["effect_size"]),
        warnings=tuple(known["warnings"]),
    )


def plan_context(run: Run) -> PlanContext:
    """What the planner needs besides a trial's parameters."""
    assert run.model is not None and run.extraction is not None
    settings = run.settings
    ranges = [
        (r.start, r.end, r.multiplier) for r in sorted(settings.layer_range_profiles, key=lambda r: r.start)
    ]
    if not run.model.architecture.sites:
        raise ModelValidationError("The model has no writer that could be edited.")
    return PlanContext(
        architecture=run.model.architecture,
        bank=run.extraction.bank,
        profile=LayerProfile(tuple(ranges) if settings.enable_layer_profiles else ()),
        cap=settings.max_strength,
    )


def search(run: Run) -> StudyOutcome:
    """The trials, with a display."""
    study, settings = run.study, run.settings
    assert study is not None
    for note in study.notes:
        run.console.note(note)
    already = len(study.finished_trials())
    if already:
        run.console.note(f"Study {study.name!r} goes on: {already} of {settings.n_trials} trials are done.")
    begin = time.monotonic()

    def on_progress(progress: Progress) -> None:
        if not run.first_trial_s:
            run.first_trial_s = time.monotonic() - run.started
        display.update(progress)

    run.console.note(
        f"> Searching: {settings.n_trials} trials, sampler {settings.sampler}, seed {settings.seed}"
    )
    with run.console.trials(settings.n_trials) as display:
        outcome = run_optimization(run, study, on_progress)
    run.seconds["search"] = time.monotonic() - begin
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
        best = min((entry.measurement.rate.hits for entry in confirmed), default=None)
        shown = "no usable trial" if best is None else f"best {best}/{base.rate.n}"
        phase.result(f"{len(confirmed)} trials; base {rate_text(base.rate)}, {shown}")
    if not confirmation.held_out:
        run.degradations.append("no held-out prompts: the confirmed figures are those of the search prompts")
        run.console.warn("No held-out prompts could be loaded; figures are optimistic by selection.")
    return confirmation, confirmed
