# SPDX-License-Identifier: Apache-2.0
"""Our own greedy loop (algorithms 6.4): passes over prompts that share what they can, then steps in which known replies
are tried as drafts; rows leave as soon as they are decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from heretic.decoding.attention import inference
from heretic.decoding.buffer import SPARE_COLUMNS, KeyValueBuffer, plain_layers
from heretic.decoding.library_cache import cache_argument, cache_of
from heretic.decoding.lower import LowerBlocks
from heretic.decoding.passes import Passed, Passes, float32_logits
from heretic.decoding.prompts import Prompts, Slice, best_slices
from heretic.decoding.protocol import Reply, Stopper
from heretic.decoding.steps import Pace, Steps
from heretic.exceptions import GenerationError
from heretic.interventions.hooks import Rows
from heretic.model.model import Model

FULL, PLAIN, ROWS_STAY = "full", "plain", "rows stay"
"""How much of the loop a model allows: shared starts and drafts over buffers of ours; a growing cache of the library's
whose rows can be dropped; such a cache whose rows have to stay."""

COMPACT_AT = 0.75
"""A cache of the library's is compacted when at most this share of its rows remains."""

STEPS_AHEAD = 2
"""For how many steps an order of the slots is expected to serve; moving a slot costs about as much as a token."""

UNKNOWN_REPLY = 10**6

Forward = Callable[..., Any]


class FastEngine:
    """See `Engine`. `mode` is one of FULL, PLAIN and ROWS_STAY; what a model allows `choose_engine` finds out.

    reuse_bytes: memory for what the blocks below edits make of fixed prompts; 0 = nothing is kept.
    forward: another form of the network for single tokens, such as a compiled one; None = the network.
    """

    name = "fast"

    def __init__(
        self, model: Model, *, mode: str = FULL, reuse_bytes: int = 0, forward: Forward | None = None
    ) -> None:
        self.model = model
        self.reuse_bytes = reuse_bytes
        self.forward = forward
        self.longest = plain_layers(model.network.config) if mode == FULL else None
        self.mode = PLAIN if mode == FULL and self.longest is None else mode
        self.pace = Pace.of(model)

    def prepare(
        self, sequences: Sequence[Sequence[int]], *, keep: int = 1, reply: int = 0, reuse: bool = False
    ) -> Prompts:
        """See `Engine.prepare`."""
        longest = max(len(sequence) for sequence in sequences) + reply
        shared = self.longest is not None and longest <= self.longest
        lower = None
        if reuse and shared and self.reuse_bytes:
            lower = LowerBlocks(self.model, budget=self.reuse_bytes, decode=reply > 0)
        overhead = self.pace.overhead_tokens
        return Prompts(self.model, sequences, keep=keep, shared=shared, overhead=overhead, lower=lower)

    def start(
        self,
        prompts: Prompts | Sequence[Sequence[int]],
        *,
        stop: Stopper | None = None,
        rows: Rows | None = None,
    ) -> FastDecoding:
        """Run all prompts; raises `GenerationError` for a model that returns no key-value cache."""
        if not isinstance(prompts, Prompts):
            prompts = self.prepare(prompts, reply=UNKNOWN_REPLY)
        return FastDecoding(self, prompts, stop, rows)

    def logits(self, prompts: Prompts, *, rows: Rows | None = None) -> Iterator[Passed]:
        """See `Engine.logits`."""
        return float32_logits(self.model, prompts, rows)


class FastDecoding:
    """The state of one batch. A slot is a row of the cache; slots are dropped as rows leave."""

    def __init__(self, engine: FastEngine, prompts: Prompts, stop: Stopper | None, rows: Rows | None) -> None:
        self.model = engine.model
        self.prompts = prompts
        self.rows = rows
        self.mode = engine.mode
        count = len(prompts) if rows is None else len(rows.trial)
        self.steps = Steps(engine.model, prompts, count, stop)
        self._assignment = None if rows is None else rows.trial
        self._forward = engine.forward or engine.model.network
        self._pace = engine.pace
        self._longest = engine.longest or 0
        if self.mode == FULL and not prompts.shared:
            self.mode = PLAIN
        if self.mode == FULL:
            self._begin(count)
        else:
            self._begin_plain(count)

    def _begin(self, count: int) -> None:
        """All passes over the prompts, into one set of buffers."""
        width = self.prompts.width
        gap = width - len(self.prompts.prefix) - min(part.width for part in self.prompts.slices)
        layers = self.model.architecture.layers
        self._buffer = KeyValueBuffer(layers, count, width + SPARE_COLUMNS, gap=gap)
        self.cache: Any = self._buffer
        device = self.model.device
        self._mask = torch.zeros((count, width), dtype=torch.int64, device=device)
        slots: list[int] = []
        chosen: list[list[int]] = []
        for passed in Passes(self.model, self.prompts, self.rows, cache=self._buffer).run():
            slots += passed.rows
            chosen += self.steps.best(passed.logits[:, -1:, :])
        self.slots = slots
        lengths = [len(self.prompts.sequences[row % len(self.prompts)]) for row in slots]
        self._position = torch.tensor(lengths, device=device)[:, None]
        self._mask = self._mask_of(width)
        window = self._buffer.window
        window.first_row, window.rows, window.first, window.length = 0, count, 0, width
        self._accept(chosen, [()] * count)

    def _mask_of(self, width: int) -> Tensor:
        """[slots, width] 1 where a column holds a token: prefix and rest of a slot end at the last column."""
        prompts, start = self.prompts, len(self.prompts.prefix)
        mask = torch.zeros((len(self.slots), width), dtype=torch.int64, device=self.model.device)
        widths = {row: part.width for part in prompts.slices for row in range(part.start, part.stop)}
        for slot, row in enumerate(self.slots):
            prompt = row % len(prompts)
            first = width - start - widths[prompt]
            mask[slot, first : first + start] = 1
            mask[slot, width - len(prompts.sequences[prompt]) + start :] = 1
        return mask

    def _begin_plain(self, count: int) -> None:
        """One pass over whole prompts, into the cache that the network makes."""
        sequences = self.prompts.sequences
        batch = self.model.batch([sequences[row % len(sequences)] for row in range(count)])
        with torch.inference_mode():
            output = self.model.network(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = cache_of(output)
        if self.cache is None:
            raise GenerationError(
                f"{type(self.model.network).__name__} returns no key-value cache to continue from.",
                hint="Use --engine reference, or auto.",
            )
        if not selectable(self.cache):
            self.mode = ROWS_STAY
        self.slots = list(range(count))
        self._mask = batch.mask
        self._position = batch.mask.sum(dim=1, keepdim=True)
        self._accept(self.steps.best(output.logits[:, -1:, :]), [()] * count)

    def _assign(self, part: slice) -> None:
        if self.rows is not None and self._assignment is not None:
            index = torch.tensor(self.slots[part], device=self._assignment.device)
            self.rows.assign(self._assignment[index])

    def advance(self, limit: int) -> None:
        """See `Decoding.advance`."""
        self.steps.drop_decided(self.slots)
        while self.steps.unfinished(self.slots, limit):
            self._step(limit)

    def _step(self, limit: int) -> None:
        """Feed each slot its last token and a draft, and take what the network confirms."""
        drafts = self._arrange(limit)
        width = 1 + max(len(draft) for draft in drafts)
        before, count = self._mask.shape[1], len(self.slots)
        self._mask = torch.nn.functional.pad(self._mask, (0, width))
        if self.mode == FULL:
            self._buffer.reserve(width)
        best: list[list[int]] = []
        for run in self._runs([1 + len(draft) for draft in drafts]):
            best += self._run(run, drafts[run.start : run.stop], before, width, limit)
        if self.mode == FULL:
            window = self._buffer.window
            window.first_row, window.rows = 0, count
        taken = self._accept(best, drafts, limit)
        if self.mode == FULL:
            self._settle(before, width, taken)
        else:
            self._position = self._position + 1

    def _runs(self, widths: Sequence[int]) -> list[Slice]:
        """Consecutive slots that are fed together, drafts of similar length in each."""
        if self.mode != FULL:
            return [Slice(0, len(widths), 1)]
        runs: list[Slice] = []
        for run in best_slices(widths, self._pace.overhead_tokens):
            rows = self._pace.rows_per_step(run.width)
            runs += [
                Slice(first, min(first + rows, run.stop), run.width)
                for first in range(run.start, run.stop, rows)
            ]
        return runs

    def _run(
        self, run: Slice, drafts: Sequence[tuple[int, ...]], before: int, width: int, limit: int
    ) -> list[list[int]]:
        """One pass over consecutive slots; returns the best token after each that was fed."""
        fed, real = self._inputs(run, drafts, limit)
        part = slice(run.start, run.stop)
        self._mask[part, before : before + run.width] = real
        if self.mode == FULL:
            window = self._buffer.window
            window.first_row, window.rows = run.start, run.stop - run.start
            self._assign(part)
        forward = self._forward if run.width == 1 else self.model.network
        with inference(fed.device, short=self.mode == FULL):
            output = forward(
                input_ids=fed,
                attention_mask=self._mask[part, : before + run.width],
                position_ids=self._position[part] + torch.arange(run.width, device=fed.device),
                use_cache=True,
                logits_to_keep=run.width,
                **cache_argument(self.model.network, self.cache),
            )
        if self.mode == FULL and run.width < width:
            self._buffer.blank(part, slice(before + run.width, before + width))
        return self.steps.best(output.logits)

    def _inputs(self, run: Slice, drafts: Sequence[tuple[int, ...]], limit: int) -> tuple[Tensor, Tensor]:
        """Tokens [slots, width] and which of them are real; a row that waits for others is fed padding."""
        pad, device = self.model.encoder.pad, self._mask.device
        fed, real = [], []
        for slot, draft in zip(range(run.start, run.stop), drafts, strict=True):
            waits = self.mode == FULL and not self.steps.unfinished([self.slots[slot]], limit)
            rest = run.width - 1 - len(draft)
            fed.append((self._next[slot], *draft, *[pad] * rest))
            real.append([0] * run.width if waits else [1] * (1 + len(draft)) + [0] * rest)
        return torch.tensor(fed, device=device), torch.tensor(real, device=device)

    def _settle(self, before: int, width: int, taken: list[int]) -> None:
        """Hide columns of tokens that were not confirmed; trailing ones that nobody uses are given back."""
        self._buffer.window.length += width
        counts = torch.tensor(taken, device=self._mask.device)[:, None]
        if width > 1:
            column = torch.arange(width, device=self._mask.device)
            self._mask[:, before:] *= (column < counts).long()
            unused = width - max(taken)
            if unused:
                self._buffer.window.length -= unused
                self._mask = self._mask[:, :-unused]
        self._position = self._position + counts

    def _arrange(self, limit: int) -> list[tuple[int, ...]]:
        """Drafts of all slots, after rows that have left were dropped and drafts of similar length brought together,
        each where it saves more than moving keys and values costs."""
        running = [slot for slot, row in enumerate(self.slots) if self.steps.running[row]]
        if self.mode != FULL:
            if self.mode == PLAIN and len(running) <= COMPACT_AT * len(self.slots):
                self._select(running)
            return [()] * len(self.slots)
        drafts = self._drafts(limit)
        order = sorted(running, key=lambda slot: -len(drafts[slot]))
        saved = self._cost(drafts) - self._cost([drafts[slot] for slot in order])
        if STEPS_AHEAD * saved > len(order):
            self._select(order)
            drafts = [drafts[slot] for slot in order]
        return drafts

    def _cost(self, drafts: Sequence[tuple[int, ...]]) -> float:
        """Of a step, in tokens."""
        runs = self._runs([1 + len(draft) for draft in drafts])
        cost = sum((run.stop - run.start) * (run.width + self._pace.row_tokens) for run in runs)
        return cost + len(runs) * self._pace.overhead_tokens

    def _drafts(self, limit: int) -> list[tuple[int, ...]]:
        # Near the end of a sliding window a column has to remain for each token still to come.
        room = self._longest - self._mask.shape[1] - limit
        length = min(room, self._pace.draft_length(len(self.slots), self.prompts.trust))
        if length <= 0:
            return [()] * len(self.slots)
        return [draft[:length] for draft in self.steps.offered(self.slots, limit)]

    def _accept(
        self, best: Sequence[Sequence[int]], drafts: Sequence[tuple[int, ...]], limit: int | None = None
    ) -> list[int]:
        """Take the confirmed tokens of each slot; returns how many of the fed columns hold tokens of the reply."""
        taken = self.steps.take(self.slots, best, drafts, limit)
        self._next = self.steps.last_tokens(self.slots)
        self.steps.drop_decided(self.slots)
        return taken

    def _select(self, order: Sequence[int]) -> None:
        """Keep these slots, in this order."""
        index = torch.tensor(list(order), device=self._mask.device)
        if self.mode == FULL:
            self._buffer.select(index)
        else:
            self.cache.batch_select_indices(index)
        self._mask, self._position = self._mask[index], self._position[index]
        self.slots = [self.slots[slot] for slot in order]
        self._next = self.steps.last_tokens(self.slots)
        self._assign(slice(None))

    def leave(self, rows: Sequence[int]) -> None:
        """See `Decoding.leave`."""
        for row in rows:
            self.steps.running[row] = False

    def replies(self) -> list[Reply]:
        """See `Decoding.replies`."""
        return self.steps.replies()


def selectable(cache: object) -> bool:
    """True when rows of the cache can be selected exactly: every layer is a plain growing key-value layer."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers: list[object] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
