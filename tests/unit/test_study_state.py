# SPDX-License-Identifier: Apache-2.0
"""Opening, resuming, renaming and refusing studies (R-SEA-20 to R-SEA-24, reliability section A)."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from heretic.exceptions import (
    ConfigurationError,
    DiskSpaceError,
    FingerprintMismatchError,
    StorageError,
    StudyCorruptError,
    StudyLockedError,
    StudyNotFoundError,
)
from heretic.study.catalogue import delete_study, list_studies, load_finished
from heretic.study.ledger import FileLedger
from heretic.study.records import differences
from heretic.study.runner import run_study
from heretic.study.state import Study, open_study
from heretic.study.storage import Location, explained, file_system_of, locate, patiently
from heretic.study.types import Dimension, FinishedTrial, Json, Proposal, Scores

FIRST: dict[str, Json] = {"model": {"id": "m", "commit": "1"}, "seed": 0}
OTHER: dict[str, Json] = {"model": {"id": "m", "commit": "2"}, "seed": 0, "goal": "induce"}
SPACE = (Dimension("x", "float", 0.0, 1.0), Dimension("y", "float", 0.0, 1.0))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: these tests do not depend on the speed of a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
    return [
        Scores(
            (float(p.parameters["x"] or 0), float(p.parameters["y"] or 0)), {"c": -1.0}, {"text": "n\u00e9"}
        )
        for p in proposals
    ]


def run(study: Study, n_trials: int) -> tuple[FinishedTrial, ...]:
    return run_study(
        study, evaluate, space=SPACE, seed=0, n_trials=n_trials, batch_size=2, sampler="qmc"
    ).finished


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/s.db"


def made(folder: Path, name: str = "s", n_trials: int = 2, **options: Any) -> tuple[FinishedTrial, ...]:
    with open_study(url(folder), name, **{"fingerprint": FIRST, **options}) as study:
        return run(study, n_trials)


def test_r_sea_21_auto_continues_and_fail_and_continue_refuse(tmp_path: Path) -> None:
    with pytest.raises(StudyNotFoundError):
        made(tmp_path, resume="continue")
    trials = made(tmp_path)
    with open_study(url(tmp_path), "s", fingerprint=FIRST) as study:
        assert not study.created and study.finished_trials() == trials and study.fingerprint == FIRST
    assert made(tmp_path, resume="continue", n_trials=4)[:2] == trials
    with pytest.raises(ConfigurationError):
        made(tmp_path, resume="fail")
    with pytest.raises(StudyNotFoundError) as error:
        made(tmp_path, name="ss", resume="continue")
    assert error.value.exit_code == 2 and "'s'" in str(error.value.hint)


def test_r_cli_51_fresh_renames_and_deletes_nothing(tmp_path: Path) -> None:
    old = made(tmp_path)
    with open_study(url(tmp_path), "s", fingerprint=OTHER, resume="fresh") as study:
        assert study.created and study.finished_trials() == () and "'s-1'" in study.notes[0]
        run(study, 1)
    made(tmp_path, resume="fresh")
    assert {summary.name: summary.finished for summary in list_studies(url(tmp_path))} == {
        "s": 2,
        "s-1": 2,
        "s-2": 1,
    }
    assert load_finished(url(tmp_path), "s-1") == old
    with open_study(url(tmp_path), "s-1", fingerprint=FIRST) as study:
        assert run(study, 4)[:2] == old, "the renamed study goes on, with its own ledger"


def test_a05_explicit_name_with_another_fingerprint_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    before = (tmp_path / "s.db").read_bytes()
    with pytest.raises(FingerprintMismatchError) as error:
        made(tmp_path, fingerprint=OTHER)
    assert error.value.exit_code == 2
    assert error.value.details == ('goal: not stored, now "induce"', 'model.commit: stored "1", now "2"')
    assert "--study-name" in str(error.value.hint) and "--resume fresh" in str(error.value.hint)
    assert (tmp_path / "s.db").read_bytes() == before, "the file is unchanged"
    made(tmp_path)  # control: the same settings go on


def test_r_sea_22_default_name_opens_another_study_and_says_so(tmp_path: Path) -> None:
    made(tmp_path, default_name=True)
    with pytest.raises(FingerprintMismatchError):
        made(tmp_path, fingerprint=OTHER, default_name=True, resume="continue")
    with open_study(url(tmp_path), "s", fingerprint=OTHER, default_name=True) as study:
        name = study.name
        assert name.startswith("s-") and len(name) == 10 and study.created
        assert name in study.notes[0] and "model.commit" in study.notes[0]
        run(study, 1)
        with open_study(url(tmp_path), "s", fingerprint=FIRST) as first:  # the base study is free
            assert first.name == "s"
    with open_study(url(tmp_path), "s", fingerprint=OTHER, default_name=True, resume="continue") as study:
        assert study.name == name and len(study.finished_trials()) == 1


def test_differences_names_every_kind() -> None:
    assert differences({"a": 1, "b": [1]}, {"a": True, "b": [1]}) == ["a: stored 1, now true"]
    assert differences({"a": {"x": None}}, {"a": {}}) == ["a.x: stored null, now absent"]
    assert differences(FIRST, FIRST) == []


def test_a02_a_study_without_fingerprint(tmp_path: Path) -> None:
    """Killed between creation and fingerprint: completed. With trials but no fingerprint: not ours."""
    optuna.create_study(study_name="s", storage=url(tmp_path), directions=["minimize"] * 2)
    with open_study(url(tmp_path), "s", fingerprint=FIRST) as study:
        assert study.created and run(study, 1)
    foreign = optuna.create_study(study_name="foreign", storage=url(tmp_path), directions=["minimize"] * 2)
    foreign.tell(foreign.ask(), [1.0, 1.0])
    with pytest.raises(StudyCorruptError):
        made(tmp_path, name="foreign")


def test_r_sea_24_other_schema_is_refused_by_number(tmp_path: Path) -> None:
    made(tmp_path)
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute(
            "UPDATE study_user_attributes SET value_json = replace(value_json, ?, ?)",
            ('"schema": 1', '"schema": 9'),
        )
    connection.close()
    with pytest.raises(StorageError) as error:
        made(tmp_path)
    assert "schema version 9" in error.value.message


def test_artefacts_survive(tmp_path: Path) -> None:
    with open_study(url(tmp_path), "s", fingerprint=FIRST) as study:
        assert study.attribute("noise_floor") is None
        study.set_attribute("noise_floor", {"kl": 1e-5, "widths": [1, 8]})
        with pytest.raises(StorageError) as error:
            study.set_attribute("bad", {"inner": float("nan")})
        assert "bad.inner" in error.value.message
    with open_study(url(tmp_path), "s", fingerprint=FIRST) as study:
        assert study.attribute("noise_floor") == {"kl": 1e-5, "widths": [1, 8]}
        assert study.attribute("bad") is None


def test_a04_a_second_opening_is_refused(tmp_path: Path) -> None:
    with open_study(url(tmp_path), "s", fingerprint=FIRST):
        with pytest.raises(StudyLockedError):
            open_study(url(tmp_path), "s", fingerprint=FIRST)
        with open_study(url(tmp_path), "another", fingerprint=FIRST) as other:
            assert other.created
        with pytest.raises(StudyLockedError):
            delete_study(url(tmp_path), "s")
    with open_study(url(tmp_path), "s", fingerprint=FIRST) as study:
        assert not study.created


def test_list_load_delete(tmp_path: Path) -> None:
    assert list_studies(url(tmp_path)) == () and not (tmp_path / "s.db").exists(), "reading creates nothing"
    with pytest.raises(StudyNotFoundError):
        load_finished(url(tmp_path), "s")
    trials = made(tmp_path)
    made(tmp_path, name="keep")
    assert load_finished(url(tmp_path), "s") == trials
    delete_study(url(tmp_path), "s")
    assert [summary.name for summary in list_studies(url(tmp_path))] == ["keep"]
    assert len(list(tmp_path.glob("*.ledger.jsonl"))) == 1
    with pytest.raises(StudyNotFoundError):
        delete_study(url(tmp_path), "s")


def test_a07_damaged_files_are_refused_and_untouched(tmp_path: Path) -> None:
    made(tmp_path, n_trials=6)
    file = tmp_path / "s.db"
    whole = file.read_bytes()
    generator = random.Random(0)
    damaged = [b"plain text, not a database", b"\x00" * 5000, b""]
    damaged += [whole[: generator.randrange(1, len(whole) - 1)] for _ in range(20)]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(StudyCorruptError):
            open_study(url(tmp_path), "s", fingerprint=FIRST)
        with pytest.raises(StudyCorruptError):
            list_studies(url(tmp_path))
        assert file.read_bytes() == content
    file.write_bytes(whole)
    assert len(made(tmp_path, n_trials=6)) == 6, "control: the whole file opens"


def test_an_empty_file_without_ledger_is_an_interrupted_creation(tmp_path: Path) -> None:
    (tmp_path / "s.db").touch()
    assert len(made(tmp_path)) == 2


def test_a15_paths_that_cannot_work_are_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        open_study(f"sqlite:///{tmp_path}/missing/s.db", "s", fingerprint=FIRST)
    assert "missing" in error.value.message
    if Path("/sys/kernel").is_dir():  # a folder in which even root cannot create a file
        with pytest.raises(StorageError):
            open_study("sqlite:////sys/kernel/s.db", "s", fingerprint=FIRST)
    table = "22 1 0:1 / / rw - ext4 /dev/vda rw\n30 22 0:2 / /mnt/share rw - nfs4 host:/x rw\n"
    (tmp_path / "mounts").write_text(table)
    assert file_system_of(Path("/mnt/share/deep"), tmp_path / "mounts") == "nfs4"
    assert file_system_of(Path("/mnt/shared"), tmp_path / "mounts") == "ext4"


def test_x04_addresses() -> None:
    for wrong in ("not a url", "redis://host", "mysql://host/db"):
        with pytest.raises(ConfigurationError):
            locate(wrong)
    for memory in (None, "", "sqlite://", "sqlite:///:memory:"):
        assert locate(memory).url is None
    postgres = locate("postgresql+psycopg://user:secret@host/db")
    assert postgres.url is not None and postgres.file is None and "secret" not in postgres.shown()


def sqlite_error(kind: type[sqlite3.Error], code: int) -> sqlite3.Error:
    error = kind("text that nobody reads")
    error.sqlite_errorcode = code
    return error


def test_x02_x03_errors_are_told_apart_by_code(tmp_path: Path) -> None:
    location = Location(url(tmp_path), tmp_path / "s.db")
    cases = {
        sqlite3.SQLITE_BUSY: (StorageError, True),
        sqlite3.SQLITE_FULL: (DiskSpaceError, True),
        sqlite3.SQLITE_READONLY: (StorageError, None),
        sqlite3.SQLITE_NOTADB: (StudyCorruptError, None),
        sqlite3.SQLITE_BUSY | 2 << 8: (StorageError, True),
    }
    for code, (kind, transient) in cases.items():
        cause = sqlite_error(sqlite3.OperationalError, code)
        wrapped = optuna.exceptions.StorageInternalError("the value is too long")
        wrapped.__cause__ = cause
        found = explained(wrapped, location)
        assert type(found) is kind and found.data.get("transient") is transient


def test_a06_patience_has_an_end_and_notes_its_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def busy() -> None:
        raise sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_BUSY)

    location = Location(url(tmp_path), tmp_path / "s.db")
    with caplog.at_level("WARNING", logger="heretic.study"), pytest.raises(StorageError):
        patiently(busy, location, patience_s=100.0, sleep=sleep, clock=lambda: now[0])
    assert now[0] == pytest.approx(100.0) and len(caplog.records) == 4, "one note at once, then every 30 s"

    def refused() -> None:
        now.append(0.0)
        raise sqlite_error(sqlite3.OperationalError, sqlite3.SQLITE_READONLY)

    with pytest.raises(StorageError):
        patiently(refused, location, sleep=sleep, clock=lambda: now[0])
    assert len(now) == 2, "what cannot pass is not repeated"


def test_ledger_survives_torn_and_foreign_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    ledger = FileLedger(path, "study-a")
    ledger.append({"index": 0, "parameters": {}, "failure": "x"})
    ledger.append({"index": 1, "parameters": {}, "failure": "y"})
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, whole.index(b'"index":1'), -7):  # killed while writing line 1
        path.write_bytes(whole[:cut])
        again = FileLedger(path, "study-a")
        assert again.entry(0) is not None and again.entry(1) is None
        again.append({"index": 1, "parameters": {}, "failure": "z"})
        repaired = FileLedger(path, "study-a").entry(1)
        assert repaired is not None and repaired["failure"] == "z"
    path.write_bytes(whole.replace(b'"failure":"x"', b'"failure":"w"'))
    damaged = FileLedger(path, "study-a")
    assert damaged.entry(0) is None and damaged.entry(1) is not None, "a flipped line is not believed"
    other = FileLedger(path, "study-b")
    assert other.entry(1) is None and (tmp_path / "l.jsonl.old-1").exists(), "kept, not replayed, not deleted"
