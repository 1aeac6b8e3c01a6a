# SPDX-License-Identifier: Apache-2.0
"""A plan says what happens where: rows of (site, directions, strengths); one loop turns it into edits.

Each strategy is one short planner that emits a plan (architecture section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from heretic.architectures.site import Site
from heretic.interventions.edit import Edit, ablation, ablation_before_norm


@dataclass(frozen=True, slots=True, eq=False)
class PlanRow:
    """Directions [k, d] removed from one site with strengths [k] (share removed: 0 nothing, 1 all)."""

    site: Site
    directions: Tensor
    strengths: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All rows of one trial. Sites that do not appear stay untouched, bit for bit."""

    rows: tuple[PlanRow, ...]

    def effective_strengths(self) -> dict[str, list[float]]:
        """Parameter path -> strengths really applied, after kernel, profile, calibration and cap."""
        return {row.site.path: [round(float(value), 6) for value in row.strengths] for row in self.rows}

    def edits(self, gain_of: Callable[[Site], Tensor | None]) -> Mapping[Site, Edit]:
        """Site -> edit. `gain_of` returns gamma [d] of the norm that follows a writer, or None."""
        edits: dict[Site, Edit] = {}
        for row in self.rows:
            gamma = gain_of(row.site)
            if gamma is None:
                edits[row.site] = ablation(row.directions, row.strengths)
            else:
                layer_norm = row.site.gain is not None and row.site.gain.kind == "layer"
                edits[row.site] = ablation_before_norm(
                    row.directions, row.strengths, gamma, layer_norm=layer_norm
                )
        return edits
