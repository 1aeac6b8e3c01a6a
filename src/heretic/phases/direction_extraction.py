# SPDX-License-Identifier: Apache-2.0
"""Step 6 of the flow: residuals of both classes become a direction bank, with figures on how much it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.batching import AdaptiveBatch
from heretic.directions.bank import DirectionBank
from heretic.directions.difference import difference_of_means
from heretic.linalg.separation import cross_fitted_separation, split_half_accuracy
from heretic.model.model import Model
from heretic.phases.dataset_loading import DatasetBundle
from heretic.residuals import Prepare, ResidualStats, capture

STABLE = 0.8
"""Estimated cosine between this direction and the one of infinitely many prompts (algorithms 3.12)."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectionExtractionResult:
    """bank: the directions. stability, auroc, effect_size: per layer, cross-fitted (algorithms 3.12, 3.13)."""

    bank: DirectionBank
    stability: tuple[float, ...]
    auroc: tuple[float, ...]
    effect_size: tuple[float, ...]
    warnings: tuple[str, ...] = ()

    @property
    def best_layer(self) -> int:
        """The layer with the largest cross-fitted effect size."""
        return max(range(len(self.effect_size)), key=lambda layer: self.effect_size[layer])


def extract_refusal_directions(
    model: Model, bundle: DatasetBundle, *, prepare: Prepare, width: int, project: bool = True, seed: int = 0
) -> DirectionExtractionResult:
    """Component 0 of every layer from the direction prompts; each prompt passes the model once.

    prepare: an engine's, see `capture`.

    Raises `ExtractionError` when the classes do not differ, `NonFiniteError`, `BatchSizeError`.
    """
    batches = AdaptiveBatch("residuals", width)
    target = capture(model, model.encoder.encode_all(bundle.bad.prompts), run=batches, prepare=prepare)
    control = capture(model, model.encoder.encode_all(bundle.good.prompts), run=batches, prepare=prepare)
    bank = difference_of_means(
        target.mean,
        control.mean,
        project=project,
        provenance={"bad": bundle.bad.content_hash, "good": bundle.good.content_hash},
    )
    return _judged(bank, target, control, seed)


def _judged(
    bank: DirectionBank, target: ResidualStats, control: ResidualStats, seed: int
) -> DirectionExtractionResult:
    generator = torch.Generator().manual_seed(seed)
    stability: list[float] = []
    figures: list[tuple[float, float]] = []
    for layer in range(bank.layers):
        positive, negative = _layer(target, layer), _layer(control, layer)
        stability.append(split_half_accuracy(positive, negative, generator))
        figures.append(cross_fitted_separation(positive, negative, generator))
    result = DirectionExtractionResult(
        bank=bank,
        stability=tuple(stability),
        auroc=tuple(figure[0] for figure in figures),
        effect_size=tuple(figure[1] for figure in figures),
    )
    best = result.best_layer
    warnings: list[str] = []
    if stability[best] < STABLE:
        warnings.append(
            f"The direction is uncertain: its estimated accuracy at layer {best} is {stability[best]:.2f} (below "
            f"{STABLE}). More prompts than {target.count} + {control.count} would make it reliable."
        )
    if result.auroc[best] < 0.65:
        warnings.append(
            f"The two classes are hardly separable: cross-fitted AUROC {result.auroc[best]:.2f} at best (layer {best})."
        )
    return DirectionExtractionResult(
        bank=bank,
        stability=result.stability,
        auroc=result.auroc,
        effect_size=result.effect_size,
        warnings=tuple(warnings),
    )


def _layer(stats: ResidualStats, layer: int) -> Tensor:
    return stats.samples[:, layer, :]
