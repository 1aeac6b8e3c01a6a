# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast status`, `progress`, `watch`, `logs`, `models`: look, and change nothing (R-VAS-28 to 32, 40 to 45)."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from rich.live import Live

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, Switch, command
from heretic.cloud.cli.follow import POLL_S, Tail
from heretic.cloud.cli.reach import reached, running_instance
from heretic.cloud.dashboard import (
    GPU_COLUMNS,
    View,
    dashboard,
    facts,
    gpu_rows,
    plain_line,
    readable,
    snapshot_document,
    view_document,
)  # fmt: skip
from heretic.cloud.discrepancies import Look, discrepancies
from heretic.cloud.errors import CloudError, HostKeyError, ProviderError
from heretic.cloud.layout import Layout
from heretic.cloud.remote import Remote
from heretic.cloud.snapshot import look
from heretic.cloud.types import Instance
from heretic.console import AsciiConsole
from heretic.exceptions import ConfigurationError

LONGEST_LOG: Final = 10_000
MODEL_COLUMNS: Final = ("model", "GB", "state", "downloaded")
OptionalId = Annotated[str | None, Parameter()]


def register(app: App) -> None:
    """Add the commands to `app`."""
    for name, function in (
        ("status", status), ("progress", progress), ("watch", watch), ("logs", logs), ("models", models),
    ):  # fmt: skip
        command(app, name, Effect.READ)(function)


def status(instance: OptionalId = None, *, context: Injected) -> int:
    """Show the GPUs: load, memory, temperature, power.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    """
    with reached(context, instance, "status") as (found, remote, layout):
        seen = look(remote, layout, log_lines=1)
    if seen.gpus is None:
        raise CloudError(
            f"nvidia-smi gives no answer on {found.title}", hint="Look at it with: heretic-vast connect"
        )
    context.console.document({"id": found.id, "gpus": snapshot_document(seen)["gpus"]})
    context.console.table(GPU_COLUMNS, gpu_rows(seen.gpus), result=True)
    context.console.next_command(f"heretic-vast progress {found.id}")
    return 0


def progress(instance: OptionalId = None, *, context: Injected) -> int:
    """Show the run once: process, trials, models saved, disk, GPUs, last lines of the log.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    """
    with reached(context, instance, "progress") as (found, remote, layout):
        seen = look(remote, layout)
    view = _view(context, found, Look(0.0, found, seen), 10.0)
    context.console.document(view_document(view))
    context.console.facts(facts(view), title=found.title, result=True)
    if seen.job is not None:
        context.console.facts({"command": " ".join(seen.job.command)}, result=True)
    if seen.gpus:
        context.console.table(GPU_COLUMNS, gpu_rows(seen.gpus), result=True)
    for line in readable(seen.log)[-5:]:
        context.console.result(f"  {line}")
    for line in discrepancies(view.look):
        context.console.warn(line)
    complete = any(model.complete for model in seen.models)
    following = "download" if complete and not seen.alive else "watch" if seen.alive else "run MODEL"
    context.console.next_command(f"heretic-vast {following} {found.id}")
    return 0


def models(instance: OptionalId = None, *, context: Injected) -> int:
    """List the models saved on the machine: size, complete or partial, downloaded or not.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    """
    with reached(context, instance, "models") as (found, remote, layout):
        seen = look(remote, layout, log_lines=1)
    rental = context.ledger().of(found)
    fetched = set(rental.fetched) if rental else set()
    rows = [
        (model.name, f"{model.bytes / 1e9:.2f}", "complete" if model.complete else "partial",
         "yes" if model.name in fetched else "no")
        for model in seen.models
    ]  # fmt: skip
    context.console.document(
        {"id": found.id, "models": [dict(zip(MODEL_COLUMNS, row, strict=True)) for row in rows]}
    )
    if rows:
        context.console.table(MODEL_COLUMNS, rows, right=(1,), result=True)
        context.console.next_command(f"heretic-vast download {rows[0][0]} {found.id}")
    else:
        context.console.result("no models saved yet")
        context.console.next_command(f"heretic-vast progress {found.id}")
    return 0


def logs(instance: OptionalId = None, *, lines: int = 50, follow: Switch = False, context: Injected) -> int:
    """Show the log of the run.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    lines
        Last lines, 1 to 10000.
    follow
        Go on until Ctrl-C, which does not touch the run.
    """
    if not 1 <= lines <= LONGEST_LOG:
        raise ConfigurationError(f"--lines is {lines}", hint=f"Give a number from 1 to {LONGEST_LOG}.")
    with reached(context, instance, "logs") as (found, remote, layout):
        tail = Tail(remote, layout) if follow else None
        seen = look(remote, layout, log_lines=lines)
        context.console.document({"id": found.id, "log": list(seen.log)})
        for line in readable(seen.log):
            context.console.result(line)
        context.standing = (f"The run on {found.title} is not touched.",)
        while tail is not None:
            context.world.clock.sleep(POLL_S)
            for line in readable(tail.new_lines()):
                context.console.result(line)
    context.console.next_command(f"heretic-vast watch {found.id}")
    return 0


def watch(
    instance: OptionalId = None, *, interval: Annotated[float, Parameter(name=("--interval", "-i"))] = 10.0,
    once: Switch = False, context: Injected,
) -> int:  # fmt: skip
    """Watch the run until it ends; leaving with Ctrl-C never touches it.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    interval
        Seconds between looks, 1 to 300.
    once
        One look, then leave.
    """
    if not 1 <= interval <= 300:
        raise ConfigurationError(f"--interval is {interval:g}", hint="Give seconds from 1 to 300.")
    found = running_instance(context, instance, "watch")
    watcher = Watcher(context, found, interval)
    context.standing = (f"The run on {found.title} goes on, and the machine goes on costing.",)
    with ExitStack() as stack:
        stack.callback(watcher.close)
        show = _display(context, stack)
        while True:
            view = watcher.refresh()
            show(view)
            if once or context.flags.json or watcher.ended:
                break
            context.world.clock.sleep(interval)
    context.console.document(view_document(view))
    saved = view.look.snapshot is not None and any(model.complete for model in view.look.snapshot.models)
    context.console.next_command(f"heretic-vast {'download' if saved else 'progress'} {found.id}")
    return 0


def _display(context: CloudContext, stack: ExitStack) -> Any:
    """How a refresh is shown: live on a terminal, one line elsewhere."""
    if context.flags.json or context.console.progress != "rich":
        return lambda view: context.console.result(plain_line(view))
    console = AsciiConsole(file=sys.stderr, markup=False, emoji=False, highlight=False)
    live = stack.enter_context(
        Live(console=console, auto_refresh=False, transient=False, redirect_stdout=False)
    )
    return lambda view: live.update(dashboard(view), refresh=True)


class Watcher:
    """Looks again and again; a source that fails keeps its last values, with their age, and is asked again."""

    def __init__(self, context: CloudContext, instance: Instance, interval: float) -> None:
        self._context = context
        self._client = context.client()
        self._layout = Layout(context.configuration().workspace)
        self._interval = interval
        self._started = context.world.clock.now()
        self._remote: Remote | None = None
        self._seen = Look(self._started, instance, None, provider_time=self._started)
        self.ended = False

    def refresh(self) -> View:
        """One look at provider and machine."""
        now = self._context.world.clock.now()
        seen = replace(self._seen, now=now, provider_error="", machine_error="")
        assert seen.instance is not None
        try:
            found = self._client.find(seen.instance.id)
            if found is None:
                seen = replace(seen, provider_error="the instance is not in its list")
            else:
                seen = replace(seen, instance=found, provider_time=now)
                self._context.ledger().observed(found)
        except ProviderError as error:
            seen = replace(seen, provider_error=error.message)
        try:
            if self._remote is None:
                self._remote = self._context.remote(seen.instance or self._seen.instance)  # type: ignore[arg-type]
            seen = replace(seen, snapshot=look(self._remote, self._layout), machine_time=now)
        except HostKeyError:
            raise
        except CloudError as error:
            self.close()
            seen = replace(seen, machine_error=error.message)
        self._seen = seen
        job = seen.snapshot.job if seen.snapshot is not None and not seen.machine_error else None
        self.ended = job is not None and not job.alive and job.code is not None
        assert seen.instance is not None
        return _view(self._context, seen.instance, seen, self._interval, self._started)

    def close(self) -> None:
        """Forget the connection; the next look makes a new one."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None


def _view(
    context: CloudContext, instance: Instance, seen: Look, interval: float, started: float = 0.0
) -> View:
    now = context.world.clock.now()
    rental = context.ledger().of(instance)
    if not seen.now:
        seen = replace(seen, now=now, provider_time=now, machine_time=now)
    seen = replace(seen, lease_agreed=rental is not None and rental.max_hours > 0)
    return View(seen, instance.title, started or now, interval, instance.hourly)
