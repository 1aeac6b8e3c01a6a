# SPDX-License-Identifier: Apache-2.0
"""What all strategies share: where strength falls over depth, and which directions belong to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heretic.architectures.site import Architecture, Site
from heretic.constants import NEAR_ZERO, STRENGTH_LIMIT
from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings
from heretic.exceptions import ConfigurationError
from heretic.interventions.additions import set_point
from heretic.interventions.edit import ablation, oblique
from heretic.interventions.schedule import Kernel, LayerProfile, strengths
from heretic.linalg.lowrank import project_out

Parameters = Mapping[str, "float | int | str | None"]
Goal = Literal["suppress", "induce"]


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What every planner is given besides the parameters. cap: highest strength after all multipliers."""

    architecture: Architecture
    findings: Findings
    profile: LayerProfile
    cap: float
    goal: Goal = "suppress"

    def __post_init__(self) -> None:
        if not 0.0 < self.cap <= STRENGTH_LIMIT:
            raise ConfigurationError(
                f"max_strength is {self.cap:g}; above {STRENGTH_LIMIT:g} a removed part returns larger than before.",
                hint=f"Use a value above 0 and up to {STRENGTH_LIMIT:g}.",
            )

    def bank(self, parameters: Parameters) -> DirectionBank:
        """The source that the trial chose, else the default one."""
        name = parameters.get("direction_source")
        if name is None:
            return self.findings.bank
        if name not in self.findings.sources:
            raise ConfigurationError(
                f"The trial's direction_source is {name!r}.",
                hint=f"This run has: {', '.join(self.findings.sources)}.",
            )
        return self.findings.sources[str(name)]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Directions [k, d] of one layer, what is read in their place (or None), and weights [k], 1 for the first."""

    directions: Tensor
    covectors: Tensor | None
    weights: Tensor


def number(parameters: Parameters, name: str) -> float:
    """A numeric parameter that the strategy needs."""
    value = parameters.get(name)
    if not isinstance(value, int | float):
        raise ConfigurationError(f"The trial has no number for {name!r} (found {value!r}).")
    return float(value)


def kernel_of(parameters: Parameters, component: str) -> Kernel | None:
    """The kernel of a component; None when its peak weight is zero or it is not in the parameters."""
    peak = parameters.get(f"{component}.max_weight")
    if not isinstance(peak, int | float) or peak <= 0:
        return None
    return Kernel(
        peak=float(peak),
        position=number(parameters, f"{component}.max_weight_position"),
        floor=number(parameters, f"{component}.min_weight"),
        half_width=number(parameters, f"{component}.min_weight_distance"),
    )


def placed(parameters: Parameters, context: PlanContext) -> Iterator[tuple[Site, float]]:
    """Every site with a strength above 0, in the architecture's order."""
    layers = context.architecture.layers
    table = {
        component: strengths(
            kernel, layers, context.profile, cap=context.cap, calibration=context.findings.factors
        )
        for component in context.architecture.components
        if (kernel := kernel_of(parameters, component)) is not None
    }
    for site in context.architecture.sites:
        if site.component in table and table[site.component][site.layer] > 0.0:
            yield site, table[site.component][site.layer]


def spans(parameters: Parameters, context: PlanContext, limit: int) -> Callable[[int], Span]:
    """Layer -> the first `limit` components there: its own, or for the scope `global` those of `direction_index`,
    without what that layer protects."""
    bank = context.bank(parameters)
    table = context.findings.weights

    def at(index: float) -> Span:
        count = max(1, min(limit, bank.count_at(index)))
        covectors = bank.covectors_at(index)
        own = torch.ones(count) if table is None else table[bank.nearest(index)][:count]
        return Span(
            directions=bank.at(index)[:count],
            covectors=None if covectors is None else covectors[:count],
            weights=own,
        )

    scope = parameters.get("direction_scope") or "per_layer"
    if scope not in ("per_layer", "global"):
        raise ConfigurationError(
            f"The trial's direction_scope is {scope!r}.", hint="Use per_layer or global."
        )
    if scope == "per_layer":
        return at
    shared, protected = at(number(parameters, "direction_index")), context.findings.protected
    if protected is None:
        return lambda layer: shared
    return lambda layer: _outside(shared, protected[layer])


def _outside(span: Span, protected: Tensor) -> Span:
    """The span without what the layer it is used at protects [p, d]: that need not be what its own layer protects.

    A direction that lies wholly within it has no strength there.
    """
    rows = protected[protected.any(dim=1)]
    kept = project_out(span.directions, rows.T)
    lengths = kept.norm(dim=1)
    present = lengths > NEAR_ZERO
    directions = torch.where(present[:, None], kept / lengths.clamp_min(NEAR_ZERO)[:, None], span.directions)
    return Span(directions, span.covectors, span.weights * present)


def shares(span: Span, strength: float, context: PlanContext) -> Tensor:
    """[k], what each direction loses at a site of this strength: times its weight, and then the cap again."""
    return (strength * span.weights).clamp(max=context.cap)


def target_along(span: Span, removed: Tensor, site: Site, centre: Tensor) -> Tensor:
    """R diag(a) DT c [d], which turns a removal of `removed` = a about c (algorithms 4.7).

    R and D are those of the removal itself, so the coordinates agree also where directions are oblique to one another,
    as at a fractional layer index, or are measured by co-vectors.
    """
    removal = (
        ablation(span.directions, removed)
        if span.covectors is None
        else oblique(span.directions, span.covectors, removed)
    )
    shift = set_point(removal, centre, site).bias
    assert shift is not None
    return shift


def amplified(parameters: Parameters) -> float:
    """The share removed at strength 1 for the goal `induce`: minus the amplification."""
    return -float(parameters.get("amplification") or 0.0)


def signed(
    parameters: Parameters, context: PlanContext, site: Site, span: Span, strength: float
) -> tuple[Tensor, Tensor | None]:
    """(shares removed [k], constant added [d]) at a site (algorithms 4.7).

    For `suppress` the shares a and nothing. For `induce`, with amplification g and set-point share s, the coordinates
    along the directions become (1 + (g - s) a) own + s a target: what is there grows, and is drawn towards what the
    writer makes of prompts that show the behaviour. A writer that can carry no constant is amplified only.
    """
    removed = shares(span, strength, context)
    if context.goal == "suppress":
        return removed, None
    known = context.findings.shifts.get(site.path)
    share = float(parameters.get("addition_strength") or 0.0)
    if known is None or share == 0.0:
        return amplified(parameters) * removed, None
    shift = target_along(span, share * removed, site, known.unit)
    return (share + amplified(parameters)) * removed, shift


def require_suppress(context: PlanContext, strategy: str) -> None:
    """Raise `ConfigurationError` for a strategy that can only take away (R-DIR-09)."""
    if context.goal != "suppress":
        raise ConfigurationError(
            f"The strategy {strategy} cannot {context.goal}: it has nothing to add.",
            hint="Use single, subspace, heads or caa.",
        )
