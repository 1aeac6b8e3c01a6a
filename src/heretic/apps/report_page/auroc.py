# SPDX-License-Identifier: Apache-2.0
"""The interval of an area under the ROC curve from the sizes of the two classes alone."""

from __future__ import annotations

from math import sqrt
from typing import Final

from heretic.linalg.intervals import Z_95

STEPS: Final = 60


def auroc_interval(area: float, positive: int, negative: int, z: float = Z_95) -> tuple[float, float]:
    """(low, high) of an area in 0 ... 1 over `positive` x `negative` pairs (Newcombe 2006, method 5).

    The bounds are the areas whose own standard error puts the observed one z of them away, as Wilson's interval does
    for a rate: at 1 it is no point. (0, 1) for an empty class.
    """
    if positive < 1 or negative < 1:
        return 0.0, 1.0
    area = min(1.0, max(0.0, area))
    return (
        _bound(area, 0.0, positive, negative, z) if area > 0 else 0.0,
        _bound(area, 1.0, positive, negative, z) if area < 1 else 1.0,
    )


def _bound(area: float, end: float, positive: int, negative: int, z: float) -> float:
    """Bisection between the observed area, which is always inside, and the end of the scale, which never is."""
    inside, outside = area, end
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if abs(area - middle) <= z * _standard_error(middle, positive, negative):
            inside = middle
        else:
            outside = middle
    return inside


def _standard_error(area: float, positive: int, negative: int) -> float:
    """Of exponential scores (Hanley and McNeil 1982), in the symmetric form of Newcombe."""
    pairs = (positive + negative) / 2 - 1
    shared = (1 - area) / (2 - area) + area / (1 + area)
    return sqrt(max(0.0, area * (1 - area) * (1 + pairs * shared) / (positive * negative)))
