# SPDX-License-Identifier: Apache-2.0
"""Everything that extraction found and that planners work with, as one value that is stored with the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from heretic.directions.bank import DirectionBank


@dataclass(frozen=True, slots=True)
class Head:
    """One query head that carries the behaviour: its layer, number, and direct attribution relative to the sum."""

    layer: int
    head: int
    importance: float


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """What may be added at one writer.

    unit: [d] the constant that strength 1 adds. carrier: [m], p with pT z = 1 on average, by which a writer without a
    bias adds it, W' = W + t pT; None = the writer has a bias. spread: standard deviation of pT z, 0 for a bias.
    """

    unit: Tensor
    carrier: Tensor | None = None
    spread: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """sources: name -> bank, the first one is the default choice of `direction_source`.

    factors: per layer, multiplies the strength kernel (calibration); empty = 1 everywhere. weights: [L, k] strength of
    each component relative to the first, None = all alike. heads: chosen ones by falling importance; head_sites: the
    parameter paths of their output matrices. shifts: parameter path of a writer -> what may be added there. protected:
    [L, p, d] orthonormal rows that no edit may touch. notes: what was measured on the way, JSON values only.
    """

    sources: Mapping[str, DirectionBank]
    factors: tuple[float, ...] = ()
    weights: Tensor | None = None
    heads: tuple[Head, ...] = ()
    head_sites: frozenset[str] = frozenset()
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    protected: Tensor | None = None
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def bank(self) -> DirectionBank:
        """The default source."""
        return next(iter(self.sources.values()))

    @property
    def layers(self) -> int:
        """L."""
        return self.bank.layers
