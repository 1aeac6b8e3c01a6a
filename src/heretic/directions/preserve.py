# SPDX-License-Identifier: Apache-2.0
"""What an edit must leave alone: helpfulness and capability, and the two true guarantees (algorithms 3.9, 3.10).

Output side, any input: a direction r with ST r = 0 gives ST W' = ST W. The coordinates that the writer puts into S do
not change; what later readers make of the rest may. Input side, given prompts: a change dW (I - Y YT), with Y a basis
of all inputs of the writer at all positions of these prompts, leaves the whole forward pass on them as it was. A basis
that is centred or truncated, or a rescaling afterwards, guarantees nothing. Neither says anything of a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.components import leading_axes
from heretic.directions.contrast import Contrast, unit_rows
from heretic.exceptions import ExtractionError, SacredDirectionError
from heretic.linalg.lowrank import project_out, read_rows

INSEPARABLE = 0.9
"""Overlap above which a behaviour is not separable from helpfulness (algorithms 3.9)."""

REMAINDER = 0.3
"""Least share of the direction's length that must stay outside what is protected (algorithms 3.10)."""


@dataclass(frozen=True, slots=True, eq=False)
class Protection:
    """Directions that no edit may contain.

    directions: [L, p, d] float32, orthonormal rows, zero rows where a layer has fewer than p. overlap: [L] float32, the
    share of component 0's squared length that the protection takes, before it is applied; None = not measured yet.
    """

    name: str
    directions: Tensor
    overlap: Tensor | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    def measured(self, bank: DirectionBank, *, ordinary: Tensor | None = None) -> Protection:
        """The same with its overlap |ZT r|^2 with component 0 of a bank that was fitted without protection.

        ordinary: [L, d], the control means, where the bank was projected against them. The projection is a joint one
        (3.9), so it also takes what is left of a protected direction once its part along the control mean is gone.
        """
        shares = [
            _taken(
                bank.directions[layer, 0].double(),
                rows.double(),
                None if ordinary is None else ordinary[layer],
            )
            for layer, rows in enumerate(self.directions)
        ]
        return replace(self, overlap=torch.tensor(shares))


def helpfulness(
    helpful: Tensor, unhelpful: Tensor, bank: DirectionBank, *, ordinary: Tensor | None = None
) -> Protection:
    """The direction [L, 1, d] from unhelpful [m, L, d] to helpful [n, L, d] residuals, with its overlap.

    Both sets must match in format and length, or the format is what is protected. bank, ordinary: see
    `Protection.measured`. Raises `ExtractionError` when the sets do not differ in any layer; a layer in which they do
    not has a zero row.
    """
    _check("helpfulness", helpful, unhelpful)
    first, second = helpful.double().mean(dim=0), unhelpful.double().mean(dim=0)
    gap = first - second
    differs = gap.norm(dim=1) > NEAR_ZERO * 0.5 * (first.norm(dim=1) + second.norm(dim=1))
    if not bool(differs.any()):
        raise ExtractionError(
            f"Helpful and unhelpful prompts give the same residuals: they differ by {float(gap.norm(dim=1).max()):.2e} "
            "at most.",
            hint="Check helpfulness_prompts and unhelpfulness_prompts, or set orthogonalize_directions = false.",
        )
    protection = Protection(
        name="helpfulness",
        directions=torch.where(differs[:, None], unit_rows(gap), 0.0).float()[:, None, :],
        provenance={"helpful": len(helpful), "unhelpful": len(unhelpful)},
    )
    return protection.measured(bank, ordinary=ordinary)


def capability(samples: Tensor, baseline: Tensor, *, count: int = 5) -> Protection:
    """The leading uncentred right singular vectors [L, p, d], p <= count, of capability residuals.

    samples: [n, L, d] of questions, baseline: [m, L, d] of plain text. Rows are x_i - mean(baseline): what all text has
    is no capability, and what all questions share is one. Provenance `captured` [L]: share of the rows' squared length
    along the directions. Raises `ExtractionError` when there is nothing but the baseline in any layer.
    """
    _check("capability", samples, baseline)
    bases: list[Tensor] = []
    captured: list[float] = []
    for layer in range(samples.shape[1]):
        rows = samples[:, layer].double()
        energy = float(rows.square().sum())
        rows -= baseline[:, layer].double().mean(dim=0)
        axes = leading_axes(rows, rows.new_ones(len(rows)), count, energy)
        bases.append(axes)
        captured.append(float((rows @ axes.T).square().sum() / rows.square().sum()) if len(axes) else 0.0)
    if not any(captured):
        raise ExtractionError(
            f"The {len(samples)} capability prompts give the same residuals as the mean of the baseline text.",
            hint="Check sacred_prompts and sacred_baseline_prompts, or set use_sacred_directions = false.",
        )
    return Protection(
        name="capability",
        directions=_stacked(bases),
        provenance={"samples": len(samples), "baseline": len(baseline), "count": count, "captured": captured},
    )


def inseparable(protection: Protection) -> str | None:
    """Why a measured protection must not be applied: it takes more than 0.9 of the direction; None = it may be.

    The middle one of the layers decides: a single one in which the classes hardly differ should not.
    """
    assert protection.overlap is not None, "the overlap was not measured"
    middle = float(protection.overlap.quantile(0.5))
    if middle <= INSEPARABLE:
        return None
    return (
        f"{protection.name} holds {middle:.0%} of the squared length of the direction in the middle one of the layers, "
        f"more than {INSEPARABLE:.0%}: the behaviour is not separable from it."
    )


def protected_contrast(contrast: Contrast, *protections: Protection, project: bool = True) -> Contrast:
    """The contrast with all protections, and those it had, as one orthonormal basis per layer.

    project: whether the control mean is also projected away. Raises `SacredDirectionError` with the overlap when less
    than 0.3 of the direction's length remains in the middle one of the layers; nothing is divided by what remains.
    """
    rows = [] if contrast.protected is None else [contrast.protected]
    rows += [protection.directions for protection in protections]
    if not rows:
        return contrast
    joined = _stacked([joint_rows(own) for own in torch.cat(rows, dim=1).double()])
    left = remaining_share(contrast, joined, project=project)
    middle = float(left.quantile(0.5))
    if middle < REMAINDER:
        names = " and ".join(protection.name for protection in protections) or "what is protected"
        layer = int(left.argmin())
        raise SacredDirectionError(
            f"Protecting {names} takes {1 - middle**2:.1%} of the squared length of the direction in the middle one of "
            f"the layers ({1 - float(left[layer]) ** 2:.1%} at layer {layer}): {middle:.2g} of its length remains, "
            f"{REMAINDER:g} is needed.",
            hint="Lower n_sacred_directions, use protected prompts of the same format as the bad ones, or do without.",
        )
    return contrast.guarded(joined)


def remaining_share(contrast: Contrast, protected: Tensor, *, project: bool = True) -> Tensor:
    """[L]: length of the class difference outside the protected rows [L, p, d], as a share of what it was before.

    project: the control mean is projected away as well, before and after. 1 where the classes do not differ.
    """
    target, control = contrast.means()
    shares = [
        1 - _taken(gap, rows.double(), mean if project else None)
        for gap, rows, mean in zip(target - control, protected, control, strict=True)
    ]
    return torch.tensor(shares).clamp_min(0).sqrt()


def joint_rows(rows: Tensor) -> Tensor:
    """An orthonormal basis [q, d] float64 of the span of unit or zero rows [p, d], whatever their order.

    By singular vectors: a dependent row in the middle then costs none of the later ones anything.
    """
    _, values, vectors = torch.linalg.svd(rows.double(), full_matrices=False)
    return torch.as_tensor(vectors[values > NEAR_ZERO])


def guarantee(weight: Tensor, edited: Tensor, protected: Tensor, *, axis: Literal[0, 1] = 0) -> float:
    """|ST (W' - W)| / |ST W|, the measured output-side guarantee of one writer; 0 to rounding where it holds.

    weight, edited: [d, m] (axis 0) or [m, d] (axis 1); protected: [p, d], the rows of S. A writer that puts next to
    nothing into S is compared with 1e-6 of |W| instead.
    """
    basis = protected.double().T
    change = read_rows(edited.double() - weight.double(), basis, axis).norm()
    scale = torch.maximum(read_rows(weight.double(), basis, axis).norm(), NEAR_ZERO * weight.double().norm())
    return float(change / scale) if float(scale) > 0 else float(change)


def input_protected(delta: Tensor, inputs: Tensor) -> Tensor:
    """dW (I - Y YT) [d, m]: the part of a change [d, m] that does nothing to any of the inputs [n, m].

    inputs: all inputs of the writer at all positions of the prompts to protect; a bias is one more column of `delta`
    and of the inputs, where it is 1. Y is a basis of all of them, neither centred nor truncated. Raises
    `SacredDirectionError` where they fill the whole space, so that nothing of the change is left.
    """
    if not len(inputs):
        return delta
    rows = inputs.double()
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    rounding = max(inputs.shape) * torch.finfo(torch.float64).eps
    basis = vectors[values > rounding * values[0]]
    if len(basis) == delta.shape[1]:
        raise SacredDirectionError(
            f"The {len(inputs)} inputs to protect span all {delta.shape[1]} dimensions of the writer's input, so that "
            "nothing may be changed.",
            hint="Protect fewer or shorter prompts.",
        )
    return project_out(delta.double(), basis.T).to(delta.dtype)


def _taken(direction: Tensor, rows: Tensor, ordinary: Tensor | None) -> float:
    """Share of |direction|^2 that rows [p, d] take from its part outside the ordinary mean [d]; 0 if there is none."""
    scale = float(direction.norm())
    if ordinary is not None:
        mean = unit_rows(ordinary.double())[:, None]
        direction, rows = project_out(direction[None], mean)[0], project_out(rows, mean)
    length = float(direction.norm())
    if length <= NEAR_ZERO * scale:
        return 0.0
    return float((joint_rows(rows) @ direction).square().sum()) / length**2


def _stacked(bases: list[Tensor]) -> Tensor:
    """[L, p, d] float32 from bases [p_l, d], with zero rows where a layer has fewer."""
    most = max(len(basis) for basis in bases)
    padded = [torch.cat([basis, basis.new_zeros(most - len(basis), basis.shape[1])]) for basis in bases]
    return torch.stack(padded).float()


def _check(what: str, samples: Tensor, baseline: Tensor) -> None:
    if not len(samples) or not len(baseline):
        raise ExtractionError(
            f"A set of prompts for {what} is empty: {len(samples)} and {len(baseline)}.",
            hint=f"Check the slices of the prompt sets for {what}, or switch its protection off.",
        )
