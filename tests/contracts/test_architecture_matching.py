# SPDX-License-Identifier: Apache-2.0
"""Matching is total: what is found, what is refused and how it is reported (R-MOD-20 to R-MOD-30, C08,
C09)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from heretic.architectures.coverage import require_complete, shares_by_component, shares_by_layer, summary
from heretic.architectures.families import Family, expand
from heretic.architectures.families_table import FAMILIES, FAMILY_OF, families_page
from heretic.architectures.resolve import resolve, resolve_config_only, sites_by_hook
from heretic.architectures.site import Architecture
from heretic.exceptions import UnsupportedArchitectureError
from heretic.interventions.probe import edited_weights, edits_along, hooked, probe
from heretic.testing.pico import PICO_FAMILIES, PICO_REFUSED, PICO_WRAPPERS, pico_config, pico_model
from heretic.testing.theorems import forward, leak, unit

torch.set_num_threads(1)

EVERY = (*PICO_FAMILIES, *PICO_WRAPPERS)


@pytest.mark.parametrize("name", PICO_WRAPPERS)
def test_only_the_language_part_of_a_multimodal_model_has_sites(name: str) -> None:
    """R-MOD-28."""
    network = pico_model(name)
    architecture = resolve(network)
    assert all("language_model" in site.path for site in architecture.sites)
    assert any("left alone" in note and "vis" in note for note in architecture.notes)


@pytest.mark.parametrize("name", EVERY)
def test_the_configuration_alone_gives_the_same_architecture(name: str) -> None:
    """C09: no weights are needed."""
    from_config, loaded = resolve_config_only(pico_config(name)), resolve(pico_model(name))

    def outline(architecture: Architecture) -> list[object]:
        rows = [(row.layer, row.component, row.shape, row.status) for row in architecture.coverage]
        return [architecture.family, architecture.hidden_size, architecture.tied, *rows]

    # Some wrappers also have a class without the vision part, whose module paths are shorter.
    assert outline(from_config) == outline(loaded)
    assert from_config == loaded or name in PICO_WRAPPERS


def test_a_deep_mixture_is_resolved_from_its_configuration_in_under_a_second() -> None:
    start = time.perf_counter()
    architecture = resolve_config_only(CONFIG_MAPPING["deepseek_v3"]())
    assert time.perf_counter() - start < 1.0
    assert architecture.layers == 61 and len(architecture.sites) == 61 + 3 + 2 * 58


@pytest.mark.parametrize("name", PICO_REFUSED)
def test_a_normalised_stream_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="normalises the stream itself"):
        resolve(pico_model(name))
    consented = resolve(pico_model(name), allow_partial=True)
    assert consented.covered_share() == 0.0 and consented.sites


@pytest.mark.parametrize("name", EVERY)
def test_a_planted_writer_is_refused_by_name(name: str) -> None:
    """R-MOD-21 and REL-10: the control is the theorem above, where the same model without the plant
    resolves."""
    network = pico_model(name)
    block = network.get_submodule(resolve(network).blocks[-1])
    block.add_module("planted", nn.Linear(8, 40, bias=False))
    with pytest.raises(UnsupportedArchitectureError, match=r"[13]\.planted\.weight") as raised:
        resolve(network)
    assert raised.value.hint is not None and "--allow-partial" in raised.value.hint
    partial = resolve(network, allow_partial=True)
    row = next(row for row in partial.coverage if row.path.endswith("planted.weight"))
    assert (
        row.status.startswith("unsupported:")
        and row.layer == partial.layers - 1
        and partial.covered_share() < 1.0
    )


class Bypass(nn.Module):
    """Adds a share of its input to its output: a path into the stream that owns no parameter."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.gate_proj = inner.get_submodule("gate_proj")
        self.up_proj = inner.get_submodule("up_proj")
        self.down_proj = inner.get_submodule("down_proj")

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner: Tensor = self.down_proj(self.gate_proj(hidden_states).tanh() * self.up_proj(hidden_states))
        return inner + 0.1 * hidden_states


def test_an_unknown_model_type_needs_the_forward_proof() -> None:
    network = pico_model("qwen3")
    setattr(network.config, "model_type", "never_seen")  # noqa: B010  # a class variable of the library
    with pytest.raises(UnsupportedArchitectureError, match="never_seen"):
        resolve(network)
    architecture = resolve(network, prove=probe)
    assert architecture.family == "generic:llama" and len(architecture.sites) == 4
    assert any("never_seen" in note for note in architecture.notes)
    block = network.get_submodule(architecture.blocks[1])
    block.mlp = Bypass(block.get_submodule("mlp"))
    with pytest.raises(UnsupportedArchitectureError, match=r"model\.layers\.1 still writes"):
        resolve(network, prove=probe)
    assert resolve(network, prove=probe, allow_partial=True).covered_share() == 0.0


def test_an_unknown_model_type_is_refused_naming_the_first_unexplained_parameter() -> None:
    network = pico_model("gpt_oss")
    setattr(network.config, "model_type", "never_seen")  # noqa: B010  # a class variable of the library
    del network.model.layers[0].self_attn.q_proj
    network.model.layers[0].self_attn.query = nn.Linear(40, 48)
    with pytest.raises(UnsupportedArchitectureError, match=r"self_attn\.query\.weight"):
        resolve(network, prove=probe)


class ListedExperts(nn.Module):
    """A mixture with its experts in a list and a shared expert in the same module, as older model code has
    it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(40, 3, bias=False)
        self.experts = nn.ModuleList(self._expert() for _ in range(3))
        self.shared_expert = self._expert()

    @staticmethod
    def _expert() -> nn.ModuleDict:
        return nn.ModuleDict(
            {"gate_proj": nn.Linear(40, 24), "up_proj": nn.Linear(40, 24), "down_proj": nn.Linear(24, 40)}
        )

    @staticmethod
    def _run(expert: nn.Module, flat: Tensor) -> Tensor:
        gate, up, down = (expert.get_submodule(f"{name}_proj") for name in ("gate", "up", "down"))
        result: Tensor = down(gate(flat).tanh() * up(flat))
        return result

    def forward(self, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, 40)
        share, chosen = self.gate(flat).softmax(-1).topk(2)
        total = self._run(self.shared_expert, flat)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)
            total = total.index_add(0, token, share[token, slot, None] * self._run(expert, flat[token]))
        return total.view_as(hidden_states)


def test_experts_in_a_list_share_one_hook_and_are_edited_once() -> None:
    """R-MOD-23: four sites, one hook at the module that returns their sum; the two forms of the edit
    agree."""
    network = pico_model("qwen2_moe")
    torch.manual_seed(0)
    network.model.layers[1].mlp = ListedExperts()
    architecture = resolve(network)
    probe(network, architecture)
    groups = sites_by_hook(architecture.sites)
    assert len(groups["model.layers.1.mlp"]) == 4 and len(groups) == len(architecture.sites) - 3
    direction = unit(40)
    assert leak(network, architecture, direction, architecture.sites) <= 1e-5
    edits = edits_along(network, architecture.sites, direction)
    with edited_weights(network, edits):
        in_weights = forward(network)
    with hooked(network, edits):
        assert torch.allclose(forward(network), in_weights, atol=1e-4)


def test_the_experts_of_llama4_are_hooked_where_their_sum_is_returned() -> None:
    """Their own output has one line per expert and token, which no per-row edit could tell apart."""
    groups = sites_by_hook(resolve(pico_model("llama4")).sites)
    assert len(groups["model.layers.1.feed_forward"]) == 2
    assert len(groups["model.layers.0.feed_forward.down_proj"]) == 1


def test_one_tensor_in_two_layers_is_refused() -> None:
    network = pico_model("llama")
    network.model.layers[1].mlp.down_proj.weight = network.model.layers[0].mlp.down_proj.weight
    with pytest.raises(
        UnsupportedArchitectureError, match=r"same tensor as model\.layers\.0\.mlp\.down_proj"
    ):
        resolve(network)


def test_an_unknown_module_type_is_refused_instead_of_guessing_the_axis() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(40, 40))

        def forward(self, z: Tensor) -> Tensor:
            return z @ self.weight

    network = pico_model("llama", equal_widths=True)
    network.model.layers[0].mlp.down_proj = Transposed()
    with pytest.raises(UnsupportedArchitectureError, match="residual axis of a Transposed is not known"):
        resolve(network)


def test_hybrids_and_leading_dense_layers_are_resolved_layer_by_layer() -> None:
    """R-MOD-24."""
    mixed = {site.hook.rpartition(".")[2] for site in resolve(pico_model("granitemoehybrid")).sites}
    assert mixed == {"out_proj", "o_proj", "experts", "output_linear"}
    leading = resolve(pico_model("deepseek_v3"))
    assert [site.experts for site in leading.sites if site.layer == 0] == [None, None]
    assert sorted(site.experts or 0 for site in leading.sites if site.layer == 1) == [0, 0, 4]
    assert leading.components == ("attn.o_proj", "mlp.down_proj")


def test_biases_belong_to_their_writers() -> None:
    """R-MOD-26: every bias of a writer is found, fused ones too."""
    found = {site.path: site.bias for site in resolve(pico_model("gpt_oss")).sites if site.layer == 0}
    prefix = "model.layers.0"
    assert found[f"{prefix}.mlp.experts.down_proj"] == f"{prefix}.mlp.experts.down_proj_bias"
    assert found[f"{prefix}.self_attn.o_proj.weight"] == f"{prefix}.self_attn.o_proj.bias"


def test_tied_embeddings_are_never_a_site() -> None:
    """R-MOD-26; the control is the untied twin."""
    tied, untied = resolve(pico_model("llama-tied")), resolve(pico_model("llama"))
    assert tied.tied and tied.embedding is None and tied.covered_share() == 1.0
    assert not untied.tied and untied.embedding is not None and untied.head == "lm_head"


def test_the_coverage_report_adds_up() -> None:
    """R-MOD-30 and algorithms 1.5."""
    network = pico_model("gpt2")
    complete = resolve(network)
    require_complete(complete, allow_partial=False)
    assert [row.status for row in complete.coverage if row.component == "position_embedding"] == [
        "excluded: position embedding"
    ]
    network.get_submodule("transformer.h.1").add_module("planted", nn.Linear(8, 40, bias=False))
    partial = resolve(network, allow_partial=True)
    with pytest.raises(UnsupportedArchitectureError, match="1 writers"):
        require_complete(partial, allow_partial=False)
    require_complete(partial, allow_partial=True)
    assert shares_by_component(partial) == {"attn.o_proj": 1.0, "mlp.down_proj": 1.0, "unknown": 0.0}
    matrices = 40 * 40 + 40 * 56
    assert shares_by_layer(partial) == {"0": 1.0, "1": matrices / (matrices + 320)}
    report = summary(partial)
    assert report["writers"] == 5 and report["sites"] == 4


def test_a_single_layer_and_unusual_head_widths_resolve() -> None:
    """R-MOD-29: one layer, and heads times head width unlike the hidden size (the `distinct` twins above)."""
    network = pico_model("llama", changes={"num_hidden_layers": 1, "head_dim": 6})
    architecture = resolve(network)
    assert architecture.layers == 1
    assert leak(network, architecture, unit(40), architecture.sites) <= 1e-5


def test_every_model_type_in_the_table_has_a_pico_model() -> None:
    """Rule 12: an entry without a contract run fails here."""
    tested = {pico_config(name).get_text_config().model_type for name in (*EVERY, *PICO_REFUSED)}
    assert set(FAMILY_OF) == tested


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_rule_of_a_family_names_a_writer_as_a_reader(family: Family) -> None:
    readers = {name for rule in (*family.readers, *family.norms) for name in expand(rule)}
    writers = {name for writer in family.writers for name in expand(writer.path)}
    assert not readers & writers
    assert len(set(family.model_types)) == len(family.model_types)


def test_the_page_of_architectures_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "architectures.md"
    assert page.read_text(encoding="utf-8") == families_page()
