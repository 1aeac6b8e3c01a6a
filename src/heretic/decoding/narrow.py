# SPDX-License-Identifier: Apache-2.0
"""The last block's feed-forward part only where its result is read: at the positions whose logits are asked for.

Keys and values of the last block come from its input, so nothing else needs the other positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heretic.architectures.site import Architecture

COMPONENT = "mlp.down_proj"


def last_feed_forward(network: nn.Module, architecture: Architecture) -> nn.Module | None:
    """The module in which all dense feed-forward writers of the last block lie; None where it is not one module, or
    has routed experts, which may be given their tokens in another shape."""
    last = [
        site
        for site in architecture.sites
        if site.layer == architecture.layers - 1 and site.component == COMPONENT
    ]
    parents = {site.hook.rpartition(".")[0] for site in last}
    if len(parents) != 1 or any(site.experts is not None for site in last):
        return None
    path = parents.pop()
    # In some families the writers hang at the block itself, whose result is the stream.
    return None if path in architecture.blocks else network.get_submodule(path)


@contextmanager
def narrowed(module: nn.Module | None, keep: int) -> Iterator[None]:
    """Within, `module` [rows, t, d] -> [rows, t, d] computes the last `keep` positions and returns zeros before."""
    if module is None:
        yield
        return
    whole = module.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        hidden = arguments[0] if len(arguments) == 1 and not named else None
        if not isinstance(hidden, Tensor) or hidden.ndim != 3 or hidden.shape[1] <= keep:
            return whole(*arguments, **named)
        result = whole(hidden[:, -keep:].contiguous())
        if not isinstance(result, Tensor) or result.shape[:2] != (hidden.shape[0], keep):
            raise TypeError("the feed-forward part returns another form than its input's")
        return torch.nn.functional.pad(result, (0, 0, hidden.shape[1] - keep, 0))

    module.forward = forward  # restored below; an instance attribute shadows the class
    try:
        yield
    finally:
        del module.forward
