# SPDX-License-Identifier: Apache-2.0
"""The readable form of a run report: what was done, the figures with their intervals, examples, where it
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from heretic.report import Divergence, Example, Measurement, Rate, RunReport, TrialReport
from heretic.sanitise import printable, redact, single_line
from heretic.trial_display import duration

EXAMPLES: Final = 3
REPLY_LIMIT: Final = 600
WHERE: Final = {
    "search": "search",
    "held_out": "held-out",
    "saved": "held-out",
    "search_thinking": "search",
    "held_out_thinking": "held-out",
}
UNKNOWN: Final = "not measured"
FRONT_COLUMNS: Final = (
    "trial",
    "rate",
    "95 % interval",
    "KL, nats/token",
    "held-out rate",
    "held-out KL",
    "flags",
)
FRONT_FIGURES: Final = (0, 1, 2, 3, 4, 5)
"""Indexes of the columns of figures."""


def rate_text(rate: Rate | None) -> str:
    """`12.0 % (12/100)`."""
    if rate is None or rate.n == 0:
        return UNKNOWN
    return f"{rate.value:.1%} ({rate.hits}/{rate.n}{'' if rate.mean is None else ' hits'})"


def interval_text(rate: Rate | None) -> str:
    """`7.0 to 19.8 %`."""
    return "" if rate is None or rate.n == 0 else f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"


def divergence_text(divergence: Divergence | None) -> str:
    """`0.2140 +- 0.0130`, with a star when one prompt supplies over half of the mean."""
    if divergence is None:
        return UNKNOWN
    return f"{divergence.mean:.4f} +- {divergence.standard_error:.4f}{' *' if divergence.unstable else ''}"


def front_rows(trials: Sequence[TrialReport]) -> list[tuple[str, ...]]:
    """One row of `FRONT_COLUMNS` per trial."""
    rows: list[tuple[str, ...]] = []
    for trial in trials:
        held = trial.held_out
        rows.append(
            (
                str(trial.trial),
                rate_text(trial.search.behaviour),
                interval_text(trial.search.behaviour),
                divergence_text(trial.search.kl),
                "-" if held is None else rate_text(held.behaviour),
                "-" if held is None else divergence_text(held.kl),
                ", ".join(trial.flags),
            )
        )
    return rows


def report_view(report: RunReport) -> Iterator[RenderableType]:
    """The parts of the report from top to bottom, for a console that reads no markup."""
    yield _heading("What was done")
    yield _facts(_what(report))
    yield _heading("Before and after")
    yield from _figures(report)
    if report.validation:
        yield _heading("Validation")
        yield from _validation(report.validation)
    examples = list(report.examples)[:EXAMPLES]
    if examples:
        yield _heading("Replies")
        for number, example in enumerate(examples, start=1):
            yield from _example(number, example)
    yield _heading("Result")
    yield _facts(_outcome(report))
    missing = not_measured(report)
    if report.degradations or missing:
        yield _heading("Limits of this report")
        for line in report.degradations:
            yield _line(f"limited: {line}")
        for line in missing:
            yield _line(f"not measured: {line}")
    if report.next_command:
        yield Text("")
        yield Text.assemble(("next: ", "dim"), (_clean(report.next_command), "bold"))


def not_measured(report: RunReport) -> list[str]:
    """What a reader could assume and nobody measured: absence of data is never a pass (R-GEN-06)."""
    chosen = report.chosen
    missing = []
    if chosen is not None and chosen.held_out is None:
        missing.append("the chosen trial on held-out prompts")
    if chosen is not None and chosen.search.kl is None:
        missing.append("divergence of the chosen trial")
    if report.verified is None:
        missing.append("the saved files (none were saved and measured again)")
    if all(measurement.over_rate is None for _, measurement in _measurements(report)):
        missing.append("the behaviour on prompts that should not show it")
    return missing


def _what(report: RunReport) -> Mapping[str, str]:
    facts = {
        "model": report.model,
        "behaviour": f"{report.behaviour} ({report.goal})",
        "strategy": report.strategy,
        "thinking": "off and on" if report.baseline.thinking is not None else report.baseline.mode,
    }
    for key, label in (("name", "study"), ("trials", "trials"), ("n_trials", "trials")):
        if key in report.study:
            facts[label] = str(report.study[key])
    if report.phases:
        facts["time"] = ", ".join(f"{name} {duration(seconds)}" for name, seconds in report.phases.items())
        facts["total"] = duration(sum(report.phases.values()))
    return facts


def _measurements(report: RunReport) -> list[tuple[str, Measurement]]:
    rows = [("base", report.baseline)]
    chosen = report.chosen
    if chosen is not None:
        rows.append((f"trial {chosen.trial}", chosen.search))
        if chosen.held_out is not None:
            rows.append((f"trial {chosen.trial}", chosen.held_out))
    if report.verified is not None:
        rows.append(("saved files", report.verified))
    rows += [(f"control: {name}", found) for name, found in report.controls.items()]
    return [(name, entry) for name, row in rows for entry in (row, row.thinking) if entry is not None]


def _figures(report: RunReport) -> Iterator[RenderableType]:
    table = Table(box=box.ASCII2, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("prompts")
    for name in ("behaviour rate", "95 % interval", "KL, nats/token", "KL, first", "over-rate"):
        table.add_column(name, justify="right")
    rows = _measurements(report)
    for name, measurement in rows:
        base = name == "base"
        divergence = (
            "0, by definition" if base and measurement.kl is None else divergence_text(measurement.kl)
        )
        first = "" if measurement.kl is None else f"{measurement.kl.first_token:.4f}"
        cells = [
            name,
            WHERE.get(measurement.where, measurement.where)
            + (", thinking" if measurement.mode == "on" else ""),
            rate_text(measurement.behaviour),
            interval_text(measurement.behaviour),
            divergence,
            first,
            "-" if measurement.over_rate is None else rate_text(measurement.over_rate),
        ]
        table.add_row(*(Text(_clean(cell)) for cell in cells), style="" if base else "green")
    yield table
    yield _line(
        f"KL noise floor {report.noise_floor:.2e} (the base against itself); +- is one standard error"
    )
    if any(measurement.kl is not None and measurement.kl.unstable for _, measurement in rows):
        yield _line("* one prompt supplies over half of this mean")
    for name, measurement in rows:
        if measurement.thoughts:
            yield _line(
                f"thoughts of {name}: {measurement.thoughts['mean_tokens']:.0f} tokens on average, "
                f"{measurement.thoughts['exhausted']:.0f} without an end"
            )
    for scorer in report.baseline.beside:
        told = [f"{name} {rate_text(found.beside.get(scorer))}" for name, found in rows if found.beside]
        yield _line(f"{scorer}: {', '.join(told)}")
    if report.verdict.get("sentence"):
        yield _line(f"verdict: {report.verdict.get('word')}. {report.verdict.get('sentence')}")
    if report.separable:
        yield _line(f"winner against runner-up: {report.separable}")
    for entry in report.categories:
        yield _line(f"{entry.name}: {rate_text(entry.before)} before, {rate_text(entry.after)} after")


def _validation(document: Mapping[str, object]) -> Iterator[RenderableType]:
    yield _line(f"capability {document.get('verdict')}: {document.get('reason')}")
    table = Table(box=box.ASCII2, header_style="bold")
    for name in ("figure", "base", "edited", "change", "95 % interval"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    rows = document.get("figures")
    for row in rows if isinstance(rows, list) else []:
        table.add_row(*(Text(_clean(str(cell))) for cell in row))
    yield table
    unknown = document.get("unknown")
    for line in unknown if isinstance(unknown, list | tuple) else []:
        yield _line(f"unknown: {line}")


def _example(number: int, example: Example) -> Iterator[RenderableType]:
    yield Text.assemble((f"  {number}. ", "dim"), (_clean(single_line(example.prompt, 200)), "bold"))
    for label, reply, style in (("base", example.base, ""), ("edited", example.edited, "green")):
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=6, style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(label, Text(_shorten(reply), style=style))
        yield Padding(grid, (0, 0, 0, 5), expand=False)


def _outcome(report: RunReport) -> Mapping[str, str]:
    facts = {"status": report.status.replace("_", " ")}
    if report.chosen is not None:
        facts["chosen"] = _chosen(report.chosen)
    if report.reason:
        facts["why"] = report.reason
    facts["saved"] = report.output or "nothing was saved"
    for name, value in report.verification.items():
        facts[f"  {name.replace('_', ' ')}"] = _plain_value(value)
    if report.uploaded:
        facts["uploaded"] = report.uploaded
    return facts


def _chosen(trial: TrialReport) -> str:
    flags = f" [{', '.join(trial.flags)}]" if trial.flags else ""
    return f"trial {trial.trial}{flags}"


def _plain_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(entry) for entry in value) or "none"
    return str(value)


def _shorten(reply: str) -> str:
    text = _clean(reply).strip()
    if not text:
        return "(empty reply)"
    return text if len(text) <= REPLY_LIMIT else text[: REPLY_LIMIT - 3].rstrip() + "..."


def _facts(facts: Mapping[str, str]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(Text(name), Text(_clean(value)))
    return Padding(grid, (0, 0, 0, 2), expand=False)


def _heading(text: str) -> RenderableType:
    return Text.assemble("\n", (text, "bold cyan"), "\n", ("-" * len(text), "cyan"))


def _line(text: str) -> RenderableType:
    return Padding(Text(_clean(text)), (0, 0, 0, 2), expand=False)


def _clean(text: str) -> str:
    return redact(printable(text))
