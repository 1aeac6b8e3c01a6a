# SPDX-License-Identifier: Apache-2.0
"""Strength over depth: a tent per component, times the layer profile and a calibration, capped (algorithms 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heretic.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class Kernel:
    """A tent over depth. peak: strength at `position` (in layers, fractional); floor: fraction of the peak at the edge;
    half_width: distance in layers beyond which the strength is 0."""

    peak: float
    position: float
    floor: float
    half_width: float

    def at(self, layer: int) -> float:
        """a_l = M (1 + (f - 1) delta / w) inside the half-width, else 0."""
        distance = abs(layer - self.position)
        if distance > self.half_width:
            return 0.0
        if distance == 0.0:  # also where the half-width is 0, as in a model of one layer
            return self.peak
        return self.peak * (1.0 + (self.floor - 1.0) * distance / self.half_width)


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Multipliers over relative depth l / (L - 1): half-open (start, end, multiplier), the last one closed at 1."""

    ranges: Sequence[tuple[float, float, float]] = ()

    def __post_init__(self) -> None:
        previous = 0.0
        for start, end, multiplier in self.ranges:
            if not (previous <= start < end <= 1.0) or multiplier < 0:
                raise ConfigurationError(
                    f"The layer range {start:g}-{end:g} times {multiplier:g} is empty, overlaps or is negative.",
                    hint="Ranges run from 0 to 1 in order, without overlap.",
                )
            previous = end

    def at(self, layer: int, layers: int) -> float:
        """The multiplier of a layer; 1 where no range matches."""
        depth = layer / (layers - 1) if layers > 1 else 0.0
        for start, end, multiplier in self.ranges:
            if start <= depth < end or (end == 1.0 and depth == 1.0):
                return multiplier
        return 1.0


def strengths(
    kernel: Kernel,
    layers: int,
    profile: LayerProfile,
    *,
    cap: float,
    calibration: Sequence[float] | None = None,
) -> list[float]:
    """Effective strength of each layer, L values in [0, cap]."""
    factors = calibration or [1.0] * layers
    return [
        min(cap, max(0.0, kernel.at(layer) * profile.at(layer, layers) * factors[layer]))
        for layer in range(layers)
    ]
