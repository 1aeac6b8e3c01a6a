# SPDX-License-Identifier: Apache-2.0
"""A batch of trials measured by this process and forked copies of it, one thread each.

The operations of a small model are too short to be shared among threads: two of them do the work of 1.6 on the demo
model, two processes that of 2. A copy needs no memory but what it writes, since weights, prepared prompts and kept
streams are pages of both. Linux and processors only: an accelerator cannot be forked.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Final

import torch

from heretic.evaluator.evaluator import Evaluator
from heretic.evaluator.outcome import CanWin, Hopeless, Outcome
from heretic.interventions.hooks import Edits

logger = logging.getLogger("heretic.evaluator")

FIRST_SHARE: Final = 0.75
"""Part of what is left that is handed out at once; the smaller rest evens out how long the shares take."""

PR_SET_PDEATHSIG: Final = 1
Found = list[tuple[int, list[Outcome]]]
"""Share numbers and the outcomes of their trials."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A batch: its trials, how they are shared out, and what ends one early."""

    trials: Sequence[Edits]
    shares: Sequence[range]
    can_win: CanWin | None
    hopeless: Hopeless | None

    def measured(self, evaluator: Evaluator, number: int) -> list[Outcome]:
        """The outcomes of one share."""
        trials = [self.trials[trial] for trial in self.shares[number]]
        return evaluator.score(trials, self.can_win, self.hopeless)

    def taken(self, evaluator: Evaluator, tickets: int) -> Iterator[tuple[int, list[Outcome]]]:
        """Takes shares from the pipe and measures them until none is left."""
        while True:
            try:
                number = os.read(tickets, 1)[0]
            except BlockingIOError:
                return
            yield number, self.measured(evaluator, number)


def processes_for(device: torch.device, trials: int) -> int:
    """How many processes measure batches of `trials`: one a thread, no more than trials, 1 where forking is no way."""
    if device.type != "cpu" or sys.platform != "linux":
        return 1
    return max(1, min(torch.get_num_threads(), trials))


def shares(trials: int, processes: int) -> list[range]:
    """Runs of trials in the order in which they are handed out, the large ones first (factoring self-scheduling)."""
    found: list[range] = []
    first = 0
    while first < trials:
        size = math.ceil(FIRST_SHARE * (trials - first) / processes)
        for _ in range(processes):
            if first < trials:
                found.append(range(first, min(first + size, trials)))
                first += size
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """One forked process and the parent's end of the line to it."""

    pid: int
    line: Connection


class Copies:
    """Measures like `Evaluator.score`, with the same outcomes. Made by `copied`."""

    def __init__(self, evaluator: Evaluator, count: int) -> None:
        self._evaluator = evaluator
        self._tickets = os.pipe()
        """One byte per share: who reads it measures the share. No lock that a killed process could keep."""
        os.set_blocking(self._tickets[0], False)
        self._copies: list[_Copy] = []
        for _ in range(count):
            here, there = Pipe()
            pid = os.fork()
            if pid == 0:
                for line in (here, *(copy.line for copy in self._copies)):
                    line.close()  # the parent's ends: else nobody would notice that it is gone
                _serve(evaluator, self._tickets[0], there)
            there.close()
            self._copies.append(_Copy(pid, here))

    def score(
        self, trials: Sequence[Edits], can_win: CanWin | None = None, hopeless: Hopeless | None = None
    ) -> list[Outcome]:
        """One outcome per trial. What a copy that died has left undone, this process does."""
        if not self._copies or len(trials) == 1:
            return self._evaluator.score(trials, can_win, hopeless)
        task = Task(trials, shares(len(trials), len(self._copies) + 1), can_win, hopeless)
        try:
            outcomes = self._shared(task)
        except BaseException:
            self.end()  # they are in the middle of a batch that nobody waits for
            raise
        for number in range(len(task.shares)):
            if number not in outcomes:
                outcomes[number] = task.measured(self._evaluator, number)
        return [outcome for number in range(len(task.shares)) for outcome in outcomes[number]]

    def _shared(self, task: Task) -> dict[int, list[Outcome]]:
        os.write(self._tickets[1], bytes(range(len(task.shares))))
        message = pickle.dumps(task)  # by `send` tensors would go through files in shared memory
        asked = [copy for copy in list(self._copies) if self._sent(copy, message)]
        outcomes = dict(task.taken(self._evaluator, self._tickets[0]))
        for copy in asked:
            outcomes.update(self._received(copy))
        return outcomes

    def _sent(self, copy: _Copy, message: bytes) -> bool:
        try:
            copy.line.send_bytes(message)
        except OSError:
            self._lost(copy)
            return False
        return True

    def _received(self, copy: _Copy) -> Found:
        try:
            found, said = copy.line.recv()
        except (EOFError, OSError):
            self._lost(copy)
            return []
        for record in said:
            logging.getLogger(record.name).handle(record)
        return list(found)

    def _lost(self, copy: _Copy) -> None:
        """Says how a copy ended; it is asked no more."""
        self._copies.remove(copy)
        copy.line.close()
        code = os.waitstatus_to_exitcode(os.waitpid(copy.pid, 0)[1])
        logger.warning("A process that measured trials ended with code %d; the others do its work.", code)

    def end(self) -> None:
        """Kill the copies, which hold nothing of their own; may be called again."""
        while self._copies:
            copy = self._copies.pop()
            os.kill(copy.pid, signal.SIGKILL)
            os.waitpid(copy.pid, 0)
            copy.line.close()

    def close(self) -> None:
        """End, and give back the pipe."""
        self.end()
        for descriptor in self._tickets:
            os.close(descriptor)


def _serve(evaluator: Evaluator, tickets: int, line: Connection) -> None:
    """The life of a copy: measures shares until the parent is gone. Does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        gc.freeze()  # what was there before stays on shared pages
        said = _Said()
        while True:
            task: Task = line.recv()
            found: Found = []
            try:
                found.extend(task.taken(evaluator, tickets))
            except Exception as error:  # noqa: BLE001  # the parent measures the share again and meets the same
                logger.warning("A share of a batch failed (%s) and is measured again.", type(error).__name__)
            line.send((found, said.taken()))
    except EOFError:
        code = 0
    finally:
        os._exit(code)


class _Said(logging.Handler):
    """Collects what a copy has to say for the parent, which owns the terminal and the log file."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        logging.captureWarnings(True)
        for name in list(logging.root.manager.loggerDict):
            other = logging.getLogger(name)
            other.handlers.clear()
            other.propagate = True
        logging.root.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        """Kept with its text made, because arguments may not be picklable."""
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)

    def taken(self) -> list[logging.LogRecord]:
        """What was said since the last time."""
        taken, self._records = self._records, []
        return taken


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """So many threads of torch for the length of the `with`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def copied(evaluator: Evaluator, processes: int) -> Iterator[Copies]:
    """Copies for the length of the `with`, each process with one thread; with one process there are none."""
    name = "TOKENIZERS_PARALLELISM"
    unset = name not in os.environ
    os.environ.setdefault(name, "false")  # else the library warns of each fork; a batch tokenises nothing
    with ExitStack() as stack:
        if unset:
            stack.callback(os.environ.pop, name, None)
        stack.enter_context(computing_threads(1 if processes > 1 else torch.get_num_threads()))
        copies = Copies(evaluator, processes - 1)
        stack.callback(copies.close)
        yield copies
