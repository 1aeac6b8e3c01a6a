# SPDX-License-Identifier: Apache-2.0
"""Which owners of a shared study still live, by the observer's own clock alone (reliability A17)."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from heretic.exceptions import HereticError
from heretic.study.claims import NOBODY, Claim, Claims
from heretic.study.storage import Location, translated

_logger = logging.getLogger("heretic.study")

LONGEST_BEAT_S: Final = 60.0


def new_owner() -> str:
    """A name for this worker: place, process id, and a part that is never used again."""
    return f"{_place()}|{os.getpid()}|{uuid.uuid4().hex[:12]}"


def shown_owner(owner: str) -> str:
    """The owner in words."""
    place, _, rest = owner.partition("|")
    return f"process {rest.partition('|')[0]} on {place.partition('/')[0]}"


def is_gone(owner: str) -> bool:
    """True when the owner was a process of this very system and that process has ended.

    False means unknown. Host names alone are no proof (rented machines share them), so the place holds the
    kernel's boot id and process-id namespace; where there are none the answer is always False.
    """
    place, _, rest = owner.partition("|")
    pid = rest.partition("|")[0]
    if place.endswith("/") or place != _place() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        mark = f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        mark = ""
    return f"{socket.gethostname()}/{mark}"


class Watch:
    """How long each open row's owner and counter have stood still, as this observer saw it.

    lease_s: a row that stands still for longer is expired. After a gap in the observation (the storage was
    away, this process was stopped) nobody could renew or be seen to, so the time starts again.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._seen: dict[int, tuple[str, int, float]] = {}
        self._last = clock()
        self._lock = threading.Lock()

    def observe(self, claims: Mapping[int, Claim]) -> None:
        """Takes note of the present counters."""
        with self._lock:
            now = self._clock()
            gap, self._last = now - self._last, now
            kept = self._seen if gap <= self._lease_s / 2 else {}
            self._seen = {}
            for index, claim in claims.items():
                if not claim.unfinished:
                    continue
                owner, counter, since = kept.get(index, (NOBODY, -1, now))
                same = (owner, counter) == (claim.owner, claim.counter)
                self._seen[index] = (claim.owner, claim.counter, since if same else now)

    def expired(self, claim: Claim) -> bool:
        """True when the claim's owner has lost it."""
        if claim.owner == NOBODY or is_gone(claim.owner):
            return True
        with self._lock:
            owner, counter, since = self._seen.get(claim.index, (NOBODY, -1, self._clock()))
            same = (owner, counter) == (claim.owner, claim.counter)
            return same and self._clock() - since >= self._lease_s


class Heartbeat:
    """A thread that renews this owner's rows and observes the others' every min(60 s, a third of the lease).

    claims: with a patience of 0, so that the thread ends when it is asked to.
    """

    def __init__(self, claims: Claims, watch: Watch, location: Location, lease_s: float) -> None:
        self._claims = claims
        self._watch = watch
        self._location = location
        self._every_s = min(LONGEST_BEAT_S, lease_s / 3)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heretic-lease", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                with translated(self._location):
                    self._claims.renew()
                self._watch.observe(self._claims.all())
            except HereticError as error:
                # The search itself waits for the storage and reports it; here the next beat is the repetition.
                _logger.debug("A lease could not be renewed: %s", error.message)
