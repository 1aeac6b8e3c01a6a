# SPDX-License-Identifier: Apache-2.0
"""How strongly a trial edits each layer: what was applied at each writer, and the kernel that was searched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from heretic.apps.report_page.reading import count, mapping, number, sequence, text
from heretic.apps.report_page.record import PageRecord
from heretic.interventions.schedule import Kernel

_LAYER: Final = re.compile(r"\.(\d{1,3})\.")
DEEPEST: Final = 999
KERNEL: Final = ("max_weight", "max_weight_position", "min_weight", "min_weight_distance")


@dataclass(frozen=True, slots=True)
class Applied:
    """One writer. low, high: of its experts or components where it has several."""

    layer: int
    mean: float
    low: float
    high: float


def shown_trial(record: PageRecord) -> Mapping[str, object]:
    """The chosen trial, or the first of the front where none was chosen."""
    return record.chosen or (record.front[0] if record.front else {})


def applied(record: PageRecord, trial: Mapping[str, object]) -> dict[str, list[Applied]]:
    """Component -> its writers by layer, as stored with the trial after kernel, profile, prior and cap."""
    known = {text(site.get("path"), 500): site for site in record.certificate}
    components = [text(name) for name in sequence(mapping(record.document.get("coverage")).get("components"))]
    found: dict[str, list[Applied]] = {}
    for path, values in mapping(trial.get("strengths")).items():
        numbers = [value for entry in sequence(values) if (value := number(entry)) is not None]
        place = _LAYER.search(str(path)[:500])
        if not numbers or place is None:
            continue
        site = known.get(text(path, 500), {})
        name = text(site.get("component")) or _component(str(path)[:500], components)
        mean = sum(numbers) / len(numbers)
        found.setdefault(name, []).append(Applied(int(place.group(1)), mean, min(numbers), max(numbers)))
    return {name: sorted(rows, key=lambda row: row.layer) for name, rows in sorted(found.items())}


def _component(path: str, components: Sequence[str]) -> str:
    for name in components:
        if name in path:
            return name
    return ".".join(path.removesuffix(".weight").split(".")[-2:])


def kernels(trial: Mapping[str, object]) -> dict[str, Kernel]:
    """Component -> the kernel of the trial's parameters; components that are off have none."""
    parameters = mapping(trial.get("parameters"))
    found = {}
    for key in parameters:
        component, _, last = str(key).rpartition(".")
        values = [number(parameters.get(f"{component}.{part}")) for part in KERNEL]
        if last == KERNEL[0] and component and all(value is not None for value in values):
            peak, position, floor, width = (value or 0.0 for value in values)
            if peak > 0:
                found[component] = Kernel(peak, position, floor, width)
    return found


def reversed_writers(record: PageRecord, trial: Mapping[str, object]) -> int:
    """Writers at which the edit goes beyond removal (algorithms 4.3); 0 for the goal `induce`, where 1 is no bound."""
    if record.induces:
        return 0
    return sum(row.high > 1.0 for rows in applied(record, trial).values() for row in rows)


def depth(record: PageRecord, trial: Mapping[str, object]) -> int:
    """Number of layers, as far as the study tells."""
    deepest = [row.layer for rows in applied(record, trial).values() for row in rows]
    sites = [min(count(site.get("layer")) or 0, DEEPEST) for site in record.certificate]
    return max([len(record.layers), *(layer + 1 for layer in (*deepest, *sites))])
