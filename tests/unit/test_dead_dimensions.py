# SPDX-License-Identifier: Apache-2.0
"""No dead dimensions: whatever a search may change changes the edit (algorithms 5.2; R-SEA-04, R-SEA-05)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from heretic.architectures.site import Architecture
from heretic.config import SearchSpace
from heretic.constants import LAYER_RANGE_PROFILES
from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings
from heretic.interventions.placement import PlanContext
from heretic.interventions.planners import single
from heretic.interventions.schedule import LayerProfile
from heretic.phases.optimization import reachable_space
from heretic.study.space import default_space, resolve, sobol_point, value_at
from heretic.study.types import Dimension, Value
from heretic.testing.workbench import loaded_pico

POINTS = 48
UNITS = (0.05, 0.35, 0.65, 0.95)
Edit = tuple[tuple[str, float, tuple[float, ...]], ...]


@cache
def context(layers: int) -> PlanContext:
    """A pico model of that depth with a random direction per layer, and the program's own profile and cap."""
    architecture = loaded_pico("llama", changes={"num_hidden_layers": layers}).architecture
    directions = torch.randn(layers, 1, architecture.hidden_size, generator=torch.Generator().manual_seed(0))
    directions = directions.abs() / directions.norm(dim=2, keepdim=True)  # abs: neighbours agree
    bank = DirectionBank(directions / directions.norm(dim=2, keepdim=True), torch.ones(layers, 1))
    return PlanContext(architecture, Findings({"difference": bank}), LayerProfile(LAYER_RANGE_PROFILES), 1.5)


def edit_of(parameters: Mapping[str, Value], layers: int) -> Edit:
    """What is really done: site, strength, direction."""
    rows = single(parameters, context(layers)).rows
    return tuple((r.site.path, float(r.strengths), tuple(r.directions[0, :4].tolist())) for r in rows)


def changed(
    space: Sequence[Dimension], given: Mapping[str, Value], name: str, value: Value
) -> dict[str, Value]:
    """The parameters with another value of one dimension; what becomes active by it takes its middle."""

    def choose(dimension: Dimension) -> Value:
        kept = given[dimension.name]
        return value if dimension.name == name else value_at(dimension, 0.5) if kept is None else kept

    return resolve(space, choose)


def is_fixed(dimension: Dimension) -> bool:
    """One value only."""
    return len(dimension.choices) == 1 if dimension.kind == "categorical" else dimension.low == dimension.high


def dead(space: Sequence[Dimension], layers: int) -> set[str]:
    """Names that are active and not fixed at some point, and none of whose values there changes the edit."""
    found = set()
    for index in range(POINTS):
        point = sobol_point(space, 5, index)
        given = resolve(space, lambda dimension, point=point: point[dimension.name])  # type: ignore[misc]  # no type is inferred for a default of a lambda
        before = edit_of(given, layers)
        for dimension in space:
            if given[dimension.name] is None or is_fixed(dimension) or not before:
                continue
            others = (changed(space, given, dimension.name, value_at(dimension, unit)) for unit in UNITS)
            if all(edit_of(other, layers) == before for other in others):
                found.add(dimension.name)
    return found


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 24])
def test_every_active_dimension_changes_the_edit(layers: int) -> None:
    space = default_space(context(layers).architecture.components, layers)
    assert dead(space, layers) == set()


def test_control_a_dimension_that_no_planner_reads_is_found() -> None:
    """And one that is not switched off with what it belongs to."""
    space = (*default_space(context(3).architecture.components, 3), Dimension("unused", "float", 0.0, 1.0))
    assert dead(space, 3) == {"unused"}
    always = tuple(replace(dimension, active=None) for dimension in space[:-1])
    assert "direction_index" in dead(always, 3) and "mlp.down_proj.min_weight" in dead(always, 3)


def test_one_layer_has_peaks_only() -> None:
    """R-SEA-05: one layer has one direction, and a tent over it is its peak; all else is fixed."""
    space = default_space(context(1).architecture.components, 1)
    assert {d.name for d in space if not is_fixed(d)} == {
        "attn.o_proj.max_weight",
        "mlp.down_proj.max_weight",
    }


def test_gentle_attention_edits_are_reached() -> None:
    """The floor of the peak is 0, not 0.8 as elsewhere: a fifth of all points edit attention by 0.1 to 0.5 at most.
    Control: with the range of other tools there is none."""

    def share(ranges: Mapping[str, tuple[float, float]]) -> float:
        space = default_space(context(8).architecture.components, 8, overrides=ranges)
        gentle = 0
        for index in range(200):
            point = sobol_point(space, 1, index)
            plan = edit_of(resolve(space, lambda dimension, point=point: point[dimension.name]), 8)  # type: ignore[misc]  # no type is inferred for a default of a lambda
            peak = max((strength for path, strength, _ in plan if "o_proj" in path), default=0.0)
            gentle += 0.1 <= peak <= 0.5
        return gentle / 200

    assert share({}) >= 0.2
    assert share({"attn.o_proj.max_weight": (0.8, 1.5)}) <= 0.05


def with_sites_in(layers: Sequence[int]) -> Architecture:
    """Eight layers, of which only these have an MLP."""
    whole = context(8).architecture
    kept = tuple(s for s in whole.sites if s.component != "mlp.down_proj" or s.layer in layers)
    return replace(whole, sites=kept)


def test_a_component_out_of_reach_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Positions from 0.6 of the depth on and tents at most 0.6 wide never edit the first layer alone.
    Controls: with a second layer, or with the default ranges, the component stays."""

    def names(architecture: Architecture, ranges: SearchSpace) -> set[str]:
        return {d.name.rpartition(".")[0] for d in reachable_space(architecture, ranges)} - {""}

    upper = SearchSpace(max_weight_position=(0.6, 1.0))
    assert names(with_sites_in([0]), upper) == {"attn.o_proj"}
    assert "mlp.down_proj" in caplog.text
    both = {"attn.o_proj", "mlp.down_proj"}
    assert names(with_sites_in([0, 1]), upper) == both
    assert names(with_sites_in([0]), SearchSpace()) == both
