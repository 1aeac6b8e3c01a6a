# SPDX-License-Identifier: Apache-2.0
"""The control of an edit: the same strengths along random directions (algorithms section 8)."""

from __future__ import annotations

import torch

from heretic.interventions.controls import random_control
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.writers import Writers
from heretic.testing.workbench import loaded_pico


def planned(count: int = 2) -> Plan:
    model = loaded_pico("llama")
    width = model.architecture.hidden_size
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, count, generator=generator)).Q.T.contiguous()
    strengths = torch.linspace(0.4, 1.0, count)
    rows = tuple(
        PlanRow(site, basis, strengths, covectors=3 * basis, shift=torch.full((width,), 0.1))
        for site in model.architecture.sites
    )
    return Plan(rows)


def test_the_control_keeps_strengths_and_places_and_nothing_of_the_directions() -> None:
    plan = planned()
    control = random_control(plan, seed=3)
    assert control.effective_strengths() == plan.effective_strengths()
    assert [row.site for row in control.rows] == [row.site for row in plan.rows]
    for mine, theirs in zip(control.rows, plan.rows, strict=True):
        gram = mine.directions @ mine.directions.T
        assert torch.allclose(gram, torch.eye(2), atol=1e-5)
        assert float((mine.directions @ theirs.directions.T).abs().max()) < 0.8
        assert mine.covectors is None
        assert mine.shift is not None and theirs.shift is not None
        assert torch.isclose(mine.shift.norm(), theirs.shift.norm())
    assert control.edits(Writers(loaded_pico("llama").network)), "it can be applied"


def test_one_layer_has_one_draw_and_seeds_differ() -> None:
    plan = planned()
    by_layer: dict[int, torch.Tensor] = {}
    for row in random_control(plan, seed=3).rows:
        known = by_layer.setdefault(row.site.layer, row.directions)
        assert torch.equal(known, row.directions)
    first, second = by_layer[0], by_layer[1]
    assert not torch.allclose(first, second), "layers have directions of their own"
    again, other = random_control(plan, seed=3).rows[0], random_control(plan, seed=4).rows[0]
    assert torch.equal(again.directions, first)
    assert not torch.allclose(other.directions, first), "control: another seed"


def test_a_component_that_is_off_stays_off() -> None:
    plan = planned()
    row = plan.rows[0]
    off = Plan(
        (
            PlanRow(
                row.site,
                torch.stack([row.directions[0], torch.zeros(row.directions.shape[1])]),
                row.strengths,
            ),
        )
    )
    found = random_control(off, seed=0).rows[0].directions
    assert float(found[0].norm()) > 0.99
    assert not found[1].any()
