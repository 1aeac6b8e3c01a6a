# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a process and its descendants, read from /proc; pages that several of them share count once."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

INTERVAL_S = 0.5
"""Seconds between two looks, long against the cost of a look (9 ms for a process of 1 GB)."""


def highest_resident_bytes(pid: int) -> int:
    """VmHWM, the largest resident size so far, of one process in bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def proportional_bytes(pid: int) -> int:
    """Pss of one process in bytes: a page of n processes counts 1/n in each, so that sums are true; 0 if gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(found.split()[1]) * 1024


def descendants(pid: int) -> list[int]:
    """The process and everything it started, as far as it is still alive."""
    found, waiting = [pid], [pid]
    while waiting:
        parent = waiting.pop()
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                fresh = [int(word) for word in children.read_text(encoding="ascii").split()]
            except OSError:
                continue
            found += fresh
            waiting += fresh
    return found


class PeakMemory:
    """Watches a process tree from a thread: `with PeakMemory(pid) as watch: ...; watch.peak_bytes`.

    peak_bytes is the largest sum of proportional sizes seen, and at least the root's own high-water mark, so that a
    short peak of a single process is never missed. None where there is no /proc.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak_bytes(self) -> int | None:
        """Highest figure so far."""
        return self._peak or None

    def _look(self) -> None:
        total = sum(proportional_bytes(pid) for pid in descendants(self._pid))
        self._peak = max(self._peak, total, highest_resident_bytes(self._pid))

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._look()

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
