# SPDX-License-Identifier: Apache-2.0
"""Steps 9 and 10 of the flow: choose by the rule or in the menu, save, upload (requirements 7.5 to 7.7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heretic.apps.chat_model import EditedChatModel
from heretic.apps.menu import Menu, StudyAction, TrialAction
from heretic.apps.session import ChatSession
from heretic.apps.terminal_chat import TerminalChat
from heretic.exceptions import ConfirmationRequiredError
from heretic.phases.choice import choose, confirm, search_measurement, strengths_of
from heretic.phases.model_saving import (
    chosen_folder,
    manifest_facts,
    save_model_local,
    upload_model_huggingface,
)
from heretic.phases.optimization import run_optimization
from heretic.phases.reporting import Result, fill_front
from heretic.phases.state import Run
from heretic.report import TrialReport
from heretic.study.types import Progress


def finish(run: Run, result: Result) -> str:
    """Choose and save, or show the menu; the returned word is the report's status."""
    fill_front(run, result)
    if not result.outcome.finished and not run.stop:
        run.console.warn(
            f"No trial was finished ({result.outcome.reason}), so there is nothing to choose from.",
            details=sorted(set(result.outcome.failed.values()))[:5],
        )
    if run.stop.urgent or not result.outcome.finished:
        return "interrupted" if run.stop else "nothing_qualified"
    result.selection = choose(run, result.confirmation, result.confirmed)
    settings = run.settings
    if settings.auto_select or settings.trial is not None:
        return _automatic(run, result)
    if run.console.interactive:
        return _menu(run, result)
    result.selection = None
    return "interrupted" if run.stop else "not_saved"


def _automatic(run: Run, result: Result) -> str:
    selection = result.selection
    assert selection is not None
    fill_front(run, result)
    run.console.note(f"Chosen: {selection.reason}")
    if result.chosen is None:
        return "nothing_qualified"
    _save(run, result, result.chosen)
    if run.settings.hf_upload is not None:
        _upload(run, result, run.settings.hf_upload)
    if run.stop:
        return "interrupted"
    return "complete" if selection.qualified else "nothing_qualified"


def _save(run: Run, result: Result, trial: TrialReport, folder: Path | None = None) -> str:
    reason = "" if result.selection is None else result.selection.reason
    facts = manifest_facts(run, trial, reason, result.confirmation)
    with run.phase("saving", "Saving, loading again and measuring the saved files") as phase:
        saved = save_model_local(run, trial, result.confirmation, facts, folder)
        rate = saved.verified.rate
        phase.result(f"{saved.folder}: {rate.hits}/{rate.n} measured from the saved files")
    for warning in saved.warnings:
        run.console.warn(warning)
    result.saved, result.chosen = saved, trial
    return f"Saved to {saved.folder}."


def _upload(run: Run, result: Result, repository: str) -> str:
    assert result.saved is not None
    with run.phase("upload", f"Uploading to {repository}"):
        result.uploaded = upload_model_huggingface(run, result.saved.folder, repository)
    return f"Uploaded to {result.uploaded}."


def _menu(run: Run, result: Result) -> str:
    """The interactive menu; what it does is here, how it looks is in `apps.menu`."""
    result.selection = None

    def save(trial: TrialReport) -> str:
        folder = Path(run.console.ask("Folder", default=str(chosen_folder(run)), flag="--auto-select-path"))
        return _save(run, result, trial, folder)

    def upload(trial: TrialReport) -> str:
        if result.saved is None or result.chosen is None or result.chosen.trial != trial.trial:
            save(trial)
        repository = run.console.ask("Repository (user/name)", default="", flag="--hf-upload")
        if "/" not in repository:
            raise ConfirmationRequiredError(f"{repository!r} is no repository id.", hint="Give user/name.")
        return _upload(run, result, repository)

    def chat(trial: TrialReport, *, compare: bool = False) -> None:
        session = ChatSession(EditedChatModel(run, trial), system_prompt=run.settings.system_prompt)
        TerminalChat(session, run.console, compare=compare).run()

    def more_trials() -> Sequence[TrialReport]:
        _more_trials(run, result)
        return result.front

    def confirm_more() -> Sequence[TrialReport]:
        count = len(result.confirmed) + run.settings.finalists
        result.confirmed = confirm(run, result.confirmation, result.outcome.finished, count)
        fill_front(run, result)
        return result.front

    def all_trials() -> list[TrialReport]:
        return [
            TrialReport(
                trial=trial.index,
                parameters=dict(trial.parameters),
                search=search_measurement(trial),
                strengths=strengths_of(trial),
                flags=[]
                if trial.scores.feasible
                else [n for n, v in trial.scores.constraints.items() if v > 0],
            )
            for trial in result.outcome.finished
        ]

    menu = Menu(
        run.console,
        result.front,
        actions=[
            TrialAction("Save to a folder", save, chooses=True),
            TrialAction("Save and upload to the Hub", upload, chooses=True),
            TrialAction("Chat with it", chat),
            TrialAction("Compare it with the base in a chat", lambda trial: chat(trial, compare=True)),
        ],
        study_actions=[
            StudyAction("Run more trials", more_trials),
            StudyAction("Confirm more trials on held-out prompts", confirm_more),
        ],
        all_trials=all_trials,
    )
    outcome = menu.run()
    if outcome.went_on or outcome.chosen is not None:
        run.stop.clear()
    return "complete" if result.saved is not None else "interrupted" if run.stop else "not_saved"


def _more_trials(run: Run, result: Result) -> None:
    assert run.study is not None
    answer = run.console.ask("How many more trials", default="50", flag="--n-trials")
    if not answer.isdecimal() or not int(answer):
        raise ConfirmationRequiredError(
            f"{answer!r} is no number of trials.", hint="Give a whole number above 0."
        )
    run.stop.clear()
    total = len(result.outcome.finished) + int(answer)

    def on_progress(progress: Progress) -> None:
        display.update(progress)

    with run.console.trials(total) as display:
        result.outcome = run_optimization(run, run.study, on_progress, total)
    result.confirmed = confirm(run, result.confirmation, result.outcome.finished)
    fill_front(run, result)
