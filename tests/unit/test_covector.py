# SPDX-License-Identifier: Apache-2.0
"""What is read where that is not what is removed: LEACE, LDA, LCMV (algorithms 3.6, 3.10, 4.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast, unit_rows
from heretic.directions.covector import covector, with_covectors
from heretic.directions.difference import difference
from heretic.exceptions import ExtractionError, SacredDirectionError

L, D, N = 2, 32, 400


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def benign(count: int, seed: int = 0, width: int = D) -> Tensor:
    """[count, L, width], variances falling as 1 / index along random axes, about a mean of its own."""
    rows = torch.randn(count, L, width, generator=generator(seed)) * torch.arange(1, width + 1) ** -0.5
    axes, _ = torch.linalg.qr(torch.randn(width, width, generator=generator(5)))
    return torch.as_tensor(rows @ axes + axes[0] + axes[3] + axes[-1])


def orthonormal(count: int, seed: int = 6, width: int = D) -> Tensor:
    """[L, count, width]"""
    basis, _ = torch.linalg.qr(torch.randn(L, width, count, generator=generator(seed)))
    return torch.as_tensor(basis.transpose(1, 2).contiguous())


def planted(count: int = N, width: int = D) -> Contrast:
    gap = 3 * orthonormal(1, width=width)[:, 0]
    return Contrast(benign(count, 1, width) + gap, benign(count, 2, width))


def bank_of(rows: Tensor) -> DirectionBank:
    return DirectionBank(rows, torch.ones(rows.shape[:2]), provenance={"method": "made"})


def readings(bank: DirectionBank) -> Tensor:
    assert bank.covectors is not None
    return bank.covectors


def edited(bank: DirectionBank, vectors: Tensor) -> Tensor:
    """x - R DT x of vectors [.., L, d]."""
    read, removed = readings(bank).to(vectors), bank.directions.to(vectors)
    return vectors - torch.einsum(
        "...lk,lkd->...ld", torch.einsum("...ld,lkd->...lk", vectors, read), removed
    )


def damage(bank: DirectionBank, vectors: Tensor) -> Tensor:
    """Mean square change of vectors [n, L, d] about their mean, per layer."""
    centred = vectors - vectors.mean(dim=0)
    return (edited(bank, centred) - centred).square().sum(dim=2).mean(dim=0)


def orthogonal(bank: DirectionBank) -> DirectionBank:
    return replace(bank, covectors=bank.directions)


@pytest.mark.parametrize("width", [D, 2 * N])
def test_each_covector_reads_its_own_direction_only(width: int) -> None:
    """DT R = I for one and for several directions; control: unscaled Sigma^-1 R does not have it."""
    for rows in (orthonormal(1, width=width), orthonormal(3, width=width)):
        bank = with_covectors(bank_of(rows), benign(N, width=width))
        products = readings(bank) @ bank.directions.transpose(1, 2)
        assert torch.allclose(products, torch.eye(rows.shape[1]).expand(L, -1, -1), atol=1e-5)
        assert torch.equal(bank.directions, rows), "without protection R stays bit for bit"
        assert not torch.allclose(readings(bank), rows, atol=0.05), "control: they are not the directions"
        assert bank.provenance["method"] == "made"


def test_rows_that_a_layer_does_not_use_stay_zero() -> None:
    rows = orthonormal(2)
    rows[1, 1] = 0.0
    bank = with_covectors(bank_of(rows), benign(N))
    assert not bool(readings(bank)[1, 1].any())
    assert bool(readings(bank)[0, 1].any())
    alone = with_covectors(bank_of(rows[:, :1]), benign(N))
    assert torch.allclose(readings(alone)[1, 0], readings(bank)[1, 0], atol=1e-6)
    assert bank.provenance["dropped"] == []


def test_it_is_the_least_squares_eraser_and_the_discriminant() -> None:
    """LEACE by whitening with the total covariance = LDA with the one within classes, 1e-5; control: other classes."""
    contrast = planted()
    bank = covector(contrast, shrinkage=0.0, project=False)
    for layer in range(L):
        target, control = contrast.at(layer)
        gap = target.mean(dim=0) - control.mean(dim=0)
        pool = torch.cat([target, control])
        total = torch.cov(pool.T, correction=0)
        values, vectors = torch.linalg.eigh(total)
        white, colour = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
        unit = torch.nn.functional.normalize(white @ gap, dim=0)
        eraser = torch.eye(D) - colour @ torch.outer(unit, unit) @ white
        ours = torch.eye(D) - torch.outer(bank.directions[layer, 0], readings(bank)[layer, 0])
        assert float((ours - eraser).norm()) < 1e-5
        within = torch.cov(torch.cat([target - target.mean(dim=0), control - control.mean(dim=0)]).T)
        discriminant = torch.linalg.solve(within, gap)
        cosine = torch.nn.functional.cosine_similarity(discriminant, readings(bank)[layer, 0].double(), dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-8)
        assert float((ours - torch.eye(D) + torch.outer(*bank.directions[layer, [0, 0]])).norm()) > 0.1


def test_the_class_means_are_equal_after_the_edit() -> None:
    """Without projection the gap is gone; control: erasing what is read instead leaves some of it."""
    contrast = planted()
    bank = covector(contrast, project=False)
    target, control = contrast.means()
    gap = target - control
    assert float(edited(bank, gap).norm() / gap.norm()) < 1e-5
    read = unit_rows(readings(bank))
    swapped = replace(bank, directions=read, covectors=read)
    assert float(edited(swapped, gap).norm() / gap.norm()) > 0.1


def test_with_projection_the_control_mean_stays_and_only_the_gap_along_it_is_left() -> None:
    """As section 3.1 (a) and (b); control: a covector that may read the control mean moves it."""
    contrast = planted()
    contrast = replace(contrast, target=contrast.target + 0.5 * contrast.control.mean(dim=0))
    bank = covector(contrast)
    target, control = contrast.means()
    assert float((edited(bank, control) - control).norm() / control.norm()) < 1e-6
    unit = unit_rows(control)
    gap = target - control
    along = unit * (unit * gap).sum(dim=1, keepdim=True)
    assert float((edited(bank, gap) - along).norm() / gap.norm()) < 1e-5
    free = with_covectors(difference(contrast), contrast)
    assert float((edited(free, control) - control).norm() / control.norm()) > 1e-2
    assert torch.equal(bank.directions, difference(contrast).directions)


@pytest.mark.parametrize("project", [False, True])
def test_held_out_benign_text_is_damaged_less_than_by_the_orthogonal_edit(project: bool) -> None:
    """Section 3.6, also with few samples; control: with rho = 0 and hardly more samples than dimensions it is not."""
    width, held_out = 64, benign(4000, 11, 64)
    for count in (16, width // 2 + 2, 1000):
        contrast = planted(count, width)
        bank = covector(contrast, project=project)
        less = damage(bank, held_out) / damage(orthogonal(bank), held_out)
        assert float(less.max()) < (0.7 if count == 1000 else 1.0)
    contrast = planted(width // 2 + 2, width)
    bank = covector(contrast, shrinkage=0.0, project=project)
    assert float((damage(bank, held_out) / damage(orthogonal(bank), held_out)).min()) > 1.5
    rhos = covector(contrast).provenance["shrinkage"]
    assert isinstance(rhos, list)
    assert all(0.05 < rho < 0.95 for rho in rhos)
    fixed = covector(contrast, shrinkage=1.0, project=project)
    assert torch.allclose(readings(fixed), fixed.directions, atol=1e-5), "all shrunk: nothing but R is read"


def test_nothing_that_reads_its_direction_varies_less_on_the_same_text() -> None:
    """Minimality: any other D + e with e . r = 0 (and e . s = 0) has a larger variance."""
    samples, rows, sacred = benign(N), orthonormal(3)[:, :1], orthonormal(3)[:, 1:]
    centred = samples - samples.mean(dim=0)
    for protected in (None, sacred):
        bank = with_covectors(bank_of(rows), samples, shrinkage=0.0, protected=protected)
        kept = rows if protected is None else torch.cat([rows, protected], dim=1)
        least = torch.einsum("nld,ld->nl", centred, readings(bank)[:, 0]).square().mean(dim=0)
        for seed in range(5):
            other = torch.randn(L, D, generator=generator(20 + seed))
            other = other - torch.einsum("lk,lkd->ld", torch.einsum("ld,lkd->lk", other, kept), kept)
            moved = readings(bank)[:, 0] + 0.05 * other
            assert bool(
                (torch.einsum("nld,ld->nl", centred, moved).square().mean(dim=0) > least * 1.0001).all()
            )


def test_activity_in_the_protected_span_triggers_nothing_and_never_changes() -> None:
    """LCMV: DT S = 0, ST y' = ST y, DT R = I; control: the orthogonal edit moves both."""
    both = orthonormal(4)
    sacred = both[:, :2]
    tilted = both[:, 2:].clone()
    tilted[:, 0] = 0.8 * both[:, 2] + 0.6 * both[:, 0]  # not free of S
    bank = with_covectors(bank_of(tilted), benign(N), protected=sacred)
    inputs = torch.randn(50, L, D, generator=generator(3))

    def coordinates(vectors: Tensor) -> Tensor:
        return torch.einsum("nld,lpd->nlp", vectors, sacred)

    inside = torch.einsum("nlp,lpd->nld", coordinates(inputs), sacred)
    plain = orthogonal(bank_of(tilted))
    assert float((edited(bank, inside) - inside).norm() / inside.norm()) < 1e-6
    assert float((edited(plain, inside) - inside).norm() / inside.norm()) > 0.3
    moved = coordinates(edited(bank, inputs)) - coordinates(inputs)
    assert float(moved.abs().max()) < 1e-5
    assert float((coordinates(edited(plain, inputs)) - coordinates(inputs)).abs().max()) > 0.3
    products = readings(bank) @ bank.directions.transpose(1, 2)
    assert torch.allclose(products, torch.eye(2).expand(L, -1, -1), atol=1e-5)
    gram = bank.directions @ bank.directions.transpose(1, 2)
    assert torch.allclose(gram, torch.eye(2).expand(L, -1, -1), atol=1e-6)
    assert float((bank.directions[:, 0] * both[:, 2]).sum(dim=1).min()) > 0.999, "what is left of the first"
    free = with_covectors(bank_of(both[:, 2:]), benign(N))
    assert float((edited(free, inside) - inside).norm() / inside.norm()) > 0.05, "control: without S"


def test_the_protected_rows_of_a_contrast_are_used() -> None:
    contrast = planted().guarded(orthonormal(2, seed=8))
    for project in (False, True):
        bank = covector(contrast, project=project)
        for rows in (bank.directions, readings(bank)):
            assert float((rows @ orthonormal(2, seed=8).transpose(1, 2)).abs().max()) < 1e-5
    free = covector(planted())
    assert float((readings(free) @ orthonormal(2, seed=8).transpose(1, 2)).abs().min()) > 1e-3, "control"
    # The control mean may itself be protected: it is one constraint, not two.
    mean = unit_rows(planted().means()[1]).float()[:, None]
    same = covector(planted().guarded(mean))
    assert torch.allclose(readings(same), readings(free), atol=1e-4)


def test_directions_in_the_protected_span_are_an_error_with_the_condition() -> None:
    sacred = orthonormal(3)
    inside = unit_rows(sacred[:, :1] + sacred[:, 1:2])
    with pytest.raises(
        SacredDirectionError, match=r"layer 0 .* condition of both together is (\d\.\de\+\d\d|inf)"
    ):
        with_covectors(bank_of(inside), benign(N), protected=sacred)
    outside = unit_rows(sacred[:, :1] + 0.01 * orthonormal(4)[:, 3:])
    kept = with_covectors(bank_of(outside), benign(N), protected=sacred)
    assert float((readings(kept) * kept.directions).sum(dim=2).min()) == pytest.approx(1.0, abs=1e-4)
    mean = unit_rows(benign(N).mean(dim=0))
    with pytest.raises(SacredDirectionError) as caught:
        with_covectors(bank_of(mean[:, None]), benign(N), unmoved=mean)
    assert "projection against the control mean" in str(caught.value.hint)


def test_impossible_shrinkage_and_texts_that_do_not_vary() -> None:
    bank = bank_of(orthonormal(1))
    for wrong in (-0.1, 1.5):
        with pytest.raises(ExtractionError, match=f"not {wrong:g}"):
            with_covectors(bank, benign(N), shrinkage=wrong)
    with pytest.raises(ExtractionError, match=r"layer 0 has no inverse at a shrinkage of 0\.0"):
        with_covectors(bank, benign(D // 2), shrinkage=0.0)
    still = with_covectors(bank, benign(1).expand(20, -1, -1))
    assert torch.allclose(readings(still), bank.directions, atol=1e-6)
    assert still.provenance["shrinkage"] == [1.0, 1.0]
    with pytest.raises(ExtractionError):
        covector(Contrast(planted().control, planted().control))
    assert METHODS["covector"] is covector
