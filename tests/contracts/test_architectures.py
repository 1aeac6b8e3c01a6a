# SPDX-License-Identifier: Apache-2.0
"""The all-writers theorem over every family, with its controls (algorithms 1.7; R-MOD-20 to R-MOD-30, REL-10,
C08, C09)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from heretic.architectures.coverage import (
    require_complete,
    shares_by_component,
    shares_by_layer,
    summary,
)
from heretic.architectures.families import Family, expand
from heretic.architectures.families_table import FAMILIES, FAMILY_OF, families_page
from heretic.architectures.resolve import (
    gain_vector,
    resolve,
    resolve_config_only,
    sites_by_hook,
    stream_scale,
)
from heretic.architectures.site import Architecture, Site
from heretic.exceptions import UnsupportedArchitectureError
from heretic.interventions.probe import edited_weights, edits_along, hooked, probe
from heretic.testing.pico import (
    PICO_FAMILIES,
    PICO_REFUSED,
    PICO_WRAPPERS,
    pico_config,
    pico_model,
)

torch.set_num_threads(1)

EVERY = (*PICO_FAMILIES, *PICO_WRAPPERS)
POST_NORM = (
    "gemma2",
    "gemma3",
    "olmo2",
    "olmo3",
    "exaone4",
    "glm4",
    "gemma3-vision",
    "gemma4",
    "flex_olmo",
    "afmoe",
)
FUSED = tuple(
    name
    for name in PICO_FAMILIES
    if any(site.experts is not None for site in resolve_config_only(pico_config(name)).sites)
)


def unit(size: int, seed: int = 1) -> Tensor:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def tokens(seed: int = 2) -> Tensor:
    return torch.randint(80, 160, (2, 7), generator=torch.Generator().manual_seed(seed))


def forward(network: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(input_ids=tokens(), use_cache=False).logits
    return logits


def streams(network: PreTrainedModel, architecture: Architecture) -> list[tuple[Tensor, Tensor]]:
    """(h_(l-1), h_l) of each block, both [rows, positions, d], before the final norm."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: object
    ) -> None:
        leaving = output[0] if isinstance(output, tuple) else output
        assert isinstance(leaving, Tensor)
        seen.append((args[0] if args else kwargs["hidden_states"], leaving))

    with ExitStack() as stack:
        for path in architecture.blocks:
            handle = network.get_submodule(path).register_forward_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        forward(network)
    return seen


def leak(
    network: PreTrainedModel, architecture: Architecture, direction: Tensor, sites: Iterable[Site]
) -> float:
    """Largest |r^T (h_l - h_(l-1))| / |h_l - h_(l-1)| over blocks and tokens, with `sites` edited in weight
    form."""
    with edited_weights(network, edits_along(network, tuple(sites), direction)):
        scales = [stream_scale(network, architecture, layer) for layer in range(architecture.layers)]
        pairs = zip(scales, streams(network, architecture), strict=True)
        changes = [leaving - scale * entering for scale, (entering, leaving) in pairs]
    return max(float(((change @ direction).abs() / change.norm(dim=-1)).max()) for change in changes)


@pytest.mark.parametrize("equal_widths", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize("name", EVERY)
def test_no_block_writes_along_a_direction_removed_from_all_sites(name: str, equal_widths: bool) -> None:
    """R-MOD-27 with control (a): one site left out leaks. Weight form equals hook form, and every bit
    returns."""
    network = pico_model(name, equal_widths=equal_widths)
    architecture = resolve(network)
    assert architecture.covered_share() == 1.0 and architecture.layers >= 2
    direction = unit(architecture.hidden_size)
    original = {path: value.clone() for path, value in network.state_dict().items()}
    logits = forward(network)

    assert leak(network, architecture, direction, architecture.sites) <= 1e-5
    assert leak(network, architecture, direction, architecture.sites[:-1]) > 1e-4

    edits = edits_along(network, architecture.sites, direction)
    declared = {site.path for site in architecture.sites} | {
        site.bias for site in architecture.sites if site.bias
    }
    with edited_weights(network, edits):
        in_weights = forward(network)
        edited = {
            path for path, value in network.state_dict().items() if not torch.equal(value, original[path])
        }
    assert edited == declared
    with hooked(network, edits):
        in_hooks = forward(network)
    assert torch.allclose(in_weights, in_hooks, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert not torch.allclose(in_weights, logits, atol=1e-3)
    assert torch.equal(forward(network), logits)
    assert all(torch.equal(value, original[path]) for path, value in network.state_dict().items())


@pytest.mark.parametrize("name", [name for name in PICO_FAMILIES if name not in ("llama-tied", "bloom")])
def test_with_the_embedding_edited_too_the_stream_is_free_of_the_direction(name: str) -> None:
    network = pico_model(name)
    architecture = resolve(network)
    assert architecture.embedding is not None
    direction = unit(architecture.hidden_size)
    positions = [row for row in architecture.coverage if row.component == "position_embedding"]
    for row in positions:
        table = network.get_parameter(row.path).data
        table -= (table @ direction)[:, None] * direction
    everywhere = (*architecture.sites, architecture.embedding)
    with edited_weights(network, edits_along(network, everywhere, direction)):
        after = [stream for _, stream in streams(network, architecture)]
    assert all(
        float((stream @ direction).abs().max()) <= 1e-5 * float(stream.norm(dim=-1).max()) for stream in after
    )


@pytest.mark.parametrize("name", POST_NORM)
def test_post_norm_families_leak_when_the_gain_is_ignored(name: str) -> None:
    """Control (b), R-MOD-25: the probe refuses the same mistake."""
    network = pico_model(name)
    architecture = resolve(network)
    blind = tuple(replace(site, gain=None) for site in architecture.sites)
    assert all(site.gain is not None for site in architecture.sites)
    assert leak(network, architecture, unit(architecture.hidden_size), blind) > 1e-3
    with pytest.raises(UnsupportedArchitectureError, match=r"still writes along"):
        probe(network, replace(architecture, sites=blind))


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_the_form_of_the_gain_matters(name: str) -> None:
    network = pico_model(name)
    architecture = resolve(network)
    for site in architecture.sites:
        assert site.gain is not None
        stored = network.get_parameter(f"{site.gain.path}.weight")
        expected = stored + 1.0 if name == "gemma2" else stored
        gamma = gain_vector(network, site)
        assert gamma is not None and torch.equal(gamma, expected.float())


@pytest.mark.parametrize("name", FUSED)
def test_a_swapped_expert_axis_leaks_although_every_shape_fits(name: str) -> None:
    """Control (c), R-MOD-23: on square slices only the forward probe can tell the axes apart."""
    network = pico_model(name, equal_widths=True)
    architecture = resolve(network)
    swapped = tuple(
        replace(site, residual_axis=1 if site.residual_axis == 0 else 0) if site.experts is not None else site
        for site in architecture.sites
    )
    assert leak(network, architecture, unit(architecture.hidden_size), swapped) > 1e-4
    with pytest.raises(UnsupportedArchitectureError, match=r"experts\.down_proj failed"):
        probe(network, replace(architecture, sites=swapped))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_the_forward_probe_passes_and_changes_nothing(name: str, dtype: torch.dtype) -> None:
    network = pico_model(name, dtype=dtype)
    original = {path: value.clone() for path, value in network.state_dict().items()}
    probe(network, resolve(network))
    assert all(torch.equal(value, original[path]) for path, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVERY)
def test_the_forward_probe_notices_one_missing_site(name: str, dtype: torch.dtype) -> None:
    network = pico_model(name, dtype=dtype)
    architecture = resolve(network)
    last = architecture.sites[-1]
    with pytest.raises(UnsupportedArchitectureError, match=rf"{architecture.blocks[last.layer]}\b"):
        probe(network, replace(architecture, sites=architecture.sites[:-1]))


def test_a_failing_probe_restores_the_weights() -> None:
    network = pico_model("gpt2", equal_widths=True)
    architecture = resolve(network)
    original = {path: value.clone() for path, value in network.state_dict().items()}
    wrong = tuple(replace(site, residual_axis=0) for site in architecture.sites)
    with pytest.raises(UnsupportedArchitectureError, match=r"transformer\.h\.0\.attn\.c_proj\.weight failed"):
        probe(network, replace(architecture, sites=wrong))
    assert all(torch.equal(value, original[path]) for path, value in network.state_dict().items())


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
