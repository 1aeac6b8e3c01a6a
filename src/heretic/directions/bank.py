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
    spread: [L, k] float32: length of the projected class difference along the component, in activation units.
    provenance: method, settings, prompt hashes, what was degraded and why; JSON values only.
    """

    directions: Tensor
    spread: Tensor
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """L."""
        return int(self.directions.shape[0])

    def at(self, index: float) -> Tensor:
        """Directions [k, d] at a fractional layer index (algorithms 3.11).

        An integer index returns the bank's row bit for bit; otherwise each component is the normalised mix of its two
        neighbours. Raises `ExtractionError` when the neighbours disagree (cosine below -0.5, or mix shorter than 0.1),
        or the index is none of 0 ... L-1.
        """
        if not 0.0 <= index <= self.layers - 1:
            raise ExtractionError(
                f"There is no direction at layer index {index:g}; the bank has layers 0 to {self.layers - 1}.",
                hint="direction_index runs from 0 to the number of layers minus one.",
            )
        low = int(index)
        fraction = index - low
        if fraction == 0.0:
            return self.directions[low]
        first, second = self.directions[low], self.directions[low + 1]
        mixed = (1.0 - fraction) * first + fraction * second
        norms = mixed.norm(dim=1, keepdim=True)
        if bool(((first * second).sum(dim=1) < -0.5).any()) or bool((norms < 0.1).any()):
            raise ExtractionError(
                f"The directions of layers {low} and {low + 1} point apart, so index {index:.2f} has no direction.",
                hint="Use per-layer directions (direction_scope = per_layer), or more prompts.",
            )
        return torch.as_tensor(mixed / norms)
