# SPDX-License-Identifier: Apache-2.0
"""Activations as a prior on depth and as the unit of an addition (algorithms 3.13, R-CAL-05)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heretic.directions.calibration import Calibration, layer_factors, projection_scale
from heretic.exceptions import ExtractionError
from heretic.linalg.separation import cross_fitted_separation, effect_size

L, D, N = 8, 64, 80
SIGNAL = (3, 4, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted() -> tuple[Tensor, Tensor]:
    """(target, control), each [N, L, D]: far apart in the layers of SIGNAL, a little in the others."""
    direction = torch.nn.functional.normalize(torch.randn(D, generator=generator()), dim=0)
    rows = torch.randn(2, N, L, D, generator=generator(1))
    sizes = torch.tensor([5.0 if layer in SIGNAL else 2.0 for layer in range(L)])
    return rows[0] + sizes[:, None] * direction, rows[1]


def separations(target: Tensor, control: Tensor) -> list[float]:
    source = generator(2)
    return [cross_fitted_separation(target[:, layer], control[:, layer], source)[1] for layer in range(L)]


def calibrated(
    sizes: list[float],
    *,
    percentile: float = 0.75,
    layer_frac: float = 0.6,
    min_factor: float = 0.5,
    max_factor: float = 2.0,
) -> Calibration:
    return layer_factors(
        sizes,
        percentile=percentile,
        layer_frac=layer_frac,
        min_factor=min_factor,
        max_factor=max_factor,
    )


def test_planted_layers_get_the_largest_factors_and_the_scale_has_no_influence() -> None:
    """R-CAL-05; control: the in-sample projection difference, which is not scale-free, grows tenfold."""
    target, control = planted()
    found = calibrated(separations(target, control))
    assert found.reason is None
    ranked = sorted(range(L), key=lambda layer: found.factors[layer], reverse=True)
    assert set(ranked[:3]) == set(SIGNAL)
    assert min(found.factors[layer] for layer in SIGNAL) > 1.2 * max(
        found.factors[layer] for layer in range(L) if layer not in SIGNAL
    )
    assert all(0.5 <= factor <= 2.0 for factor in found.factors)
    scaled = calibrated(separations(10 * target, 10 * control))
    assert scaled.factors == pytest.approx(found.factors, rel=1e-5)
    rows = torch.nn.functional.normalize(target.mean(dim=0) - control.mean(dim=0), dim=1)
    unit = projection_scale(target, rows, 0.75)
    assert torch.allclose(projection_scale(10 * target, rows, 0.75), 10 * unit, rtol=1e-5)


def test_shuffled_labels_have_no_effect_size() -> None:
    """All |d'| < 0.5 cross-fitted; control: in the sample every one is above 0.8."""
    target, control = planted()
    pool = torch.cat([target, control])[torch.randperm(2 * N, generator=generator(3))]
    first, second = pool[:N], pool[N:]
    assert max(abs(size) for size in separations(first, second)) < 0.5
    gaps = first.mean(dim=0) - second.mean(dim=0)
    inside = [
        effect_size(first[:, layer] @ gaps[layer], second[:, layer] @ gaps[layer]) for layer in range(L)
    ]
    assert min(inside) > 0.8


def test_the_formula_by_hand() -> None:
    """Of the layers 2.4 and deeper the third of three is the reference at 0.75, the second at 0.5."""
    sizes = [0.1, 4.0, -1.0, 1.0, 3.0]
    assert calibrated(sizes, layer_frac=0.6, percentile=0.75).factors == (0.5, 4 / 3, 0.5, 0.5, 1.0)
    assert calibrated(sizes, layer_frac=0.4, percentile=0.5).factors == (0.5, 2.0, 0.5, 1.0, 2.0)
    assert calibrated(sizes, layer_frac=0.0, percentile=1.0).factors == (0.5, 1.0, 0.5, 0.5, 0.75)
    assert calibrated(sizes, layer_frac=1.0, percentile=0.0).factors == (0.5, 4 / 3, 0.5, 0.5, 1.0)
    wide = calibrated(sizes, layer_frac=0.6, min_factor=0.01, max_factor=9.0).factors
    assert wide == pytest.approx((0.1 / 3, 4 / 3, 0.01, 1 / 3, 1.0))
    assert calibrated([2.0]).factors == (1.0,)
    rounded = [0.0] * 7 + [1.0] + [2.0] * 18  # 0.28 * 25 is a rounding error above 7
    assert calibrated(rounded, layer_frac=0.28, percentile=0.0).factors[7] == 1.0


def test_what_cannot_be_calibrated_is_one_with_the_reason() -> None:
    """R-CAL-04; control: the same figures with enough samples and a positive reference."""
    for sizes in ([3.0, 2.0, -0.5, -0.1], [3.0, 2.0, 0.0, 0.0]):
        found = calibrated(sizes)
        assert found.factors == (1.0,) * 4
        assert "effect size of the reference" in str(found.reason)
        assert "-0.10" in str(found.reason) or "0.00" in str(found.reason)
    few = layer_factors(
        [1.0, 2.0], percentile=0.75, layer_frac=0.6, min_factor=0.5, max_factor=2.0, samples=9
    )
    assert few == Calibration((1.0, 1.0), "9 samples of a class; calibration needs 10")
    assert calibrated([1.0, 2.0]).factors == (0.5, 1.0)
    still = calibrated([math.nan, 1.0, 2.0, math.nan])
    assert still.factors == (1.0, 0.5, 1.0, 1.0)
    assert still.reason == "projections do not vary at the layers 0, 3"
    assert calibrated([1.0, math.nan]).factors == (1.0, 1.0)


def test_the_unit_of_an_addition_is_the_projection_of_a_sample() -> None:
    """R-CAL-03 (b): the value of rank ceil(q n) per layer; control: a shuffled layer has another one."""
    samples = torch.randn(11, L, D, generator=generator())
    directions = torch.nn.functional.normalize(torch.randn(L, D, generator=generator(1)), dim=1)
    projections = torch.einsum("nld,ld->nl", samples.double(), directions.double()).sort(dim=0).values
    for share, rank in ((0.0, 1), (0.5, 6), (0.75, 9), (7 / 11, 7), (1.0, 11)):
        found = projection_scale(samples, directions, share)
        assert found.shape == (L,)
        assert torch.allclose(found, projections[rank - 1])
    assert not torch.allclose(projection_scale(samples.flip(1), directions, 0.5), projections[5])
    assert torch.allclose(projection_scale(-samples, directions, 1.0), -projections[0])
    with pytest.raises(ExtractionError, match="no samples"):
        projection_scale(samples[:0], directions, 0.5)
