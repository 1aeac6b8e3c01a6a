# SPDX-License-Identifier: Apache-2.0
"""Signal handlers that turn a signal into a wish to stop (requirements R-CLI-26, reliability R06)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from heretic.stop import EXIT_HANGUP, EXIT_INTERRUPTED, EXIT_TERMINATED, StopFlag, TerminatedError

GRACE_S: Final = 6.0
"""After SIGTERM the running batch has this long; then the program leaves without it."""

LIMIT_S: Final = 8.0
"""Docker kills after 10 s. A process that is inside native code then ends here; open trials are adopted
next time.
"""


@contextmanager
def stop_on_signals(stop: StopFlag, say: Callable[[str], None], *, terminal: bool) -> Iterator[None]:
    """While it lasts: SIGINT sets `stop`, a second one raises KeyboardInterrupt; SIGTERM, and SIGHUP with a
    terminal, set it urgently. SIGHUP without a terminal is ignored. `say` must be safe in a signal handler.
    """

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; a library user in another thread sets `stop` directly.
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.request(exit_code=EXIT_INTERRUPTED)
        say("stopping after the running batch; press Ctrl-C again to stop at once")

    def on_terminate(number: int, frame: FrameType | None) -> None:
        code = EXIT_TERMINATED if number == signal.SIGTERM else EXIT_HANGUP
        if stop.urgent:
            raise TerminatedError(code)
        stop.request(exit_code=code, urgent=True)
        say("asked to leave; storing what is finished")
        threading.Thread(target=_insist, args=(stop, number, code), daemon=True).start()

    handlers: dict[int, Any] = {signal.SIGINT: on_interrupt, signal.SIGTERM: on_terminate}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = on_terminate if terminal else signal.SIG_IGN
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _insist(stop: StopFlag, number: int, exit_code: int) -> None:
    """Repeat the signal when the grace is over, and end the process when even that is not heard."""
    time.sleep(GRACE_S)
    if stop.urgent:
        signal.raise_signal(number)
    time.sleep(LIMIT_S - GRACE_S)
    if stop.urgent:
        os._exit(exit_code)
