# SPDX-License-Identifier: Apache-2.0
"""Starting and ending a run on the machine (requirements R-VAS-26, reliability H09). Never two at once."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from heretic.cloud import supervisor
from heretic.cloud.clock import Clock
from heretic.cloud.disk import COPIES
from heretic.cloud.errors import CloudError, RemoteCommandError
from heretic.cloud.layout import Layout
from heretic.cloud.models import GB
from heretic.cloud.remote import Remote, python_program
from heretic.cloud.snapshot import Job, Snapshot, look
from heretic.cloud.types import ModelSize, Secret
from heretic.exceptions import ConfigurationError, DiskSpaceError

OURS: Final = (
    "--storage",
    "--study-name",
    "--auto-select",
    "--auto-select-path",
    "--model",
    "--progress",
    "--resume",
)
"""Flags that the run is given by this program; the study would not be found again with others."""

BEAT_S: Final = 5.0
STOP_S: Final = 30.0
_WORD: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it will be started. study: name of the study, from the model's unless the user names one."""

    model: str
    study: str
    flags: tuple[str, ...]
    fresh: bool = False

    def command(self, layout: Layout) -> list[str]:
        """The words of the process."""
        return [
            layout.program,
            "--model",
            self.model,
            "--auto-select",
            "true",
            "--auto-select-path",
            layout.models,
            "--storage",
            layout.storage,
            "--study-name",
            self.study,
            "--progress",
            "json",
            *(["--resume", "fresh"] if self.fresh else []),
            *self.flags,
        ]


def study_name(model: str) -> str:
    """A study's name from a model's: `Qwen/Qwen2.5-7B` -> `Qwen--Qwen2.5-7B`."""
    return _WORD.sub("-", model.replace("/", "--")).strip("-.")[:200]


def check_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """Flags behind `--`. Raises `ConfigurationError` for one that this program gives itself, and for a control
    character, which no setting has.
    """
    for flag in flags:
        name = flag.split("=", 1)[0].replace("_", "-")
        if name in OURS:
            raise ConfigurationError(
                f"{name} is set by 'heretic-vast run' itself",
                hint="Leave it out; the study's name is given with 'heretic-vast run MODEL --study NAME'.",
            )
        if any(ord(sign) < 32 for sign in flag):
            raise ConfigurationError("a flag holds a control character", hint="Write it without line ends.")
    return tuple(flags)


def require_disk(snapshot: Snapshot, size: ModelSize) -> None:
    """Free disk for download and export (R-VAS-14). Raises `DiskSpaceError`. What is cached already is not counted as
    free, so a resumed run needs room for the export alone.
    """
    if snapshot.disk is None:
        return
    copies = 1 if snapshot.job is not None and snapshot.job.model == size.model else COPIES
    needed, free = int(copies * size.weights_gb * GB), snapshot.disk[2]
    if free < needed:
        raise DiskSpaceError(
            f"the machine has {free / GB:.1f} GB free; {size.model} needs {needed / GB:.1f} GB, {copies} x its weights",
            hint="Remove models that you downloaded, or rent a machine with a larger --disk.",
            data={"free": free, "needed": needed},
        )


def start(remote: Remote, layout: Layout, plan: Plan, token: Secret | None) -> tuple[int, bool]:
    """Start a run, detached; (pid, True), or (pid of the run that lives already, False). Nothing is doubled: the
    machine's own lock decides. token: goes by stdin into the run's environment.

    Raises `CloudError`.
    """
    environment = {"HF_HOME": layout.cache}
    if token is not None:
        environment["HF_TOKEN"] = token.reveal()
    spec = {
        "state": layout.state,
        "workspace": layout.workspace,
        "log": layout.log,
        "command": plan.command(layout),
        "environment": environment,
        "model": plan.model,
        "study": plan.study,
        "beat": BEAT_S,
    }
    answer = remote.run(python_program(supervisor.PROGRAM), stdin=json.dumps(spec))
    if answer.code == supervisor.HELD:
        return _pid(answer.out), False
    told = answer.checked("starting the run")
    pid = _pid(told)
    if not pid:
        raise RemoteCommandError("the run was not started", hint="Look at the machine: heretic-vast connect")
    return pid, True


def _pid(told: str) -> int:
    try:
        found = json.loads(told.strip().splitlines()[-1])
        return int(found.get("pid", 0))
    except (ValueError, IndexError, AttributeError, TypeError):
        return 0


def end(remote: Remote, layout: Layout, job: Job, clock: Clock, *, wait_s: float = STOP_S) -> None:
    """End a run by its recorded process: asked first, forced after `wait_s`. Raises `CloudError` when it lives on.

    The session of the run is ended, not a name: the pid counts only with its start time.
    """
    for word in ("TERM", "KILL"):
        remote.run(_signal(layout, job.pid, word)).checked("ending the run")
        until = clock.now() + wait_s
        while clock.now() < until:
            if not look(remote, layout, log_lines=1).alive:
                return
            clock.sleep(1.0)
    raise CloudError(f"process {job.pid} does not end", hint="Look at the machine: heretic-vast connect")


def _signal(layout: Layout, pid: int, word: str) -> str:
    """Signal the run's process group if it is still the one that was recorded."""
    program = (
        "import json,os,signal,sys\n"
        "run=json.load(open(sys.argv[1]))\n"
        "pid=int(run['pid'])\n"
        "try: start=open('/proc/%d/stat'%pid).read().rsplit(')',1)[1].split()[19]\n"
        "except OSError: sys.exit(0)\n"
        "if pid==int(sys.argv[2]) and start==run['start']: os.killpg(pid,getattr(signal,'SIG'+sys.argv[3]))\n"
    )
    words = shlex.join([f"{layout.state}/run.json", str(pid), word])
    return f"{python_program(program)} {words}"
