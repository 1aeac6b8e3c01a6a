# SPDX-License-Identifier: Apache-2.0
"""A study as a state machine in storage: open, resume, rename, list (requirements R-SEA-20 to R-SEA-24).

Rows of the storage are addressed by logical trial index k, kept in the row's attributes, never by the
library's numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal

import optuna
import sqlalchemy
from optuna.trial import TrialState

from heretic.constants import SCHEMA_VERSION
from heretic.exceptions import (
    FingerprintMismatchError,
    StorageError,
    StudyCorruptError,
)
from heretic.lease import Lease, acquire
from heretic.study.catalogue import HEADER, already_there, finished_in, not_found
from heretic.study.ledger import FileLedger, Ledger, NoLedger
from heretic.study.records import NotPlainError, differences, plain
from heretic.study.storage import (
    SQLITE_TIMEOUT_S,
    Location,
    close_backend,
    locate,
    open_backend,
    opening,
    translated,
)
from heretic.study.types import FinishedTrial, Json

_logger = logging.getLogger("heretic.study")

DEFAULT_STUDY_NAME: Final = "heretic_study"
Resume = Literal["auto", "continue", "fresh", "fail"]
_ARTEFACT: Final = "artefact:"
_LOOK_WAIT_S: Final = 0.3


class Study:
    """An open study, owned by this process until `close` (or the end of a `with`).

    name: as stored, may differ from the one asked for. created: True when it is new. notes: sentences to
    show, such as the name of a study that was opened instead. fingerprint: as stored.
    """

    def __init__(
        self, location: Location, backend: optuna.storages.BaseStorage, name: str, lease: Lease | None
    ) -> None:
        self.location = location
        self.name = name
        self.created = False
        self.notes: tuple[str, ...] = ()
        self.fingerprint: Mapping[str, Json] = {}
        self.ledger: Ledger = NoLedger()
        self.lease = lease
        self._backend = backend
        self._open: optuna.Study | None = None

    @property
    def inner(self) -> optuna.Study:
        """The library's study, for the runner."""
        assert self._open is not None
        return self._open

    @property
    def rows(self) -> optuna.storages.BaseStorage:
        """The storage behind `inner`. The library's own handle for a row asks the sampler when it is made."""
        return self.inner._storage

    def close(self) -> None:
        """Gives up the ownership; finished trials are kept. Repeating is harmless."""
        close_backend(self._backend)
        if self.lease is not None:
            self.lease.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def finished_trials(self) -> tuple[FinishedTrial, ...]:
        """All complete trials by index."""
        with translated(self.location):
            return finished_in(self.inner)

    def failed_trials(self) -> dict[int, str]:
        """Index -> reason of the trials that could not be measured."""
        with translated(self.location):
            trials = self.inner.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        return {
            int(trial.user_attrs["proposal"]["index"]): str(
                trial.user_attrs.get("failure", "no reason stored")
            )
            for trial in trials
            if "proposal" in trial.user_attrs
        }

    def attribute(self, key: str) -> Any:
        """A stored artefact (directions hash, noise floor, evaluation width, ...) or None (reliability
        REL-R03).
        """
        return self.stored(_ARTEFACT + key)

    def set_attribute(self, key: str, value: Json) -> None:
        """Stores an artefact; raises `StudyError` when JSON cannot hold it."""
        self.store(_ARTEFACT + key, value)

    def stored(self, key: str) -> Any:
        """A study attribute of the runner's own, or None."""
        with translated(self.location):
            return self.inner.user_attrs.get(key)

    def store(self, key: str, value: Json) -> None:
        """Stores a study attribute in one transaction."""
        try:
            value = plain(value, key)
        except NotPlainError as error:
            raise StorageError(f"{error}.") from error
        with translated(self.location):
            self.inner.set_user_attr(key, value)

    def resolved_batch_size(self, proposed: int) -> int:
        """The stored number of trials per batch; the first call stores `proposed` (reliability A05)."""
        stored = self.stored("trials_per_batch")
        if stored is None:
            self.store("trials_per_batch", proposed)
            return proposed
        if int(stored) != proposed:
            _logger.info("The study was started with %d trials per batch and keeps it.", stored)
        return int(stored)

    def has(self, name: str) -> bool:
        """True when the storage holds a study of that name."""
        return name in optuna.get_all_study_names(self._backend)

    def _attach(self, name: str) -> None:
        """Loads or completes the study `name`: a row without fingerprint and trials was killed at birth
        (A02).
        """
        self._open = optuna.create_study(
            study_name=name, storage=self._backend, directions=["minimize", "minimize"], load_if_exists=True
        )
        self.name = name

    def _header(self) -> Mapping[str, Any] | None:
        header = self.inner.user_attrs.get(HEADER)
        if header is None:
            if self.inner.get_trials(deepcopy=False):
                raise StudyCorruptError(
                    f"The study {self.name!r} in {self.location.shown()} has trials but no fingerprint; "
                    "it was not made by this program or was damaged. It was not touched.",
                    hint="Use another --study-name.",
                )
            return None
        version = header.get("schema")
        if version != SCHEMA_VERSION:
            raise StorageError(
                f"The study {self.name!r} has schema version {version}; this program knows {SCHEMA_VERSION}.",
                hint="Use the version of heretic that made it, or another --study-name.",
            )
        return dict(header)

    def _begin(self, fingerprint: Mapping[str, Json]) -> None:
        self.created = True
        # First transaction of a study: nothing can be stored in it that has no fingerprint.
        header = {"schema": SCHEMA_VERSION, "study_id": uuid.uuid4().hex, "fingerprint": dict(fingerprint)}
        self.inner.set_user_attr(HEADER, header)

    def _settle(self, header: Mapping[str, Any]) -> None:
        self.fingerprint = header["fingerprint"]
        if self.location.file is not None:
            path = self.location.beside(f"{self.name}.{header['study_id'][:8]}", "ledger.jsonl")
            known = self.inner.user_attrs.get("ledger")
            if known is None:
                self.inner.set_user_attr("ledger", path.name)
            else:
                # A renamed study keeps the ledger under its first name.
                path = self.location.file.with_name(str(known))
            self.ledger = FileLedger(path, header["study_id"])


def open_study(
    storage: str | None,
    name: str = DEFAULT_STUDY_NAME,
    *,
    fingerprint: Mapping[str, Json],
    resume: Resume = "auto",
    default_name: bool = False,
    timeout_s: float = SQLITE_TIMEOUT_S,
) -> Study:
    """Opens, resumes or creates the study and takes ownership of it (requirements R-SEA-21, R-SEA-22).

    storage: `sqlite:///FILE`, a PostgreSQL URL, or None or "" for memory. default_name: True when the user
    did not choose the name; then another fingerprint opens `<name>-<8 hex>` instead of failing.

    Raises `StudyLockedError`, `StudyCorruptError`, `StorageError`; `FingerprintMismatchError` listing the
    differing fields; `StudyNotFoundError` when there is nothing to continue; `ConfigurationError` when one
    exists and may not.
    """
    location = locate(storage)
    fingerprint = plain(dict(fingerprint), "fingerprint")
    if location.file is None:
        return _opened(location, name, None, fingerprint, resume, default_name, timeout_s)
    if not location.file.parent.is_dir():
        raise StorageError(
            f"The folder {location.file.parent} of the storage does not exist.",
            hint="Make it, or name another place with --storage.",
        )
    # Another start may look at the lock for a moment (`check_ready`); an owner holds it for much longer.
    lease = acquire(location.beside(name, "lock"), f"the study {name!r}", wait_s=_LOOK_WAIT_S)
    try:
        return _opened(location, name, lease, fingerprint, resume, default_name, timeout_s)
    except BaseException:
        lease.release()
        raise


def _opened(
    location: Location,
    name: str,
    lease: Lease | None,
    fingerprint: Mapping[str, Json],
    resume: Resume,
    default_name: bool,
    timeout_s: float,
) -> Study:
    """`open_study` with the lease in hand; a second one guards the storage while its tables may be made."""
    with opening(location):
        return _decide(location, name, lease, fingerprint, resume, default_name, timeout_s)


def _decide(
    location: Location,
    name: str,
    lease: Lease | None,
    fingerprint: Mapping[str, Json],
    resume: Resume,
    default_name: bool,
    timeout_s: float,
) -> Study:
    study = Study(location, open_backend(location, timeout_s=timeout_s), name, lease)
    try:
        with translated(location):
            return _resumed(study, name, fingerprint, resume, default_name)
    except BaseException:
        study.close()
        raise


def _resumed(
    study: Study, name: str, fingerprint: Mapping[str, Json], resume: Resume, default_name: bool
) -> Study:
    """Applies the resume mode (requirements R-SEA-22)."""
    location = study.location
    exists = study.has(name)
    if not exists and resume == "continue":
        raise not_found(location, name, optuna.get_all_study_names(study._backend))
    if exists and resume == "fail":
        raise already_there(location, name)
    notes: tuple[str, ...] = ()
    if exists and resume == "fresh":
        aside = _renamed(study, name)
        notes = (f"The study {name!r} was kept as {aside!r}.",)
    study._attach(name)
    header = study._header()
    lines = differences(header["fingerprint"], fingerprint) if header else []
    if lines and default_name:
        return _other_study(study, name, fingerprint, resume, lines)
    if lines:
        raise _mismatch(location, name, lines)
    if header is None:
        study._begin(fingerprint)
        header = study._header()
    assert header is not None
    study._settle(header)
    study.notes = notes
    return study


def _other_study(
    study: Study, name: str, fingerprint: Mapping[str, Json], resume: Resume, lines: Sequence[str]
) -> Study:
    """The study `<name>-<8 hex of the fingerprint>`: same settings meet it again (requirements R-SEA-22)."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode("utf-8")).hexdigest()[:8]
    other = f"{name}-{digest}"
    if resume == "continue" and not study.has(other):
        raise _mismatch(study.location, name, lines)
    if study.location.file is not None:
        first, study.lease = (
            study.lease,
            acquire(study.location.beside(other, "lock"), f"the study {other!r}"),
        )
        if first is not None:
            first.release()
    study._attach(other)
    header = study._header()
    if header is None:
        study._begin(fingerprint)
        header = study._header()
    assert header is not None
    study._settle(header)
    changed = ", ".join(line.split(":", 1)[0] for line in lines)
    study.notes = (
        f"The study {name!r} was made with other settings ({changed}); {other!r} is used instead.",
    )
    return study


def _renamed(study: Study, name: str) -> str:
    """Renames a study to NAME-1, NAME-2, ...: one UPDATE, so that a kill leaves it under one name or the
    other.

    The library can only copy and delete, which is neither atomic nor keeps trial numbers (requirements
    R-CLI-51).
    """
    taken = set(optuna.get_all_study_names(study._backend))
    number = next(count for count in range(1, len(taken) + 2) if f"{name}-{count}" not in taken)
    assert isinstance(study._backend, optuna.storages.RDBStorage), "a study in memory is always new"
    with study._backend.engine.begin() as connection:
        statement = sqlalchemy.text("UPDATE studies SET study_name = :new WHERE study_name = :old")
        connection.execute(statement, {"new": f"{name}-{number}", "old": name})
    return f"{name}-{number}"


def _mismatch(location: Location, name: str, lines: Sequence[str]) -> FingerprintMismatchError:
    return FingerprintMismatchError(
        f"The study {name!r} in {location.shown()} was made with other settings ({len(lines)} differ).",
        hint="Use --study-name NAME for a new study, or --resume fresh to rename the old one.",
        details=tuple(lines),
        data={"differences": list(lines)},
    )
