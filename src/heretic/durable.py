# SPDX-License-Identifier: Apache-2.0
"""The system calls behind `publish`: kernel locks, flushing to the disk, the atomic exchange of two names."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

from heretic.exceptions import OutputExistsError

_RENAME_EXCHANGE = 2
"""The flag of Linux renameat2 and of macOS renamex_np (RENAME_SWAP); both have the value 2."""


def sync(path: Path) -> None:
    """fsync a file or, where the system can, a folder."""
    if sys.platform == "win32":
        if path.is_file():
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; False where the kernel or the file system cannot."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        current = -100  # AT_FDCWD: the paths are absolute, no folder descriptor is needed
        status = library.renameat2(current, names[0], current, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        status = library.renamex_np(names[0], names[1], _RENAME_EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if status and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        raise OSError(number, os.strerror(number), str(first))
    return not status


def lock_file(path: Path, *, wait: bool, mode: int = 0o666) -> int:
    """Open `path` and lock it in the kernel; the lock dies with the process. Returns the descriptor.

    The name may be unlinked or renamed by the holder, so the lock counts only if the name still leads to
    our inode.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        descriptor = os.open(path, flags, mode)
        try:
            _lock_descriptor(descriptor, wait=wait)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                    return descriptor
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise OutputExistsError(
                f"Another process is writing {path.with_suffix('').name}.",
                hint="Wait for it to finish, or choose another output path.",
            ) from error
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock_descriptor(descriptor: int, *, wait: bool) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)

    def release_lock(descriptor: int, path: Path) -> None:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
else:
    import fcntl

    def _lock_descriptor(descriptor: int, *, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    def release_lock(descriptor: int, path: Path) -> None:
        # Unlinked while held: a waiter then finds that its inode lost the name, and opens a new file.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)
