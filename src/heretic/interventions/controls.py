# SPDX-License-Identifier: Apache-2.0
"""The control of an edit: the same strengths at the same places along random directions (algorithms section 8).

What such an edit does to the behaviour is what any change of this size does; what the chosen edit does beyond it is
due to its directions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from heretic.interventions.plan import Plan, PlanRow
from heretic.linalg.lowrank import orthonormal_columns


def random_control(plan: Plan, *, seed: int) -> Plan:
    """The plan with random orthonormal directions, one draw per layer, in place of its own.

    Strengths, sites, heads, kept norms and the lengths of shifts stay. What was read by co-vectors is read along the
    random directions themselves: a co-vector is fitted to one direction and means nothing to another.
    """
    drawn: dict[int, Tensor] = {}
    return Plan(tuple(_randomised(row, drawn, seed) for row in plan.rows))


def _randomised(row: PlanRow, drawn: dict[int, Tensor], seed: int) -> PlanRow:
    count, width = row.directions.shape
    known = drawn.get(row.site.layer)
    if known is None or len(known) < count:
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + row.site.layer)
        basis, _ = orthonormal_columns(torch.randn(width, count, generator=generator, dtype=torch.float64))
        known = basis.T.to(row.directions.dtype)
        drawn[row.site.layer] = known
    # A component that is off stays off; it has no direction.
    present = row.directions.any(dim=1, keepdim=True)
    directions = known[:count] * present
    shift = row.shift
    if shift is not None:
        shift = known[0].to(shift) * shift.norm()
    return replace(row, directions=directions, covectors=None, shift=shift)
