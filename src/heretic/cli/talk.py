# SPDX-License-Identifier: Apache-2.0
"""`heretic chat`: talk to a model at the terminal (requirements R-CLI-14)."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from heretic.cli.context import Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.stored import with_stored_settings
from heretic.exceptions import ConfirmationRequiredError
from heretic.model.libraries import quick_imports


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "chat", Effect.READ, settings=True)(chat)


def chat(
    *tokens: Tokens,
    trial: str | None = None,
    compare: Annotated[bool, Parameter(negative=())] = False,
    temperature: float = 0.7,
    max_tokens: int = 512,
    context: Injected,
) -> int:
    """Chat with MODEL, or with a trial of a study before it is saved.

    Parameters
    ----------
    trial
        STUDY:N, a trial of a stored study.
    compare
        Answer with the base model and the edited model.
    temperature
        0 to 2; 0 always takes the most likely token.
    max_tokens
        Longest reply, 64 to 4096.
    """
    if not context.console.interactive:
        raise ConfirmationRequiredError(
            "a chat needs a terminal",
            hint="For replies in a script use: heretic evaluate MODEL --against BASE --json",
        )
    if trial is not None:
        name = trial.rpartition(":")[0] or trial
        tokens = tuple(with_stored_settings([*tokens, f"--study-name={name}"], name, context))
    resolved = context.resolve(tokens)
    with quick_imports():
        from heretic import main
        from heretic.apps.session import ChatSession
        from heretic.apps.terminal_chat import TerminalChat

    model = main.chat_model(resolved, console=context.console, trial=trial)
    session = ChatSession(
        model,
        system_prompt=resolved.settings.system_prompt,
        temperature=temperature,
        max_tokens=max_tokens,
        thinking=resolved.settings.thinking == "on",
    )
    TerminalChat(session, context.console, compare=compare).run()
    return 0
