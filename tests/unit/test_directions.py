# SPDX-License-Identifier: Apache-2.0
"""Banks of directions: the projected difference, fractional indexes, separation (algorithms 3.1, 3.11 to 3.13)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.difference import difference_of_means
from heretic.exceptions import ExtractionError
from heretic.interventions.edit import ablation
from heretic.linalg.separation import auroc, cross_fitted_separation, effect_size, split_half_accuracy

L, D, N = 5, 64, 80


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(signal: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(direction [D], target [N, L, D], control [N, L, D]): classes around a common mean, apart along the direction."""
    source = generator(seed)
    ordinary = torch.randn(D, generator=source)
    direction = torch.randn(D, generator=source)
    direction = direction - ordinary * (direction @ ordinary) / (ordinary @ ordinary)
    direction = direction / direction.norm()
    noise = torch.randn(2, N, L, D, generator=source)
    return direction, noise[0] + 4 * ordinary + signal * direction, noise[1] + 4 * ordinary


def fitted(target: Tensor, control: Tensor, *, project: bool = True) -> DirectionBank:
    return difference_of_means(target.double().mean(dim=0), control.double().mean(dim=0), project=project)


def test_a_planted_direction_is_found_with_its_sign() -> None:
    """Section 3.0: cosine above 0.99, from control to target; control: classes without the plant."""
    direction, target, control = planted(12.0)
    bank = fitted(target, control)
    assert bank.directions.shape == (L, 1, D) and bank.spread.shape == (L, 1)
    assert float((bank.directions[:, 0] @ direction).min()) > 0.99
    assert torch.allclose(bank.directions.norm(dim=2), torch.ones(L, 1), atol=1e-6)
    assert torch.allclose(bank.spread, torch.full((L, 1), 12.0), rtol=0.05)
    assert float((fitted(control, target).directions[:, 0] @ direction).max()) < -0.9
    _, same, other = planted(0.0)
    assert float((fitted(same, other).directions[:, 0] @ direction).abs().max()) < 0.5


def test_the_control_mean_is_a_fixed_point_and_the_rest_of_the_gap_is_ordinary() -> None:
    """Section 3.1 (a) and (b); control: without the projection (a) fails by more than 1e-2."""
    direction, target, control = planted(6.0)
    target = target + 1.5 * control.mean(dim=0)  # part of the gap along ordinary activity
    ours, theirs = control.double().mean(dim=0), target.double().mean(dim=0)

    def moved(bank: DirectionBank, vectors: Tensor) -> Tensor:
        edits = [ablation(rows.double(), torch.ones(1, dtype=torch.float64)) for rows in bank.directions]
        parts = [
            v + e.left @ (e.read.T @ v) for v, e in zip(vectors, edits, strict=True) if e.read is not None
        ]
        return torch.stack(parts)

    bank = fitted(target, control)
    assert float((moved(bank, ours) - ours).norm() / ours.norm()) < 1e-6
    unit = ours / ours.norm(dim=1, keepdim=True)
    gap = theirs - ours
    assert torch.allclose(moved(bank, gap), unit * (unit * gap).sum(dim=1, keepdim=True), atol=1e-4)
    plain = fitted(target, control, project=False)
    assert float((moved(plain, ours) - ours).norm() / ours.norm()) > 1e-2


def test_the_result_turns_with_the_data_and_ignores_the_order_of_prompts() -> None:
    """Section 3.0: fit(XO) = fit(X)O."""
    _, target, control = planted(6.0)
    rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=generator(3)))
    turned = fitted(target @ rotation, control @ rotation)
    assert torch.allclose(turned.directions, fitted(target, control).directions @ rotation, atol=1e-4)
    shuffled = fitted(target[torch.randperm(N, generator=generator())], control)
    assert torch.allclose(shuffled.directions, fitted(target, control).directions, atol=1e-6)


def test_equal_classes_and_classes_that_differ_in_scale_only_are_errors() -> None:
    """Section 3.1: near zero, and |R_perp| / |R| below 0.05, with the layer and the value."""
    _, _, control = planted(0.0)
    with pytest.raises(ExtractionError, match=r"at layer \d+, .* difference is 0\.00e\+00"):
        fitted(control, control)
    with pytest.raises(ExtractionError, match="same residuals"):
        fitted(1.3 * control, control)
    assert fitted(1.3 * control, control, project=False).layers == L, "control: the plain difference exists"


def test_a_layer_without_a_difference_takes_its_nearest_neighbour() -> None:
    _, target, control = planted(6.0)
    target[:, 2] = control[:, 2]
    bank = fitted(target, control)
    assert torch.equal(bank.directions[2], bank.directions[1])


def test_an_integer_index_is_the_row_bit_for_bit_and_fractions_are_continuous() -> None:
    """Section 3.11."""
    _, target, control = planted(12.0)
    bank = fitted(target, control)
    for layer in range(L):
        assert torch.equal(bank.at(layer), bank.directions[layer])
        assert torch.equal(bank.at(float(layer)), bank.directions[layer])
    for index in (0.0, 1.3, 2.5, 3.999):
        step = float((bank.at(index) - bank.at(min(index + 1e-3, L - 1.0))).norm())
        assert step < 1e-2
        assert bank.at(index).norm(dim=1).item() == pytest.approx(1.0, abs=1e-6)
    middle = bank.directions[1] + bank.directions[2]
    assert torch.allclose(bank.at(1.5), middle / middle.norm(), atol=1e-6)
    assert float((bank.at(1.5) - bank.at(2.5)).norm()) > 1e-2, "control: the index matters"


def test_neighbours_that_point_apart_and_indexes_outside_are_errors() -> None:
    rows = torch.eye(D)[:2]
    bank = DirectionBank(torch.stack([rows[:1], -rows[:1], rows[1:]]), torch.ones(3, 1))
    with pytest.raises(ExtractionError, match=r"layers 0 and 1 .*0\.30"):
        bank.at(0.3)
    assert bank.at(1.5).shape == (1, D), "control: orthogonal neighbours mix"
    for index in (-1, -0.5, 2.5, 3):
        with pytest.raises(ExtractionError, match="0 to 2"):
            bank.at(index)


def test_auroc_counts_ties_as_halves_and_the_effect_size_is_cohens() -> None:
    """Section 3.13, by hand."""
    assert auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])) == 3.5 / 4
    assert auroc(torch.ones(3), torch.ones(4)) == 0.5
    assert effect_size(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 2.0])) == pytest.approx(2 / 2**0.5)
    assert effect_size(torch.ones(3), torch.ones(3)) == 0.0


def test_separation_is_cross_fitted() -> None:
    """Section 3.13: pure noise gives one half; control: in-sample it would be near 1."""
    noise = torch.randn(2, 60, 512, generator=generator())
    area, effect = cross_fitted_separation(noise[0], noise[1], generator())
    assert 0.35 < area < 0.65 and abs(effect) < 0.5
    gap = noise[0].mean(dim=0) - noise[1].mean(dim=0)
    assert auroc(noise[0] @ gap, noise[1] @ gap) > 0.95
    shifted = noise[0] + torch.eye(512)[0] * 5
    assert cross_fitted_separation(shifted, noise[1], generator())[0] > 0.9
    assert cross_fitted_separation(noise[0][:1], noise[1], generator()) == (0.5, 0.0)


def test_split_half_accuracy_predicts_the_true_cosine() -> None:
    """Section 3.12; control: without signal it is far below."""
    direction, target, control = planted(1.5)
    accuracy = split_half_accuracy(target[:, 0], control[:, 0], generator())
    true = torch.nn.functional.cosine_similarity(
        target[:, 0].mean(0) - control[:, 0].mean(0), direction, dim=0
    )
    assert accuracy == pytest.approx(float(true), abs=0.12)
    assert split_half_accuracy(control[:40, 0], control[40:, 0], generator()) < 0.6
