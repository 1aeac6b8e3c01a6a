# SPDX-License-Identifier: Apache-2.0
"""Activations as a prior: where in depth to edit, and the unit of an addition (algorithms 3.13, requirements 5.4).

    f_l = clip( d'_l / quantile_q{ d'_j : j >= frac (L - 1) },  min_factor,  max_factor )

d' is scale-free, so the factors say where a direction separates the classes, not how much of it to remove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from heretic.exceptions import ExtractionError

LEAST: Final = 10
"""Samples of each class that an effect size needs (requirements R-CAL-04)."""

ROUNDING: Final = 1e-9
"""A share times a count may lie this much above the whole number that is meant."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """factors: one per layer, 1 = as without calibration. reason: why some or all are 1 without a measurement."""

    factors: tuple[float, ...]
    reason: str | None = None


def layer_factors(
    effect_size: Sequence[float],
    *,
    percentile: float,
    layer_frac: float,
    min_factor: float,
    max_factor: float,
    samples: int | None = None,
) -> Calibration:
    """The factor of each layer from its cross-fitted Cohen's d' (never the in-sample one, which noise makes large).

    percentile: q in 0 ... 1; the reference is an order statistic, hence the d' of one of the layers from the relative
    depth layer_frac on. A d' of 0 or below gives min_factor. NaN marks a layer whose projections do not vary: factor
    1. samples: of the smaller class; below 10, or without a positive reference, all factors are 1. Every such case
    is told in `reason`.
    """
    layers = len(effect_size)
    if samples is not None and samples < LEAST:
        return Calibration((1.0,) * layers, f"{samples} samples of a class; calibration needs {LEAST}")
    measured = {layer: value for layer, value in enumerate(effect_size) if math.isfinite(value)}
    first = layer_frac * (layers - 1) - ROUNDING
    deep = [value for layer, value in measured.items() if layer >= first]
    reference = _order_statistic(torch.tensor(deep, dtype=torch.float64), percentile) if deep else math.nan
    if not float(reference) > 0:
        return Calibration(
            (1.0,) * layers,
            f"the effect size of the reference, percentile {percentile:g} of the layers from relative depth "
            f"{layer_frac:g} on, is {float(reference):.2f}: nothing to compare with",
        )
    factors = tuple(
        min(max_factor, max(min_factor, measured[layer] / float(reference))) if layer in measured else 1.0
        for layer in range(layers)
    )
    missing = [str(layer) for layer in range(layers) if layer not in measured]
    reason = f"projections do not vary at the layers {', '.join(missing)}" if missing else None
    return Calibration(factors, reason)


def projection_scale(samples: Tensor, directions: Tensor, percentile: float) -> Tensor:
    """The unit of an addition per layer, [L] float64: an order statistic of the projections, in activation units.

    samples: [n, L, d]. directions: [L, d], unit rows. percentile: q in 0 ... 1; a value that a sample has, the smallest
    one that at least the share q of the samples does not exceed. Negative where they lie on the other side of zero.
    Raises `ExtractionError` for no samples.
    """
    if not len(samples):
        raise ExtractionError(
            "There are no samples to take the unit of an addition from.",
            hint="Check the slices of bad_prompts and good_prompts.",
        )
    # One layer at a time: all of them in float64 would be twice the memory of the samples.
    projections = torch.stack(
        [samples[:, layer].double() @ row for layer, row in enumerate(directions.double())]
    )
    return _order_statistic(projections, percentile)


def _order_statistic(values: Tensor, share: float) -> Tensor:
    """Of the last axis: its value of rank ceil(share n), at least the first."""
    count = values.shape[-1]
    rank = min(count, max(1, math.ceil(share * count - ROUNDING)))
    return values.kthvalue(rank, dim=-1).values
