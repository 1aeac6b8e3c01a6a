# SPDX-License-Identifier: Apache-2.0
"""Splits and slices: `train`, `train[:400]`, `test[-10%:]`, `train[:50]+test[:50]` (R-DAT-01).

Pure arithmetic, the same for every kind of source. Percentages are rounded to the nearest row, as the
`datasets` library does by default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from heretic.exceptions import DatasetError

_PART = re.compile(r"\s*(?P<name>[^\[\]+:]+?)\s*(?:\[(?P<start>[^:\]]*):(?P<stop>[^:\]]*)\])?\s*")
_BOUND = re.compile(r"(-?\d+)(%?)")
_FORMS = "Write NAME, NAME[a:b], NAME[:b], NAME[a:] or NAME[10%:20%]; join several with +."


@dataclass(frozen=True)
class Bound:
    """One end of a slice: a number of rows, or of percent; negative counts from the end."""

    value: int
    percent: bool = False

    def row(self, total: int) -> int:
        """The row this bound means in a split of `total` rows; may lie outside 0..total."""
        offset = round(self.value * total / 100) if self.percent else self.value
        return total + offset if self.value < 0 else offset

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}"


@dataclass(frozen=True)
class SplitPart:
    """One split with its slice; `start` and `stop` are None where the slice is open."""

    name: str
    start: Bound | None = None
    stop: Bound | None = None

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.name
        start, stop = ("" if bound is None else str(bound) for bound in (self.start, self.stop))
        return f"{self.name}[{start}:{stop}]"

    def absolute(self) -> tuple[int, int] | None:
        """(start, stop) if both are plain row numbers from the front (an open start is 0), else None.

        Only such a slice can be streamed: a percentage or an open end needs the length of the split.
        """
        start = Bound(0) if self.start is None else self.start
        if self.stop is None or start.percent or self.stop.percent or start.value < 0 or self.stop.value < 0:
            return None
        return start.value, self.stop.value

    def rows(self, total: int, label: str) -> tuple[int, int]:
        """(start, stop) in a split of `total` rows, 0 <= start < stop <= total.

        `label` names the source in messages. Raises `DatasetError` when the split is empty, when it has fewer
        rows than the slice asks for (R-DAT-06; clipping would silently make a smaller set), or when the slice
        is empty.
        """
        if total == 0:
            raise DatasetError(
                f"The split {self.name!r} of {label} has 0 rows.", hint="Name another split or source."
            )
        start = 0 if self.start is None else self.start.row(total)
        stop = total if self.stop is None else self.stop.row(total)
        if stop > total or start > total or start < 0 or stop < 0:
            asked = max(stop, start, total - min(start, stop))
            raise too_few_rows(str(self), label, asked=asked, found=total)
        if start >= stop:
            raise DatasetError(
                f"The slice {self} of {label} is empty: it means rows {start} to {stop} of {total}.",
                hint=_FORMS,
            )
        return start, stop


def too_few_rows(part: str, label: str, *, asked: int, found: int, at_most: bool = False) -> DatasetError:
    """The error for a source with fewer rows than a slice needs, with both numbers (R-DAT-06)."""
    return DatasetError(
        f"{label} has too few rows for {part}: {asked} needed, {'at most ' if at_most else ''}{found} found.",
        hint=f"Ask for at most {found} rows, or use a larger split.",
        data={"rows_needed": asked, "rows_found": found},
    )


def parse_split(text: str) -> tuple[SplitPart, ...]:
    """Parse a `split` value into its joined parts; raises `DatasetError` quoting what cannot be read."""
    parts = []
    for piece in text.split("+"):
        match = _PART.fullmatch(piece)
        if match is None:
            raise DatasetError(
                f"The split {text!r} cannot be read: {piece!r} is not a split name.", hint=_FORMS
            )
        start, stop = match["start"], match["stop"]
        part = SplitPart(match["name"], _parse_bound(start, text), _parse_bound(stop, text))
        bounds = part.absolute()
        if bounds is not None and bounds[0] >= bounds[1]:
            raise DatasetError(f"The split {text!r} cannot be read: the slice {part} is empty.", hint=_FORMS)
        parts.append(part)
    return tuple(parts)


def _parse_bound(text: str | None, whole: str) -> Bound | None:
    if text is None or not text.strip():
        return None
    match = _BOUND.fullmatch(text.strip())
    if match is None:
        raise DatasetError(f"The split {whole!r} cannot be read: {text!r} is not a row number.", hint=_FORMS)
    bound = Bound(int(match[1]), bool(match[2]))
    if bound.percent and abs(bound.value) > 100:
        raise DatasetError(
            f"The split {whole!r} asks for {bound}; percentages run from -100% to 100%.", hint=_FORMS
        )
    return bound
