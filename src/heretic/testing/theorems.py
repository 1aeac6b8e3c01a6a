# SPDX-License-Identifier: Apache-2.0
"""The all-writers theorem as a measurement, for contract tests of architectures, edits and exports
(algorithms 1.7)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from heretic.architectures.resolve import stream_scale
from heretic.architectures.site import Architecture, Site
from heretic.interventions.probe import edited_weights, edits_along


def unit(size: int, seed: int = 1) -> Tensor:
    """A random unit vector [size]."""
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(vector, dim=0)


def tokens(seed: int = 2) -> Tensor:
    """Two rows of seven ordinary tokens of a pico model."""
    return torch.randint(80, 160, (2, 7), generator=torch.Generator().manual_seed(seed))


def forward(network: PreTrainedModel) -> Tensor:
    """Logits [2, 7, V] of the model on `tokens()`."""
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
