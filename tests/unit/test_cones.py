# SPDX-License-Identifier: Apache-2.0
"""Concept cones: categories of prompts, and the span that covers each of their directions (algorithms 3.7)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.cones import (
    COVERED,
    Clusters,
    cluster_prompts,
    cone_bank,
    cone_report,
    cones,
    covering_basis,
)
from heretic.directions.contrast import METHODS, Contrast, unit_rows
from heretic.directions.difference import difference
from heretic.exceptions import ConceptConeError, ExtractionError
from heretic.interventions.edit import Edit, ablation
from heretic.linalg.lowrank import project_out

L, D = 4, 64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def axes(seed: int = 0) -> Tensor:
    """Orthonormal rows [D, D]: 0 ordinary activity, 1.. the directions of clusters, from 20 on free ones."""
    columns: Tensor = torch.linalg.qr(torch.randn(D, D, generator=generator(seed))).Q
    return columns.T.contiguous()


def planted(sizes: tuple[int, ...], *, signal: float = 12.0, shared: float = 4.0) -> tuple[Contrast, Tensor]:
    """(contrast, true label of each prompt): cluster c leaves the control mean along axis 1 + c, all along axis 20."""
    rows, source = axes(), generator(1)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    moved = signal * rows[1 + labels] + shared * rows[20]
    target = torch.randn(len(labels), L, D, generator=source) + 30 * rows[0] + moved[:, None]
    return Contrast(target, torch.randn(80, L, D, generator=source) + 30 * rows[0]), labels


def mapped(labels: Tensor, true: Tensor) -> bool:
    """True where the two partitions are the same."""
    pairs = set(zip(labels.tolist(), true.tolist(), strict=True))
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def clustered(contrast: Contrast, categories: Sequence[str] | None = None) -> Clusters:
    """With the default settings."""
    return cluster_prompts(contrast, count=5, minimum=10, floor=0.1, seed=0, categories=categories)


def outside(rows: Tensor, basis: Tensor) -> Tensor:
    """Length of unit rows [n, d] outside the orthonormal basis [k, d]."""
    lengths: Tensor = project_out(rows.double(), basis.double().T).norm(dim=1)
    return lengths


def gaps(contrast: Contrast, true: Tensor, layer: int) -> Tensor:
    """Difference of each cluster [C, d] from the control mean."""
    target, control = contrast.at(layer)
    return torch.stack([target[true == c].mean(0) for c in true.unique()]) - control.mean(0)


def applied(edit: Edit, rows: Tensor) -> Tensor:
    """The edit of a residual-side reading on rows [n, d]."""
    assert edit.read is not None
    return rows + (rows @ edit.read) @ edit.left.T


def removal(rows: Tensor, strength: float = 1.0) -> Edit:
    return ablation(rows.double(), torch.full((len(rows),), strength, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [(40, 40), (40, 30, 20), (70, 12)])
def test_planted_categories_are_found_whatever_their_number_and_every_one_is_covered(
    sizes: tuple[int, ...],
) -> None:
    """R-CON-05: at most five are asked for, as many as there are come out; control: one cluster is not cut in two."""
    contrast, true = planted(sizes)
    clusters = clustered(contrast)
    assert mapped(clusters.labels, true)
    assert clusters.sizes == tuple(sorted(sizes, reverse=True))
    assert clusters.silhouette > 0.2 and min(clusters.silhouettes) > 0.2 and clusters.layer == L // 2
    bank = cones(contrast)
    assert bank.directions.shape == (L, len(sizes), D)
    for layer in range(L):
        assert float(outside(unit_rows(gaps(contrast, true, layer)), bank.directions[layer]).max()) < 0.25
        own = bank.directions[layer].double()
        assert torch.allclose(own @ own.T, torch.eye(len(sizes), dtype=torch.float64), atol=1e-6)
    with pytest.raises(ConceptConeError, match=r"silhouette 0\.0\d\d with 2 clusters at layer 2"):
        clustered(planted((80,))[0])


def test_prompts_are_grouped_by_direction_and_not_by_strength_or_by_one_loud_channel() -> None:
    """Prompts that show the behaviour from faintly to fiercely, and one channel of large noise that has nothing to do
    with it; control: k-means on the rows as they are forms other groups."""
    contrast, true = planted((40, 40), shared=24.0)
    strength = 0.5 + 4 * torch.rand(80, generator=generator(6))[:, None, None]
    moved = strength * (contrast.target - 30 * axes()[0]) + 30 * axes()[0]
    loud = torch.zeros(80, 1, D)
    loud[:, 0, 3] = 300 * torch.randn(80, generator=generator(8))
    far = 300 * axes()[0]
    for changed in (moved, contrast.target + loud):
        away = Contrast(changed + far, contrast.control + far)
        assert mapped(clustered(replace(contrast, target=changed)).labels, true)
        assert mapped(clustered(away).labels, true), "the control mean is where directions start"
        raw = (changed[:, L // 2] - contrast.control[:, L // 2].mean(dim=0)).numpy()
        plain = KMeans(2, n_init=10, random_state=0).fit(raw).labels_
        assert not mapped(torch.as_tensor(plain), true)


def test_the_behaviour_falls_in_every_category_and_shares_or_one_direction_do_not_do_it() -> None:
    """The class gap left along each cluster's own difference; controls: cluster 1 alone, and shares of the strength."""
    contrast, true = planted((40, 40, 40))
    bank = cones(contrast)
    kept = axes()[:1].double().T
    for layer in range(L):
        rows = project_out(gaps(contrast, true, layer), kept)
        rows = rows / rows.norm(dim=1, keepdim=True)
        left = applied(removal(bank.directions[layer]), rows).norm(dim=1)
        assert float(left.max()) < COVERED
        alone = applied(removal(rows[:1]), rows).norm(dim=1)
        assert float(alone[0]) < 1e-6 and float(alone[1:].min()) > 0.9
    same = unit_rows(torch.randn(1, D, dtype=torch.float64, generator=generator(5)))
    shared = reduce(lambda first, then: then.after(first), [removal(same, 1 / 5) for _ in range(5)])
    assert float(applied(shared, same).norm()) == pytest.approx(0.8**5)


def test_equal_clusters_need_one_direction() -> None:
    """Five copies of the same prompts under five names; control: five different ones need five."""
    contrast, _ = planted((20,))
    copied = replace(contrast, target=contrast.target.repeat(5, 1, 1))
    names = [name for name in "abcde" for _ in range(20)]
    bank = cones(copied, categories=names)
    assert bank.directions.shape == (L, 1, D)
    assert torch.allclose(bank.directions, difference(contrast).directions, atol=1e-5)
    different, _ = planted((20,) * 5)
    assert cones(different, categories=names).components == 5


def test_the_basis_covers_every_row_and_a_share_of_the_energy_does_not() -> None:
    """max_c |u_c - Q QT u_c| <= 0.2 with the fewest vectors; control: 95 % of the energy leaves more than that."""
    source = generator(2)
    common = unit_rows(torch.randn(1, D, dtype=torch.float64, generator=source))
    rows = unit_rows(common + 0.04 * torch.randn(12, D, dtype=torch.float64, generator=source))
    first = unit_rows(rows.mean(dim=0))
    basis = covering_basis(first, rows)
    assert float(outside(rows, basis).max()) <= COVERED < float(outside(rows, basis[:-1]).max())
    assert torch.equal(basis[0], first)
    loads = rows @ basis[1:].T
    assert bool((loads.gather(0, loads.abs().argmax(dim=0)[None]) > 0).all()), (
        "with the row that has most of it"
    )
    values, vectors = torch.linalg.svd(rows)[1:]
    energy = values.square().cumsum(0) / values.square().sum()
    enough = int((energy < 0.95).sum()) + 1
    assert enough < len(basis) and float(outside(rows, vectors[:enough]).max()) > 0.2


def test_the_basis_does_not_depend_on_the_order_or_number_of_equal_rows() -> None:
    source = generator(3)
    rows = unit_rows(torch.randn(5, D, dtype=torch.float64, generator=source))
    first = unit_rows(rows[0])
    basis = covering_basis(first, rows)
    for other in (rows.flip(0), rows[torch.randperm(5, generator=source)], rows.repeat(7, 1)):
        found = covering_basis(first, other)
        assert torch.allclose(found.T @ found, basis.T @ basis, atol=1e-10)
    assert len(covering_basis(first, rows[:0])) == len(covering_basis(first, first[None])) == 1
    assert float(outside(rows, covering_basis(first, rows[:4])).max()) > 0.5, "control: each row matters"


def test_the_result_turns_with_the_space_and_ignores_the_order_of_prompts() -> None:
    """Section 3.0 on a contrast that has clusters."""
    contrast, _ = planted((30, 25, 25))
    bank = cones(contrast)
    order = torch.randperm(80, generator=generator(7))
    shuffled = replace(contrast, target=contrast.target[order], control=contrast.control.flip(0))
    assert torch.allclose(cones(shuffled).directions, bank.directions, atol=1e-5)
    assert torch.equal(clustered(shuffled).labels, clustered(contrast).labels[order])
    turn = axes(9)
    turned = Contrast(contrast.target @ turn, contrast.control @ turn)
    assert torch.allclose(cones(turned).directions, bank.directions @ turn, atol=1e-4)
    assert not torch.allclose(cones(turned).directions, bank.directions, atol=1e-2), "control"


def test_component_zero_is_the_difference_of_all_prompts_and_spreads_mark_what_is_there() -> None:
    """R-DIR-02; a layer in which the clusters leave along one direction has one component and a zero row."""
    contrast, true = planted((40, 40))
    target = contrast.target.clone()
    target[:, 0] += 12 * (axes()[20] - axes()[1 + true])
    bank = cones(replace(contrast, target=target), per_cone=1)
    whole = difference(replace(contrast, target=target))
    assert torch.allclose(bank.directions[:, :1], whole.directions, atol=1e-6)
    assert torch.equal(bank.spread[:, :1], whole.spread)
    assert [bank.count_at(layer) for layer in range(L)] == [1, 2, 2, 2]
    assert not bank.directions[0, 1].any()
    # Two clusters at +-6 from their common middle, plus noise of 1.
    assert float(bank.spread[1:, 1].min()) > 12 / 2**0.5 * 0.9
    json.dumps(bank.provenance)
    assert bank.provenance["components"] == [1, 2, 2, 2]


def test_a_further_direction_counts_when_held_out_prompts_confirm_it() -> None:
    """One cluster also varies along axis 30 in either sign; controls: one direction per cluster, and no plant."""
    contrast, true = planted((60, 40))
    signs = torch.randint(0, 2, (60,), generator=generator(4)) * 2.0 - 1
    target = contrast.target.clone()
    target[:60] += 9 * signs[:, None, None] * axes()[30]
    varied = replace(contrast, target=target)
    names = [str(int(label)) for label in true]
    bank = cones(varied, categories=names, per_cone=2)
    assert bank.components == 3 and float(outside(axes()[30:31], bank.directions[1]).max()) < 0.2
    assert cones(varied, categories=names, per_cone=1).components == 2
    assert cones(contrast, categories=names, per_cone=2).components == 2
    middles = torch.stack([contrast.target[true == label].mean(dim=0) for label in (0, 1)])
    alike = replace(contrast, target=middles[true])
    assert cones(alike, categories=names, per_cone=2).components == 2, "no variation, no further direction"


def test_a_cluster_that_does_not_differ_in_a_layer_adds_no_noise_there() -> None:
    contrast, true = planted((40, 40), shared=0.0)
    target = contrast.target.clone()
    target[40:, 0] -= 12 * axes()[2]
    changed = replace(contrast, target=target)
    assert cones(changed, categories=[str(int(label)) for label in true]).provenance["components"] == [
        1,
        2,
        2,
        2,
    ]


def test_protected_directions_stay_out_of_every_component() -> None:
    """The cluster whose whole difference is protected has nothing left to remove, the two others keep theirs."""
    contrast, _ = planted((40, 40, 40))
    protected = axes()[None, [1, 20]].repeat(L, 1, 1)
    bank = cones(contrast.guarded(protected))
    assert bank.components == 2
    assert float((bank.directions @ protected.mT).abs().max()) < 1e-6
    assert float((cones(contrast).directions @ protected.mT).abs().max()) > 0.5, "control"


def test_the_control_mean_is_kept_only_when_it_is_projected() -> None:
    contrast, _ = planted((40, 40))
    tilted = replace(contrast, target=contrast.target + 20 * axes()[0])
    mean = unit_rows(tilted.means()[1])[:, :, None].float()
    assert float((cones(tilted).directions @ mean).abs().max()) < 1e-6
    assert float((cones(tilted, project=False).directions @ mean).abs().max()) > 0.5


def test_given_categories_are_used_and_small_ones_join_their_nearest() -> None:
    """The floor of the silhouette guards against invented clusters; given ones are the caller's word."""
    contrast, true = planted((40, 30, 4))
    names = [("fraud", "weapons", "weapons, chemical")[int(label)] for label in true]
    target = contrast.target.clone()
    target[70:] += 12 * axes()[2] - 6 * axes()[3]
    clusters = clustered(replace(contrast, target=target), names)
    assert clusters.names == ("fraud", "weapons + weapons, chemical") and clusters.sizes == (40, 34)
    assert not clusters.found
    mixed = clustered(contrast, ["a", "b"] * 37)
    assert mixed.silhouette < 0.1 and mixed.sizes == (37, 37)
    turned = clustered(planted((20, 40, 30))[0], ["a"] * 20 + ["b"] * 40 + ["c"] * 30)
    assert turned.names == ("b", "c", "a")
    assert turned.labels.tolist() == [2] * 20 + [0] * 40 + [1] * 30
    with pytest.raises(ConceptConeError, match=r"2 categories for 74"):
        clustered(contrast, ["a", "b"])
    with pytest.raises(ConceptConeError, match=r"'a' 70, 'b' 4"):
        clustered(contrast, ["a"] * 70 + ["b"] * 4)


def test_prompts_without_categories_fall_back_with_the_reason_or_fail_when_strict() -> None:
    contrast, _ = planted((80,))
    bank = cones(contrast)
    assert torch.equal(bank.directions, difference(contrast).directions)
    assert bank.provenance["method"] == "cones" and "silhouette 0.0" in str(bank.provenance["degraded"])
    with pytest.raises(ConceptConeError, match="silhouette"):
        cones(contrast, strict=True)
    assert "degraded" not in cones(planted((40, 40))[0], strict=True).provenance, "control"
    same = Contrast(contrast.target[:1].repeat(30, 1, 1), contrast.control)
    few = planted((8, 8))[0]
    for case in (same, few):
        with pytest.raises(ConceptConeError, match="Fewer than two categories of at least 10"):
            cones(case, strict=True)
    with pytest.raises(ExtractionError, match="same residuals"):
        cones(replace(few, control=few.target))


def test_the_report_gives_rates_per_cone_and_places_other_prompts() -> None:
    """Before and after, by hand; held-out prompts go to the cluster they were drawn from."""
    contrast, true = planted((40, 20, 20))
    clusters = clustered(contrast)
    assert torch.equal(clusters.assign(contrast.target), clusters.labels)
    before, after = torch.ones(80, dtype=torch.bool), torch.zeros(80, dtype=torch.bool)
    after[:10] = True
    report = cone_report(clusters, before, after)
    assert [(rate.size, rate.before, rate.after) for rate in report] == [
        (40, 1, 0.25),
        (20, 1, 0),
        (20, 1, 0),
    ]
    held_out = planted((40, 20, 20))[0].target[torch.arange(79, 39, -1)]
    labels = clusters.assign(held_out + 0.1)
    assert torch.equal(labels, clusters.labels[torch.arange(79, 39, -1)])
    rates = cone_report(clusters, before[:40], after[:40], labels=labels)
    assert [(rate.name, rate.size, rate.after) for rate in rates] == [
        ("cluster 2", 20, 0.5 if int(labels[0]) == 1 else 0.0),
        ("cluster 3", 20, 0.5 if int(labels[0]) == 2 else 0.0),
    ]


def test_cones_is_registered_and_takes_known_clusters() -> None:
    contrast, _ = planted((40, 40))
    bank = METHODS["cones"](contrast)
    clusters = clustered(contrast)
    again: DirectionBank = cone_bank(contrast, clusters, difference(contrast), per_cone=2)
    assert torch.equal(again.directions, bank.directions)
