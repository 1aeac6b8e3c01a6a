# SPDX-License-Identifier: Apache-2.0
"""Components 1 and further: what varies in the target class beside component 0 (algorithms 3.2, 3.3).

    x_i = X+_i - mu-,  b_j = X-_j - mu-,  both without their parts along r, m = mu- / |mu-| and what is protected;
    M = sum x xT / (n+ - 1) - alpha sum b bT / (n- - 1)

Components are the eigenvectors of M with the largest positive eigenvalues. M is never formed: all of them lie in the
span of the samples. With the rows S [n, d], their weights W and a root L of the Gram matrix, S ST = L LT,

    LT W L u = mu u   <=>   M v = mu v,   v = ST W L u / mu                        O(n^2 d) instead of O(d^3).

alpha = 0 is the uncentred singular value decomposition of what is left; alpha = 1 passes over what ordinary prompts
vary along just as much. Once r, m and what is protected are gone, the mean of the rows is 0 (R lies in their span), so
that n+ - 1 degrees of freedom remain and centring would change nothing: for unpaired prompts, contrastive PCA finds the
same. m has to go as well: r alone would leave m (mT R) in every row, and an uncentred decomposition would return
ordinary activity as component 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, assert_never

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast
from heretic.directions.difference import difference, forbidden_basis
from heretic.exceptions import ExtractionError
from heretic.linalg.lowrank import orthonormal_columns

FLOOR: Final = 100 * NEAR_ZERO**2
"""Part of the squared norm of all rows below which an eigenvalue counts as zero: a singular value below 1e-5."""

JITTER: Final = 1e-3 * FLOOR
"""Added to the Gram matrix, in the same unit, so that rows that depend on one another have a Cholesky root."""

WeightMethod = Literal["softmax", "proportional", "log_proportional"]


def components(
    contrast: Contrast,
    *,
    count: int = 3,
    alpha: float = 1.0,
    project: bool = True,
    paired: bool = False,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The bank [L, count, d]: the difference, then what is left of the target rows without subtracting their mean.

    alpha: weight of the benign second moment. project=False leaves the control mean in all components. paired: prompt i
    of both classes is the same but for the behaviour, and x_i = X+_i - X-_i. spread of further components: root mean
    square of x_i along them. Provenance `found` [L]: components of each layer; fewer than `count` where the target
    rows vary along nothing else (or no more than alpha times the benign ones do).

    Raises `ExtractionError` as `difference` does, and for pairs of unequal classes.
    """
    if paired and len(contrast.target) != len(contrast.control):
        raise ExtractionError(
            f"Paired prompts need classes of one size, not {len(contrast.target)} and {len(contrast.control)}.",
            hint="Give both classes the same number of prompts, in the same order.",
        )

    said = {"method": "components", **(provenance or {})}
    return _extended(contrast, count=count, alpha=alpha, project=project, paired=paired, said=said)


def contrastive(
    contrast: Contrast,
    *,
    count: int = 3,
    alpha: float = 1.0,
    project: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The bank [L, count, d]: the difference, then contrastive PCA, cov(X+) - alpha cov(X-), each about its own mean.

    Blind to any shift of the target class (algorithms 3.3), which is why component 0 never comes from it. With that
    shift removed, this is `components` of unpaired prompts.
    """
    said = {"method": "contrastive", **(provenance or {})}
    return _extended(contrast, count=count, alpha=alpha, project=project, paired=False, said=said)


METHODS.register("components")(components)
METHODS.register("contrastive")(contrastive)


def _extended(
    contrast: Contrast, *, count: int, alpha: float, project: bool, paired: bool, said: Mapping[str, object]
) -> DirectionBank:
    """The difference with `count` - 1 further components; said: what to put into the provenance."""
    first = difference(contrast, project=project)
    size, others = len(contrast.target), len(contrast.control)
    # Of each row in M.
    weights = torch.full(
        (size + others,), 1 / max(size - 1, 1), dtype=torch.float64, device=contrast.target.device
    )
    weights[size:] = -alpha / max(others - 1, 1)
    directions = torch.zeros(contrast.layers, count, contrast.width, device=first.directions.device)
    spread = torch.zeros(contrast.layers, count, device=first.directions.device)
    directions[:, :1], spread[:, :1] = first.directions, first.spread
    found: list[int] = []
    for layer in range(contrast.layers):
        # One copy of the samples, changed in place: this is most of the memory that is used.
        rows = torch.cat(contrast.at(layer))
        mean = rows[size:].mean(dim=0)
        forbidden = forbidden_basis(mean, contrast.protected_at(layer), project=project)
        basis, _ = orthonormal_columns(torch.cat([first.directions[layer].double().T, forbidden], dim=1))
        rows[:size] -= rows[size:] if paired else mean
        rows[size:] -= mean
        energy = float(rows.square().sum())
        rows.addmm_(rows @ basis, basis.T, alpha=-1)
        axes = leading_axes(rows, weights, count - 1, energy)
        scores = rows[:size] @ axes.T
        axes *= _signs(scores, axes)[:, None]
        found.append(1 + len(axes))
        directions[layer, 1 : found[-1]] = axes.float()
        spread[layer, 1 : found[-1]] = scores.square().mean(dim=0).sqrt().float()
    return DirectionBank(
        directions,
        spread,
        provenance={**first.provenance, "alpha": alpha, "paired": paired, "found": found, **said},
    )


def leading_axes(rows: Tensor, weights: Tensor, count: int, energy: float) -> Tensor:
    """Orthonormal eigenvectors [k, d] of rowsT diag(weights) rows, k <= count, largest eigenvalues first.

    rows [n, d] and weights [n] float64. Only eigenvalues above zero count, measured against `energy`, the squared norm
    of the rows before anything was removed from them. No d x d matrix is formed: two n x n ones are.
    """
    used = weights != 0
    rows, weights = rows[used] if not bool(used.all()) else rows, weights[used]
    count = min(count, len(rows))
    if count < 1 or energy <= 0:
        return rows[:0]
    gram = rows @ rows.T
    gram.diagonal().add_(JITTER * energy)
    root = torch.linalg.cholesky(gram)
    values, vectors = torch.linalg.eigh(root.T @ (weights[:, None] * root))
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    positive = values > FLOOR * energy * float(weights.max())
    axes = (weights[:, None] * (root @ vectors[:, positive]) / values[positive]).T @ rows
    # Orthonormal already but for the jitter and rounding of the smallest ones.
    return orthonormal_columns(axes.T)[0].T if len(axes) else axes


def _signs(scores: Tensor, axes: Tensor) -> Tensor:
    """Sign [k] of each axis [k, d]: that of the third moment of the target rows' scores [n, k].

    Their mean cannot give it (algorithms 3.2), since it is zero once the class difference is removed. Scores that reach
    as far on both sides have no sign that turns with the space; the largest coordinate then makes it repeatable.
    """
    if not len(axes):
        return axes.new_zeros(0)
    size, third = scores.square().mean(dim=0).sqrt(), scores.pow(3).mean(dim=0)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(third.abs() > NEAR_ZERO * size**3, third, largest).sign()


def component_weights(spread: Tensor, *, method: WeightMethod, temperature: float = 1.0) -> Tensor:
    """Strength of each component [L, k] in [0, 1], the largest of each layer 1, 0 where there is no component.

    spread [L, k] of a bank, s. From the shares p_i = s_i / sum s, so that the scale of the activations has no
    influence: softmax exp(p_i / temperature), proportional p_i, log_proportional log(1 + p_i / mean p). Only softmax
    reads the temperature.
    """
    values = spread.double()
    present = values > 0
    share = values / values.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    if method == "softmax":
        raw = ((share - share.amax(dim=1, keepdim=True)) / temperature).exp()
    elif method == "proportional":
        raw = share
    elif method == "log_proportional":
        raw = torch.log1p(share * present.sum(dim=1, keepdim=True))
    else:
        assert_never(method)
    raw = raw * present
    return (raw / raw.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).float()
