# SPDX-License-Identifier: Apache-2.0
"""`heretic export NAME`: save a stored trial later, without searching (requirements R-CLI-10)."""

from __future__ import annotations

from cyclopts import App

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.run import conclude
from heretic.cli.stored import with_stored_settings
from heretic.exceptions import ConfigurationError
from heretic.model.libraries import quick_imports


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
    resolved = context.resolve(with_stored_settings([*chosen, *tokens], name, context))
    with quick_imports():
        from heretic import main

    report = main.export_trial(resolved, console=context.console, trial=number)
    return conclude(report, context)


def _number(trial: str) -> int | None:
    if trial == "auto":
        return None
    if not trial.isdecimal():
        raise ConfigurationError(f"--trial is {trial!r}", hint="Give the number of a trial, or auto.")
    return int(trial)
