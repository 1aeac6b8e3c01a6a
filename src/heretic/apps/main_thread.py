# SPDX-License-Identifier: Apache-2.0
"""Work that has to be done in the main thread: a stranger's template has a time limit there only (reliability F04).

The limit is a timer signal, which Python delivers to the main thread. A server answers in other threads, so its main
thread serves a queue of such work.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final, Protocol, TypeVar

from heretic.exceptions import GenerationError

T = TypeVar("T")
LONGEST_WAIT_S: Final = 900.0
"""Loading a large model is such work as well."""


class Runner(Protocol):
    """Calls a function somewhere and returns or raises what it does."""

    def __call__(self, act: Callable[[], T], /) -> T: ...


def directly(act: Callable[[], T], /) -> T:
    """Call it here."""
    return act()


class MainThread:
    """A queue of work. `run` hands it over from any thread; `serve` does it, in the main thread, until told to end.

    What comes before `serve` waits for it; the main thread itself does its work at once.
    """

    def __init__(self) -> None:
        self._work: queue.Queue[tuple[Future[Any], Callable[[], Any]]] = queue.Queue()
        self._ended = False

    def run(self, act: Callable[[], T], /) -> T:
        """Do `act` in the main thread and return what it returns."""
        if threading.current_thread() is threading.main_thread():
            return act()
        future: Future[T] = Future()
        self._work.put((future, act))
        if self._ended:
            future.cancel()
        try:
            return future.result(timeout=LONGEST_WAIT_S)
        except CancelledError as error:
            raise GenerationError("the program is ending", hint="Start it again.") from error
        except TimeoutError as error:
            future.cancel()
            raise GenerationError(
                f"the program was busy for {LONGEST_WAIT_S:g} s", hint="Restart it."
            ) from error

    def serve(self, ended: threading.Event, poll_s: float = 0.2) -> None:
        """Do what comes until `ended` is set; KeyboardInterrupt passes through."""
        assert threading.current_thread() is threading.main_thread()
        try:
            while not ended.is_set():
                try:
                    future, act = self._work.get(timeout=poll_s)
                except queue.Empty:
                    continue
                _do(future, act)
        finally:
            self._ended = True
            while not self._work.empty():
                self._work.get_nowait()[0].cancel()


def _do(future: Future[Any], act: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(act())
    except Exception as error:  # noqa: BLE001  # it belongs to whoever asked, and is raised there
        future.set_exception(error)
    except BaseException:
        future.set_exception(GenerationError("the program is ending", hint="Start it again."))
        raise
