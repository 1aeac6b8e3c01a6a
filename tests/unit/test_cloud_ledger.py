# SPDX-License-Identifier: Apache-2.0
"""The rental ledger survives kills, holds no secret, and knows what is ours (reliability H02, R13)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from heretic.cloud.clock import SystemClock
from heretic.cloud.errors import HostKeyError
from heretic.cloud.hostkeys import HostKeys, fingerprint
from heretic.cloud.lease import lease_text
from heretic.cloud.ledger import Ledger
from heretic.cloud.types import Instance, Rental
from heretic.exceptions import FileOperationError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "cloud", SystemClock())


def seen(identity: int, label: str, state: str = "running") -> Instance:
    return Instance(identity, label, state, state)  # type: ignore[arg-type]


def test_labels_are_unique() -> None:
    ledger = Ledger(Path(), SystemClock())
    assert len({ledger.new_label("RTX_4090") for _ in range(2000)}) == 2000


def test_the_life_of_a_rental(ledger: Ledger) -> None:
    assert ledger.rentals() == []
    ledger.append("intended", "a", tier="H100", hourly=2.5, max_hours=4.0, disk_gb=400)
    assert [rental.status for rental in ledger.open_rentals()] == ["intended"]
    ledger.append("created", "a", id=7)
    ledger.observed(seen(7, "a"))
    ledger.fetched(seen(7, "a"), "m1")
    (rental,) = ledger.rentals()
    assert (rental.id, rental.status, rental.state, rental.fetched) == (7, "created", "running", ("m1",))
    assert rental.lease_end == pytest.approx(rental.started + 4 * 3600, abs=5)
    ledger.append("gone", "a")
    assert not ledger.open_rentals()


def test_a_rental_is_found_by_its_label_when_its_id_was_never_written(ledger: Ledger) -> None:
    ledger.append("intended", "a", max_hours=1.0)
    assert ledger.owns(seen(9, "a")) and not ledger.owns(seen(9, "b")) and not ledger.owns(seen(9, ""))
    ledger.observed(seen(9, "a"))
    assert ledger.rentals()[0].id == 9


def test_a_machine_of_somebody_else_is_not_ours_by_a_download(ledger: Ledger) -> None:
    ledger.fetched(seen(42, "colleague"), "m")
    assert not ledger.owns(seen(42, "colleague"))
    found = ledger.of(42)
    assert found is not None and found.fetched == ("m",) and not ledger.open_rentals()


@pytest.mark.parametrize("torn", [b'{"event": "crea', b"\xff\xfe", b"[]\n", b"null\n", b'{"label": 5}\n'])
def test_a_torn_line_loses_itself_alone(ledger: Ledger, torn: bytes) -> None:
    ledger.append("intended", "a")
    with ledger.path.open("ab") as stream:
        stream.write(torn)
    ledger.append("intended", "b")
    assert [rental.label for rental in ledger.rentals()] == ["a", "b"]


def test_unknown_events_and_fields_of_later_versions_are_passed_over(ledger: Ledger) -> None:
    ledger.append("intended", "a", colour="red")
    ledger.append("transcended", "a", id="x")
    assert ledger.rentals()[0].status == "intended"


def test_only_the_owner_reads_it(ledger: Ledger) -> None:
    ledger.append("intended", "a")
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(FileOperationError):
        Ledger(tmp_path / "file" / "cloud", SystemClock()).append("intended", "a")


WRITER = """
import sys
from pathlib import Path
from heretic.cloud.clock import SystemClock
from heretic.cloud.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), SystemClock())
for number in range(40):
    ledger.append("intended", f"{sys.argv[2]}-{number}", filler="x" * 3000)
"""


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "state"), name]) for name in ("a", "b")
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    labels = {rental.label for rental in Ledger(tmp_path / "state", SystemClock()).rentals()}
    assert labels == {f"{name}-{number}" for name in ("a", "b") for number in range(40)}


def test_every_line_is_flushed_before_the_call_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H02: "fsynced before the call". The line is complete when fsync is asked for."""
    flushed: list[str] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        if ledger.path.exists() and os.path.samestat(os.fstat(descriptor), ledger.path.stat()):
            flushed.append(ledger.path.read_text(encoding="ascii"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    ledger.append("intended", "a")
    assert len(flushed) == 1 and flushed[0].endswith("\n") and json.loads(flushed[0])["label"] == "a"


def test_leases_in_words() -> None:
    assert lease_text(None, 0) == "none" and lease_text(Rental("a", "created", 0), 5) == "none"
    rental = Rental("a", "created", 0, lease_end=7200)
    assert lease_text(rental, 0) == "2h 00m left" and lease_text(rental, 7500).startswith("OVERRUN by 5m")


KEY_A = "AAAAC3NzaC1lZDI1NTE5AAAAIGKsxBVZ9tv5pmRvUqWQbxRrXPvhfZdSrrUaE0xeVrxY"
KEY_B = "AAAAC3NzaC1lZDI1NTE5AAAAIGKsxBVZ9tv5pmRvUqWQbxRrXPvhfZdSrrUaE0xeVrxZ"


def test_a_host_key_is_pinned_to_its_name(tmp_path: Path) -> None:
    """H08: new is written down, the same is accepted, another value or another kind is refused."""
    keys = HostKeys(tmp_path / "state")
    keys.check("one", "ssh-ed25519", KEY_A)
    keys.check("one", "ssh-ed25519", KEY_A)
    keys.check("two", "ssh-ed25519", KEY_B)
    for kind, key in (("ssh-ed25519", KEY_B), ("ssh-rsa", KEY_A)):
        with pytest.raises(HostKeyError) as caught:
            keys.check("one", kind, key)
        assert fingerprint(KEY_A) in " ".join(caught.value.details)
    assert keys.path.read_text(encoding="ascii").count("\n") == 2
