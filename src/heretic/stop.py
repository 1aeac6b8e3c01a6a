# SPDX-License-Identifier: Apache-2.0
"""The wish to stop, as a value that loops look at between batches (requirements R-CLI-26, reliability R06).

The handlers that set it are in `heretic.cli.signals`; a library user sets it directly.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EXIT_HANGUP = 129
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@dataclass(slots=True)
class StopFlag:
    """False until somebody asks to stop; `exit_code` is what the program returns because of that.

    urgent: no time for a menu or for confirming finalists (SIGTERM and SIGHUP: the process is about to be
    killed).
    """

    requested: bool = False
    urgent: bool = False
    exit_code: int = 0

    def __bool__(self) -> bool:
        return self.requested

    def request(self, *, exit_code: int = EXIT_INTERRUPTED, urgent: bool = False) -> None:
        """Ask to stop after the running batch."""
        self.requested = True
        self.urgent = self.urgent or urgent
        self.exit_code = exit_code

    def clear(self) -> None:
        """The user went on (from the menu): the run is an ordinary one again."""
        self.requested = self.urgent = False
        self.exit_code = 0


class TerminatedError(BaseException):
    """Leave at once with `exit_code`; like KeyboardInterrupt it is no Exception, so nothing below catches
    it.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, Ctrl-C raises KeyboardInterrupt at once, also when a run has its own handler installed.

    The menu and the chat use it: there Ctrl-C means "stop this answer" and not "end the study" (R-MEN-03).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
