# SPDX-License-Identifier: Apache-2.0
"""The value every direction method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heretic.exceptions import ExtractionError


@dataclass(frozen=True, slots=True, eq=False)
class DirectionBank:
    """Directions of one behaviour, per decoder block.

    directions: [L, k, d] float32, orthonormal rows per layer, component 0 first, sign from control to target. Entry l
        belongs to the output of block l (before the final norm) and is used at the writers of block l.
    spread: [L, k] float32: length of the projected class difference along component 0 and root mean square of the
        residuals along further ones, in activation units; 0 where a layer has fewer components than k, whose rows are
        then zero.
    covectors: [L, k, d] float32, what is read where that is not what is removed (D of algorithms 4.2), scaled so that
        D_i . r_j = 1 for i = j and 0 otherwise; None = the directions themselves are read.
    provenance: method, settings, prompt hashes, what was degraded and why; JSON values only.
    """

    directions: Tensor
    spread: Tensor
    covectors: Tensor | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """L."""
        return int(self.directions.shape[0])

    @property
    def components(self) -> int:
        """k, the largest number of components of a layer."""
        return int(self.directions.shape[1])

    @property
    def width(self) -> int:
        """d."""
        return int(self.directions.shape[2])

    def at(self, index: float) -> Tensor:
        """Directions [k, d] at a fractional layer index (algorithms 3.11).

        An integer index returns the bank's rows bit for bit. Otherwise component 0 is the normalised mix of its two
        neighbours, and further components are those of the nearest layer: what is second in one layer need not be
        second in the next. Raises `ExtractionError` when the neighbours disagree (cosine below -0.5, or mix shorter
        than 0.1), or the index is none of 0 ... L-1.
        """
        low, fraction = self._split(index)
        if fraction == 0.0:
            return self.directions[low]
        first, second = self.directions[low, 0], self.directions[low + 1, 0]
        mixed = (1.0 - fraction) * first + fraction * second
        if float(first @ second) < -0.5 or float(mixed.norm()) < 0.1:
            raise ExtractionError(
                f"The directions of layers {low} and {low + 1} point apart, so index {index:.2f} has no direction.",
                hint="Use per-layer directions (direction_scope = per_layer), or more prompts.",
            )
        return torch.cat([(mixed / mixed.norm())[None], self.directions[self.nearest(index), 1:]])

    def covectors_at(self, index: float) -> Tensor | None:
        """Co-vectors [k, d] of the nearest layer; None where the directions themselves are read."""
        return None if self.covectors is None else self.covectors[self.nearest(index)]

    def count_at(self, index: float) -> int:
        """Components that the nearest layer really has, at most k."""
        return int((self.spread[self.nearest(index)] > 0).sum())

    def nearest(self, index: float) -> int:
        """The layer nearest to a fractional index; halves go up."""
        low, fraction = self._split(index)
        return low + (fraction >= 0.5)

    def _split(self, index: float) -> tuple[int, float]:
        if not 0.0 <= index <= self.layers - 1:
            raise ExtractionError(
                f"There is no direction at layer index {index:g}; the bank has layers 0 to {self.layers - 1}.",
                hint="direction_index runs from 0 to the number of layers minus one.",
            )
        return int(index), index - int(index)
