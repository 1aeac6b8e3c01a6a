# SPDX-License-Identifier: Apache-2.0
"""What a look at the machine found, as records (requirements R-VAS-28 to 32, R-VAS-40 to 43)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heretic.cloud.errors import RemoteCommandError
from heretic.cloud.layout import Layout
from heretic.cloud.parsing import number, text, whole
from heretic.cloud.probe import PROGRAM
from heretic.cloud.remote import Remote, python_program
from heretic.sanitise import printable, redact

LOG_LINES: Final = 200
LOG_BYTES: Final = 128_000


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. load: percent; memory: MiB; temperature: Celsius; power: W. None where the driver says nothing."""

    name: str
    load: float | None
    used: float | None
    total: float | None
    temperature: float | None
    power: float | None


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A folder under `models`. complete: manifest and checksums are there, and it has its final name."""

    name: str
    bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The last batch the log tells of. eta_s: None when not known."""

    finished: int
    wanted: int
    speed: float
    eta_s: float | None
    best: str


@dataclass(frozen=True, slots=True)
class Job:
    """A run that was started. alive: by process check. code: exit status, None while none is recorded."""

    pid: int
    command: tuple[str, ...]
    model: str
    study: str
    started: float
    alive: bool
    cpu_s: float
    code: int | None
    ended: float
    beat: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. now: the machine's clock, seconds since the epoch; all other moments are of the same clock.

    gpus: None when nvidia-smi gave no answer. disk: (used, total, free) bytes. guard: its last word and moment.
    """

    now: float
    job: Job | None
    gpus: tuple[Gpu, ...] | None
    models: tuple[SavedModel, ...]
    progress: Progress | None
    log: tuple[str, ...]
    log_written: float
    disk: tuple[int, int, int] | None
    guard: str
    guard_time: float
    lease_end: float
    ready: bool

    @property
    def alive(self) -> bool:
        """A run lives."""
        return self.job is not None and self.job.alive


def look(remote: Remote, layout: Layout, *, log_lines: int = LOG_LINES) -> Snapshot:
    """Ask the machine once. Raises `SSHError`, `RemoteCommandError`."""
    spec = {
        "state": layout.state,
        "models": layout.models,
        "log": layout.log,
        "workspace": layout.workspace,
        "program": layout.program,
        "log_lines": log_lines,
        "log_bytes": LOG_BYTES,
    }
    answer = remote.run(python_program(PROGRAM), stdin=json.dumps(spec) + "\n")
    told = answer.checked("looking at the machine")
    try:
        raw = json.loads(told.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise RemoteCommandError(
            "the machine's answer cannot be understood", hint="Look at it with: heretic-vast connect"
        ) from error
    return understood(raw if isinstance(raw, Mapping) else {})


def understood(raw: Mapping[str, Any]) -> Snapshot:
    """The records of a raw look; what is missing is unknown."""
    log = tuple(_clean(line) for line in _list(raw.get("log")) if isinstance(line, str))
    guard = text(raw.get("guard")).split()
    disk = _list(raw.get("disk"))
    gpus = raw.get("gpus")
    return Snapshot(
        now=number(raw.get("now")),
        job=_job(raw),
        gpus=None if gpus is None else tuple(_gpu(entry) for entry in _list(gpus) if len(_list(entry)) >= 7),
        models=tuple(_model(entry) for entry in _list(raw.get("models")) if isinstance(entry, Mapping)),
        progress=progress_of(log),
        log=log,
        log_written=number(raw.get("log_written")),
        disk=(whole(disk[0]), whole(disk[1]), whole(disk[2])) if len(disk) == 3 else None,
        guard=guard[0] if guard else "",
        guard_time=number(whole(guard[1])) if len(guard) > 1 else 0.0,
        lease_end=number(raw.get("lease")),
        ready=raw.get("ready") is True,
    )


def progress_of(log: Sequence[str]) -> Progress | None:
    """The last line of the log that tells of a batch (`--progress json`)."""
    for line in reversed(log):
        if '"event"' not in line:
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, Mapping) and entry.get("event") == "trials":
            eta = entry.get("eta_s")
            return Progress(
                whole(entry.get("finished")),
                whole(entry.get("wanted")),
                number(entry.get("trials_per_second")),
                number(eta) if isinstance(eta, (int, float)) else None,
                best_text(entry.get("best")),
            )
    return None


def best_text(best: object) -> str:
    """The best trial of a batch line."""
    if not isinstance(best, Mapping):
        return "none within the limits yet"
    rate, divergence = number(best.get("behaviour_rate")), number(best.get("kl_mean"))
    return f"{rate:.1%} at KL {divergence:.3f}, trial {whole(best.get('trial'))}"


def _job(raw: Mapping[str, Any]) -> Job | None:
    run, process, ended = raw.get("run"), raw.get("process"), raw.get("exit")
    if not isinstance(run, Mapping):
        return None
    alive = isinstance(process, Mapping) and process.get("alive") is True
    over = ended if isinstance(ended, Mapping) and ended.get("pid") == run.get("pid") else {}
    code = over.get("code")
    return Job(
        pid=whole(run.get("pid")),
        command=tuple(text(word, 500) for word in _list(run.get("command"))),
        model=text(run.get("model")),
        study=text(run.get("study")),
        started=number(run.get("started")),
        alive=alive,
        cpu_s=number(process.get("cpu_s")) if isinstance(process, Mapping) else 0.0,
        code=code if isinstance(code, int) and not alive else None,
        ended=number(over.get("time")),
        beat=number(raw.get("beat")),
    )


def _gpu(entry: object) -> Gpu:
    parts = [str(part) for part in _list(entry)]
    return Gpu(text(parts[1]), *(_figure(part) for part in parts[2:7]))


def _figure(part: str) -> float | None:
    try:
        return float(part)
    except ValueError:
        return None  # "[N/A]"


def _model(entry: Mapping[str, Any]) -> SavedModel:
    return SavedModel(text(entry.get("name")), whole(entry.get("bytes")), entry.get("complete") is True)


def _list(raw: object) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _clean(line: str) -> str:
    return redact(printable(line))
