# SPDX-License-Identifier: Apache-2.0
"""The command tree of `heretic-vast` and the way one command line runs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from cyclopts import App, CycloptsError

from heretic.cli.flags import CommonFlags, split_flags
from heretic.cli.rim import guarded
from heretic.cloud.cli import fetch, guarding, instances, machine, market, observe, rent
from heretic.cloud.cli.context import FLAGS, CloudContext, World, hidden_secrets
from heretic.cloud.cli.help import show_help
from heretic.console import Console
from heretic.exceptions import ConfigurationError, InterruptedRunError

SUMMARY: Final = "Rent a GPU, run heretic on it, watch it, fetch the result, and stop paying."
USAGE: Final = "Usage: heretic-vast COMMAND [ARGUMENTS]"

AMBIGUOUS: Final = ("complete", "finish", "end", "kill")
"""Verbs that one person means as "let it run to its end" and another as "stop it now" (R-VAS-53)."""

ELSEWHERE: Final = {
    "destroy": "terminate", "delete": "terminate", "remove": "terminate", "rm": "terminate", "pause": "stop",
    "resume": "start", "rent": "create", "launch": "create", "ls": "list", "ssh": "connect", "fetch": "download",
}  # fmt: skip
"""Words of other tools; they are named in the message and never acted on."""


def build_application() -> App:
    """All commands; importing them loads no SSH library, no torch and nothing of the method."""
    app = App(
        name="heretic-vast",
        help=SUMMARY,
        usage=USAGE,
        help_formatter="plain",
        help_flags=["--help", "-h"],
        version_flags=[],
    )
    for module in (market, rent, instances, machine, observe, fetch, guarding):
        module.register(app)
    return app


def run_command_line(arguments: Sequence[str], world: World | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised and nothing is left unsaid."""
    json = "--json" in arguments
    context = CloudContext(Console(json=json), CommonFlags(json=json), world=world or World())

    def action() -> int:
        try:
            return _prepared(arguments, context)
        except CycloptsError as error:
            raise ConfigurationError(
                str(error).strip() or "the command line cannot be read",
                hint="See: heretic-vast --help, or heretic-vast COMMAND --help",
            ) from error
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "interrupted; only the local command was stopped",
                details=context.standing
                or ("Nothing on the provider's side or the machine was changed by this.",),
                hint="See what runs and costs: heretic-vast list",
            ) from None

    with hidden_secrets():  # also while an error is shown and the document is written
        return guarded(action, context)


def _prepared(arguments: Sequence[str], context: CloudContext) -> int:
    words = list(arguments)
    if "--" in words:
        position = words.index("--")
        context.trailing = tuple(words[position + 1 :])
        words = words[:position]
    flags, rest = split_flags(words)
    context.flags = flags
    context.console = Console(
        json=flags.json,
        quiet=flags.quiet,
        verbose=flags.verbose,
        color=None if flags.color else False,
        assume_yes=flags.yes,
    )
    context.configure_logs()
    context.given, rest = _own_flags(rest)
    return dispatch(build_application(), rest, context)


def _own_flags(tokens: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The flags of `FLAGS` with their values, and the other words."""
    given: dict[str, str] = {}
    rest: list[str] = []
    waiting = ""
    for token in tokens:
        name, equals, value = token.partition("=")
        if waiting:
            given[FLAGS[waiting]], waiting = token, ""
        elif name.replace("_", "-") in FLAGS:
            name = name.replace("_", "-")
            if equals:
                given[FLAGS[name]] = value
            else:
                waiting = name
        else:
            rest.append(token)
    if waiting:
        raise ConfigurationError(f"{waiting} has no value", hint=f"Write {waiting} VALUE.")
    return given, rest


def dispatch(app: App, tokens: Sequence[str], context: CloudContext) -> int:
    """Parse `tokens`, call the command with the context, return its exit code."""
    if not tokens or {"--help", "-h"} & set(tokens):
        show_help(app, tokens, context.console)
        return 0
    if tokens[0] == "--version":
        from heretic import __version__

        context.console.result(__version__)
        context.console.document({"version": __version__})
        return 0
    refuse_other_verbs(app, tokens[0])
    called, bound, injected = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    return int(called(*bound.args, **bound.kwargs, **dict.fromkeys(injected, context)) or 0)


def refuse_other_verbs(app: App, word: str) -> None:
    """Raise `ConfigurationError` for a verb that does not exist; an ambiguous one is asked back (R-VAS-53)."""
    names = [name for name in app if not name.startswith("-")]
    if word in names:
        return
    if word.lower() in AMBIGUOUS:
        raise ConfigurationError(
            f"{word!r} can mean two things, so there is no such command; which is meant?",
            details=(
                "heretic-vast watch: let the run go on to its end, and look at it",
                "heretic-vast stop: stop the machine now, which kills the run",
            ),
            hint="Nothing was done. Type 'watch' or 'stop'.",
        )
    near = [ELSEWHERE[word]] if word in ELSEWHERE else difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    guess = f"Did you mean 'heretic-vast {near[0]}'? " if near else ""
    raise ConfigurationError(
        f"there is no command {word!r}", hint=f"{guess}'heretic-vast --help' lists all; nothing was done."
    )
