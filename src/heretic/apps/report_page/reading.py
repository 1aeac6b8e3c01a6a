# SPDX-License-Identifier: Apache-2.0
"""Values of a stored document, which may hold anything, as numbers and texts; and the form they have on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from heretic.sanitise import printable, redact

UNKNOWN: Final = "not measured"
CELL: Final = 300
"""Characters of one cell of a table."""
REPLY: Final = 3_000
_ABSOLUTE: Final = re.compile(r"(?<![\w.:/~])(?:[A-Za-z]:\\|/)(?:[^\s/\\'\"]+[/\\])+(?=[^\s/\\'\"])")
"""Folders in front of the last part of an absolute path: they tell about a machine and nothing about the run."""
_DATABASE: Final = re.compile(r"(?<=sqlite:///)/?(?:[^\s/'\"]*/)+")
"""The same in the address of a database."""


def mapping(value: object) -> Mapping[str, object]:
    """The value, or an empty mapping."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[object]:
    """The value where it is a list, or an empty one."""
    return value if isinstance(value, list | tuple) else ()


def number(value: object) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: object) -> int | None:
    """The value where it is a whole number of 0 or more."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def pair(value: object) -> tuple[float, float] | None:
    """(low, high) where the value holds two numbers in that order."""
    found = [number(entry) for entry in sequence(value)]
    if len(found) != 2 or found[0] is None or found[1] is None or found[0] > found[1]:
        return None
    return found[0], found[1]


def text(value: object, limit: int = CELL) -> str:
    """The value in words: printable, without credentials, at most `limit` characters; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping):
        return text(
            ", ".join(f"{text(key)}: {text(entry)}" for key, entry in list(value.items())[:50]), limit
        )
    if isinstance(value, list | tuple):
        return text(", ".join(text(entry) for entry in value[:50]), limit)
    found = redact(printable(str(value)[: 4 * limit]))
    return found if len(found) <= limit else f"{found[: limit - 3].rstrip()}..."


def public(value: object, limit: int = CELL) -> str:
    """`text`, and of an absolute path the last part alone."""
    return _ABSOLUTE.sub("", _DATABASE.sub("", text(value, limit)))


def figure(value: float | None, digits: int = 4) -> str:
    """Significant digits, or that there is none."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def fixed(value: float | None, places: int = 3) -> str:
    """Decimal places, for columns of like figures; nothing where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def share(value: float | None) -> str:
    """`12.0 %`."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def interval(found: tuple[float, float] | None) -> str:
    """`7.0 to 19.8 %`."""
    return "" if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f} %"


def measured(measurement: Mapping[str, object]) -> bool:
    """Whether replies were counted at all."""
    return bool(count(measurement.get("n"))) and number(measurement.get("behaviour_rate")) is not None


def rate(measurement: Mapping[str, object]) -> str:
    """`12.0 % (12/100)` of a measurement of the document."""
    if not measured(measurement):
        return UNKNOWN
    hits, total = count(measurement.get("hits")), count(measurement.get("n"))
    counted = "" if hits is None else f" ({hits}/{total}{' hits' if measurement.get('graded') else ''})"
    return f"{share(number(measurement.get('behaviour_rate')))}{counted}"


def rate_interval(measurement: Mapping[str, object]) -> tuple[float, float] | None:
    """The 95 % interval of the rate; None where nothing was counted."""
    return pair(measurement.get("interval")) if measured(measurement) else None


def divergence(measurement: Mapping[str, object]) -> str:
    """`0.0214 +- 0.0013`, with a star where one prompt supplies over half of the mean."""
    mean = number(measurement.get("kl_mean"))
    if mean is None:
        return UNKNOWN
    details = mapping(measurement.get("kl"))
    error = number(details.get("standard_error"))
    spread = "" if error is None else f" +- {error:.4f}"
    return f"{mean:.4f}{spread}{' *' if details.get('unstable') else ''}"
