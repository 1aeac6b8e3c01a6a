# SPDX-License-Identifier: Apache-2.0
"""Workers that die, stop, come back late and have wrong clocks: nothing lost, nothing twice (R-SEA-15, A17, A18).

Each test runs on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heretic.study.catalogue import list_studies, load_finished
from heretic.study.sharing import Terms
from heretic.study.space import canonical_key

from .conftest import PASSWORD
from .worker_program import NAME, create, measure, work

pytestmark = [pytest.mark.loopback, pytest.mark.timeout(120)]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(storage: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker process; those left at the end of the test are ended by their id."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.cluster.worker_program", str(tmp_path), *words]
        environment = {**os.environ, "STORAGE": storage, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the workers made no progress"
        time.sleep(0.02)


def hangs(folder: Path, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.stderr and process.stderr.read()
    return (folder / f"hangs-{process.pid}").exists()


def evaluations(folder: Path) -> list[tuple[int, int, str]]:
    """(process id, index, point) of every measurement."""
    lines = [line.split(" ", 2) for line in (folder / "evaluated").read_text().splitlines()]
    return [(int(pid), int(index), key) for pid, index, key in lines]


def assert_whole(storage: str, folder: Path, trials: int, measured_again: int = 0) -> None:
    """Exactly `trials` complete trials with the scores of their parameters, every point measured once."""
    finished = load_finished(storage, NAME)
    assert len(finished) == trials
    assert len({trial.index for trial in finished}) == trials
    distinct = {canonical_key(trial.parameters) for trial in finished}
    assert len(distinct) == trials, "no duplicate parameters"
    done = Counter(key for _, _, key in evaluations(folder))
    assert set(done) >= distinct and sum(done.values()) <= trials + measured_again
    for trial in finished:
        assert trial.scores.objectives == pytest.approx(measure_of(trial.parameters))
    (summary,) = list_studies(storage)
    assert (summary.finished, summary.running) == (trials, 0)


def measure_of(parameters: object) -> tuple[float, float]:
    from heretic.study.types import Proposal

    assert isinstance(parameters, dict)
    return measure(Proposal(0, parameters)).objectives


def ended(process: subprocess.Popen[str]) -> str:
    """What a worker that ended well said."""
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert PASSWORD not in said
    return said


def test_three_workers_share_thirty_trials(storage: str, start: Start, tmp_path: Path) -> None:
    """R-SEA-15: none lost, none twice, and really shared."""
    create(storage, Terms(30, lease_seconds=20))
    for process in [start(), start(), start()]:
        ended(process)
    assert_whole(storage, tmp_path, 30)
    assert {trial.index for trial in load_finished(storage, NAME)} == set(range(30))
    assert len({pid for pid, _, _ in evaluations(tmp_path)}) == 3, "control: all three took part"


def test_a_killed_worker_s_trials_are_measured_by_another_with_the_same_parameters(
    storage: str, start: Start, tmp_path: Path
) -> None:
    """A17: kill -9; a process of the same machine is known to be gone, so nobody waits for the lease."""
    create(storage, Terms(12, lease_seconds=600))
    victim = start("3")
    wait_for(lambda: hangs(tmp_path, victim))
    victim.kill()
    victim.wait()
    lost = {(index, key) for pid, index, key in evaluations(tmp_path) if pid == victim.pid and index >= 2}
    assert lost
    told = work(storage, tmp_path)
    assert_whole(storage, tmp_path, 12, measured_again=2)
    again = {(index, key) for pid, index, key in evaluations(tmp_path) if pid == os.getpid()}
    assert lost <= again and {index for index, _ in lost} <= set(told)


def test_a_stopped_worker_s_late_result_is_refused(storage: str, start: Start, tmp_path: Path) -> None:
    """A17, A18: SIGSTOP, another takes over after the lease, SIGCONT; the late result is dropped with a note."""
    create(storage, Terms(8, lease_seconds=1.5))
    stopped = start("~2")
    wait_for(lambda: hangs(tmp_path, stopped))
    os.kill(stopped.pid, signal.SIGSTOP)
    begin = time.monotonic()
    told = work(storage, tmp_path)
    assert time.monotonic() - begin >= 1.5, "control: a living process is given the whole lease"
    taken = {index for pid, index, _ in evaluations(tmp_path) if pid == stopped.pid and index >= 2}
    assert taken and taken <= set(told)
    before = load_finished(storage, NAME)
    (tmp_path / "go-on").touch()
    os.kill(stopped.pid, signal.SIGCONT)
    said = ended(stopped)
    assert "late result is dropped" in said
    assert load_finished(storage, NAME) == before
    assert_whole(storage, tmp_path, 8, measured_again=2)


def test_a_slow_worker_that_renews_keeps_its_trials(storage: str, start: Start, tmp_path: Path) -> None:
    """Control of the two above: a worker busy for several leases loses nothing, whatever the clocks say."""
    create(storage, Terms(6, lease_seconds=1.5))
    slow = start("~2")
    wait_for(lambda: hangs(tmp_path, slow))  # before the other starts, which could finish the study alone
    shifted = start("", "0.5")
    time.sleep(4)
    (tmp_path / "go-on").touch()
    assert "late" not in ended(slow)
    assert "taken over" not in ended(shifted)
    assert_whole(storage, tmp_path, 6)


def test_shifted_clocks_do_not_hand_on_what_is_alive(storage: str, start: Start, tmp_path: Path) -> None:
    """A17: one observer's clock is days ahead and another runs at half speed; only standing still counts."""
    create(storage, Terms(16, lease_seconds=5))
    workers = [start("", "1"), start("", "0.5"), start("", "1.5")]
    for process in workers:
        assert "taken over" not in ended(process)
    assert_whole(storage, tmp_path, 16)


def test_a_trial_that_kills_its_workers_is_failed_and_the_study_goes_on(
    storage: str, start: Start, tmp_path: Path
) -> None:
    """A17: at most max_trial_retries times handed on."""
    create(storage, Terms(5, lease_seconds=600, max_trial_retries=1))
    for _ in range(2):
        victim = start("0")
        wait_for(lambda victim=victim: hangs(tmp_path, victim))  # type: ignore[misc]  # the loop's own process
        victim.kill()
        victim.wait()
    work(storage, tmp_path, batch=1)
    (summary,) = list_studies(storage)
    assert (summary.finished, summary.failed, summary.running) == (5, 2, 0)
    assert 0 not in {trial.index for trial in load_finished(storage, NAME)}
