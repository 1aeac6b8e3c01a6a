# SPDX-License-Identifier: Apache-2.0
"""What a command may do to the world, declared beside it as data (reliability REL-17, R13)."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar

from cyclopts import App

Command = TypeVar("Command", bound=Callable[..., Any])


class Effect(Enum):
    """Each command has one; what is destroyed or costs money needs the exact word of R-CLI-50 or --yes."""

    READ = "read"
    WRITE_LOCAL = "write-local"
    DESTROY_LOCAL = "destroy-local"
    SPEND = "spend"
    DESTROY_REMOTE = "destroy-remote"


EFFECTS: Final[dict[str, Effect]] = {}
"""Full command name ("study delete") -> effect."""

TAKES_SETTINGS: Final[set[str]] = set()
"""Commands that accept any setting as a flag."""


def command(app: App, name: str, effect: Effect, *, settings: bool = False) -> Callable[[Command], Command]:
    """Decorator that adds a function to `app` under `name` and records its effect."""

    def add(function: Command) -> Command:
        parent = app.name[0]
        full = name if parent == "heretic" else f"{parent} {name}"
        EFFECTS[full] = effect
        if settings:
            TAKES_SETTINGS.add(full)
        app.command(function, name=name)
        return function

    return add
