# SPDX-License-Identifier: Apache-2.0
"""Concept cones: one subspace that holds the direction of every category of target prompts (algorithms 3.7).

Each cluster of target prompts has its own projected difference of means u_c, and further directions where held-out
prompts confirm them. The basis Q begins with the direction of all prompts together and grows along the singular vectors
of what is left of the u_c until

    max_c |u_c - Q QT u_c| <= 0.2,

and the whole span is removed with one strength. A share of the energy would not do: 95 % of it leaves 13 to 30 % of a
cluster's direction. Nor would a share of the strength for each cluster: five equal ones at 1/5 leave 0.8^5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from heretic.constants import NEAR_ZERO
from heretic.directions.bank import DirectionBank
from heretic.directions.clusters import Clusters, cluster_prompts
from heretic.directions.components import leading_axes
from heretic.directions.contrast import METHODS, Contrast, unit_rows
from heretic.directions.difference import difference, forbidden_basis
from heretic.exceptions import ConceptConeError
from heretic.linalg.lowrank import project_out
from heretic.linalg.separation import auroc

__all__ = ["Clusters", "ConeRate", "cluster_prompts", "cone_bank", "cone_report", "cones", "covering_basis"]

COVERED = 0.2
"""At most this length of a cluster's unit direction stays outside the basis."""

CONFIRMED = 0.65
"""Least AUROC by which held-out prompts are told from the control along a further direction."""


@dataclass(frozen=True, slots=True)
class ConeRate:
    """How often the behaviour shows in one cluster of prompts, before and after an edit; shares of 1."""

    name: str
    size: int
    before: float
    after: float


def cones(
    contrast: Contrast,
    *,
    count: int = 5,
    minimum: int = 10,
    per_cone: int = 2,
    floor: float = 0.1,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    strict: bool = False,
    project: bool = True,
    provenance: Mapping[str, object] | None = None,
) -> DirectionBank:
    """The joint span [L, k, d] of the clusters' directions; component 0 is that of all prompts (algorithms 3.1).

    per_cone: most directions of one cluster, its difference of means included. project=False keeps the part along the
    control mean. The other settings are those of `cluster_prompts`. Layers that need fewer than k components have zero
    rows. Prompts without categories give component 0 alone, with the reason as `degraded` in the provenance, or
    `ConceptConeError` when strict. Raises `ExtractionError` when the classes do not differ.
    """
    whole = difference(contrast, project=project, provenance=provenance)
    try:
        clusters = cluster_prompts(
            contrast, count=count, minimum=minimum, floor=floor, seed=seed, categories=categories
        )
    except ConceptConeError as error:
        if strict:
            raise
        return replace(whole, provenance={**whole.provenance, "method": "cones", "degraded": error.message})
    return cone_bank(contrast, clusters, whole, per_cone=per_cone, project=project)


METHODS.register("cones")(cones)


def cone_bank(
    contrast: Contrast, clusters: Clusters, whole: DirectionBank, *, per_cone: int = 1, project: bool = True
) -> DirectionBank:
    """The bank of `cones` for known clusters; `whole` holds component 0, made with the same `project`."""
    bases: list[Tensor] = []
    spreads: list[Tensor] = []
    left: list[Tensor] = []
    for layer in range(contrast.layers):
        first = unit_rows(whole.directions[layer, 0].double())
        target, control = _deviations(contrast, layer, project)
        members = [target[clusters.labels == label] for label in range(len(clusters))]
        stacks = [_cone(own, control, per_cone) for own in members]
        basis = covering_basis(first, torch.cat(stacks))
        spread = (target @ basis.T).square().mean(dim=0).sqrt()
        spread[0] = whole.spread[layer, 0].double()
        bases.append(basis)
        spreads.append(spread)
        left.append(torch.stack([_left(rows, basis) for rows in stacks]))
    most = max(len(basis) for basis in bases)
    worst = torch.stack(left)
    return DirectionBank(
        directions=torch.stack([_padded(basis, most) for basis in bases]).float(),
        spread=torch.stack([_padded(spread, most) for spread in spreads]).float(),
        provenance={
            **whole.provenance,
            "method": "cones",
            "clusters": [
                {"name": name, "size": size, "silhouette": silhouette, "left": float(worst[:, cone].max())}
                for cone, (name, size, silhouette) in enumerate(
                    zip(clusters.names, clusters.sizes, clusters.silhouettes, strict=True)
                )
            ],
            "found": clusters.found,
            "silhouette": clusters.silhouette,
            "cluster_layer": clusters.layer,
            "components": [len(basis) for basis in bases],
            "left": [float(own) for own in worst.amax(dim=1)],
        },
    )


def covering_basis(first: Tensor, rows: Tensor, *, tolerance: float = COVERED) -> Tensor:
    """Orthonormal rows [k, d] that begin with `first` [d] and leave at most `tolerance` of each unit row [C, d].

    The further ones are the leading singular vectors of what `first` leaves of the rows, the fewest that suffice; each
    points with the row that has most of it. The span does not depend on the order of rows.
    """
    if not len(rows):
        return first[None]
    rest = project_out(rows, first[:, None])
    further = torch.linalg.svd(rest, full_matrices=False).Vh
    loads = rest @ further.T
    # Column j: squared length of each row outside `first` and j further vectors.
    outside = torch.cat([loads.new_zeros(len(rows), 1), loads.square().cumsum(dim=1)], dim=1)
    outside = rest.square().sum(dim=1, keepdim=True) - outside
    enough = (outside <= tolerance**2).all(dim=0)
    needed = int(enough.to(torch.int64).argmax()) if bool(enough.any()) else len(further)
    strongest = loads[:, :needed].abs().argmax(dim=0)
    signs = loads[strongest, torch.arange(needed)].sign()
    return torch.cat([first[None], further[:needed] * signs[:, None]])


def cone_report(
    clusters: Clusters, shown_before: Tensor, shown_after: Tensor, *, labels: Tensor | None = None
) -> tuple[ConeRate, ...]:
    """Rates of the behaviour per cluster, from [n] bool of the same prompts before and after an edit.

    labels: [n] int64 for other prompts than those that were clustered (`Clusters.assign`); clusters that hold none of
    them are left out.
    """
    owner = clusters.labels if labels is None else labels
    members = [owner == label for label in range(len(clusters))]
    return tuple(
        ConeRate(
            name=name,
            size=int(own.sum()),
            before=float(shown_before[own].double().mean()),
            after=float(shown_after[own].double().mean()),
        )
        for name, own in zip(clusters.names, members, strict=True)
        if bool(own.any())
    )


def _deviations(contrast: Contrast, layer: int, project: bool) -> tuple[Tensor, Tensor]:
    """Rows x - mu- of both classes, [n+, d] and [n-, d], without their part along mu- and what is protected."""
    target, control = contrast.at(layer)
    origin, protected = control.mean(dim=0), contrast.protected_at(layer)
    rows = target - origin, control - origin
    basis = forbidden_basis(origin, protected, project=project)
    return project_out(rows[0], basis), project_out(rows[1], basis)


def _cone(members: Tensor, control: Tensor, most: int) -> Tensor:
    """Directions [m, d] of one cluster, m <= most, its difference of means first; deviations [n, d] and [n-, d].

    None where the difference is no longer than its sampling error: its direction would be more noise than signal, and
    component 0 stands for the cluster. A further direction stays when held-out members have more of it, in either
    sign, than the control has.
    """
    gap, count = members.mean(dim=0), len(members)
    variance = sum(
        float((rows - rows.mean(dim=0)).square().sum()) / len(rows) ** 2 for rows in (members, control)
    )
    scale = float(members.norm(dim=1).mean())
    if float(gap.norm()) <= max(NEAR_ZERO * scale, math.sqrt(2 * variance)):
        return members[:0]
    # Three standard deviations of an AUROC without signal.
    bound = max(CONFIRMED, 0.5 + 3 * math.sqrt((1 / count + 1 / len(control)) / 12))
    confirmed = takewhile(lambda score: score >= bound, _held_out(members, control, most))
    return _leading(members, most)[: 1 + len(list(confirmed))]


def _held_out(members: Tensor, control: Tensor, most: int) -> list[float]:
    """AUROC of |x . v| for each further direction v, of one half of the members from the other half, averaged."""
    if most < 2:
        return []
    # Halves by length and not by position: they do not depend on the order of prompts.
    ordered = members[members.norm(dim=1).argsort()]
    halves = ordered[::2], ordered[1::2]
    scores = [
        [auroc((held @ row).abs(), (control @ row).abs()) for row in _leading(fitted, most)[1:]]
        for fitted, held in (halves, halves[::-1])
    ]
    return [(first + second) / 2 for first, second in zip(*scores, strict=False)]


def _leading(members: Tensor, most: int) -> Tensor:
    """The unit mean of the rows [n, d], then the leading uncentred singular vectors of what it leaves of them."""
    first = unit_rows(members.mean(dim=0))[None]
    rest = project_out(members, first.T)
    # Measured against the members: a vector with no row behind it would be arbitrary, even in what is protected.
    further = leading_axes(rest, rest.new_ones(len(rest)), most - 1, float(members.square().sum()))
    return torch.cat([first, further])


def _left(rows: Tensor, basis: Tensor) -> Tensor:
    """The largest length outside the basis [k, d] of unit rows [m, d]; zero for no rows."""
    outside = project_out(rows, basis.T).norm(dim=1)
    return torch.cat([outside, outside.new_zeros(1)]).max()


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])
