# SPDX-License-Identifier: Apache-2.0
"""Paired percentile bootstrap of means and of ratios of sums (Efron and Tibshirani 1993, chapters 8 and 13)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from heretic.linalg.intervals import Interval

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 500
"""Resamples drawn at a time: with 1,000 prompts the indices of a chunk take 4 MB."""


class Change(NamedTuple):
    """What the second of two measurements on the same units is against the first.

    first, second: the two figures. difference: second - first. relative: difference / first; 0 where both are 0.
    Intervals are those of the resampled differences; those of `relative` are None where a resample has no first figure.
    """

    first: float
    second: float
    difference: float
    difference_interval: Interval
    relative: float | None
    relative_interval: Interval | None


def paired_change(first: Tensor, second: Tensor, *, seed: int, resamples: int = RESAMPLES) -> Change:
    """The change of a ratio of sums between two measurements of the same units.

    first, second: [n, 2], numerator and denominator of each unit under each of the two; a mean has denominators of 1. A
    resample draws n units with replacement and takes both measurements of each, so what units have in common cancels.
    Equal input and seed give equal bounds, whatever the global generator did. For few units (below about 20) a
    percentile interval is too narrow; it is not corrected here. The interval of a single unit is a point.
    """
    assert first.shape == second.shape and first.dim() == 2 and first.shape[1] == 2 and len(first)
    both = torch.stack([first.double(), second.double()], dim=1)  # [n, 2 measurements, 2 parts]
    whole = _ratios(both.sum(dim=0)[None])[0]
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        chosen = torch.randint(len(both), (count, len(both)), generator=generator)
        drawn.append(_ratios(both[chosen].sum(dim=1)))
    found = torch.cat(drawn)
    differences = found[:, 1] - found[:, 0]
    before, after = whole.tolist()
    return Change(
        first=before,
        second=after,
        difference=after - before,
        difference_interval=_interval(differences),
        relative=_relative(before, after),
        relative_interval=_interval(differences / found[:, 0]) if bool((found[:, 0] != 0).all()) else None,
    )


def _ratios(sums: Tensor) -> Tensor:
    """[r, 2 measurements, 2 parts] -> [r, 2]; 0 where nothing was counted."""
    numerators, denominators = sums.unbind(dim=-1)
    return torch.where(denominators == 0, torch.zeros_like(numerators), numerators / denominators)


def _relative(before: float, after: float) -> float | None:
    if before == 0.0:
        return 0.0 if after == 0.0 else None
    return (after - before) / before


def _interval(values: Tensor) -> Interval:
    tail = (1.0 - LEVEL) / 2.0
    low, high = torch.quantile(values, torch.tensor([tail, 1.0 - tail], dtype=values.dtype)).tolist()
    return Interval(low, high)
