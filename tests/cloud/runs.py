# SPDX-License-Identifier: Apache-2.0
"""Starting runs of the stand-in program, and waiting for them."""

from __future__ import annotations

import time
from pathlib import Path

from .conftest import Cloud, Told
from .machine import Machine

RUN = ("run", "tiny/model", "--weights-gb", "0.001")


def wait_for(path: Path, seconds: float = 40.0) -> None:
    """Until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """True while a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def finished(cloud: Cloud, machine: Machine) -> Told:
    """A run that saved its model."""
    told = cloud.run(*RUN)
    assert told.code == 0, told.text
    wait_for(machine.state / "run.exit")
    return told
