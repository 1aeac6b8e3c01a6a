# SPDX-License-Identifier: Apache-2.0
"""A plan says what happens where: rows of (site, directions, strengths); one loop turns it into edits.

Each strategy is one short planner that emits a plan (architecture section 3). What a row says beyond directions and
strengths (what is read, which heads, what is added, which norms are kept) composes: each is one step of `edit_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from heretic.architectures.site import Site
from heretic.exceptions import ConfigurationError
from heretic.interventions.additions import carried
from heretic.interventions.edit import (
    Edit,
    ablation,
    ablation_before_norm,
    oblique,
    oblique_before_norm,
)
from heretic.interventions.heads import head_edit, head_layout
from heretic.interventions.norms import NormMode, preserved
from heretic.interventions.writers import Writers


@dataclass(frozen=True, slots=True, eq=False)
class PlanRow:
    """Directions [k, d] removed from one site with strengths [k] (share removed: 0 nothing, 1 all, negative: added).

    covectors: [k, d], what is read in place of the directions. heads: only what these query heads write is edited.
    keep: the norm of the matrix that the edit keeps. shift: [d], a constant that is added; carrier: [m], how a writer
    without a bias adds it.
    """

    site: Site
    directions: Tensor
    strengths: Tensor
    covectors: Tensor | None = None
    heads: Sequence[int] | None = None
    keep: NormMode | None = None
    shift: Tensor | None = None
    carrier: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All rows of one trial. Sites that do not appear stay untouched, bit for bit."""

    rows: tuple[PlanRow, ...]

    def effective_strengths(self) -> dict[str, list[float]]:
        """Parameter path -> strengths really applied, after kernel, profile, calibration and cap."""
        return {row.site.path: [round(float(value), 6) for value in row.strengths] for row in self.rows}

    def edits(self, writers: Writers) -> Mapping[Site, Edit]:
        """Site -> edit; weights are read only by rows that depend on them."""
        return {row.site: edit_of(row, writers) for row in self.rows}


def edit_of(row: PlanRow, writers: Writers) -> Edit:
    """The edit of one row, its tensors on the CPU."""
    edit = _removal(row, writers)
    if row.heads is not None:
        edit = _on_heads(row.site, edit, writers, row.heads)
    if row.shift is not None:
        edit = replace(edit, bias=row.shift if edit.bias is None else edit.bias + row.shift)
    if row.keep is not None:
        keep, bias = row.keep, writers.bias(row.site)
        axis = row.site.residual_axis
        edit = _on_weight(row.site, edit, writers, lambda e, w: preserved(e, w, bias, axis, keep))
    if edit.bias is not None and row.carrier is not None:
        axis, carrier = row.site.residual_axis, row.carrier
        edit = _on_weight(row.site, edit, writers, lambda e, w: carried(e, w, axis, carrier))
    return edit


def _removal(row: PlanRow, writers: Writers) -> Edit:
    gamma = writers.gain(row.site)
    layer_norm = row.site.gain is not None and row.site.gain.kind == "layer"
    if row.covectors is None:
        if gamma is None:
            return ablation(row.directions, row.strengths)
        return ablation_before_norm(row.directions, row.strengths, gamma, layer_norm=layer_norm)
    if gamma is None:
        return oblique(row.directions, row.covectors, row.strengths)
    return oblique_before_norm(row.directions, row.covectors, row.strengths, gamma, layer_norm=layer_norm)


def _on_heads(site: Site, edit: Edit, writers: Writers, heads: Sequence[int]) -> Edit:
    """`edit` for what the heads write. Each site is asked how wide they are: layers of one model may differ."""
    layout = head_layout(writers.network, site)
    if layout is None:
        raise ConfigurationError(
            f"{site.path} is not divided into query heads.", hint="Use a strategy that edits whole layers."
        )
    return _on_weight(site, edit, writers, lambda e, w: head_edit(e, w, heads, layout, site.residual_axis))


def _on_weight(site: Site, edit: Edit, writers: Writers, change: Callable[[Edit, Tensor], Edit]) -> Edit:
    """`change` computed where the weight lies; only the small result comes back."""
    weight = writers.weight(site)
    return change(edit.to(weight.device), weight).to(edit.left.device)
