# SPDX-License-Identifier: Apache-2.0
"""Fronts of points that are minimised in both coordinates (algorithms section 8), in plain floats."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other point dominates, by increasing x; of equal points the first counts.

    A point is dominated when another is at most as large in both coordinates and differs.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], points[index][1], index))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def hypervolume(points: Sequence[Point]) -> float:
    """Area of the unit square that the points dominate, reference (1, 1): sum (x_(i+1) - x_i)(1 - y_i).

    Points at or beyond the reference contribute nothing; coordinates below 0 are taken as 0.
    """
    inside = [(max(0.0, x), max(0.0, y)) for x, y in points if x < 1.0 and y < 1.0]
    front = [inside[index] for index in pareto_front(inside)]
    if not front:
        return 0.0
    ends = [x for x, _ in front[1:]] + [1.0]
    return sum((end - x) * (1.0 - y) for (x, y), end in zip(front, ends, strict=True))


def scaled_to_unit(points: Sequence[Point]) -> list[Point]:
    """The points with both coordinates mapped to [0, 1] by range; one without range is 0."""
    if not points:
        return []
    lows = [min(point[axis] for point in points) for axis in (0, 1)]
    spans = [max(point[axis] for point in points) - lows[axis] for axis in (0, 1)]

    def scale(point: Point, axis: int) -> float:
        return (point[axis] - lows[axis]) / spans[axis] if spans[axis] > 0 else 0.0

    return [(scale(point, 0), scale(point, 1)) for point in points]


def knee(front: Sequence[Point]) -> int:
    """Index of the point of a front with the largest distance to the chord of the scaled front.

    `front` is mutually non-dominated and not empty. Distance counts towards the ideal corner only, so a
    concave front has its knee at an end; equal distances (to 1e-9) go to the first in the given order.
    """
    assert front
    scaled = scaled_to_unit(front)
    # The chord of a scaled front runs from (0, 1) to (1, 0); 1 - x - y grows towards the ideal corner.
    gains = [round(1.0 - x - y, 9) for x, y in scaled]
    return max(range(len(front)), key=lambda index: (gains[index], -index))


def distance_to(front: Sequence[Point], origin: int) -> list[float]:
    """Distance of every point to the point `origin`, in the coordinates of the scaled front."""
    scaled = scaled_to_unit(front)
    centre = scaled[origin]
    return [hypot(x - centre[0], y - centre[1]) for x, y in scaled]
