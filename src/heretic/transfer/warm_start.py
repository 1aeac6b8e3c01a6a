# SPDX-License-Identifier: Apache-2.0
"""From a profile to the points that a search tries first (requirements R-WST-03)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from heretic.transfer.profiles import FamilyProfile

Point: TypeAlias = "dict[str, float | int | str | None]"
"""Parameters of a trial by name, as the study has them; None = inactive."""

VARIATIONS: Final = ((1.0, 1.0), (0.95, 0.98), (1.05, 1.02), (1.0, 0.95), (1.0, 1.05))
"""Factors of weight and position, in the order of R-WST-03: the profile itself, then its neighbours."""

MLP: Final = "mlp.down_proj"
"""The component that `mlp_ratio` speaks of; dense blocks, experts and shared experts have this one name."""


def warm_start_points(
    profile: FamilyProfile,
    *,
    components: Sequence[str],
    layers: int,
    count: int,
    ranges: Mapping[str, tuple[float, float]],
) -> list[Point]:
    """The first `count` (0 to 5) variations of a profile, as parameters of trials.

    components: names such as `attn.o_proj`. layers: L >= 1. ranges: (low, high) of every number that is searched, in
    layers where it is a depth; values are clamped to them, and a number without a range is not searched and left out.

    Directions are per layer, and then there is no index: it is None, as the study stores it. (The index 0.65 (L - 1)
    that R-WST-03 names would be inactive.) A single layer has only the global scope and index 0. Where ranges are
    narrow or L = 1, variations may coincide; the study measures equal points once.
    """
    assert layers >= 1 and 0 <= count <= len(VARIATIONS)
    last = float(layers - 1)
    points: list[Point] = []
    for weight, shift in VARIATIONS[:count]:
        point: Point = {"direction_scope": "per_layer" if layers > 1 else "global"}
        numbers: dict[str, float] = {}
        for component in components:
            ratio = profile.mlp_ratio if component == MLP else 1.0
            numbers[f"{component}.max_weight"] = profile.peak_weight * weight * ratio
            numbers[f"{component}.max_weight_position"] = profile.position * shift * last
            numbers[f"{component}.min_weight"] = profile.edge_fraction
            numbers[f"{component}.min_weight_distance"] = profile.half_width * last
        point["direction_index"] = None if layers > 1 else 0.0
        point.update(
            (name, min(max(value, ranges[name][0]), ranges[name][1]))
            for name, value in numbers.items()
            if name in ranges
        )
        points.append(point)
    return points
