# SPDX-License-Identifier: Apache-2.0
"""`heretic reproduce FILE`: build the model of a run file again and compare it with the record (R-CLI-12)."""

from __future__ import annotations

import os

from cyclopts import App

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.models import show_findings
from heretic.cli.signals import stop_on_signals
from heretic.exceptions import SaveVerificationError
from heretic.model.libraries import quick_imports


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "reproduce", Effect.WRITE_LOCAL, settings=True)(reproduce)


def reproduce(file: str, *tokens: Tokens, out: str | None = None, context: Injected) -> int:
    """Rebuild a model from its heretic_run.json, without a search, and compare it with the record.

    Parameters
    ----------
    file
        The run file, the folder it lies in, or its https address; stands before the settings.
    out
        Output folder, or its parent when it exists or ends in a slash.
    """
    where = [] if out is None else [f"--auto-select-path={out}"]
    said = [*where, *tokens, *context.flags.as_settings()]
    context.configure_logs()
    if context.flags.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's library is first imported
    with quick_imports():
        from heretic import main

    document = main.read_run_file(file)
    with stop_on_signals(context.stop, context.console.urgent, terminal=context.console.interactive):
        found = main.reproduce(document, said, console=context.console, stop=context.stop)
    context.console.document(found)
    show_findings(context.console, found)
    if found["grade"] == "different":
        raise SaveVerificationError(
            f"the rebuilt model in {found['output']} is not the recorded one",
            hint="The list above says what differs; another base model, other prompts or other versions explain it.",
        )
    context.console.next_command(f"heretic chat {found['output']}")
    return 0
