# SPDX-License-Identifier: Apache-2.0
"""The one value that every change to a weight is: `Edit` (algorithms section 0).

    W' = diag(g) W diag(s) + left . right          b' = b + left readT b + db

`left` is [d, k]. The right factor is either `read` [d, k], a reading of the writer's own output (right = readT W
diag(s), materialised only on export), or `right` [k, m], a reading of the writer's input. g and s are optional row and
column gains, db an optional addition to the bias. The activation form of the same record, with v = W (s * z):

    y' = g * v + left . c + b + db,    c = readT (v + b)   or   c = right . z

A residual-side read reads the bias too: that is how an ablation removes the direction from the bias (algorithms 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.exceptions import AbliterationError
from heretic.linalg.lowrank import orthonormal_columns


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A low-rank change of one writer with optional gains and bias.

    left: [d, k]. read: [d, k] or None. right: [k, m] or None (exactly one of read and right when k > 0).
    row_gain: [d] or None. column_gain: [m] or None. bias: [d] or None, added to the writer's bias.
    All tensors are float32 (or float64 in tests), on one device.
    """

    left: Tensor
    read: Tensor | None = None
    right: Tensor | None = None
    row_gain: Tensor | None = None
    column_gain: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.left.ndim == 2
        assert (self.read is None) != (self.right is None) or self.left.shape[1] == 0

    @property
    def rank(self) -> int:
        """k, the number of columns of `left`."""
        return int(self.left.shape[1])

    @property
    def is_identity(self) -> bool:
        """True when applying the edit changes no bit."""
        factors_zero = self.rank == 0 or not bool(self.left.any())
        return factors_zero and self.row_gain is None and self.column_gain is None and self.bias is None

    @property
    def is_finite(self) -> bool:
        """False where a factor holds NaN or infinity."""
        factors = [getattr(self, name) for name in self.__slots__]
        return all(bool(torch.isfinite(factor).all()) for factor in factors if factor is not None)

    def equals(self, other: Edit) -> bool:
        """True when both have the same factors, bit for bit."""

        def same(mine: Tensor | None, theirs: Tensor | None) -> bool:
            if mine is None or theirs is None:
                return mine is theirs
            return mine is theirs or torch.equal(mine, theirs)

        return all(same(getattr(self, name), getattr(other, name)) for name in self.__slots__)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Edit:
        """The same edit with its tensors on `device` (and in `dtype`)."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype or tensor.dtype)

        return Edit(
            left=self.left.to(device=device, dtype=dtype or self.left.dtype),
            read=move(self.read),
            right=move(self.right),
            row_gain=move(self.row_gain),
            column_gain=move(self.column_gain),
            bias=move(self.bias),
        )

    def after(self, first: Edit) -> Edit:
        """The edit that acts as `first` and then `self`; both must be plain residual-side edits (read, no gains).

        y_A = y + L_A R_AT y, then y_B = y_A + L_B R_BT y_A: left = [L_A, L_B], read = [R_A, R_B + R_A L_AT R_B].
        """
        plain = all(
            edit.right is None and edit.row_gain is None and edit.column_gain is None
            for edit in (first, self)
        )
        assert plain and first.read is not None and self.read is not None, (
            "composition needs residual-side edits"
        )
        left = torch.cat([first.left, self.left], dim=1)
        read = torch.cat([first.read, self.read + first.read @ (first.left.T @ self.read)], dim=1)
        bias = self.bias
        if first.bias is not None:
            carried = first.bias + self.left @ (self.read.T @ first.bias)
            bias = carried if bias is None else bias + carried
        return Edit(left=left, read=read, bias=bias)


def ablation(directions: Tensor, strengths: Tensor) -> Edit:
    """Removal of a subspace: W' = W - Q diag(a) QT W (algorithms 4.1).

    directions: [k, d], ordered by importance, orthonormalised here by QR without pivoting (component 0 stays itself;
    dependent rows are dropped). strengths: [k], the share removed of each; 1 removes, above 1 reflects.
    """
    basis, kept = orthonormal_columns(directions.T)
    return Edit(left=-basis * strengths[kept], read=basis)


def oblique(directions: Tensor, covectors: Tensor, strengths: Tensor) -> Edit:
    """Removal of R measured along D: W' = W - R diag(a) DT W with DT R = I (algorithms 4.2).

    directions: [k, d], what is removed; covectors: [k, d], what is read; strengths: [k]. Co-vectors are rescaled here
    so that DT R = I. Raises `AbliterationError` when they do not see the directions (condition of DT R above 1e4).
    """
    removed, read = _paired(directions, covectors)
    return Edit(left=-removed * strengths, read=read)


MOST_OBLIQUE = 1e4
"""Condition of DT R beyond which a removal would amplify everything it reads (algorithms 4.2)."""


def _paired(directions: Tensor, covectors: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) both [d, k], D rescaled so that DT R = I."""
    gram = covectors.double() @ directions.double().T
    condition = float(torch.linalg.cond(gram)) if len(gram) else 1.0
    smallest = float(torch.linalg.svdvals(gram).min()) if len(gram) else 1.0
    if not (condition <= MOST_OBLIQUE and smallest > 1.0 / MOST_OBLIQUE):
        raise AbliterationError(
            f"The measuring vectors hardly see what is to be removed: condition {condition:.1e} (at most "
            f"{MOST_OBLIQUE:.0e}), smallest response {smallest:.1e}.",
            hint="Use more prompts or more shrinkage, or --strategy single.",
        )
    read = torch.linalg.solve(gram, covectors.double()).to(covectors.dtype)
    return directions.T, read.T


def before_norm(removed: Tensor, read: Tensor, strengths: Tensor, gamma: Tensor, *, layer_norm: bool) -> Edit:
    """The edit of a writer that a norm with gain follows, such that the stream loses R diag(a) DT (algorithms 1.4).

    With G = diag(gamma), H = diag(gamma^2 + lam): read = G D (centred for LayerNorm),
    U = H^-1 (G R + read Lambda), Lambda = (readT H^-1 read)^-1 (I - readT H^-1 G R), left = -U diag(a).
    At a = 1 the stream receives nothing along D; lam = 1e-3 median(gamma^2) keeps the weight change small.
    Raises `AbliterationError` when all gains are near zero.

    removed: R [d, k]; read: D [d, k] with DT R = I; strengths: [k]; gamma: [d]. Returns an edit of the writer itself,
    before the norm.
    """
    gain = gamma.to(removed.dtype)
    if not bool((gain.abs() > NEAR_ZERO).any()):
        raise AbliterationError(
            f"All {len(gain)} gains of the norm behind a writer are near zero (largest {float(gain.abs().max()):.1e}).",
            hint="Nothing this writer makes reaches the stream; leave its layer out of the edit.",
        )
    wanted, reading = gain[:, None] * removed, gain[:, None] * read
    if layer_norm:
        reading = reading - reading.mean(dim=0, keepdim=True)
    damping = gain.square() + 1e-3 * gain.square().median()
    weighted = reading / damping[:, None]
    gram = reading.T @ weighted
    identity = torch.eye(removed.shape[1], dtype=removed.dtype, device=removed.device)
    correction = torch.linalg.solve(gram, identity - weighted.T @ wanted)
    unembedded = wanted / damping[:, None] + weighted @ correction
    return Edit(left=-unembedded * strengths, read=reading)


def ablation_before_norm(
    directions: Tensor, strengths: Tensor, gamma: Tensor, *, layer_norm: bool = False
) -> Edit:
    """`ablation` for a writer that a norm with gain follows; the orthonormal Q plays both R and D.

    directions: [k, d]; strengths: [k]; gamma: [d]. See `before_norm`.
    """
    basis, kept = orthonormal_columns(directions.T)
    return before_norm(basis, basis, strengths[kept], gamma, layer_norm=layer_norm)


def oblique_before_norm(
    directions: Tensor, covectors: Tensor, strengths: Tensor, gamma: Tensor, *, layer_norm: bool = False
) -> Edit:
    """`oblique` for a writer that a norm with gain follows. See `before_norm`."""
    removed, read = _paired(directions, covectors)
    return before_norm(removed, read, strengths, gamma, layer_norm=layer_norm)
