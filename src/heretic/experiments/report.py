# SPDX-License-Identifier: Apache-2.0
"""Results as Markdown tables, put between two marks of a page so that anybody can make them again (R-XPT-03)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from heretic.exceptions import FileOperationError
from heretic.experiments.catalogue import Experiment
from heretic.experiments.figures import Figure
from heretic.experiments.metrics import METRICS
from heretic.experiments.results import BASE, EDITED, SIDES, Outcome, Results
from heretic.linalg.intervals import Interval

BEGIN: Final = "<!-- results: begin (heretic experiment report) -->"
END: Final = "<!-- results: end -->"
PAGE_WIDTH: Final = 118
HEADINGS: Final = ("figure", "prompts", "n", "base", "edited", "change", "95 % interval")


def render(experiment: Experiment, results: Results) -> str:
    """All tables of one evaluation; a pure function of the results."""
    parts = [_wrapped(_about(results)), _wrapped(_verdict(results.target))]
    parts += [_figures_table(experiment, results), _controls_table(results)]
    defects = _defects(results)
    parts += [_wrapped(defects)] if defects else []
    parts += [_wrapped(f"Note: {note}") for note in results.notes]
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)


def replaced(page: str, tables: str) -> str:
    """The page with `tables` between its marks. Raises `FileOperationError` for a page without them."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise FileOperationError(
            "The page has no marks for the results.", hint=f"Add two lines: {BEGIN} and {END}"
        )
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"


def between(page: str) -> str:
    """What stands between the marks of a page; empty without them."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def _about(results: Results) -> str:
    name = results.model.name + (f" at {results.model.revision[:12]}" if results.model.revision else "")
    what = f"edit of {name}"
    if results.modified is not None:
        what = f"{results.modified.name} against {name}"
    planted = ", behaviour planted, prompts of the demo" if results.planted else ""
    trial = f", trial {results.trial['index']}" if results.trial else ""
    return (
        f"{what[0].upper()}{what[1:]}{planted}: {results.n['bad']} + {results.n['good']} held-out prompts, greedy, "
        f"{results.tokens} tokens, {results.model.dtype}, seed {results.seed}{trial}."
    )


def _verdict(target: Outcome) -> str:
    where = f" ({target.group})" if target.group else ""
    aim = "at most" if target.kind == "at_most" else "down by at least"
    reached = "not measured" if target.reached is None else f"{target.reached:.1%}"
    word = {True: "met", False: "not met", None: "open"}[target.met]
    why = f" ({'; '.join(target.reasons)})" if target.reasons else ""
    return f"Target: {target.metric}{where} {aim} {target.bound:.0%}; reached {reached}: **{word}**{why}."


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures_table(experiment: Experiment, results: Results) -> str:
    rows = []
    for prompts in ("bad", "good"):
        for group in ("", *experiment.groups):
            found = [results.of(EDITED, prompts, group, name) for name in experiment.metrics]
            rows += [_row(figure) for figure in found if figure is not None]
    return _table(HEADINGS, rows)


def _row(figure: Figure) -> list[str]:
    metric = METRICS[figure.metric]
    prompts = f"{figure.prompts}, {figure.group}" if figure.group else figure.prompts
    relative = "" if metric.share or figure.relative is None else f" ({figure.relative:+.1%})"
    between = _interval(figure.interval, metric.share)
    if not metric.share and figure.relative_interval is not None:
        low, high = figure.relative_interval
        between += f" ({low:+.1%} to {high:+.1%})"
    return [
        metric.meaning,
        prompts,
        str(figure.n),
        _value(figure.base, metric.share) + _spread(figure, base=True),
        _value(figure.value, metric.share) + _spread(figure, base=False),
        _signed(figure.difference, metric.share) + relative,
        between,
    ]


def _spread(figure: Figure, *, base: bool) -> str:
    spread = figure.base_spread if base else figure.spread
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f", sd {spread.deviation:.1f}"
    return f" (median {spread.median:.1f}{deviation})"


def _value(value: float, share: bool) -> str:
    return f"{value:.1%}" if share else f"{value:.1f}"


def _signed(value: float, share: bool) -> str:
    return f"{100 * value:+.1f} points" if share else f"{value:+.1f}"


def _interval(interval: Interval, share: bool) -> str:
    if share:
        return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f} points"
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


def _controls_table(results: Results) -> str:
    """The main figure and the KL of the edit and of what it has to beat."""
    target = results.target
    rows = []
    for side in SIDES:
        figure = results.of(side, "bad", target.group, target.metric)
        if figure is None:
            continue
        metric = METRICS[figure.metric]
        kl = results.kl.get(side)
        rows.append(
            [
                side,
                _value(figure.value, metric.share),
                _signed(figure.difference, metric.share),
                _interval(figure.interval, metric.share),
                f"{results.objective[side]:.3f}",
                "-" if kl is None else f"{kl['mean']:.4f} +- {kl['standard_error']:.4f}",
            ]
        )
    name = METRICS[target.metric].meaning + (f", {target.group}" if target.group else "")
    scorer = f"mean degree, {results.scorer} (base {results.objective[BASE]:.3f})"
    return _table(("side", name, "change", "95 % interval", scorer, "KL, nats/token"), rows)


def _defects(results: Results) -> str:
    found = [
        f"{side}: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        for side, counts in results.conditions.items()
        if counts
    ]
    return f"Replies that are no replies any more: {'; '.join(found)}." if found else ""
