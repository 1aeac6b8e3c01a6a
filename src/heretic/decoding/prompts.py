# SPDX-License-Identifier: Apache-2.0
"""Fixed prompts, prepared once: what they share at their start, padding, slices of similar length, and what is kept of
earlier work on them (algorithms 6.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile

from heretic.decoding.lower import LowerBlocks
from heretic.model.model import Model
from heretic.model.tokens import Batch

LEAST_PREFIX = 4
"""A shorter common start is not worth a pass of its own."""

LEAST_ROWS = 4
MOST_RUNS = 200
KNOWN_REPLIES = 12
"""Replies remembered of each prompt."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive prompts that are padded to one width."""

    start: int
    stop: int
    width: int


class Prompts:
    """Token sequences that are decoded again and again, in the order given; sorted by length they need least padding.

    keep: how many positions at the end of each have to pass through the whole network (the rest may be shared).
    overhead: what a pass costs beside its tokens, in tokens; decides how many slices there are.
    shared: whether a common start is computed once for all prompts of a trial, in buffers of ours.
    trust: share of offered draft tokens that were right of late.
    lower: what the blocks below an edit make of these prompts, once the base has been run on them; None = not kept.
    """

    def __init__(
        self,
        model: Model,
        sequences: Sequence[Sequence[int]],
        *,
        keep: int = 1,
        shared: bool = False,
        overhead: int = 0,
        lower: LowerBlocks | None = None,
    ) -> None:
        self.sequences = tuple(tuple(sequence) for sequence in sequences)
        self.keep = keep
        self.lower = lower
        self.trust = 0.95
        self._model = model
        self.overhead = overhead
        self.shared = shared
        self.prefix = common_start(self.sequences, keep) if shared else ()
        self.known: list[deque[tuple[int, ...]]] = [deque(maxlen=KNOWN_REPLIES) for _ in self.sequences]

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Runs of prompts of similar length: the split with the fewest padded tokens and passes."""
        start = len(self.prefix)
        return best_slices([len(sequence) - start for sequence in self.sequences], self.overhead)

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """What follows the prefix, slice by slice, left-padded; positions count on from the prefix."""
        start = len(self.prefix)
        made = []
        for part in self.slices:
            batch = self._model.batch([row[start:] for row in self.sequences[part.start : part.stop]])
            made.append(Batch(ids=batch.ids, mask=batch.mask, positions=batch.positions + start))
        return tuple(made)

    @property
    def width(self) -> int:
        """Tokens of the widest slice, the prefix included."""
        return len(self.prefix) + max(part.width for part in self.slices)

    def learn(self, prompt: int, tokens: tuple[int, ...]) -> None:
        """Remember a reply: the next one to this prompt may begin like it."""
        known = self.known[prompt]
        for reply in list(known):
            if tokens[: len(reply)] == reply:  # the same, or the start of it
                known.remove(reply)
        known.append(tokens)


def common_start(sequences: Sequence[tuple[int, ...]], keep: int) -> tuple[int, ...]:
    """Tokens that all sequences share at their start and none needs for its last `keep` positions; () if few."""
    if len(sequences) < LEAST_ROWS:
        return ()
    low, high = min(sequences), max(sequences)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    length = min(shared, min(len(sequence) for sequence in sequences) - keep)
    return low[:length] if length >= LEAST_PREFIX else ()


def best_slices(lengths: Sequence[int], overhead: int) -> tuple[Slice, ...]:
    """The split of consecutive lengths with the least sum of rows * width + overhead over its slices; exact."""
    ends: list[int] = []
    widths: list[int] = []
    for length, run in groupby(lengths):
        ends.append((ends[-1] if ends else 0) + len(list(run)))
        widths.append(length)
    starts = [0, *ends]
    if len(ends) > MOST_RUNS:  # the caller did not sort them
        return (Slice(0, len(lengths), max(lengths)),)

    def cost(first: int, last: int) -> float:
        return (ends[last] - starts[first]) * max(widths[first : last + 1]) + overhead

    return tuple(
        Slice(starts[first], ends[last], max(widths[first : last + 1]))
        for first, last in cheapest_runs(len(ends), cost)
    )


def cheapest_runs(count: int, cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """The split of 0 ... count - 1 into runs (first, last) with the least sum of costs, by dynamic programming."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for last in range(count):
        best.append(min((best[first][0] + cost(first, last), first) for first in range(last + 1)))
    found: list[tuple[int, int]] = []
    end = count
    while end:
        first = best[end][1]
        found.append((first, end - 1))
        end = first
    return found[::-1]
