# SPDX-License-Identifier: Apache-2.0
"""Blending directions of several methods (algorithms 3.5, requirements 5.3)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast, unit_rows
from heretic.directions.difference import difference
from heretic.directions.ensemble import ensemble, ensemble_of
from heretic.directions.probe import probe
from heretic.exceptions import ExtractionError, SupervisedProbeError

L, D, N = 3, 32, 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank(rows: Tensor, spread: float = 2.0) -> DirectionBank:
    return DirectionBank(unit_rows(rows)[:, None], torch.full((L, 1), spread), provenance={"method": "made"})


def around(centre: Tensor, share: float, seed: int) -> DirectionBank:
    """Directions of cosine `share` with the centre [L, D]."""
    other = torch.randn(L, D, generator=generator(seed))
    other = unit_rows(other - centre * (other * centre).sum(dim=1, keepdim=True))
    return bank(share * centre + math.sqrt(1 - share**2) * other)


@pytest.fixture
def centre() -> Tensor:
    return unit_rows(torch.randn(L, D, generator=generator()))


def flipped(member: DirectionBank, layer: int | None = None) -> DirectionBank:
    signs = torch.ones(L, 1, 1)
    signs[slice(None) if layer is None else layer] = -1.0
    return replace(member, directions=member.directions * signs)


def test_flipping_the_sign_of_a_member_changes_nothing(centre: Tensor) -> None:
    """Section 3.5; control: summed without alignment, the result turns by more than 20 degrees."""
    members, reference = [around(centre, 0.7, 1), around(centre, 0.8, 2)], bank(centre)
    weights = (0.6, 0.4)
    plain = ensemble_of(members, weights, reference)
    assert plain.directions.shape == (L, 1, D)
    for place in (0, 1):
        for layer in (None, 1):
            turned = list(members)
            turned[place] = flipped(members[place], layer)
            assert torch.equal(ensemble_of(turned, weights, reference).directions, plain.directions)
    unaligned = unit_rows(-0.6 * members[0].directions[:, 0] + 0.4 * members[1].directions[:, 0])
    cosines = (unaligned * plain.directions[:, 0]).sum(dim=1)
    assert float(cosines.abs().max()) < math.cos(math.radians(20))
    against = ensemble_of(members, weights, flipped(reference))
    assert torch.equal(against.directions, -plain.directions), "the reference gives the sign"


def test_equal_members_return_themselves_and_weights_count(centre: Tensor) -> None:
    member = around(centre, 0.7, 1)
    same = ensemble_of([member, member, flipped(member)], (0.5, 0.3, 0.2), bank(centre))
    assert torch.allclose(same.directions, member.directions, atol=1e-6)
    assert torch.allclose(same.spread, torch.full((L, 1), 2.0 * 0.7), atol=1e-5), "as far as it lies along"
    other = around(centre, 0.8, 2)
    for weight in (0.0, 0.3, 1.0):
        blend = ensemble_of([member, other], (weight, 1 - weight), bank(centre)).directions[:, 0]
        expected = unit_rows(weight * member.directions[:, 0] + (1 - weight) * other.directions[:, 0])
        assert torch.allclose(blend, expected, atol=1e-6)
    assert not torch.allclose(member.directions, other.directions, atol=0.1), "control"


def test_a_member_unlike_the_reference_becomes_a_further_component(centre: Tensor) -> None:
    """|cos| < 0.1 in layer 1 only: orthonormal there, zero rows elsewhere; control: at 0.2 it is blended."""
    near, far, at_limit = (around(centre, share, 3) for share in (0.7, 0.05, 0.2))
    rows = near.directions.clone()
    rows[1] = far.directions[1]
    result = ensemble_of(
        [bank(centre), DirectionBank(rows, near.spread * 3)], (0.5, 0.5), bank(centre, spread=5.0)
    )
    assert result.directions.shape == (L, 2, D)
    gram = result.directions @ result.directions.transpose(1, 2)
    assert torch.allclose(gram[1], torch.eye(2), atol=1e-6)
    assert torch.allclose(result.directions[1, 0], centre[1], atol=1e-6), "not blended"
    assert not bool(result.directions[[0, 2], 1].any())
    assert not bool(result.spread[[0, 2], 1].any())
    assert float(result.spread[1, 1]) == 6.0
    assert result.provenance["appended"] == [[1, 1]]
    rows[1] = at_limit.directions[1]
    blended = ensemble_of([bank(centre), DirectionBank(rows, near.spread)], (0.5, 0.5), bank(centre))
    assert blended.components == 1
    ignored = ensemble_of([bank(centre), far], (1.0, 0.0), bank(centre))
    assert ignored.components == 1, "without weight it is not there"


def test_an_appended_member_keeps_its_sign_when_flipped(centre: Tensor) -> None:
    far = around(centre, 0.05, 3)
    exact = torch.zeros(L, D)
    exact[:, 1] = 1.0
    first = torch.zeros(L, D)
    first[:, 0] = 1.0
    for reference, member in ((centre, far), (first, bank(exact))):
        results = [
            ensemble_of([bank(reference), other], (0.5, 0.5), bank(reference)).directions
            for other in (member, flipped(member))
        ]
        assert results[0].shape == (L, 2, D)
        assert torch.equal(*results)


def test_impossible_weights_and_members_without_a_likeness_are_errors(centre: Tensor) -> None:
    member = around(centre, 0.7, 1)
    for weights in ((0.7, 0.7), (1.5, -0.5)):
        with pytest.raises(ExtractionError, match=f"{weights[0]:g}, {weights[1]:g}"):
            ensemble_of([member, member], weights, bank(centre))
    ensemble_of([member, member], (0.7, 0.305), bank(centre))
    with pytest.raises(ExtractionError, match=r"layer 0: the cosines are 0\.05"):
        ensemble_of([around(centre, 0.05, 3)], (1.0,), bank(centre))


def planted(*, showed: bool = True) -> tuple[Contrast, Tensor, Tensor]:
    """Prompts on a topic that half of the time show a behaviour; (contrast, behaviour, topic)."""
    basis, _ = torch.linalg.qr(torch.randn(D, 3, generator=generator(7)))
    ordinary, behaviour, topic = basis.T
    rows = torch.randn(2, N, L, D, generator=generator(1))
    target = rows[0] + 4 * ordinary + 4 * topic
    target[: N // 2] += 5 * behaviour
    labels = torch.arange(N) < N // 2 if showed else None
    return Contrast(target, rows[1] + 4 * ordinary, showed=labels), behaviour, topic


def test_the_ensemble_lies_between_the_probe_and_the_difference() -> None:
    """R-PRB-05: nearer to the behaviour than the difference; control: with all weight on the difference it is it."""
    contrast, behaviour, _ = planted()
    result = ensemble(contrast)
    pattern, base = probe(contrast), difference(contrast)
    along = [float((found.directions[:, 0] @ behaviour).mean()) for found in (base, result, pattern)]
    assert along[0] + 0.1 < along[1] < along[2]
    expected = unit_rows(0.7 * pattern.directions[:, 0] + 0.3 * base.directions[:, 0])
    assert torch.allclose(result.directions[:, 0], expected, atol=1e-6)
    assert result.provenance["label_source"] == "replies"
    assert result.covectors is None
    only = ensemble(contrast, weight_probe=0.0, weight_components=1.0)
    assert torch.allclose(only.directions, base.directions, atol=1e-6)
    assert ensemble(planted(showed=False)[0]).provenance["label_source"] == "classes"
    assert METHODS["ensemble"] is ensemble


def test_the_ensemble_is_free_of_what_is_protected_and_passes_the_floor_on() -> None:
    contrast, _, topic = planted()
    protected = topic[None, None].expand(L, 1, D)
    result = ensemble(contrast.guarded(protected))
    assert float((result.directions @ topic).abs().max()) < 1e-6
    assert float((ensemble(contrast).directions[:, 0] @ topic).min()) > 0.1, "control"
    with pytest.raises(SupervisedProbeError, match=r"floor of 1\.01"):
        ensemble(contrast, floor=1.01)
    with pytest.raises(SupervisedProbeError, match="no replies"):
        ensemble(planted(showed=False)[0], strict=True)
