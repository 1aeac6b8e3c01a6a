# SPDX-License-Identifier: Apache-2.0
"""Every registered direction method keeps the contract of algorithms 3.0; broken ones are found out."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import heretic.directions
from heretic.directions.bank import DirectionBank
from heretic.directions.components import components, contrastive
from heretic.directions.contrast import METHODS, Contrast, Fitter, unit_rows
from heretic.directions.difference import difference
from heretic.linalg.separation import auroc
from heretic.testing.directions import (
    THEOREMS,
    broken_theorems,
    check_direction_method,
    planted_contrast,
)

for found in pkgutil.iter_modules(heretic.directions.__path__):
    importlib.import_module(f"heretic.directions.{found.name}")

STANDARDISED = "the probe standardises each channel"
WAIVED: Mapping[str, Mapping[str, str]] = {
    "probe": {"rotation": STANDARDISED},
    "ensemble": {"rotation": STANDARDISED},
}
"""Method -> theorem -> why it does not hold for it."""


@pytest.mark.parametrize("name", list(METHODS))
def test_a_registered_method_keeps_the_contract(name: str) -> None:
    check_direction_method(METHODS[name], waived=WAIVED.get(name, {}))


def test_waivers_are_of_registered_methods_and_needed() -> None:
    for name, theorems in WAIVED.items():
        assert name in METHODS
        others = {theorem: "not asked here" for theorem in THEOREMS if theorem not in theorems}
        assert set(broken_theorems(METHODS[name], waived=others)) == set(theorems), (
            f"{name}: a needless waiver"
        )


@pytest.mark.parametrize("fit", [components, contrastive])
def test_the_contract_holds_without_the_benign_moment_too(fit: Fitter) -> None:
    def plain(contrast: Contrast) -> DirectionBank:
        return components(contrast, alpha=0.0) if fit is components else contrastive(contrast, alpha=0.0)

    check_direction_method(plain)


# Controls: each is `difference` with one fault.


def flipped(contrast: Contrast) -> DirectionBank:
    bank = difference(contrast)
    return replace(bank, directions=-bank.directions)


def too_long(contrast: Contrast) -> DirectionBank:
    bank = difference(contrast)
    return replace(bank, directions=1.01 * bank.directions)


def scaled_by_channel(contrast: Contrast) -> DirectionBank:
    spread = torch.cat([contrast.target, contrast.control]).std(dim=0)
    bank = difference(contrast)
    return replace(bank, directions=unit_rows(bank.directions / spread.pow(0.25)[:, None]))


def projected_one_after_another(contrast: Contrast) -> DirectionBank:
    """What is protected first, the control mean second: that puts part of the former back."""
    rows = difference(contrast.guarded(None), project=False).directions[:, 0]
    bases: list[Tensor | None] = [contrast.protected, unit_rows(contrast.control.mean(dim=0))[:, None]]
    for basis in bases:
        if basis is not None:
            rows = rows - torch.einsum("lpd,lp->ld", basis, torch.einsum("lpd,ld->lp", basis, rows))
    return replace(difference(contrast), directions=unit_rows(rows)[:, None])


def control_mean_first(contrast: Contrast) -> DirectionBank:
    """The other order: the control mean comes back."""
    rows = difference(contrast.guarded(None)).directions[:, 0]
    if contrast.protected is not None:
        rows = rows - torch.einsum(
            "lpd,lp->ld", contrast.protected, torch.einsum("lpd,ld->lp", contrast.protected, rows)
        )
    return replace(difference(contrast), directions=unit_rows(rows)[:, None])


def unprojected(contrast: Contrast) -> DirectionBank:
    return difference(contrast, project=False)


def unguarded(contrast: Contrast) -> DirectionBank:
    return difference(contrast.guarded(None))


def centred_differences(contrast: Contrast) -> DirectionBank:
    """PCA of paired differences about their mean: the shared shift, which is the behaviour, is gone."""
    bank = difference(contrast)
    pairs = contrast.target - contrast.control
    centred = (pairs - pairs.mean(dim=0)).transpose(0, 1).double()
    first = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0].float()
    signs = (first * bank.directions[:, 0]).sum(dim=1, keepdim=True).sign()
    return replace(bank, directions=(first * signs)[:, None])


def by_position(contrast: Contrast) -> DirectionBank:
    return difference(replace(contrast, target=contrast.target[:70], control=contrast.control[:70]))


def random_start(contrast: Contrast) -> DirectionBank:
    bank = difference(contrast)
    return replace(bank, directions=unit_rows(bank.directions + 1e-3 * torch.randn(bank.directions.shape)))


def always_something(contrast: Contrast) -> DirectionBank:
    return difference(replace(contrast, target=contrast.target + torch.eye(contrast.width)[0]))


def in_place(contrast: Contrast) -> DirectionBank:
    bank = difference(contrast)
    contrast.target.sub_(contrast.control.mean(dim=0))
    return bank


def shifted_by_a_layer(contrast: Contrast) -> DirectionBank:
    bank = difference(contrast)
    return replace(bank, directions=bank.directions.roll(1, dims=0))


FAULTS: tuple[tuple[Fitter, str], ...] = (
    (flipped, "sign"),
    (too_long, "shape"),
    (scaled_by_channel, "rotation"),
    (projected_one_after_another, "protected"),
    (control_mean_first, "control_mean"),
    (unprojected, "control_mean"),
    (unguarded, "protected"),
    (centred_differences, "planted"),
    (centred_differences, "chance"),
    (by_position, "order"),
    (random_start, "repeatable"),
    (always_something, "equal"),
    (in_place, "repeatable"),
    (shifted_by_a_layer, "planted"),
)


@pytest.mark.parametrize(("fit", "theorem"), FAULTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_method_is_found_out(fit: Fitter, theorem: str) -> None:
    assert theorem in broken_theorems(fit, waived={})
    with pytest.raises(AssertionError, match=theorem):
        check_direction_method(fit)


def test_chance_is_a_matter_of_held_out_prompts() -> None:
    """Control of the theorem on shuffled labels: the prompts of the fit themselves seem well told apart."""
    contrast = planted_contrast(signal=0.0, width=256).contrast
    rows = torch.cat([contrast.target, contrast.control])
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    found = difference(Contrast(mixed[:100], mixed[100:])).directions[0, 0]
    assert auroc(mixed[:100, 0] @ found, mixed[100:, 0] @ found) > 0.85


def test_every_theorem_has_a_fault_that_breaks_it() -> None:
    assert {theorem for _, theorem in FAULTS} == set(THEOREMS)


def test_a_waiver_needs_a_known_theorem_and_a_reason() -> None:
    check_direction_method(
        scaled_by_channel,
        waived=dict.fromkeys(("rotation", "protected", "control_mean"), "divides channels"),
    )
    with pytest.raises(AssertionError, match="no such theorem: rotaton"):
        check_direction_method(difference, waived={"rotaton": "a typing error"})
    with pytest.raises(AssertionError, match="reason"):
        check_direction_method(difference, waived={"rotation": ""})
