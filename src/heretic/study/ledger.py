# SPDX-License-Identifier: Apache-2.0
"""The ledger: an append-only file beside a SQLite study that holds each result before the database is told.

One line per trial, `crc32 json`, synced to disk before the tell. A result that was paid for is therefore
never lost: on start, and whenever the database was away, an open trial that the ledger knows is told from it
and not measured again (reliability REL-R03, A06, A07).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from heretic.constants import SCHEMA_VERSION
from heretic.exceptions import DiskSpaceError, StorageError

_logger = logging.getLogger("heretic.study")


class Ledger(Protocol):
    """Results by logical trial index."""

    def entry(self, index: int) -> Mapping[str, Any] | None:
        """What was recorded for trial `index`, if anything."""
        ...

    def append(self, record: Mapping[str, Any]) -> None:
        """Records one result; on return it survives the process and a power loss."""
        ...


class NoLedger:
    """For studies in memory, which nothing survives, and for servers, which keep their own log."""

    def entry(self, index: int) -> Mapping[str, Any] | None:
        """Nothing is recorded."""
        return None

    def append(self, record: Mapping[str, Any]) -> None:
        """Nothing is kept."""


class FileLedger:
    """A ledger file that belongs to one study, named by the study's unique id in the first line."""

    def __init__(self, path: Path, study_id: str) -> None:
        """Opens or creates the file. A torn last line, which was never acknowledged, is cut off."""
        self.path = path
        self._study_id = study_id
        self._entries: dict[int, Mapping[str, Any]] = {}
        header = self._read()
        if header is not None and header.get("study_id") != study_id:
            aside = _free_name(path)
            _logger.warning("%s belongs to another study; it is kept as %s.", path, aside)
            path.rename(aside)
            self._entries, header = {}, None
        if header is None:
            self._write({"ledger": SCHEMA_VERSION, "study_id": study_id})
            _sync_folder(path.parent)

    def entry(self, index: int) -> Mapping[str, Any] | None:
        """What was recorded for trial `index`, if anything."""
        return self._entries.get(index)

    def append(self, record: Mapping[str, Any]) -> None:
        """Records one result under its `index` and syncs it; raises `DiskSpaceError` or `StorageError`."""
        self._write(record)
        self._entries[int(record["index"])] = record

    def _read(self) -> Mapping[str, Any] | None:
        """Fills the entries and returns the first line, or None when there is no whole line."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        header: Mapping[str, Any] | None = None
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            record = _decoded(line)
            if record is None:
                _logger.warning("Line %d of %s is damaged and ignored.", number, self.path)
            elif "study_id" in record:
                header = record
            else:
                self._entries[int(record["index"])] = record
        return header

    def _write(self, record: Mapping[str, Any]) -> None:
        line = _encoded(record)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                end = os.fstat(descriptor).st_size
                self._write_whole(descriptor, line, end)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = os.statvfs(self.path.parent)
                raise DiskSpaceError(
                    f"No space to record a trial in {self.path}: {len(line)} bytes needed, "
                    f"{free.f_bavail * free.f_frsize} bytes free.",
                    hint="Free some space and start the same command again.",
                    data={"transient": True},
                ) from error
            raise StorageError(
                f"Cannot write {self.path}: {error.strerror}.", data={"transient": True}
            ) from error

    def _write_whole(self, descriptor: int, line: bytes, end: int) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            # Half a line in the middle of the file would damage the next one.
            os.ftruncate(descriptor, end)
            raise


def _encoded(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("utf-8")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decoded(line: bytes) -> Mapping[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    record = json.loads(text)
    return record if isinstance(record, dict) else None


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return aside


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
