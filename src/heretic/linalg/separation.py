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
    owner = [torch.randperm(len(rows), generator=generator) % folds for rows in (positive, negative)]
    scores: list[list[Tensor]] = [[], []]
    for fold in range(folds):
        means = [
            rows[own != fold].double().mean(dim=0)
            for rows, own in zip((positive, negative), owner, strict=True)
        ]
        gap = means[0] - means[1]
        direction = gap / gap.norm().clamp_min(1e-300)
        midpoint = (means[0] + means[1]) / 2
        for side, (rows, own) in enumerate(zip((positive, negative), owner, strict=True)):
            scores[side].append((rows[own == fold].double() - midpoint) @ direction)
    first, second = torch.cat(scores[0]), torch.cat(scores[1])
    return auroc(first, second), effect_size(first, second)


def split_half_accuracy(positive: Tensor, negative: Tensor, generator: torch.Generator) -> float:
    """Estimated cosine of the full-sample difference with the true one: sqrt(2 c / (1 + c)) (algorithms 3.12).

    c is the mean cosine of the difference vectors of two random halves over 20 splits; 0 where c <= 0.
    """
    if min(len(positive), len(negative)) < 4:
        return 0.0
    cosines = []
    for _ in range(SPLITS):
        gaps = []
        orders = [torch.randperm(len(rows), generator=generator) for rows in (positive, negative)]
        for half in range(2):
            parts = [
                rows[order[half::2]].double().mean(dim=0)
                for rows, order in zip((positive, negative), orders, strict=True)
            ]
            gaps.append(parts[0] - parts[1])
        cosines.append(torch.nn.functional.cosine_similarity(gaps[0], gaps[1], dim=0))
    mean = float(torch.stack(cosines).mean())
    return (2 * mean / (1 + mean)) ** 0.5 if mean > 0 else 0.0
