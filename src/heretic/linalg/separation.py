# SPDX-License-Identifier: Apache-2.0
"""How well a direction separates two classes, cross-fitted, and how far it would move with other samples."""

from __future__ import annotations

import torch
from torch import Tensor

FOLDS = 5
SPLITS = 20


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve by midranks, ties count one half. positive [p], negative [n] scores."""
    below = (positive[:, None] > negative[None, :]).double().sum()
    ties = (positive[:, None] == negative[None, :]).double().sum()
    return float((below + 0.5 * ties) / (len(positive) * len(negative)))


def effect_size(positive: Tensor, negative: Tensor) -> float:
    """Cohen's d' = (mean+ - mean-) / sqrt((var+ + var-) / 2); 0 for constant scores."""
    spread = torch.sqrt((positive.var(correction=1) + negative.var(correction=1)) / 2)
    return float((positive.mean() - negative.mean()) / spread) if float(spread) > 0 else 0.0


def cross_fitted_separation(
    positive: Tensor, negative: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """(AUROC, d') of scores (x - midpoint) . r with r and midpoint fitted on the other folds (algorithms 3.13).

    positive [p, d], negative [n, d]. In-sample figures would be 1.0 for pure noise, so there is no other form here.
    """
    folds = min(FOLDS, len(positive), len(negative))
    if folds < 2:
        return 0.5, 0.0
    sides = [rows.double() for rows in (positive, negative)]
    owner = [torch.randperm(len(rows), generator=generator) % folds for rows in sides]
    # Row f of a mask: the samples outside fold f.
    masks = [torch.arange(folds)[:, None] != own for own in owner]
    means = [_means(mask, rows) for mask, rows in zip(masks, sides, strict=True)]
    gaps = means[0] - means[1]
    directions = gaps / gaps.norm(dim=1, keepdim=True).clamp_min(1e-300)
    middles = ((means[0] + means[1]) / 2 * directions).sum(dim=1)
    first, second = (
        (rows * directions[own]).sum(dim=1) - middles[own] for rows, own in zip(sides, owner, strict=True)
    )
    return auroc(first, second), effect_size(first, second)


def split_half_accuracy(positive: Tensor, negative: Tensor, generator: torch.Generator) -> float:
    """Estimated cosine of the full-sample difference with the true one: sqrt(2 c / (1 + c)) (algorithms 3.12).

    c is the mean cosine of the difference vectors of two random halves over 20 splits; 0 where c <= 0.
    """
    if min(len(positive), len(negative)) < 4:
        return 0.0
    sides = [rows.double() for rows in (positive, negative)]
    # Row s of a mask: the first half of split s.
    masks = [torch.zeros(SPLITS, len(rows), dtype=torch.bool) for rows in sides]
    for split in range(SPLITS):
        for mask in masks:
            mask[split, torch.randperm(mask.shape[1], generator=generator)[::2]] = True
    gaps = [_means(masks[0] == half, sides[0]) - _means(masks[1] == half, sides[1]) for half in (True, False)]
    mean = float(torch.nn.functional.cosine_similarity(gaps[0], gaps[1], dim=1).mean())
    return (2 * mean / (1 + mean)) ** 0.5 if mean > 0 else 0.0


def _means(mask: Tensor, rows: Tensor) -> Tensor:
    """Mean of the rows [n, d] that each row of mask [m, n] chooses: [m, d]."""
    return (mask.to(rows.dtype) @ rows) / mask.sum(dim=1, keepdim=True)
