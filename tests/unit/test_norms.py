# SPDX-License-Identifier: Apache-2.0
"""Edits that keep a norm of the matrix: closed forms against the edited matrix itself (algorithms 4.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from heretic.architectures.site import Site
from heretic.interventions import norms
from heretic.interventions.edit import Edit, ablation, ablation_before_norm
from heretic.interventions.hooks import applied, every_row
from heretic.interventions.norms import NormMode, Preserved, gained, leftover, preserved, products
from heretic.interventions.weights import edited_bias, edited_matrix

D, M, K = 24, 40, 2
SITE = Site("writer.weight", 0, "attn.o_proj", 0, "writer", bias="writer.bias")
GENERATOR = torch.Generator().manual_seed(11)
MODES: tuple[NormMode, ...] = get_args(NormMode)
STRENGTHS = (0.1, 0.4, 1.0, 1.5)
DOUBLE = torch.float64


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=DOUBLE)


DIRECTIONS, GAMMA = normal(K, D), torch.exp(0.5 * normal(D))
WEIGHT, BIAS = normal(D, M), 5.0 * normal(D)
REMOVED, COVECTORS = normal(D, K), normal(D, K)


def removal(strength: float) -> Edit:
    return ablation(DIRECTIONS, torch.full((K,), strength, dtype=DOUBLE))


def before_norm(strength: float) -> Edit:
    return ablation_before_norm(DIRECTIONS, torch.full((K,), strength, dtype=DOUBLE), GAMMA)


def oblique(strength: float) -> Edit:
    inverse = torch.linalg.inv(COVECTORS.T @ REMOVED)
    return Edit(left=-strength * REMOVED @ inverse, read=COVECTORS)


KINDS = {"ablation": removal, "before a norm": before_norm, "oblique": oblique}


def lengths(matrix: Tensor, mode: NormMode) -> Tensor:
    """The norms that a mode keeps, of a matrix [d, m]."""
    if mode == "frobenius":
        return matrix.square().sum(dim=(0, 1)).sqrt()[None]
    return matrix.square().sum(dim=0 if mode == "column" else 1).sqrt()


def laid_out(axis: Literal[0, 1], weight: Tensor = WEIGHT) -> Tensor:
    return weight if axis == 0 else weight.T.contiguous()


@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_norm_is_kept_at_every_strength_and_strengths_differ(
    mode: NormMode, kind: str, axis: Literal[0, 1]
) -> None:
    """Algorithms 4.4 and the rows on ignored strength and projectors in section 12. Control: the plain edit."""
    site, edited = replace(SITE, residual_axis=axis), []
    for strength in STRENGTHS:
        plain = KINDS[kind](strength)
        edit = preserved(plain, laid_out(axis), None, axis, mode)
        matrix = laid_out(axis, edited_matrix(laid_out(axis), edit, site))
        assert torch.allclose(lengths(matrix, mode), lengths(WEIGHT, mode), rtol=1e-12)
        unscaled = edited_matrix(WEIGHT, plain, SITE)
        assert float((lengths(unscaled, mode) / lengths(WEIGHT, mode) - 1.0).abs().max()) > 1e-3
        assert plain.read is not None
        kept = (plain.read.T @ unscaled).norm() / (plain.read.T @ WEIGHT).norm()
        assert float(kept) == pytest.approx(abs(1.0 - strength), abs=1e-10)
        edited.append(matrix)
    for first, second in zip(edited, edited[1:], strict=False):
        assert float((first - second).norm()) > 1e-2 * float(WEIGHT.norm())


@pytest.mark.parametrize("mode", MODES)
def test_in_float32_the_norm_is_kept_to_1e_6(mode: NormMode) -> None:
    weight = WEIGHT.float()
    for strength in STRENGTHS:
        edit = preserved(removal(strength).to("cpu", torch.float32), weight, None, 0, mode)
        assert edit.left.dtype == torch.float32
        matrix = edited_matrix(weight, edit, SITE).double()
        assert float((lengths(matrix, mode) / lengths(WEIGHT, mode) - 1.0).abs().max()) < 1e-6


def concentrated(weight: Tensor) -> Tensor:
    """A direction that lies in a few rows."""
    direction = torch.zeros(1, len(weight), dtype=DOUBLE)
    direction[0, :3] = torch.tensor([1.0, 0.7, -0.5], dtype=DOUBLE)
    return direction


@pytest.mark.parametrize("kind", ("concentrated", "before a norm"))
def test_only_the_row_mode_brings_the_direction_back(kind: str) -> None:
    """Section 4.4, table: DT W' = 0 at strength 1 for column and frobenius; row is the control. `leftover` says so."""
    one = torch.ones(1, dtype=DOUBLE)
    plain = ablation(concentrated(WEIGHT), one) if kind == "concentrated" else KINDS["before a norm"](1.0)
    assert plain.read is not None
    for axis in (0, 1):
        for mode in MODES:
            edit = preserved(plain, laid_out(axis), None, axis, mode)
            matrix = laid_out(axis, edited_matrix(laid_out(axis), edit, replace(SITE, residual_axis=axis)))
            share = float((plain.read.T @ matrix).norm() / (plain.read.T @ WEIGHT).norm())
            assert leftover(edit, laid_out(axis), axis) == pytest.approx(share, abs=1e-12)
            assert share > 1e-3 if mode == "row" else share < 1e-6, mode
        weaker = preserved(removal(0.7), WEIGHT, None, 0, "column")
        matrix, rows = edited_matrix(WEIGHT, weaker, SITE), weaker.read
        assert rows is not None
        share = float((rows.T @ matrix).norm() / (rows.T @ WEIGHT).norm())
        assert leftover(weaker, WEIGHT, 0) == pytest.approx(share, abs=1e-12) and share > 0.301
        assert leftover(removal(0.7), laid_out(axis), axis) == pytest.approx(0.3)


class Network(nn.Module):
    """One writer with a large bias, in either layout."""

    def __init__(self, axis: Literal[0, 1], dtype: torch.dtype) -> None:
        super().__init__()
        writer: nn.Module = nn.Linear(M, D) if axis == 0 else Conv1D(D, M)
        self.writer = writer.to(dtype)
        self.writer.get_parameter("weight").data = laid_out(axis).to(dtype).clone()
        self.writer.get_parameter("bias").data = BIAS.to(dtype).clone()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.writer(inputs)
        return output


@pytest.mark.parametrize(("dtype", "tolerance"), ((DOUBLE, 1e-12), (torch.float32, 1e-5)))
@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_hook_form_equals_weight_form_and_the_bias_is_edited_without_rescaling(
    mode: NormMode, kind: str, axis: Literal[0, 1], dtype: torch.dtype, tolerance: float
) -> None:
    """Sections 0, 4.4, 4.5. Control: gains that were made without the bias rescale its part."""
    network, site = Network(axis, dtype), replace(SITE, residual_axis=axis)
    plain = replace(KINDS[kind](0.8), bias=normal(D)).to("cpu", dtype)
    weight, bias = network.get_parameter("writer.weight").data, network.get_parameter("writer.bias").data
    edit = preserved(plain, weight, bias, axis, mode)
    inputs = normal(2, 5, M).to(dtype)
    with torch.no_grad(), applied(network, [{site: edit}], every_row(0, 2, torch.device("cpu"))):
        activation = network(inputs)
    matrix = edited_matrix(weight, edit, site)
    written = inputs @ (matrix.T if axis == 0 else matrix) + edited_bias(bias, edit)
    scale = float(written.abs().max())
    assert float((activation - written).abs().max()) < tolerance * scale
    unscaled = edited_bias(bias, plain)
    assert float((edited_bias(bias, edit) - unscaled).abs().max()) < tolerance * float(unscaled.abs().max())
    if mode != "column":
        blind = edited_bias(bias, preserved(plain, weight, None, axis, mode))
        assert float((blind - unscaled).abs().max()) > 1e-4 * float(unscaled.abs().max())


@pytest.mark.parametrize("mode", MODES)
def test_strength_0_is_the_identity(mode: NormMode) -> None:
    edit = preserved(removal(0.0), WEIGHT, BIAS, 0, mode)
    assert edit.is_identity and torch.equal(edited_matrix(WEIGHT, edit, SITE), WEIGHT)
    assert not preserved(removal(0.1), WEIGHT, BIAS, 0, mode).is_identity, "control"


def counted(weight: Tensor, plain: Edit, mode: NormMode) -> Preserved:
    assert plain.read is not None
    return gained(plain, products(weight, torch.cat([plain.left, plain.read], dim=1), 0), None, mode)


def test_zero_rows_and_columns_keep_factor_1_and_parallel_columns_are_counted() -> None:
    """Section 4.4, edges. Control: beside them the norm is kept."""
    plain = removal(1.0)
    assert plain.read is not None
    weight = WEIGHT.clone()
    weight[:, 3] = 0.0
    weight[:, 5] = 2.0 * plain.read[:, 0] + 1e-7 * normal(D)
    found = counted(weight, plain, "column")
    assert found.parallel == 1 and counted(WEIGHT, plain, "column").parallel == 0
    assert found.edit.column_gain is not None and found.edit.column_gain[[3, 5]].tolist() == [1.0, 1.0]
    matrix = edited_matrix(weight, found.edit, SITE)
    assert float(matrix[:, [3, 5]].abs().max()) < 1e-6
    others = [column for column in range(M) if column not in (3, 5)]
    assert torch.allclose(matrix.norm(dim=0)[others], weight.norm(dim=0)[others], rtol=1e-12)
    weight[7] = 0.0
    row = counted(weight, plain, "row").edit.row_gain
    assert row is not None and float(row[7]) == 1.0 and float(row[6]) != 1.0
    whole = plain.read @ normal(K, M)
    assert counted(whole, plain, "frobenius").parallel == 1
    kept = counted(whole, plain, "frobenius").edit.row_gain
    assert kept is not None and torch.equal(kept, torch.ones(D, dtype=DOUBLE))


def test_products_are_linear_and_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.4, cost: a bank's products give those of every mix of its directions. Control: another mix differs."""
    basis, _ = torch.linalg.qr(DIRECTIONS.T)
    shares = torch.diag(torch.tensor([0.9, 0.4], dtype=DOUBLE))
    turned = basis @ normal(K, K)
    plain = Edit(left=-turned @ shares, read=turned)
    once = products(WEIGHT, basis, 0)
    mixing = torch.linalg.lstsq(basis, torch.cat([plain.left, turned], dim=1)).solution
    monkeypatch.setattr(norms, "CHUNK", 7)
    for axis in (0, 1):
        for mode in MODES:
            direct = preserved(plain, laid_out(axis), BIAS, axis, mode)
            cached = gained(plain, once.mixed(mixing), BIAS, mode).edit
            other = gained(plain, once.mixed(mixing.flip(0)), BIAS, mode).edit
            for name in ("row_gain", "column_gain"):
                gains = [getattr(edit, name) for edit in (direct, cached, other)]
                if gains[0] is not None:
                    assert torch.allclose(gains[0], gains[1], rtol=1e-12)
                    assert not torch.allclose(gains[0], gains[2], rtol=1e-3)
