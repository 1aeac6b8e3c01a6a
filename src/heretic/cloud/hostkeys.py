# SPDX-License-Identifier: Apache-2.0
"""Host keys of rented machines, pinned to the instance: a new one is written down, a changed one refused (H08).

The file has the format of OpenSSH's known_hosts, under a name that stands for the instance and not for an address:
providers give the same address and port to other machines later. Fabric, paramiko, ssh and rsync all use this file.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Final

from heretic.cloud.errors import HostKeyError
from heretic.cloud.types import Address, Instance
from heretic.durable import lock_file, release_lock

FILE: Final = "known_hosts"


def alias(instance: Instance, address: Address) -> str:
    """The name under which a machine's key is kept; a proxy may show a key of its own."""
    return f"heretic-vast-{instance.id}" + ("" if address.kind == "direct" else "-proxy")


def fingerprint(key: str) -> str:
    """SHA256 fingerprint of a key in base64, as OpenSSH shows it."""
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


class HostKeys:
    """The pinned keys in one folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def known(self, name: str) -> list[tuple[str, str]]:
        """(kind, base64) of the keys that are kept for a name."""
        try:
            lines = self.path.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return []
        words = [line.split() for line in lines]
        return [(entry[1], entry[2]) for entry in words if len(entry) >= 3 and entry[0] == name]

    def check(self, name: str, kind: str, key: str) -> None:
        """Pin the first key of a name; raise `HostKeyError` for another one than before."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.path.with_name(f"{FILE}.lock")
        held = lock_file(lock, wait=True, mode=0o600)
        try:
            known = self.known(name)
            if (kind, key) in known:
                return
            if known:
                raise self._changed(name, known, key)
            self._append(f"{name} {kind} {key}\n")
        finally:
            release_lock(held, lock)

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _changed(self, name: str, known: list[tuple[str, str]], key: str) -> HostKeyError:
        return HostKeyError(
            f"the machine behind {name} shows another host key than before; it may be another machine",
            details=(f"before: {fingerprint(known[0][1])}", f"now: {fingerprint(key)}"),
            hint=f"Nothing was sent. If you know why it changed, remove the line {name!r} from {self.path}.",
        )
