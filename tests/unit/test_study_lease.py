# SPDX-License-Identifier: Apache-2.0
"""One owner (REL-21, REL-R04): kernel locks, messages, children, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heretic.exceptions import StorageError, StudyLockedError
from heretic.lease import acquire, held, owner_of

HOLDER = """
import subprocess, sys
from pathlib import Path
from heretic.lease import acquire
try:
    lease = acquire(Path(sys.argv[1]), "the study 's'")
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(1)
if len(sys.argv) > 2:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lease.fileno(),), stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
else:
    print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen[str]], *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    processes.append(process)
    return process


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_rel_21_of_five_simultaneous_starts_one_wins(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    path = tmp_path / "s.lock"
    starters = [start(processes, str(path)) for _ in range(5)]
    lines = [first_line(process) for process in starters]
    assert lines.count("held") == 1
    assert sum(line.startswith("StudyLockedError") for line in lines) == 4
    winner = starters[lines.index("held")]
    began = time.monotonic()
    with pytest.raises(StudyLockedError) as error:
        acquire(path, "the study 's'")
    assert time.monotonic() - began < 2.0
    for part in ("the study 's'", str(winner.pid), os.uname().nodename, str(owner_of(path)["start"])):
        assert part in error.value.message
    winner.send_signal(signal.SIGKILL)
    winner.wait()
    acquire(path, "the study 's'").release()  # free at once, although the content is stale
    assert path.exists(), "the lock file is never unlinked"


def test_rel_r04_a_child_keeps_the_lease(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    path = tmp_path / "s.lock"
    parent = start(processes, str(path), "with child")
    child = int(first_line(parent))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        with pytest.raises(StudyLockedError) as error:
            acquire(path, "the study")
        assert error.value.details and "child" in error.value.details[0]
    finally:
        os.kill(child, signal.SIGKILL)
    acquire(path, "the study", wait_s=5.0).release()


def test_stale_content_does_not_block_and_is_replaced(tmp_path: Path) -> None:
    """Control: a pid file would refuse this, since the named process runs."""
    path = tmp_path / "s.lock"
    path.write_text(json.dumps({"pid": os.getppid(), "host": os.uname().nodename, "start": "yesterday"}))
    with held(path, "the study") as lease:
        assert owner_of(path)["pid"] == os.getpid()
        with pytest.raises(StudyLockedError):
            acquire(path, "the study", wait_s=0.1)
    lease.release()
    acquire(path, "the study").release()


def test_a_path_that_cannot_hold_a_lock_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        acquire(tmp_path / "missing" / "s.lock", "the study")
    assert "missing" in error.value.message
