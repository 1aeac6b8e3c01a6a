# SPDX-License-Identifier: Apache-2.0
"""Iterative refinement as a fixed basis: what separates the classes once the basis so far is gone (algorithms 9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import Contrast
from heretic.directions.difference import difference
from heretic.directions.preserve import Protection, protected_contrast
from heretic.exceptions import AbliterationError, ExtractionError
from heretic.interventions.hooks import Edits
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.probe import hooked
from heretic.interventions.writers import Writers
from heretic.linalg.separation import cross_fitted_separation

if TYPE_CHECKING:
    from heretic.phases.direction_extraction import Extraction

LEAST_AUROC: Final = 0.65
LEAK: Final = 1e-2
"""Share of the first difference that may come back along what was removed: rounding; above it a writer was missed."""

CostOf = Callable[[Edits], float | None]
"""Mean KL of an edit in nats per token; None where it is not finite."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """number: rounds of extraction, the first included. least: a difference shorter than this share of the first one
    ends them. most_kl: full removal of the basis so far may cost this much. cost: measures it; None = no limit."""

    number: int = 1
    least: float = 0.1
    most_kl: float = 0.5
    cost: CostOf | None = None


def refined(work: Extraction, bank: DirectionBank, layer: int, rounds: Rounds) -> DirectionBank:
    """The bank with up to `rounds.number` - 1 further components, each found after full removal of those before it.

    The basis of `layer` (the one that separates best) is removed from every writer; then each layer's difference is
    taken again, without its part along its own basis. Stops when the cross-fitted AUROC falls below 0.65 everywhere, or
    by the limits of `rounds`; the reason is noted. Raises `AbliterationError` when what was removed is still written.
    """
    stopped = ""
    for number in range(1, rounds.number):
        edits = full_removal(work, bank, layer)
        spent = 0.0 if rounds.cost is None else rounds.cost(edits)
        if spent is None or spent > rounds.most_kl:
            stopped = (
                f"full removal of {number} components costs a KL of {spent}, more than {rounds.most_kl:g}"
            )
            break
        found, stopped = _next_component(work, bank, layer, rounds.least)
        if found is None:
            break
        bank = found
    work.notes["iteration"] = {"components": bank.components, "stopped": stopped}
    return bank


def full_removal(work: Extraction, bank: DirectionBank, layer: int) -> Edits:
    """Every component of one layer removed from every writer."""
    model = work.captures.model
    count = max(1, bank.count_at(layer))
    rows = tuple(
        PlanRow(site, bank.directions[layer, :count], torch.ones(count)) for site in model.architecture.sites
    )
    return Plan(rows).edits(Writers(model.network))


def _next_component(
    work: Extraction, bank: DirectionBank, layer: int, least: float
) -> tuple[DirectionBank | None, str]:
    captures = work.captures.afresh()
    with hooked(captures.model.network, full_removal(work, bank, layer)):
        again = Contrast(
            captures.residuals(work.bundle.bad.prompts), captures.residuals(work.bundle.good.prompts)
        )
    require_removed(again, work.contrast, bank, layer)
    generator = torch.Generator().manual_seed(work.options.seed)
    auroc = [
        cross_fitted_separation(again.target[:, layer], again.control[:, layer], generator)[0]
        for layer in range(again.layers)
    ]
    if max(auroc) < LEAST_AUROC:
        return None, f"after removal the classes are not separable any more (AUROC {max(auroc):.2f} at best)"
    try:
        free = protected_contrast(
            again.guarded(work.contrast.protected),
            Protection("what is removed already", bank.directions),
            project=work.options.project,
        )
        further = difference(free, project=work.options.project)
    except ExtractionError as error:
        return None, error.message
    share = float(further.spread.max() / bank.spread[:, 0].max())
    if share < least:
        return None, f"the next difference has {share:.3f} of the length of the first"
    return _appended(bank, further), ""


def _appended(bank: DirectionBank, further: DirectionBank) -> DirectionBank:
    """The bank with the component 0 of another behind the components that each layer has."""
    count = (bank.spread > 0).sum(dim=1)
    directions = torch.cat([bank.directions, torch.zeros_like(further.directions)], dim=1)
    spread = torch.cat([bank.spread, torch.zeros_like(further.spread)], dim=1)
    layers = torch.arange(bank.layers)
    directions[layers, count] = further.directions[:, 0]
    spread[layers, count] = further.spread[:, 0]
    return replace(bank, directions=directions, spread=spread)


def require_removed(again: Contrast, before: Contrast, bank: DirectionBank, layer: int) -> None:
    """Raise `AbliterationError` when what was removed still separates the classes there.

    The embedding is not edited: the last token of a prompt is the template's, the same in both classes.
    """
    parts = []
    for contrast in (again, before):
        gap = contrast.target[:, layer].double().mean(dim=0) - contrast.control[:, layer].double().mean(dim=0)
        parts.append(float((bank.directions[layer].double() @ gap).norm()))
    inside = parts[0] / max(parts[1], 1e-30)
    if inside > LEAK:
        raise AbliterationError(
            f"After removal {inside:.1%} of the class difference at layer {layer} still lies along what was removed.",
            hint="A writer of this model is not covered; see heretic inspect.",
        )
