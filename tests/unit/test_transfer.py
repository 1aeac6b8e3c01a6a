# SPDX-License-Identifier: Apache-2.0
"""Warm start: profiles of families, detection, the measured profile, and the first points (requirements 5.8)."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from heretic.config.settings import Settings
from heretic.exceptions import NonFiniteError, WarmStartError
from heretic.study.space import default_space, nearest_legal, resolve
from heretic.study.types import Dimension
from heretic.transfer.profiles import (
    NARROWEST,
    FamilyProfile,
    detect_family,
    load_profiles,
    measured_profile,
)
from heretic.transfer.warm_start import Point, warm_start_points

COMPONENTS = ("attn.o_proj", "mlp.down_proj")
ATTENTION, MLP = COMPONENTS

FIGURES = {
    "llama": (1.10, 0.65, 0.30, 0.35, 1.00, 0.30),
    "qwen": (1.15, 0.60, 0.25, 0.30, 1.10, 0.35),
    "mistral": (1.05, 0.70, 0.35, 0.40, 0.90, 0.25),
    "mixtral": (1.05, 0.70, 0.35, 0.40, 0.90, 0.25),
    "gemma": (1.00, 0.62, 0.40, 0.32, 1.05, 0.28),
    "phi": (0.95, 0.68, 0.35, 0.38, 0.95, 0.32),
}
"""Peak weight, position, edge fraction, half-width, MLP ratio, KL expected: the table of requirements 5.8."""


def ranges_of(space: tuple[Dimension, ...]) -> dict[str, tuple[float, float]]:
    return {
        dimension.name: (dimension.low, dimension.high)
        for dimension in space
        if dimension.kind != "categorical"
    }


def points(
    profile: FamilyProfile, layers: int, count: int = 5, components: tuple[str, ...] = COMPONENTS
) -> list[Point]:
    ranges = ranges_of(default_space(components, layers))
    return warm_start_points(profile, components=components, layers=layers, count=count, ranges=ranges)


def number(value: float | int | str | None) -> float:
    assert isinstance(value, float)
    return value


def test_the_figures_are_those_of_the_table() -> None:
    found = {
        name: (
            profile.peak_weight,
            profile.position,
            profile.edge_fraction,
            profile.half_width,
            profile.mlp_ratio,
            profile.expected_kl,
        )
        for name, profile in load_profiles().items()
    }
    assert found == FIGURES
    assert all(profile.name == name for name, profile in load_profiles().items())


def test_the_setting_offers_exactly_the_families_of_the_table() -> None:
    choices = set(get_args(Settings.model_fields["model_family"].annotation))
    assert choices == {"", *load_profiles()}


@pytest.mark.parametrize(
    ("model_type", "name", "family"),
    [
        # The type of the text configuration decides.
        ("llama", "", "llama"),
        ("llama4_text", "", "llama"),
        ("mllama_text_model", "", "llama"),
        ("qwen2", "", "qwen"),
        ("qwen3", "", "qwen"),
        ("qwen3_moe", "", "qwen"),
        ("qwen3_next", "", "qwen"),
        ("qwen2_5_vl_text", "", "qwen"),
        ("qwen3_5_moe_text", "", "qwen"),
        ("mistral", "", "mistral"),
        ("mistral3", "", "mistral"),
        ("ministral3", "", "mistral"),
        ("mixtral", "", "mixtral"),
        ("gemma", "", "gemma"),
        ("gemma2", "", "gemma"),
        ("gemma3_text", "", "gemma"),
        ("gemma3n_text", "", "gemma"),
        ("phi", "", "phi"),
        ("phi3", "", "phi"),
        ("phi4_multimodal", "", "phi"),
        ("phimoe", "", "phi"),
        # A name never overrides it.
        ("qwen2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen"),
        ("llama", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama"),
        ("qwen2", "someone/llama-distilled-into-this", "qwen"),
        ("llama", "01-ai/Yi-not-qwen", "llama"),
        # Names, where it says nothing.
        ("", "meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("custom", "org/CodeLlama-7b", "llama"),
        ("", "Qwen/Qwen2.5-7B-Instruct", "qwen"),
        ("", "C:\\models\\Ministral-8B\\", "mistral"),
        ("", "/models/Mixtral-8x7B/", "mixtral"),
        ("", "google/gemma-3-4b-it", "gemma"),
        ("", "microsoft/Phi3.5-mini", "phi"),
        ("", "dolphin-2-phi-2", "phi"),
        # Nothing that can be relied on.
        ("", "", None),
        ("custom", "DeepSeek-R1-Distill-Qwen-7B", None),
        ("", "merge-of-llama-and-qwen", None),
        ("", "llama-lovers/falcon-7b", None),
        ("", "dolphin-7b", None),
        ("", "philosopher", None),
        ("gpt_neox", "EleutherAI/pythia-160m", None),
        ("diffllama", "", None),
        ("phikon", "", None),
        ("recurrent_gemma", "google/recurrentgemma-2b", None),
    ],
)
def test_the_family_comes_from_the_type_and_else_from_the_name(
    model_type: str, name: str, family: str | None
) -> None:
    """R-WST-02."""
    assert detect_family(configured="", model_type=model_type, name=name) == family


def test_an_explicit_family_wins_and_an_unknown_one_is_refused() -> None:
    """R-WST-02, R-WST-04; control: the same model without the setting."""
    assert detect_family(configured="gemma", model_type="qwen2", name="Qwen2") == "gemma"
    assert detect_family(configured="", model_type="qwen2", name="Qwen2") == "qwen"
    with pytest.raises(WarmStartError, match="'lama'") as caught:
        detect_family(configured="lama", model_type="llama", name="Llama")
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None and all(name in caught.value.hint for name in FIGURES)


def test_the_variations_are_those_of_the_table() -> None:
    """R-WST-03 by hand: llama at L = 101, where a depth of 0.01 is one layer."""
    found = points(load_profiles()["llama"], 101)
    pairs = [(point[f"{ATTENTION}.max_weight"], point[f"{ATTENTION}.max_weight_position"]) for point in found]
    expected = [(1.1, 65.0), (1.045, 63.7), (1.155, 66.3), (1.1, 61.75), (1.1, 68.25)]
    assert [number(value) for pair in pairs for value in pair] == pytest.approx(
        [value for pair in expected for value in pair]
    )
    for point in found:
        assert point[f"{ATTENTION}.min_weight"] == 0.30
        assert point[f"{ATTENTION}.min_weight_distance"] == pytest.approx(35.0)
        assert point["direction_scope"] == "per_layer" and point["direction_index"] is None


@pytest.mark.parametrize("family", FIGURES)
def test_only_the_feed_forward_weight_has_the_ratio(family: str) -> None:
    """R-WST-03; control: another component beside attention has its weight."""
    profile = load_profiles()[family]
    for point in points(profile, 33, components=(*COMPONENTS, "embedding")):
        attention = number(point[f"{ATTENTION}.max_weight"])
        assert number(point[f"{MLP}.max_weight"]) == pytest.approx(attention * FIGURES[family][4])
        assert point["embedding.max_weight"] == attention
        for parameter in ("max_weight_position", "min_weight", "min_weight_distance"):
            assert point[f"{MLP}.{parameter}"] == point[f"{ATTENTION}.{parameter}"]


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 33])
@pytest.mark.parametrize("family", FIGURES)
def test_the_search_takes_every_point_as_it_is(family: str, layers: int) -> None:
    """Each point names every parameter of the space, and the study has nothing to mend; control: wrong depths."""
    space = default_space(COMPONENTS, layers)

    def studied(point: Point) -> Point:
        return resolve(space, lambda dimension: nearest_legal(dimension, point[dimension.name], fallback=-1))

    for point in points(load_profiles()[family], layers):
        assert set(point) == {dimension.name for dimension in space}
        assert studied(point) == point
    deeper = points(load_profiles()[family], layers)[0]
    deeper[f"{MLP}.max_weight_position"] = float(layers)
    assert studied(deeper) != deeper


@pytest.mark.parametrize("family", FIGURES)
def test_a_model_of_usual_depth_gets_the_figures_unclamped(family: str) -> None:
    """The default space contains every profile: the table would be of no use otherwise."""
    profile, everything = load_profiles()[family], (-math.inf, math.inf)
    unlimited = dict.fromkeys(ranges_of(default_space(COMPONENTS, 33)), everything)
    free = warm_start_points(profile, components=COMPONENTS, layers=33, count=5, ranges=unlimited)
    assert free == points(profile, 33)
    assert len({tuple(point.items()) for point in free}) == 5


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("layers", [1, 2, 3, 33])
def test_there_are_exactly_as_many_points_as_wanted(count: int, layers: int) -> None:
    """R-WST-05: fewer are the first of more."""
    profile = load_profiles()["qwen"]
    assert len(points(profile, layers, count)) == count
    assert points(profile, layers, count) == points(profile, layers)[:count]


def test_values_are_clamped_to_the_ranges_and_what_is_not_searched_is_left_out() -> None:
    ranges = {
        f"{ATTENTION}.max_weight": (0.0, 0.5),
        f"{ATTENTION}.max_weight_position": (20.0, 32.0),
        f"{ATTENTION}.min_weight": (0.9, 1.0),
        f"{ATTENTION}.min_weight_distance": (1.0, 4.0),
    }
    profile = load_profiles()["qwen"]
    found = warm_start_points(profile, components=COMPONENTS, layers=33, count=5, ranges=ranges)
    for point in found[:4]:
        assert [number(point[name]) for name in ranges] == [0.5, 20.0, 0.9, 4.0]
    assert found[4][f"{ATTENTION}.max_weight_position"] == pytest.approx(0.6 * 1.05 * 32), "control: inside"
    assert all(set(point) == {"direction_scope", "direction_index", *ranges} for point in found)


def bump(centre: float, width: float, layers: int = 41) -> list[float]:
    """d' of 6 at the relative depth `centre`, falling off as a bell, over a floor of 0.4."""
    return [
        0.4 + 5.6 * math.exp(-(((layer / (layers - 1) - centre) / width) ** 2) / 2) for layer in range(layers)
    ]


@pytest.mark.parametrize("centre", [0.3, 0.5, 0.62, 0.75])
def test_the_measured_peak_is_at_the_planted_depth(centre: float) -> None:
    """R-WST-04; control: equal layers, and layers that separate nothing, give a wide tent in the middle."""
    found = measured_profile(bump(centre, 0.08))
    assert found.position == pytest.approx(centre, abs=0.02)
    assert found.half_width == NARROWEST
    assert (found.peak_weight, found.mlp_ratio, found.expected_kl) == (1.0, 1.0, None)
    for flat in ([3.0] * 41, [-0.2, 0.3] + [0.0] * 39):
        middle = measured_profile(flat)
        assert middle.position == pytest.approx(0.5)
        assert middle.half_width == pytest.approx(0.5, abs=0.02)


def test_the_measured_tent_spans_an_even_band_and_ignores_what_lies_below_half() -> None:
    """The formula of `measured_profile`: layers 40 to 100 of 101 give 0.7 and 0.3; control: a shorter band."""
    band = [2.0] * 40 + [5.0] * 61
    found = measured_profile(band)
    assert found.position == pytest.approx(0.7)
    assert found.half_width == pytest.approx(0.3, abs=0.01)
    assert measured_profile([-4.0] * 40 + band[40:]).position == pytest.approx(0.7), "below 0 weighs nothing"
    wide = measured_profile([5.0] * 80 + [2.0] * 21)
    assert wide.position == pytest.approx(0.395)
    assert wide.half_width == pytest.approx(0.4, abs=0.01)


def test_the_unit_of_separability_does_not_count() -> None:
    one, three = measured_profile(bump(0.6, 0.3)), measured_profile([3 * value for value in bump(0.6, 0.3)])
    assert three.position == pytest.approx(one.position) and three.half_width == pytest.approx(one.half_width)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_measured_points_of_shallow_models_are_legal(layers: int) -> None:
    space = default_space(COMPONENTS, layers)
    for point in points(measured_profile([1.0] * layers), layers):
        for dimension in space:
            if point[dimension.name] is not None:
                assert nearest_legal(dimension, point[dimension.name], fallback=-1) == point[dimension.name]


def test_a_separability_that_is_no_number_is_named_with_its_layer() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="layer 1 is"):
            measured_profile([1.0, value, 2.0])
    assert measured_profile([1.0, 0.0, 2.0]).position == pytest.approx(1.0), "control"
