# SPDX-License-Identifier: Apache-2.0
"""Component 0: the projected difference of class means (algorithms 3.1, 3.9).

    m = mu- / |mu-|,   Z = orth([protected, m]),   R = mu+ - mu-,   R_perp = R - Z ZT R,   r = R_perp / |R_perp|

The control mean is a fixed point of the edit, (I - r rT) mu- = mu-, and the class gap that remains is Z ZT R. The
projection is one joint one: taken one after another, the second would put back what the first took out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast, unit_rows
from heretic.exceptions import ExtractionError
from heretic.linalg.lowrank import orthonormal_columns, project_out

SCALE_ONLY = 0.05
"""Below this share of |R| the classes differ only in scale along the control mean, or in what is protected."""


def difference_of_means(
    target_mean: Tensor,
    control_mean: Tensor,
    *,
    project: bool = True,
    protected: Tensor | None = None,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The bank [L, 1, d] from class means [L, d] float64.

    target: the class that shows the behaviour. project=False keeps the part along the control mean. protected
    [L, p, d]: orthonormal rows that the direction may not contain. Provenance: `removed_share` [L], the part of
    |R|^2 that the projection took (1 where the classes do not differ); `borrowed`, pairs of a layer and where its
    direction comes from.

    Raises `ExtractionError` with the layer and value when no layer has a usable difference; single unusable layers
    (an exact zero difference) take the direction of their nearest usable neighbour, so that every layer has one,
    freed of what is protected in the layer itself.
    """
    gap = target_mean - control_mean
    scale = 0.5 * (target_mean.norm(dim=1) + control_mean.norm(dim=1))
    bases = [
        forbidden_basis(mean, None if protected is None else protected[layer], project=project)
        for layer, mean in enumerate(control_mean)
    ]
    kept = torch.cat([project_out(row[None], basis) for row, basis in zip(gap, bases, strict=True)])
    lengths, gap_lengths = kept.norm(dim=1), gap.norm(dim=1)
    differs = gap_lengths > NEAR_ZERO * scale
    usable = differs & (lengths > SCALE_ONLY * gap_lengths)
    if not bool(usable.any()):
        raise _nothing_usable(gap_lengths, lengths, scale, protected)
    share = torch.where(differs, 1 - (lengths / gap_lengths.clamp_min(NEAR_ZERO * scale)) ** 2, 1.0)
    directions, donors = unit_rows(kept), list(range(len(gap)))
    for layer in torch.nonzero(~usable).flatten().tolist():
        own = None if protected is None else bases[layer]
        directions[layer], donors[layer] = _borrowed(layer, directions, usable, own)
    borrowed = [[layer, donor] for layer, donor in enumerate(donors) if layer != donor]
    return DirectionBank(
        directions=directions.float()[:, None, :].contiguous(),
        spread=lengths[donors].float()[:, None],
        provenance={
            "method": "difference",
            "projected": project,
            "removed_share": share.tolist(),
            "borrowed": borrowed,
            **(provenance or {}),
        },
    )


def difference(
    contrast: Contrast, *, project: bool = True, provenance: Mapping[str, object] | None = None
) -> DirectionBank:
    """`difference_of_means` of a contrast, free of its protected directions: the method `difference`."""
    target, control = contrast.means()
    return difference_of_means(
        target, control, project=project, protected=contrast.protected, provenance=provenance
    )


METHODS.register("difference")(difference)


def forbidden_basis(control_mean: Tensor, protected: Tensor | None, *, project: bool) -> Tensor:
    """Orthonormal columns [d, q] float64 of what no direction of one layer may contain; q = 0 where that is nothing.

    control_mean [d], used if `project`; protected [p, d] or None. The protected rows come first, so that they stay out
    to rounding even where the mean lies almost in their span. Zero rows (unused places) count for nothing.
    """
    rows = control_mean[None] if project else control_mean.new_zeros(0, len(control_mean))
    if protected is not None:
        rows = torch.cat([protected.to(rows), rows])
    rows = rows[rows.norm(dim=1) > 0].double()
    return orthonormal_columns(unit_rows(rows).T)[0] if len(rows) else rows.T


def _borrowed(layer: int, directions: Tensor, usable: Tensor, basis: Tensor | None) -> tuple[Tensor, int]:
    """The direction [d] of the nearest usable layer, outside the basis, and the index of that layer."""
    donors = torch.nonzero(usable).flatten().tolist()
    for donor in sorted(donors, key=lambda other: (abs(other - layer), other)):
        if basis is None:
            return directions[donor], donor
        row = project_out(directions[donor][None], basis)
        if float(row.norm()) > SCALE_ONLY:
            return unit_rows(row)[0], donor
    raise ExtractionError(
        f"Layer {layer} has no direction: its classes do not differ, and those of the layers {donors} lie in what is "
        "protected there.",
        hint="Protect fewer directions, or use bad prompts that differ from the good ones in more than that.",
    )


def _nothing_usable(
    gap_lengths: Tensor, lengths: Tensor, scale: Tensor, protected: Tensor | None
) -> ExtractionError:
    layer = int(gap_lengths.argmax())
    figures = (
        f"at layer {layer}, where they differ most, the difference is {float(gap_lengths[layer]):.2e} and "
        f"{float(lengths[layer]):.2e} of it is usable (mean length {float(scale[layer]):.2e})."
    )
    if protected is not None and bool((gap_lengths > NEAR_ZERO * scale).any()):
        return ExtractionError(
            f"The two classes of prompts differ only in what is protected: {figures}",
            hint="Protect fewer directions, or use prompts of the two classes that differ in more than that.",
        )
    return ExtractionError(
        f"The two classes of prompts give the same residuals: {figures}",
        hint="Check that the bad prompts show the behaviour and the good prompts do not.",
    )
