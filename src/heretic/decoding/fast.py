# SPDX-License-Identifier: Apache-2.0
"""Our own greedy loop: one prefill, one token a step, rows leave as soon as they are decided (algorithms 6.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heretic.decoding.protocol import Reply, Stopper, settled
from heretic.decoding.reading import read_replies, read_texts
from heretic.exceptions import GenerationError
from heretic.interventions.hooks import Rows
from heretic.model.model import Model

CHECK_EVERY = 4
"""New tokens between two looks at the text; a row that leaves a little late has the same verdict."""

COMPACT_AT = 0.75
"""The batch is compacted when at most this share of its rows remains."""


def selectable(cache: object) -> bool:
    """True when rows of the cache can be selected exactly: every layer is a plain growing key-value layer."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers: list[object] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class FastEngine:
    """See `Engine`. Where a family's cache cannot drop rows, decided rows are fed padding and ignored instead."""

    name = "fast"

    def __init__(
        self, model: Model, *, compact: bool = True, forward: Callable[..., Any] | None = None
    ) -> None:
        """forward: another form of the network for single tokens, such as a compiled one; None = the network."""
        self.model = model
        self.compact = compact
        self.forward = forward

    def start(
        self, sequences: Sequence[Sequence[int]], *, stop: Stopper | None = None, rows: Rows | None = None
    ) -> FastDecoding:
        """Prefill all rows; raises `GenerationError` for a model that returns no key-value cache."""
        return FastDecoding(self.model, sequences, stop, rows, compact=self.compact, forward=self.forward)


class FastDecoding:
    """The state of one batch: key-value cache, mask and positions of the rows still running."""

    def __init__(
        self,
        model: Model,
        sequences: Sequence[Sequence[int]],
        stop: Stopper | None,
        rows: Rows | None,
        *,
        compact: bool = True,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.model = model
        self.stop = stop
        self._forward = forward or model.network
        self.rows = rows
        self.tokens: list[list[int]] = [[] for _ in sequences]
        self.ended = [False] * len(sequences)
        self.running = [True] * len(sequences)
        self.slots = list(range(len(sequences)))
        self._ends = frozenset(model.end_tokens)
        self._suppressed = list(getattr(model.network.generation_config, "suppress_tokens", None) or [])
        self._compact_wanted = compact
        self._prefill(sequences)

    def _prefill(self, sequences: Sequence[Sequence[int]]) -> None:
        batch = self.model.batch(sequences)
        with torch.inference_mode():
            output = self.model.network(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = getattr(output, "past_key_values", None)
        if self.cache is None:
            raise GenerationError(
                f"{type(self.model.network).__name__} returns no key-value cache to continue from.",
                hint="Use --engine reference, or auto.",
            )
        self._compactable = self._compact_wanted and selectable(self.cache)
        self._mask = batch.mask
        self._position = batch.mask.sum(dim=1, keepdim=True)
        self._accept(output.logits)

    def _accept(self, logits: Tensor) -> None:
        """Take the argmax of each slot as the next token of its row."""
        scores = logits[:, -1, :]
        if self._suppressed:
            banned = torch.tensor(self._suppressed, device=scores.device)
            scores = scores.index_fill(1, banned, -torch.inf)  # a new tensor: logits are inference tensors
        self._next = scores.argmax(dim=-1)
        for slot, token in enumerate(self._next.tolist()):
            row = self.slots[slot]
            if not self.running[row]:
                continue
            if token in self._ends:
                self.ended[row] = True
                self.running[row] = False
            else:
                self.tokens[row].append(token)

    def advance(self, limit: int) -> None:
        """See `Decoding.advance`."""
        while self._length() < limit and any(self.running):
            self._step()
            if self._length() % CHECK_EVERY == 0 or self._length() >= limit:
                self._drop_decided()
            self._compact()
        self._drop_decided()

    def _length(self) -> int:
        return max((len(self.tokens[row]) for row in self.slots if self.running[row]), default=0)

    def _step(self) -> None:
        ones = self._mask.new_ones((len(self.slots), 1))
        self._mask = torch.cat([self._mask, ones], dim=1)
        with torch.inference_mode():
            output = self._forward(
                input_ids=self._next[:, None],
                attention_mask=self._mask,
                position_ids=self._position,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._position = self._position + 1
        self._accept(output.logits)

    def _drop_decided(self) -> None:
        rows = [row for row in self.slots if self.running[row]]
        if self.stop is None or not rows:
            return
        for row, decided in zip(rows, self.stop(rows, settled(self._texts(rows))), strict=True):
            if decided:
                self.running[row] = False

    def _compact(self) -> None:
        keep = [slot for slot, row in enumerate(self.slots) if self.running[row]]
        if not self._compactable or not keep or len(keep) > COMPACT_AT * len(self.slots):
            return
        index = torch.tensor(keep, device=self._next.device)
        assert self.cache is not None
        self.cache.batch_select_indices(index)
        self._mask, self._position, self._next = self._mask[index], self._position[index], self._next[index]
        self.slots = [self.slots[slot] for slot in keep]
        if self.rows is not None:
            self.rows.assign(self.rows.trial[index])

    def leave(self, rows: Sequence[int]) -> None:
        """See `Decoding.leave`."""
        for row in rows:
            self.running[row] = False
        self._compact()

    def _texts(self, rows: Sequence[int]) -> list[str]:
        return read_texts(self.model.encoder, [self.tokens[row] for row in rows])

    def replies(self) -> list[Reply]:
        """See `Decoding.replies`."""
        return read_replies(self.model.encoder, self.tokens, self.ended)
