# SPDX-License-Identifier: Apache-2.0
"""The storage of studies: where it is, whether it is sound, and what its library's errors mean.

The only module that translates errors of optuna, SQLAlchemy and SQLite (reliability X02 to X04); they are
told apart by type and error number along the chain of causes, never by their text.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import optuna
import sqlalchemy
import sqlalchemy.exc

from heretic.exceptions import (
    ConfigurationError,
    DiskSpaceError,
    HereticError,
    StorageError,
    StudyCorruptError,
)
from heretic.lease import held
from heretic.sanitise import redact, single_line

T = TypeVar("T")
_logger = logging.getLogger("heretic.study")

SQLITE_TIMEOUT_S: Final = 60.0
"""How long SQLite itself waits for another program's lock; its default of 5 s loses trials (reliability X03).
"""

SERVER_ARGUMENTS: Final[Mapping[str, object]] = {
    "connect_timeout": 10,
    # A tunnel that died without a word is noticed after a minute, on both sides.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}

OPENING_WAIT_S: Final = 60.0
_OPENING_KEY: Final = 0x4845524554494321
"""Name of the advisory lock under which tables are made in a server's database: "HERETIC!"."""

PATIENCE_S: Final = 600.0
NOTE_EVERY_S: Final = 30.0
_ROOM_FOR_A_COMMIT: Final = 1 << 20
_MAGIC: Final = b"SQLite format 3\x00"
_NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre")


@dataclass(frozen=True, slots=True)
class Location:
    """Where studies are kept. url: what the library is given, None for memory. file: the SQLite database, if
    any.
    """

    url: str | None
    file: Path | None = None

    def beside(self, name: str, ending: str) -> Path:
        """A companion file of the study `name`, in the folder of the database."""
        assert self.file is not None
        return self.file.with_name(f"{self.file.name}.{quote(name, safe=' @+,=')}.{ending}")

    def shown(self) -> str:
        """The location for messages, without a password."""
        if self.url is None:
            return "memory"
        return (
            str(self.file)
            if self.file
            else sqlalchemy.make_url(self.url).render_as_string(hide_password=True)
        )


def locate(storage: str | None) -> Location:
    """The location behind the setting `storage`; null and "" mean memory. Raises `ConfigurationError`."""
    if not storage:
        return Location(None)
    try:
        url = sqlalchemy.make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        # The second one is a port that is no number. The address may hold a password.
        raise ConfigurationError(
            f"{redact(storage)!r} is not a storage address.",
            hint="Examples: sqlite:///heretic_study.db, postgresql://user@host/name; empty: memory.",
        ) from error
    if url.drivername in ("postgres", "postgresql"):
        # Without a driver's name the library would look for psycopg 2.
        url = url.set(drivername="postgresql+psycopg")
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            return Location(None)
        return Location(storage, Path(url.database).absolute())
    if backend == "postgresql":
        return Location(url.render_as_string(hide_password=False))
    raise ConfigurationError(
        f"The storage kind {backend!r} is not supported.",
        hint="Use sqlite:///FILE on one machine or postgresql://user@host/name for several.",
    )


def open_backend(location: Location, *, timeout_s: float = SQLITE_TIMEOUT_S) -> optuna.storages.BaseStorage:
    """Opens the storage and makes its tables; checks a SQLite file first, and leaves a damaged one untouched.

    The caller holds the storage's own lock: processes that make the tables at one time destroy each other's.
    Raises `StudyCorruptError`, `StorageError`, `ConfigurationError`.
    """
    # Its info lines ("a new study created") would appear on stderr beside ours.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if location.url is None:
        return optuna.storages.InMemoryStorage()
    options: dict[str, object] = {}
    made_now = False
    if location.file is not None:
        check_file(location.file, timeout_s=timeout_s)
        made_now = not location.file.exists() or location.file.stat().st_size == 0
        options = {"connect_args": {"timeout": timeout_s}}
    else:
        options = {"connect_args": SERVER_ARGUMENTS, "pool_pre_ping": True}
    try:
        with translated(location):
            # Tables that are made now have the layout of this version.
            return optuna.storages.RDBStorage(
                location.url, engine_kwargs=options, skip_compatibility_check=made_now
            )
    except ImportError as error:
        raise driver_missing(location) from error
    except RuntimeError as error:
        # The library's own check of its table layout; it has no error class of its own.
        raise StorageError(f"{location.shown()} was made by another version of optuna: {error}") from error


@contextmanager
def opening(location: Location) -> Iterator[None]:
    """One process at a time while tables may be made: processes that race on it destroy each other's.

    Raises `StudyLockedError` on SQLite after a minute; a server ends the wait with its connection.
    """
    if location.file is not None:
        guard = location.file.with_name(f"{location.file.name}.lock")
        with held(guard, f"the storage {location.file}", wait_s=OPENING_WAIT_S):
            yield
        return
    if location.url is None:
        yield
        return
    engine = _engine_for_turn(location)
    try:
        with translated(location):
            connection = engine.connect()
        with connection:
            with translated(location):
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_OPENING_KEY})"))
            yield
    finally:
        engine.dispose()


def _engine_for_turn(location: Location) -> sqlalchemy.Engine:
    assert location.url is not None
    try:
        return sqlalchemy.create_engine(
            location.url, poolclass=sqlalchemy.NullPool, connect_args=dict(SERVER_ARGUMENTS)
        )
    except ImportError as error:
        raise driver_missing(location) from error


def driver_missing(location: Location) -> ConfigurationError:
    """The error for a server whose driver is an extra that was not installed."""
    return ConfigurationError(
        f"The driver for {location.shown()} is not installed.", hint="Install heretic-workbench[dist]."
    )


def close_backend(backend: optuna.storages.BaseStorage) -> None:
    """Closes the connections of a storage made by `open_backend`."""
    if isinstance(backend, optuna.storages.RDBStorage):
        backend.remove_session()
        backend.engine.dispose()


def check_file(file: Path, *, timeout_s: float = SQLITE_TIMEOUT_S) -> None:
    """Refuses a SQLite path that cannot work, before anything else is done (reliability A07, A15).

    An empty file is a study whose creation was interrupted, unless a ledger beside it knows of trials.
    """
    folder = file.parent
    if not folder.is_dir():
        raise StorageError(f"The folder {folder} of the storage does not exist.", hint=f"mkdir -p '{folder}'")
    if not os.access(file if file.exists() else folder, os.W_OK) or not os.access(folder, os.W_OK):
        raise StorageError(
            f"{file} cannot be written.", hint="Choose another --storage or change the permissions."
        )
    kind = file_system_of(folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        _logger.warning(
            "%s is on a network file system (%s), whose locks may fail; a local disk is safer.", file, kind
        )
    if not file.exists():
        return
    if file.stat().st_size == 0:
        if any(folder.glob(f"{file.name}.*.ledger.jsonl")):
            raise _corrupt(file, "it is empty, but a ledger beside it records trials")
        return
    with file.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise _corrupt(file, "it is not a SQLite database")
    connection = sqlite3.connect(file, timeout=timeout_s)
    try:
        # Opening for writing lets SQLite roll back the transaction of a killed process; reading alone could
        # not.
        finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise explained(error, Location(f"sqlite:///{file}", file)) from error
    finally:
        connection.close()
    if finding != "ok":
        raise _corrupt(file, str(finding))


def file_system_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Type of the file system that holds `folder` ("ext4", "nfs4"); "" where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target = str(folder.resolve())
    best, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        inside = point == "/" or target == point or target.startswith(f"{point}/")
        if inside and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, the driver's error inside it, and their causes and contexts."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        link = waiting.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        driver = getattr(link, "orig", None)
        waiting += [driver if isinstance(driver, BaseException) else None, link.__cause__, link.__context__]


def explained(error: BaseException, location: Location) -> HereticError:
    """Our error for one of the storage library's; `data["transient"]` says that waiting may help."""
    where = location.shown()
    codes = {
        getattr(link, "sqlite_errorcode", -1) & 0xFF
        for link in chain(error)
        if isinstance(link, sqlite3.Error)
    }
    if codes & {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or isinstance(error, json.JSONDecodeError):
        return _corrupt(location.file or where, f"{type(error).__name__}: {error}")
    if codes & {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StorageError(
            f"{where} is locked by another program.",
            hint="Close the dashboard or backup that uses it and start the same command again.",
            data={"transient": True},
        )
    if sqlite3.SQLITE_FULL in codes or _is_full(location):
        free = shutil.disk_usage(location.file.parent).free if location.file else 0
        return DiskSpaceError(
            f"No space to store a trial in {where}: {_ROOM_FOR_A_COMMIT} bytes needed, {free} bytes free.",
            hint="Free some space and start the same command again; finished trials are kept.",
            data={"transient": True},
        )
    refused = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
    if codes & refused:
        return StorageError(
            f"{where} cannot be opened for writing.", hint="Check the path and its permissions."
        )
    passing = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)
    away = any(isinstance(link, passing) for link in chain(error))
    hint = "Start the same command again once the storage answers; finished trials are kept."
    links = list(chain(error))
    # The driver's own words; what the library wraps around them says nothing.
    told = [link for link in links if str(link) and not type(link).__module__.startswith("sqlalchemy")]
    cause = (told or links)[-1]
    return StorageError(
        f"The storage {where} failed: {type(cause).__name__}: {redact(single_line(str(cause)))}",
        hint=hint,
        data={"transient": away},
    )


@contextmanager
def translated(location: Location) -> Iterator[None]:
    """Raises our errors in place of the library's."""
    try:
        yield
    except AssertionError as error:
        # On a full disk the library ends in an assertion of its own (X02); any other one is a mistake of
        # ours.
        if not _is_full(location):
            raise
        raise explained(error, location) from error
    except (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
        json.JSONDecodeError,
    ) as error:
        raise explained(error, location) from error


def patiently(
    action: Callable[[], T],
    location: Location,
    *,
    patience_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Runs a storage action, repeating it while its failure may pass; a note every 30 s (reliability A06,
    A08, A19).

    The action must be repeatable. Raises the last error, translated, after `patience_s` seconds.
    """
    start = clock()
    noted, delay = -NOTE_EVERY_S, 0.05
    while True:
        try:
            with translated(location):
                return action()
        except (StorageError, DiskSpaceError) as error:
            waited = clock() - start
            if not error.data.get("transient") or waited >= patience_s:
                raise
            if waited - noted >= NOTE_EVERY_S:
                _logger.warning("%s Trying again for %.0f s.", error.message, patience_s - waited)
                noted = waited
            sleep(min(delay, max(0.0, patience_s - waited)))
            delay = min(2 * delay, 10.0)


def _is_full(location: Location) -> bool:
    if location.file is None or not location.file.parent.is_dir():
        return False
    return shutil.disk_usage(location.file.parent).free < _ROOM_FOR_A_COMMIT


def _corrupt(file: Path | str, finding: str) -> StudyCorruptError:
    return StudyCorruptError(
        f"The study file {file} is damaged: {finding}. It was not touched.",
        hint="Keep it and the .ledger.jsonl files beside it for recovery; use another --storage meanwhile.",
    )
