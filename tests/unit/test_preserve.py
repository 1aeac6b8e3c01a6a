# SPDX-License-Identifier: Apache-2.0
"""What is protected, how much of a direction it takes, and the two guarantees that hold (algorithms 3.9, 3.10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.cones import cones
from heretic.directions.contrast import Contrast, unit_rows
from heretic.directions.difference import difference
from heretic.directions.preserve import (
    Protection,
    capability,
    guarantee,
    helpfulness,
    input_protected,
    inseparable,
    joint_rows,
    protected_contrast,
    remaining_share,
)
from heretic.exceptions import ExtractionError, SacredDirectionError
from heretic.interventions.edit import Edit, ablation

L, D, N = 5, 64, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def axes() -> Tensor:
    """Orthonormal rows [D, D]: 0 ordinary activity, 1 the behaviour, further ones as the tests need them."""
    columns: Tensor = torch.linalg.qr(torch.randn(D, D, generator=generator())).Q
    return columns.T.contiguous()


def residuals(middle: Tensor, seed: int, noise: float = 0.05, count: int = N) -> Tensor:
    """[count, L, D] about a mean of 20 along ordinary activity plus `middle`."""
    return noise * torch.randn(count, L, D, generator=generator(seed)) + 20 * axes()[0] + middle


def contrast() -> Contrast:
    """Target prompts leave the control mean by 10 along the behaviour."""
    return Contrast(residuals(10 * axes()[1], 1), residuals(torch.zeros(D), 2))


def protection(*rows: Tensor) -> Protection:
    """The rows, orthonormal already, in every layer."""
    return Protection("capability", torch.stack(rows)[None].repeat(L, 1, 1))


def mixed(cosine: float, other: int = 2) -> Tensor:
    """A unit vector with this cosine to the behaviour."""
    rows = axes()
    unit: Tensor = cosine * rows[1] + (1 - cosine**2) ** 0.5 * rows[other]
    return unit


def largest_dot(bank: DirectionBank, protected: Protection) -> float:
    return float((bank.directions @ protected.directions.mT).abs().max())


def test_helpfulness_is_found_with_its_sign_and_its_overlap() -> None:
    """R-HLP-05: the planted share is reported; swapping the sets turns the direction, not the overlap."""
    given = contrast()
    bank = difference(given)
    sets = residuals(8 * mixed(0.6), 3), residuals(torch.zeros(D), 4)
    found = helpfulness(*sets, bank)
    assert found.overlap is not None
    assert float((found.directions[:, 0] @ mixed(0.6)).min()) > 0.99
    assert torch.allclose(found.overlap, torch.full((L,), 0.36), atol=0.02)
    swapped = helpfulness(*sets[::-1], bank)
    assert swapped.overlap is not None
    assert torch.allclose(swapped.directions, -found.directions, atol=1e-6)
    assert torch.allclose(swapped.overlap, found.overlap, atol=1e-6)
    other = helpfulness(residuals(8 * axes()[2], 3), sets[1], bank)
    assert other.overlap is not None and float(other.overlap.max()) < 0.01, "control: nothing in common"


def test_the_overlap_is_that_of_the_joint_projection() -> None:
    """A direction that is mostly ordinary activity, the rest behaviour: with the control mean projected as well, all of
    the behaviour is taken. Control: on its own it takes 4 %."""
    given = contrast()
    bank = difference(given)
    helpful = 0.2 * axes()[1] + 0.96**0.5 * axes()[0]
    alone = protection(helpful).measured(bank)
    joint = protection(helpful).measured(bank, ordinary=given.means()[1])
    assert alone.overlap is not None and joint.overlap is not None
    assert torch.allclose(alone.overlap, torch.full((L,), 0.04), atol=0.01)
    assert float(joint.overlap.min()) > 0.99
    protected = joint.directions
    assert float(remaining_share(given, protected).max()) < 0.1
    assert float(remaining_share(given, protected, project=False).min()) > 0.9


def test_capability_directions_are_uncentred_and_without_the_baseline() -> None:
    """What all questions share and what they vary along, beside what plain text has; captured share reported."""
    rows = axes()
    signs = torch.randint(0, 2, (N, 1, 1), generator=generator(5)) * 2.0 - 1
    samples = residuals(9 * rows[3], 6) + 5 * signs * rows[4]
    found = capability(samples, residuals(torch.zeros(D), 7), count=2)
    assert found.directions.shape == (L, 2, D)
    for basis in found.directions:
        assert torch.allclose(basis @ basis.T, torch.eye(2), atol=1e-6)
        assert float((basis @ rows[3:5].T).norm(dim=0).min()) > 0.99
    assert float((found.directions @ rows[0]).abs().max()) < 0.05
    plain = capability(samples, 1e-3 * residuals(torch.zeros(D), 7), count=2)
    assert float((plain.directions @ rows[0]).norm(dim=1).min()) > 0.9, "control: the baseline matters"
    captured = found.provenance["captured"]
    assert isinstance(captured, list) and min(captured) > 0.99
    json.dumps(found.provenance)


def test_a_layer_with_fewer_directions_has_zero_rows_and_equal_sets_are_errors() -> None:
    given = contrast()
    text, samples = residuals(torch.zeros(D), 7), residuals(5 * axes()[3], 6)
    samples[:, 1] = text[:, 1].mean(dim=0) + 5 * axes()[3]
    found = capability(samples, text, count=3)
    assert [int((rows.norm(dim=1) > 0.5).sum()) for rows in found.directions] == [3, 1, 3, 3, 3]
    safe = protected_contrast(given, found)
    assert safe.protected is not None and largest_dot(difference(safe), found) < 1e-6
    same = text.mean(dim=0, keepdim=True)
    with pytest.raises(ExtractionError, match="same residuals as the mean of the baseline"):
        capability(same.repeat(3, 1, 1).double(), same.double())
    with pytest.raises(ExtractionError, match=r"differ by 0\.00e\+00"):
        helpfulness(text, text, difference(given))
    with pytest.raises(ExtractionError, match="capability is empty: 0 and 60"):
        capability(text[:0], text)


def test_protections_become_one_basis_and_every_method_stays_out_of_it() -> None:
    """R-HLP-05, R-SAC-06: two that are not orthogonal, and one given twice; control: without, both are contained."""
    given = contrast()
    first, second = protection(mixed(0.5)), protection(mixed(0.4, other=3))
    safe = protected_contrast(given, first, second, first)
    assert safe.protected is not None and safe.protected.shape == (L, 2, D)
    assert torch.allclose(safe.protected @ safe.protected.mT, torch.eye(2).expand(L, 2, 2), atol=1e-6)
    categories = ["a"] * 30 + ["b"] * 30
    for bank in (difference(safe), cones(safe, categories=categories)):
        assert largest_dot(bank, first) < 1e-6 and largest_dot(bank, second) < 1e-6
    assert largest_dot(difference(given), first) > 0.4 and largest_dot(difference(given), second) > 0.3
    swapped = protected_contrast(given, second, first)
    assert torch.allclose(difference(swapped).directions, difference(safe).directions, atol=1e-6)
    again = protected_contrast(protected_contrast(given, first), second)
    assert torch.allclose(difference(again).directions, difference(safe).directions, atol=1e-6)
    assert protected_contrast(given) is given


def test_a_joint_basis_loses_nothing_behind_a_dependent_row() -> None:
    """Rows a, a, b span b; zero rows count for nothing."""
    rows = axes()[:3]
    tilted = unit_rows(rows[0] + rows[1] + rows[2])[None]
    basis = joint_rows(torch.cat([rows[:1], rows[:1], torch.zeros(1, D), tilted]))
    assert len(basis) == 2
    assert float((tilted.double() @ basis.T).norm()) == pytest.approx(1, abs=1e-6)


def test_helpfulness_that_holds_the_behaviour_is_refused_with_the_reason() -> None:
    """Overlap above 0.9 in the middle one of the layers; a single layer does not decide."""
    given = contrast()
    bank = difference(given)
    near = protection(mixed(0.96)).measured(bank)
    reason = inseparable(replace(near, name="helpfulness"))
    assert reason is not None and reason.startswith("helpfulness holds 92%")
    assert inseparable(protection(mixed(0.94)).measured(bank)) is None
    rows = near.directions.clone()
    rows[1:, 0] = axes()[2]
    assert inseparable(replace(near, directions=rows).measured(bank)) is None


def test_a_direction_of_which_too_little_remains_is_an_error_and_not_divided() -> None:
    """Remainder below 0.3, with the overlap; control: just above it the direction is what remains."""
    given = contrast()
    with pytest.raises(
        SacredDirectionError, match=r"Protecting capability takes 92\.\d% .* 0\.28 of its length"
    ):
        protected_contrast(given, protection(mixed(0.96)))
    safe = protected_contrast(given, protection(mixed(0.94)))
    left = axes()[1] - 0.94 * mixed(0.94)
    assert float((difference(safe).directions[:, 0] @ unit_rows(left)).min()) > 0.99
    assert safe.protected is not None
    assert torch.allclose(remaining_share(given, safe.protected), left.norm().expand(L), atol=0.02)
    single = protection(mixed(0.96))
    single.directions[1:, 0] = axes()[2]
    assert (
        float((difference(protected_contrast(given, single)).directions[0] @ single.directions[0].T).abs())
        < 1e-6
    )


def ablated(weight: Tensor, direction: Tensor) -> Tensor:
    """W' of the removal of one direction [d] at strength 1."""
    edit: Edit = ablation(direction[None].to(weight), torch.ones(1, dtype=weight.dtype))
    assert edit.read is not None
    return weight + edit.left @ (edit.read.T @ weight)


def test_protected_coordinates_of_the_output_do_not_change_for_any_input() -> None:
    """ST W' = ST W (output side of 3.10), for the weight and for inputs far from anything seen. Controls: the
    unprotected direction, and a rescaling of columns to their old length afterwards."""
    given, sacred = contrast(), protection(mixed(0.5), axes()[3])
    safe, rows = protected_contrast(given, sacred), sacred.directions[0]
    weight = torch.randn(D, 48, generator=generator(8))
    inputs = 100 * torch.randn(48, 1000, generator=generator(9))
    edited = ablated(weight, difference(safe).directions[0, 0])
    assert guarantee(weight, edited, rows) < 1e-6
    moved = rows @ (edited - weight) @ inputs
    assert float(moved.norm() / (rows @ weight @ inputs).norm()) < 1e-6
    assert float((edited - weight).norm() / weight.norm()) > 0.05, "the edit does something"
    free = ablated(weight, difference(given).directions[0, 0])
    assert guarantee(weight, free, rows) > 0.1
    rescaled = edited * (weight.norm(dim=0) / edited.norm(dim=0))
    assert guarantee(weight, rescaled, rows) > 1e-3


def test_the_guarantee_is_read_on_the_residual_side_of_either_layout() -> None:
    """By hand: a change of 1 in a protected coordinate of length 5; square weights tell the sides apart."""
    rows = torch.eye(4)[:1]
    weight = torch.zeros(4, 4)
    weight[0, :2] = torch.tensor([3.0, 4.0])
    edited = weight.clone()
    edited[0, 3] += 1
    assert guarantee(weight, edited, rows) == pytest.approx(0.2)
    assert guarantee(weight.T, edited.T, rows, axis=1) == pytest.approx(0.2)
    assert guarantee(weight.T, edited.T, rows) == 0.0, "control: the other side holds no change"
    assert guarantee(weight, weight, rows) == guarantee(0 * weight, 0 * weight, rows) == 0.0
    nothing = weight.flip(0)
    assert guarantee(nothing, nothing + rows.T, rows) > 1e5, "a change where there was nothing is not hidden"


def two_layers(first: Tensor, second: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the second layer with a column of ones for its bias, and outputs, of a toy network."""
    hidden = torch.cat([torch.tanh(inputs @ first.T), torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    return hidden, hidden @ second.T


def test_a_change_outside_all_inputs_leaves_the_whole_pass_on_these_prompts_as_it_was() -> None:
    """dW (I - Y YT) in both layers (input side of 3.10), bias included. Controls: Y centred, Y truncated, columns
    rescaled afterwards, and other prompts."""
    source = generator(10)
    first = torch.randn(40, 32, dtype=torch.float64, generator=source)
    second = torch.randn(D, 41, dtype=torch.float64, generator=source)
    inputs = 0.3 + torch.randn(20, 32, dtype=torch.float64, generator=source)
    changes = [torch.randn(weight.shape, dtype=torch.float64, generator=source) for weight in (first, second)]
    hidden, before = two_layers(first, second, inputs)

    def moved(shape: Callable[[Tensor], Tensor], seen: Tensor = inputs) -> float:
        parts = zip((first, second), changes, (inputs, hidden), strict=True)
        edited = [weight + input_protected(change, shape(rows)) for weight, change, rows in parts]
        reference = two_layers(first, second, seen)[1]
        return float((two_layers(edited[0], edited[1], seen)[1] - reference).norm() / reference.norm())

    assert moved(lambda rows: rows) < 1e-12
    assert moved(lambda rows: rows.repeat(3, 1)) < 1e-12, "repeated inputs are the same inputs"
    assert moved(lambda rows: rows - rows.mean(dim=0)) > 0.05
    assert moved(lambda rows: rows[:15]) > 0.05
    assert moved(lambda rows: rows, seen=-inputs) > 0.05
    kept = first + input_protected(changes[0], inputs)
    rescaled = kept * (first.norm(dim=0) / kept.norm(dim=0))
    assert float((two_layers(rescaled, second, inputs)[1] - before).norm() / before.norm()) > 0.05


def test_inputs_that_fill_the_space_leave_nothing_to_change() -> None:
    change = torch.randn(8, 16, generator=generator(11))
    with pytest.raises(SacredDirectionError, match="40 inputs to protect span all 16"):
        input_protected(change, torch.randn(40, 16, generator=generator(12)))
    assert float(input_protected(change, torch.randn(15, 16, generator=generator(12))).norm()) > 0.1, (
        "control"
    )
    assert torch.equal(input_protected(change, torch.zeros(0, 16)), change)
