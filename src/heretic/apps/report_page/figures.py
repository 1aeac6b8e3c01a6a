# SPDX-License-Identifier: Apache-2.0
"""The figures of the page. Each takes the record and returns a drawing, or nothing where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from heretic.apps.report_page.auroc import auroc_interval
from heretic.apps.report_page.drawing import (
    INK,
    LINE,
    MARKERS,
    PAPER,
    SERIES,
    SOFT,
    STYLE,
    Drawing,
    label,
    rendered,
    require_matplotlib,
    sheet,
)
from heretic.apps.report_page.importance import ObjectiveImportance
from heretic.apps.report_page.reading import mapping, measured, number, rate_interval
from heretic.apps.report_page.record import LayerRow, PageRecord
from heretic.apps.report_page.strengths import applied, depth, kernels, shown_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Z_95: Final = 1.96
BARS: Final = 14
"""Parameters that are drawn; the table has all."""
SMALLEST_KL: Final = 1e-9
MOST_TRIALS: Final = 200
"""Trials of the front that get bars."""
FEW_DECADES: Final = 200.0
APART: Final = 0.16
"""Layers between the markers of two components at the same depth."""


def draw(record: PageRecord) -> dict[str, Drawing]:
    """All figures there is data for, by name. Raises `ConfigurationError` where matplotlib is missing."""
    require_matplotlib()
    import matplotlib

    found: dict[str, Drawing] = {}
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(record)
            if figure is not None:
                found[name] = rendered(name, figure)
    return found


def front(record: PageRecord) -> Figure | None:
    """Rate against KL: all trials as dots, the front with intervals, the base as a band."""
    trials = [trial for trial in record.front if _drawable(mapping(trial.get("search")))][:MOST_TRIALS]
    if not trials and not record.points:
        return None
    figure, (panel,) = sheet(3.9)
    smallest = _smallest(record)
    for kept, marker, words in ((True, ".", "trial"), (False, "x", "trial that breaks a limit")):
        points = [point for point in record.points if point.kept == kept]
        if points:
            across, up = [max(p.kl, smallest) for p in points], [100 * p.rate for p in points]
            panel.scatter(across, up, s=22, marker=marker, color=SOFT, alpha=0.55, linewidths=1, label=words)
    _base_band(panel, record)
    _intervals(panel, trials, "search", smallest, "front, prompts of the search", SERIES[0], PAPER)
    held = [trial for trial in trials if _drawable(mapping(trial.get("held_out")))]
    _intervals(panel, held, "held_out", smallest, "finalist, held-out prompts", SERIES[1], SERIES[1])
    _mark_chosen(panel, record, smallest)
    _log_axis(panel)
    panel.set_xlabel("damage: KL(base || edited), nats per token, log scale")
    panel.set_ylabel("replies that show the behaviour, %")
    panel.set_ylim(-4, 104)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _log_axis(panel: Axes) -> None:
    """Decades, and 2 and 5 between them where there are few; numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _drawable(measurement: Mapping[str, object]) -> bool:
    return measured(measurement) and number(measurement.get("kl_mean")) is not None


def _smallest(record: PageRecord) -> float:
    """The left end of the KL axis: nothing below half of the smallest KL of a trial is drawn apart."""
    found = [point.kl for point in record.points]
    found += [number(mapping(trial.get("search")).get("kl_mean")) or 0.0 for trial in record.front]
    positive = [kl for kl in found if kl > SMALLEST_KL]
    return min(positive) / 2 if positive else SMALLEST_KL


def _base_band(panel: Axes, record: PageRecord) -> None:
    base = mapping(record.document.get("baseline"))
    if not measured(base):
        return
    value, bounds = number(base.get("behaviour_rate")) or 0.0, rate_interval(base)
    panel.axhline(100 * value, color=SERIES[2], linestyle="--", linewidth=1.2, label="unedited model")
    if bounds is not None:
        panel.axhspan(100 * bounds[0], 100 * bounds[1], color=SERIES[2], alpha=0.15, linewidth=0)


def _intervals(
    panel: Axes,
    trials: Sequence[Mapping[str, object]],
    where: str,
    smallest: float,
    words: str,
    colour: str,
    face: str,
) -> None:
    """Points with the 95 % interval of the rate and 1.96 standard errors of the KL."""
    if not trials:
        return
    entries = [mapping(trial.get(where)) for trial in trials]
    across = [max(number(entry.get("kl_mean")) or 0.0, smallest) for entry in entries]
    up = [100 * (number(entry.get("behaviour_rate")) or 0.0) for entry in entries]
    bounds = [rate_interval(entry) or (y / 100, y / 100) for entry, y in zip(entries, up, strict=True)]
    errors = [Z_95 * (number(mapping(entry.get("kl")).get("standard_error")) or 0.0) for entry in entries]
    left = [min(error, x - smallest) for error, x in zip(errors, across, strict=True)]
    below = [max(0.0, y - 100 * low) for y, (low, _) in zip(up, bounds, strict=True)]
    above = [max(0.0, 100 * high - y) for y, (_, high) in zip(up, bounds, strict=True)]
    panel.errorbar(
        across, up, yerr=[below, above], xerr=[left, errors], fmt="o", color=colour, markerfacecolor=face,
        markersize=5.5, linewidth=1, capsize=2, label=words,
    )  # fmt: skip


def _mark_chosen(panel: Axes, record: PageRecord, smallest: float) -> None:
    chosen = record.chosen
    if not _drawable(chosen):
        return
    x = max(number(chosen.get("kl_mean")) or 0.0, smallest)
    y = 100 * (number(chosen.get("behaviour_rate")) or 0.0)
    panel.scatter(
        [x], [y], s=170, marker="o", facecolors="none", edgecolors=INK, linewidths=1.6, label="chosen"
    )


def kernel(record: PageRecord) -> Figure | None:
    """Strength over depth: the kernel as a line, what was applied as markers."""
    trial = shown_trial(record)
    written, searched = applied(record, trial), kernels(trial)
    layers = depth(record, trial)
    if not layers or not (written or searched):
        return None
    figure, (panel,) = sheet(3.2)
    steps = [step / 10 for step in range(10 * (layers - 1) + 1)]
    names = sorted({*written, *searched})
    for place, name in enumerate(names):
        colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        aside = APART * (place - (len(names) - 1) / 2) / max(1, len(names) / 3)
        found = searched.get(name)
        if found is not None:
            heights = [_strength(found.peak, found.position, found.floor, found.half_width, x) for x in steps]
            panel.plot(steps, heights, color=colour, linewidth=1, linestyle="--", alpha=0.8)
        rows = written.get(name, [])
        spread = [[row.mean - row.low for row in rows], [row.high - row.mean for row in rows]]
        panel.errorbar(
            [row.layer + aside for row in rows], [row.mean for row in rows], yerr=spread if rows else None,
            fmt=marker, color=colour, markersize=6, capsize=2, label=label(name),
        )  # fmt: skip
    panel.plot([], [], color=SOFT, linewidth=1, linestyle="--", label="kernel as searched")
    panel.set_xlim(-0.5, layers - 0.5)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("layer, 0 is the first")
    panel.set_ylabel("strength" if record.induces else "strength, 1 = all removed")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _strength(peak: float, position: float, floor: float, width: float, at: float) -> float:
    """The tent of algorithms 5.1 at a fractional depth."""
    distance = abs(at - position)
    if distance > width:
        return 0.0
    return peak * (1.0 + (floor - 1.0) * distance / width) if width > 0 else peak


def separability(record: PageRecord) -> Figure | None:
    """Panels over depth: AUROC and accuracy; d'; silhouette and cosine, where residuals were kept."""
    rows = record.layers
    if not rows:
        return None
    wanted = {"silhouette": "silhouette", "previous_cosine": "cosine with the direction before"}
    shapes = {name: words for name, words in wanted.items() if _known(rows, name)}
    count = 3 if shapes else 2
    figure, panels = sheet(0.4 + 1.75 * count, rows=count, sharex=True)
    if record.view is not None:
        sides = record.view.target_count, record.view.control_count
        low, high = zip(*(auroc_interval(row.auroc, *sides) for row in rows), strict=True)
        layers = [row.layer for row in rows]
        panels[0].fill_between(
            layers, low, high, color=SERIES[0], alpha=0.2, linewidth=0, label="95 % interval"
        )
    shares = {"auroc": "AUROC, cross-fitted", "stability": "accuracy of the direction"}
    _curves(panels[0], rows, shares, "0.5 = chance")
    panels[0].axhline(0.5, color=SOFT, linewidth=0.8, linestyle=":")
    panels[0].set_ylim(top=1.03)
    _curves(panels[1], rows, {"effect_size": "d', cross-fitted"}, "standard deviations")
    if shapes:
        _curves(panels[2], rows, shapes, "-1 to 1")
    panels[-1].set_xlabel("layer, 0 is the first")
    for panel in panels:
        if record.best_layer is not None:
            panel.axvline(record.best_layer, color=INK, linewidth=1, linestyle="--")
        panel.legend(loc="best")
    return figure


def _known(rows: Sequence[LayerRow], name: str) -> list[tuple[int, float]]:
    """(layer, value) where there is a value."""
    return [(row.layer, value) for row in rows if (value := number(getattr(row, name))) is not None]


def _curves(panel: Axes, rows: Sequence[LayerRow], fields: Mapping[str, str], words: str) -> None:
    for place, (name, title) in enumerate(fields.items()):
        known = _known(rows, name)
        layers, values = [layer for layer, _ in known], [value for _, value in known]
        panel.plot(layers, values, marker=MARKERS[place], color=SERIES[place], markersize=4, label=title)
    panel.set_ylabel(words)


def projections(record: PageRecord) -> Figure | None:
    """Both classes in the plane of the direction and of the largest spread beside it, a few layers."""
    if record.view is None or not record.view.projections:
        return None
    pictures = record.view.projections
    columns = min(2, len(pictures))
    lines = -(-len(pictures) // columns)
    figure, panels = sheet(0.7 + 2.1 * lines, lines, columns)
    for panel, picture in zip(panels, pictures, strict=False):
        best = " (separates best)" if picture.layer == record.view.best_layer else ""
        panel.set_title(f"layer {picture.layer}{best}")
        sides = (
            (picture.control, SERIES[0], "^", "without the behaviour"),
            (picture.target, SERIES[1], "o", "with the behaviour"),
        )
        for points, colour, marker, words in sides:
            panel.scatter(
                [x for x, _ in points], [y for _, y in points], s=9, marker=marker, color=colour,
                alpha=0.55, linewidths=0, label=words if picture is pictures[0] else None,
            )  # fmt: skip
        panel.axvline(0, color=LINE, linewidth=1)
    for panel in panels[len(pictures) :]:
        panel.set_visible(False)
    figure.supxlabel("along the direction, activation units", fontsize=9.5)
    figure.supylabel("largest spread beside it, activation units", fontsize=9.5)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def importance(record: PageRecord) -> Figure | None:
    """Share of each parameter with its spread over resamples, one panel an objective."""
    found = [entry for entry in record.importance if entry.rows]
    if not found:
        return None
    lines = [min(BARS, len(entry.rows)) for entry in found]
    figure, panels = sheet(0.6 + sum(0.45 + 0.24 * count for count in lines), rows=len(found), sharex=True)
    for panel, entry in zip(panels, found, strict=True):
        _bars(panel, entry)
    figure.supxlabel("share of what is explained, % (bars: 10th to 90th percentile of resamples)", fontsize=9)
    return figure


def _bars(panel: Axes, entry: ObjectiveImportance) -> None:
    rows = entry.rows[:BARS]
    places = list(range(len(rows), 0, -1))
    shares = [100 * row.share for row in rows]
    spread = [[100 * (row.share - row.low) for row in rows], [100 * (row.high - row.share) for row in rows]]
    panel.errorbar(
        shares, places, xerr=spread, fmt="o", color=SERIES[0], markersize=5, capsize=2, linewidth=1.2
    )
    panel.set_yticks(places, [label(row.parameter) for row in rows])
    panel.set_ylim(0.4, len(rows) + 0.6)
    panel.set_xlim(left=0)
    panel.set_title(f"for a small {entry.objective} ({entry.trials} trials)")


FIGURES: Final[Mapping[str, Callable[[PageRecord], Figure | None]]] = {
    "front": front,
    "kernels": kernel,
    "separability": separability,
    "projections": projections,
    "importance": importance,
}
"""Name of the figure, also of its file -> what draws it."""
