# SPDX-License-Identifier: Apache-2.0
"""One way to write what outlives the process: staged, checksummed, synced, then renamed (reliability
REL-R01).

A folder is written into the sibling `<name>.partial` (same file system) under a kernel lock, gets its
`SHA256SUMS` last, is flushed to the disk file by file, and only then takes the target's name: by `rename`
where the name is free, by an atomic exchange where an older output is replaced. A reader sees the old
folder, the new one or none; never a mixture. Standard library only, so that every room may use it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import glob
import hashlib
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType

from heretic.constants import CHECKSUM_FILE, HIDDEN_MANIFEST
from heretic.durable import exchange, lock_file, release_lock, sync
from heretic.exceptions import DiskSpaceError, FileOperationError, HereticError, OutputExistsError

logger = logging.getLogger("heretic.publish")

FULL_BELOW = 64 * 1024
"""Free bytes below which a failure without an errno counts as a full disk (safetensors hides it, REL-X01)."""


def refuse_taken_target(target: Path, *, overwrite: bool) -> bool:
    """Raise `OutputExistsError` unless the name is free, an empty folder, or ours and `overwrite` is set.

    True when there is an older output of this program that would be replaced.
    """
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        raise OutputExistsError(f"{target} exists and is not a folder.", hint="Choose another output path.")
    if not any(target.iterdir()):
        return False
    if not (target / CHECKSUM_FILE).is_file() and not (target / HIDDEN_MANIFEST).is_file():
        raise OutputExistsError(
            f"The folder {target} is not empty and was not written by this program "
            f"(no {CHECKSUM_FILE}, no {HIDDEN_MANIFEST}); it is left alone.",
            hint="Choose another output path.",
        )
    if not overwrite:
        raise OutputExistsError(
            f"The output folder {target} exists.",
            hint="Choose another path, or allow it to be replaced with --overwrite.",
        )
    return True


def staged_folder(target: Path, *, overwrite: bool = False, needed_bytes: int | None = None) -> StagedFolder:
    """A context manager that builds `target` in a staging folder; nothing is published without `commit()`.

        with staged_folder(target, overwrite=False) as staging:
            ...write files below staging.path...
            staging.commit()

    overwrite: replace an older output of this program; a folder of anybody else is never replaced (R-CLI-47).
    needed_bytes: size of what will be written; checked against the free space at once and named in the
    message. Raises on entry `OutputExistsError` (target taken, or another process is writing it),
    `DiskSpaceError`, `FileOperationError`. Inside the block an `OSError` leaves as the same typed errors,
    and the staging is removed.
    """
    return StagedFolder(target, overwrite=overwrite, needed_bytes=needed_bytes)


class StagedFolder:
    """The staging of one target; made by `staged_folder`. `path` is where the files go."""

    def __init__(self, target: Path, *, overwrite: bool, needed_bytes: int | None) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f"{self.target.name}.partial")
        self.overwrite = overwrite
        self.needed_bytes = needed_bytes
        self.committed = False
        self._lock = -1
        self._digests: dict[tuple[str, int, int, int], str] = {}

    def __enter__(self) -> StagedFolder:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(self._lock_path, wait=False)
            _restore_backup(self.target)
            self._refuse_taken_target()
            _remove(self.path)
            if self.needed_bytes is not None:
                require_space(self.path, self.needed_bytes)
            self.path.mkdir()
        except OSError as error:
            self._release()
            raise translate_os_error(error, self.path, needed=self.needed_bytes) from error
        except HereticError:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = isinstance(error, Exception) and free_bytes(self.path) < FULL_BELOW
        with contextlib.suppress(OSError):
            _remove(self.path)
        self._release()
        if isinstance(error, HereticError):
            return
        if isinstance(error, OSError):
            raise translate_os_error(error, self.path, needed=self.needed_bytes) from error
        if full and not isinstance(error, AssertionError):
            # Libraries report a full disk as their own error without an errno (REL-X01): ask the file system.
            raise _disk_space_error(self.path, self.needed_bytes) from error

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def _release(self) -> None:
        if self._lock >= 0:
            release_lock(self._lock, self._lock_path)
            self._lock = -1

    def _refuse_taken_target(self) -> None:
        refuse_taken_target(self.target, overwrite=self.overwrite)

    def checksums(self) -> dict[str, str]:
        """`checksums(path)`, hashing only files that changed since the last call (the manifest needs them
        too)."""
        result = {}
        for name in _file_names(self.path):
            found = (self.path / name).stat()
            known = (name, found.st_ino, found.st_size, found.st_mtime_ns)
            if known not in self._digests:
                self._digests[known] = _digest(self.path / name)
            result[name] = self._digests[known]
        return result

    def commit(self) -> Path:
        """Write `SHA256SUMS`, flush everything, take the target's name; returns the published path.

        Raises `FileOperationError` for an empty staging or one with links in it, `OutputExistsError` when
        the target appeared meanwhile, `DiskSpaceError` when the disk is full; in all cases the target is
        what it was.
        """
        assert not self.committed, "a staging folder is published once"
        try:
            self._seal()
            self._refuse_taken_target()
            self._swap_in()
            sync(self.target.parent)
        except OSError as error:
            raise translate_os_error(error, self.path, needed=self.needed_bytes) from error
        self.committed = True
        try:
            _remove(self.path)
        except OSError as error:
            logger.warning("The replaced folder %s could not be removed: %s.", self.path, error.strerror)
        return self.target

    def _seal(self) -> None:
        # Some libraries write with mode 0600; an output folder follows the umask, which the lock file shows.
        allowed = stat.S_IMODE(os.fstat(self._lock).st_mode)
        lines = [f"{digest}  {name}\n" for name, digest in self.checksums().items()]
        if not lines:
            raise FileOperationError(f"Nothing was written to {self.path}; an empty folder is not published.")
        (self.path / CHECKSUM_FILE).write_bytes("".join(lines).encode())
        for folder, _, names in os.walk(self.path, topdown=False):
            for name in names:
                os.chmod(os.path.join(folder, name), allowed)
                sync(Path(folder, name))
            os.chmod(folder, allowed | (allowed & 0o444) >> 2)
            sync(Path(folder))

    def _swap_in(self) -> None:
        if not self.target.exists() or not any(self.target.iterdir()):
            if self.target.exists():
                self.target.rmdir()
            os.rename(self.path, self.target)
        elif not exchange(self.path, self.target):
            # No atomic exchange here: for an instant the old folder has the backup's name (see
            # _restore_backup).
            backup = self.target.with_name(f"{self.target.name}.bak-{_utc_stamp()}")
            os.rename(self.target, backup)
            try:
                os.rename(self.path, self.target)
            except OSError:
                os.rename(backup, self.target)
                raise
            sync(self.target.parent)
            os.rename(backup, self.path)


def write_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace one file atomically: all of `data` or the old content, never a part (REL-R01).

    Written to `<name>.partial` under a kernel lock, flushed, renamed; a leftover of a dead writer is
    reused. private: mode 0600 instead of the umask's. Raises `DiskSpaceError`, `FileOperationError`; the
    old content then stands.
    """
    final = Path(os.path.realpath(path))
    partial = final.with_name(f"{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        descriptor = lock_file(partial, wait=True, mode=0o600 if private else 0o666)
        try:
            os.ftruncate(descriptor, 0)
            if private:  # the leftover of a dead writer may be readable by others
                os.chmod(partial, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            if sys.platform == "win32":  # an open file cannot be renamed there
                os.close(descriptor)
                descriptor = -1
            os.replace(partial, final)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        sync(final.parent)
    except OSError as error:
        raise translate_os_error(error, final, needed=len(data)) from error


def checksums(folder: Path) -> dict[str, str]:
    """File name (relative, with `/`) -> SHA-256 as hex, for every file but `SHA256SUMS` itself, sorted by
    name.

    Raises `FileOperationError` when the folder cannot be read or holds a link or device.
    """
    try:
        return {name: _digest(folder / name) for name in _file_names(folder)}
    except OSError as error:
        raise translate_os_error(error, folder) from error


def verify_checksums(folder: Path) -> list[str]:
    """Compare a folder with its `SHA256SUMS`; returns one sentence per problem, an empty list when all is
    well.

    Hidden files at the top (`.gitattributes`, `.cache`) may be added after publishing; any other file must
    be listed.
    """
    listing = folder / CHECKSUM_FILE
    try:
        lines = listing.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return [f"{CHECKSUM_FILE} is missing or unreadable: the folder is incomplete."]
    problems: list[str] = []
    listed: set[str] = set()
    for number, line in enumerate(lines, start=1):
        digest, separator, name = line.partition("  ")
        pure = PurePosixPath(name)
        if len(digest) != 64 or not separator or pure.is_absolute() or ".." in pure.parts or name in listed:
            problems.append(f"{CHECKSUM_FILE} line {number} is malformed.")
            continue
        listed.add(name)
        problems.extend(_compare(folder, name, digest))
    try:
        present = {name for name in _file_names(folder) if not name.startswith(".")}
    except (OSError, FileOperationError) as error:
        return [*problems, f"The folder cannot be listed: {error}"]
    problems.extend(f"{name}: not listed in {CHECKSUM_FILE}." for name in sorted(present - listed))
    return problems


def _compare(folder: Path, name: str, expected: str) -> list[str]:
    try:
        actual = _digest(folder / name)
    except OSError as error:
        return [f"{name}: cannot be read ({error.strerror})."]
    return [] if actual == expected else [f"{name}: SHA-256 is {actual[:12]}..., recorded {expected[:12]}..."]


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of `path` or of its nearest existing parent."""
    for candidate in (path, *path.absolute().parents):
        if candidate.exists():
            return shutil.disk_usage(candidate).free
    return sys.maxsize


def require_space(path: Path, needed: int) -> None:
    """Raise `DiskSpaceError` when `needed` bytes do not fit on the file system of `path` (R-CLI-48,
    REL-B04)."""
    if free_bytes(path) < needed:
        raise _disk_space_error(path, needed)


def translate_os_error(error: OSError, path: Path, *, needed: int | None = None) -> HereticError:
    """The typed error for an `OSError`, classified by errno: full disk or quota, size limit, taken name,
    other."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_space_error(path, needed)
    where = error.filename or path
    if error.errno == errno.EFBIG:
        return DiskSpaceError(
            f"{where}: the file is larger than the file system or the process limit allows.",
            hint="Write to another file system (not FAT32), or raise `ulimit -f`.",
            data={"path": str(where)},
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return OutputExistsError(
            f"{where}: the name is taken ({error.strerror}).", hint="Choose another output path."
        )
    return FileOperationError(
        f"{where}: {error.strerror or type(error).__name__}.",
        hint="Check that the path exists and is writable.",
    )


def _disk_space_error(path: Path, needed: int | None) -> DiskSpaceError:
    free = free_bytes(path)
    wanted = "" if needed is None else f" {needed:,} bytes are needed,"
    return DiskSpaceError(
        f"The disk of {path.parent} is full or too small:{wanted} {free:,} bytes are free; "
        "nothing was published.",
        hint="Free some space or choose another output path, then run the same command again.",
        data={"needed": needed, "free": free, "path": str(path)},
    )


def _file_names(folder: Path) -> Iterator[str]:
    """Relative names of all files but the checksum list, sorted; refuses links and devices."""
    found = []
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise FileOperationError(f"{path} is a link or a device; an output folder holds plain files.")
            if stat.S_ISREG(mode):
                found.append(path.relative_to(folder).as_posix())
    return iter(sorted(name for name in found if name != CHECKSUM_FILE))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder, file or link if it is there; a link is removed itself, never what it points to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _restore_backup(target: Path) -> None:
    """After a kill between the two renames of a non-atomic overwrite, give the old folder its name back."""
    backups = sorted(target.parent.glob(f"{glob.escape(target.name)}.bak-*"))
    if backups and not os.path.lexists(target):
        logger.warning("An interrupted save left %s; it gets its name back.", backups[-1].name)
        os.rename(backups[-1], target)


def _utc_stamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
