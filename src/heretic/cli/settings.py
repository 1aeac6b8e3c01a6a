# SPDX-License-Identifier: Apache-2.0
"""`heretic show-config`: each effective value with its source; loads no torch (requirements R-CLI-03)."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "show-config", Effect.READ, settings=True)(show_config)


def show_config(
    *tokens: Tokens,
    toml: Annotated[bool, Parameter(negative=())] = False,
    unused: Annotated[bool, Parameter(negative=())] = False,
    context: Injected,
) -> int:
    """Show every effective setting and where it comes from.

    Parameters
    ----------
    toml
        Print a settings file that can be loaded again.
    unused
        List the settings that nothing in this configuration reads.
    """
    from heretic.config import render_show_config

    resolved = context.peek(tokens)
    context.console.document(json.loads(render_show_config(resolved, "json", unused=unused)))
    context.console.result(render_show_config(resolved, "toml" if toml else "text", unused=unused).rstrip())
    model = resolved.settings.model or "MODEL"
    context.console.next_command(f"heretic {model} --dry-run")
    return 0
