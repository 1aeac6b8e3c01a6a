# SPDX-License-Identifier: Apache-2.0
"""Fronts, hypervolume and knee against brute force (algorithms section 8)."""

from __future__ import annotations

import random

import pytest

from heretic.linalg.pareto import Point, distance_to, hypervolume, knee, pareto_front, scaled_to_unit


def points(seed: int, count: int, grid: int | None = None) -> list[Point]:
    generator = random.Random(seed)
    if grid:
        return [(generator.randrange(grid) / grid, generator.randrange(grid) / grid) for _ in range(count)]
    return [(generator.random(), generator.random()) for _ in range(count)]


def dominates(first: Point, second: Point) -> bool:
    return first != second and first[0] <= second[0] and first[1] <= second[1]


@pytest.mark.parametrize("seed", range(30))
def test_front_equals_the_definition_also_with_ties(seed: int) -> None:
    cloud = points(seed, 25, grid=8)
    expected = {point for point in cloud if not any(dominates(other, point) for other in cloud)}
    front = pareto_front(cloud)
    assert {cloud[index] for index in front} == expected
    assert len(front) == len(expected), "of equal points one counts"
    assert all(cloud.index(cloud[index]) == index for index in front), "the first of equal points counts"
    assert [cloud[index][0] for index in front] == sorted(cloud[index][0] for index in front)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_equals_a_grid_count(seed: int) -> None:
    """Brute force to 1e-3: the share of grid cells that some point dominates."""
    cloud = [(round(x, 2), round(y, 2)) for x, y in points(seed, 8)]
    steps = 200  # coordinates lie on every second line, so the count is exact
    hits = sum(
        any(x <= (i + 0.5) / steps and y <= (j + 0.5) / steps for x, y in cloud)
        for i in range(steps)
        for j in range(steps)
    )
    assert hypervolume(cloud) == pytest.approx(hits / steps**2, abs=1e-3)


def test_hypervolume_laws() -> None:
    cloud = points(1, 10)
    volume = hypervolume(cloud)
    x, y = cloud[pareto_front(cloud)[0]]
    assert hypervolume([*cloud, (x + 0.01, y + 0.01)]) == volume, "a dominated point changes nothing"
    assert hypervolume([*cloud, *cloud]) == volume, "duplicates change nothing"
    assert hypervolume([*cloud, (1.5, 0.0), (0.0, 1.0)]) == volume, (
        "points beyond the reference change nothing"
    )
    assert hypervolume([*cloud, (x - 0.01, y - 0.01)]) > volume, "control: a better point does"
    assert hypervolume([]) == 0.0 and hypervolume([(0.0, 0.0)]) == 1.0


def test_knee_is_where_the_front_bends() -> None:
    front = [(0.0, 1.0), (0.1, 0.2), (0.5, 0.1), (1.0, 0.0)]
    assert knee(front) == 1
    assert knee([(1000 * x, y / 1000) for x, y in front]) == 1, "scaling an axis does not move it"
    assert knee([(0.3, 0.4)]) == 0
    assert knee([(0.0, 1.0), (1.0, 0.0)]) == 0, "ties go to the first"
    assert knee([(0.0, 1.0), (0.6, 0.9), (1.0, 0.0)]) == 0, "a concave front has its knee at an end"


def test_scaling_without_range_and_distances() -> None:
    assert scaled_to_unit([(2.0, 5.0), (4.0, 5.0)]) == [(0.0, 0.0), (1.0, 0.0)]
    assert scaled_to_unit([]) == []
    assert distance_to([(0.0, 4.0), (3.0, 0.0)], 0) == pytest.approx([0.0, 2**0.5])
