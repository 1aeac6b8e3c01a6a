# SPDX-License-Identifier: Apache-2.0
"""What the actions of the interactive menu do (requirements 7.6); how the menu looks is in `apps.menu`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from heretic.apps.chat_model import EditedChatModel
from heretic.apps.history import ChatHistory
from heretic.apps.menu import Menu, StudyAction, TrialAction
from heretic.apps.session import ChatSession
from heretic.apps.terminal_chat import TerminalChat
from heretic.exceptions import ConfirmationRequiredError, HubAccessError
from heretic.phases.choice import confirm, search_measurement, strengths_of
from heretic.phases.model_saving import chosen_folder
from heretic.phases.optimization import run_optimization
from heretic.phases.publication import save, upload
from heretic.phases.reporting import Result, fill_front
from heretic.phases.state import Run
from heretic.report import TrialReport
from heretic.study.types import Progress


class TrialMenu:
    """The menu over a run's front; `show` returns the report's status."""

    def __init__(self, run: Run, result: Result) -> None:
        self.run = run
        self.result = result

    def show(self) -> str:
        """Show the menu until the user leaves it."""
        self.result.selection = None
        menu = Menu(
            self.run.console,
            self.result.front,
            actions=[
                TrialAction("Save to a folder", self.save, chooses=True),
                TrialAction("Save and upload to the Hub", self.upload, chooses=True),
                TrialAction("Chat with it", lambda trial: self.chat(trial, compare=False)),
                TrialAction(
                    "Compare it with the base in a chat", lambda trial: self.chat(trial, compare=True)
                ),
            ],
            study_actions=[
                StudyAction("Run more trials", self.more_trials),
                StudyAction("Confirm more trials on held-out prompts", self.confirm_more),
            ],
            all_trials=self.all_trials,
        )
        outcome = menu.run()
        if outcome.went_on or outcome.chosen is not None:
            self.run.stop.clear()
        if self.result.saved is not None:
            return "complete"
        return "interrupted" if self.run.stop else "not_saved"

    def save(self, trial: TrialReport) -> str:
        """Save to a folder the user names."""
        default = str(chosen_folder(self.run))
        folder = Path(self.run.console.ask("Folder", default=default, flag="--auto-select-path"))
        return save(self.run, self.result, trial, folder)

    def upload(self, trial: TrialReport) -> str:
        """Save unless done, then upload: account shown, repository and visibility asked (R-MEN-04)."""
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError

        console = self.run.console
        token = get_token() or console.ask("Hub token (not stored)", flag="HF_TOKEN", secret=True)
        api = HfApi(token=token)
        try:
            account = str(api.whoami()["name"])
        except (HfHubHTTPError, OSError) as error:
            raise HubAccessError(
                "The Hub does not accept this token.", hint="Make one with write access."
            ) from error
        if self.result.saved is None or self.result.chosen is None or self.result.chosen.trial != trial.trial:
            self.save(trial)
        assert self.result.saved is not None
        console.note(f"Account: {account}")
        default = f"{account}/{self.result.saved.folder.name}"
        repository = console.ask("Repository (user/name)", default=default, flag="--hf-upload")
        if repository.count("/") != 1:
            raise ConfirmationRequiredError(f"{repository!r} is no repository id.", hint="Give user/name.")
        kinds = ["private", "public"]
        private = console.choose("Visibility", kinds, flag="--hf-private") == 0
        console.confirm_word(
            f"{kinds[0 if private else 1].capitalize()} upload to {repository}.", "yes", flag="--hf-upload"
        )
        return upload(self.run, self.result, repository, private=private, api=api)

    def chat(self, trial: TrialReport, *, compare: bool) -> None:
        """Talk to the trial, or to base and trial side by side."""
        settings, run = self.run.settings, self.run
        session = ChatSession(EditedChatModel(run, trial), system_prompt=settings.system_prompt)
        TerminalChat(
            session,
            run.console,
            compare=compare,
            history=ChatHistory(settings.chat_history_dir),
            name="" if run.model is None else run.model.source.basename,
            trial=None if run.study is None else f"{run.study.name}:{trial.trial}",
        ).run()

    def more_trials(self) -> Sequence[TrialReport]:
        """Go on searching, then confirm the best again."""
        run, result = self.run, self.result
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
        return result.front

    def confirm_more(self) -> Sequence[TrialReport]:
        """Measure further trials of the front on the held-out prompts."""
        count = len(self.result.confirmed) + self.run.settings.finalists
        self.result.confirmed = confirm(
            self.run, self.result.confirmation, self.result.outcome.finished, count
        )
        fill_front(self.run, self.result)
        return self.result.front

    def all_trials(self) -> list[TrialReport]:
        """Every finished trial, with the constraints it breaks."""
        return [
            TrialReport(
                trial=trial.index,
                parameters=dict(trial.parameters),
                search=search_measurement(trial),
                strengths=strengths_of(trial),
                flags=[name for name, value in trial.scores.constraints.items() if value > 0],
            )
            for trial in self.result.outcome.finished
        ]
