# SPDX-License-Identifier: Apache-2.0
"""Time as a value that is passed in, so that a test can let hours go by."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time in seconds since the epoch, and a way to wait."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait; Ctrl-C ends it."""
        time.sleep(max(0.0, seconds))


def utc(moment: float) -> str:
    """A moment as `2026-01-02 03:04:05 UTC`; `never` for zero."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment)) if moment else "never"
