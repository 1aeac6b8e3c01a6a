# SPDX-License-Identifier: Apache-2.0
"""Fetching a saved model: resumable, verified, never over something (requirements R-VAS-33, reliability H11)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heretic.cloud.clock import Clock
from heretic.cloud.configuration import VastConfig
from heretic.cloud.errors import SSHError
from heretic.cloud.layout import Layout
from heretic.cloud.snapshot import SavedModel
from heretic.cloud.ssh import child_environment, needed_address, ssh_options, system_program
from heretic.cloud.types import Instance
from heretic.durable import lock_file, release_lock, sync
from heretic.exceptions import ChecksumError, ConfigurationError, OutputExistsError
from heretic.publish import require_space, translate_os_error, verify_checksums

ATTEMPTS: Final = 4
PAUSE_S: Final = 5.0
SPARE_BYTES: Final = 100_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True, slots=True)
class Download:
    """One model to fetch. target: the folder it gets; source: the folder on the machine."""

    model: SavedModel
    source: str
    target: Path

    @property
    def partial(self) -> Path:
        """Where the files are while they come; a later call goes on there."""
        return self.target.with_name(f"{self.target.name}.partial")


def choose_model(models: Sequence[SavedModel], name: str | None) -> SavedModel:
    """The model of that name, or without one the only complete model. Raises `ConfigurationError`."""
    lines = tuple(f"{model.name}: {'complete' if model.complete else 'partial'}" for model in models)
    if name is not None:
        found = next((model for model in models if model.name == name), None)
        if found is None:
            raise ConfigurationError(
                f"the machine has no model {name!r}", details=lines, hint="See: heretic-vast models"
            )
    else:
        whole = [model for model in models if model.complete]
        if len(whole) != 1:
            raise ConfigurationError(
                f"the machine has {len(whole)} complete models; which one is meant?",
                details=lines,
                hint="Give its name: heretic-vast download NAME",
            )
        found = whole[0]
    if not _NAME.fullmatch(found.name):
        raise ConfigurationError(f"{found.name!r} is no name for a folder", hint="Rename it on the machine.")
    if not found.complete:
        raise ConfigurationError(
            f"{found.name} is not complete on the machine: it has no manifest and checksums yet",
            hint="Wait until the run has saved it: heretic-vast watch",
        )
    return found


def prepare(model: SavedModel, folder: Path, layout: Layout) -> Download:
    """What will be done, refused before anything is copied. Raises `OutputExistsError`, `DiskSpaceError`."""
    target = Path(os.path.realpath(folder.expanduser())) / model.name
    if os.path.lexists(target):
        raise OutputExistsError(
            f"{target} exists; a download never writes over something",
            hint="Move it away, or choose another folder with --local-dir.",
        )
    download = Download(model, f"{layout.models}/{model.name}", target)
    there = sum(path.stat().st_size for path in download.partial.rglob("*") if path.is_file())
    require_space(target, max(0, model.bytes - there) + SPARE_BYTES)
    return download


def rsync_command(
    download: Download, instance: Instance, configuration: VastConfig, environ: Mapping[str, str]
) -> list[str]:
    """The words of the copy of a model, which goes on where an earlier one was cut."""
    return copy_command(download.source, download.partial, instance, configuration, environ, resume=True)


def copy_command(
    source: str,
    target: Path,
    instance: Instance,
    configuration: VastConfig,
    environ: Mapping[str, str],
    *,
    resume: bool,
) -> list[str]:
    """rsync of a folder's content. No links, owners or permissions are taken over; names are protected from shells."""
    address = needed_address(instance)
    shell = shlex.join(
        [system_program("ssh"), *ssh_options(instance, configuration, environ), "-o", "BatchMode=yes"]
    )
    host = f"[{address.host}]" if ":" in address.host else address.host
    return [
        system_program("rsync"),
        "--recursive",
        "--times",
        *(["--partial", "--append-verify"] if resume else []),
        "-s",
        "--timeout=60",
        "--rsh",
        shell,
        "--",
        f"{configuration.ssh_user}@{host}:{source}/",
        f"{target}/",
    ]


def fetch(download: Download, command: Sequence[str], clock: Clock, say: Callable[[str], None]) -> Path:
    """Copy, verify, give the final name; the folder. A cut link is picked up again where it was.

    Raises `SSHError` (what came stays in the partial folder), `ChecksumError`, `OutputExistsError`.
    """
    try:
        download.target.parent.mkdir(parents=True, exist_ok=True)
        lock = download.partial.with_name(f"{download.partial.name}.lock")
        held = lock_file(lock, wait=False)
        try:
            return _fetch(download, command, clock, say)
        finally:
            release_lock(held, lock)
    except OSError as error:
        raise translate_os_error(error, download.target) from error


def _fetch(download: Download, command: Sequence[str], clock: Clock, say: Callable[[str], None]) -> Path:
    download.partial.mkdir(exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        code, last = _copy(command)
        if code == 0:
            problems = verify_checksums(download.partial)
            if not problems:
                return _publish(download)
            # A file that changed while it was copied, or a broken one: it is fetched anew.
            _drop_bad(download.partial, problems)
            last = problems[0]
        say(f"attempt {attempt} of {ATTEMPTS}: {last}")
        if attempt < ATTEMPTS:
            clock.sleep(PAUSE_S)
    problems = verify_checksums(download.partial) if code == 0 else []
    if problems:
        raise ChecksumError(
            f"{download.model.name} is not what the machine recorded",
            details=tuple(problems[:10]),
            hint=f"It stays in {download.partial}; look at the machine: heretic-vast models",
        )
    raise SSHError(
        f"the copy was cut: {last}",
        hint="Give the same command again: it goes on where it was.",
        data={"partial": str(download.partial), "rsync_status": code},
    )


def _copy(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=child_environment(), check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else f"rsync ended with status {done.returncode}"


def _drop_bad(folder: Path, problems: Sequence[str]) -> None:
    """Remove the files that `verify_checksums` named, inside the partial folder alone."""
    for problem in problems:
        name = problem.partition(":")[0]
        path = folder / name
        if ".." not in Path(name).parts and not Path(name).is_absolute() and path.is_file():
            path.unlink()


def _publish(download: Download) -> Path:
    if os.path.lexists(download.target):
        raise OutputExistsError(
            f"{download.target} appeared meanwhile; the download stays in {download.partial}",
            hint="Move one of them away and give the command again.",
        )
    for path in download.partial.rglob("*"):
        sync(path)
    os.rename(download.partial, download.target)
    sync(download.target.parent)
    return download.target
