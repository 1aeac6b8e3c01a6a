# SPDX-License-Identifier: Apache-2.0
"""What may be added at each writer: the constants of the goal `induce`, of CAA and of a centred oblique edit
(algorithms 3.8, 4.7; requirements 5.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heretic.architectures.site import Site
from heretic.directions.compliance import compliance
from heretic.directions.findings import Findings, Shift
from heretic.exceptions import AbliterationError, CAAExtractionError, ConfigurationError
from heretic.interventions.additions import carrier_spread, input_carrier, require_constant
from heretic.linalg.shrinkage import solve
from heretic.prompts import Prompt

if TYPE_CHECKING:
    from heretic.phases.direction_extraction import Extraction

WIDEST_SPREAD = 0.5
"""A writer whose input varies so much that the shift would vary by more than this share of itself carries nothing."""


def with_shifts(work: Extraction, findings: Findings) -> Findings:
    """The findings with what the strategy and goal may add; unchanged where they add nothing.

    Raises `CAAExtractionError` when there is something to add and no writer that could carry it.
    """
    options = work.options
    if options.goal == "induce":
        units = _means(work, work.bundle.bad.prompts)
    elif options.strategy == "caa":
        units = _compliant(work, findings)
    elif options.strategy == "oblique":
        units = _means(work, work.bundle.good.prompts)
    else:
        return findings
    shifts = _carried(work, units)
    if not shifts and options.strategy == "caa":
        raise CAAExtractionError(
            "No writer of this model can carry a constant: each is followed by a norm, holds routed experts, or its "
            "input varies too much.",
            hint="Use --strategy single or subspace; additions need a bias, or inputs with a steady mean.",
        )
    if not shifts:
        work.degradations.append("no writer can carry a constant, so nothing is added or centred")
    work.notes["shifts"] = {path: round(shift.spread, 4) for path, shift in shifts.items()}
    return replace(findings, shifts=shifts)


def carrying_sites(sites: Sequence[Site]) -> list[Site]:
    """Writers that can hold a constant: no norm behind them, and no routed experts (algorithms 4.7)."""
    found = []
    for site in sites:
        try:
            require_constant(site)
        except ConfigurationError:
            continue
        found.append(site)
    return found


def _means(work: Extraction, prompts: Sequence[Prompt]) -> Mapping[Site, Tensor]:
    """Mean write [d] of each carrying writer over a class of prompts."""
    sites = carrying_sites(work.captures.model.architecture.sites)
    writes = work.captures.writes(prompts, sites)
    return {site: values.double().mean(dim=0).float() for site, values in writes.items()}


def _compliant(work: Extraction, findings: Findings) -> Mapping[Site, Tensor]:
    """What the last carrying writer of each block makes of replies without the behaviour, less what it makes of those
    with it, along the direction of compliance of that layer."""
    showed = work.captures.showed(work.bundle.bad.prompts)
    contrast = replace(work.contrast, showed=showed)
    found = compliance(contrast, findings.bank, strict="strict" in work.options.explicit)
    if found.reason:
        work.degradations.append(f"caa: {found.reason}")
    overlap = [float(value) for value in found.overlap]
    if max(overlap) > work.options.caa_overlap:
        work.warnings.append(
            f"What is added and what is removed overlap by up to {max(overlap):.2f}; the part in common is left out."
        )
    last = {site.layer: site for site in carrying_sites(work.captures.model.architecture.sites)}
    usable = {layer: site for layer, site in last.items() if layer not in found.skipped}
    if not usable:
        raise CAAExtractionError(
            "Nothing is left to add: what separates replies without the behaviour from those with it lies within what "
            "is removed anyway.",
            hint="Use prompts that the model answers both ways, or --strategy single.",
        )
    chosen = list(usable.values())
    with_it, without = _split(work, showed, found.source)
    plus, minus = work.captures.writes(without, chosen), work.captures.writes(with_it, chosen)
    units: dict[Site, Tensor] = {}
    for layer, site in usable.items():
        gap = plus[site].double().mean(dim=0) - minus[site].double().mean(dim=0)
        along = found.vectors[layer].double()
        units[site] = ((gap @ along).clamp_min(0.0) * along).float()
    return units


def _split(work: Extraction, showed: Tensor, source: str) -> tuple[list[Prompt], list[Prompt]]:
    """(prompts with the behaviour, prompts without) that the direction of compliance was made from."""
    bad, good = work.bundle.bad.prompts, work.bundle.good.prompts
    if source != "replies":
        return list(bad), list(good)
    flags = [bool(flag) for flag in showed]
    return (
        [prompt for prompt, flag in zip(bad, flags, strict=True) if flag],
        [prompt for prompt, flag in zip(bad, flags, strict=True) if not flag],
    )


def _carried(work: Extraction, units: Mapping[Site, Tensor]) -> dict[str, Shift]:
    """How each writer adds its constant: its bias, else its inputs (measured on benign prompts)."""
    plain = [site for site in units if site.bias is None]
    inputs = work.captures.inputs(work.bundle.good.prompts, plain) if plain else {}
    shifts: dict[str, Shift] = {}
    for site, unit in units.items():
        if not bool(torch.isfinite(unit).all()) or not bool(unit.any()):
            continue
        if site.bias is not None:
            shifts[site.path] = Shift(unit)
            continue
        carried = _carrier(inputs[site])
        if carried is not None and carried[1] <= WIDEST_SPREAD:
            shifts[site.path] = Shift(unit, *carried)
    return shifts


def _carrier(inputs: Tensor) -> tuple[Tensor, float] | None:
    """(p [m], spread of pT z on inputs it was not made of), or None where the mean input is near zero."""
    try:
        halves = inputs[::2], inputs[1::2]
        spread = carrier_spread(input_carrier(halves[0], _whitened), halves[1])
        return input_carrier(inputs, _whitened), spread
    except AbliterationError:
        return None


def _whitened(samples: Tensor, vector: Tensor) -> Tensor:
    """Sigma^-1 vector with the shrunk covariance of the samples."""
    return solve(samples - samples.mean(dim=0), vector[None])[0][0]
