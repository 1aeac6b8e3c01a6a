# SPDX-License-Identifier: Apache-2.0
"""Save and upload a chosen edit, shown and timed, for the automatic choice, the menu and direction files alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.interventions.plan import Plan
from heretic.phases.confirmation import RANDOM, Confirmation
from heretic.phases.model_saving import (
    ChosenEdit,
    Saved,
    manifest_facts,
    save_model_local,
    trial_edit,
    upload_model_huggingface,
)
from heretic.phases.reporting import Result
from heretic.phases.state import Run
from heretic.phases.validation import measure_validation_base, validate_saved
from heretic.report import TrialReport
from heretic.report_view import rate_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def save(run: Run, result: Result, trial: TrialReport, folder: Path | None = None) -> str:
    """Write, reload and measure `trial`; it becomes the result. Returns a sentence to show."""
    measure_controls(run, result, run.plan(trial.parameters))  # type: ignore[arg-type]  # they are JSON scalars
    reason = "" if result.selection is None else result.selection.reason
    facts = manifest_facts(run, trial, reason, result.confirmation)
    chosen = trial_edit(run, trial)
    result.saved = save_edit(run, chosen, result.confirmation, facts, folder)
    result.chosen = trial
    validate_chosen(run, result, chosen, trial.trial)
    return f"Saved to {result.saved.folder}."


def validate_chosen(run: Run, result: Result, chosen: ChosenEdit, trial: int | None) -> None:
    """The validation report of what was saved; the unedited model is asked here, where no trial has to wait for it."""
    result.validation = None
    if run.questions is None or run.stop or result.saved is None:
        return
    if run.validation is None:
        run.validation = measure_validation_base(run, run.questions)
    result.validation, _ = validate_saved(
        run,
        result.confirmation,
        run.validation,
        chosen.edits,
        result.saved.verified,
        result.saved.folder,
        trial=trial,
    )


def measure_controls(run: Run, result: Result, plan: Plan) -> None:
    """The controls of a plan that is to be saved; none when time is short."""
    result.controls, result.random = {}, None
    if not run.settings.controls or run.stop:
        return
    instruction = run.resolved.behaviour.header.instructions.get(run.settings.goal, "")
    with run.phase("controls", "Measuring controls on the held-out prompts") as phase:
        found = result.confirmation.measure_controls(plan, instruction)
        result.random = found[RANDOM][0]
        result.controls = {name: shown for name, (_, shown) in found.items()}
        phase.result(
            ", ".join(f"{name} {rate_text(found.behaviour)}" for name, found in result.controls.items())
        )


def save_edit(
    run: Run,
    chosen: ChosenEdit,
    confirmation: Confirmation,
    facts: Mapping[str, object],
    folder: Path | None = None,
) -> Saved:
    """Write, reload and measure an edit, wherever it comes from."""
    with run.phase("saving", "Saving, loading again and measuring the saved files") as phase:
        saved = save_model_local(run, chosen, confirmation, facts, folder)
        rate = saved.verified.behaviour
        phase.result(f"{saved.folder}: {rate.hits}/{rate.n} measured from the saved files")
    for warning in saved.warnings:
        run.console.warn(warning)
    return saved


def upload(
    run: Run, result: Result, repository: str, *, private: bool | None = None, api: HfApi | None = None
) -> str:
    """Upload what was saved; a failure keeps the local folder. Returns a sentence to show."""
    assert result.saved is not None
    with run.phase("upload", f"Uploading to {repository}"):
        result.uploaded = upload_model_huggingface(
            run, result.saved.folder, repository, private=private, api=api
        )
    return f"Uploaded to {result.uploaded}."
