# SPDX-License-Identifier: Apache-2.0
"""`heretic worker`: join a study from this or another machine (requirements R-CLI-13)."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected, Tokens
from heretic.cli.effects import Effect, command
from heretic.cli.signals import stop_on_signals
from heretic.cli.stored import with_stored_settings
from heretic.exceptions import ConfigurationError, StorageError
from heretic.model.libraries import quick_imports
from heretic.trial_display import figure_texts

if TYPE_CHECKING:
    from heretic.study.types import Scores, TrialFailure

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
Device = Annotated[str | None, Parameter(negative=())]
Parent = Annotated[int | None, Parameter(show=False, negative=())]


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "worker", Effect.WRITE_LOCAL, settings=True)(worker)


def worker(*tokens: Tokens, device: Device = None, parent: Parent = None, context: Injected) -> int:
    """Join the study of --study-name in --storage, and search with it until it is complete.

    What the study was made with need not be repeated; --model must be given. Workers of one machine may use a
    SQLite file, those of several need PostgreSQL.

    Parameters
    ----------
    device
        The accelerator of this worker: a number, cuda:NUMBER, or cpu.
    """
    if device is not None:
        os.environ[VISIBLE] = visible_device(device, os.environ.get(VISIBLE))
    settings = context.peek(tokens).settings
    if not settings.storage:
        raise ConfigurationError(
            "a worker needs the storage of the study", hint="Add --storage URL --study-name NAME."
        )
    resolved = context.resolve(with_stored_settings(tokens, settings.study_name, context), notices=False)
    # After the device and the settings, because it loads torch.
    with quick_imports(compiling=resolved.settings.compile):
        from heretic.phases.joining import work

    told = {"complete": 0, "failed": 0}

    def on_told(index: int, outcome: Scores | TrialFailure) -> None:
        told["failed" if hasattr(outcome, "reason") else "complete"] += 1
        context.console.result(trial_line(index, outcome))

    try:
        with stop_on_signals(context.stop, context.console.urgent, terminal=context.console.interactive):
            ended = work(resolved, console=context.console, stop=context.stop, on_told=on_told, parent=parent)
    except StorageError as error:
        error.resume = error.resume or shlex.join(["heretic", *sys.argv[1:]])
        raise
    _conclude(settings.study_name, told, len(ended.finished), ended.reason, context)
    return context.stop.exit_code if context.stop else 0


def visible_device(device: str, visible: str | None) -> str:
    """The value that shows one accelerator to the libraries; `visible` is what they may see now.

    Raises `ConfigurationError`.
    """
    if device == "cpu":
        return ""
    number = device.removeprefix("cuda:")
    if not number.isdecimal():
        raise ConfigurationError(f"--device is {device!r}", hint="Give a number, cuda:NUMBER, or cpu.")
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    if names and int(number) >= len(names):
        raise ConfigurationError(
            f"--device is {device!r}, but {VISIBLE} shows {len(names)}", hint="Count from 0 within that list."
        )
    return names[int(number)] if names else number


def trial_line(index: int, outcome: Scores | TrialFailure) -> str:
    """One trial as one line."""
    from heretic.study.types import FinishedTrial, Scores

    if not isinstance(outcome, Scores):
        return f"trial {index}: failed: {outcome.reason}"
    rate, divergence = figure_texts(FinishedTrial(index, {}, outcome))
    status = outcome.measured.get("status", "complete")
    shown = "" if status == "complete" else f" ({status})"
    return f"trial {index}: rate {rate}, KL {divergence} nats/token{shown}"


def _conclude(name: str, told: dict[str, int], finished: int, reason: str, context: Context) -> None:
    context.console.document({"study": name, "told": told, "finished": finished, "ended": reason})
    context.console.note(
        f"{told['complete']} trials from this worker ({told['failed']} failed); the study has {finished}; {reason}."
    )
    context.console.next_command(f"heretic study front {name}")
