# SPDX-License-Identifier: Apache-2.0
"""Both ways of the component benchmark solve the same problem, and its verdicts follow from its figures."""

from __future__ import annotations

import pytest

from benchmarks.components import ALPHA, dense_components, lines, residuals
from heretic.directions.components import components
from heretic.linalg.geometry import principal_angles


def test_the_dense_way_and_the_span_find_the_same() -> None:
    contrast = residuals(2, 96, 20)
    before = contrast.target.clone()
    for layer in range(2):
        dense = dense_components(contrast, layer, 4)
        span = components(contrast, count=4, alpha=ALPHA).directions[layer, 1:]
        assert float(principal_angles(span, dense).max()) < 1e-5
        other = components(contrast, count=4, alpha=ALPHA + 1).directions[layer, 1:]
        assert float(principal_angles(other, dense).max()) > 1e-2, "control: another problem"
    assert bool((contrast.target == before).all())


def test_a_layer_does_not_depend_on_how_many_there_are() -> None:
    assert bool((residuals(3, 16, 5).target[:, :1] == residuals(1, 16, 5).target).all())


@pytest.mark.parametrize(("fast", "memory", "verdict"), [(15.0, 0.1, "met"), (14.9, 0.11, "missed")])
def test_verdicts_are_those_of_the_requirement(fast: float, memory: float, verdict: str) -> None:
    way = {"layers": 1, "seconds": 1.0, "processor_seconds": 1.0, "bytes": 1e6, "largest_angle": 0.0}
    shape = {"layers": 1, "width": 8, "prompts": 2, "count": 3, "threads": 1}
    clocks = {"seconds": fast, "processor_seconds": 99.0}
    told = lines({**shape, "span": way, "dense": way, "times_as_fast": clocks, "share_of_memory": memory})[-1]
    assert told.count(f"({verdict}:") == 2
