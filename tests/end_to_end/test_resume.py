# SPDX-License-Identifier: Apache-2.0
"""REL-01: a run killed at any moment and started again ends with the selection of an undisturbed run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from heretic.study.catalogue import load_finished

from .support import TRIALS, Ended, command, environment, heretic, run_flags

TWO_PROCESSES = {"OMP_NUM_THREADS": "2"}


def trials_of(folder: Path) -> list[tuple[int, dict[str, object], tuple[float, float]]]:
    """(index, parameters, objectives) of every finished trial."""
    found = load_finished(f"sqlite:///{folder / 'study.db'}", "heretic_study")
    return [(trial.index, dict(trial.parameters), trial.scores.objectives) for trial in found]


@pytest.mark.timeout(280)
def test_killed_twice_and_resumed_equals_undisturbed(finished: tuple[Path, Ended], tmp_path: Path) -> None:
    """kill -9 after some trials, twice; same trials, same scores, same choice.

    The undisturbed run measures in one process, the others in two: where a trial is measured makes no difference.
    """
    (calm, reference), stormy = finished, tmp_path
    assert reference.code == 0, reference.err
    for wanted in (3, 9):
        kill_when(stormy, wanted)
        assert not (stormy / "out").exists()
    resumed = heretic(*run_flags(stormy, TRIALS), "--json", cwd=stormy, extra=TWO_PROCESSES)
    assert resumed.code == 0, resumed.err
    assert trials_of(stormy) == trials_of(calm)
    assert resumed.document["chosen"]["trial"] == reference.document["chosen"]["trial"]
    assert resumed.document["chosen"]["hits"] == reference.document["chosen"]["hits"]
    assert 0 < resumed.document["timings"]["trials_here"] < TRIALS


def kill_when(folder: Path, trials: int) -> None:
    """Start a run and kill it as soon as `trials` are in the storage."""
    process = subprocess.Popen(
        command(*run_flags(folder, TRIALS)),
        cwd=folder,
        env=environment(TWO_PROCESSES),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            if finished_trials(folder) >= trials:
                return
            time.sleep(0.02)
        pytest.fail("the run made no progress")
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def finished_trials(folder: Path) -> int:
    """Lines of the ledger so far, without touching the database of the running process."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.glob("study.db*ledger*"))
