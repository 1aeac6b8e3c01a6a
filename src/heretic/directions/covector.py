# SPDX-License-Identifier: Apache-2.0
"""What to read where that is not what is removed: the co-vectors of LEACE, LDA and LCMV (algorithms 3.6, 3.10).

    D = Sigma^-1 R (RT Sigma^-1 R)^-1
    D = Sigma^-1 C (CT Sigma^-1 C)^-1 [I 0]T,   C = [R S]

Among all D with DT R = I, the first is the one whose reading of ordinary activity varies least, which is the least
damage that the edit x - R DT x does to it. The second has DT S = 0 as well: activity inside S triggers nothing.

For two classes the first is at once the least-squares concept eraser, linear discriminant analysis and the minimum
variance beamformer. Sigma is shrunk (linalg.shrinkage); without that D is worse than R itself where samples are few.
Claims hold at that layer for linear readers on that distribution, no further.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast
from heretic.directions.difference import difference, forbidden_basis
from heretic.exceptions import ExtractionError, SacredDirectionError
from heretic.linalg.lowrank import orthonormal_columns, project_out
from heretic.linalg.shrinkage import SingularCovarianceError, solve

CONDITION_LIMIT: Final = 1e6
"""Of C = [R S]: above it R lies in the span of S but for rounding."""


def with_covectors(
    bank: DirectionBank,
    source: Contrast | Tensor,
    *,
    shrinkage: float | None = None,
    protected: Tensor | None = None,
    unmoved: Tensor | None = None,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The bank with co-vectors [L, k, d]; each D_i reads 1 of its own direction and 0 of the others.

    source: where Sigma comes from: benign residuals [n, L, d] at any positions (centred here), or a contrast, whose
    classes are each taken about their own mean. shrinkage: rho in 0 ... 1, None = automatic (OAS).
    protected: S [L, p, d], orthonormal or zero rows; None = those of a contrast. They leave the directions too, so that
    the edit x - R DT x neither reads nor changes their coordinates. unmoved: [L, d], a point per layer that no D reads,
    so that the edit leaves it where it is; it stays in R.

    Provenance gains, per layer, `shrinkage` and `covector_length` (the largest |D|: what the guarantees cost), and
    `dropped`, pairs of a layer and a component of which less than 1e-3 lies outside S and the components before it.

    Raises `SacredDirectionError` where R lies in the span of what is not to be read (condition of [R S] above 1e6),
    `ExtractionError` for a shrinkage outside 0 ... 1 and where rho = 0 has no solution.
    """
    if shrinkage is not None and not 0.0 <= shrinkage <= 1.0:
        raise ExtractionError(
            f"A shrinkage is between 0 and 1, not {shrinkage:g}.", hint="Leave it out: the samples give one."
        )
    if protected is None and isinstance(source, Contrast):
        protected = source.protected
    directions, covectors = torch.zeros_like(bank.directions), torch.zeros_like(bank.directions)
    intensities: list[float] = []
    for layer in range(bank.layers):
        rows = bank.directions[layer].double()
        sacred, silent = _silent_bases(protected, unmoved, layer, rows)
        present = torch.nonzero(rows.any(dim=1)).flatten()
        _require_independent(rows[present], silent, layer)
        removed, kept = _outside(rows[present], sacred)
        reading, rho = _readings(source, layer, removed, silent, shrinkage)
        places = present[kept]
        directions[layer, places] = removed.float()
        covectors[layer, places] = reading.float()
        intensities.append(rho)
    dropped = bank.directions.any(dim=2) & ~directions.any(dim=2)
    return DirectionBank(
        directions=directions,
        spread=bank.spread * ~dropped,
        covectors=covectors,
        provenance={
            **bank.provenance,
            "shrinkage": intensities,
            "covector_length": covectors.norm(dim=2).amax(dim=1).tolist(),
            "dropped": dropped.nonzero().tolist(),
            **(provenance or {}),
        },
    )


def covector(
    contrast: Contrast,
    *,
    shrinkage: float | None = None,
    project: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The difference [L, 1, d] with its co-vector; Sigma is the pooled covariance within the classes.

    With `project` no D reads the control mean, so that it is a fixed point of the edit and the class gap that remains
    is the one along it, as for the difference (algorithms 3.1); a D that read it would leave part of the gap along r
    itself. Without, the class means are equal after the edit. Raises what `difference` and `with_covectors` raise.
    """
    _, control_mean = contrast.means()
    return with_covectors(
        difference(contrast, project=project),
        contrast,
        shrinkage=shrinkage,
        unmoved=control_mean if project else None,
        provenance={"method": "covector", **(provenance or {})},
    )


METHODS.register("covector")(covector)


def _silent_bases(
    protected: Tensor | None, unmoved: Tensor | None, layer: int, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Orthonormal columns of S, and of S with the unmoved point: [d, p'] and [d, q]."""
    own = None if protected is None else protected[layer]
    point = rows.new_zeros(rows.shape[1]) if unmoved is None else unmoved[layer].double()
    return (
        forbidden_basis(point, own, project=False),
        forbidden_basis(point, own, project=unmoved is not None),
    )


def _require_independent(rows: Tensor, silent: Tensor, layer: int) -> None:
    if not silent.shape[1]:
        return
    condition = float(torch.linalg.cond(torch.cat([rows.T, silent], dim=1)))
    if not condition <= CONDITION_LIMIT:
        raise SacredDirectionError(
            f"At layer {layer} what is to be removed lies in the span of what must not be touched: the condition of "
            f"both together is {condition:.1e}, at most {CONDITION_LIMIT:.0e} is usable.",
            hint="Protect fewer directions (n_sacred_directions), or keep the projection against the control mean.",
        )


def _outside(rows: Tensor, sacred: Tensor) -> tuple[Tensor, Tensor]:
    """(orthonormal rows outside the sacred columns, indices of the rows they come from)."""
    if not sacred.shape[1]:
        return rows, torch.arange(len(rows))
    basis, kept = orthonormal_columns(project_out(rows, sacred).T)
    return basis.T, kept


def _readings(
    source: Contrast | Tensor, layer: int, removed: Tensor, silent: Tensor, shrinkage: float | None
) -> tuple[Tensor, float]:
    """(D [k, d] of the removed rows, the shrinkage used). With C = [R S] as rows: (C Sigma^-1 CT)^-1 C Sigma^-1."""
    groups = source.at(layer) if isinstance(source, Contrast) else (source[:, layer].double(),)
    samples = torch.cat([group - group.mean(dim=0) for group in groups])
    constraints = torch.cat([removed, silent.T])
    try:
        solved, rho = solve(samples, constraints, shrinkage, degrees=max(1, len(samples) - len(groups)))
    except SingularCovarianceError as error:
        raise ExtractionError(
            f"The covariance of layer {layer} has no inverse at a shrinkage of {shrinkage}: {error}.",
            hint="Leave the shrinkage out: the samples give one. More prompts help too.",
        ) from error
    return torch.linalg.solve(constraints @ solved.T, solved)[: len(removed)], rho
