# SPDX-License-Identifier: Apache-2.0
"""Edits that keep a norm of the matrix exactly, in closed form (algorithms 4.4).

With M = -left, D = read, A = DT W [k, m], q = W AT [d, k] and W0 = W - M A, which is never formed:

    column:     e_j = n_j^2 - 2 (MT W)_j . A_j + A_j . (MT M) A_j,   s_j = n_j / sqrt(e_j),   W' = W0 diag(s)
    row:        e_i = n_i^2 - 2 M_i . q_i + M_i . (A AT) M_i,        g_i = n_i / sqrt(e_i),   W' = diag(g) W0
    frobenius:  |W0|^2 = |W|^2 - 2 <M, q> + tr(MT M A AT),           f = |W| / |W0|,          W' = f W0

Nothing asks for orthonormal factors, so oblique edits and the pair (U, read) before a norm are kept by the same
formulas. Column and frobenius keep DT W' = 0 at strength 1; row does not: `leftover` measures what returns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from heretic.interventions.edit import Edit
from heretic.linalg.lowrank import read_rows

NormMode = Literal["column", "row", "frobenius"]

NOTHING_LEFT = 1e-12
"""A row or column of which a smaller share of the squared length remains is parallel to what was removed."""

CHUNK = 2048
"""Input columns that are widened to float64 at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """All that the norms of an edited matrix need of W, for vectors V [d, j]; float64.

    reading: VT W [j, m]. back: W WT V [d, j]. rows: [d] and columns: [m], squared lengths of W's own.
    """

    reading: Tensor
    back: Tensor
    rows: Tensor
    columns: Tensor

    def mixed(self, mixing: Tensor) -> Products:
        """The products of V X, X = mixing [j, i]: both are linear in V, so W is read once for a bank of directions."""
        wide = mixing.to(self.back)
        return replace(self, reading=wide.T @ self.reading, back=self.back @ wide)


@dataclass(frozen=True, slots=True)
class Preserved:
    """edit: with its gains. parallel: how many rows or columns consist of what was removed; these are not scaled."""

    edit: Edit
    parallel: int


def products(weight: Tensor, vectors: Tensor, axis: Literal[0, 1]) -> Products:
    """The products of V = vectors [d, j] with a writer [d, m] (axis 0) or [m, d] (axis 1), in one pass over it.

    Cost: 4 j d m flops, d * CHUNK numbers of memory beside the result.
    """
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64  # that device has no wider one
    wide = vectors.to(weight.device, dtype)
    back, rows = torch.zeros_like(wide), wide.new_zeros(len(wide))
    readings, columns = [], []
    for chunk in weight.split(CHUNK, dim=1 - axis):
        part = chunk.to(dtype) if axis == 0 else chunk.to(dtype).T
        reading = read_rows(part, wide, 0)
        back += part @ reading.T
        squares = part.square()
        rows += squares.sum(dim=1)
        columns.append(squares.sum(dim=0))
        readings.append(reading)
    return Products(reading=torch.cat(readings, dim=1), back=back, rows=rows, columns=torch.cat(columns))


def gained(edit: Edit, known: Products, bias: Tensor | None, mode: NormMode) -> Preserved:
    """The edit with the gains that keep the norm. known: the products of [left, read] [d, 2k]. bias: [d], the writer's.

    The bias is edited without rescaling, b' = b + left readT b: where rows are scaled, `Edit.bias` makes up for
    the gain that its bias term would get with `left`.
    """
    assert edit.read is not None and edit.row_gain is None and edit.column_gain is None
    rank = edit.rank
    assert known.reading.shape[0] == 2 * rank
    left = edit.left.to(known.back)
    removed, read = known.reading[:rank], known.reading[rank:]
    back = known.back[:, rank:]
    gram = left.T @ left
    if mode == "column":
        after = known.columns + 2 * (removed * read).sum(dim=0) + (read * (gram @ read)).sum(dim=0)
        gains, parallel = _gains(known.columns, after)
        return Preserved(replace(edit, column_gain=gains.to(edit.left)), parallel)
    inner = read @ read.T
    if mode == "row":
        after = known.rows + 2 * (left * back).sum(dim=1) + (left * (left @ inner)).sum(dim=1)
        gains, parallel = _gains(known.rows, after)
    else:
        before = known.rows.sum()[None]
        after = before + 2 * (left * back).sum() + (gram * inner).sum()
        gains, parallel = _gains(before, after)
    return Preserved(_row_scaled(edit, gains.to(edit.left).expand(len(left)), bias), parallel)


def preserved(edit: Edit, weight: Tensor, bias: Tensor | None, axis: Literal[0, 1], mode: NormMode) -> Edit:
    """`edit` with gains such that the edited matrix has the columns' or rows' lengths, or the norm, that W has.

    edit: residual-side (left, read), perhaps with a bias of its own, without gains. weight: [d, m] for axis 0, [m, d]
    for axis 1. bias: [d] or None. An edit of strength 0 comes back as it is. See `gained` for how often nothing was
    left to scale, `leftover` for what the gains brought back.
    """
    assert edit.read is not None and weight.ndim == 2
    if not bool(edit.left.any()):
        return edit
    vectors = torch.cat([edit.left, edit.read], dim=1)
    return gained(edit, products(weight, vectors, axis), bias, mode).edit


def leftover(edit: Edit, weight: Tensor, axis: Literal[0, 1]) -> float:
    """|readT W'| / |readT W|: the share of the read component that is left after a residual-side edit with gains."""
    assert edit.read is not None
    read = edit.read if edit.row_gain is None else edit.row_gain[:, None] * edit.read
    rank = edit.rank
    reading = products(weight, torch.cat([edit.read, read], dim=1), axis).reading
    before, scaled = reading[:rank], reading[rank:]
    seen = (edit.read.to(reading).T @ edit.left.to(reading)) @ before
    after = scaled + seen
    if edit.column_gain is not None:
        after = after * edit.column_gain.to(reading)
    length = float(before.norm())
    return float(after.norm()) / length if length > 0 else 0.0


def _gains(before: Tensor, after: Tensor) -> tuple[Tensor, int]:
    """Factors from squared lengths; 1 where nothing was or nothing is left. The latter are counted."""
    parallel = (before > 0) & (after <= NOTHING_LEFT * before)
    scaled = (before > 0) & ~parallel
    gains = torch.where(scaled, before / torch.where(scaled, after, 1.0), 1.0).sqrt()
    return gains, int(parallel.sum())


def _row_scaled(edit: Edit, gain: Tensor, bias: Tensor | None) -> Edit:
    """diag(g) of the edited matrix alone."""
    assert edit.read is not None
    shift = edit.bias
    if bias is not None:
        wanted = edit.left @ (edit.read.T @ bias.to(edit.left))
        correction = wanted - gain * wanted
        shift = correction if shift is None else shift + correction
    return replace(edit, left=gain[:, None] * edit.left, row_gain=gain.contiguous(), bias=shift)
