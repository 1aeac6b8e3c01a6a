# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping of a greedy loop: tokens of each row, drafts from known replies, and when a row is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.decoding.lower import entry_bytes
from heretic.decoding.prompts import Prompts
from heretic.decoding.protocol import Reply, Stopper, settled
from heretic.decoding.reading import Transcripts, read_replies, read_texts
from heretic.model.model import Model

LONGEST_DRAFT = 64
LOGITS_PER_STEP = 2**27
TYPICAL_COLUMNS = 64
LAUNCH_SECONDS = {"cpu": 4e-4, "cuda": 7e-4}
OPERATIONS_PER_SECOND = {"cpu": 6e10, "cuda": 3e14}
READ_BYTES_PER_SECOND = {"cpu": 6e9, "cuda": 3e12}
"""Nominal figures, so that drafts depend on the model and not on the clock: a run can be repeated to the bit."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a pass costs beside its tokens, counted in tokens: itself, and each row by the keys and values it reads."""

    overhead_tokens: int
    row_tokens: float
    vocabulary: int

    @classmethod
    def of(cls, model: Model) -> Pace:
        """From the number of layers and parameters and the kind of device."""
        device = model.device.type if model.device.type in LAUNCH_SECONDS else "cuda"
        parameters = sum(parameter.numel() for parameter in model.network.parameters())
        per_token = 2 * max(1, parameters) / OPERATIONS_PER_SECOND[device]
        overhead = model.architecture.layers * LAUNCH_SECONDS[device] / per_token
        reading = TYPICAL_COLUMNS * entry_bytes(model) / READ_BYTES_PER_SECOND[device]
        config = model.network.config.get_text_config(decoder=True)
        return cls(round(overhead), reading / per_token, int(config.vocab_size))

    def draft_length(self, rows: int, trust: float) -> int:
        """How far a draft should go: as long as a further token, right with probability trust^length, is worth more
        than its own cost, a token that comes by a step of its own costing as much more as the step does."""
        alone = 1 + self.row_tokens + self.overhead_tokens / rows
        return min(LONGEST_DRAFT, int(math.log(alone) / -math.log(trust)))

    def rows_per_step(self, width: int) -> int:
        """Rows whose logits fit into a step of that width."""
        return max(1, LOGITS_PER_STEP // (width * self.vocabulary))


class Steps:
    """See the module's text. Row r belongs to prompt r % len(prompts)."""

    def __init__(self, model: Model, prompts: Prompts, rows: int, stop: Stopper | None) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.ended = [False] * rows
        self.running = [True] * rows
        self._encoder = model.encoder
        self._device = model.device
        self._prompts = prompts
        self._stop = stop
        self._ends = frozenset(model.end_tokens)
        self._suppressed = list(getattr(model.network.generation_config, "suppress_tokens", None) or [])
        self._seen = [0] * rows
        self._transcripts = Transcripts(model.encoder, rows)
        self._known: list[list[tuple[int, ...]] | None] = [None] * rows
        self._matched = [0] * rows
        self._limit = 0

    def best(self, logits: Tensor) -> list[list[int]]:
        """The token of the largest raw logit at each position of each row."""
        if self._suppressed:
            banned = torch.tensor(self._suppressed, device=logits.device)
            logits = logits.index_fill(2, banned, -torch.inf)  # a new tensor: logits are inference tensors
        found: list[list[int]] = logits.argmax(dim=-1).tolist()
        return found

    def unfinished(self, slots: Sequence[int], limit: int) -> bool:
        """Whether a row still runs and has fewer than `limit` tokens."""
        self._limit = limit
        return any(self.running[row] and len(self.tokens[row]) < limit for row in slots)

    def take(
        self,
        slots: Sequence[int],
        best: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        limit: int | None,
    ) -> list[int]:
        """Append the confirmed tokens of each slot: as many as its draft foresaw, and the network's own after them.

        Returns how many of the columns that were fed hold tokens of the reply (0 for a row that waits).
        """
        counts: list[int] = []
        offered = confirmed = 0
        for row, chosen, draft in zip(slots, best, drafts, strict=True):
            if not self.running[row] or (limit is not None and len(self.tokens[row]) >= limit):
                counts.append(0)
                continue
            count = self._taken(row, chosen, draft, limit)
            counts.append(count)
            offered += min(len(draft), count)
            confirmed += count - 1
        if offered:
            share = confirmed / offered
            self._prompts.trust = min(0.995, max(0.3, 0.8 * self._prompts.trust + 0.2 * share))
        return counts

    def _taken(self, row: int, chosen: Sequence[int], draft: Sequence[int], limit: int | None) -> int:
        tokens = self.tokens[row]
        for count, token in enumerate(chosen[: len(draft) + 1], 1):
            if token in self._ends:
                self.ended[row], self.running[row] = True, False
                return count
            tokens.append(token)
            foreseen = count <= len(draft) and draft[count - 1] == token
            if not foreseen or (limit is not None and len(tokens) >= limit):
                return count
        return len(draft) + 1

    def last_tokens(self, slots: Sequence[int]) -> list[int]:
        """What each slot is fed next."""
        pad = self._encoder.pad
        return [self.tokens[row][-1] if self.tokens[row] else pad for row in slots]

    def offered(self, slots: Sequence[int], limit: int) -> list[tuple[int, ...]]:
        """A draft for each slot: how a known reply to its prompt that began alike went on, the latest first."""
        return [
            self._draft(row, limit) if self.running[row] and len(self.tokens[row]) < limit else ()
            for row in slots
        ]

    def _draft(self, row: int, limit: int) -> tuple[int, ...]:
        known = self._known[row]
        if known is None:
            known = list(reversed(self._prompts.known[row % len(self._prompts)]))
        tokens, start = self.tokens[row], self._matched[row]
        fresh = tuple(tokens[start:])
        known = [reply for reply in known if reply[start : start + len(fresh)] == fresh]
        self._known[row], self._matched[row] = known, len(tokens)
        longer = next((reply for reply in known if len(reply) > len(tokens)), ())
        return tuple(longer[len(tokens) : limit - 1])

    def drop_decided(self, slots: Sequence[int]) -> None:
        """Rows whose verdict cannot change stop, cut at the token that decided it."""
        rows = [row for row in slots if len(self.tokens[row]) > self._seen[row]]
        if self._stop is None or not rows:
            return
        texts = self._transcripts.read(rows, [self.tokens[row] for row in rows])
        for row, decided in zip(rows, self._stop(rows, settled(texts)), strict=True):
            if decided:
                self._cut(row)
            self._seen[row] = len(self.tokens[row])

    def _cut(self, row: int) -> None:
        """Cut a row after the first token with which it was decided, seen on texts decoded as a whole."""
        assert self._stop is not None
        tokens = self.tokens[row]
        counts = range(self._seen[row] + 1, len(tokens) + 1)
        texts = settled(read_texts(self._encoder, [tokens[:count] for count in counts]))
        for count, decided in zip(counts, self._stop([row] * len(texts), texts), strict=True):
            if decided:
                del tokens[count:]
                self.running[row], self.ended[row] = False, False
                return

    def replies(self) -> list[Reply]:
        """One reply per row; finished ones are remembered with their prompts."""
        for row, tokens in enumerate(self.tokens):
            if not self.running[row] or len(tokens) >= self._limit:
                self._prompts.learn(row % len(self._prompts), tuple(tokens))
        return read_replies(self._encoder, self.tokens, self.ended)
