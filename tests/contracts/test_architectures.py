# SPDX-License-Identifier: Apache-2.0
"""The all-writers theorem over every family, with its controls (algorithms 1.6, 1.7; R-MOD-25, R-MOD-27,
REL-10)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from heretic.architectures.resolve import gain_vector, resolve, resolve_config_only
from heretic.exceptions import UnsupportedArchitectureError
from heretic.interventions.hooks import Rows, applied
from heretic.interventions.probe import edited_weights, edits_along, hooked, probe
from heretic.testing.pico import PICO_FAMILIES, PICO_WRAPPERS, pico_config, pico_model
from heretic.testing.theorems import forward, leak, streams, tokens, unit

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


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_different_trials_in_one_batch_equal_each_trial_in_weight_form(name: str) -> None:
    """Algorithms 6.1 on every layout of a hook's output; the third row is the base (control: it differs)."""
    network = pico_model(name)
    architecture = resolve(network)
    trials = [
        edits_along(network, architecture.sites, unit(architecture.hidden_size, seed)) for seed in (1, 2)
    ]
    ids = tokens()[[0, 1, 0]]
    with torch.no_grad():
        with applied(network, trials, Rows(torch.tensor([1, 0, 2]))):
            together = network(input_ids=ids, use_cache=False).logits
        alone = []
        for row, edits in enumerate((trials[1], trials[0], {})):
            with edited_weights(network, edits):
                alone.append(network(input_ids=ids[row : row + 1], use_cache=False).logits)
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-4 * float(together.abs().max()))
    assert not torch.allclose(together[0], together[2], atol=1e-3)


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
def test_the_forward_probe_notices_one_missing_hook(name: str, dtype: torch.dtype) -> None:
    network = pico_model(name, dtype=dtype)
    architecture = resolve(network)
    last = architecture.sites[-1]
    others = tuple(site for site in architecture.sites if site.hook != last.hook)
    with pytest.raises(UnsupportedArchitectureError, match=rf"{architecture.blocks[last.layer]}\b"):
        probe(network, replace(architecture, sites=others))


def test_a_failing_probe_restores_the_weights() -> None:
    network = pico_model("gpt2", equal_widths=True)
    architecture = resolve(network)
    original = {path: value.clone() for path, value in network.state_dict().items()}
    wrong = tuple(replace(site, residual_axis=0) for site in architecture.sites)
    with pytest.raises(UnsupportedArchitectureError, match=r"transformer\.h\.0\.attn\.c_proj\.weight failed"):
        probe(network, replace(architecture, sites=wrong))
    assert all(torch.equal(value, original[path]) for path, value in network.state_dict().items())
