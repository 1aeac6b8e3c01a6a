# SPDX-License-Identifier: Apache-2.0
"""Attention over short sequences on a CPU: two batched products and a softmax in place of the fused kernel, which is
made for long ones (docs/performance.md has the comparison). Heads that share keys are one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa"
LONGEST = 256
"""Columns up to which this form is used; beyond, the fused kernel saves memory and time."""


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """As the library's `sdpa` function: query [B, H, q, d], key [B, G, c, d], value [B, G, c, e] -> [B, q, H, e].

    What it does not know (a bias of positions, no mask, long sequences) goes to the library's function.
    """
    rows, heads, length, size = query.shape
    groups, columns = key.shape[1], key.shape[2]
    usual = attention_mask is not None and attention_mask.shape[1] == 1 and attention_mask.is_floating_point()
    special = dropout or any(named.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if not usual or special or columns > LONGEST:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **named
        )
    assert attention_mask is not None
    factor = size**-0.5 if scaling is None else scaling
    grouped = (query * factor).reshape(rows, groups, heads // groups * length, size)
    scores = torch.matmul(grouped, key.transpose(2, 3)).view(rows, heads, length, columns)
    scores += attention_mask[:, :, :, :columns]
    weights = scores.softmax(dim=-1).view(rows, groups, heads // groups * length, columns)
    mixed = torch.matmul(weights, value).view(rows, heads, length, value.shape[-1])
    return mixed.transpose(1, 2).contiguous(), None


@contextmanager
def inference(device: torch.device, *, short: bool = True) -> Iterator[None]:
    """No gradients; with `short` networks on a CPU that attend through the library's `sdpa` use `short_attention`."""
    if device.type != "cpu" or not short:
        with torch.inference_mode():
            yield
        return
    ALL_ATTENTION_FUNCTIONS[NAME] = short_attention
    ALL_MASK_ATTENTION_FUNCTIONS[NAME] = eager_mask
    try:
        with torch.inference_mode():
            yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[NAME]
        del ALL_MASK_ATTENTION_FUNCTIONS[NAME]
