# SPDX-License-Identifier: Apache-2.0
"""Plots of measured figures; drawn where matplotlib is installed, left out where it is not."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = 2
INK = "#1f4e79"


@dataclass(frozen=True, slots=True)
class Series:
    """One panel. values: (x, measurements). line: (slope, intercept) of a fit; words: what is said of it."""

    across: str
    up: str
    values: Sequence[tuple[float, Sequence[float]]]
    line: tuple[float, float] | None = None
    words: str = ""


def draw_scaling(panels: Sequence[Series], title: str, path: Path) -> bool:
    """Draw every panel with medians, ranges and its line to a PNG; False where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    matplotlib: Any = importlib.import_module("matplotlib")
    # Draws to files alone: no display is looked for.
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(9, 3.4 * rows), squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        _draw(panel, axis)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    # Without the date and version in the file, equal figures give equal bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return True


def _draw(panel: Series, axis: Any) -> None:
    places = [x for x, _ in panel.values]
    middles = [median(values) for _, values in panel.values]
    below = [middle - min(values) for middle, (_, values) in zip(middles, panel.values, strict=True)]
    above = [max(values) - middle for middle, (_, values) in zip(middles, panel.values, strict=True)]
    axis.errorbar(places, middles, yerr=[below, above], fmt="o", color=INK, capsize=3, label="median, range")
    if panel.line is not None and places:
        slope, intercept = panel.line
        ends = [0.0, max(places)]
        axis.plot(ends, [slope * x + intercept for x in ends], color="#c0504d", label=panel.words)
    axis.set_xlabel(panel.across)
    axis.set_ylabel(panel.up)
    axis.set_xlim(left=0)
    # Room above the highest point for the legend.
    highest = max((max(values) for _, values in panel.values), default=1.0)
    axis.set_ylim(0, 1.25 * highest)
    axis.grid(alpha=0.3)
    if places:
        axis.legend(fontsize=8)
