# SPDX-License-Identifier: Apache-2.0
"""Bases and low-rank changes of a matrix, without ever forming a d x d projector (algorithms 1.2, 4.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

DEPENDENT = 1e-3
"""A column whose diagonal of R falls below this share of the first counts as dependent and is dropped."""


def orthonormal_columns(columns: Tensor) -> tuple[Tensor, Tensor]:
    """QR without pivoting, signs kept, dependent columns dropped (algorithms 4.1).

    columns: [d, k], ordered by importance. Returns (basis [d, k'], kept [k'] int64 indices of the columns used);
    the first basis vector is the first column normalised, with its sign. A dependent column is taken out before those
    behind it are factored: what QR puts in its place is arbitrary, and they would lose their part along it.
    """
    kept = torch.arange(columns.shape[1])
    while True:
        basis, triangle = torch.linalg.qr(columns[:, kept])
        diagonal = triangle.diagonal()
        dependent = torch.nonzero(diagonal.abs() <= DEPENDENT * diagonal[:1].abs()).flatten()
        if not len(dependent):
            return basis * diagonal.sign(), kept
        first = int(dependent[0])
        kept = torch.cat([kept[:first], kept[first + 1 :]])
        if not len(kept):
            return columns[:, :0], kept


def project_out(vectors: Tensor, basis: Tensor) -> Tensor:
    """Rows of `vectors` [n, d] without their part in the span of the orthonormal `basis` [d, k]."""
    return vectors - (vectors @ basis) @ basis.T


def read_rows(matrix: Tensor, read: Tensor, axis: Literal[0, 1]) -> Tensor:
    """readT W as [k, m] for a matrix whose residual axis is `axis`; matrix [d, m] or [m, d], read [d, k]."""
    return read.T @ matrix if axis == 0 else (matrix @ read).T


def add_low_rank(matrix: Tensor, left: Tensor, right: Tensor, axis: Literal[0, 1]) -> Tensor:
    """W + left . right for either layout; left [d, k], right [k, m], matrix [d, m] (axis 0) or [m, d] (axis 1)."""
    return matrix + left @ right if axis == 0 else matrix + right.T @ left.T
