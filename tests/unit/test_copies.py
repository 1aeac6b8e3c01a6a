# SPDX-License-Identifier: Apache-2.0
"""Forked copies of the process measure what one process measures; one that dies costs nothing but time
(algorithms 6.2, reliability A09)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from heretic.decoding import FastEngine
from heretic.evaluator import Evaluator, Lengths, Outcome
from heretic.evaluator.copies import computing_threads, copied, processes_for, shares
from heretic.interventions.hooks import Edits
from heretic.model.model import Model
from heretic.scorers.markers import MarkerScorer
from heretic.scorers.protocol import Judgement
from heretic.testing.workbench import loaded_pico, removal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are forked on Linux only")


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    system_prompt: str | None = None


BAD = [Text(text * times) for times in (1, 2) for text in ("How? ", "Why", "List it. ", "a", "Go on ")]
GOOD = [Text(text) for text in ("Good morning", "What is bread made of?", "b", "Name two colours")]


@cache
def model() -> Model:
    return loaded_pico("olmo2", seed=2, changes={"vocab_size": 262})


@cache
def trials() -> tuple[Edits, ...]:
    return tuple(removal(model(), seed, strength) for strength in (0.3, 1.0) for seed in range(1, 5))


class Scorer(MarkerScorer):
    """Markers; in a copy it does what `in_copies` says, which is how a test reaches into one."""

    main = os.getpid()
    in_copies = ""

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        if os.getpid() != self.main:
            if self.in_copies == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.in_copies == "sleep":
                time.sleep(60)
            if self.in_copies == "raise":
                raise RuntimeError("not this time")
            if self.in_copies == "say":
                logging.getLogger("heretic.scorers").warning("said in %d", os.getpid())
        return super().judge(requests, replies, final=final)


def evaluator(in_copies: str = "") -> Evaluator:
    scorer = Scorer(core=[r"\w*[a-cQ-T]\w*"])
    scorer.in_copies = in_copies
    return Evaluator(
        model(),
        FastEngine(model()),
        scorer,
        bad=BAD,
        good=GOOD,
        lengths=Lengths(response=8, check=4, kl=4),
        width=16,
    )


def shown(outcomes: Sequence[Outcome]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for outcome in outcomes:
        assert outcome.kl is not None
        tokens = [reply.tokens for reply in outcome.replies]
        found.append((outcome.status, outcome.hits, tokens, round(outcome.kl.mean, 5), list(outcome.labels)))
    return found


@cache
def expected() -> list[tuple[object, ...]]:
    return shown(evaluator().score(trials()))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_copies_measure_what_one_process_measures(processes: int) -> None:
    """Batches of all sizes, one after the other. Control: the trials differ from one another."""
    assert len({str(entry) for entry in expected()}) > 1
    with copied(evaluator(), processes) as copies:
        for count in (len(trials()), 1, 3, 2):
            assert shown(copies.score(trials()[:count])) == expected()[:count]


def test_several_processes_take_part() -> None:
    """Control: with one process nothing is said, because nothing runs in a copy."""
    for processes, expectation in ((3, 2), (1, 0)):
        said: set[str] = set()

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.add(record.getMessage())  # noqa: B023  # removed before the loop goes on

        listener = Listener()
        logging.getLogger("heretic.scorers").addHandler(listener)
        try:
            with copied(evaluator("say"), processes) as copies:
                for _ in range(3):
                    copies.score(trials())
        finally:
            logging.getLogger("heretic.scorers").removeHandler(listener)
        assert len(said) == expectation


@pytest.mark.parametrize("failure", ["die", "raise"])
def test_what_a_copy_leaves_undone_is_done_here(failure: str, caplog: pytest.LogCaptureFixture) -> None:
    """Shares taken by a process that is killed, or that meets an error, are measured by this one; said once each."""
    with copied(evaluator(failure), 3) as copies:
        while not caplog.records:  # this process may have been the quicker one
            assert shown(copies.score(trials())) == expected()
        assert shown(copies.score(trials())) == expected()
    text = "ended with code -9" if failure == "die" else "failed (RuntimeError)"
    assert all(text in record.getMessage() for record in caplog.records)
    assert len(caplog.records) >= 1


def test_an_error_in_this_process_ends_the_copies_and_the_next_batch_is_whole() -> None:
    """Nothing of the batch that was given up reaches the next one."""
    judge = evaluator()
    with copied(judge, 2) as copies:
        whole, judge.score = judge.score, lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            copies.score(trials())
        judge.score = whole  # type: ignore[method-assign]
        assert shown(copies.score(trials()[::-1])) == expected()[::-1], "other trials than those given up"


def children() -> set[str]:
    """Processes of this one; others than ours may be there, such as the browser of another test."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("this system does not list the children of a process")
    return {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def test_one_thread_each_and_no_child_left() -> None:
    """Inside, this process computes with one thread, outside with what it had; no process is left behind."""
    before = children()
    with computing_threads(2):
        with copied(evaluator(), 2):
            assert torch.get_num_threads() == 1
            assert len(children() - before) == 1, "control: a copy is seen"
        assert torch.get_num_threads() == 2
        with copied(evaluator(), 1):
            assert torch.get_num_threads() == 2, "control: alone it keeps its threads"
    assert children() <= before


def test_how_many_processes() -> None:
    with computing_threads(3):
        assert processes_for(torch.device("cpu"), 8) == 3
        assert processes_for(torch.device("cpu"), 2) == 2
        assert processes_for(torch.device("cuda"), 8) == 1, "an accelerator cannot be forked"
    with computing_threads(1):
        assert processes_for(torch.device("cpu"), 8) == 1


@pytest.mark.parametrize(("count", "processes"), [(8, 2), (1, 2), (3, 2), (16, 16), (16, 3), (5, 8)])
def test_shares_cover_every_trial_once_and_get_smaller(count: int, processes: int) -> None:
    found = shares(count, processes)
    assert [trial for share in found for trial in share] == list(range(count))
    sizes = [len(share) for share in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found) >= min(count, processes), "everybody has something to do"


ORPHANED = """
    import os, signal, sys, threading, time
    sys.path.insert(0, {tests!r})
    import test_copies
    with test_copies.copied(test_copies.evaluator({doing!r}), 3) as copies:
        print(*[copy.pid for copy in copies._copies], flush=True)
        threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        copies.score(test_copies.trials())
        time.sleep(60)
"""


@pytest.mark.parametrize("doing", ["", "sleep"])
def test_copies_of_a_killed_process_are_gone(doing: str) -> None:
    """Idle or in the middle of a share: nobody else ends them, and they share the study's lock."""
    script = textwrap.dedent(ORPHANED).format(tests=str(Path(__file__).parent), doing=doing)
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(word) for word in ended.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Zombies, which nobody may reap in a container, do not count."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
