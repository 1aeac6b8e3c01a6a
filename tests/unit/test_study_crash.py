# SPDX-License-Identifier: Apache-2.0
"""Interrupted at any write, locked or inconsistent: the search loop loses nothing (REL-01, A01, A06, A07)."""

from __future__ import annotations

import logging
import math
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heretic.exceptions import StudyCorruptError
from heretic.study.asker import Asker
from heretic.study.ledger import FileLedger
from heretic.study.runner import StudyOutcome, run_study
from heretic.study.space import default_space
from heretic.study.state import Study, open_study
from heretic.study.types import FinishedTrial, Json, Proposal, Scores, TrialFailure

SPACE = default_space(("attn.o_proj", "mlp.down_proj"), 8)
FINGERPRINT: dict[str, Json] = {"model": "m", "seed": 3}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: these tests are about order, not about the speed of a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def measure(proposal: Proposal) -> Scores:
    """A cheap landscape: strong edits lower the behaviour and raise the KL."""
    attention = float(proposal.parameters["attn.o_proj.max_weight"] or 0.0)
    dense = float(proposal.parameters["mlp.down_proj.max_weight"] or 0.0)
    rate = math.exp(-attention - 0.7 * dense)
    divergence = 0.1 * attention**2 + 0.2 * dense**2 + 1e-3
    hits = round(100 * rate)
    measured = {"rate": rate, "hits": hits, "n": 100, "kl_mean": divergence}
    return Scores((rate, divergence), {"effect": rate - 0.9, "guard": divergence - 0.5}, measured)


class Landscape:
    """Evaluates proposals and remembers which."""

    def __init__(self) -> None:
        self.evaluated: list[Proposal] = []
        self.seen: list[int] = []

    def __call__(
        self, proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> list[Scores | TrialFailure]:
        self.evaluated += proposals
        self.seen.append(len(finished))
        # What a result knows of earlier trials must not depend on where the process was cut.
        results = [measure(proposal) for proposal in proposals]
        known = {"known": len(finished)}
        return [replace(result, measured={**result.measured, **known}) for result in results]


def run(study: Study, evaluate: Any, n_trials: int, **options: Any) -> StudyOutcome:
    settings: dict[str, Any] = {"space": SPACE, "seed": 3, "batch_size": 4, "n_startup_trials": 8, **options}
    return run_study(study, evaluate, n_trials=n_trials, **settings)


def in_memory() -> Study:
    return open_study(None, fingerprint=FINGERPRINT)


def in_file(folder: Path, **options: Any) -> Study:
    return open_study(f"sqlite:///{folder}/s.db", "s", fingerprint=FINGERPRINT, **options)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def dump(study: Study) -> list[Any]:
    return [(t.index, t.parameters, t.scores) for t in study.finished_trials()]


@pytest.mark.parametrize("point", ["ledger", "rows"])
def test_lost_tell_is_taken_from_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A result whose tell was lost is told from the ledger; so also if the row itself is lost."""
    reference = in_memory()
    run(reference, Landscape(), 8)
    original = FileLedger.append

    def append_then_die(self: FileLedger, record: Any) -> None:
        original(self, record)
        if record["index"] == 5:
            raise Killed

    first = Landscape()
    monkeypatch.setattr(FileLedger, "append", append_then_die)
    with in_file(tmp_path) as study, pytest.raises(Killed):
        run(study, first, 8)
    monkeypatch.undo()
    if point == "rows":  # as after a power loss that took the batch from the database, not from the ledger
        with sqlite3.connect(tmp_path / "s.db") as connection:
            for table in ("trial_values", "trial_params", "trial_user_attributes", "trial_system_attributes"):
                ids = "SELECT trial_id FROM trials WHERE number >= 4"
                connection.execute(f"DELETE FROM {table} WHERE trial_id IN ({ids})")
            connection.execute("DELETE FROM trials WHERE number >= 4")
        connection.close()
    second = Landscape()
    with in_file(tmp_path) as study:
        run(study, second, 8)
        assert [trial.index for trial in study.finished_trials()] == list(range(8))
        assert dump(study) == dump(reference)
        assert [proposal.index for proposal in second.evaluated] == [6, 7], "4 and 5 are not measured again"
        assert not any(row.state.name == "RUNNING" for row in study.inner.trials)


def crash_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The process "dies" just before write number `count` to the database.

    In twelve trials by fours: 0 to 4 set the study up, 5 to 20 are a batch (4 rows created, 12 writes told),
    21 its successor, ....
    """
    from optuna.storages import RDBStorage

    left = [count]

    def limited(method: Any) -> Any:
        def write(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return method(*arguments, **options)

        return write

    for name in (
        "create_new_trial",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "set_trial_state_values",
        "set_study_user_attr",
    ):
        monkeypatch.setattr(RDBStorage, name, limited(getattr(RDBStorage, name)))


@pytest.mark.parametrize("count", [0, 3, 6, 14, 21, 24, 25, 31, 35, 41, 42, 54])
def test_rel_01_crash_before_any_write_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    reference = in_memory()
    run(reference, Landscape(), 12, n_startup_trials=4)
    crash_at(monkeypatch, count)
    with pytest.raises(Killed), in_file(tmp_path) as study:
        run(study, Landscape(), 12, n_startup_trials=4)
        raise Killed
    monkeypatch.undo()
    with in_file(tmp_path) as study:
        run(study, Landscape(), 12, n_startup_trials=4)
        assert dump(study) == dump(reference)
        assert not any(row.state.name == "RUNNING" for row in study.inner.trials)


def test_a01_a_trial_that_kills_its_process_is_failed_at_last(tmp_path: Path) -> None:
    def deadly(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        if any(proposal.index == 1 for proposal in proposals):
            raise Killed
        return [measure(proposal) for proposal in proposals]

    for _ in range(3):  # the first attempt and two retries
        with in_file(tmp_path) as study, pytest.raises(Killed):
            run(study, deadly, 4, batch_size=1)
    with in_file(tmp_path) as study:
        outcome = run(study, deadly, 4, batch_size=1)
    assert list(outcome.failed) == [1] and "ended 3 times" in outcome.failed[1]
    assert [trial.index for trial in outcome.finished] == [0, 2, 3, 4]


def test_a_row_that_differs_from_the_ledger_is_corruption(tmp_path: Path) -> None:
    with in_file(tmp_path) as study:
        run(study, Landscape(), 2)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, '100', '101')"
            " WHERE key = 'scores'"
        )
    connection.close()
    with in_file(tmp_path) as study, pytest.raises(StudyCorruptError):
        run(study, Landscape(), 4)


def test_reliability_a06_a_locked_database_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program holds the database around the tells; the run waits, notes it and loses nothing."""
    landscape = Landscape()
    blocker = sqlite3.connect(tmp_path / "s.db", timeout=0, isolation_level=None, check_same_thread=False)
    tries = [0]

    def evaluate(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> Sequence[Scores | TrialFailure]:
        if not finished:
            blocker.execute("BEGIN EXCLUSIVE")
        return landscape(proposals, finished)

    def release(record: logging.LogRecord) -> bool:
        if "locked" in record.getMessage():
            tries[0] += 1
            blocker.execute("ROLLBACK")
        return True

    logger = logging.getLogger("heretic.study")
    logger.addFilter(release)
    try:
        with in_file(tmp_path, timeout_s=0.2) as study:
            outcome = run(study, evaluate, 8)
    finally:
        logger.removeFilter(release)
        blocker.close()
    assert tries[0] == 1 and len(outcome.finished) == 8 and len(landscape.evaluated) == 8


def test_rel_r03_adopted_rows_leave_the_next_proposals_unchanged() -> None:
    """A batch of eight cut after any number of asks: the rest is asked as if nothing had happened."""
    study = in_memory()
    run(study, Landscape(), 24, batch_size=8)
    rows, finished = study.inner.trials, study.finished_trials()
    told = [(trial.index, row, trial.scores) for row, trial in zip(rows, finished, strict=True)]

    def history() -> Asker:
        asker = Asker(SPACE, seed=3, sampler="tpe", n_startup_trials=8, warm_start=())
        for index, row, scores in told:
            asker.replay(index, row, scores)
        return asker

    whole = history()
    batch = [whole.ask(index, 24) for index in range(24, 32)]
    for cut in range(1, 8):
        resumed = history()
        for index in range(24, 24 + cut):
            resumed.replay(index, batch[index - 24], None)
        for index in range(24 + cut, 32):
            assert resumed.ask(index, 24).user_attrs == batch[index - 24].user_attrs
    lonely = history()  # control: without the open rows the constant liar proposes something else
    # (an even index: odd ones refine finished trials and do not look at open rows)
    assert lonely.ask(30, 24).user_attrs != batch[6].user_attrs
