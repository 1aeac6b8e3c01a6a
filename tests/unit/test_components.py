# SPDX-License-Identifier: Apache-2.0
"""Components of a behaviour and their strengths (algorithms 3.1 to 3.3, 3.9; requirements R-DIR-02, R-DIR-03)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.components import (
    WeightMethod,
    component_weights,
    components,
    contrastive,
    leading_axes,
)
from heretic.directions.contrast import Contrast, unit_rows
from heretic.directions.difference import difference
from heretic.exceptions import ExtractionError
from heretic.interventions.edit import ablation
from heretic.linalg.lowrank import orthonormal_columns, project_out
from heretic.testing.directions import Planted, planted_contrast

Method = Callable[..., DirectionBank]
BOTH = pytest.mark.parametrize("method", [components, contrastive])


def cosines(rows: Tensor, wanted: Tensor) -> Tensor:
    """|cos| [L] between rows [L, d] and unit rows [L, d]."""
    return (rows.double() * wanted).sum(dim=1).abs()


def dense(
    planted: Planted, layer: int, alpha: float, *, centred: bool, project: bool = True
) -> tuple[Tensor, Tensor]:
    """(eigenvalues, eigenvectors as rows) of the d x d moment, with everything formed by the book."""
    target, control = planted.contrast.at(layer)
    first = difference(planted.contrast, project=project).directions[layer].double()
    protected = planted.contrast.protected_at(layer)
    gone = torch.cat(
        [first, *([control.mean(dim=0)[None]] * project), *([] if protected is None else [protected])]
    )
    outside = torch.eye(target.shape[1], dtype=torch.float64) - torch.linalg.pinv(gone) @ gone
    rows = (target - (target if centred else control).mean(dim=0)) @ outside
    benign = (control - control.mean(dim=0)) @ outside
    moment = rows.T @ rows / (len(rows) - 1) - alpha * benign.T @ benign / (len(benign) - 1)
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0), vectors.T.flip(0)


@BOTH
def test_a_second_direction_of_varying_sign_is_found(method: Method) -> None:
    """Section 3.2: cosine above 0.98; controls: the difference does not see it, nothing planted gives no such axis."""
    planted = planted_contrast(second=6.0, prompts=200)
    bank = method(planted.contrast, count=2)
    assert float(cosines(bank.directions[:, 0], planted.direction).min()) > 0.99
    assert float(cosines(bank.directions[:, 1], planted.second).min()) > 0.98
    assert torch.allclose(bank.spread[:, 1], torch.full((3,), 6.0), rtol=0.1)
    assert float(cosines(bank.directions[:, 0], planted.second).max()) < 0.2
    plain = planted_contrast(prompts=200)
    assert float(cosines(method(plain.contrast).directions[:, 1], plain.second).max()) < 0.7


@BOTH
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("prompts", [12, 100], ids=["fewer than coordinates", "more than coordinates"])
def test_the_span_gives_what_the_dense_problem_gives(
    method: Method, alpha: float, project: bool, prompts: int
) -> None:
    """Section 3.3, R-PRF-03: the same axes as the d x d eigen-decomposition; control: those of another alpha."""
    planted = planted_contrast(second=4.0, along_mean=3.0, protected=2, prompts=prompts)
    bank = method(planted.contrast, count=5, alpha=alpha, project=project)
    for layer in range(3):
        values, vectors = dense(planted, layer, alpha, centred=method is contrastive, project=project)
        found = bank.directions[layer, 1:].double()
        assert float(values[3]) > 0
        assert (found @ vectors[:4].T).abs() == pytest.approx(torch.eye(4), abs=1e-5)
        _, others = dense(planted, layer, alpha + 1.0, centred=method is contrastive, project=project)
        assert float((found @ others[:4].T).abs().diagonal().min()) < 0.999
        if alpha == 0:
            root = ((prompts - 1) / prompts * values[:4]).sqrt().float()
            assert torch.allclose(bank.spread[layer, 1:], root, rtol=1e-5)


def test_without_the_benign_moment_it_is_an_uncentred_singular_value_decomposition() -> None:
    """Section 3.2 to the letter."""
    planted = planted_contrast(second=4.0)
    bank = components(planted.contrast, count=4, alpha=0.0)
    target, control = planted.contrast.at(1)
    gone = torch.cat([bank.directions[1, :1].double(), unit_rows(control.mean(dim=0))[None]])
    rows = project_out(target - control.mean(dim=0), orthonormal_columns(gone.T)[0])
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    assert (bank.directions[1, 1:].double() @ vectors[:3].T).abs() == pytest.approx(torch.eye(3), abs=1e-5)
    assert torch.allclose(bank.spread[1, 1:].double(), values[:3] / 10, rtol=1e-5)


@BOTH
def test_what_ordinary_prompts_vary_along_is_passed_over(method: Method) -> None:
    """pca_alpha: a benign axis of high variance is chosen at 0 and not at 1."""
    planted = planted_contrast(second=5.0, prompts=400)
    axis = torch.randn(48, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    axis = orthonormal_columns(torch.stack([*planted.direction, *planted.second, axis], dim=1))[0][:, -1]
    topics = 8 * torch.randn(2, 400, 1, 1, generator=torch.Generator().manual_seed(6)) * axis.float()
    contrast = replace(
        planted.contrast,
        target=planted.contrast.target + topics[0],
        control=planted.contrast.control + topics[1],
    )
    with_topics, without = (method(contrast, count=2, alpha=alpha).directions[:, 1] for alpha in (0.0, 1.0))
    assert float((with_topics.double() @ axis).abs().min()) > 0.9
    assert float((without.double() @ axis).abs().max()) < 0.3
    assert float(cosines(without, planted.second).min()) > 0.9


@BOTH
def test_the_control_mean_is_a_fixed_point_of_all_components(method: Method) -> None:
    """Section 3.1 (a) for the span; control: without the projection some of it is removed."""
    contrast = planted_contrast(second=4.0, along_mean=8.0).contrast
    mean = contrast.control.double().mean(dim=0)

    def moved(bank: DirectionBank) -> float:
        edits = [
            ablation(rows.double(), torch.ones(len(rows), dtype=torch.float64)) for rows in bank.directions
        ]
        changes = [
            edit.left @ (edit.read.T @ own)
            for edit, own in zip(edits, mean, strict=True)
            if edit.read is not None
        ]
        return max(float(change.norm() / own.norm()) for change, own in zip(changes, mean, strict=True))

    assert moved(method(contrast)) < 1e-6
    assert moved(method(contrast, project=False)) > 1e-2


def test_the_gap_along_the_control_mean_does_not_return_as_a_component() -> None:
    """Removing component 0 alone leaves m (mT R) in each row, and the decomposition is uncentred: control."""
    planted = planted_contrast(along_mean=8.0)
    bank = components(planted.contrast, count=2)
    assert float(cosines(bank.directions[:, 1], planted.ordinary).max()) < 0.2
    target, control = planted.contrast.at(0)
    rows = project_out(target - control.mean(dim=0), bank.directions[0, :1].double().T)
    axes = leading_axes(rows, torch.full((100,), 0.01, dtype=torch.float64), 1, float(rows.square().sum()))
    assert float((axes[0] @ planted.ordinary[0]).abs()) > 0.9


def test_pairs_cancel_what_both_prompts_share() -> None:
    """Section 3.2, paired data; control: unpaired, the shared content is the first axis found."""
    planted = planted_contrast(second=6.0, prompts=200)
    topics = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(5)) * torch.eye(48)[0] * 30
    contrast = replace(
        planted.contrast, target=planted.contrast.target + topics, control=planted.contrast.control + topics
    )
    paired, unpaired = (components(contrast, count=2, alpha=0.0, paired=value) for value in (True, False))
    assert float(cosines(paired.directions[:, 1], planted.second).min()) > 0.95
    assert float(unpaired.directions[:, 1, 0].abs().min()) > 0.9
    assert torch.equal(paired.directions[:, 0], unpaired.directions[:, 0])
    with pytest.raises(ExtractionError, match="200 and 199"):
        components(replace(contrast, control=contrast.control[:199]), paired=True)
    assert components(replace(contrast, control=contrast.control[:199])).components == 3


def test_contrastive_analysis_is_blind_to_a_shift_of_the_target_class() -> None:
    """Section 3.3: a constant added to the target class changes nothing; control: about the grand mean it does."""
    contrast = planted_contrast(second=4.0).contrast
    shift = 50 * difference(contrast).directions[:, 0]
    moved = replace(contrast, target=contrast.target + shift)
    assert torch.allclose(
        contrastive(moved).directions[:, 1:], contrastive(contrast).directions[:, 1:], atol=1e-4
    )

    def axes(contrast: Contrast, *, own_means: bool) -> Tensor:
        target, control = contrast.at(0)
        grand = torch.cat([target, control]).mean(dim=0)
        rows = torch.cat(
            [
                target - (target.mean(0) if own_means else grand),
                control - (control.mean(0) if own_means else grand),
            ]
        )
        weights = torch.tensor([1.0, -0.5], dtype=torch.float64).repeat_interleave(100)
        return leading_axes(rows, weights, 1, float(rows.square().sum()))

    along = unit_rows(shift[0].double())
    same = axes(moved, own_means=True) @ axes(contrast, own_means=True).T
    assert float(same.abs()) == pytest.approx(1.0, abs=1e-6)
    assert float((axes(moved, own_means=True) @ along).abs()) < 0.3
    assert float((axes(moved, own_means=False) @ along).abs()) > 0.99
    assert float((contrastive(moved).directions[0, 0].double() @ along).abs()) > 0.99, "component 0 sees it"


def test_centred_pca_of_differences_loses_the_shared_shift() -> None:
    """Section 12, repeng and early CAST: the planted cosine; control: their way of doing it."""
    planted = planted_contrast()
    pairs = (planted.contrast.target - planted.contrast.control)[:, 0].double()
    centred = torch.linalg.svd(pairs - pairs.mean(dim=0), full_matrices=False).Vh[0]
    assert float((centred @ planted.direction[0]).abs()) < 0.5
    bank = components(planted.contrast, paired=True)
    assert float(cosines(bank.directions[:, 0], planted.direction).min()) > 0.98


def test_once_the_difference_is_gone_centring_changes_nothing() -> None:
    """The mean of the rows lies in what was removed, so both methods find the same, also where component 0 is borrowed;
    control: pairs, whose differences have another second moment."""
    contrast = planted_contrast(second=4.0, along_mean=5.0).contrast
    # Layer 1 differs in scale alone.
    contrast.target[:, 1] = 1.5 * contrast.control[:, 1]
    first, second = (method(contrast, count=4, alpha=0.5) for method in (components, contrastive))
    assert first.provenance["borrowed"] == [[1, 0]]
    assert torch.allclose(first.directions, second.directions, atol=1e-4)
    assert torch.allclose(first.spread, second.spread, rtol=1e-4)
    pairs = components(contrast, count=4, alpha=0.5, paired=True)
    assert not torch.allclose(pairs.directions, second.directions, atol=0.1)


@BOTH
def test_rows_that_do_not_exist_are_zero_and_recorded(method: Method) -> None:
    """Eigenvalues of zero and below are dropped, section 3.3; fewer samples than components end the list."""
    planted = planted_contrast()
    bank = method(planted.contrast, count=4, alpha=1000.0)
    assert bank.provenance["found"] == [1, 1, 1]
    assert not bool(bank.directions[:, 1:].any()) and not bool(bank.spread[:, 1:].any())
    assert method(planted.contrast, count=4, alpha=1.0).provenance["found"] == [4, 4, 4], "control"
    few = replace(planted.contrast, target=planted.contrast.target[:3])
    bank = method(few, count=8, alpha=0.0)
    # Three rows, of which the difference takes one dimension.
    assert bank.provenance["found"] == [3, 3, 3]
    assert bank.spread.shape == (3, 8) and bank.directions.shape == (3, 8, 48)
    single = replace(
        planted.contrast, target=planted.contrast.target[:1], control=planted.contrast.control[:1]
    )
    assert method(single).provenance["found"] == [1, 1, 1]
    assert method(planted.contrast, count=1).directions.shape == (3, 1, 48)
    json.dumps(dict(bank.provenance), allow_nan=False)


def test_samples_that_repeat_or_depend_on_one_another_do_no_harm() -> None:
    """The Gram matrix is singular then; a channel 1e4 times as large does not hide the rest."""
    planted = planted_contrast(second=6.0)
    twice = replace(
        planted.contrast,
        target=planted.contrast.target.repeat(2, 1, 1),
        control=planted.contrast.control.repeat(2, 1, 1),
    )
    bank, same = components(planted.contrast, alpha=0.0), components(twice, alpha=0.0)
    assert torch.allclose(same.directions, bank.directions, atol=1e-4)
    massive = 1e4 * torch.eye(48)[3]
    loud = replace(
        planted.contrast, target=planted.contrast.target + massive, control=planted.contrast.control + massive
    )
    assert float(cosines(components(loud).directions[:, 1], planted.second).min()) > 0.95


def test_no_matrix_of_the_width_squared_is_formed() -> None:
    """100,000 coordinates: a d x d matrix would take 80 GB."""
    planted = torch.randn(2, 8, 1, 100_000, generator=torch.Generator().manual_seed(0))
    planted[0, :, :, :100] += 10
    bank = components(Contrast(planted[0], planted[1]))
    rows = bank.directions[0]
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)


@BOTH
def test_the_sign_is_that_of_the_longer_tail(method: Method) -> None:
    """Section 3.2: the mean is zero once the difference is gone, so the third moment decides; control: mirrored."""
    planted = planted_contrast(prompts=200)
    tail = torch.randn(200, generator=torch.Generator().manual_seed(3)).exp()
    tail = 4 * (tail - tail.mean())[:, None, None] * planted.second.float()
    for side in (1, -1):
        rows = method(replace(planted.contrast, target=planted.contrast.target + side * tail)).directions[
            :, 1
        ]
        assert float((side * rows.double() * planted.second).sum(dim=1).min()) > 0.9


def test_a_symmetric_component_has_a_repeatable_sign() -> None:
    """Exactly as many samples as far on either side: no rule turns with the space, but the order must not matter."""
    source = torch.Generator().manual_seed(0)
    half = torch.randn(30, 1, 16, generator=source) * torch.linspace(0.2, 3, 16)
    gap = torch.zeros(16)
    gap[0] = 20.0
    base = torch.cat([half, -half])
    contrast = Contrast(base + gap, torch.cat([half, -half]))
    shuffled = replace(contrast, target=contrast.target[torch.randperm(60, generator=source)])
    first, second = (components(own, alpha=0.0, project=False) for own in (contrast, shuffled))
    assert torch.allclose(first.directions, second.directions, atol=1e-4)


# Strengths.


METHODS: tuple[WeightMethod, ...] = ("softmax", "proportional", "log_proportional")


def test_strengths_by_hand() -> None:
    """Shares 5/8, 2/8, 1/8."""
    spread = torch.tensor([[10.0, 4.0, 2.0]])
    expected = {
        "softmax": [1.0, 2.718281828 ** ((2 - 5) / 4), 2.718281828 ** ((1 - 5) / 4)],
        "proportional": [1.0, 0.4, 0.2],
        "log_proportional": [1.0, 0.531479, 0.301030],
    }
    logs = [torch.log1p(torch.tensor(3 * share / 8)).item() for share in (5, 2, 1)]
    expected["log_proportional"] = [value / logs[0] for value in logs]
    for method in METHODS:
        found = component_weights(spread, method=method, temperature=0.5)
        assert found[0].tolist() == pytest.approx(expected[method], rel=1e-5), method


@pytest.mark.parametrize("method", METHODS)
def test_strengths_have_no_scale_and_leave_absent_components_alone(method: WeightMethod) -> None:
    spread = torch.tensor([[3.0, 9.0, 1.0], [5.0, 0.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = component_weights(spread, method=method)
    assert torch.allclose(component_weights(1e5 * spread, method=method), found, atol=1e-6)
    assert torch.equal(found > 0, spread > 0)
    assert found.amax(dim=1).tolist() == [1.0, 1.0, 1.0, 0.0] and float(found.min()) == 0.0
    assert bool((found[:, 1][:1] == 1) & (found[0, 0] > found[0, 2])), "in the order of the spread"
    # Control: eigenvalues, the squares, taken as they are depend on the scale.
    assert not torch.allclose((0.1 * spread[0]).square().softmax(0), spread[0].square().softmax(0), atol=1e-6)


def test_only_the_softmax_has_a_temperature() -> None:
    spread = torch.tensor([[3.0, 2.0, 1.0]])
    cold, hot = (component_weights(spread, method="softmax", temperature=t)[0] for t in (1e-3, 1e3))
    assert cold.tolist() == pytest.approx([1, 0, 0], abs=1e-6) and hot.tolist() == pytest.approx(
        [1] * 3, abs=1e-3
    )
    for method in METHODS[1:]:
        assert torch.equal(
            component_weights(spread, method=method, temperature=9), component_weights(spread, method=method)
        )
