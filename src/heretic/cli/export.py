# SPDX-License-Identifier: Apache-2.0
"""`heretic export NAME`: save a stored trial later, without searching (requirements R-CLI-10)."""

from __future__ import annotations

from cyclopts import App

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.run import conclude
from heretic.cli.study import find_study
from heretic.exceptions import ConfigurationError
from heretic.report import RunReport


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "export", Effect.WRITE_LOCAL, settings=True)(export)


def export(name: str, *tokens: Tokens, trial: str = "auto", out: str | None = None, context: Injected) -> int:
    """Save a trial of the stored study NAME as a model folder.

    Parameters
    ----------
    name
        The study; stands before the settings.
    trial
        Number of the trial, or auto for the rule of selection.
    out
        Output folder, or its parent when it exists or ends in a slash.
    """
    number = _number(trial)
    chosen = [f"--study-name={name}", "--auto-select"]
    if out is not None:
        chosen.append(f"--auto-select-path={out}")
    settings = context.peek([*chosen, *tokens]).settings
    if not settings.model:
        # The study knows its model; a model on the command line is compared with it by the fingerprint.
        model = find_study(settings.storage, name).fingerprint.get("model")
        if not isinstance(model, str):
            raise ConfigurationError(f"the study {name!r} does not name its model", hint="Add --model MODEL.")
        chosen.append(f"--model={model}")
    resolved = context.resolve([*chosen, *tokens])
    from heretic import main

    report = main.export_trial(resolved, console=context.console, trial=number)
    if isinstance(report, RunReport):
        return conclude(report, context)
    context.console.document(report)
    return 0


def _number(trial: str) -> int | None:
    if trial == "auto":
        return None
    if not trial.isdecimal():
        raise ConfigurationError(f"--trial is {trial!r}", hint="Give the number of a trial, or auto.")
    return int(trial)
