# SPDX-License-Identifier: Apache-2.0
"""REL-01: a run killed at any moment and started again ends with the selection of an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from .support import command, environment, heretic, run_flags

from heretic.study.catalogue import load_finished

TRIALS = 16


def trials_of(folder: Path) -> list[tuple[int, dict[str, object], tuple[float, float]]]:
    """(index, parameters, objectives) of every finished trial."""
    found = load_finished(f"sqlite:///{folder / 'study.db'}", "heretic_study")
    return [(trial.index, dict(trial.parameters), trial.scores.objectives) for trial in found]


@pytest.mark.timeout(280)
def test_killed_twice_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    """kill -9 after some trials, twice; same trials, same scores, same choice."""
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    reference = heretic(*run_flags(calm, TRIALS), "--json", cwd=calm)
    assert reference.code == 0, reference.err
    for wanted in (3, 9):
        kill_when(stormy, wanted)
        assert not (stormy / "out").exists()
    resumed = heretic(*run_flags(stormy, TRIALS), "--json", cwd=stormy)
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
        env=environment(),
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
    return sum(
        1
        for path in folder.glob("study.db*ledger*")
        for line in path.read_text(errors="replace").splitlines()
        if _is_entry(line)
    )


def _is_entry(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def test_another_seed_is_another_study(tmp_path: Path) -> None:
    """A05: an explicit name with other settings is refused with the difference; the file stays."""
    flags = run_flags(tmp_path, 4, "--study-name=mine")
    assert heretic(*flags, cwd=tmp_path).code == 0
    other = heretic(*flags, "--kl-divergence-tokens=4", "--overwrite", "--yes", cwd=tmp_path)
    assert other.code == 2
    assert "kl_divergence_tokens" in other.err
    assert "--resume fresh" in other.err
