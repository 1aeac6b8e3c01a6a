# SPDX-License-Identifier: Apache-2.0
"""The order in which prompts are measured, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

T = TypeVar("T")

RACING_STREAM: Final = 2
"""Keeps this random number apart from others of the same seed (reliability section 6)."""


def by_length(sequences: Sequence[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Order by length (stable), so that batches hold little padding; returns (original numbers, sorted sequences)."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    return order, [sequences[number] for number in order]


def spread_first(order: Sequence[int], first: int, seed: int) -> list[int]:
    """`order` with `first` of its entries in front, taken at equal distances from a seeded start; both parts keep it.

    A systematic sample: each prompt is as likely as any other, so the share of hits among the first ones estimates the
    share of all without bias, which is what a sequential test of that share needs. Prompts on which the base wavers, or
    trials differ most, would decide more fights, but their rate is not the rate that is tested, and what trials differ
    in is known only after trials. `order` is by length, so short and long prompts stand in both parts, and both parts
    are batches of little padding. The same for all trials of a study, whatever finished when.
    """
    total = len(order)
    if not 0 < first < total:
        return list(order)
    start = float(np.random.default_rng(np.random.SeedSequence([seed, RACING_STREAM])).random())
    # Steps of total / first >= 1 reach no position twice; the last one is below `total`, whatever the rounding.
    taken = {min(total - 1, int((number + start) * total / first)) for number in range(first)}
    sample = [entry for position, entry in enumerate(order) if position in taken]
    return sample + [entry for position, entry in enumerate(order) if position not in taken]


def restore_order(values: Sequence[T], order: Sequence[int]) -> list[T]:
    """Values in evaluation order back in the order of the prompts."""
    pairs = sorted(zip(order, values, strict=True), key=lambda pair: pair[0])
    return [value for _, value in pairs]
