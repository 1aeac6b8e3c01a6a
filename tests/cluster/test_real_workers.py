# SPDX-License-Identifier: Apache-2.0
"""The real thing on a pico model: a run with a child, workers that join, the wrong worker (R-CLI-13, REL-15)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heretic.study.catalogue import load_finished
from heretic.study.sharing import Terms, claims_of, share, visit_study
from heretic.study.space import canonical_key
from tests.end_to_end.world import World, base_run, data_flags, enter, make_world

from .conftest import PASSWORD

pytestmark = [pytest.mark.loopback, pytest.mark.timeout(280)]
STUDY = "heretic_study"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("template"))


@pytest.fixture
def world(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> World:
    return enter(template, tmp_path / "world", monkeypatch, capsys)


def worker_command(*more: str) -> list[str]:
    return [sys.executable, "-m", "heretic.cli", "worker", "--model=model", *data_flags(), "--offline", *more]


def start_worker(storage: str, *more: str) -> subprocess.Popen[str]:
    """A worker as another terminal would start it; the address goes through the environment."""
    environment = {**os.environ, "HERETIC_STORAGE": storage, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        worker_command(f"--study-name={STUDY}", *more),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def set_trials(storage: str, trials: int) -> None:
    with visit_study(storage, STUDY) as study:
        share(study, Terms(trials, lease_seconds=60))


def run_with(storage: str, monkeypatch: pytest.MonkeyPatch, world: World, *more: str) -> None:
    """`heretic model --workers 2` here, with the storage given by the environment."""
    monkeypatch.setenv("HERETIC_STORAGE", storage)
    words = [word for word in base_run(*more) if not word.startswith("--storage")]
    told = world.heretic(*words, "--json")
    assert told.code in (0, 3), told.err
    assert told.document["study"]["ended"] == "finished" and (world.folder / "out").is_dir()
    assert PASSWORD not in told.out + told.err
    assert not [line for line in told.document["degradations"] if line.startswith("Worker")]


@pytest.mark.parametrize(
    "storage", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_a_run_with_a_child_and_two_workers_that_join(
    storage: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-SEA-15, R-CLI-13: the child ends well; then two workers share what a longer study needs, and no point twice."""
    if storage.startswith("sqlite"):
        # So that the child, which is still loading when four trials are done, is seen to end by itself.
        monkeypatch.setattr("heretic.phases.workers.FINISH_S", 90.0)
    run_with(storage, monkeypatch, world, "--workers=2")
    if storage.startswith("sqlite"):
        (log,) = (world.folder.parent).glob("s.db.*.worker-1.log")
        assert "the study has 4; finished" in log.read_text()
    first = load_finished(storage, STUDY)
    set_trials(storage, 14)
    helpers = [start_worker(storage), start_worker(storage)]
    told = [helper.communicate(timeout=200) for helper in helpers]
    assert [helper.returncode for helper in helpers] == [0, 0], told
    lines = [re.findall(r"^trial (\d+): rate .*KL", out, re.M) for out, _ in told]
    finished = load_finished(storage, STUDY)
    assert len(finished) == 14 and finished[:4] == first
    assert sorted(int(index) for each in lines for index in each) == list(range(4, 14)), "one line per trial"
    assert all(lines), "control: both took part"
    assert len({canonical_key(trial.parameters) for trial in finished}) == 14
    everything = "".join(out + error for out, error in told)
    assert PASSWORD not in everything
    for path in (path for path in world.folder.rglob("*") if path.is_file()):
        assert PASSWORD.encode() not in path.read_bytes(), f"{path} holds the password"


def test_a_worker_with_other_inputs_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R-CLI-13: exit 2 listing what differs, after which the study is as it was."""
    storage = f"sqlite:///{world.folder}/study.db"
    run_with(storage, monkeypatch, world, "--workers=1")
    told = world.heretic(*worker_command()[3:], f"--study-name={STUDY}", "--max-response-length=9")
    assert told.code == 2 and "FingerprintMismatchError" not in told.err
    assert "settings.max_response_length: stored 8, now 9" in told.err
    missing = world.heretic(*worker_command()[3:], "--study-name=heretic_stduy")
    assert missing.code == 2 and "'heretic_study'" in missing.err
    nowhere = world.heretic(*worker_command()[3:], "--storage=")
    assert nowhere.code == 2 and "--storage URL" in nowhere.err
    assert len(load_finished(storage, STUDY)) == 4


@pytest.mark.slow
def test_a_terminated_worker_gives_its_trials_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-R06: SIGTERM leaves with 143, stores what is finished and holds nothing; Ctrl-C likewise with 130."""
    storage = f"sqlite:///{world.folder}/study.db"
    run_with(storage, monkeypatch, world, "--workers=1")
    set_trials(storage, 5000)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        helper = start_worker(storage)
        before, deadline = len(load_finished(storage, STUDY)), time.monotonic() + 120
        while len(load_finished(storage, STUDY)) < before + 2:
            assert helper.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        helper.send_signal(number)
        out, error = helper.communicate(timeout=30)
        assert helper.returncode == code, error
        assert "Traceback" not in error
        with visit_study(storage, STUDY) as study:
            claims = claims_of(study, "").all()
        assert not [claim for claim in claims.values() if claim.unfinished and claim.owner]
        assert out.count("trial ") == len(load_finished(storage, STUDY)) - before
    unlocked = world.heretic("study", "unlock", STUDY)
    assert unlocked.code == 0 and "0 open trials were given back; 0 are held" in unlocked.out


def test_the_wish_for_workers_without_a_storage_is_refused_before_loading(world: World) -> None:
    told = world.heretic("model", *data_flags(), "--workers=2", "--storage=", "--offline")
    assert told.code == 2 and "--workers" in told.err and "storage" in told.err
