# SPDX-License-Identifier: Apache-2.0
"""One owner at a time: a kernel lock that dies with its process and its children (reliability REL-R04).

A ground module, standard library and our error tree only. The lock file is never unlinked and its content
(process id, host, start) is for messages alone: after a kill the content is stale, but the lock is free, and
that is what counts.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from heretic.exceptions import StorageError, StudyLockedError

_HELD = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK})
_POLL_S = 0.05
_CONTENT_WAIT_S = 0.3
"""The winner writes its name just after it has the lock; a loser waits this long to be able to name it."""

if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30
    """Locks are mandatory there: a byte far behind the content keeps the content readable."""

    def _try_lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lease:
    """A held lock. Children that inherit the descriptor keep it held after the parent has died."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def fileno(self) -> int:
        """The descriptor to hand to a child (`pass_fds=(lease.fileno(),)`); a forked child has it already."""
        assert self._descriptor is not None, "the lease was given back"
        return self._descriptor

    def release(self) -> None:
        """Closes the descriptor: the lock is free once no child holds it either. Repeating is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def acquire(path: Path, what: str, *, wait_s: float = 0.0) -> Lease:
    """Takes the kernel lock on `path`, waiting at most `wait_s` seconds.

    what: the thing that is owned, for messages ("the study 'heretic_study'"). Raises `StudyLockedError`
    naming process id, host and start of the owner, `StorageError` when the file cannot be made or the file
    system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise StorageError(
            f"Cannot create the lock file {path}: {error.strerror}.",
            hint="Choose a storage in an existing folder that you may write to.",
        ) from error
    deadline = time.monotonic() + wait_s
    while True:
        try:
            _try_lock(descriptor)
            break
        except OSError as error:
            if error.errno not in _HELD:
                os.close(descriptor)
                # A lock that other processes would not see is worse than none.
                raise StorageError(
                    f"The file system of {path} offers no locks: {error.strerror}.",
                    hint="Keep the study on a local disk.",
                ) from error
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise _locked(path, what) from None
            time.sleep(_POLL_S)
    _describe_owner(descriptor)
    return Lease(path, descriptor)


@contextmanager
def held(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[Lease]:
    """`acquire` for the length of a block."""
    lease = acquire(path, what, wait_s=wait_s)
    try:
        yield lease
    finally:
        lease.release()


def owner_of(path: Path) -> Mapping[str, object]:
    """What the last owner wrote: pid, host, start. Empty when there is nothing to read; says nothing about
    now.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe_owner(descriptor: int) -> None:
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "start": start})
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, content.encode("utf-8"))


def _is_running(pid: object) -> bool:
    if sys.platform == "win32" or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _locked(path: Path, what: str) -> StudyLockedError:
    """The error of the loser; waits a moment for a winner that has not written its name yet."""
    deadline = time.monotonic() + _CONTENT_WAIT_S
    owner = owner_of(path)
    while not owner and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        owner = owner_of(path)
    pid, host, start = (owner.get(key, "unknown") for key in ("pid", "host", "start"))
    details: tuple[str, ...] = ()
    if host == socket.gethostname() and not _is_running(pid):
        details = (f"Process {pid} itself is gone; a child of it still holds the study.",)
    return StudyLockedError(
        f"Another process owns {what}: process {pid} on {host}, since {start} ({path}).",
        hint="Wait for it or stop it; the study is free as soon as the process and its children are gone.",
        details=details,
        data={"pid": pid, "host": host, "start": start},
    )
