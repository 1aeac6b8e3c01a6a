# SPDX-License-Identifier: Apache-2.0
"""Passes over fixed prompts for many trials: the common prefix once per trial, the rest slice by slice, beginning above
what all trials share with the base (algorithms 6.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heretic.decoding.attention import inference
from heretic.decoding.buffer import KeyValueBuffer
from heretic.decoding.library_cache import cache_argument
from heretic.decoding.lower import Kept, LowerBlocks, entering, kept_entries, recording
from heretic.decoding.narrow import last_feed_forward, narrowed
from heretic.decoding.prompts import Prompts, cheapest_runs
from heretic.interventions.hooks import NO_BLOCK, Rows
from heretic.model.model import Model, float32_head

PREFIX = -1
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}
LOGITS_PER_PASS = 2**27
"""Bounds of one pass; more rows gain nothing and need memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """One pass. rows: numbers of its rows. logits: [rows, keep, V] of the last positions."""

    rows: list[int]
    logits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Rows whose passes begin at one block. prefix: keys and values of the common prefix, one row per trial."""

    block: int
    lowest: int
    rows: list[int]
    prefix: KeyValueBuffer | None
    place: dict[int, int]


class Passes:
    """See the module's text. Row r is prompt r % len(prompts); `rows` says its trial, None = all are the base.

    cache: buffers for all rows, in the order in which the passes come; None = nothing is decoded afterwards.
    """

    def __init__(
        self, model: Model, prompts: Prompts, rows: Rows | None, *, cache: KeyValueBuffer | None = None
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.rows = rows
        self.cache = cache
        self._blocks = model.blocks()
        self._last = last_feed_forward(model.network, model.architecture) if prompts.shared else None
        self._trial = [0] * len(prompts) if rows is None else rows.trial.tolist()
        self._assignment = None if rows is None else rows.trial
        lower = prompts.lower
        self._recorded = lower if rows is None and lower is not None and lower.wanted else None
        self._next_row = 0

    def run(self) -> Iterator[Passed]:
        """All rows, pass by pass."""
        if self._recorded is not None:
            tokens = sum(len(sequence) for sequence in self.prompts.sequences)
            self._recorded.plan(self.model, tokens)
            if not self._recorded.wanted:
                self._recorded = None
        for group in self._groups():
            for number, part in enumerate(self.prompts.slices):
                inside = [row for row in group.rows if part.start <= row % len(self.prompts) < part.stop]
                step = self._rows_per_pass(part.width)
                for first in range(0, len(inside), step):
                    yield self._pass(group, number, inside[first : first + step])
        if self._recorded is not None:
            self._recorded.finish()

    def _rows_per_pass(self, width: int) -> int:
        if self._recorded is not None:
            return len(self.prompts)  # a slice is kept as one
        tokens = TOKENS_PER_PASS.get(self.model.device.type, TOKENS_PER_PASS["cpu"])
        vocabulary = int(self.model.network.config.get_text_config(decoder=True).vocab_size)
        return max(1, min(tokens // width, LOGITS_PER_PASS // (self.prompts.keep * vocabulary)))

    def _lowest(self, trial: int) -> int:
        """The first block that a trial edits."""
        if self.rows is None or trial >= len(self.rows.lowest):
            return NO_BLOCK
        return self.rows.lowest[trial]

    def _groups(self) -> Iterator[_Group]:
        lower = self.prompts.lower
        members: dict[int, list[int]] = {}
        for row, trial in enumerate(self._trial):
            block = 0 if lower is None or self.rows is None else lower.entry_block(self._lowest(trial))
            members.setdefault(block, []).append(row)
        for blocks in self._together(members):
            rows = [row for block in blocks for row in members[block]]
            trials = sorted({self._trial[row] for row in rows})
            lowest = min(self._lowest(trial) for trial in trials)
            place = {trial: number for number, trial in enumerate(trials)}
            yield _Group(blocks[0], lowest, rows, self._prefix(blocks[0], lowest, rows, place), place)

    def _together(self, members: dict[int, list[int]]) -> list[list[int]]:
        """Blocks whose rows begin together at the lowest of them, where passes of their own would cost more."""
        blocks = sorted(members)
        slices = self.prompts.slices
        width = sum((part.stop - part.start) * part.width for part in slices) / len(self.prompts)
        layers = self.model.architecture.layers

        def cost(first: int, last: int) -> float:
            rows = sum(len(members[block]) for block in blocks[first : last + 1])
            passes = len(slices) + bool(self.prompts.prefix)
            return (rows * width + passes * self.prompts.overhead) * (layers - blocks[first]) / layers

        return [blocks[first : last + 1] for first, last in cheapest_runs(len(blocks), cost)]

    def _prefix(
        self, block: int, lowest: int, rows: Sequence[int], place: dict[int, int]
    ) -> KeyValueBuffer | None:
        """The common prefix under each trial, one row each."""
        tokens = self.prompts.prefix
        if not tokens:
            return None
        batch = self.model.batch([tokens] * len(place))
        cache = KeyValueBuffer(self.model.architecture.layers, len(place), len(tokens))
        if self.rows is not None and self._assignment is not None:
            first = {self._trial[row]: row for row in reversed(rows)}
            self.rows.assign(self._assignment[self._index([first[trial] for trial in place])])
        stream = None
        if block and self.prompts.lower is not None:
            stream = self.prompts.lower.stream(PREFIX, block).expand(len(place), -1, -1)
        self._forward(PREFIX, (batch.ids, batch.mask, batch.positions), cache, block, lowest, stream)
        return cache

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(list(rows), device=self.model.device)

    def _pass(self, group: _Group, number: int, rows: list[int]) -> Passed:
        prompts, lower = self.prompts, self.prompts.lower
        part, batch = prompts.slices[number], prompts.batches[number]
        index = self._index([row % len(prompts) - part.start for row in rows])
        cache = self._cache_for(part.width, len(rows))
        if cache is not None:
            self._put_prefix(cache, group, rows)
            if self.cache is not None and group.block and lower is not None:
                column = cache.window.first + cache.window.length
                for buffer, (keys, values) in zip(
                    cache.buffers, lower.entries(number, group.block), strict=False
                ):
                    there = index.to(keys.device)
                    buffer.put(keys[there], values[there], cache.window.first_row, column)
        if self.rows is not None and self._assignment is not None:
            self.rows.assign(self._assignment[self._index(rows)])
        stream = None
        if group.block and lower is not None:
            kept = lower.stream(number, group.block)
            stream = kept[index.to(kept.device)]
        mask = torch.nn.functional.pad(batch.mask[index], (len(prompts.prefix), 0), value=1)
        given = (batch.ids[index], mask, batch.positions[index])
        logits = self._forward(number, given, cache, group.block, group.lowest, stream)
        self._next_row += len(rows)
        return Passed(rows, logits)

    def _cache_for(self, width: int, rows: int) -> KeyValueBuffer | None:
        """The place of a pass in the buffers of the batch, or buffers of its own, needed only for a prefix."""
        start = len(self.prompts.prefix)
        if self.cache is not None:
            window = self.cache.window
            window.first_row, window.rows = self._next_row, rows
            window.first, window.length = self.prompts.width - start - width, start
            return self.cache
        if not start:
            return None
        cache = KeyValueBuffer(self.model.architecture.layers, rows, start + width)
        cache.window.length = start
        return cache

    def _put_prefix(self, cache: KeyValueBuffer, group: _Group, rows: Sequence[int]) -> None:
        if group.prefix is None:
            return
        window, lower = cache.window, self.prompts.lower
        trials = [group.place[self._trial[row]] for row in rows]
        single = trials[0] if len(set(trials)) == 1 else None
        place = None if single is not None else self._index(trials)
        for layer, buffer in enumerate(cache.buffers):
            if layer < group.block:
                if self.cache is None or lower is None:
                    continue
                keys, values = lower.entries(PREFIX, group.block)[layer]
            else:
                keys, values = group.prefix.buffers[layer].part(slice(None), slice(None))
                if single is not None:
                    keys, values = keys[single : single + 1], values[single : single + 1]
                elif place is not None:
                    keys, values = keys[place.to(keys.device)], values[place.to(values.device)]
            buffer.put(keys, values, window.first_row, window.first)

    def _forward(
        self,
        number: int,
        given: tuple[Tensor, Tensor, Tensor],
        cache: KeyValueBuffer | None,
        block: int,
        lowest: int,
        stream: Tensor | None,
    ) -> Tensor:
        """One forward pass, from `block` on; what the base leaves below edits is kept."""
        ids, mask, positions = given
        lower, recorded = self.prompts.lower, self._recorded
        streams: dict[int, Tensor] = {}
        keep = 1 if number == PREFIX else self.prompts.keep
        with inference(ids.device, short=self.prompts.shared), ExitStack() as stack:
            stack.enter_context(narrowed(self._last, keep))
            if stream is not None and lower is not None:
                stack.enter_context(
                    entering(self._blocks, block, stream, lowest=lowest, outputs=lower.outputs)
                )
            if recorded is not None:
                streams = stack.enter_context(recording(self._blocks, recorded))
            output = self.model.network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=cache is not None,
                logits_to_keep=keep,
                **cache_argument(self.model.network, cache),
            )
        if recorded is not None:
            self._keep(recorded, number, streams, cache, ids.shape)
        logits: Tensor = output.logits
        return logits

    def _keep(
        self,
        lower: LowerBlocks,
        number: int,
        streams: dict[int, Tensor],
        cache: KeyValueBuffer | None,
        shape: Any,
    ) -> None:
        kept = Kept(streams)
        if lower.decode and cache is not None:
            window = cache.window
            start = window.first + window.length
            kept.entries = kept_entries(
                cache,
                slice(window.first_row, window.first_row + shape[0]),
                slice(start, start + shape[1]),
            )
        lower.add(number, kept)


def float32_logits(model: Model, prompts: Prompts, rows: Rows | None) -> Iterator[Passed]:
    """Logits in float32 of every row's last positions, the head multiplied in float32; zeros stand before the start of
    sequences that are shorter than `keep`."""
    with float32_head(model.network):
        for passed in Passes(model, prompts, rows).run():
            short = prompts.keep - passed.logits.shape[1]
            yield Passed(passed.rows, torch.nn.functional.pad(passed.logits.float(), (0, 0, short, 0)))
