# SPDX-License-Identifier: Apache-2.0
"""The local record of every rental: appended and flushed before money can flow (reliability H02, R13).

One JSON object per line. The line that announces a rental, with its unique label, is on the disk before the request
is sent, so that a lost answer, a kill or a power cut leaves something to look for. A torn last line is skipped when
reading and closed off when writing. The file holds no key and no address of a machine.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from heretic.cloud.clock import Clock
from heretic.cloud.types import Instance, Rental
from heretic.durable import lock_file, release_lock, sync
from heretic.exceptions import FileOperationError

FILE: Final = "rentals.ledger.jsonl"
OPEN: Final = ("intended", "created")
"""Rentals that may cost money now."""

FOREIGN: Final = "foreign"
"""An instance that this program did not rent; remembered for what was fetched from it."""


class Ledger:
    """The ledger in one folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.path = folder / FILE
        self._clock = clock

    def new_label(self, tier: str) -> str:
        """A label nobody has used: it is how a rental is found again when its answer was lost."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._clock.now()))
        return f"heretic-{tier.lower().replace('_', '-')}-{stamp}-{secrets.token_hex(4)}"

    def append(self, event: str, label: str, **fields: object) -> None:
        """Write one line and flush it to the disk. Raises `FileOperationError`; then nothing may be rented."""
        entry = {"time": self._clock.now(), "event": event, "label": label, **fields}
        line = json.dumps(entry, sort_keys=True).encode("ascii") + b"\n"
        try:
            self._prepare()
            lock = self.path.with_name(f"{self.path.name}.lock")
            held = lock_file(lock, wait=True, mode=0o600)
            try:
                self._write(line)
            finally:
                release_lock(held, lock)
        except OSError as error:
            raise FileOperationError(
                f"the rental ledger {self.path} cannot be written: {error.strerror}",
                hint="Free some space or repair the folder; without the ledger nothing is rented.",
            ) from error

    def rentals(self) -> list[Rental]:
        """Every rental in the order of their beginning, as the lines tell it."""
        found: dict[str, Rental] = {}
        for entry in self._entries():
            label = entry.get("label")
            if isinstance(label, str) and label:
                found[label] = _apply(found.get(label), entry)
        return list(found.values())

    def open_rentals(self) -> list[Rental]:
        """Those that may cost money now."""
        return [rental for rental in self.rentals() if rental.status in OPEN]

    def of(self, instance: Instance | int) -> Rental | None:
        """The rental of an instance, by id, else by label; None for an instance of somebody else."""
        identity = instance if isinstance(instance, int) else instance.id
        label = "" if isinstance(instance, int) else instance.label
        for rental in reversed(self.rentals()):
            if rental.id == identity or (label and rental.label == label):
                return rental
        return None

    def owns(self, instance: Instance) -> bool:
        """True when this program rented it."""
        rental = self.of(instance)
        return rental is not None and rental.status != FOREIGN

    def observed(self, instance: Instance) -> None:
        """Remember what was seen of an instance of ours, where it is news."""
        rental = self.of(instance)
        if rental is None or rental.status == FOREIGN:
            return
        if rental.id != instance.id:
            self.append("created", rental.label, id=instance.id)
        if rental.state != instance.state:
            self.append("observed", rental.label, id=instance.id, state=instance.state)

    def fetched(self, instance: Instance, model: str) -> None:
        """Remember that a model was downloaded and verified."""
        rental = self.of(instance)
        label = rental.label if rental is not None else f"instance-{instance.id}"
        self.append("fetched", label, id=instance.id, model=model)

    def _entries(self) -> list[Mapping[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FileOperationError(
                f"the rental ledger {self.path} cannot be read: {error.strerror}",
                hint="Repair the file's permissions; it knows what was rented.",
            ) from error
        entries: list[Mapping[str, Any]] = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a kill; the whole line before it stands
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def _prepare(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o700)
            sync(folder.parent)

    def _write(self, line: bytes) -> None:
        new = not self.path.exists()
        if not new and self.path.stat().st_size and self.path.read_bytes()[-1:] != b"\n":
            line = b"\n" + line
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync(self.path.parent)


def _apply(rental: Rental | None, entry: Mapping[str, Any]) -> Rental:
    """The rental after one more line; unknown events and fields of later versions are passed over."""
    event, when = str(entry.get("event", "")), _float(entry.get("time"))
    if rental is None:
        rental = Rental(label=str(entry["label"]), status=FOREIGN, started=when)
    identity = entry.get("id")
    if isinstance(identity, int):
        rental = replace(rental, id=identity)
    if event == "intended":
        return replace(
            rental,
            status="intended",
            started=when,
            hourly=_float(entry.get("hourly")),
            storage_hourly=_float(entry.get("storage_hourly")),
            max_hours=_float(entry.get("max_hours")),
            disk_gb=int(_float(entry.get("disk_gb"))),
            tier=str(entry.get("tier", "")),
            offer=int(_float(entry.get("offer"))),
        )
    if event in ("created", "refused", "absent", "gone"):
        return replace(rental, status=event, lease_end=_first_lease(rental, event, when))
    if event == "lease":
        return replace(
            rental,
            lease_end=_float(entry.get("lease_end")),
            max_hours=_float(entry.get("max_hours")) or rental.max_hours,
        )
    if event == "observed":
        state = str(entry.get("state", ""))
        known = rental.paused_with if state in ("stopped", "unknown") else None
        return replace(rental, state=state, observed=when, paused_with=known)
    if event == "paused" and isinstance(entry.get("models"), list):
        return replace(rental, paused_with=tuple(str(model) for model in entry["models"]))
    if event == "fetched" and isinstance(entry.get("model"), str):
        return replace(rental, fetched=tuple(dict.fromkeys((*rental.fetched, entry["model"]))))
    return rental


def _first_lease(rental: Rental, event: str, when: float) -> float:
    if event == "created" and not rental.lease_end and rental.max_hours:
        return when + rental.max_hours * 3600
    return rental.lease_end


def _float(raw: object) -> float:
    return float(raw) if isinstance(raw, (int, float)) and not isinstance(raw, bool) else 0.0
