# SPDX-License-Identifier: Apache-2.0
"""How figures look: one style, colours that colour-blind readers can tell apart, and an SVG that follows the theme of
the page it stands in."""

from __future__ import annotations

import importlib.util
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from heretic.exceptions import ConfigurationError
from heretic.sanitise import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#1b1d21"
SOFT: Final = "#5a6069"
LINE: Final = "#d6d9de"
PAPER: Final = "#fefefe"
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#a8508a", "#b07d00")
"""Okabe and Ito 2008, the light ones darkened so that thin lines show on white."""
VARIABLES: Final = {
    INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}  # fmt: skip
"""Colour of the picture -> variable of the page that takes its place."""
MARKERS: Final = ("o", "s", "^", "D", "v")
WIDTH: Final = 5.3
"""Inches; the text is then readable on a telephone and on a desk."""
RESOLUTION: Final = 160
LABEL: Final = 34
STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
    "path.sketch": None,
}
_IDENTITY: Final = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure in two forms. svg: an element for a page that defines `VARIABLES`; png: a file on white."""

    name: str
    svg: str
    png: bytes


def require_matplotlib() -> None:
    """Raise `ConfigurationError` with the command that installs it; loads nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "The figures of a report need matplotlib, which is not installed.",
            hint="pip install 'heretic-workbench[plot]'",
        )


def label(name: str, limit: int = LABEL) -> str:
    """A name as a label: ASCII, on one line, cut in its middle where it is long."""
    plain = " ".join(printable(name[: 4 * limit]).encode("ascii", "replace").decode("ascii").split()) or "?"
    # A leading underscore would keep it out of the legend.
    plain = f" {plain}" if plain.startswith("_") else plain
    half = (limit - 2) // 2
    return plain if len(plain) <= limit else f"{plain[:half]}..{plain[-half:]}"


def sheet(
    height: float, rows: int = 1, columns: int = 1, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `height` inches and its axes, row by row; the caller has entered `style()`."""
    from matplotlib.figure import Figure  # an extra; without pyplot there is no window and no global state

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    axes = figure.subplots(rows, columns, sharex=sharex, squeeze=False)
    return figure, [panel for row in axes for panel in row]


def rendered(name: str, figure: Figure) -> Drawing:
    """Both forms of a figure; equal figures give equal bytes."""
    import matplotlib

    picture, file = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(picture, format="svg", metadata=nothing, facecolor="none")
    figure.savefig(file, format="png", dpi=RESOLUTION, metadata={"Software": None}, facecolor="#ffffff")
    return Drawing(name, themed(name, picture.getvalue()), file.getvalue())


def themed(name: str, svg: str) -> str:
    """The drawing as an element of a page: no prologue, no foreign name spaces, identities of its own, colours by
    variable. It is hidden from screen readers, for whom the page says what is in it."""
    found = re.search(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", svg, re.DOTALL)
    assert found is not None, "matplotlib writes one svg element"
    inside = found.group(2).replace("xlink:href", "href")
    inside = _IDENTITY.sub(lambda match: f"{match.group(1)}{name}-", inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, f"var({variable})")
    return (
        f'<svg class="drawing" viewBox="{found.group(1)}" aria-hidden="true" focusable="false">{inside}</svg>'
    )
