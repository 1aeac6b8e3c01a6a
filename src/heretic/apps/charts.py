# SPDX-License-Identifier: Apache-2.0
"""Small charts as SVG in the colours of the page's theme; every text is escaped (requirements R-UI-25).

Each chart has a title for readers of the screen and scales with its column. Nothing here knows what is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 460
HEIGHT: Final = 270
LEFT: Final = 64
RIGHT: Final = 12
TOP: Final = 12
BOTTOM: Final = 44
INK: Final = "var(--body-text-color)"
FAINT: Final = "var(--body-text-color-subdued)"
GRID: Final = "var(--border-color-primary)"
ACCENT: Final = "var(--color-accent)"
COLOURS: Final = (ACCENT, "var(--body-text-color)", "var(--secondary-500)", "var(--body-text-color-subdued)")
DASHES: Final = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True, slots=True)
class Dot:
    """A point. strong: drawn in the accent colour; chosen: with a ring; note: shown when it is pointed at."""

    x: float
    y: float
    strong: bool = False
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """Numbers from low to high over a length in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies in the drawing."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to six round numbers within."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scatter(dots: Sequence[Dot], *, title: str, x_label: str, y_label: str, front: bool = True) -> str:
    """Points; the strong ones are joined by a line where `front` is true."""
    if not dots:
        return empty("Nothing has been measured yet.")
    x_axis, y_axis = _axes([dot.x for dot in dots], [dot.y for dot in dots])
    parts = _frame(x_axis, y_axis, x_label, y_label)
    strong = sorted((dot for dot in dots if dot.strong), key=lambda dot: dot.x)
    if front and len(strong) > 1:
        points = " ".join(f"{x_axis.place(dot.x):.1f},{y_axis.place(dot.y):.1f}" for dot in strong)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{ACCENT}" stroke-width="1.5" opacity="0.6"/>'
        )
    for dot in sorted(dots, key=lambda dot: (dot.strong, dot.chosen)):
        x, y = x_axis.place(dot.x), y_axis.place(dot.y)
        colour, size = (ACCENT, 5) if dot.strong else (FAINT, 3)
        note = f"<title>{html.escape(dot.note)}</title>"
        if dot.chosen:
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{INK}" stroke-width="2"/>'
            )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}">{note}</circle>')
    return _svg(parts, title)


def lines(
    series: Mapping[str, Sequence[float | None]], *, title: str, x_label: str, y_label: str, first: int = 0
) -> str:
    """One line a series over 0, 1, 2, ...; a gap where a value is None or not finite."""
    known = [value for values in series.values() for value in values if _finite(value)]
    if not known:
        return empty("Nothing has been measured yet.")
    longest = max(len(values) for values in series.values())
    x_axis, y_axis = _axes([first, first + max(1, longest - 1)], [float(value or 0.0) for value in known])
    parts = _frame(x_axis, y_axis, x_label, y_label)
    for number, values in enumerate(series.values()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        for run in _runs(values):
            points = " ".join(
                f"{x_axis.place(first + place):.1f},{y_axis.place(value):.1f}" for place, value in run
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
                f'stroke-dasharray="{dash}"/>'
            )
            if len(run) == 1:
                place, value = run[0]
                x, y = x_axis.place(first + place), y_axis.place(value)
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    return _svg(parts, title) + (_legend(series) if len(series) > 1 else "")


def bars(values: Mapping[str, float], *, title: str) -> str:
    """Horizontal bars, one row a name, in the given order."""
    if not values:
        return empty("Nothing has been measured yet.")
    largest = max(abs(value) for value in values.values()) or 1.0
    rows = "".join(
        f'<div class="bar"><span>{html.escape(name)}</span>'
        f'<span class="track"><span style="width:{100 * abs(value) / largest:.1f}%"></span></span>'
        f"<span>{value:.2f}</span></div>"
        for name, value in values.items()
    )
    return f'<div class="bars" role="img" aria-label="{html.escape(title, quote=True)}">{rows}</div>'


def heat(matrix: Sequence[Sequence[float]], *, title: str, label: str) -> str:
    """A square of cells, darker for a larger absolute value up to 1; the note of each names row, column and value."""
    size = len(matrix)
    if not size:
        return empty("There is nothing to compare.")
    side = min((WIDTH - LEFT - RIGHT) / size, (HEIGHT - TOP - BOTTOM) / size)
    parts = []
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            share = 100 * min(1.0, abs(value)) if math.isfinite(value) else 0.0
            parts.append(
                f'<rect x="{LEFT + column * side:.1f}" y="{TOP + row * side:.1f}" width="{side:.2f}" '
                f'height="{side:.2f}" style="fill:color-mix(in srgb, {ACCENT} {share:.0f}%, transparent)" '
                f'stroke="{GRID}" stroke-width="0.3"><title>{row}, {column}: {value:.3f}</title></rect>'
            )
    step = max(1, size // 8)
    for number in range(0, size, step):
        middle = (number + 0.5) * side
        parts.append(_text(LEFT - 6, TOP + middle + 4, str(number), anchor="end"))
        parts.append(_text(LEFT + middle, TOP + size * side + 16, str(number)))
    parts.append(_text(LEFT + size * side / 2, TOP + size * side + 34, label))
    return _svg(parts, title)


def parallel(rows: Sequence[tuple[Mapping[str, float], bool]], *, title: str) -> str:
    """Parallel coordinates: one broken line a row, the strong rows in the accent colour, axes scaled to their range."""
    names = list(dict.fromkeys(name for row, _ in rows for name in row))
    if len(names) < 2 or len(rows) < 2:
        return empty("Two trials are needed.")
    ranges = {}
    for name in names:
        known = [row[name] for row, _ in rows if _finite(row.get(name))]
        if known:
            ranges[name] = (min(known), max(known))
    names = list(ranges)
    gap = (WIDTH - LEFT - RIGHT) / max(1, len(names) - 1)
    parts = []
    for number, name in enumerate(names):
        x = LEFT + number * gap
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="{GRID}">'
            f"<title>{html.escape(name)}: {ranges[name][0]:.3g} to {ranges[name][1]:.3g}</title></line>"
        )
        parts.append(_text(x, HEIGHT - BOTTOM + 16, str(number + 1)))
    for row, strong in sorted(rows, key=lambda entry: entry[1]):
        points = []
        for number, name in enumerate(names):
            if _finite(row.get(name)):
                axis = Axis(*ranges[name], HEIGHT - BOTTOM, TOP)
                points.append(f"{LEFT + number * gap:.1f},{axis.place(row[name]):.1f}")
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{ACCENT if strong else FAINT}" '
            f'stroke-width="{2 if strong else 0.7}" opacity="{1 if strong else 0.5}"/>'
        )
    key = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return _svg(parts, title) + f'<ol class="key">{key}</ol>'


def empty(text: str) -> str:
    """What stands where there is nothing to draw."""
    return f'<p class="empty">{html.escape(text)}</p>'


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is not None and math.isfinite(value):
            runs[-1].append((place, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _axes(x_values: Iterable[float], y_values: Iterable[float]) -> tuple[Axis, Axis]:
    x_low, x_high = _padded(x_values)
    y_low, y_high = _padded(y_values)
    return Axis(x_low, x_high, LEFT, WIDTH - RIGHT), Axis(y_low, y_high, HEIGHT - BOTTOM, TOP)


def _padded(values: Iterable[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0.0 <= low < 0.5 * high else low - margin), high + margin


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.4g}", anchor="end"))
    for value in x_axis.ticks():
        parts.append(_text(x_axis.place(value), HEIGHT - BOTTOM + 16, f"{value:.4g}"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 8, x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="13" y="{middle:.1f}" fill="{INK}" font-size="12" text-anchor="middle" '
        f'transform="rotate(-90 13 {middle:.1f})">{html.escape(y_label)}</text>'
    )
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" font-size="12" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _svg(parts: Sequence[str], title: str) -> str:
    label = html.escape(title, quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _legend(names: Iterable[str]) -> str:
    entries = "".join(
        f'<li><svg width="26" height="8" aria-hidden="true"><line x1="0" x2="26" y1="4" y2="4" '
        f'stroke="{COLOURS[number % 4]}" stroke-width="2" stroke-dasharray="{DASHES[number % 4]}"/></svg> '
        f"{html.escape(name)}</li>"
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{entries}</ul>'
