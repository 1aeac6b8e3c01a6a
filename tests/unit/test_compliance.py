# SPDX-License-Identifier: Apache-2.0
"""What may be added: towards the wanted reply, and towards the behaviour (algorithms 3.8, 4.7)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.compliance import compliance, induction
from heretic.directions.contrast import Contrast, unit_rows
from heretic.directions.difference import difference
from heretic.exceptions import CAAExtractionError
from heretic.interventions.edit import Edit, ablation

L, D, N = 4, 64, 60
SHOWED = torch.arange(N) < 40


def axes() -> Tensor:
    """Orthonormal rows [D, D]: 0 ordinary activity, 1 the behaviour, 2 compliance."""
    columns: Tensor = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q
    return columns.T.contiguous()


def planted(*, along: float = 6.0, beside: float = 8.0) -> Contrast:
    """Target prompts that were answered leave the others by -`along` on the behaviour, `beside` on compliance."""
    source, rows = torch.Generator().manual_seed(1), axes()
    moved = torch.where(SHOWED[:, None], 15 * rows[1], (15 - along) * rows[1] + beside * rows[2])
    target = 0.3 * torch.randn(N, L, D, generator=source) + 20 * rows[0] + moved[:, None]
    control = 0.3 * torch.randn(N, L, D, generator=source) + 20 * rows[0]
    return Contrast(target, control, showed=SHOWED)


def test_the_direction_leads_to_the_answered_prompts_outside_what_is_removed() -> None:
    """Orthogonal to Q, its sign, the share kept and the cosine with -r as planted; control: other labels turn it."""
    contrast = planted()
    bank = difference(contrast)
    found = compliance(contrast, bank)
    assert found.source == "replies" and not found.skipped and not found.reason
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(L), atol=1e-6)
    assert float((found.vectors * bank.directions[:, 0]).sum(dim=1).abs().max()) < 1e-6
    # r is axes 1 and 2 mixed: the answered third of the target prompts lies at (9, 8), the rest at (15, 0).
    behaviour = torch.tensor([15 - 6 / 3, 8 / 3])
    behaviour /= behaviour.norm()
    gap = torch.tensor([-6.0, 8.0]) / 10
    assert torch.allclose(found.overlap, -(gap @ behaviour).expand(L), atol=0.03)
    left = gap - behaviour * (gap @ behaviour)
    assert torch.allclose(found.kept_share, left.norm().expand(L), atol=0.03)
    assert float((found.vectors @ (left @ axes()[1:3] / left.norm())).min()) > 0.99
    flipped = compliance(replace(contrast, showed=~SHOWED), bank)
    assert torch.allclose(flipped.vectors, -found.vectors, atol=1e-6)


def test_every_removed_and_protected_direction_is_left_out_and_padding_is_not() -> None:
    """Zero rows of a bank remove nothing; control: without protection the direction has a part along it."""
    contrast = planted()
    bank = difference(contrast)
    padded = DirectionBank(
        torch.cat([bank.directions, torch.zeros(L, 2, D)], dim=1),
        torch.cat([bank.spread, torch.zeros(L, 2)], dim=1),
    )
    assert torch.allclose(compliance(contrast, padded).vectors, compliance(contrast, bank).vectors, atol=1e-6)
    tilted = unit_rows(axes()[2] + axes()[5])[None, None].repeat(L, 1, 1)
    found = compliance(contrast.guarded(tilted), bank)
    assert float((found.vectors[:, None] * tilted).sum(dim=2).abs().max()) < 1e-6
    assert float((found.vectors * bank.directions[:, 0]).sum(dim=1).abs().max()) < 1e-6
    free = compliance(contrast, bank)
    assert float((free.vectors[:, None] * tilted).sum(dim=2).abs().min()) > 0.5
    assert float(found.kept_share.max()) < float(free.kept_share.min())


def test_a_layer_in_which_next_to_nothing_is_left_is_skipped_with_the_figure() -> None:
    """Below 10 % of the length; control: the layers beside it keep theirs."""
    contrast = planted(beside=0.0)
    target = contrast.target.clone()
    target[~SHOWED, 1] += 8 * axes()[2]
    clean = replace(contrast, target=_without_noise(target))
    bank = difference(clean)
    found = compliance(clean, bank)
    assert sorted(found.skipped) == [0, 2, 3] and "10% is needed" in found.skipped[0]
    assert not found.vectors[[0, 2, 3]].any() and float(found.vectors[1].norm()) == pytest.approx(1, abs=1e-6)
    assert float(found.kept_share[[0, 2, 3]].max()) < 0.1
    assert not found.shift(1.0)[0].any()


def _without_noise(target: Tensor) -> Tensor:
    """The rows with only their parts along the three planted axes."""
    rows = axes()[:3]
    return (target @ rows.T) @ rows


def test_too_few_replies_fall_back_to_the_class_difference_or_fail_when_strict() -> None:
    """Ten of each are needed. What is left outside the projected direction points along the control mean; outside the
    whole difference nothing is left. Control: with exactly ten the replies are used."""
    contrast = planted()
    ordinary = torch.nn.functional.normalize(contrast.means()[1].float(), dim=1)
    contrast = replace(contrast, target=contrast.target + 0.5 * contrast.means()[1].float())
    bank, whole = difference(contrast), difference(contrast, project=False)
    for showed, reason in (
        (None, "no replies"),
        (torch.arange(N) < 51, "51 of 60 target prompts .* 9 without"),
        (torch.ones(N, dtype=torch.bool), "60 of 60 .* 0 without"),
    ):
        case = replace(contrast, showed=showed)
        found = compliance(case, bank)
        assert found.source == "class" and not found.skipped
        assert torch.allclose((found.vectors * ordinary).sum(dim=1), -torch.ones(L), atol=1e-4)
        assert bool((found.overlap > 0).all() and (found.overlap < 1).all())
        nothing = compliance(case, whole)
        assert len(nothing.skipped) == L and not nothing.vectors.any()
        with pytest.raises(CAAExtractionError, match=reason):
            compliance(case, bank, strict=True)
    edge = replace(contrast, showed=torch.arange(N) < 50)
    assert compliance(edge, bank, strict=True).source == "replies"
    assert compliance(edge, bank, minimum=11).source == "class"


def test_replies_that_differ_only_in_what_is_removed_fail_when_strict() -> None:
    contrast = planted(beside=0.0)
    clean = replace(contrast, target=_without_noise(contrast.target))
    with pytest.raises(
        CAAExtractionError, match="Nothing is left to add in any layer; .*% of the difference"
    ):
        compliance(clean, difference(clean), strict=True)
    same = replace(contrast, target=contrast.target[:1].repeat(N, 1, 1))
    with pytest.raises(CAAExtractionError, match="the replies differ by"):
        compliance(same, difference(same), strict=True)
    assert compliance(planted(), difference(planted()), strict=True).vectors.any(), "control"


def test_the_unit_of_strength_is_the_mean_length_of_the_residuals() -> None:
    """sigma_l by hand, proportional to the activations, direction unchanged; the shift is s sigma_l v."""
    contrast = planted()
    bank = difference(contrast)
    found = compliance(contrast, bank)
    lengths = torch.cat([contrast.target, contrast.control]).norm(dim=2).mean(dim=0)
    assert torch.allclose(found.scale, lengths, rtol=1e-5)
    larger = Contrast(10 * contrast.target, 10 * contrast.control, showed=SHOWED)
    grown = compliance(larger, difference(larger))
    assert torch.allclose(grown.scale, 10 * found.scale, rtol=1e-5)
    assert torch.allclose(grown.vectors, found.vectors, atol=1e-5)
    assert torch.allclose(found.shift(-0.3), -0.3 * lengths[:, None] * found.vectors, rtol=1e-4, atol=1e-6)
    assert not found.shift(0.0).any()


def test_induction_adds_the_behaviour_itself() -> None:
    """Component 0 with its sign, as long as what is added elsewhere; control: compliance is orthogonal to it."""
    contrast = planted()
    bank = difference(contrast)
    found = induction(bank, contrast)
    assert torch.equal(found.vectors, bank.directions[:, 0]) and found.source == "behaviour"
    assert torch.equal(found.overlap, -torch.ones(L)) and not found.skipped
    assert torch.equal(found.scale, compliance(contrast, bank).scale)
    target, control = contrast.means()
    assert float(((target - control).float() * found.shift(0.1)).sum(dim=1).min()) > 0
    assert float((found.vectors * compliance(contrast, bank).vectors).sum(dim=1).abs().max()) < 1e-6


def test_a_bias_shifts_the_mean_and_multiplying_by_the_even_form_does_not() -> None:
    """Section 4.7: mean output shift t, with its sign; control: W (I + s v vT) is the same for v and -v, and where the
    writer's mean output has no part along v it shifts nothing."""
    source = torch.Generator().manual_seed(3)
    vector = axes()[2].double()
    weight = torch.randn(D, 32, dtype=torch.float64, generator=source)
    inputs = torch.randn(500, 32, dtype=torch.float64, generator=source)
    inputs -= inputs.mean(dim=0)

    def mean_shift(edit: Edit) -> Tensor:
        written = inputs @ weight.T
        moved = written if edit.read is None else written + (written @ edit.read) @ edit.left.T
        moved = moved if edit.bias is None else moved + edit.bias
        return (moved - written).mean(dim=0)

    def added(constant: Tensor) -> Edit:
        return Edit(left=torch.zeros(D, 0, dtype=torch.float64), bias=constant)

    def multiplied(direction: Tensor) -> Edit:
        return ablation(direction[None], torch.tensor([-0.7], dtype=torch.float64))

    wanted = 0.7 * 20 * vector
    assert torch.allclose(mean_shift(added(wanted)), wanted, atol=1e-6)
    assert torch.allclose(mean_shift(added(-wanted)), -wanted, atol=1e-6)
    assert float(mean_shift(multiplied(vector)).norm()) < 1e-12
    assert torch.equal(mean_shift(multiplied(vector)), mean_shift(multiplied(-vector)))
