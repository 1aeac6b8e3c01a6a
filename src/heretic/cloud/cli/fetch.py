# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast download`, `connect` (requirements R-VAS-33, R-VAS-37)."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, command
from heretic.cloud.cli.reach import reached, running_instance
from heretic.cloud.fetching import choose_model, fetch, prepare, rsync_command
from heretic.cloud.snapshot import SavedModel, look
from heretic.cloud.ssh import child_environment, needed_address, ssh_options, system_program
from heretic.cloud.targets import parse_id
from heretic.exceptions import ConfirmationRequiredError


def register(app: App) -> None:
    """Add the commands to `app`."""
    command(app, "download", Effect.WRITE_LOCAL)(download)
    command(app, "connect", Effect.READ)(connect)


def download(
    model: str | None = None, instance: str | None = None, *,
    local_dir: Annotated[str | None, Parameter(name=("--local-dir", "-d"))] = None, context: Injected,
) -> int:  # fmt: skip
    """Fetch a saved model into the local models folder, verify its checksums, and only then give it its name.

    Parameters
    ----------
    model
        Name of a model that `heretic-vast models` lists; without it the only complete one.
    instance
        ID; without it the only running instance that this program rented.
    local_dir
        Folder in place of LOCAL_MODELS_DIR (`models`).
    """
    if model is not None and model.isdigit() and instance is None:
        model, instance = None, model  # only an ID was given
    configuration, environ = context.configuration(), context.world.environ
    folder = Path(local_dir).expanduser() if local_dir else context.world.folder / configuration.models_dir
    with reached(context, instance, "download") as (found, remote, layout):
        seen = look(remote, layout, log_lines=1)
        chosen = choose_model(seen.models, model or _asked(context, seen.models))
    plan = prepare(chosen, folder, layout)
    words = rsync_command(plan, found, configuration, environ)
    if context.flags.dry_run:
        return context.show_remote([shlex.join(words)])
    context.standing = (
        f"{found.title} goes on costing. What came is in {plan.partial}; the same command goes on there.",
    )
    context.console.note(f"fetching {chosen.name}, {chosen.bytes / 1e9:.2f} GB, into {plan.target}")
    path = fetch(plan, words, context.world.clock, context.console.note)
    context.ledger().fetched(found, chosen.name)
    context.console.document({"id": found.id, "model": chosen.name, "path": str(path), "verified": True})
    context.console.result(f"{chosen.name} is complete and verified in {path}")
    context.console.note(f"{found.title} goes on costing until: heretic-vast terminate {found.id}")
    context.console.next_command(f"heretic verify {path}")
    return 0


def _asked(context: CloudContext, models: Sequence[SavedModel]) -> str | None:
    """The name chosen at a terminal where several models are complete; None where there is nothing to ask."""
    whole = [model for model in models if model.complete]
    if len(whole) < 2 or not context.console.interactive:
        return None
    lines = [f"{model.name} ({model.bytes / 1e9:.2f} GB)" for model in whole]
    return whole[context.console.choose("Which model?", lines, flag="its name")].name


def connect(instance: str | None = None, *, context: Injected) -> int:
    """Open an interactive shell on the machine; leaves with its exit status.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    """
    parse_id(instance)
    found = running_instance(context, instance, "connect")
    address = needed_address(found)
    configuration = context.configuration()
    options = ssh_options(found, configuration, context.world.environ)
    words = [system_program("ssh"), *options, f"{configuration.ssh_user}@{address.host}"]
    if context.flags.dry_run:
        return context.show_remote([shlex.join(words)])
    if not context.console.interactive:
        raise ConfirmationRequiredError(
            "a shell needs a terminal", hint="From a script use: heretic-vast exec COMMAND ID"
        )
    return subprocess.run(words, env=child_environment(), check=False).returncode
