# SPDX-License-Identifier: Apache-2.0
"""The rim: every ending has its exit code, its sentence, its document (requirements R-CLI-28, R-FMT-03, REL-R07)."""

from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path

import pytest

from heretic import exceptions
from heretic.cli.context import Context
from heretic.cli.flags import CommonFlags
from heretic.cli.rim import guarded
from heretic.cli.run import conclude
from heretic.console import Console
from heretic.exceptions import HereticError, InterruptedRunError, StudyLockedError
from heretic.report import Divergence, Measurement, Rate, RunReport, TrialReport
from heretic.stop import EXIT_TERMINATED, StopFlag, TerminatedError

SECRET = "hf_" + "Qq7" * 12


class Invocation:
    """A context with streams that can be read."""

    def __init__(self, **flags: bool) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.flags = CommonFlags(**flags)  # type: ignore[arg-type]  # switches only
        console = Console(stdout=self.out, stderr=self.err, json=self.flags.json, verbose=self.flags.verbose)
        self.context = Context(console, self.flags)

    def end_with(self, error: BaseException) -> int:
        def action() -> int:
            raise error

        return guarded(action, self.context)


def leaves() -> list[type[HereticError]]:
    found = [entry for entry in vars(exceptions).values() if isinstance(entry, type)]
    return [entry for entry in found if issubclass(entry, HereticError)]


@pytest.mark.parametrize("kind", leaves())
def test_each_error_of_the_tree_becomes_a_sentence_a_code_and_a_document(kind: type[HereticError]) -> None:
    """REL-18: every typed failure is non-zero and documented."""
    run = Invocation(json=True)
    code = run.end_with(kind("what happened", hint="the cure", details=("finding",), resume="heretic M"))
    assert code == kind.exit_code and code in (1, 2, 3, 130)
    document = json.loads(run.out.getvalue())
    assert document["status"] == "failed" and document["exit_code"] == code
    assert document["error"] == {
        "type": kind.__name__, "message": "what happened", "remedy": "the cure", "details": ["finding"],
        "resume": "heretic M",
    }  # fmt: skip
    for expected in ("error: what happened", "finding", "the cure", "heretic M"):
        assert expected in run.err.getvalue()
    assert "Traceback" not in run.err.getvalue()


def test_success_passes_its_code() -> None:
    run = Invocation(json=True)
    assert guarded(lambda: 0, run.context) == 0
    assert json.loads(run.out.getvalue())["status"] == "done"


def test_a_bug_is_one_line_and_the_path_of_its_traceback() -> None:
    """REL-R07; without a log file a crash file keeps the traceback, without secrets."""
    run = Invocation()
    assert run.end_with(ZeroDivisionError(f"by {SECRET}\nsecond line")) == 1
    shown = run.err.getvalue()
    assert "unexpected ZeroDivisionError: by [redacted]" in shown and "second line" not in shown
    (path,) = re.findall(r"(\S+\.log)", shown)
    text = Path(path).read_text(encoding="utf-8")
    assert "Traceback" in text and "ZeroDivisionError" in text and SECRET not in text
    Path(path).unlink()


def test_the_traceback_shows_with_verbose_only() -> None:
    run = Invocation(verbose=True)
    run.end_with(StudyLockedError("locked"))
    assert "Traceback" in run.err.getvalue()
    silent = Invocation()
    silent.end_with(StudyLockedError("locked"))
    assert "Traceback" not in silent.err.getvalue()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_by_its_number(number: int) -> None:
    run = Invocation(json=True)
    assert run.end_with(OSError(number, "anything", "/x/file")) == 1
    error = json.loads(run.out.getvalue())["error"]
    assert error["type"] == "DiskSpaceError" and "/x/file" in error["message"]


def test_memory_is_known_by_type_not_by_words() -> None:
    run = Invocation(json=True)
    run.end_with(MemoryError())
    assert json.loads(run.out.getvalue())["error"]["type"] == "HostMemoryError"
    torch = pytest.importorskip("torch")
    run = Invocation(json=True)
    run.end_with(torch.OutOfMemoryError("x"))
    assert json.loads(run.out.getvalue())["error"]["type"] == "CUDAOutOfMemoryError"
    run = Invocation(json=True)
    run.end_with(RuntimeError("out of memory"))
    error = json.loads(run.out.getvalue())["error"]
    assert error["type"] == "UnexpectedError"
    Path(error["data"]["log"]).unlink()


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (TerminatedError(143), 143), (TerminatedError(129), 129)],
)
def test_signals_have_their_codes(error: BaseException, code: int) -> None:
    run = Invocation(json=True)
    assert run.end_with(error) == code
    document = json.loads(run.out.getvalue())
    assert document["exit_code"] == code and document["error"]["resume"].startswith("heretic")


def test_a_run_interrupted_by_sigterm_ends_with_143() -> None:
    run = Invocation()
    run.context.stop.request(exit_code=EXIT_TERMINATED, urgent=True)
    assert run.end_with(InterruptedRunError("stopped", resume="heretic M")) == EXIT_TERMINATED


def test_clearing_the_wish_to_stop_makes_the_run_ordinary() -> None:
    """R-CLI-26: 130 unless the user went on in the menu."""
    stop = StopFlag()
    stop.request()
    assert stop and stop.exit_code == 130
    stop.clear()
    assert not stop and stop.exit_code == 0


def a_report(status: str, *, chosen: bool) -> RunReport:
    kl = Divergence(0.2, 0.01, 0.1, 0.3, 0.9, 0.1, 100, 500)
    front = [TrialReport(n, {}, Measurement("search", Rate(n, 100, 0.0, 0.1), kl)) for n in (7, 9)]
    return RunReport(
        status=status, model="m", behaviour="refusal", goal="suppress", strategy="single",
        study={"name": "my study", "storage": "sqlite:///s.db"}, settings={},
        baseline=Measurement("search", Rate(90, 100, 0.8, 0.9), None), noise_floor=1e-6, front=front,
        chosen=front[0] if chosen else None, reason="", separable="", verified=None, verification={}, output=None,
        uploaded=None, timings={}, phases={}, degradations=(), coverage={}, data={}, environment={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code"),
    [("done", 0), ("saved", 0), ("nothing_qualified", 3), ("interrupted", 130), ("failed", 1)],
)
def test_the_status_of_a_report_decides_the_exit_code(status: str, code: int) -> None:
    assert conclude(a_report(status, chosen=True), Invocation().context) == code


def test_nothing_chosen_prints_the_front_and_how_to_export_it() -> None:
    """R-HDL-01: exit 0, the exact commands, quoted for a shell."""
    run = Invocation()
    assert conclude(a_report("done", chosen=False), run.context) == 0
    assert "heretic export 'my study' --trial 9 --model m --storage sqlite:///s.db" in run.out.getvalue()
    chosen = Invocation()
    conclude(a_report("done", chosen=True), chosen.context)
    assert "heretic export" not in chosen.out.getvalue()


def test_a_stopped_run_that_still_reported_ends_with_130() -> None:
    run = Invocation()
    run.context.stop.request()
    assert conclude(a_report("done", chosen=True), run.context) == 130
