# SPDX-License-Identifier: Apache-2.0
"""The verdict's table, the report's file and its readable form (R-VAL-01, R-VAL-03, R-VAL-05)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from heretic.exceptions import ValidationFileError
from heretic.linalg.intervals import Interval
from heretic.report import Divergence, Rate
from heretic.validation.harness import Benchmark
from heretic.validation.log_odds import LogOdds
from heretic.validation.multiple_choice import MultipleChoiceResult, accuracy, compare_accuracy
from heretic.validation.panel import Figure, Panel
from heretic.validation.perplexity import PerplexityResult, compare_perplexity
from heretic.validation.report import (
    FREE_BYTES,
    OddsReport,
    QuizReport,
    ReplyReport,
    Snapshot,
    TextReport,
    ValidationReport,
    improvements,
    judge,
    load_report,
    report_path,
    save_report,
)
from heretic.validation.salad import Salad
from heretic.validation.view import COLUMNS, figure_rows, validation_view

BEFORE, AFTER = Rate(80, 100, 0.71, 0.87), Rate(4, 100, 0.015, 0.098)
KL = Divergence(0.2, 0.02, 0.1, 0.6, 0.9, 0.3, 100, 3000, floor=1e-6)


def quiz(lost: int) -> QuizReport:
    right = (True,) * 40 + (False,) * 10
    edited = (False,) * lost + right[lost:]
    base, after = (
        MultipleChoiceResult(accuracy(r), sum(r) / 50, {"sums": accuracy(r)}, r, 0, "plain text, 3 shots")
        for r in (right, edited)
    )
    return QuizReport("set test", 0, "ab" * 32, 0.25, True, base, after, compare_accuracy(base, after))


def report(**changes: Any) -> ValidationReport:
    texts = PerplexityResult((2.0, 3.0), (10, 10), 2.5), PerplexityResult((2.5, 3.0), (10, 10), 2.75)
    figure = Figure(10.0, 12.0, 2.0, 0.5, 3.5)
    panel = Panel(
        50, {"words": figure, "cut": Figure(0.0, 0.1, 0.1, 0.0, 0.2)}, {"words": (10.0, 12.0)}, figure
    )
    odds = LogOdds((1.0, 2.0), 0.8, 0.6, 0.9, 3), LogOdds((-1.0, -2.0), 0.2, 0.1, 0.4, 3)
    made = ValidationReport(
        version=1,
        model="owner/name",
        behaviour="refusal",
        goal="suppress",
        trial=4,
        where="held_out",
        measured_at="2026-01-02T03:04:05+00:00",
        seconds=12.5,
        before=Snapshot(BEFORE, 0.8, 12.2),
        after=Snapshot(AFTER, 0.7, 15.6),
        kl=KL,
        noise_floor=1e-6,
        multiple_choice=quiz(5),
        plain_text=TextReport("texts", *texts, compare_perplexity(*texts)),
        replies=ReplyReport(
            "50 prompts", panel, {"empty": -0.05, "length_ratio": 0.2}, Salad(50, -5, -2, -3, 0, 1, -0.1, 0.1)
        ),
        log_odds=OddsReport(*odds),
        benchmarks=(
            Benchmark("arc", "acc,none", 50, 0.5, 0.4, -0.1, -0.2, 0.0),
            Benchmark("b", "ppl,none", 5, 9.0, 9.5, 0.5, None, None),
        ),
        improvements=improvements(BEFORE, AFTER, KL, quiz(5)),
        verdict="not separable",
        reason="KL 0.2000",
        unknown=("benchmarks: \u001b[2J no network",),
    )
    return replace(made, **changes)


# -- the verdict


@pytest.mark.parametrize(
    ("kl", "change", "informative", "word"),
    [
        (0.1, (-0.04, 0.04), True, "preserved"),
        (0.999, (-0.0499, 0.0), True, "preserved"),
        (0.1, (0.10, 0.20), True, "preserved"),  # a gain is no damage
        (1.0, (-0.01, 0.01), True, "degraded"),  # not below 1
        (7.0, (0.0, 0.1), True, "degraded"),
        (0.1, (-0.20, -0.0501), True, "degraded"),
        (0.1, (-0.20, -0.05), True, "not separable"),  # not below -0.05
        (0.1, (-0.05, 0.01), True, "not separable"),  # not above -0.05
        (0.1, (-0.20, 0.10), True, "not separable"),
        (None, (-0.01, 0.01), True, "unknown"),
        (0.1, None, True, "unknown"),
        (7.0, None, True, "unknown"),
        (None, None, True, "unknown"),
        (float("nan"), (-0.01, 0.01), True, "unknown"),
        (0.1, (-0.01, 0.01), False, "unknown"),  # the base guesses: nothing to lose
        (0.1, (-0.30, -0.10), False, "degraded"),
        (2.0, (-0.01, 0.01), False, "degraded"),
    ],
)
def test_the_verdict_follows_the_table(
    kl: float | None, change: tuple[float, float] | None, informative: bool, word: str
) -> None:
    found = judge(kl, None if change is None else Interval(*change), informative=informative)
    assert found.word == word and found.reason


def test_improvements_are_differences_with_their_signs() -> None:
    found = improvements(BEFORE, AFTER, KL, quiz(5))
    assert found.reduction == pytest.approx(0.76) and found.reduction_percent == pytest.approx(95.0)
    assert found.kl == 0.2 and found.accuracy_change == pytest.approx(-0.1)
    nothing = improvements(Rate(0, 10, 0.0, 0.3), AFTER, None, None)
    assert nothing.reduction_percent is None and nothing.kl is None and nothing.accuracy_change is None


# -- the file


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = save_report(report(), tmp_path / "new" / "folder" / "report.json")
    assert load_report(path) == report()
    assert load_report(path) != report(trial=5)  # control
    bare = report(
        trial=None, kl=None, multiple_choice=None, plain_text=None, replies=None, log_odds=None, benchmarks=()
    )
    assert load_report(save_report(bare, path)) == bare
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def damaged(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(json.dumps(report().to_document()))
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[1]", "version None"),
        (b'{"version": 2}', "version 2"),
        (damaged(lambda d: d.pop("verdict")), "lacks 'verdict'"),
        (damaged(lambda d: d.update(more=1)), "unknown 'more'"),
        (damaged(lambda d: d.update(seconds="long")), "report.seconds"),
        (damaged(lambda d: d.update(trial=1.5)), "report.trial"),
        (damaged(lambda d: d.update(trial=True)), "report.trial"),
        (damaged(lambda d: d["before"]["rate"].pop("n")), "report.before.rate lacks 'n'"),
        (damaged(lambda d: d["multiple_choice"]["base"]["right"].append(3)), "right\\[50\\]"),
        (damaged(lambda d: d["replies"]["panel"]["medians"].update(words=[1.0])), "1 entries, not 2"),
        (damaged(lambda d: d.update(unknown="x")), "unknown is no list"),
        (damaged(lambda d: d.update(before=3)), "before is no object"),
        (json.dumps({**report().to_document(), "seconds": float("inf")}).encode(), "not valid JSON"),
    ],
)
def test_a_file_that_is_no_report_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValidationFileError, match=words):
        load_report(path)
    path.write_bytes(damaged(lambda d: None))
    assert load_report(path) == report()  # control


def test_what_cannot_be_written_is_a_typed_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_report(report(), tmp_path / "report.json")
    with pytest.raises(ValidationFileError, match="finite"):
        save_report(report(seconds=float("nan")), path)
    with pytest.raises(ValidationFileError, match="is a folder"):
        save_report(report(), tmp_path)
    with pytest.raises(ValidationFileError, match="no folder"):
        save_report(report(), path / "below" / "report.json")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=FREE_BYTES - 1))
    with pytest.raises(ValidationFileError, match="1,000,000 bytes"):
        save_report(report(trial=9), path)
    assert load_report(path) == report()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=FREE_BYTES))
    assert load_report(save_report(report(trial=9), path)).trial == 9


def test_the_name_of_the_file() -> None:
    """Beside the output, with the model's basename; the user's own name wins."""
    assert report_path(None, Path("/x/out"), "owner/name-1.5", 1700000000.9) == Path(
        "/x/validation_report_name-1.5_1700000000.json"
    )
    assert (
        report_path(None, Path("/x/out"), "/data/some model/", 1.0).name
        == "validation_report_some_model_1.json"
    )
    assert report_path(Path("mine.json"), Path("/x/out"), "owner/name", 1.0) == Path("mine.json")


# -- the view


def shown(made: ValidationReport) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as capture:
        for part in validation_view(made):
            console.print(part)
    return capture.get()


def test_the_view_shows_every_figure_with_its_interval() -> None:
    text = shown(report())
    for word in (
        "not separable",
        "80.0% (80/100), 71.0 to 87.0 %",
        "0.2000 +- 0.0200",
        "80.0% +- 5.7 (40/50)",
        "sums",
        "5 answers lost, 0 gained",
        "12.18",
        "words of a reply",
        "word salad",
        "arc acc,none (n 50)",
        "guard broken on harmless prompts: length ratio",
        "unknown: benchmarks",
        "95.0 % of what it was",
    ):
        assert word in text, word
    assert "\u001b" not in text and all(len(row) == len(COLUMNS) for row in figure_rows(report()))


def test_the_view_of_a_bare_report_claims_nothing() -> None:
    bare = report(kl=None, multiple_choice=None, plain_text=None, replies=None, log_odds=None, benchmarks=())
    text = shown(bare)
    assert "not measured" in text
    for word in ("multiple choice", "perplexity", "word salad", "guard"):
        assert word not in text, word
    guessing = shown(report(multiple_choice=replace(quiz(5), informative=False)))
    assert "uninformative" in guessing and "uninformative" not in shown(report())
