# SPDX-License-Identifier: Apache-2.0
"""One direction from several methods (algorithms 3.5).

    u_i <- sign(u_i . r) u_i   (r = the reference),      e = sum p_i u_i / |sum p_i u_i|

A member that has hardly anything in common with the reference has no sign to align and is another direction, not
another view of the same one: it becomes a further component.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import METHODS, Contrast
from heretic.directions.difference import difference
from heretic.directions.probe import probe
from heretic.exceptions import ExtractionError
from heretic.linalg.lowrank import orthonormal_columns

ALIKE: Final = 0.1
"""From this cosine with the reference a member is blended; below, it is a further component."""

WEIGHT_SLACK: Final = 0.01


def ensemble_of(
    members: Sequence[DirectionBank],
    weights: Sequence[float],
    reference: DirectionBank,
    *,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The blend [L, k, d] of the components 0 of all members; component 0 of the reference gives the signs.

    weights: one for each member, at least 0, sum 1. k is 1 + the largest number of appended members in a layer; rows
    that a layer does not need are zero. spread of component 0: the reference's, as far as it lies along the blend; of
    further ones: the member's. What members read (covectors) is not blended: D . r = 1 of each says nothing about the
    blend. Provenance: `members`, `weights`, and `appended`, pairs of layer and member.

    Raises `ExtractionError` for impossible weights, and with the layer where no member with weight resembles the
    reference.
    """
    _require_weights(members, weights)
    layers = range(reference.layers)
    found = [_blend(members, weights, reference.directions[layer, 0].double(), layer) for layer in layers]
    count = max(len(rows) for rows, _ in found)
    directions = torch.zeros(reference.layers, count, reference.width)
    spread = torch.zeros(reference.layers, count)
    for layer, (rows, owners) in enumerate(found):
        directions[layer, : len(rows)] = rows.float()
        along = float((rows[0] @ reference.directions[layer, 0].double()).abs())
        spread[layer, 0] = float(reference.spread[layer, 0]) * along
        for place, owner in enumerate(owners, 1):
            spread[layer, place] = members[owner].spread[layer, 0]
    return DirectionBank(
        directions,
        spread,
        provenance={
            "method": "ensemble",
            "members": [dict(member.provenance) for member in members],
            "weights": list(weights),
            "appended": [[layer, owner] for layer, (_, owners) in enumerate(found) for owner in owners],
            **(provenance or {}),
        },
    )


def ensemble(
    contrast: Contrast,
    *,
    weight_probe: float = 0.7,
    weight_components: float = 0.3,
    floor: float = 0.65,
    strict: bool = False,
    seed: int = 0,
    project: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The probe's pattern blended with the difference, which also gives the sign.

    Raises what `probe` and `difference` raise; provenance holds that of both, in `members`, and the probe's
    `label_source`.
    """
    base = difference(contrast, project=project)
    pattern = probe(contrast, floor=floor, strict=strict, seed=seed, project=project)
    said = {key: pattern.provenance[key] for key in ("label_source", "label_reason", "accuracy", "auroc")}
    return ensemble_of(
        [pattern, base], [weight_probe, weight_components], base, provenance={**said, **(provenance or {})}
    )


METHODS.register("ensemble")(ensemble)


def _require_weights(members: Sequence[DirectionBank], weights: Sequence[float]) -> None:
    assert len(members) == len(weights), "one weight for each member"
    if min(weights) < 0 or abs(sum(weights) - 1.0) > WEIGHT_SLACK:
        raise ExtractionError(
            f"The weights of an ensemble are at least 0 and sum to 1, not {', '.join(f'{w:g}' for w in weights)}.",
            hint="Set ensemble_weight_probe and ensemble_weight_pca, for instance to 0.7 and 0.3.",
        )


def _blend(
    members: Sequence[DirectionBank], weights: Sequence[float], reference: Tensor, layer: int
) -> tuple[Tensor, list[int]]:
    """(orthonormal rows [k, d], the member behind each row after the first) of one layer."""
    rows = torch.stack([member.directions[layer, 0].double() for member in members])
    cosines = rows @ reference
    # Where the cosine is exactly 0 the largest coordinate gives a sign, so that flipped members still agree.
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))[:, 0]
    rows = rows * torch.where(cosines == 0, largest, cosines).sign()[:, None]
    alike = cosines.abs() >= ALIKE
    share = torch.tensor(weights, dtype=torch.float64)
    total = (share * alike) @ rows
    if not float(total.norm()) > 0:
        raise ExtractionError(
            f"No direction of the ensemble resembles the difference at layer {layer}: the cosines are "
            f"{', '.join(f'{float(cosine):.2f}' for cosine in cosines)}, {ALIKE:g} is needed.",
            hint="Give the difference a weight (ensemble_weight_pca), or use one source of directions.",
        )
    others = torch.nonzero(~alike & (share > 0)).flatten().tolist()
    basis, kept = orthonormal_columns(torch.stack([total / total.norm(), *rows[others]], dim=1))
    return basis.T, [others[place - 1] for place in kept.tolist() if place > 0]
