# SPDX-License-Identifier: Apache-2.0
"""Every kind of edit on every family: rows of one pass under hooks equal each edit in weight form
(algorithms 0, 4, 6.1; R-EVA-08, R-CIR-04)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from heretic.architectures.resolve import resolve, resolve_config_only
from heretic.architectures.site import Architecture, Site
from heretic.exceptions import ConfigurationError
from heretic.interventions.additions import carried, require_constant, set_point, steering
from heretic.interventions.edit import (
    Edit,
    ablation,
    ablation_before_norm,
    oblique,
    oblique_before_norm,
)
from heretic.interventions.heads import head_edit, head_layout
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.norms import NormMode, preserved
from heretic.interventions.probe import edited_weights
from heretic.interventions.writers import Writers
from heretic.testing.pico import PICO_FAMILIES, pico_config, pico_model
from heretic.testing.theorems import tokens, unit

torch.set_num_threads(1)

SIZE = 40
DIRECTIONS = torch.stack([unit(SIZE, 1), unit(SIZE, 2)])
COVECTORS = DIRECTIONS + 0.1 * torch.stack([unit(SIZE, 3), unit(SIZE, 4)])
CENTRE = 2.0 * unit(SIZE, 5)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One pico model. alone: whether a site is a module of its own, whose input can be scaled and read."""

    network: PreTrainedModel
    architecture: Architecture
    writers: Writers

    def alone(self, site: Site) -> bool:
        return site.experts is None and site.hook == site.path.rpartition(".")[0]


@cache
def case(name: str) -> Case:
    network = pico_model(name)
    network.requires_grad_(False)
    return Case(network, resolve(network), Writers(network))


Kind = Callable[[Case, Site, float], Edit | None]
"""The edit of a site at a strength; None where the kind does not exist there."""


def plain(own: Case, site: Site, strength: float) -> Edit:
    shares, gamma = torch.tensor([strength, 0.5 * strength]), own.writers.gain(site)
    if gamma is None:
        return ablation(DIRECTIONS, shares)
    assert site.gain is not None
    return ablation_before_norm(DIRECTIONS, shares, gamma, layer_norm=site.gain.kind == "layer")


def measured(own: Case, site: Site, strength: float) -> Edit:
    shares, gamma = torch.tensor([strength, 0.5 * strength]), own.writers.gain(site)
    if gamma is None:
        return oblique(DIRECTIONS, COVECTORS, shares)
    assert site.gain is not None
    return oblique_before_norm(DIRECTIONS, COVECTORS, shares, gamma, layer_norm=site.gain.kind == "layer")


def keeping(mode: NormMode) -> Kind:
    def kind(own: Case, site: Site, strength: float) -> Edit | None:
        if not own.alone(site):
            return None
        weight, bias = own.writers.weight(site), own.writers.bias(site)
        return preserved(plain(own, site, strength), weight, bias, site.residual_axis, mode)

    return kind


def heads(own: Case, site: Site, strength: float) -> Edit | None:
    layout = head_layout(own.network, site)
    if layout is None:
        return None
    weight = own.writers.weight(site)
    return head_edit(plain(own, site, strength), weight, (0, 2), layout, site.residual_axis)


def constant(site: Site) -> bool:
    try:
        require_constant(site)
    except ConfigurationError:
        return False
    return True


def centred(own: Case, site: Site, strength: float) -> Edit | None:
    if site.bias is None or not constant(site):
        return None
    return set_point(plain(own, site, strength), CENTRE, site)


def steered(own: Case, site: Site, strength: float) -> Edit | None:
    return steering(CENTRE, strength, site) if site.bias is not None and constant(site) else None


def lifted(own: Case, site: Site, strength: float) -> Edit | None:
    if site.bias is not None or not constant(site):
        return None
    weight = own.writers.weight(site)
    carrier = unit(weight.shape[1 - site.residual_axis], 6)
    moved = set_point(plain(own, site, strength), CENTRE, site)
    return carried(moved, weight, site.residual_axis, carrier)


KINDS: dict[str, Kind] = {
    "rank k": plain,
    "oblique": measured,
    "column": keeping("column"),
    "row": keeping("row"),
    "frobenius": keeping("frobenius"),
    "heads": heads,
    "set-point": centred,
    "steering": steered,
    "carried": lifted,
}
EVERYWHERE = ("rank k", "oblique")


def trials_of(own: Case, strength: float) -> dict[str, Edits]:
    """Kind -> its edits at all sites where it exists; kinds that exist nowhere are left out."""
    found: dict[str, Edits] = {}
    for name, kind in KINDS.items():
        edits = {site: kind(own, site, strength) for site in own.architecture.sites}
        known = {site: edit for site, edit in edits.items() if edit is not None}
        if known:
            found[name] = known
    return found


def logits(own: Case, rows: int) -> Tensor:
    """[rows, 7, V], every row the same text."""
    with torch.no_grad():
        output: Tensor = own.network(input_ids=tokens()[:1].expand(rows, -1), use_cache=False).logits
    return output


@pytest.mark.parametrize("name", PICO_FAMILIES)
def test_all_kinds_in_one_pass_equal_each_in_weight_form(name: str) -> None:
    """Section 0 and 6.1. Controls: each kind changes the logits, and the base row beside them stays the base."""
    own = case(name)
    trials = trials_of(own, 0.8)
    assert set(EVERYWHERE) < set(trials)
    assert all(len(trials[kind]) == len(own.architecture.sites) for kind in EVERYWHERE)
    assert ("set-point" in trials) == ("steering" in trials)
    base = logits(own, 1)
    with applied(own.network, list(trials.values()), Rows(torch.arange(len(trials) + 1))):
        together = logits(own, len(trials) + 1)
    scale = float(base.abs().max())
    assert torch.allclose(together[-1:], base, rtol=1e-4, atol=1e-4 * scale)
    for row, (kind, edits) in enumerate(trials.items()):
        with edited_weights(own.network, edits):
            alone = logits(own, 1)
        assert torch.allclose(together[row : row + 1], alone, rtol=1e-4, atol=1e-4 * scale), kind
        assert not torch.allclose(alone, base, atol=1e-3 * scale), kind
    assert torch.equal(logits(own, 1), base), "every bit returned"


@pytest.mark.parametrize("name", PICO_FAMILIES)
def test_strength_0_changes_no_bit_in_either_form(name: str) -> None:
    """Section 4.8. Control: a strength of 0.01 does."""
    own, single = case(name), logits(case(name), 1)
    for strength, same in ((0.0, True), (0.01, False)):
        trials = trials_of(own, strength)
        base = logits(own, len(trials) + 1)
        with applied(own.network, list(trials.values()), Rows(torch.arange(len(trials) + 1))):
            hooked = logits(own, len(trials) + 1)
        for row, (kind, edits) in enumerate(trials.items()):
            assert torch.equal(hooked[row], base[row]) == same, kind
            with edited_weights(own.network, edits):
                assert torch.equal(logits(own, 1), single) == same, kind


SUMMED = tuple(
    name
    for name in PICO_FAMILIES
    if any(site.experts is not None for site in resolve_config_only(pico_config(name)).sites)
)


@pytest.mark.parametrize("name", SUMMED)
def test_writers_that_are_added_up_before_their_hook_are_edited_by_reading_the_sum_alone(name: str) -> None:
    """Section 6.1, decision 3: gains, input-side edits and constants are refused by name. Control: reading is not."""
    own = case(name)
    summed = [site for site in own.architecture.sites if not own.alone(site)]
    assert summed
    rows, base = Rows(torch.zeros(1, dtype=torch.int64)), logits(own, 1)
    for site in summed:
        edit = plain(own, site, 0.8)
        width = own.network.get_parameter(site.path).shape[-1 if site.residual_axis == 0 else -2]
        inside = (
            replace(edit, column_gain=torch.full((width,), 1.1)),
            replace(edit, row_gain=torch.full((SIZE,), 1.1)),
            replace(edit, bias=CENTRE),
            Edit(left=edit.left, right=torch.ones(edit.rank, width)),
        )
        for refused in inside:
            with (
                pytest.raises(ConfigurationError, match="only be edited by reading what they write"),
                applied(own.network, [{site: refused}], rows),
            ):
                pass
        with applied(own.network, [{site: edit}], rows):
            assert not torch.allclose(logits(own, 1), base, atol=1e-3)


@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_the_embedding_takes_every_kind_that_neither_scales_nor_reads_token_numbers(name: str) -> None:
    """Section 6.1. Control: what is refused would have changed the tokens themselves."""
    own = case(name)
    site = own.architecture.embedding
    assert site is not None
    weight = own.network.get_parameter(site.path)
    edit = ablation(DIRECTIONS, torch.tensor([0.8, 0.4]))
    rows = Rows(torch.zeros(1, dtype=torch.int64))
    modes: tuple[NormMode, ...] = ("row", "frobenius")
    for mode in modes:
        kept = preserved(edit, weight, None, site.residual_axis, mode)
        with applied(own.network, [{site: kept}], rows):
            hooked = logits(own, 1)
        with edited_weights(own.network, {site: kept}):
            assert torch.allclose(hooked, logits(own, 1), rtol=1e-4, atol=1e-4 * float(hooked.abs().max()))
    columns = preserved(edit, weight, None, site.residual_axis, "column")
    for refused in (columns, carried(steering(CENTRE, 1.0, site), weight, 1, torch.ones(len(weight)))):
        with (
            pytest.raises(ConfigurationError, match=f"{site.path} is given token numbers"),
            applied(own.network, [{site: refused}], rows),
        ):
            pass
