# SPDX-License-Identifier: Apache-2.0
"""What may be added, per layer: towards the wanted reply (contrastive activation addition), or towards the behaviour.

    v = mean(did not show) - mean(showed) among target prompts,   v <- (I - Q QT) v / |...|,   shift = s sigma_l v

Q spans what is removed, so that adding and removing do not work against each other (algorithms 3.8). sigma_l is the
mean length of the residuals at layer l: a strength means the same in every layer and model. The shift is a constant
that belongs into a bias (4.7): multiplying a writer by (I + s v vT) is even in v and adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import Contrast, unit_rows
from heretic.directions.preserve import joint_rows
from heretic.exceptions import CAAExtractionError
from heretic.linalg.lowrank import project_out

KEPT = 0.1
"""Below this share of its length outside the removed span a direction is not added: what is left is noise."""


@dataclass(frozen=True, slots=True, eq=False)
class ComplianceDirections:
    """Directions to add.

    vectors: [L, d] float32, unit rows; zero where skipped. kept_share: [L] length left of the unit difference outside
    what is removed or protected. overlap: [L] cosine of the whole difference with -r, r = component 0. scale: [L]
    sigma_l, in activation units. source: the replies of the base model, the class difference in their place, or the
    behaviour itself (`induction`); reason: why it is not the replies. skipped: layer -> reason.
    """

    vectors: Tensor
    kept_share: Tensor
    overlap: Tensor
    scale: Tensor
    source: Literal["replies", "class", "behaviour"]
    reason: str = ""
    skipped: Mapping[int, str] = field(default_factory=dict)

    def shift(self, strength: float) -> Tensor:
        """The constants s sigma_l v [L, d] to add to the stream; zero where skipped."""
        return strength * self.scale[:, None] * self.vectors


def compliance(
    contrast: Contrast, bank: DirectionBank, *, minimum: int = 10, strict: bool = False
) -> ComplianceDirections:
    """What tells target prompts that were answered without the behaviour from those that showed it (algorithms 3.8).

    minimum: replies of each kind that are needed. With fewer, the whole difference from target to control class stands
    in and the reason is recorded: what is left of it outside the removed span points along ordinary activity.
    Raises `CAAExtractionError` when strict and there are too few replies, or no layer is left.
    """
    showed = contrast.showed
    reason = _too_few(showed, minimum)
    if reason and strict:
        raise CAAExtractionError(
            f"There is nothing to learn an addition from: {reason}.",
            hint="Use more bad prompts, of which the model answers some with the behaviour and some without.",
        )
    found = [
        _difference(contrast, None if reason else showed, bank, layer) for layer in range(contrast.layers)
    ]
    skipped = {layer: why for layer, (_, _, _, why) in enumerate(found) if why}
    if strict and len(skipped) == contrast.layers:
        raise CAAExtractionError(
            "Nothing is left to add in any layer; the last one says: " + skipped[contrast.layers - 1] + ".",
            hint="Remove fewer directions, or use strategy = single.",
        )
    return ComplianceDirections(
        vectors=torch.stack([vector for vector, _, _, _ in found]).float(),
        kept_share=torch.tensor([kept for _, kept, _, _ in found]),
        overlap=torch.tensor([overlap for _, _, overlap, _ in found]),
        scale=residual_scale(contrast),
        source="class" if reason else "replies",
        reason=reason,
        skipped=skipped,
    )


def induction(bank: DirectionBank, contrast: Contrast) -> ComplianceDirections:
    """The behaviour itself, to be added: component 0 of each layer, not orthogonalised, for goal = induce (4.7)."""
    ones = torch.ones(bank.layers)
    return ComplianceDirections(
        vectors=bank.directions[:, 0].clone(),
        kept_share=ones,
        overlap=-ones,
        scale=residual_scale(contrast),
        source="behaviour",
    )


def residual_scale(contrast: Contrast) -> Tensor:
    """sigma_l [L] float32: mean length of the residuals of all prompts, target and control, of each layer."""
    return torch.stack(
        [torch.cat(contrast.at(layer)).norm(dim=1).mean() for layer in range(contrast.layers)]
    ).float()


def _too_few(showed: Tensor | None, minimum: int) -> str:
    """Why the replies cannot be used; empty where they can."""
    if showed is None:
        return "no replies of the base model were made"
    with_it, without = int(showed.sum()), int((~showed).sum())
    if min(with_it, without) >= minimum:
        return ""
    return (
        f"{with_it} of {len(showed)} target prompts were answered with the behaviour and {without} without it, "
        f"and {minimum} of each are needed"
    )


def _difference(
    contrast: Contrast, showed: Tensor | None, bank: DirectionBank, layer: int
) -> tuple[Tensor, float, float, str]:
    """(unit vector [d] float64 or zeros, length kept, cosine with -r, reason for skipping) of one layer."""
    towards = -bank.directions[layer, 0].double()
    target, control = contrast.at(layer)
    scale = float(target.norm(dim=1).mean())
    if showed is None:
        gap = control.mean(dim=0) - target.mean(dim=0)
    else:
        gap = target[~showed].mean(dim=0) - target[showed].mean(dim=0)
    if float(gap.norm()) <= NEAR_ZERO * scale:
        length = float(gap.norm())
        return torch.zeros_like(gap), 0.0, 0.0, f"the replies differ by {length:.2e} at layer {layer}"
    gap = unit_rows(gap)
    protected = contrast.protected_at(layer)
    removed = bank.directions[layer].double()
    rows = joint_rows(removed if protected is None else torch.cat([removed, protected]))
    kept = project_out(gap[None], rows.T)[0]
    length, overlap = float(kept.norm()), float(gap @ towards)
    if length < KEPT:
        what = "is removed" if protected is None else "is removed or protected"
        why = (
            f"{length:.1%} of the difference lies outside what {what} at layer {layer}, {KEPT:.0%} is needed"
        )
        return torch.zeros_like(gap), length, overlap, why
    return unit_rows(kept), length, overlap, ""
