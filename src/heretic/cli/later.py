# SPDX-License-Identifier: Apache-2.0
"""Commands that are part of the design but not of this version: they exist, and say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cyclopts import App

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.exceptions import ConfigurationError

LATER: Final = (("ui", Effect.READ, "Browser page: chat, compare, monitor."),)


def register(app: App) -> None:
    """Add the commands to `app`."""
    for name, effect, meaning in LATER:
        command(app, name, effect)(unavailable(name, meaning))


def unavailable(name: str, meaning: str) -> Callable[..., int]:
    """A command that takes anything and ends with exit code 2; nothing is done."""

    def refuse(*tokens: Tokens, context: Injected) -> int:
        raise ConfigurationError(
            f"'heretic {name}' is not available in this version", hint="'heretic --help' lists what is."
        )

    refuse.__doc__ = f"{meaning} Not available in this version."
    return refuse
