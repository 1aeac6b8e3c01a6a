# SPDX-License-Identifier: Apache-2.0
"""Statistics that a few extreme coordinates or samples do not decide (algorithms 2 and 3.15)."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

COINCIDENT: Final = 1e-12
STEP: Final = 1e-7
ROUNDS: Final = 100


def winsorised(
    target: Tensor, control: Tensor, quantile: float, mode: Literal["channel", "vector"] = "channel"
) -> tuple[Tensor, Tensor]:
    """Both classes [n, L, d] with outlier coordinates clamped; new tensors, or the given ones at quantile 1 (off).

    channel: per layer and channel, limits at the quantiles (1 - q) / 2 and (1 + q) / 2 of both classes together, so
    that the same clamp acts on both. vector: per sample and layer, |x_i| is clamped at its own q-quantile, which tames
    the same few massive channels of every prompt. quantile in (0, 1]. Does not turn with the space: coordinates matter.
    """
    assert 0.0 < quantile <= 1.0, f"quantile {quantile} is outside (0, 1]"
    if quantile == 1.0:
        return target, control
    target, control = target.clone(), control.clone()
    for layer in range(target.shape[1]):
        sides = target[:, layer], control[:, layer]
        if mode == "channel":
            both = torch.cat(sides)
            ends = both.new_tensor([(1 - quantile) / 2, (1 + quantile) / 2])
            low, high = torch.quantile(both, ends, dim=0)
            for side in sides:
                side.clamp_(low, high)
        else:
            for side in sides:
                limit = torch.quantile(side.abs(), quantile, dim=1, keepdim=True)
                side.clamp_(-limit, limit)
    return target, control


def geometric_median(rows: Tensor) -> Tensor:
    """The point [d] float64 with the least sum of distances to the rows [n, d].

    Weiszfeld's fixed point, mu <- (sum x_i / e_i) / (sum 1 / e_i) with e_i = |x_i - mu|, until the step is below 1e-7
    of |mu| or 100 rounds are over. A round that lands on a sample keeps only as much of it as its multiplicity can hold
    against the pull of the others (Vardi and Zhang 2000, PNAS 97:1423); without that it would stay there for ever.
    """
    samples = rows.double()
    middle = samples.mean(dim=0)
    for _ in range(ROUNDS):
        offsets = samples - middle
        distances = offsets.norm(dim=1)
        near = distances <= COINCIDENT * samples.abs().max()
        if bool(near.all()):
            break
        pulls = torch.where(near, 0.0, 1 / distances.masked_fill(near, 1.0))
        pull = pulls @ offsets
        held = float(near.sum()) / float(pull.norm().clamp_min(torch.finfo(torch.float64).tiny))
        step = max(0.0, 1.0 - held) * pull / pulls.sum()
        middle = middle + step
        if float(step.norm()) < STEP * float(middle.norm()):
            break
    return middle
