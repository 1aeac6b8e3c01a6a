# SPDX-License-Identifier: Apache-2.0
"""The menu after a search: choose a trial, look at it, use it, come back (requirements 7.6).

The menu knows no model: what an action does is a callback. An error in one is shown and the menu stays;
Ctrl-C inside one returns to the menu (R-MEN-03).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from heretic.console import Console
from heretic.exceptions import HereticError
from heretic.report import TrialReport
from heretic.report_view import FRONT_COLUMNS, FRONT_FIGURES, divergence_text, front_rows, rate_text
from heretic.sanitise import single_line
from heretic.stop import interruptible

LOGGER: Final = logging.getLogger("heretic.apps")
FLAG: Final = "--auto-select or --trial N"
REPLIES_SHOWN: Final = 10
REPLY_LIMIT: Final = 300


@dataclass(frozen=True, slots=True)
class TrialAction:
    """Something to do with one trial. run: returns a sentence to show, or None. chooses: it makes the trial
    the result (save, upload).
    """

    label: str
    run: Callable[[TrialReport], str | None]
    chooses: bool = False


@dataclass(frozen=True, slots=True)
class StudyAction:
    """Something to do with the study (more trials, confirm more); run: returns the trials to show from then
    on.
    """

    label: str
    run: Callable[[], Sequence[TrialReport]]


@dataclass(slots=True)
class MenuOutcome:
    """What the user did. chosen: the last trial that was saved or uploaded; went_on: study actions were
    used.
    """

    chosen: TrialReport | None = None
    done: list[str] = field(default_factory=list)
    went_on: bool = False


class Menu:
    """The menu over the trials of a front.

    trials: the front; all_trials: every trial, for the other view. Raises `ConfirmationRequiredError` from
    `run` without a terminal, naming the flags that choose.
    """

    def __init__(
        self,
        console: Console,
        trials: Sequence[TrialReport],
        *,
        actions: Sequence[TrialAction],
        study_actions: Sequence[StudyAction] = (),
        all_trials: Callable[[], Sequence[TrialReport]] | None = None,
        replies_of: Callable[[TrialReport], Sequence[str]] | None = None,
    ) -> None:
        self.console = console
        self.trials = list(trials)
        self.outcome = MenuOutcome()
        self._actions = list(actions)
        self._study_actions = list(study_actions)
        self._all_trials = all_trials
        self._replies_of = replies_of or (lambda trial: (trial.held_out or trial.search).replies)
        self._by_rate = True
        self._show_all = False

    def run(self) -> MenuOutcome:
        """Show the menu until the user leaves it (exit, or Ctrl-C at its question)."""
        with interruptible():
            while True:
                shown = self._shown()
                self.console.table(FRONT_COLUMNS, front_rows(shown), title=self._title(), right=FRONT_FIGURES)
                entries = self._entries(shown)
                try:
                    chosen = self.console.choose("What next?", [label for label, _ in entries], flag=FLAG)
                except (KeyboardInterrupt, EOFError):
                    return self.outcome
                act = entries[chosen][1]
                if act is None:
                    return self.outcome
                act()

    def _shown(self) -> list[TrialReport]:
        trials = list(self._all_trials()) if self._show_all and self._all_trials is not None else self.trials
        if self._by_rate:
            return sorted(trials, key=lambda trial: (_judged_rate(trial), _judged_kl(trial), trial.trial))
        return sorted(trials, key=lambda trial: (_judged_kl(trial), _judged_rate(trial), trial.trial))

    def _title(self) -> str:
        what = "All trials" if self._show_all else "Trials that no other trial beats"
        return f"{what}, by {'rate' if self._by_rate else 'KL'}"

    def _entries(self, shown: Sequence[TrialReport]) -> list[tuple[str, Callable[[], None] | None]]:
        entries: list[tuple[str, Callable[[], None] | None]] = []
        for trial in shown:
            entries.append((trial_line(trial), partial(self._open, trial)))
        entries.append((f"Sort by {'KL' if self._by_rate else 'rate'}", self._turn_order))
        if self._all_trials is not None:
            entries.append(("Show the front only" if self._show_all else "Show all trials", self._turn_view))
        for action in self._study_actions:
            entries.append((action.label, partial(self._use_study, action)))
        entries.append(("Exit", None))
        return entries

    def _open(self, trial: TrialReport) -> None:
        labels = [action.label for action in self._actions]
        extra = {"Read stored replies": self._replies, "Show effective strengths": self._strengths}
        choices = [*labels, *extra, "Back"]
        while True:
            try:
                chosen = self.console.choose(trial_line(trial), choices, flag=FLAG)
            except (KeyboardInterrupt, EOFError):
                return
            if choices[chosen] == "Back":
                return
            if chosen < len(labels):
                self._use(self._actions[chosen], trial)
            else:
                extra[choices[chosen]](trial)

    def _use(self, action: TrialAction, trial: TrialReport) -> None:
        message: list[str | None] = []
        if self._safely(action.label, lambda: message.append(action.run(trial))):
            if action.chooses:
                self.outcome.chosen = trial
            self.outcome.done.append(f"{action.label}: trial {trial.trial}")
            if message[0]:
                self.console.note(message[0])

    def _use_study(self, action: StudyAction) -> None:
        found: list[Sequence[TrialReport]] = []
        if self._safely(action.label, lambda: found.append(action.run())):
            self.trials = list(found[0])
            self.outcome.went_on = True
            self.outcome.done.append(action.label)

    def _safely(self, label: str, act: Callable[[], object]) -> bool:
        """Run an action; False when it failed or was interrupted, which has then been said."""
        try:
            act()
        except KeyboardInterrupt:
            self.console.note(f"{label}: interrupted, back in the menu")
        except HereticError as error:
            self.console.error(error)
        except (OSError, RuntimeError, ValueError) as error:
            # Hours of search stand behind this menu: also an error that nobody translated must not end it.
            LOGGER.info("action %s failed", label, exc_info=error)
            self.console.warn(
                f"{label} failed: {type(error).__name__}: {error}", "The traceback is in the log."
            )
        else:
            return True
        return False

    def _turn_order(self) -> None:
        self._by_rate = not self._by_rate

    def _turn_view(self) -> None:
        self._show_all = not self._show_all

    def _replies(self, trial: TrialReport) -> None:
        replies = list(self._replies_of(trial))
        if not replies:
            self.console.note(f"no replies are stored for trial {trial.trial}")
            return
        rows = [
            (number, single_line(reply, REPLY_LIMIT))
            for number, reply in enumerate(replies[:REPLIES_SHOWN], 1)
        ]
        self.console.table(("no.", "reply"), rows, title=f"Replies of trial {trial.trial}", right=(0,))
        if len(replies) > REPLIES_SHOWN:
            self.console.note(f"{len(replies) - REPLIES_SHOWN} more are stored with the study")

    def _strengths(self, trial: TrialReport) -> None:
        if not trial.strengths:
            self.console.note(f"no strengths are recorded for trial {trial.trial}")
            return
        names = list(trial.strengths)
        depth = max(len(values) for values in trial.strengths.values())
        rows = []
        for layer in range(depth):
            values = [trial.strengths[name] for name in names]
            rows.append(
                [layer, *(f"{column[layer]:.3f}" if layer < len(column) else "" for column in values)]
            )
        columns = ("layer", *names)
        title = f"Effective strengths of trial {trial.trial}"
        self.console.table(columns, rows, title=title, right=tuple(range(len(columns))))


def trial_line(trial: TrialReport) -> str:
    """A trial in one line, by its held-out figures where there are some."""
    judged = trial.held_out or trial.search
    where = "held out" if trial.held_out is not None else "search"
    flags = f" [{', '.join(trial.flags)}]" if trial.flags else ""
    return f"Trial {trial.trial:>4}: {rate_text(judged.behaviour)} at KL {divergence_text(judged.kl)}, {where}{flags}"


def _judged_rate(trial: TrialReport) -> float:
    return (trial.held_out or trial.search).rate.value


def _judged_kl(trial: TrialReport) -> float:
    divergence = (trial.held_out or trial.search).kl
    return float("inf") if divergence is None else divergence.mean
