# SPDX-License-Identifier: Apache-2.0
"""The console: what goes where, what is escaped, what is asked (requirements R-CLI-23, R-CLI-24, R-SEA-14, D10)."""

from __future__ import annotations

import io
import json
import math

import pytest

from heretic.console import Console
from heretic.exceptions import ConfirmationRequiredError, DiskSpaceError
from heretic.report import Divergence, Example, Measurement, Rate, RunReport, TrialReport
from heretic.sanitise import printable, redact, single_line
from heretic.study.types import FinishedTrial, Json, Progress, Scores
from heretic.trial_display import PLOT_HEIGHT, PLOT_WIDTH, bar, duration, scatter, speed

HOSTILE = "a\x1b]52;c;ZXZpbA==\x07b [bold]c[/] [/] :smile: \x9bd\x00 \x1b[2J\u202ee"
TOKEN = "hf_" + "Ab1" * 12


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make(**options: object) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    console = Console(stdout=out, stderr=err, **options)  # type: ignore[arg-type]  # options of the test
    return console, out, err


def progress(index: int, best: FinishedTrial | None, eta: float | None = 12.0) -> Progress:
    return Progress(index, 8, 1, best, 3, 0.75, 0.5, eta, () if best is None else (best,))


def trial(index: int, rate: float, kl: float, feasible: bool = True) -> FinishedTrial:
    constraint: dict[str, float] = {"guard": -1.0 if feasible else 1.0}
    measured: dict[str, Json] = {"rate": rate, "hits": round(100 * rate), "n": 100, "kl": {"mean": kl}}
    return FinishedTrial(index, {}, Scores((0.0, 9.0), constraint, measured))


def report(**changes: object) -> RunReport:
    kl = Divergence(0.21, 0.013, 0.1, 0.3, 0.9, 0.11, 100, 500)
    base = Measurement("search", Rate(90, 100, 0.826, 0.945), None)
    chosen = TrialReport(31, {}, Measurement("search", Rate(3, 100, 0.01, 0.085), kl), flags=("reversed",))
    values: dict[str, object] = {
        "status": "done", "model": "org/model", "behaviour": "refusal", "goal": "suppress", "strategy": "single",
        "study": {"name": "s"}, "settings": {}, "baseline": base, "noise_floor": 1.5e-6, "front": [chosen],
        "chosen": chosen, "reason": "lowest rate", "separable": "not separable", "verified": None,
        "verification": {}, "output": "./out", "uploaded": None, "timings": {}, "phases": {"search": 61.0},
        "degradations": ["neural detection: no network"], "coverage": {}, "data": {}, "environment": {},
        "examples": [Example(HOSTILE, "no", "yes")], "next_command": "heretic chat ./out",
    }  # fmt: skip
    return RunReport(**{**values, **changes})  # type: ignore[arg-type]  # values of the test


def test_messages_go_to_stderr_and_results_to_stdout() -> None:
    """R-CLI-23."""
    console, out, err = make()
    console.note("a note")
    console.warn("a warning", "a cure")
    console.error(DiskSpaceError("no space", hint="free some", details=("d1",), resume="heretic M"))
    console.table(("x",), [("message row",)])
    console.next_command("heretic chat M")
    with console.phase("Load") as phase:
        phase.result("4 layers")
    console.result("the result")
    console.table(("x",), [("result row",)], result=True)
    assert "the result" in out.getvalue() and "result row" in out.getvalue()
    assert "warning" not in out.getvalue() and "message row" not in out.getvalue()
    for expected in (
        "a note",
        "a cure",
        "no space",
        "free some",
        "d1",
        "heretic M",
        "message row",
        "4 layers",
    ):
        assert expected in err.getvalue()
    assert "the result" not in err.getvalue()


def test_json_mode_writes_exactly_one_document() -> None:
    """R-CLI-23, R-FMT-03: nothing but the document, also when results, tables and two ends come."""
    console, out, _ = make(json=True)
    console.result("text")
    console.table(("x",), [(1,)], result=True)
    console.stream("piece")
    console.document({"rate": math.nan, "path": "p", "inf": [math.inf], "kept": 1})
    console.document({"path": "q"})
    console.finish(0)
    console.finish(1)
    assert json.loads(out.getvalue()) == {
        "rate": None, "path": "q", "inf": [None], "kept": 1, "status": "done", "error": None, "exit_code": 0,
    }  # fmt: skip


def test_json_document_of_a_failure_keeps_what_was_done() -> None:
    """R-FMT-03; a failed upload after a good save still names the output."""
    console, out, _ = make(json=True)
    console.document({"output": "./m", "status": "saved"})
    console.finish(1, DiskSpaceError("no space", hint="free", details=("a",), resume="r", data={"free": 3}))
    document = json.loads(out.getvalue())
    assert document["output"] == "./m" and document["status"] == "failed" and document["exit_code"] == 1
    assert document["error"] == {
        "type": "DiskSpaceError", "message": "no space", "remedy": "free", "details": ["a"], "resume": "r",
        "data": {"free": 3},
    }  # fmt: skip


def test_without_json_nothing_is_added_to_stdout() -> None:
    console, out, _ = make()
    console.document({"a": 1})
    console.finish(0)
    assert out.getvalue() == ""


@pytest.mark.parametrize("method", ["note", "warn", "result", "log_line", "stream", "next_command"])
def test_text_is_never_markup_and_has_no_control_characters(method: str) -> None:
    """D10: clipboard escapes, C0, C1, bidirectional controls go; brackets and colons stay."""
    console, out, err = make()
    getattr(console, method)(HOSTILE)
    shown = out.getvalue() + err.getvalue()
    assert "ab [bold]c[/] [/] :smile: d e" in shown
    assert not set(shown) & set("\x1b\x07\x9b\x00\u202e")


def test_tables_facts_and_errors_escape_too() -> None:
    console, out, err = make()
    console.table((HOSTILE,), [(HOSTILE,)], title="t", result=True)
    console.facts({HOSTILE: HOSTILE}, title=HOSTILE, result=True)
    console.error(DiskSpaceError(HOSTILE, hint=HOSTILE, details=(HOSTILE,), resume=HOSTILE))
    console.report(report())
    shown = out.getvalue() + err.getvalue()
    assert shown.count("[bold]c[/]") >= 9
    assert not set(shown) & set("\x1b\x07\x9b\x00\u202e")


def test_secrets_never_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-15: token pattern, value of the variable, password in a URL; on both streams and in the document."""
    monkeypatch.setenv("HF_TOKEN", "plainsecretvalue")
    console, out, err = make(json=True)
    text = f"{TOKEN} plainsecretvalue postgresql://me:geheim@host/db"
    console.note(text)
    console.document({"text": text, TOKEN: 1})
    console.finish(0)
    for shown in (out.getvalue(), err.getvalue()):
        assert "redacted" in shown and "postgresql://me:" in shown
        assert TOKEN not in shown and "plainsecretvalue" not in shown and "geheim" not in shown


def test_printable_keeps_what_people_write() -> None:
    text = "tab\tnew\nline caf\u00e9 \u4f60\u597d [x] {y} \u2019"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
    assert single_line(" a\n b  c ", 4) == "a..."
    assert redact("the word hf_ and horses", environ={"HF_TOKEN": "hor"}) == "the word hf_ and horses"


def test_quiet_shows_results_warnings_errors_only() -> None:
    console, out, err = make(quiet=True)
    console.note("n")
    console.detail("d")
    console.next_command("c")
    with console.phase("p"), console.trials(8) as display:
        display.update(progress(4, None))
    assert err.getvalue() == ""
    console.warn("w")
    console.result("r")
    assert "w" in err.getvalue() and out.getvalue() == "r\n"


def test_verbose_adds_details() -> None:
    silent, _, quiet_error = make()
    silent.detail("inner fact")
    console, _, err = make(verbose=True)
    console.detail("inner fact")
    assert "inner fact" in err.getvalue() and quiet_error.getvalue() == ""


def test_phase_tells_start_duration_and_outcome() -> None:
    """R-FLOW-12; an exception and an interruption close the phase as well, and pass."""
    console, _, err = make()
    with console.phase("Good") as phase:
        phase.update("moving")
        phase.result("result line")
    with pytest.raises(ValueError, match="x"), console.phase("Bad"):
        raise ValueError("x")
    with pytest.raises(KeyboardInterrupt), console.phase("Cut"):
        raise KeyboardInterrupt
    lines = [line.strip() for line in err.getvalue().splitlines()]
    assert lines[0] == "> Good" and lines[1].startswith("done in") and lines[1].endswith("result line")
    assert lines[2] == "> Bad" and lines[3].startswith("failed after")
    assert lines[4] == "> Cut" and lines[5].startswith("interrupted after")


def test_plain_progress_is_one_line_per_batch() -> None:
    """R-CLI-24, R-SEA-14."""
    console, out, err = make()
    best = trial(3, 0.12, 0.21)
    with console.trials(8, memory=lambda: "1.0 GB") as display:
        display.update(progress(4, None, None))
        display.update(progress(8, best))
    lines = err.getvalue().splitlines()
    assert len(lines) == 2 and out.getvalue() == ""
    assert "trial 4/8" in lines[0] and "none within the limits" in lines[0] and "left ?" in lines[0]
    for expected in (
        "12.0% (12/100) at KL 0.210, trial 3",
        "front 3",
        "0.7500",
        "30.0 trials/min",
        "12 s",
        "1.0 GB",
    ):
        assert expected in lines[1]
    assert "\x1b" not in err.getvalue()


def test_json_progress_is_one_object_per_line() -> None:
    console, _, err = make(progress="json")
    with console.phase("Search"), console.trials(8, memory=str) as display:
        display.update(progress(8, trial(3, 0.12, 0.21)))
    (line,) = [line for line in err.getvalue().splitlines() if line.startswith("{")]
    assert json.loads(line)["best"] == {"trial": 3, "behaviour_rate": 0.12, "kl_mean": 0.21}


def test_live_display_ends_clean_and_tells_the_story() -> None:
    """The panel is transient; what stays is a line per new best and the final figures."""
    err = Terminal()
    console = Console(stdout=io.StringIO(), stderr=err, progress="auto", color=False)
    assert console.progress == "rich"
    with console.trials(8, memory=str) as display:
        for index, best in ((2, trial(1, 0.5, 0.1)), (4, trial(1, 0.5, 0.1)), (6, trial(5, 0.2, 0.3))):
            display.update(progress(index, best))
    text = err.getvalue()
    assert text.count("new best after") == 2
    assert "\x1b[?25h" in text  # the cursor is shown again
    assert text.rstrip().splitlines()[-1].lstrip("\x1b[2KA1").strip().startswith("trial 6/8")


def test_no_colour_means_no_style_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-CLI-20: --no-color and NO_COLOR; the control is the same terminal without them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def shown(color: bool | None) -> str:
        err = Terminal()
        Console(stdout=io.StringIO(), stderr=err, color=color).warn("careful")
        return err.getvalue()

    assert "\x1b[" in shown(None)
    assert "\x1b[" not in shown(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown(None)


def test_report_has_every_honest_figure() -> None:
    """R-GEN-06: n, interval, standard error, noise floor, separability, degradations, what was not measured."""
    console, out, _ = make()
    console.report(report())
    text = out.getvalue()
    for expected in (
        "90.0% (90/100)", "82.6 to 94.5 %", "3.0% (3/100)", "0.2100 +- 0.0130", "1.50e-06", "not separable",
        "limited: neural detection: no network", "not measured: the saved files",
        "not measured: the chosen trial on held-out prompts", "./out", "next: heretic chat ./out", "reversed",
    ):  # fmt: skip
        assert expected in text, expected
    assert text.isascii()


def test_report_is_shown_once_and_becomes_the_document() -> None:
    one = report()
    console, out, _ = make()
    console.report(one)
    length = len(out.getvalue())
    console.report(one)
    assert len(out.getvalue()) == length
    silent, out, _ = make(json=True)
    silent.report(one)
    silent.finish(0)
    assert json.loads(out.getvalue())["chosen"]["behaviour_rate"] == pytest.approx(0.03)


def test_report_of_a_run_that_saved_nothing() -> None:
    console, out, _ = make()
    console.report(report(chosen=None, front=[], output=None, examples=[], degradations=[], next_command=""))
    assert "nothing was saved" in out.getvalue()


def test_questions_without_terminal_name_the_flag() -> None:
    """R-HDL-03: never blocks; D10: never takes the first choice."""
    console, out, err = make()
    with pytest.raises(ConfirmationRequiredError) as caught:
        console.choose("Which?", ["a", "b"], flag="--trial")
    assert "--trial" in str(caught.value.hint) and caught.value.exit_code == 2
    for question in (
        lambda: console.ask("Name?", flag="--name"),
        lambda: console.confirm("Sure?", flag="--sure"),
        lambda: console.read_line("you>"),
        lambda: console.confirm_word("Overwrite?", lost=("the folder x",)),
    ):
        with pytest.raises(ConfirmationRequiredError):
            question()


def test_yes_counts_only_with_the_explicit_object() -> None:
    """R-CLI-50."""
    console, _, _ = make(assume_yes=True)
    console.confirm_word("Overwrite x?", explicit=True)
    with pytest.raises(ConfirmationRequiredError, match="no terminal"):
        console.confirm_word("Overwrite ./?", explicit=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1m 00s"), (3725, "1h 02m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_speeds_bars_and_plots_are_ascii_and_in_bounds() -> None:
    assert (speed(2), speed(0.5), speed(0.001)) == ("2.0 trials/s", "30.0 trials/min", "3.6 trials/h")
    assert bar(5, 10, 4).plain == "[##--]" and bar(3, 0).plain.isascii() and bar(30, 10, 4).plain == "[####]"
    rows = scatter([(0.0, 0.0, True), (1.0, 4.0, False), (1.0, 4.0, True), (0.5, 1.0, False)])
    assert len(rows) == PLOT_HEIGHT and max(map(len, rows)) == PLOT_WIDTH
    assert rows[0][-1] == "o" and rows[-1][0] == "o" and sum(row.count(".") for row in rows) == 1
    assert all(row == "" for row in scatter([(0.0, 0.0, False)])[:-1])
