# SPDX-License-Identifier: Apache-2.0
"""Strength over depth, and the planner that uses it (algorithms 4.8, 5.1; requirements 3.5, 5.1)."""

from __future__ import annotations

import pytest
import torch

from heretic.constants import LAYER_RANGE_PROFILES
from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings
from heretic.exceptions import ConfigurationError
from heretic.interventions.placement import PlanContext
from heretic.interventions.planners import STRATEGIES, single
from heretic.interventions.schedule import Kernel, LayerProfile, strengths
from heretic.testing.workbench import loaded_pico

FLAT = LayerProfile()


def test_the_tent_by_hand() -> None:
    """Section 5.1 for L = 10: peak 1.2 at 6, half of it at the edge, three layers wide."""
    values = strengths(Kernel(1.2, 6.0, 0.5, 3.0), 10, FLAT, cap=1.5)
    assert values == pytest.approx([0, 0, 0, 0.6, 0.8, 1.0, 1.2, 1.0, 0.8, 0.6])
    between = strengths(Kernel(1.0, 4.5, 0.0, 2.0), 10, FLAT, cap=1.5)
    assert between == pytest.approx([0, 0, 0, 0.25, 0.75, 0.75, 0.25, 0, 0, 0])


def test_the_layer_ranges_multiply_and_the_cap_comes_last() -> None:
    """Section 5.1: half-open ranges of l/9, the last one closed; the default profile."""
    full = Kernel(1.0, 4.5, 1.0, 9.0)
    profile = LayerProfile(LAYER_RANGE_PROFILES)
    assert strengths(full, 10, profile, cap=2.0) == pytest.approx([0.5] * 4 + [1.0] * 3 + [0.8] * 3)
    edge = LayerProfile(((0.0, 1 / 3, 0.5), (2 / 3, 1.0, 0.1)))
    assert [edge.at(layer, 10) for layer in (0, 2, 3, 5, 6, 9)] == [0.5, 0.5, 1.0, 1.0, 0.1, 0.1]
    prior = [3.0] * 5 + [0.5] * 5
    assert strengths(full, 10, FLAT, cap=1.5, calibration=prior) == pytest.approx([1.5] * 5 + [0.5] * 5)
    assert strengths(Kernel(-0.2, 4.0, 1.0, 9.0), 10, FLAT, cap=1.5) == [0.0] * 10


def test_one_layer_and_no_width() -> None:
    """R-MOD-29: l/(L-1) is 0 for L = 1, and a tent of width 0 stands on one layer."""
    assert strengths(Kernel(1.0, 0.0, 0.3, 0.0), 1, LayerProfile(((0.0, 0.5, 0.7),)), cap=2.0) == [0.7]
    assert strengths(Kernel(1.0, 2.0, 0.3, 0.0), 4, FLAT, cap=2.0) == [0, 0, 1.0, 0]


@pytest.mark.parametrize(
    "ranges",
    (
        ((0.2, 0.2, 1.0),),
        ((0.0, 0.6, 1.0), (0.5, 1.0, 1.0)),
        ((0.0, 1.2, 1.0),),
        ((-0.1, 0.5, 1.0),),
        ((0.0, 0.5, -1.0),),
    ),
)
def test_empty_overlapping_and_negative_ranges_are_errors(
    ranges: tuple[tuple[float, float, float], ...],
) -> None:
    with pytest.raises(ConfigurationError, match="layer range"):
        LayerProfile(ranges)


def bank(layers: int, size: int) -> DirectionBank:
    rows = torch.nn.functional.normalize(
        torch.randn(layers, 2, size, generator=torch.Generator().manual_seed(1)) + 2.0, dim=2
    )
    return DirectionBank(rows, torch.ones(layers, 2))


def parameters(scope: str, index: float | None = None) -> dict[str, float | int | str | None]:
    point: dict[str, float | int | str | None] = {"direction_scope": scope, "direction_index": index}
    for component, peak in (("attn.o_proj", 1.2), ("mlp.down_proj", 0.0)):
        point |= {
            f"{component}.max_weight": peak,
            f"{component}.max_weight_position": 1.0,
            f"{component}.min_weight": 0.5,
            f"{component}.min_weight_distance": 1.0,
        }
    return point


def test_the_single_strategy_uses_the_layers_own_or_one_mixed_direction() -> None:
    """Sections 2 and 3.11: writers of block l use entry l; a component at peak 0 stays out of the plan."""
    architecture = loaded_pico("llama", changes={"num_hidden_layers": 4}).architecture
    directions = bank(4, architecture.hidden_size)
    context = PlanContext(architecture, Findings({"difference": directions}), FLAT, cap=1.0)
    own = STRATEGIES["single"](parameters("per_layer"), context)
    assert {row.site.component for row in own.rows} == {"attn.o_proj"}
    assert [row.site.layer for row in own.rows] == [0, 1, 2]
    assert [row.strengths.tolist() for row in own.rows] == [pytest.approx([0.6]), [1.0], pytest.approx([0.6])]
    for row in own.rows:
        assert torch.equal(row.directions, directions.directions[row.site.layer, :1])
    shared = single(parameters("global", 1.5), context)
    assert all(torch.equal(row.directions, directions.at(1.5)[:1]) for row in shared.rows)
    assert not torch.equal(shared.rows[0].directions, own.rows[0].directions)
    assert own.effective_strengths()["model.layers.0.self_attn.o_proj.weight"] == [0.6]


def test_missing_parameters_and_caps_above_two_are_errors() -> None:
    """Section 4.8: above 2 the component returns larger than before."""
    architecture = loaded_pico("llama").architecture
    directions = bank(2, architecture.hidden_size)
    with pytest.raises(ConfigurationError, match="max_strength is 2.5"):
        PlanContext(architecture, Findings({"difference": directions}), FLAT, cap=2.5)
    context = PlanContext(architecture, Findings({"difference": directions}), FLAT, cap=2.0)
    with pytest.raises(ConfigurationError, match="direction_index"):
        single(parameters("global", None), context)
    with pytest.raises(ConfigurationError, match="min_weight_distance"):
        single(
            {
                "attn.o_proj.max_weight": 1.0,
                "attn.o_proj.max_weight_position": 0,
                "attn.o_proj.min_weight": 0,
            },
            context,
        )
