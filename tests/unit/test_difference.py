# SPDX-License-Identifier: Apache-2.0
"""The method `difference`: protected rows, shares, borrowed directions (algorithms 3.1, 3.9; requirements R-DIR-02)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heretic.directions.components import components
from heretic.directions.contrast import unit_rows
from heretic.directions.difference import difference, difference_of_means
from heretic.exceptions import ExtractionError
from heretic.linalg.lowrank import orthonormal_columns, project_out
from heretic.testing.directions import planted_contrast


def cosines(rows: Tensor, wanted: Tensor) -> Tensor:
    """|cos| [L] between rows [L, d] and unit rows [L, d]."""
    return (rows.double() * wanted).sum(dim=1).abs()


def test_one_joint_projection_and_its_share() -> None:
    """Section 3.9: r = normalise((I - Z ZT) R); control: one projection after the other leaves part of the first."""
    planted = planted_contrast(along_mean=6.0, protected=3)
    contrast = planted.contrast
    bank = difference(contrast, provenance={"bad": "hash"})
    shares = bank.provenance["removed_share"]
    assert (
        isinstance(shares, list)
        and bank.provenance["bad"] == "hash"
        and bank.provenance["method"] == "difference"
    )
    for layer in range(3):
        target, control = contrast.at(layer)
        protected = contrast.protected_at(layer)
        assert protected is not None
        mean, gap = control.mean(dim=0), target.mean(dim=0) - control.mean(dim=0)
        both = torch.cat([mean[None], protected])
        inside = gap @ torch.linalg.pinv(both) @ both
        assert torch.allclose(bank.directions[layer, 0].double(), unit_rows(gap - inside), atol=1e-6)
        assert shares[layer] == pytest.approx(float((inside.norm() / gap.norm()) ** 2), abs=1e-9)
        assert float((bank.directions[layer] @ protected.float().T).abs().max()) < 1e-6
        free = project_out(gap[None], protected.T)
        last = project_out(free, unit_rows(mean)[:, None])
        assert float((unit_rows(last) @ protected.T).abs().max()) > 1e-2
    unguarded = difference(contrast.guarded(None))
    same = difference_of_means(*contrast.means())
    assert torch.equal(unguarded.directions, same.directions)


def test_a_difference_inside_what_is_protected_is_an_error() -> None:
    """With layer, value and remedy; control: protecting something else is none."""
    planted = planted_contrast()
    gap = planted.contrast.target.double().mean(dim=0) - planted.contrast.control.double().mean(dim=0)
    with pytest.raises(ExtractionError, match=r"only in what is protected: at layer \d") as caught:
        difference(planted.contrast.guarded(unit_rows(gap).float()[:, None]))
    assert caught.value.hint is not None and "Protect fewer" in caught.value.hint
    other = planted.second.float()[:, None]
    assert (
        float(cosines(difference(planted.contrast.guarded(other)).directions[:, 0], planted.direction).min())
        > 0.95
    )


def test_a_borrowed_direction_leaves_out_what_its_own_layer_protects() -> None:
    planted = planted_contrast(protected=2)
    contrast = planted.contrast
    contrast.target[:, 1] = contrast.control[:, 1]
    assert contrast.protected is not None
    # Layer 1 protects part of what layer 0 removes.
    first = difference(contrast.guarded(None)).directions
    contrast.protected[1] = orthonormal_columns(
        torch.stack([first[0, 0] + 2 * unit_rows(first[2, 0] + torch.ones(48)), torch.ones(48)], dim=1)
    )[0].T
    bank = difference(contrast)
    shares = bank.provenance["removed_share"]
    assert bank.provenance["borrowed"] == [[1, 0]] and isinstance(shares, list) and shares[1] == 1.0
    assert float((bank.directions @ contrast.protected.mT).abs().max()) < 1e-6
    assert float((bank.directions[0] @ contrast.protected[1].T).abs().max()) > 0.1, "control: as it was"
    mean = unit_rows(contrast.control[:, 1].mean(dim=0))
    assert float((bank.directions[1, 0] @ mean).abs()) < 1e-6
    further = components(contrast).directions[1]
    assert float((further @ contrast.protected[1].T).abs().max()) < 1e-5
    assert torch.allclose(further @ further.T, torch.diag(further.norm(dim=1)), atol=1e-5)


def test_a_borrowed_direction_comes_from_the_next_layer_when_the_nearest_is_protected() -> None:
    planted = planted_contrast(layers=4)
    contrast = planted.contrast
    contrast.target[:, 1] = contrast.control[:, 1]
    rows = difference(contrast).directions
    protected = torch.zeros(4, 2, 48)
    protected[1] = orthonormal_columns(torch.stack([rows[0, 0], rows[2, 0]], dim=1))[0].T
    bank = difference(contrast.guarded(protected))
    assert bank.provenance["borrowed"] == [[1, 3]]
    # Zero rows, unused places of the other layers, protect nothing and hide nothing.
    mean = unit_rows(contrast.control.mean(dim=0))
    assert float((bank.directions[:, 0] * mean).sum(dim=1).abs().max()) < 1e-6
    assert torch.allclose(bank.directions[[0, 2, 3], 0], rows[[0, 2, 3], 0], atol=1e-6)
    full = torch.zeros(4, 3, 48)
    full[1] = orthonormal_columns(torch.stack([rows[0, 0], rows[2, 0], rows[3, 0]], dim=1))[0].T
    with pytest.raises(ExtractionError, match=r"Layer 1 has no direction.*\[0, 2, 3\]"):
        difference(contrast.guarded(full))


def test_protected_rows_stay_out_where_the_control_mean_lies_almost_in_them() -> None:
    """A dependent vector drops out of the basis, and it must not be the protected one."""
    planted = planted_contrast(along_mean=6.0)
    mean = unit_rows(planted.contrast.control.double().mean(dim=0))
    protected = unit_rows(mean + 1e-4 * planted.direction).float()
    bank = difference(planted.contrast.guarded(protected[:, None]))
    assert float((bank.directions[:, 0] * protected).sum(dim=1).abs().max()) < 1e-6
    assert float((bank.directions[:, 0] * mean).sum(dim=1).abs().max()) < 1e-3
