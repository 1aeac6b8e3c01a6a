# SPDX-License-Identifier: Apache-2.0
"""Edits of single query heads: exactly their columns, in every form of attention (algorithms 4.6; R-CIR-02 to 04)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from heretic.architectures.resolve import resolve
from heretic.architectures.site import Site
from heretic.exceptions import ConfigurationError, UnsupportedArchitectureError
from heretic.interventions.edit import Edit, ablation, ablation_before_norm
from heretic.interventions.heads import (
    HeadLayout,
    head_columns,
    head_edit,
    head_layout,
    head_layouts,
    restricted,
)
from heretic.interventions.weights import edited_bias, edited_matrix
from heretic.testing.pico import pico_model
from heretic.testing.theorems import tokens

D, LAYOUT = 24, HeadLayout(heads=5, size=6)
M = LAYOUT.heads * LAYOUT.size
SITE = Site("writer.weight", 0, "attn.o_proj", 0, "writer")
GENERATOR = torch.Generator().manual_seed(3)
DOUBLE = torch.float64


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=DOUBLE)


DIRECTION = nn.functional.normalize(normal(1, D), dim=1)
GAMMA = torch.exp(0.5 * normal(D))
WEIGHT = normal(D, M)


def removal(strength: float = 1.0, *, norm: bool = False) -> Edit:
    share = torch.tensor([strength], dtype=DOUBLE)
    return ablation_before_norm(DIRECTION, share, GAMMA) if norm else ablation(DIRECTION, share)


def contributions(weight: Tensor, reading: Tensor, inputs: Tensor) -> Tensor:
    """c_h(x) = reading W[:, h] z_h: [n, H]."""
    return ((reading @ weight) * inputs).view(len(inputs), LAYOUT.heads, LAYOUT.size).sum(dim=2)


def laid_out(axis: Literal[0, 1], weight: Tensor) -> Tensor:
    return weight if axis == 0 else weight.T.contiguous()


@pytest.mark.parametrize("norm", (False, True), ids=("plain", "before a norm"))
@pytest.mark.parametrize("axis", (0, 1))
def test_only_the_chosen_heads_change_and_write_nothing_along_the_direction(
    axis: Literal[0, 1], norm: bool
) -> None:
    """Section 4.6: c_h becomes 0 at strength 1, every other c is bit-equal. Control: slicing rows changes all heads."""
    plain, stored = removal(norm=norm), laid_out(axis, WEIGHT)
    assert plain.read is not None
    reading, inputs = plain.read[:, 0], normal(7, M)
    edit = head_edit(plain, stored, [3, 1], LAYOUT, axis)
    assert edit.rank == 1, "one edit for all heads of a layer"
    edited = laid_out(axis, edited_matrix(stored, edit, replace(SITE, residual_axis=axis)))
    before, after = (contributions(weight, reading, inputs) for weight in (WEIGHT, edited))
    assert float(after[:, [1, 3]].abs().max()) < 1e-12 * float(before.abs().max())
    assert torch.equal(after[:, [0, 2, 4]], before[:, [0, 2, 4]])
    others = torch.cat([head_columns(head, LAYOUT.size) for head in (0, 2, 4)])
    assert torch.equal(edited[:, others], WEIGHT[:, others])
    assert float(before[:, [1, 3]].abs().min()) > 1e-4, "control: they wrote something"

    rows = WEIGHT.clone()
    rows[6:12] = edited_matrix(WEIGHT, plain, SITE)[6:12]
    assert bool((contributions(rows, reading, inputs) != before).any(dim=0).all())


def test_all_heads_together_are_the_edit_of_the_layer_and_the_bias_is_left_alone() -> None:
    """Control: with one head left out they are not."""
    plain, bias = removal(0.7), normal(D)
    whole = edited_matrix(WEIGHT, plain, SITE)
    every = head_edit(plain, WEIGHT, range(LAYOUT.heads), LAYOUT, 0)
    assert torch.allclose(edited_matrix(WEIGHT, every, SITE), whole, rtol=1e-12, atol=1e-12)
    some = head_edit(plain, WEIGHT, range(LAYOUT.heads - 1), LAYOUT, 0)
    assert not torch.allclose(edited_matrix(WEIGHT, some, SITE), whole, atol=1e-3)
    assert torch.equal(edited_bias(bias, every), bias) and not torch.equal(edited_bias(bias, plain), bias)


def test_any_columns_can_be_chosen_and_strength_0_changes_no_bit() -> None:
    """Neurons of a feed-forward part are columns too."""
    columns = torch.tensor([29, 4])
    edited = edited_matrix(WEIGHT, restricted(removal(), WEIGHT, columns, 0), SITE)
    changed = (edited != WEIGHT).any(dim=0).nonzero().flatten().tolist()
    assert changed == [4, 29]
    nothing = head_edit(removal(0.0), WEIGHT, [2], LAYOUT, 0)
    assert nothing.is_identity and torch.equal(edited_matrix(WEIGHT, nothing, SITE), WEIGHT)
    assert torch.equal(edited_matrix(WEIGHT, head_edit(removal(), WEIGHT, [], LAYOUT, 0), SITE), WEIGHT)


def test_a_head_that_does_not_exist_is_an_error() -> None:
    for head in (-1, 5):
        with pytest.raises(ConfigurationError, match=rf"no query head {head}; .*heads 0 to 4"):
            head_edit(removal(), WEIGHT, [1, head], LAYOUT, 0)


LAYOUTS: dict[str, tuple[HeadLayout | None, ...]] = {
    "llama": (HeadLayout(4, 12),) * 2,
    "qwen2": (HeadLayout(4, 10),) * 2,
    "gpt2": (HeadLayout(4, 10),) * 2,
    "gpt_bigcode": (HeadLayout(4, 10),) * 2,
    "deepseek_v3": (HeadLayout(4, 12),) * 2,
    "lfm2": (None, HeadLayout(4, 10)),
    "qwen3_next": (None, HeadLayout(4, 12)),
    "granitemoehybrid": (None, HeadLayout(4, 10)),
    "recurrent_gemma": (None, HeadLayout(4, 12)),
    "nemotron_h": (None, HeadLayout(4, 12), None, None),
    "falcon_h1": (HeadLayout(4, 12),) * 2,
    "mamba2": (None, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_the_configured_one_layer_by_layer(name: str) -> None:
    """R-CIR-02: configured head size; a state-space or convolution layer has none, even where the widths would fit."""
    network = pico_model(name)
    found = head_layouts(network, resolve(network).sites)
    assert {site.layer: layout for site, layout in found.items()} == {
        layer: layout for layer, layout in enumerate(LAYOUTS[name]) if layout is not None
    }
    assert all(site.component == "attn.o_proj" for site in found)


def test_layers_of_one_model_may_have_heads_of_different_size() -> None:
    network = pico_model("gemma4", changes={"global_head_dim": 24})
    found = head_layouts(network, resolve(network).sites)
    assert list(found.values()) == [HeadLayout(4, 12), HeadLayout(4, 24)]


def test_a_matrix_that_no_configured_size_divides_is_refused() -> None:
    network = pico_model("llama")
    site = resolve(network).sites[0]
    network.config.head_dim = 16
    with pytest.raises(UnsupportedArchitectureError, match=r"o_proj\.weight has 48 .* 4 query heads"):
        head_layout(network, site)


QUERIES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "multi-head": ("model.layers.1.self_attn.q_proj", 12, {"num_key_value_heads": 4}),
    "grouped": ("model.layers.1.self_attn.q_proj", 12, {}),
    "multi-query": ("model.layers.1.self_attn.q_proj", 12, {"num_key_value_heads": 1}),
}


@pytest.mark.parametrize("form", QUERIES)
def test_a_block_of_columns_is_what_one_query_head_writes(form: str) -> None:
    """R-CIR-04: another query in head 2 changes the columns of head 2 and no others, whoever shares keys and values."""
    path, size, changes = QUERIES[form]
    network = pico_model("llama", changes=changes)
    site = next(site for site in resolve(network).sites if site.layer == 1)
    layout = head_layout(network, site)
    assert layout == HeadLayout(4, size)

    def given() -> Tensor:
        seen: list[Tensor] = []
        handle = network.get_submodule(site.hook).register_forward_pre_hook(
            lambda module, arguments: seen.append(arguments[0].clone())
        )
        with torch.no_grad():
            network(input_ids=tokens(), use_cache=False)
        handle.remove()
        return seen[0]

    before = given()
    network.get_parameter(f"{path}.weight").data[2 * size : 3 * size] *= -1.0
    changed = (given() != before).flatten(0, 1).any(dim=0).nonzero().flatten()
    assert changed.tolist() == head_columns(2, size).tolist()
