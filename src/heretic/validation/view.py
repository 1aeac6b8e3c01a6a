# SPDX-License-Identifier: Apache-2.0
"""The readable form of a validation report: verdict, figures before and after with intervals, what is unknown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from heretic.report_view import divergence_text, interval_text, rate_text
from heretic.sanitise import printable, redact
from heretic.trial_display import duration
from heretic.validation.multiple_choice import Accuracy
from heretic.validation.panel import SHARES, Figure
from heretic.validation.report import DEGRADED, PRESERVED, ValidationReport

Cells = tuple[str, ...]
COLUMNS: Final = ("figure", "base", "edited", "change", "95 % interval")
STYLES: Final = {PRESERVED: "bold green", DEGRADED: "bold red"}
LABELS: Final = {
    "words": "words of a reply",
    "tokens": "tokens of a reply",
    "hedging": "hedging words per 100",
    "cut": "replies cut at the limit",
}


def validation_view(report: ValidationReport) -> Iterator[RenderableType]:
    """The parts of the report from top to bottom, for a console that reads no markup."""
    yield _heading("Validation")
    words = Text(report.verdict, style=STYLES.get(report.verdict, "bold yellow"))
    yield Padding(
        Text.assemble("capability: ", words, f" ({_clean(report.reason)})"), (0, 0, 0, 2), expand=False
    )
    table = Table(box=box.ASCII2, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "figure" else "right")
    for row in figure_rows(report):
        table.add_row(*(Text(_clean(cell)) for cell in row))
    yield table
    for line in _notes(report):
        yield _line(line)


def figure_rows(report: ValidationReport) -> list[Cells]:
    """One row of `COLUMNS` per figure."""
    before, after = report.before.rate, report.after.rate
    rows: list[Cells] = [
        (
            f"behaviour rate ({report.where.replace('_', '-')})",
            f"{rate_text(before)}, {interval_text(before)}",
            f"{rate_text(after)}, {interval_text(after)}",
            f"{after.value - before.value:+.1%}",
            "",
        ),
        ("KL, nats/token", "0, by definition", divergence_text(report.kl), "", ""),
    ]
    rows += _quiz_rows(report)
    texts = report.plain_text
    if texts is not None:
        paired, figures = texts.paired, (texts.base.perplexity, texts.edited.perplexity)
        rows.append(("perplexity", *(f"{figure:.2f}" for figure in figures), "", ""))
        rows.append(
            (
                "  nats/token",
                f"{texts.base.mean:.4f}",
                f"{texts.edited.mean:.4f}",
                f"{paired.change:+.4f}",
                _range(paired.low, paired.high, "+.4f"),
            )
        )
    rows += _reply_rows(report)
    odds = report.log_odds
    if odds is not None:
        sides = [
            f"{side.rate:.1%} ({100 * side.low:.1f} to {100 * side.high:.1f})"
            for side in (odds.base, odds.edited)
        ]
        rows.append(("first-token behaviour", *sides, f"{odds.edited.rate - odds.base.rate:+.1%}", ""))
    for entry in report.benchmarks:
        bounds = "" if entry.low is None or entry.high is None else _range(entry.low, entry.high, "+.4f")
        label = f"{entry.task} {entry.metric} (n {entry.n})"
        rows.append((label, f"{entry.base:.4f}", f"{entry.edited:.4f}", f"{entry.change:+.4f}", bounds))
    return rows


def _quiz_rows(report: ValidationReport) -> list[Cells]:
    quiz = report.multiple_choice
    if quiz is None:
        return []
    paired = quiz.paired
    rows: list[Cells] = [
        (
            "multiple choice",
            _accuracy(quiz.base.overall),
            _accuracy(quiz.edited.overall),
            f"{paired.change:+.1%}",
            _range(100 * paired.low, 100 * paired.high, "+.1f"),
        )
    ]
    for name, before in quiz.base.categories.items():
        after = quiz.edited.categories[name]
        change = f"{after.value - before.value:+.1%}"
        rows.append((f"  {name}", _accuracy(before), _accuracy(after), change, ""))
    rows.append(
        (
            "  mean",
            f"{quiz.base.mean:.1%}",
            f"{quiz.edited.mean:.1%}",
            f"{quiz.edited.mean - quiz.base.mean:+.1%}",
            "",
        )
    )
    return rows


def _reply_rows(report: ValidationReport) -> list[Cells]:
    replies = report.replies
    if replies is None:
        return []
    rows: list[Cells] = [
        _figure_row(LABELS.get(name, f"{name.replace('_', ' ')} replies"), figure, share=name in SHARES)
        for name, figure in replies.panel.figures.items()
    ]
    ratio = replies.panel.length_ratio
    if ratio is not None:
        bounds = _range(ratio.low, ratio.high, ".2f")
        rows.append(("length ratio, median", "1.00", f"{ratio.edited:.2f}", "", bounds))
    salad = replies.salad
    if salad is not None:
        counts = (f"{count}/{salad.n}" for count in (salad.base, salad.edited))
        change = f"{(salad.edited - salad.base) / salad.n:+.1%}"
        rows.append(("word salad", *counts, change, _range(100 * salad.low, 100 * salad.high, "+.1f")))
    return rows


def _figure_row(label: str, figure: Figure, *, share: bool) -> Cells:
    form, signed, scale = (".1%", "+.1%", 100) if share else (".2f", "+.2f", 1)
    bounds = _range(scale * figure.low, scale * figure.high, "+.1f" if share else "+.2f")
    return label, f"{figure.base:{form}}", f"{figure.edited:{form}}", f"{figure.change:{signed}}", bounds


def _notes(report: ValidationReport) -> Iterator[str]:
    improvement = report.improvements
    if improvement.reduction_percent is not None:
        yield f"behaviour lowered by {improvement.reduction:.1%}, {improvement.reduction_percent:.1f} % of what it was"
    quiz = report.multiple_choice
    if quiz is not None:
        paired = quiz.paired
        yield (
            f"multiple choice: {quiz.base.form}; {paired.lost} answers lost, {paired.gained} gained, exact McNemar "
            f"p {paired.p_value:.3g}; +- is one standard error, guessing gives {quiz.chance:.1%}"
        )
        if not quiz.informative:
            yield "uninformative: the base model is not above guessing"
    if report.replies is not None:
        for name, value in report.replies.guards.items():
            if value > 0:
                yield f"guard broken on harmless prompts: {name.replace('_', ' ')} ({value:+.3f})"
    for line in report.unknown:
        yield f"unknown: {line}"
    yield f"KL noise floor {report.noise_floor:.2e}; measured in {duration(report.seconds)}"


def _accuracy(found: Accuracy) -> str:
    return f"{found.value:.1%} +- {100 * found.standard_error:.1f} ({found.correct}/{found.n})"


def _range(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}"


def _heading(text: str) -> RenderableType:
    return Text.assemble("\n", (text, "bold cyan"), "\n", ("-" * len(text), "cyan"))


def _line(text: str) -> RenderableType:
    return Padding(Text(_clean(text)), (0, 0, 0, 2), expand=False)


def _clean(text: str) -> str:
    return redact(printable(text))
