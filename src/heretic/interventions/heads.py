# SPDX-License-Identifier: Apache-2.0
"""Edits of what single query heads write (algorithms 4.6).

An output projection has one block of input columns for each query head, y = sum_h W[:, h] z_h + b. Keys and values
may be shared (grouped or single), these columns are not, so the edit is the same in all three forms of attention: the
ordinary one, with its reading taken from the chosen columns alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from heretic.architectures.families import ATTENTION
from heretic.architectures.matching import linear_sizes
from heretic.architectures.resolve import text_config
from heretic.architectures.site import Site
from heretic.exceptions import ConfigurationError, UnsupportedArchitectureError
from heretic.interventions.edit import Edit
from heretic.linalg.lowrank import read_rows

WITHOUT_QUERY_HEADS: Final = (
    "mamba.out_proj",
    "mixer.out_proj",
    "linear_attn.out_proj",
    "conv.out_proj",
    "temporal_block.linear_out",
)
"""Output projections of token mixers that have no query heads."""

HEAD_SIZES: Final = ("v_head_dim", "head_dim")
"""Settings that say how wide the part of a head is that reaches the output projection."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """heads: number of query heads. size: columns of the output projection that each of them has."""

    heads: int
    size: int


def head_layout(network: nn.Module, site: Site) -> HeadLayout | None:
    """How the input of a writer is divided among query heads; None where it has none (feed-forward, state space).

    The size is the configured one and not d / heads; layers of one model may differ. Raises
    `UnsupportedArchitectureError` when no configured size fits the matrix.
    """
    owner = site.path.removesuffix(".weight")
    if site.component != ATTENTION or site.experts is not None or owner.endswith(WITHOUT_QUERY_HEADS):
        return None
    config = text_config(network)
    layers = getattr(config, "per_layer_config", None)
    config = config if layers is None else layers[site.layer]
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    sizes = linear_sizes(network.get_submodule(owner))
    columns = network.get_parameter(site.path).shape[1 - site.residual_axis] if sizes is None else sizes[1]
    known = {getattr(config, name, None) for name in HEAD_SIZES} | {int(config.hidden_size) // heads}
    if columns % heads or columns // heads not in known:
        raise UnsupportedArchitectureError(
            f"{site.path} has {columns} input columns, which are not {heads} query heads of a configured size "
            f"({', '.join(str(size) for size in sorted(size for size in known if size))}).",
            hint="Use a strategy that edits whole layers.",
        )
    return HeadLayout(heads=heads, size=columns // heads)


def head_layouts(network: nn.Module, sites: Iterable[Site]) -> dict[Site, HeadLayout]:
    """The sites that query heads write through, with their layouts."""
    found = ((site, head_layout(network, site)) for site in sites)
    return {site: layout for site, layout in found if layout is not None}


def head_columns(head: int, head_dim: int) -> Tensor:
    """Input columns of one query head, [head_dim] int64."""
    return torch.arange(head * head_dim, (head + 1) * head_dim)


def restricted(edit: Edit, weight: Tensor, columns: Tensor, axis: Literal[0, 1]) -> Edit:
    """`edit` for what some input columns write, and for nothing else: right = readT W there, zeros elsewhere.

    edit: residual-side (left, read) without gains, also the pair (U, read) before a norm. weight: [d, m] for axis 0,
    [m, d] for axis 1. columns: int64 numbers below m. The other columns of W' are those of W bit for bit; the bias,
    which no column writes, is not edited. The result reads the writer's input.
    """
    assert edit.read is not None and edit.row_gain is None and edit.column_gain is None and weight.ndim == 2
    width = weight.shape[1 - axis]
    columns = columns.to(weight.device)
    assert not columns.numel() or (int(columns.min()) >= 0 and int(columns.max()) < width)
    part = weight.index_select(1 - axis, columns).to(edit.left)
    right = edit.left.new_zeros((edit.rank, width))
    right[:, columns.to(right.device)] = read_rows(part, edit.read, axis)
    return Edit(left=edit.left, right=right, bias=edit.bias)


def head_edit(
    edit: Edit, weight: Tensor, heads: Sequence[int], layout: HeadLayout, axis: Literal[0, 1]
) -> Edit:
    """`edit` (an ablation, before a norm the pair of 1.4) for the writing of `heads` alone; one edit for all of them.

    Raises `ConfigurationError` for a head that the layer does not have.
    """
    assert layout.heads * layout.size == weight.shape[1 - axis]
    unknown = [head for head in heads if not 0 <= head < layout.heads]
    if unknown:
        raise ConfigurationError(
            f"There is no query head {unknown[0]}; this layer has heads 0 to {layout.heads - 1}.",
            hint="Find the heads again for this model (delete the circuit cache).",
        )
    chosen = [head_columns(head, layout.size) for head in sorted(set(heads))]
    return restricted(edit, weight, torch.cat(chosen) if chosen else torch.arange(0), axis)
