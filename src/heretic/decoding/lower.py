# SPDX-License-Identifier: Apache-2.0
"""Work below the first edited block, done once: it is the same for every trial (algorithms 6.3).

Kept are the stream that enters some blocks (checkpoints) and, where decoding follows, the keys and values below them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from heretic.decoding.buffer import Entry, KeyValueBuffer
from heretic.exceptions import AbliterationError
from heretic.model.model import Model

CHECKPOINTS = 8


@dataclass(slots=True, eq=False)
class Kept:
    """What is kept of one pass of the base. streams: block -> [rows, t, d] entering it. entries: keys and values of
    each layer, [rows, heads, t, size]; empty where nothing is decoded after the pass."""

    streams: dict[int, Tensor] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)


class LowerBlocks:
    """The store of one set of prompts. Slice -1 is the common prefix.

    budget: bytes it may take; where all checkpoints do not fit, every second one is left out, and so on.
    decode: whether keys and values are needed too.
    """

    def __init__(self, model: Model, *, budget: int, decode: bool) -> None:
        self.layers = model.architecture.layers
        self.decode = decode
        self.bytes = 0
        self._budget = budget
        self._step = max(1, -(-self.layers // CHECKPOINTS))
        self.outputs = 0
        """Length of the tuple that a block returns; 0 where it returns the stream itself."""
        self._kept: dict[int, Kept] = {}
        self._complete = False

    @property
    def wanted(self) -> bool:
        """The base has not been run yet, and there is room."""
        return not self._complete and self._step < self.layers

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Blocks whose entering stream is kept."""
        return tuple(range(self._step, self.layers, self._step))

    def plan(self, model: Model, tokens: int) -> None:
        """Choose the checkpoints that fit for so many tokens in all."""
        number = torch.finfo(model.network.dtype).bits // 8
        entries = entry_bytes(model) if self.decode else 0
        while self._step < self.layers:
            per_token = entries + model.architecture.hidden_size * len(self.checkpoints) * number
            if tokens * per_token <= self._budget:
                return
            self._step *= 2

    def add(self, number: int, kept: Kept) -> None:
        """Keep what a pass of the base left."""
        self._kept[number] = kept
        tensors = [*kept.streams.values(), *(tensor for entry in kept.entries for tensor in entry)]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def finish(self) -> None:
        """All slices are there: trials may begin above."""
        self._complete = True

    def entry_block(self, lowest: int) -> int:
        """The deepest checkpoint that is not above block `lowest`; 0 = begin with the embedding."""
        if not self._complete:
            return 0
        return max((block for block in self.checkpoints if block <= lowest), default=0)

    def stream(self, number: int, block: int) -> Tensor:
        """[rows, t, d] entering `block` in a slice."""
        return self._kept[number].streams[block]

    def entries(self, number: int, block: int) -> list[Entry]:
        """Keys and values of the layers below `block` in a slice."""
        return self._kept[number].entries[:block]


def _hidden(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    found = arguments[0] if arguments else named["hidden_states"]
    assert isinstance(found, Tensor)
    return found


@contextmanager
def recording(blocks: Sequence[nn.Module], lower: LowerBlocks) -> Iterator[dict[int, Tensor]]:
    """Collect the stream that enters each checkpoint during one pass, and see in which form blocks return it."""
    streams: dict[int, Tensor] = {}

    def keep(block: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            streams[block] = _hidden(arguments, named).clone()

        return hook

    def see(module: nn.Module, arguments: object, output: object) -> None:
        lower.outputs = len(output) if isinstance(output, tuple) else 0

    handles = [blocks[0].register_forward_hook(see)]
    for block in lower.checkpoints:
        handles.append(blocks[block].register_forward_pre_hook(keep(block), with_kwargs=True))
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entering(
    blocks: Sequence[nn.Module], block: int, stream: Tensor, *, lowest: int, outputs: int
) -> Iterator[None]:
    """Passes begin at `block` with `stream`; the blocks below hand on what they are given.

    lowest: the first block that the running trials edit. outputs: see `LowerBlocks`. Raises `AbliterationError` when
    an edit lies below `block`: the trials' own stream differs from the one that was kept.
    """
    if lowest < block:
        raise AbliterationError(
            f"Block {lowest} is edited, but the pass was to begin at block {block} with the base's stream."
        )

    def replace(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (stream, *arguments[1:]), named
        return arguments, {**named, "hidden_states": stream}

    def hand_on(*arguments: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        hidden = _hidden(arguments, named)
        return (hidden, *[None] * (outputs - 1)) if outputs else hidden

    handle = blocks[block].register_forward_pre_hook(replace, with_kwargs=True)
    below = blocks[:block]
    try:
        for module in below:
            module.forward = hand_on  # restored below; an instance attribute shadows the class
        yield
    finally:
        handle.remove()
        for module in below:
            module.__dict__.pop("forward", None)


def kept_entries(cache: KeyValueBuffer, rows: slice, columns: slice) -> list[Entry]:
    """Copies of the keys and values in a part of the buffers, layer by layer."""
    parts = [buffer.part(rows, columns) for buffer in cache.buffers]
    return [(keys.clone(), values.clone()) for keys, values in parts]


def entry_bytes(model: Model) -> int:
    """Bytes of the keys and values of one token in all layers, as the configuration tells."""
    config = model.network.config.get_text_config(decoder=True)
    queries = int(getattr(config, "num_attention_heads", None) or 1)
    heads = int(getattr(config, "num_key_value_heads", None) or queries)
    size = int(getattr(config, "head_dim", None) or model.architecture.hidden_size // queries)
    return 2 * model.architecture.layers * heads * size * torch.finfo(model.network.dtype).bits // 8
