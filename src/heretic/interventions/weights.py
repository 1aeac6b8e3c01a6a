# SPDX-License-Identifier: Apache-2.0
"""Weight form of an edit: the new value of one matrix and of its bias (used by export and by proofs)."""

from __future__ import annotations

from torch import Tensor

from heretic.architectures.site import Site
from heretic.interventions.edit import Edit
from heretic.linalg.lowrank import add_low_rank, read_rows


def edited_matrix(matrix: Tensor, edit: Edit, site: Site) -> Tensor:
    """W' for one matrix of the site (one expert slice when the parameter is fused).

    matrix: [d, m] or [m, d] as `site.residual_axis` says, any dtype; computed in the edit's dtype and returned in it:
    the caller casts once. Raises nothing; shapes are our own business.
    """
    axis = site.residual_axis
    original = matrix.to(edit.left.dtype)
    base = original
    if edit.column_gain is not None:
        base = base * (edit.column_gain[None, :] if axis == 0 else edit.column_gain[:, None])
    right = edit.right if edit.read is None else read_rows(base, edit.read, axis)
    if edit.row_gain is not None:
        base = base * (edit.row_gain[:, None] if axis == 0 else edit.row_gain[None, :])
    if right is None or edit.rank == 0:
        return base
    return add_low_rank(base, edit.left, right, axis)


def edited_bias(bias: Tensor, edit: Edit) -> Tensor:
    """b' = b + left readT b + db; bias [d] or [E, d], returned in the edit's dtype."""
    result = bias.to(edit.left.dtype)
    if edit.read is not None:
        result = result + (result @ edit.read) @ edit.left.T
    if edit.bias is not None:
        result = result + edit.bias
    return result


def edited_parameter(parameter: Tensor, edit: Edit, site: Site) -> Tensor:
    """W' for the whole parameter of the site: a matrix, or all slices of a fused [E, ., .] tensor."""
    if site.experts is None:
        return edited_matrix(parameter, edit, site)
    out = parameter.to(edit.left.dtype).clone()
    for expert in range(site.experts):
        out[expert] = edited_matrix(parameter[expert], edit, site)
    return out
