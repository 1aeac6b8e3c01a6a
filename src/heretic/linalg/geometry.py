# SPDX-License-Identifier: Apache-2.0
"""Shape of two classes of residuals, and angles between subspaces; for reports only (algorithms 3.12, 3.15)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from heretic.linalg.robust import geometric_median
from heretic.linalg.separation import cross_fitted_separation, split_half_accuracy

RESAMPLES = 20
SAME = 1e-9
"""Samples nearer to each other than this share of their length count as one point."""


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """Figures of one layer; norms in activation units.

    mean_cosine and median_cosine: between the two classes' means, and geometric medians. difference_cosine: between the
    difference of the means and that of the medians; far below 1, outliers make the direction. auroc, effect_size:
    cross-fitted. accuracy: estimated cosine with the direction of infinitely many prompts. bootstrap_cosine: beside it
    for comparison only; it tends to 0.5, not 0, where there is nothing to find.
    """

    layer: int
    target_mean_norm: float
    control_mean_norm: float
    target_median_norm: float
    control_median_norm: float
    difference_norm: float
    mean_cosine: float
    median_cosine: float
    difference_cosine: float
    silhouette: float
    auroc: float
    effect_size: float
    accuracy: float
    bootstrap_cosine: float


def geometry_table(target: Tensor, control: Tensor, generator: torch.Generator) -> tuple[LayerGeometry, ...]:
    """One record a layer of the residuals target [n+, L, d] and control [n-, L, d]; one layer is held in float64."""
    return tuple(
        _geometry(layer, target[:, layer].double(), control[:, layer].double(), generator)
        for layer in range(target.shape[1])
    )


def _geometry(layer: int, target: Tensor, control: Tensor, generator: torch.Generator) -> LayerGeometry:
    means = target.mean(dim=0), control.mean(dim=0)
    medians = geometric_median(target), geometric_median(control)
    auroc, effect_size = cross_fitted_separation(target, control, generator)
    return LayerGeometry(
        layer=layer,
        target_mean_norm=float(means[0].norm()),
        control_mean_norm=float(means[1].norm()),
        target_median_norm=float(medians[0].norm()),
        control_median_norm=float(medians[1].norm()),
        difference_norm=float((means[0] - means[1]).norm()),
        mean_cosine=float(cosine_similarity(*means, dim=0)),
        median_cosine=float(cosine_similarity(*medians, dim=0)),
        difference_cosine=float(cosine_similarity(means[0] - means[1], medians[0] - medians[1], dim=0)),
        silhouette=silhouette(target, control),
        auroc=auroc,
        effect_size=effect_size,
        accuracy=split_half_accuracy(target, control, generator),
        bootstrap_cosine=bootstrap_cosine(target, control, generator),
    )


def silhouette(first: Tensor, second: Tensor) -> float:
    """Mean silhouette coefficient of two classes [n1, d], [n2, d], in -1 ... 1 (Rousseeuw 1987).

    (b - a) / max(a, b) for each sample, a its mean distance to the others of its class, b to the other class; 0 for a
    class of one and where all samples are the same.
    """
    rows = torch.cat([first, second]).double()
    least = SAME * float(rows.norm(dim=1).max())
    # About the mean, because distances from inner products (14 times as fast at d = 5120) lose digits far from zero.
    rows = rows - rows.mean(dim=0)
    distances = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0)
    size = len(first)
    blocks = (
        (distances[:size, :size], distances[:size, size:]),
        (distances[size:, size:], distances[size:, :size]),
    )
    scores: list[Tensor] = []
    for own, other in blocks:
        if len(own) < 2:
            scores.append(own.new_zeros(len(own)))
            continue
        inside, outside = own.sum(dim=1) / (len(own) - 1), other.mean(dim=1)
        largest = torch.maximum(inside, outside)
        apart = largest > least
        scores.append(torch.where(apart, (outside - inside) / torch.where(apart, largest, 1.0), 0.0))
    return float(torch.cat(scores).mean())


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles [min(a, b)] in radians, smallest first, between the spans of orthonormal rows [a, d] and [b, d].

    Cosines are the singular values of A BT; below 45 degrees they cannot tell angles apart (1 - x^2 / 2 rounds to 1
    for x < 1e-8), so there the sines do it, singular values of B without its part in A (Bjorck and Golub 1973).
    """
    large, small = (first, second) if len(first) >= len(second) else (second, first)
    large, small = large.double(), small.double()
    inner = small @ large.T
    cosines = torch.linalg.svdvals(inner).clamp(0, 1)
    sines = torch.linalg.svdvals(small - inner @ large).flip(0).clamp(0, 1)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines.asin())


def bootstrap_cosine(positive: Tensor, negative: Tensor, generator: torch.Generator) -> float:
    """Mean cosine of the differences of class means of two bootstrap resamples, over 20 pairs (algorithms 3.12).

    positive [p, d], negative [n, d]. Without any signal it is 0.5: both resamples share the noise of the sample.
    """
    sides = [rows.double() for rows in (positive, negative)]
    draws = [_resampled_mean(rows, 2 * RESAMPLES, generator) for rows in sides]
    gaps = draws[0] - draws[1]
    return float(cosine_similarity(gaps[:RESAMPLES], gaps[RESAMPLES:], dim=1).mean())


def _resampled_mean(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Means [count, d] of resamples with replacement."""
    drawn = torch.randint(len(rows), (count, len(rows)), generator=generator).to(rows.device)
    weights = torch.zeros(count, len(rows), dtype=rows.dtype, device=rows.device)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    return weights @ rows / len(rows)
