# SPDX-License-Identifier: Apache-2.0
"""Clamped outliers, robust centres and the geometry of two classes (algorithms 2, 3.12 and 3.15)."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.metrics import silhouette_score
from torch import Tensor

from heretic.directions.difference import difference_of_means
from heretic.linalg.geometry import (
    bootstrap_cosine,
    geometry_table,
    principal_angles,
    silhouette,
)
from heretic.linalg.robust import geometric_median, winsorised
from heretic.linalg.separation import split_half_accuracy
from heretic.testing.directions import planted_contrast


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# Winsorisation.


def test_channels_of_both_classes_are_clamped_to_common_limits() -> None:
    """Section 2, by hand; control: limits of each class of its own would move the classes towards each other."""
    target, control = torch.arange(50.0, 101.0)[:, None, None], torch.arange(0.0, 50.0)[:, None, None]
    clamped = winsorised(target, control, 0.9, "channel")
    assert (float(clamped[0].max()), float(clamped[1].min())) == (95.0, 5.0)
    assert (float(clamped[0].min()), float(clamped[1].max())) == (50.0, 49.0)
    assert float(target.max()) == 100.0 and float(control.min()) == 0.0, (
        "the samples given are left as they are"
    )


def test_each_layer_and_channel_has_its_own_limits() -> None:
    scale = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    target, control = noise(60, 2, 2), noise(80, 2, 2, seed=1)
    plain = winsorised(target, control, 0.8)
    scaled = winsorised(target * scale, control * scale, 0.8)
    for one, other in zip(plain, scaled, strict=True):
        assert torch.allclose(one * scale, other)
    assert float((plain[0] != target).double().mean()) == pytest.approx(0.2, abs=0.08)


def test_a_vector_is_clamped_to_its_own_quantile_of_length() -> None:
    """Section 2, mode vector: the same few massive channels in each prompt; control: mode channel keeps them."""
    target, control = noise(20, 2, 100), noise(20, 2, 100, seed=1)
    for side in (target, control):
        side[..., 7] += 1000
    tamed = winsorised(target, control, 0.98, "vector")
    for before, after in zip((target, control), tamed, strict=True):
        limits = torch.quantile(before.abs(), 0.98, dim=2, keepdim=True)
        assert torch.allclose(after, before.clamp(-limits, limits))
        assert float(after.abs().max()) < 10
    assert float(winsorised(target, control, 0.98, "channel")[0].abs().max()) > 900


def test_an_outlier_no_longer_makes_the_direction() -> None:
    """Control: without clamping a single wild sample turns it."""
    planted = planted_contrast(signal=4.0)
    planted.contrast.target[0, :, 5] += 5000

    def cosine(target: Tensor, control: Tensor) -> float:
        bank = difference_of_means(target.double().mean(dim=0), control.double().mean(dim=0))
        return float((bank.directions[:, 0].double() * planted.direction).sum(dim=1).min())

    assert cosine(*winsorised(planted.contrast.target, planted.contrast.control, 0.95)) > 0.9
    assert cosine(planted.contrast.target, planted.contrast.control) < 0.3


def test_quantile_one_is_off_and_none_below_zero_exist() -> None:
    target, control = noise(5, 1, 3), noise(5, 1, 3, seed=1)
    assert winsorised(target, control, 1.0) == (target, control)
    for quantile in (0.0, 1.1):
        with pytest.raises(AssertionError, match="outside"):
            winsorised(target, control, quantile)


# Geometric median.


def test_far_outliers_hardly_move_the_median() -> None:
    """Section 3.15: 5 % of the samples move it by under 10 % of the mean's shift."""
    rows = noise(200, 32) + 3
    wild = rows.clone()
    wild[:10] += 500 * noise(32, seed=1)
    shift = (wild.mean(dim=0) - rows.mean(dim=0)).norm()
    moved = (geometric_median(wild) - geometric_median(rows)).norm()
    assert 0 < float(moved) < 0.1 * float(shift)


def test_the_median_is_where_the_pulls_of_all_samples_cancel() -> None:
    """The condition of a minimum; control: at the mean they do not. And a case by hand, Fermat's point."""
    rows = noise(40, 5).exp()

    def pull(point: Tensor) -> float:
        offsets = rows - point
        return float((offsets / offsets.norm(dim=1, keepdim=True)).mean(dim=0).norm())

    assert pull(geometric_median(rows)) < 1e-5
    assert pull(rows.mean(dim=0)) > 1e-2
    triangle = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 2 * math.sqrt(3)]]) + 7
    assert geometric_median(triangle).tolist() == pytest.approx([9.0, 7 + 2 / math.sqrt(3)], abs=1e-5)


def test_the_median_leaves_a_sample_that_is_not_it_and_stays_at_one_that_is() -> None:
    """The mean of these lies exactly on a sample that the others pull away from; plain Weiszfeld would stay there."""
    line = torch.tensor([[-6.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert float(line.mean(dim=0).norm()) == 0.0
    assert geometric_median(line).tolist() == pytest.approx([1.0, 0.0], abs=1e-4)
    crossed = torch.tensor([[1.0, 1.0], [3.0, 3.0], [1.0, 3.0], [3.0, 1.0], [2.0, 2.0]])
    assert geometric_median(crossed).tolist() == [2.0, 2.0]
    held = torch.tensor([[-2.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert geometric_median(held).tolist() == [0.0, 0.0], "two samples hold it against one"
    assert geometric_median(torch.ones(4, 3)).tolist() == [1.0, 1.0, 1.0]
    assert geometric_median(torch.zeros(1, 3)).tolist() == [0.0, 0.0, 0.0]


# Geometry of two classes.


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_the_silhouette_is_that_of_scikit_learn(offset: float) -> None:
    """Also far from zero, as massive channels are."""
    first, second = noise(30, 6), noise(20, 6, seed=1) + 1.5
    labels = [0] * 30 + [1] * 20
    expected = silhouette_score(torch.cat([first, second]).numpy(), labels)
    assert silhouette(first + offset, second + offset) == pytest.approx(float(expected), abs=1e-6)
    assert silhouette(first[:15], first[15:]) < 0.1 < expected, "control: one class cut in two"


def test_the_silhouette_of_a_class_of_one_and_of_equal_samples() -> None:
    first, second = noise(1, 4) + 10, noise(9, 4, seed=1)
    labels = [0] + [1] * 9
    expected = silhouette_score(torch.cat([first, second]).numpy(), labels)
    assert silhouette(first, second) == pytest.approx(float(expected), abs=1e-6)
    assert silhouette(torch.full((3, 4), 0.1), torch.full((5, 4), 0.1)) == 0.0


@pytest.mark.parametrize(("large", "small"), [(3, 3), (5, 2), (1, 4)])
def test_principal_angles_are_those_of_scipy(large: int, small: int) -> None:
    first, second = (torch.linalg.qr(noise(12, count, seed=count)).Q.T for count in (large, small))
    expected = sorted(subspace_angles(first.T.numpy(), second.T.numpy()))
    assert principal_angles(first, second).tolist() == pytest.approx(expected, abs=1e-12)
    assert principal_angles(second, first).tolist() == pytest.approx(expected, abs=1e-12)
    turned = torch.linalg.qr(noise(large, large, seed=9)).Q @ first
    assert principal_angles(turned, second).tolist() == pytest.approx(expected, abs=1e-12)
    assert principal_angles(turned, first).tolist() == pytest.approx([0.0] * large, abs=1e-12)


def test_small_angles_keep_their_digits() -> None:
    """Control: the arc cosine of the inner product has lost all of them."""
    axes = torch.eye(6, dtype=torch.float64)
    angles = torch.tensor([1e-10, 1e-5, 0.3, math.pi / 2], dtype=torch.float64)
    second = torch.stack(
        [
            angles[0].cos() * axes[0] + angles[0].sin() * axes[4],
            angles[1].cos() * axes[1] + angles[1].sin() * axes[5],
        ]
    )
    found = principal_angles(axes[:2], second)
    assert found.tolist() == pytest.approx(angles[:2].tolist(), rel=1e-6)
    naive = torch.linalg.svdvals(axes[:2] @ second.T).clamp(max=1).acos()
    assert naive.tolist() != pytest.approx(angles[:2].tolist(), rel=1e-2)
    assert principal_angles(axes[:1], axes[1:2]).tolist() == [pytest.approx(math.pi / 2)]
    nearly = 1e-9 * axes[:1] + axes[1:2]
    assert principal_angles(axes[:1], nearly).tolist() == [pytest.approx(math.pi / 2 - 1e-9, abs=1e-13)]


def test_the_bootstrap_cosine_is_one_half_without_signal() -> None:
    """Section 3.12: so it is no measure of stability, and split halves are."""
    rows = noise(200, 512)
    assert bootstrap_cosine(rows[:100], rows[100:], generator()) == pytest.approx(0.5, abs=0.05)
    assert split_half_accuracy(rows[:100], rows[100:], generator()) < 0.4
    assert bootstrap_cosine(rows[:100] + 2, rows[100:], generator()) > 0.95


def test_the_table_tells_a_layer_with_the_behaviour_from_one_without() -> None:
    planted = planted_contrast(signal=8.0, layers=2)
    contrast = planted.contrast
    contrast.target[:, 0] -= 8 * planted.direction[0].float()
    without, found = geometry_table(contrast.target, contrast.control, generator())
    assert (without.layer, found.layer) == (0, 1)
    assert found.auroc > 0.95 and 0.3 < without.auroc < 0.7
    assert found.silhouette > without.silhouette and abs(without.effect_size) < 0.5
    assert found.accuracy > 0.9 > without.accuracy and found.bootstrap_cosine > 0.9
    assert found.mean_cosine < 0.98 < without.mean_cosine
    assert found.difference_norm == pytest.approx(8, rel=0.1)
    assert all(math.isfinite(value) for value in asdict(found).values())
    assert geometry_table(contrast.target, contrast.control, generator())[1] == found


def test_the_table_shows_where_outliers_make_the_direction() -> None:
    contrast = planted_contrast(signal=8.0, layers=1).contrast
    (clean,) = geometry_table(contrast.target, contrast.control, generator())
    contrast.target[0, 0, 3] += 1e4
    (wild,) = geometry_table(contrast.target, contrast.control, generator())
    assert wild.target_median_norm == pytest.approx(math.hypot(28, 8), rel=0.05)
    assert wild.target_mean_norm > 90, "the mean follows the wild sample"
    assert wild.control_mean_norm == pytest.approx(28, rel=0.02) == wild.control_median_norm
    assert wild.difference_cosine < 0.3 and clean.difference_cosine > 0.99
    assert wild.mean_cosine < 0.5 and wild.median_cosine > 0.9
