# SPDX-License-Identifier: Apache-2.0
"""`heretic chat`: talk to a model at the terminal (requirements R-CLI-14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.stored import with_stored_settings
from heretic.cli.study import find_study
from heretic.exceptions import ConfigurationError, ConfirmationRequiredError, ModelNotFoundError
from heretic.model.libraries import quick_imports

if TYPE_CHECKING:
    from heretic.apps.manager import ModelManager
    from heretic.apps.session import ChatModel
    from heretic.config import Resolved


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
    """Chat with MODEL, with one chosen from the models folder, or with a trial of a study before it is saved.

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
    words = _with_model(tokens, context) if trial is None else _of_trial(tokens, trial, context)
    resolved = context.resolve(words)
    settings = resolved.settings
    with quick_imports():
        from heretic.apps.history import ChatHistory
        from heretic.apps.session import ChatSession
        from heretic.apps.terminal_chat import TerminalChat

    manager = _manager(resolved, trial)
    word = f"named:{settings.model}" if trial is None else trial
    models = Loaded(manager)
    with context.console.phase("Loading the model"):
        model = models.change(word)
    session = ChatSession(
        model,
        system_prompt=settings.system_prompt,
        temperature=temperature,
        max_tokens=max_tokens,
        thinking=settings.thinking == "on",
    )
    history = ChatHistory(settings.chat_history_dir)
    TerminalChat(
        session,
        context.console,
        compare=compare,
        history=history,
        models=models,
        name=settings.model,
        trial=trial,
    ).run()
    return 0


class Loaded:
    """The models of a manager for somebody who talks to one at a time."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self.choices = manager.choices

    def change(self, word: str) -> ChatModel:
        """The model of a word, loaded; the one before is released."""
        with self._manager.alone():
            return self._manager.open(word)


def _manager(resolved: Resolved, trial: str | None) -> ModelManager:
    from heretic.apps.discovery import Places
    from heretic.apps.manager import ModelManager
    from heretic.phases.loading import load_options

    settings = resolved.settings
    places = Places(
        models_dir=settings.models_dir,
        named={settings.model: settings.model} if trial is None else {},
        storage=settings.storage,
        base=Path.cwd(),
        trial_model=None if trial is None else settings.model,
    )
    return ModelManager(places, load_options(settings), offline=settings.offline)


def _with_model(tokens: Sequence[str], context: Context) -> list[str]:
    """The words of the command line with a model; without one it is chosen from the models folder."""
    from heretic.apps.discovery import Places, choices

    settings = context.peek(tokens).settings
    if settings.model:
        return list(tokens)
    found = [entry for entry in choices(Places(settings.models_dir)) if entry.problem is None]
    if not found:
        raise ModelNotFoundError(
            f"no model is named, and there is none in {settings.models_dir}",
            hint="Write 'heretic chat MODEL' with a folder or a Hub name, or put a model there.",
        )
    labels = [entry.label if entry.verified else f"{entry.label} (not verified)" for entry in found]
    chosen = found[context.console.choose("Which model?", labels, flag="the name of a model")]
    return [*tokens, f"--model={chosen.where}"]


def _of_trial(tokens: Sequence[str], trial: str, context: Context) -> list[str]:
    """The words of the command line with what the trial's study was made with."""
    name, _, number = trial.rpartition(":")
    if not name or not number.isdecimal():
        raise ConfigurationError(f"{trial!r} is no trial", hint="Give STUDY:N, such as heretic_study:12.")
    words = [*tokens, f"--study-name={name}"]
    settings = context.peek(words).settings
    if not settings.model:
        stored = find_study(settings.storage, name).fingerprint.get("settings")
        model = stored.get("model") if isinstance(stored, dict) else None
        words += [f"--model={model}"] if isinstance(model, str) else []
    return with_stored_settings(words, name, context)
