# SPDX-License-Identifier: Apache-2.0
"""SIGKILL and resume: the sequence and the choice of an uninterrupted run (REL-01, R-SEA-23).

This file is also the program that gets killed: `python test_study_kill.py FOLDER BATCH TRIALS [POINT]`.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from heretic.study.catalogue import load_finished
from heretic.study.ledger import FileLedger
from heretic.study.runner import run_study
from heretic.study.selection import Limits, select
from heretic.study.space import canonical_key, default_space
from heretic.study.state import open_study
from heretic.study.types import FinishedTrial, Proposal, Scores

SPACE = default_space(("attn.o_proj", "mlp.down_proj"), 6)
LIMITS = Limits(0.3)


def measure(proposal: Proposal) -> Scores:
    weights = [
        float(proposal.parameters[f"{name}.max_weight"] or 0.0) for name in ("attn.o_proj", "mlp.down_proj")
    ]
    rate = math.exp(-weights[0] - 0.7 * weights[1])
    divergence = 0.1 * weights[0] ** 2 + 0.2 * weights[1] ** 2 + 1e-3
    figures = {"rate": rate, "hits": round(200 * rate), "n": 200, "kl_mean": divergence}
    return Scores((rate, divergence), {"effect": rate - 0.9, "guard": divergence - 0.6}, figures)


def program(
    folder: Path, batch: int, trials: int, die: Callable[[str, int], None], retries: int = 1000
) -> None:
    """One run; `die(point, index)` is asked at each point where a kill is to be tried."""

    def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        with (folder / "evaluated").open("a") as record:
            record.writelines(
                f"{proposal.index} {canonical_key(proposal.parameters)}\n" for proposal in proposals
            )
        time.sleep(0.002)
        die("evaluate", proposals[-1].index)
        return [measure(proposal) for proposal in proposals]

    append = FileLedger.append

    def append_and_die(self: FileLedger, record: Mapping[str, Any]) -> None:
        append(self, record)
        die("ledger", int(record["index"]))

    def acknowledge(index: int) -> None:
        descriptor = os.open(folder / "acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{index}\n".encode())
        os.fsync(descriptor)
        os.close(descriptor)
        die("told", index)

    FileLedger.append = append_and_die  # type: ignore[method-assign]  # the crash point, in the doomed process only
    try:
        with open_study(f"sqlite:///{folder}/s.db", "s", fingerprint={"seed": 1}) as study:
            run_study(
                study,
                evaluate,
                space=SPACE,
                seed=1,
                n_trials=trials,
                batch_size=batch,
                n_startup_trials=min(6, trials // 3),
                max_trial_retries=retries,
                on_told=acknowledge,
            )
    finally:
        FileLedger.append = append  # type: ignore[method-assign]  # as above


def main(folder: str, batch: str, trials: str, point: str = "", index: str = "-1") -> None:
    def die(where: str, at: int) -> None:
        if where == point and at == int(index):
            os.kill(os.getpid(), signal.SIGKILL)

    program(Path(folder), int(batch), int(trials), die)


@pytest.fixture
def folders() -> Iterator[Callable[[], Path]]:
    """Folders in memory where there are some: a SIGKILL loses nothing that the kernel has."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:

        def make() -> Path:
            return Path(tempfile.mkdtemp(dir=root))

        yield make


def launch(folder: Path, batch: int, trials: int, *point: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, str(folder), str(batch), str(trials), *point]
    return subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": str(random.randrange(1000))})


def acknowledged(folder: Path) -> list[int]:
    file = folder / "acknowledged"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def dump(folder: Path) -> bytes:
    trials = load_finished(f"sqlite:///{folder}/s.db", "s")
    choice = select(trials, LIMITS)
    return repr(([(t.index, t.parameters, t.scores) for t in trials], choice.winner, choice.reason)).encode()


def running_rows(folder: Path) -> int:
    with sqlite3.connect(folder / "s.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone()
    connection.close()
    return int(count)


def assert_like(folder: Path, reference: Path, kills: int, batch: int, trials: int) -> None:
    told = acknowledged(folder)
    stored = [trial.index for trial in load_finished(f"sqlite:///{folder}/s.db", "s")]
    assert set(told) <= set(stored) and stored == list(range(trials)), "no acknowledged trial is lost"
    assert dump(folder) == dump(reference)
    assert running_rows(folder) == 0
    lines = (folder / "evaluated").read_text().splitlines()
    assert len(lines) <= trials + kills * batch, "at most one batch is evaluated again per kill"
    keys = {line.split(" ", 1)[1] for line in lines}
    assert len(keys) == trials, "distinct parameter sets: 100 %"


def never(point: str, index: int) -> None:
    pass


def test_rel_01_three_kills_at_chosen_points(folders: Callable[[], Path]) -> None:
    """Inside a pass, between ledger and tell, and after a tell in the middle of a batch."""
    reference, victim = folders(), folders()
    program(reference, 8, 24, never)
    for point in (("evaluate", "7"), ("ledger", "12"), ("told", "18")):
        process = launch(victim, 8, 24, *point)
        assert process.wait(60) == -signal.SIGKILL
        assert running_rows(victim) > 0, "control: the kill came inside a batch"
    program(victim, 8, 24, never)
    assert_like(victim, reference, kills=3, batch=8, trials=24)


@pytest.mark.parametrize("batch", [1, 4])
def test_rel_01_kill_at_a_random_moment(folders: Callable[[], Path], batch: int) -> None:
    generator = random.Random(batch)
    reference, victim = folders(), folders()
    program(reference, batch, 16, never)
    process, target = launch(victim, batch, 16), generator.randrange(5, 13)
    while process.poll() is None and len(acknowledged(victim)) < target:
        time.sleep(0.002)
    time.sleep(generator.random() * 0.02)
    process.kill()
    process.wait()
    program(victim, batch, 16, never)
    assert_like(victim, reference, kills=1, batch=batch, trials=16)


def test_rel_01_control_failing_orphans_changes_the_sequence(folders: Callable[[], Path]) -> None:
    """The mutant of REL-01: rows of the cut batch are failed and asked again, not adopted. It must be
    noticed.
    """
    reference, victim = folders(), folders()
    program(reference, 8, 24, never)

    class Cut(BaseException):
        pass

    def die(point: str, index: int) -> None:
        if (point, index) == ("told", 12):
            raise Cut

    with pytest.raises(Cut):
        program(victim, 8, 24, die)
    with sqlite3.connect(victim / "s.db") as connection:
        orphans = "SELECT trial_id FROM trials WHERE state = 'RUNNING'"
        connection.execute(f"DELETE FROM trial_user_attributes WHERE trial_id IN ({orphans})")
        connection.execute("UPDATE trials SET state = 'FAIL' WHERE state = 'RUNNING'")
    connection.close()
    program(victim, 8, 24, never)
    assert dump(victim) != dump(reference)


if __name__ == "__main__":
    main(*sys.argv[1:])
