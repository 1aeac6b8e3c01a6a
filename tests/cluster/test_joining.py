# SPDX-License-Identifier: Apache-2.0
"""Sharing a study, joining it, giving leases back, and an outage of the server (R-CLI-09, R-CLI-13, A17, A19)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest

from heretic.exceptions import (
    ConfigurationError,
    FingerprintMismatchError,
    StorageError,
    StudyLockedError,
    StudyNotFoundError,
)
from heretic.study.catalogue import delete_study, list_studies, load_finished
from heretic.study.claims import NOBODY, OPEN, Claims, NewClaim, has_claims
from heretic.study.records import scores_record
from heretic.study.runner import run_study
from heretic.study.sharing import Terms, claims_of, join_study, keep_file, kept_file, share, terms_of
from heretic.study.state import Study, open_study
from heretic.study.storage import locate, opening
from heretic.study.types import FinishedTrial, Proposal, Scores
from heretic.study.unlocking import return_expired
from heretic.study.watch import Watch, is_gone, new_owner
from heretic.study.workers import search_shared

from .conftest import PASSWORD, Server
from .worker_program import FINGERPRINT, NAME, SPACE, create, measure, work

pytestmark = pytest.mark.loopback


def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
    return [measure(proposal) for proposal in proposals]


def join(storage: str, trials: int = 4) -> Study:
    return join_study(storage, NAME, fingerprint=FINGERPRINT, terms=Terms(trials))


def test_other_inputs_are_refused_by_name(storage: str) -> None:
    """R-CLI-13: exit 2, listing what differs; control: the same inputs join."""
    create(storage, Terms(4))
    with pytest.raises(FingerprintMismatchError, match="2 differ") as refused:
        join_study(storage, NAME, fingerprint={"seed": 2, "model": "m"}, terms=Terms(4))
    assert refused.value.exit_code == 2
    assert refused.value.details == ('model: not stored, now "m"', "seed: stored 1, now 2")
    assert PASSWORD not in f"{refused.value} {refused.value.details}"
    join(storage).close()


def test_a_study_that_is_not_there_is_named_with_near_ones(storage: str) -> None:
    create(storage, Terms(4))
    with pytest.raises(StudyNotFoundError) as refused:
        join_study(storage, "ss", fingerprint=FINGERPRINT, terms=Terms(4))
    assert "'s'" in str(refused.value.hint) and PASSWORD not in str(refused.value)
    with pytest.raises(ConfigurationError, match="other processes"):
        join_study("", NAME, fingerprint=FINGERPRINT, terms=Terms(4))


def test_a_study_of_one_owner_is_continued_by_workers_without_a_repetition(tmp_path: Path) -> None:
    """A run that searched alone was interrupted; with --workers 2 nothing is lost and nothing done again."""
    storage = f"sqlite:///{tmp_path}/s.db"
    with open_study(storage, NAME, fingerprint=FINGERPRINT) as study:
        run_study(study, evaluate, space=SPACE, seed=1, n_trials=5, batch_size=2, n_startup_trials=6)
        before = study.finished_trials()
        left_open, told_to_ledger = _rows_of_a_killed_process(study)
        share(study, Terms(9))
        told = work(storage, tmp_path, batch=2)
    finished = load_finished(storage, NAME)
    assert finished[:5] == before and len(finished) == 9
    by_index = {trial.index: trial for trial in finished}
    assert by_index[left_open.index].parameters == left_open.parameters and left_open.index in told
    assert by_index[told_to_ledger.index].scores == measure(told_to_ledger)
    assert told_to_ledger.index not in told, "its result was in the ledger and is not measured again"


def _rows_of_a_killed_process(study: Study) -> tuple[Proposal, Proposal]:
    """Two rows left RUNNING, one of which has its result in the ledger."""
    made = []
    for index in (5, 6):
        parameters = {**study.finished_trials()[1].parameters, "attn.o_proj.max_weight": 0.1 * index}
        attributes = {"proposal": {"index": index, "parameters": parameters}}
        row = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs=attributes)
        number = study.rows.create_new_trial(study.inner._study_id, template_trial=row)
        made.append(Proposal(index, parameters))
    scores = scores_record(measure(made[1]))
    study.ledger.append({"index": 6, "row": number, "parameters": dict(made[1].parameters), "scores": scores})
    return made[0], made[1]


def test_a_run_that_searches_alone_is_not_disturbed(tmp_path: Path) -> None:
    """A04: the kernel lock keeps a worker out; the message says how to let it in. Free, it may be joined."""
    storage = f"sqlite:///{tmp_path}/s.db"
    with open_study(storage, NAME, fingerprint=FINGERPRINT):
        with pytest.raises(StudyLockedError) as refused:
            join(storage)
        assert "--workers 2" in str(refused.value.hint) and str(os.getpid()) in str(refused.value)
    with join(storage) as study:
        assert terms_of(study) == Terms(4)
        outcome = search_shared(
            study, evaluate, space=SPACE, seed=1, batch_size=2, n_startup_trials=2, poll_s=0.01
        )
    assert [trial.index for trial in outcome.finished] == [0, 1, 2, 3]


def test_another_space_is_refused(storage: str, tmp_path: Path) -> None:
    create(storage, Terms(2))
    work(storage, tmp_path)
    with join(storage) as study, pytest.raises(FingerprintMismatchError, match="another space"):
        search_shared(study, evaluate, space=SPACE[:-1], seed=1, batch_size=2, n_startup_trials=6)


def test_claims_are_given_once(storage: str) -> None:
    """An index and a point go to one owner; a result is accepted from the present owner once (A18)."""
    create(storage, Terms(4))
    with join(storage) as study:
        one, two = claims_of(study, "one"), claims_of(study, "two")
        assert one.add([NewClaim(0, "p", {"a": 1.0})])
        assert one.add([NewClaim(0, "p", {"a": 1.0})]), "the repetition after a lost connection is ours"
        assert not two.add([NewClaim(1, "q", {}), NewClaim(0, "r", {})])
        assert not two.add([NewClaim(1, "p", {})])
        assert list(two.all()) == [0], "all or none"
        seen = two.all()[0]
        one.renew()
        assert not two.take(seen, count=True), "the owner has shown that it lives"
        assert two.take(two.all()[0], count=True)
        assert not one.tell(0, "complete", {})
        assert two.tell(0, "complete", {"x": 1}) and two.all()[0].pending
        assert not one.take(seen, count=True)
        assert (one.parameters(0), one.result(0), one.all()[0].handed_on) == ({"a": 1.0}, {"x": 1}, 1)


def test_many_threads_never_get_one_index_twice(storage: str) -> None:
    create(storage, Terms(4))
    with join(storage) as study:
        won: list[tuple[int, str]] = []

        def contend(owner: str) -> None:
            claims = claims_of(study, owner)
            for index in range(6):
                if claims.add([NewClaim(index, f"{index}-{owner}", {})]):
                    won.append((index, owner))

        threads = [threading.Thread(target=contend, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(index for index, _ in won) == list(range(6))
        assert dict(won) == {k: c.owner for k, c in claims_of(study, "").all().items()}


def test_only_a_counter_that_stands_still_for_the_observer_s_lease_expires(storage: str) -> None:
    """A17, on a clock that the test moves; a gap in the observation starts the time again (A19)."""
    create(storage, Terms(4))
    now = [1000.0]
    with join(storage) as study:
        owner, observer = claims_of(study, "elsewhere|1|x"), claims_of(study, "observer")
        owner.add([NewClaim(0, "p", {})])
        watch = Watch(180.0, lambda: now[0])

        def after(seconds: float) -> bool:
            now[0] += seconds
            watch.observe(observer.all())
            return watch.expired(observer.all()[0])

        assert not any(after(60) for _ in range(3))
        assert after(60), "control: silent for a whole lease"
        owner.renew()
        assert not any(after(60) for _ in range(3))
        assert not after(600), "the observer itself was away"
        assert not any(after(60) for _ in range(2)) and after(60)
        observer.take(observer.all()[0], count=False)
        observer.release()
        assert watch.expired(observer.all()[0]), "given back: at once"


def test_only_a_process_of_this_system_is_known_to_be_gone() -> None:
    place, pid, mark = new_owner().split("|")
    assert pid == str(os.getpid()) and not is_gone(f"{place}|{pid}|{mark}")
    assert is_gone(f"{place}|{2**22 + 1}|x")
    assert not is_gone(f"elsewhere/boot|{2**22 + 1}|x") and not is_gone(f"host/|{2**22 + 1}|x")


def test_unlock_returns_what_is_silent_and_leaves_what_lives(storage: str) -> None:
    """R-CLI-09."""
    create(storage, Terms(4, lease_seconds=20))
    now = [0.0]
    with join(storage) as study:
        dead, alive = claims_of(study, "away|1|x"), claims_of(study, "away|2|y")
        dead.add([NewClaim(0, "p", {})])
        alive.add([NewClaim(1, "q", {})])
        said: list[str] = []

        def wait(seconds: float) -> None:
            now[0] += seconds
            alive.renew()

        nobody = claims_of(study, NOBODY)
        counts = return_expired(nobody, Watch(20.0, lambda: now[0]), lease_s=20.0, wait=wait, say=said.append)
        assert counts == (1, 1) and now[0] == 20.0
        rows = nobody.all()
        assert (rows[0].owner, rows[0].state, rows[0].handed_on) == (NOBODY, OPEN, 1)
        assert rows[1].owner == "away|2|y"
        assert said[-1] == "Waiting for a sign of life from process 1 on away, at most 20 s."


def test_files_of_a_study_reach_workers_on_other_machines(storage: str) -> None:
    create(storage, Terms(4))
    with join(storage) as study:
        assert kept_file(study, "directions") is None
        keep_file(study, "directions", b"\x00\xff")
        assert kept_file(study, "directions") == b"\x00\xff"


def test_deleting_a_study_takes_its_claims_along(storage: str, tmp_path: Path) -> None:
    create(storage, Terms(2))
    work(storage, tmp_path)
    with join(storage) as study:
        claims = claims_of(study, "")
        engine = claims._engine
        assert has_claims(engine) and len(claims.all()) == 2
        study_id = claims._study_id
    delete_study(storage, NAME)
    create(storage, Terms(2))
    with join(storage) as study:
        assert Claims(claims_of(study, "")._engine, study.location, study_id, "", patience_s=0.0).all() == {}


def test_a_server_s_address_needs_no_driver_name_and_never_shows_its_password(database: str) -> None:
    """Dependencies, row "search": psycopg 3; REL-15."""
    location = locate(database)
    assert location.url is not None and location.url.startswith("postgresql+psycopg://")
    assert PASSWORD in location.url and PASSWORD not in location.shown()
    wrong = database.replace(PASSWORD, f"x{PASSWORD}")
    with pytest.raises(StorageError) as refused:
        open_study(wrong, NAME, fingerprint=FINGERPRINT)
    said = f"{refused.value} {refused.value.hint} {refused.value.details} {refused.value.data}"
    assert PASSWORD not in said and "127.0.0.1" in said
    with pytest.raises(ConfigurationError) as misspelt:
        locate(f"postgresql://user:{PASSWORD}@host:port/name")
    assert PASSWORD not in str(misspelt.value)


def test_tables_are_made_by_one_process_at_a_time(database: str) -> None:
    """Dependencies, row "search": processes that race on making tables destroy each other's."""
    location, order = locate(database), []

    def second() -> None:
        with opening(location):
            order.append("second")

    thread = threading.Thread(target=second)
    with opening(location):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_an_outage_shorter_than_the_patience_loses_nothing(
    server: Server, database: str, tmp_path: Path
) -> None:
    """A19: the server goes away in the middle and comes back."""
    create(database, Terms(12, lease_seconds=30))
    worker = threading.Thread(target=work, args=(database, tmp_path), kwargs={"pause_s": 0.2})
    worker.start()
    while (
        len((tmp_path / "evaluated").read_text().splitlines() if (tmp_path / "evaluated").exists() else ())
        < 4
    ):
        time.sleep(0.02)
    server.stop()
    time.sleep(1.0)
    assert worker.is_alive(), "control: it waits"
    server.start()
    worker.join(60)
    assert len(load_finished(database, NAME)) == 12
    assert len((tmp_path / "evaluated").read_text().splitlines()) == 12


def test_an_outage_longer_than_the_patience_is_a_storage_error(
    server: Server, database: str, tmp_path: Path
) -> None:
    """A19: typed, with the way to continue; afterwards the study is completed."""
    create(database, Terms(6, lease_seconds=30))
    stopped: list[str] = []

    def unplug(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        server.stop()
        stopped.append("stopped")
        return [measure(proposal) for proposal in proposals]

    with join(database) as study, pytest.raises(StorageError) as refused:
        search_shared(study, unplug, space=SPACE, seed=1, batch_size=2, n_startup_trials=6, patience_s=0.5)
    server.start()
    assert stopped and "Start the same command again" in str(refused.value.hint)
    assert PASSWORD not in f"{refused.value}"
    owners = owners_of(database)
    assert len(owners) == 1 and NOBODY not in owners, "its rows could not be given back"
    with join(database) as study:
        silent = Watch(1e-6)
        return_expired(claims_of(study, NOBODY), silent, lease_s=0.01, wait=time.sleep, say=stopped.append)
    work(database, tmp_path)
    (summary,) = list_studies(database)
    assert (summary.finished, summary.running) == (6, 0)


def owners_of(storage: str) -> set[str]:
    with join(storage) as study:
        return {claim.owner for claim in claims_of(study, NOBODY).all().values()}
