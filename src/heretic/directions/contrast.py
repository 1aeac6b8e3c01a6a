# SPDX-License-Identifier: Apache-2.0
"""What every direction method is given: the residuals of two classes of prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.exceptions import ExtractionError
from heretic.linalg.streaming import StreamingMean
from heretic.registry import Registry


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Residuals of the class that shows the behaviour and of the one that does not.

    target: [n+, L, d] float32. control: [n-, L, d] float32. Entry l is the output of block l, before the final norm.
    protected: [L, p, d] float32, orthonormal rows per layer that no direction may contain (helpfulness, capability);
        None = nothing is protected. showed: [n+] bool, whether the base model's own reply to the target prompt showed
        the behaviour; None where no replies were made.
    """

    target: Tensor
    control: Tensor
    protected: Tensor | None = None
    showed: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.target) or not len(self.control):
            raise ExtractionError(
                f"A class of prompts is empty: {len(self.target)} show the behaviour, {len(self.control)} do not.",
                hint="Check the slices of bad_prompts and good_prompts.",
            )
        if self.target.shape[1:] != self.control.shape[1:]:
            raise ExtractionError(
                f"The residuals of the two classes differ in shape: {tuple(self.target.shape[1:])} and "
                f"{tuple(self.control.shape[1:])}.",
                hint="Both classes must be captured from the same model.",
            )

    @property
    def layers(self) -> int:
        """L."""
        return int(self.target.shape[1])

    @property
    def width(self) -> int:
        """d."""
        return int(self.target.shape[2])

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """Target [n+, d] and control [n-, d] of one layer, float64: one layer at a time fits where all would not."""
        return self.target[:, layer].double(), self.control[:, layer].double()

    def protected_at(self, layer: int) -> Tensor | None:
        """[p, d] float64 orthonormal rows, or None."""
        return None if self.protected is None else self.protected[layer].double()

    def means(self) -> tuple[Tensor, Tensor]:
        """Class means [L, d] float64, of target and of control."""
        return _mean(self.target), _mean(self.control)

    def guarded(self, protected: Tensor | None) -> Contrast:
        """The same residuals with other protected directions."""
        return replace(self, protected=protected)


def _mean(samples: Tensor) -> Tensor:
    mean = StreamingMean()
    for chunk in samples.split(8):  # a chunk is widened to float64
        mean.add(chunk)
    return mean.mean


class Fitter(Protocol):
    """A direction method. Every option has a default; raises `ExtractionError` or a leaf of it.

    The contract (heretic.testing.directions) holds for each registered one: unit rows, orthonormal per layer, sign
    from control to target, independent of the order of prompts, rotating with the space, free of what is protected.
    """

    def __call__(self, contrast: Contrast) -> DirectionBank: ...


METHODS: Registry[Fitter] = Registry("direction method")


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [.., d] divided by their lengths; the caller has checked that none is near zero."""
    lengths = rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.as_tensor(rows / lengths)
