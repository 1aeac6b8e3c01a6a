# SPDX-License-Identifier: Apache-2.0
"""Reading and deleting stored studies without running them (commands `study list`, `show`, `delete`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import optuna
from optuna.trial import TrialState

from heretic.exceptions import ConfigurationError, StudyNotFoundError
from heretic.lease import acquire, held
from heretic.study.claims import forget_study
from heretic.study.records import finished_from
from heretic.study.storage import Location, check_file, close_backend, locate, open_backend, translated
from heretic.study.types import FinishedTrial, Json

HEADER: Final = "heretic"
"""Study attribute with schema version, unique id and fingerprint."""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """One line of a list of studies."""

    name: str
    finished: int
    failed: int
    running: int
    schema: int | None
    fingerprint: Mapping[str, Json]
    given: Mapping[str, Json] = field(default_factory=dict)


def not_found(location: Location, name: str, names: Sequence[str]) -> StudyNotFoundError:
    """The error for an unknown name, with near ones."""
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        hint = f"Did you mean {' or '.join(map(repr, near))}?"
    else:
        hint = f"Stored: {', '.join(names)}." if names else "Nothing is stored there yet."
    return StudyNotFoundError(f"There is no study {name!r} in {location.shown()}.", hint=hint)


def finished_in(study: optuna.Study) -> tuple[FinishedTrial, ...]:
    """The complete trials by index."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return tuple(sorted((finished_from(trial.user_attrs) for trial in trials), key=lambda trial: trial.index))


@contextmanager
def _reading(storage: str | None) -> Iterator[tuple[Location, optuna.storages.BaseStorage | None]]:
    """The storage for a command that only reads; None where nothing is stored (nothing is created)."""
    location = locate(storage)
    if location.url is None or (location.file is not None and not location.file.exists()):
        yield location, None
        return
    backend = open_backend(location)
    try:
        with translated(location):
            yield location, backend
    finally:
        close_backend(backend)


def _found(backend: optuna.storages.BaseStorage | None, location: Location, name: str) -> optuna.Study:
    names = [] if backend is None else optuna.get_all_study_names(backend)
    if backend is None or name not in names:
        raise not_found(location, name, names)
    return optuna.load_study(study_name=name, storage=backend)


def check_ready(storage: str | None, name: str, resume: str) -> None:
    """What opening the study would refuse, as far as it is known without its fingerprint; changes nothing.

    Raises `StorageError`, `StudyCorruptError`, `StudyLockedError`, `StudyNotFoundError`, `ConfigurationError`.
    """
    location = locate(storage)
    if location.file is not None:
        check_file(location.file)
        lock = location.beside(name, "lock")
        if lock.exists():
            acquire(lock, f"the study {name!r}").release()
    if resume not in ("continue", "fail"):
        return
    with _reading(storage) as (_, backend):
        names = [] if backend is None else optuna.get_all_study_names(backend)
    if resume == "continue" and name not in names:
        raise not_found(location, name, names)
    if resume == "fail" and name in names:
        raise already_there(location, name)


def already_there(location: Location, name: str) -> ConfigurationError:
    """The error for a study that may not exist."""
    return ConfigurationError(
        f"The study {name!r} already exists in {location.shown()} and resume is 'fail'.",
        hint="Use another --study-name, --resume continue, or --resume fresh (renames the old one).",
    )


def list_studies(storage: str | None) -> tuple[StudySummary, ...]:
    """All studies of a storage by name, with their counts. Needs no ownership."""
    with _reading(storage) as (_, backend):
        if backend is None:
            return ()
        names = sorted(optuna.get_all_study_names(backend))
        return tuple(_summary(optuna.load_study(study_name=name, storage=backend)) for name in names)


def _summary(study: optuna.Study) -> StudySummary:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    header = study.user_attrs.get(HEADER, {})
    return StudySummary(
        name=study.study_name,
        finished=states.count(TrialState.COMPLETE),
        failed=states.count(TrialState.FAIL),
        running=states.count(TrialState.RUNNING),
        schema=header.get("schema"),
        fingerprint=header.get("fingerprint", {}),
        given=study.user_attrs.get("artefact:given", {}),
    )


def load_finished(storage: str | None, name: str) -> tuple[FinishedTrial, ...]:
    """The complete trials of a stored study by index. Raises `StudyNotFoundError` naming near ones."""
    with _reading(storage) as (location, backend):
        return finished_in(_found(backend, location, name))


def delete_study(storage: str | None, name: str) -> None:
    """Deletes a study and its ledger for good; the caller has asked.

    Raises `StudyNotFoundError`, and `StudyLockedError` while it is in use.
    """
    with _reading(storage) as (location, backend):
        study = _found(backend, location, name)
        header = study.user_attrs
        ledger = header.get("ledger")
        lock = held(location.beside(name, "lock"), f"the study {name!r}") if location.file else nullcontext()
        with lock:
            optuna.delete_study(study_name=name, storage=study._storage)
            if isinstance(backend, optuna.storages.RDBStorage) and HEADER in header:
                forget_study(backend.engine, str(header[HEADER]["study_id"]))
            if location.file is not None and ledger is not None:
                location.file.with_name(str(ledger)).unlink(missing_ok=True)
