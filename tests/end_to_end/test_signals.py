# SPDX-License-Identifier: Apache-2.0
"""SIGINT once and twice and SIGTERM in the middle of a real search (R-CLI-26, REL-R06, A03)."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from heretic.study.catalogue import load_finished

from .support import command, environment, here, run_flags

MANY = 400
"""Far more than are measured before the signal."""


def finished(folder: Path) -> int:
    """Complete trials in the storage."""
    return len(load_finished(f"sqlite:///{folder / 'study.db'}", "heretic_study"))


def recorded(folder: Path) -> int:
    """Lines of the ledger: what is durable while the process runs."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("study.db*ledger*"))


def interrupted(folder: Path, signals: Sequence[int], pause: float = 0.0) -> tuple[int, str, str]:
    """Start a headless run, send the signals once some trials are durable, and wait for its end."""
    process = subprocess.Popen(
        command(*run_flags(folder, MANY)),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while recorded(folder) < 5 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


@pytest.mark.timeout(240)
def test_first_ctrl_c_keeps_trials_and_selects_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-26: the batch is finished, the selection is made (headless), 130; then the study continues."""
    code, _, err = interrupted(tmp_path, [signal.SIGINT])
    assert code == 130, err
    assert "Traceback" not in err and "stopping after the running batch" in err
    resume = err.partition("continue with: heretic ")[2].splitlines()[0]
    assert resume.endswith("--overwrite") and "--n-trials=400" in resume
    kept = finished(tmp_path)
    assert 4 <= kept < MANY
    assert (tmp_path / "out" / "SHA256SUMS").is_file() and not list(tmp_path.glob("*.partial"))
    more = here(*run_flags(tmp_path, kept + 4, "--overwrite", "--yes"), "--json", capture=capsys)
    assert more.code == 0, more.err
    assert more.document["timings"]["trials_here"] == 4


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("signals", "expected"),
    [([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM], 143)],
    ids=["twice", "term"],
)
def test_leaving_at_once_saves_nothing_and_loses_no_finished_trial(
    signals: list[int], expected: int, tmp_path: Path
) -> None:
    """R-CLI-26, REL-R06: what was durable before the signal is there after it; no output, no staging."""
    code, _, err = interrupted(tmp_path, signals, pause=0.05)
    assert code == expected, err
    assert "Traceback" not in err
    assert "continue with: heretic" in err
    assert finished(tmp_path) >= 1
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob("*.partial"))
