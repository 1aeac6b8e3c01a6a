# SPDX-License-Identifier: Apache-2.0
"""Component 0: the projected difference of class means (algorithms 3.1).

    m = mu- / |mu-|,   R = mu+ - mu-,   R_perp = R - m (mT R),   r = R_perp / |R_perp|

The control mean is a fixed point of the edit, (I - r rT) mu- = mu-, and the class gap that remains is m (mT R).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.exceptions import ExtractionError

SCALE_ONLY = 0.05
"""Below this share of |R| the classes differ only in scale along the control mean."""


def difference_of_means(
    target_mean: Tensor,
    control_mean: Tensor,
    *,
    project: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The bank [L, 1, d] from class means [L, d] float64.

    target: the class that shows the behaviour. project=False keeps the plain difference. Raises `ExtractionError` with
    the layer and value when no layer has a usable difference; single unusable layers (an exact zero difference) keep
    the direction of their nearest usable neighbour below, so that every layer has one.
    """
    gap = target_mean - control_mean
    scale = 0.5 * (target_mean.norm(dim=1) + control_mean.norm(dim=1))
    kept = _project(gap, control_mean) if project else gap
    lengths, gap_lengths = kept.norm(dim=1), gap.norm(dim=1)
    usable = (gap_lengths > NEAR_ZERO * scale) & (lengths > SCALE_ONLY * gap_lengths)
    if not bool(usable.any()):
        layer = int(gap_lengths.argmax())
        raise ExtractionError(
            f"The two classes of prompts give the same residuals: at layer {layer}, where they differ most, the "
            f"difference is {float(gap_lengths[layer]):.2e} and {float(lengths[layer]):.2e} of it is usable "
            f"(mean length {float(scale[layer]):.2e}).",
            hint="Check that the bad prompts show the behaviour and the good prompts do not.",
        )
    directions = kept / lengths.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    order = _nearest_usable(usable)
    return DirectionBank(
        directions=directions[order].float()[:, None, :].contiguous(),
        spread=lengths[order].float()[:, None],
        provenance={"method": "difference", "projected": project, **(provenance or {})},
    )


def _project(gap: Tensor, control_mean: Tensor) -> Tensor:
    unit = control_mean / control_mean.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    kept: Tensor = gap - unit * (unit * gap).sum(dim=1, keepdim=True)
    return kept


def _nearest_usable(usable: Tensor) -> Tensor:
    """For each layer the index of itself if usable, else the nearest usable layer below, else above."""
    indices = torch.nonzero(usable).flatten()
    return torch.stack([indices[(indices - layer).abs().argmin()] for layer in range(len(usable))])
