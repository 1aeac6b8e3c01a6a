# SPDX-License-Identifier: Apache-2.0
"""The search space: valid for every depth, clamped, conditional, one key per edit (R-SEA-04, R-SEA-05)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from heretic.exceptions import ConfigurationError, UnknownSettingError
from heretic.study.space import (
    canonical_key,
    clamped,
    default_space,
    describe_space,
    nearest_legal,
    resolve,
    sobol_point,
    value_at,
)
from heretic.study.types import Dimension, Value

COMPONENTS = ("attn.o_proj", "mlp.down_proj")


def parameters_at(space: tuple[Dimension, ...], seed: int, index: int) -> dict[str, Value]:
    point = sobol_point(space, seed, index)
    return resolve(space, lambda dimension: point[dimension.name])


@pytest.mark.parametrize("layers", [1, 2, 3, 32])
def test_r_sea_05_space_is_valid_for_every_depth(layers: int) -> None:
    """Control in the ranges themselves: the unguarded half-width 0.6 (L - 1) is below 1 at L = 1 and 2."""
    space = default_space(COMPONENTS, layers)
    assert all(dimension.low <= dimension.high for dimension in space)
    by_name = {dimension.name: dimension for dimension in space}
    last = layers - 1
    assert by_name["attn.o_proj.min_weight_distance"].high == max(1.0, 0.6 * last)
    assert by_name["direction_index"].low == pytest.approx(0.4 * last)
    assert by_name["direction_index"].high == pytest.approx(last)
    for index in range(64):
        for name, value in parameters_at(space, 1, index).items():
            if name.endswith("position") and value is not None:
                assert isinstance(value, float) and 0.4 * last - 1e-9 <= value <= last
            if name.endswith("distance") and value is not None:
                assert isinstance(value, float) and value >= 1.0
    assert (0.6 * last < 1.0) == (layers < 3)


def test_14_percent_of_peak_weights_are_exactly_zero() -> None:
    """algorithms 5.2: 0.25 of a range of 1.75 is clamped; the control without clamp has none."""
    space = default_space(COMPONENTS, 16)
    name = "mlp.down_proj.max_weight"
    drawn = [sobol_point(space, 7, index)[name] for index in range(1024)]
    weights = [parameters_at(space, 7, index)[name] for index in range(1024)]
    zeros = sum(weight == 0.0 for weight in weights)
    assert 0.135 <= zeros / len(weights) <= 0.15
    assert 0.0 not in drawn
    assert str(clamped(Dimension("x", "float", -1, 1, clamp=0.0), -0.0)) == "0.0"


def test_r_sea_04_inactive_parameters_are_none() -> None:
    space = default_space(COMPONENTS, 16)
    seen = set()
    for index in range(256):
        parameters = parameters_at(space, 3, index)
        assert list(parameters) == [dimension.name for dimension in space]
        is_global = parameters["direction_scope"] == "global"
        assert (parameters["direction_index"] is not None) == is_global
        for component in COMPONENTS:
            on = parameters[f"{component}.max_weight"] != 0.0
            seen.add((is_global, component, on))
            for rest in ("max_weight_position", "min_weight", "min_weight_distance"):
                assert (parameters[f"{component}.{rest}"] is not None) == on
    assert len(seen) == 8, "all cases were met"


def test_sobol_is_a_function_of_seed_and_index_and_fills_the_cube_evenly() -> None:
    space = default_space(COMPONENTS, 16)
    assert sobol_point(space, 5, 300) == sobol_point(space, 5, 300)
    assert sobol_point(space, 5, 300) != sobol_point(space, 6, 300)
    units = (Dimension("a", "float", 0.0, 1.0), Dimension("b", "float", 0.0, 1.0))
    cells: dict[str, set[int]] = {"a": set(), "b": set()}
    for index in range(512):  # beyond one cached block
        for name, value in sobol_point(units, 0, index).items():
            assert isinstance(value, float)
            cells[name].add(int(value * 512))
    assert all(len(hit) == 512 for hit in cells.values()), "512 points meet each of 512 intervals once"


def test_equal_edits_have_equal_keys() -> None:
    base: dict[str, Value] = {
        "direction_scope": "global",
        "direction_index": 3.5,
        "a.max_weight": 0.5,
        "b.x": None,
    }
    assert canonical_key(base) == canonical_key(
        {"a.max_weight": 0.5, "direction_index": 3.5, "direction_scope": "global"}
    )
    assert canonical_key(base) != canonical_key({**base, "a.max_weight": 0.5000000000000001})
    nothing: Mapping[str, Value] = {**base, "a.max_weight": 0.0}
    assert canonical_key(nothing) == canonical_key(
        {**nothing, "direction_scope": "per_layer", "direction_index": None}
    )
    assert canonical_key(nothing) != canonical_key(
        {**nothing, "addition_strength": 1.0, "direction_index": 1.0}
    )


def test_values_stay_in_range_and_warm_starts_become_legal() -> None:
    number = Dimension("n", "int", 1, 4)
    assert [value_at(number, unit) for unit in (0.0, 0.24, 0.25, 0.999999)] == [1, 1, 2, 4]
    choice = Dimension("c", "categorical", choices=("x", "y"))
    assert [value_at(choice, unit) for unit in (0.0, 0.5, 0.999999)] == ["x", "y", "y"]
    fixed = Dimension("f", "float", 2.0, 2.0)
    assert value_at(fixed, 0.7) == 2.0
    assert nearest_legal(number, 9.0, 1) == 4
    assert nearest_legal(Dimension("w", "float", 0.0, 1.0), float("nan"), 0.25) == 0.25
    assert nearest_legal(choice, "z", "x") == "x"


def test_overrides_general_then_specific() -> None:
    space = default_space(
        COMPONENTS,
        11,
        overrides={"max_weight": (0.0, 1.0), "attn.o_proj.max_weight": (0.2, 0.2), "direction_index": (1, 2)},
    )
    by_name = {dimension.name: (dimension.low, dimension.high) for dimension in space}
    assert by_name["mlp.down_proj.max_weight"] == (0.0, 1.0)
    assert by_name["attn.o_proj.max_weight"] == (0.2, 0.2)
    assert by_name["direction_index"] == (1.0, 2.0)
    assert describe_space(space) != describe_space(default_space(COMPONENTS, 11))


def test_bad_overrides_are_refused_by_name() -> None:
    with pytest.raises(UnknownSettingError) as unknown:
        default_space(COMPONENTS, 8, overrides={"attn.o_proj.max_wieght": (0, 1)})
    assert unknown.value.hint is not None and "attn.o_proj.max_weight" in unknown.value.hint
    for key, bounds in {
        "max_weight": (1.0, 0.5),
        "min_weight_distance": (0.0, 3.0),
        "direction_index": (0, 99),
    }.items():
        with pytest.raises(ConfigurationError) as error:
            default_space(COMPONENTS, 8, overrides={key: bounds})
        assert key in error.value.message


def test_a_choice_of_scopes_is_kept_and_leaves_no_dead_dimension() -> None:
    """5.2: without the global scope there is no index to choose; control: both scopes by default."""
    names = [dimension.name for dimension in default_space(COMPONENTS, 16, scopes=("per_layer",))]
    assert "direction_index" not in names and "direction_scope" in names
    assert "direction_index" in [dimension.name for dimension in default_space(COMPONENTS, 16)]
    alone = default_space(COMPONENTS, 16, scopes=("global",))
    assert alone[0].choices == ("global",) and alone[1].name == "direction_index"
    assert default_space(COMPONENTS, 1, scopes=("per_layer",))[0].choices == ("global",)
