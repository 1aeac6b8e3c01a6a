# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of a process and its descendants, read from /proc."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

INTERVAL_S = 0.25
"""Seconds between two looks: short against a trial, long against the cost of a look (about 1 ms)."""


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """VmRSS (now) or VmHWM (highest so far) of one process in bytes; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


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

    peak_bytes is the largest sum of resident sizes seen (pages shared between processes count twice), and at
    least the root's own high-water mark, so that a short peak of a single process is never missed. None where
    there is no /proc.
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
        total = sum(resident_bytes(pid) for pid in descendants(self._pid))
        self._peak = max(self._peak, total, resident_bytes(self._pid, "VmHWM"))

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
