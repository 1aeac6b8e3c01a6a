# SPDX-License-Identifier: Apache-2.0
"""One record, two forms: the edit of a matrix equals the edit of what it writes (algorithms 0, 1.4, 4.1, 4.2, 4.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from heretic.architectures.site import Gain, Site
from heretic.exceptions import AbliterationError, ConfigurationError
from heretic.interventions.edit import Edit, ablation, ablation_before_norm
from heretic.interventions.hooks import Rows, applied, every_row
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.weights import edited_bias, edited_matrix, edited_parameter
from heretic.interventions.writers import Writers
from heretic.linalg.lowrank import orthonormal_columns, project_out

D, M, K = 12, 9, 3
GENERATOR = torch.Generator().manual_seed(5)
SITE = Site("writer.weight", 0, "attn.o_proj", 0, "writer", bias="writer.bias")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


class Conv1D(nn.Module):
    """The transposed layout [m, d] of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(M, D))
        self.bias = nn.Parameter(5.0 * normal(D))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


class Network(nn.Module):
    """One writer with a large bias."""

    def __init__(self, axis: Literal[0, 1]) -> None:
        super().__init__()
        self.writer: nn.Module = nn.Linear(M, D, dtype=torch.float64) if axis == 0 else Conv1D()
        if axis == 0:
            self.writer.bias.data = 5.0 * normal(D)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.writer(inputs)
        return output


def oblique() -> Edit:
    removed, read = normal(D, 2), normal(D, 2)
    strengths = torch.tensor([1.0, 0.6], dtype=torch.float64)
    return Edit(left=-removed @ torch.linalg.inv(read.T @ removed) * strengths, read=read)


def plain() -> Edit:
    return ablation(normal(K, D), torch.tensor([1.0, 0.5, 1.3], dtype=torch.float64))


KINDS: dict[str, Edit] = {
    "rank k": plain(),
    "oblique": oblique(),
    "row gain": replace(plain(), row_gain=normal(D)),
    "column gain": replace(plain(), column_gain=normal(M)),
    "both gains": replace(plain(), row_gain=normal(D), column_gain=normal(M)),
    "gains only": Edit(left=normal(D, 0), row_gain=normal(D), column_gain=normal(M)),
    "input side": Edit(left=normal(D, 2), right=normal(2, M)),
    "input side with gains": Edit(
        left=normal(D, 2), right=normal(2, M), row_gain=normal(D), column_gain=normal(M)
    ),
    "bias": Edit(left=normal(D, 0), bias=normal(D)),
    "everything": replace(plain(), row_gain=normal(D), column_gain=normal(M), bias=normal(D)),
    "before a norm": ablation_before_norm(
        normal(2, D), torch.ones(2, dtype=torch.float64), 1.0 + 0.3 * normal(D)
    ),
    "before a layer norm": ablation_before_norm(
        normal(2, D), torch.ones(2, dtype=torch.float64), 1.0 + 0.3 * normal(D), layer_norm=True
    ),
}


def both_forms(edit: Edit, axis: Literal[0, 1]) -> tuple[Tensor, Tensor]:
    network, site = Network(axis), replace(SITE, residual_axis=axis)
    inputs = normal(2, 4, M)
    with torch.no_grad():
        with applied(network, [{site: edit}], every_row(0, 2, torch.device("cpu"))):
            activation = network(inputs)
        weight, bias = network.get_parameter("writer.weight"), network.get_parameter("writer.bias")
        matrix = edited_matrix(weight, edit, site)
        written = inputs @ (matrix.T if axis == 0 else matrix) + edited_bias(bias, edit)
    return activation, written


@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("kind", KINDS)
def test_weight_form_equals_activation_form(kind: str, axis: Literal[0, 1]) -> None:
    """Algorithms section 0: 1e-12 relative in float64, on a writer with a large bias, in both layouts."""
    activation, written = both_forms(KINDS[kind], axis)
    assert float((activation - written).abs().max()) < 1e-12 * float(written.abs().max())


@pytest.mark.parametrize("kind", ("rank k", "row gain", "bias", "before a norm"))
def test_control_a_form_that_skips_the_bias_differs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the theorem above (algorithms 0, 4.5)."""
    monkeypatch.setitem(globals(), "edited_bias", lambda bias, edit: bias)
    activation, written = both_forms(KINDS[kind], 0)
    assert float((activation - written).abs().max()) > 1e-2


def test_trials_of_different_rank_share_a_pass_and_the_base_changes_no_bit() -> None:
    """Algorithms 6.1: tables are padded; gains of other trials leave the base row bit-equal (R-EVA-23, E06)."""
    network, inputs = Network(0), normal(3, 2, M)
    trials = [{SITE: KINDS["both gains"]}, {SITE: KINDS["oblique"]}]
    with torch.no_grad():
        base = network(inputs)
        with applied(network, trials, Rows(torch.tensor([1, 2, 0]))):
            together = network(inputs)
        for row, trial in ((0, 1), (2, 0)):
            with applied(network, [trials[trial]], every_row(0, 1, torch.device("cpu"))):
                assert torch.allclose(
                    network(inputs[row : row + 1]), together[row : row + 1], rtol=1e-12, atol=1e-12
                )
    assert torch.equal(together[1], base[1])
    assert not torch.allclose(together[0], base[0])


def test_experts_that_share_a_hook_share_one_edit() -> None:
    """Algorithms 1.2, 6.1: what cannot be told apart behind the sum is refused, never silently overwritten."""
    network = Network(0)
    other = replace(SITE, path="other.weight")
    same = {SITE: KINDS["rank k"], other: replace(KINDS["rank k"])}
    with applied(network, [same], every_row(0, 1, torch.device("cpu"))):
        pass
    with (
        pytest.raises(ConfigurationError, match="edits differ"),
        applied(network, [{SITE: KINDS["rank k"], other: plain()}], every_row(0, 1, torch.device("cpu"))),
    ):
        pass


def test_fused_experts_are_edited_slice_by_slice() -> None:
    site = replace(SITE, experts=3)
    parameter = normal(3, D, M)
    edited = edited_parameter(parameter, KINDS["rank k"], site)
    for expert in range(3):
        assert torch.equal(edited[expert], edited_matrix(parameter[expert], KINDS["rank k"], SITE))


def test_after_composes_residual_side_edits() -> None:
    """Section 0, composition: reading what the first has left; control: concatenated factors without the cross term."""
    weight, bias = normal(D, M), normal(D)
    first = replace(KINDS["rank k"], bias=normal(D))
    second = replace(KINDS["oblique"], bias=normal(D))
    both = second.after(first)
    stepwise = edited_matrix(edited_matrix(weight, first, SITE), second, SITE)
    assert torch.allclose(edited_matrix(weight, both, SITE), stepwise, rtol=1e-12, atol=1e-12)
    assert torch.allclose(
        edited_bias(bias, both), edited_bias(edited_bias(bias, first), second), rtol=1e-12, atol=1e-12
    )
    assert first.read is not None and second.read is not None
    naive = Edit(
        left=torch.cat([first.left, second.left], dim=1), read=torch.cat([first.read, second.read], dim=1)
    )
    assert not torch.allclose(edited_matrix(weight, naive, SITE), stepwise, atol=1e-3)


@pytest.mark.parametrize("strength", (0.0, 0.3, 1.0, 1.5, 2.0))
def test_the_share_removed_is_the_strength(strength: float) -> None:
    """Algorithms 4.1: |QT W'| = |1 - a| |QT W|, and the complement is untouched."""
    directions, weight = normal(K, D), normal(D, M)
    basis, _ = orthonormal_columns(directions.T)
    edited = edited_matrix(
        weight, ablation(directions, torch.full((K,), strength, dtype=torch.float64)), SITE
    )
    expected = abs(1.0 - strength) * (basis.T @ weight).norm()
    assert float((basis.T @ edited).norm() - expected) == pytest.approx(0.0, abs=1e-12)
    rest = project_out((edited - weight).T, basis)
    assert float(rest.abs().max()) < 1e-12


def test_removal_is_idempotent_and_independent_of_the_order_of_directions() -> None:
    """Algorithms 4.1; control: two directions at cosine 0.8, removed one after the other, leave 0.48 of the first."""
    weight, one = normal(D, M), torch.ones(2, dtype=torch.float64)
    first, other = nn.functional.normalize(normal(2, D), dim=1)
    other = nn.functional.normalize(project_out(other[None], first[:, None])[0], dim=0)
    pair = torch.stack([first, 0.8 * first + 0.6 * other])
    edit = ablation(pair, one)
    removed = edited_matrix(weight, edit, SITE)
    assert torch.allclose(edited_matrix(removed, edit, SITE), removed, atol=1e-12)
    assert torch.allclose(edited_matrix(weight, ablation(pair.flip(0), one), SITE), removed, atol=1e-12)
    assert float((pair @ removed).abs().max()) < 1e-12
    sequential = weight
    for direction in pair:
        sequential = edited_matrix(sequential, ablation(direction[None], one[:1]), SITE)
    assert float((first @ sequential).norm()) > 0.1 * float((first @ weight).norm())


def test_dependent_directions_are_dropped_and_component_zero_stays_itself() -> None:
    directions = normal(2, D)
    columns = torch.stack([directions[0], -2.0 * directions[0], directions[1]]).T
    basis, kept = orthonormal_columns(columns)
    assert kept.tolist() == [0, 2]
    assert torch.allclose(basis[:, 0], directions[0] / directions[0].norm(), atol=1e-12)
    edit = ablation(columns.T, torch.tensor([1.0, 9.0, 0.5], dtype=torch.float64))
    assert edit.rank == 2
    assert float(edit.left[:, 1].norm()) == pytest.approx(0.5), "strengths go with the columns that stay"


def test_what_comes_after_a_dependent_direction_keeps_all_of_its_own() -> None:
    """[a, a, b]: b lies in the span; control: one factorisation of all three puts an arbitrary column in the place of
    the second a, and b loses its part along that.
    """
    first, second = normal(2, D)
    columns = torch.stack([first, first, second]).T
    basis, kept = orthonormal_columns(columns)
    assert kept.tolist() == [0, 2]
    assert float(project_out(second[None], basis).norm()) < 1e-12 * float(second.norm())
    once, _ = torch.linalg.qr(columns)
    assert float(project_out(second[None], once[:, [0, 2]]).norm()) > 1e-2 * float(second.norm())


def test_oblique_removal_reads_one_direction_and_removes_another() -> None:
    """Algorithms 4.2: DT W' = diag(1 - a) DT W, and a column with DT w = 0 stays as it is."""
    edit, weight = KINDS["oblique"], normal(D, M)
    assert edit.read is not None
    q, _ = torch.linalg.qr(edit.read)
    weight[:, 0] = project_out(weight[:, :1].T, q)[0]
    edited = edited_matrix(weight, edit, SITE)
    share = 1.0 - torch.tensor([1.0, 0.6], dtype=torch.float64)
    expected = share[:, None] * (edit.read.T @ weight)
    # The strengths were given per removed direction, so they act in the basis that M = R (DTR)^-1 diag(a) spans.
    assert torch.allclose(edit.read.T @ edited, expected, atol=1e-10)
    assert torch.allclose(edited[:, 0], weight[:, 0], atol=1e-12)


@pytest.mark.parametrize("layer_norm", (False, True))
def test_behind_a_norm_the_stream_receives_nothing_along_the_directions(layer_norm: bool) -> None:
    """Algorithms 1.4: DT y' = 0 exactly after the gain; control: the gain ignored leaves a fifth or more."""
    directions, gamma = normal(2, D), torch.exp(0.5 * normal(D))
    one = torch.ones(2, dtype=torch.float64)
    basis, _ = orthonormal_columns(directions.T)
    weight, inputs = normal(D, M), normal(50, M)

    def stream(edit: Edit) -> Tensor:
        written = inputs @ edited_matrix(weight, edit, SITE).T
        if layer_norm:
            written = written - written.mean(dim=-1, keepdim=True)
        return gamma * written / written.square().mean(dim=-1, keepdim=True).sqrt()

    exact = stream(ablation_before_norm(directions, one, gamma, layer_norm=layer_norm))
    assert float((exact @ basis).abs().max()) < 1e-10
    assert float((stream(ablation(directions, one)) @ basis).norm() / exact.norm()) > 0.1


def test_gains_that_are_all_zero_are_an_error() -> None:
    """Algorithms 1.4."""
    with pytest.raises(AbliterationError, match="near zero"):
        ablation_before_norm(
            normal(1, D), torch.ones(1, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
        )


def test_a_plan_asks_for_the_gain_behind_each_site_and_reports_strengths() -> None:
    """Algorithms 4.8: effective strengths per site reproduce the edit."""
    post = replace(SITE, path="post.weight", hook="post", gain=Gain("norm", "weight", "layer"))
    gamma = 1.0 + 0.3 * normal(D)
    direction, strength = normal(1, D), torch.tensor([0.7], dtype=torch.float64)
    plan = Plan((PlanRow(SITE, direction, strength), PlanRow(post, direction, strength)))
    network = nn.Module()
    network.norm = nn.LayerNorm(D, dtype=torch.float64)
    network.norm.weight.data = gamma
    edits = plan.edits(Writers(network, torch.float64))
    gamma = gamma.float().double()  # gains are read in float32
    assert edits[SITE].equals(ablation(direction, strength))
    assert edits[post].equals(ablation_before_norm(direction, strength, gamma, layer_norm=True))
    assert not edits[post].equals(edits[SITE])
    assert plan.effective_strengths() == {"writer.weight": [0.7], "post.weight": [0.7]}
