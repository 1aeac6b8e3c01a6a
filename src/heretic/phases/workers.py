# SPDX-License-Identifier: Apache-2.0
"""The other worker processes of a run on this machine: start, watch, collect (requirements R-SEA-15).

The run itself is one of the workers: it holds the study's lock, has the model loaded for the directions and the
confirmation anyway, and its children inherit the lock, so that nobody else can start while one of them lives
(reliability R04).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

import torch
from pydantic import BaseModel

from heretic.config import Resolved, Settings, schema, setting_names
from heretic.config.command_line import flag_of
from heretic.config.rules import EXPLICIT
from heretic.phases.state import Run
from heretic.sanitise import redact
from heretic.study.state import Study

logger = logging.getLogger("heretic.phases")

FINISH_S: Final = 3.0
"""A child of a complete study ends by itself after its last look; one that is still loading has nothing to lose."""

LEAVE_S: Final = 10.0
"""A child that was asked to leave has 8 s of its own (reliability R06)."""

NOT_PASSED_ON: Final = frozenset(
    {
        "storage",
        "study_name",
        "workers",
        "resume",
        "time_budget",
        "stop_on_stall",
        "progress",
        "log_file",
    }
)
"""Settings that a child takes from the study or from its parent, or must not share with it."""


def worker_count(settings: Settings) -> int:
    """Local worker processes, this one included: as set, or with auto one per accelerator."""
    if settings.workers == "auto":
        return max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 1
    return settings.workers


def own_device(settings: Settings) -> str | dict[str, int | str]:
    """Where the model of this process goes: with several workers on accelerators, the first one alone."""
    spread = settings.device_map == "auto"
    if spread and torch.cuda.is_available() and worker_count(settings) > 1:
        return {"": 0}
    return settings.device_map


def flags_of(resolved: Resolved) -> list[str]:
    """Flags that give another process the settings the user gave this one, wherever they came from."""
    tables = {name: getattr(resolved.settings, name) for name in setting_names()}
    plain = {
        name: schema.plain(value) if isinstance(value, BaseModel) else value for name, value in tables.items()
    }
    flags = []
    for path, value in schema.flatten(plain):
        name = schema.dotted(path)
        origin = resolved.origins.get(name)
        unread = name in resolved.unused or path[0] in resolved.unused
        if origin is None or origin.layer not in EXPLICIT or path[0] in NOT_PASSED_ON or unread:
            continue
        value = schema.plain(value)
        flags.append(f"{flag_of(path)}={value if isinstance(value, str) else json.dumps(value)}")
    return flags


def child_environment(number: int, count: int, storage: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of child `number` of `count` workers: its own accelerator, or its share of the threads.

    The storage goes this way because its address may hold a password, and arguments are visible to everybody.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("HERETIC_")}
    kept["HERETIC_STORAGE"] = storage
    if torch.cuda.is_available():
        visible = [
            entry.strip() for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()
        ]
        devices = visible or [str(index) for index in range(torch.cuda.device_count())]
        kept["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    else:
        kept["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    return kept


@dataclass(slots=True)
class Child:
    """One child process and where it says what it does."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    reported: bool = False

    def last_words(self) -> str:
        """The last error line, or the last line, of what it said."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return redact((errors or lines or ["it said nothing"])[-1])


@dataclass(slots=True)
class LocalWorkers:
    """Children for the length of a `with`; on leaving they have ended. complete: set when nothing is left to do."""

    run: Run
    study: Study
    count: int
    complete: bool = False
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> LocalWorkers:
        flags = flags_of(self.run.resolved)
        file = self.study.location.file
        for number in range(1, self.count):
            # Beside a SQLite database; for a server in a private temporary folder.
            folder = file.parent if file is not None else Path(tempfile.mkdtemp(prefix="heretic-workers-"))
            self.children.append(self._start(number, flags, folder))
        if self.children:
            names = ", ".join(str(child.process.pid) for child in self.children)
            self.run.console.note(
                f"{self.count} workers: this process and {names} (output: {self.children[0].log})"
            )
        return self

    def _start(self, number: int, flags: Sequence[str], folder: Path) -> Child:
        log = folder / f"{_stem(self.study)}.worker-{number}.log"
        # Given a settings file, a child looks for no other one: all that the user said is in the flags.
        empty = folder / f"{_stem(self.study)}.worker.toml"
        empty.touch(mode=0o600)
        storage = self.run.settings.storage or ""
        command = [sys.executable, "-m", "heretic.cli", "worker", f"--config={empty}"]
        command += [f"--study-name={self.study.name}", f"--parent={os.getpid()}", *flags]
        inherited = () if self.study.lease is None or os.name == "nt" else (self.study.lease.fileno(),)
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            process = subprocess.Popen(
                command,
                env=child_environment(number, self.count, storage, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
            )
        return Child(number, process, log)

    def stopped(self) -> bool:
        """Asked between batches: looks after the children, and tells whether the run shall stop."""
        self.look()
        return bool(self.run.stop)

    def look(self) -> None:
        """Reaps children that have ended and says so once; the others take over their trials."""
        for child in self.children:
            code = child.process.poll()
            if code is None or child.reported:
                continue
            child.reported = True
            if code != 0 and not self.run.stop:
                who = f"Worker {child.number} (process {child.process.pid})"
                line = f"{who} ended with code {code}: {child.last_words()}"
                self.run.console.warn(line, details=(f"Its output is in {child.log}.",))
                self.run.degradations.append(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.complete:
            self._wait(FINISH_S)
            self.look()
        for child in self.children:
            if child.process.poll() is None:
                child.process.terminate()
        self._wait(FINISH_S if self.complete else LEAVE_S)
        for child in self.children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(child.process.poll() is None for child in self.children) and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def shared_threads(count: int) -> Iterator[None]:
    """On a processor, this worker's share of the threads while the others run."""
    before = torch.get_num_threads()
    if count > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(1, before // count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _stem(study: Study) -> str:
    if study.location.file is None:
        return "heretic"
    return study.location.beside(study.name, "x").name.removesuffix(".x")
