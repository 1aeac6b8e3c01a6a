# SPDX-License-Identifier: Apache-2.0
"""The command tree of `heretic` and the way one command line runs (requirements 2.2)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cyclopts import App

from heretic.cli import (
    apply,
    direction,
    experiment,
    export,
    extract,
    models,
    report,
    reproduce,
    run,
    settings,
    study,
    talk,
    ui,
    worker,
)
from heretic.cli.context import Context
from heretic.cli.flags import CommonFlags, split_flags
from heretic.cli.help import show_help
from heretic.cli.rim import guarded
from heretic.console import Console
from heretic.exceptions import ConfigurationError
from heretic.logs import tame_progress_bars

SUMMARY: Final = (
    "Find, measure, remove, weaken, strengthen or add a behavioural direction of a language model."
)
USAGE: Final = """Usage: heretic MODEL [SETTINGS]
       heretic COMMAND [ARGUMENTS] [SETTINGS]"""


def program_version() -> str:
    """The installed version of the distribution."""
    from importlib.metadata import PackageNotFoundError, version  # slow, and not needed for a run

    try:
        return version("heretic-workbench")
    except PackageNotFoundError:
        return "unknown (not installed as a distribution)"


def build_application() -> App:
    """All commands; importing them loads neither torch nor transformers."""
    app = App(
        name="heretic",
        help=SUMMARY,
        usage=USAGE,
        version=program_version,
        help_formatter="plain",
        help_flags=["--help", "-h"],
    )
    for module in (
        run,
        settings,
        models,
        study,
        report,
        extract,
        apply,
        direction,
        experiment,
        export,
        reproduce,
        talk,
        ui,
        worker,
    ):
        module.register(app)
    app.register_install_completion_command(help="Install completion for the shell in use.")
    return app


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised and nothing is left unsaid."""
    # Enough of a console to report a mistake in the flags themselves.
    context = Context(Console(json="--json" in arguments), CommonFlags(json="--json" in arguments))

    def action() -> int:
        flags, rest = split_flags(arguments)
        context.flags = flags
        context.console = Console(
            json=flags.json,
            quiet=flags.quiet,
            verbose=flags.verbose,
            color=None if flags.color else False,
            assume_yes=flags.yes,
        )
        context.configure_logs()
        tame_progress_bars(terminal=context.console.progress == "rich")
        if flags.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        return dispatch(build_application(), rest, context)

    return guarded(action, context)


def refuse_misspelt_command(app: App, word: str) -> None:
    """Raise `ConfigurationError` for a first word that is nearly a command and no folder: it would be taken for a
    model.
    """
    names = [name for name in app if not name.startswith("-")]
    if word.startswith("-") or word in names or "/" in word or Path(word).exists():
        return
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    if near:
        raise ConfigurationError(
            f"there is no command {word!r}",
            hint=f"Did you mean 'heretic {near[0]}'? A model of that name is given with --model {word}.",
        )


def dispatch(app: App, tokens: Sequence[str], context: Context) -> int:
    """Parse `tokens`, call the command with the context, return its exit code."""
    # Without any word the model may still come from a settings file or the environment.
    if {"--help", "-h"} & set(tokens) or not (tokens or context.peek(()).settings.model):
        show_help(app, tokens, context.console)
        return 0
    if "--version" in tokens:
        context.console.result(program_version())
        context.console.document({"version": program_version()})
        return 0
    refuse_misspelt_command(app, tokens[0])
    command, bound, injected = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    if command == app.help_print or getattr(command, "__func__", None) is App.help_print:
        show_help(app, tokens, context.console)
        return 0
    result = command(*bound.args, **bound.kwargs, **dict.fromkeys(injected, context))
    return int(result or 0)
