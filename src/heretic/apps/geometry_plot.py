# SPDX-License-Identifier: Apache-2.0
"""Two classes of residuals over depth as a picture: how far apart they are, and how well they separate."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from heretic.exceptions import ConfigurationError, FileOperationError, OutputExistsError
from heretic.publish import write_file

if TYPE_CHECKING:
    from heretic.linalg.geometry import LayerGeometry

ENDINGS: Final = (".png", ".svg", ".pdf")
PANELS: Final[tuple[tuple[str, Mapping[str, str]], ...]] = (
    (
        "length, activation units",
        {
            "difference_norm": "difference of the means",
            "target_mean_norm": "mean with the behaviour",
            "control_mean_norm": "mean without it",
        },
    ),
    ("d'", {"effect_size": "d', cross-fitted"}),
    ("share", {"auroc": "AUROC, cross-fitted", "silhouette": "silhouette", "accuracy": "accuracy"}),
    (
        "cosine",
        {"mean_cosine": "the two means", "difference_cosine": "differences of means and of medians"},
    ),
)
"""Axis label -> fields of `LayerGeometry` with the words for them, from top to bottom."""


def require_plot(path: Path, *, overwrite: bool) -> None:
    """Raise what `save_plot` would raise about the name alone, and where matplotlib is missing; loads nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "A plot needs matplotlib, which is not installed.",
            hint="pip install 'heretic-workbench[plot]', or leave out --plot.",
        )
    if path.suffix not in ENDINGS:
        raise ConfigurationError(
            f"{path.name!r} is no name for a plot.", hint=f"It ends in {', '.join(ENDINGS)}."
        )
    if path.exists() and not (overwrite and path.is_file()):
        raise OutputExistsError(
            f"{path} exists.", hint="Choose another name, or allow it to be replaced with --overwrite."
        )


def save_plot(path: Path, geometry: Sequence[LayerGeometry], title: str) -> None:
    """Draw the geometry over the blocks and write it in one step; raises `FileOperationError`."""
    from matplotlib.figure import (
        Figure,
    )  # an extra; and without pyplot there is no window and no global state

    layers = [row.layer for row in geometry]
    figure = Figure(figsize=(8, 2.2 * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), sharex=True)
    axes[0].set_title(title)
    axes[-1].set_xlabel("block")
    for panel, (label, lines) in zip(axes, PANELS, strict=True):
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
        for name, words in lines.items():
            panel.plot(layers, [getattr(row, name) for row in geometry], marker=".", label=words)
        panel.legend(fontsize="small")
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=path.suffix[1:])
    except OSError as error:
        raise FileOperationError(
            f"{path.name} could not be drawn: {error}.", hint="Leave out --plot."
        ) from error
    write_file(path, drawn.getvalue())
