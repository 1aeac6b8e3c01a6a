# SPDX-License-Identifier: Apache-2.0
"""What this version can do, as data: a later step deletes a row.

A setting named here is known and checked, but only the listed values can be honoured. An explicit other value
is refused; a default other value is replaced by the first listed one and recorded as a degradation (R-GEN-07,
R-GEN-08).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A feature that does not exist yet, and the values that do without it."""

    setting: str
    feature: str
    values: tuple[object, ...]


UNAVAILABLE: Final = (
    Unavailable(
        "export_formats", "an export format other than weights", (("weights",), ("weights", "weights"))
    ),
    Unavailable("allow_pickle", "reading of pickled weights", (False,)),
)


def unavailable(setting: str, value: object) -> Unavailable | None:
    """The missing feature that a value of a setting would need, or None."""
    rows: Mapping[str, Unavailable] = {row.setting: row for row in UNAVAILABLE}
    row = rows.get(setting)
    if row is None or any(type(value) is type(known) and value == known for known in row.values):
        return None
    return row
