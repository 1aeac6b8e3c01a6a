# SPDX-License-Identifier: Apache-2.0
"""Strategies: each is one short planner that turns a trial's parameters into a plan (requirements 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from heretic.architectures.site import Architecture
from heretic.constants import STRENGTH_LIMIT
from heretic.directions.bank import DirectionBank
from heretic.exceptions import ConfigurationError
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.schedule import Kernel, LayerProfile, strengths
from heretic.registry import Registry

Parameters = Mapping[str, "float | int | str | None"]


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What every planner is given besides the parameters. cap: highest strength after all multipliers."""

    architecture: Architecture
    bank: DirectionBank
    profile: LayerProfile
    cap: float

    def __post_init__(self) -> None:
        if not 0.0 < self.cap <= STRENGTH_LIMIT:
            raise ConfigurationError(
                f"max_strength is {self.cap:g}; above {STRENGTH_LIMIT:g} a removed part returns larger than before.",
                hint=f"Use a value above 0 and up to {STRENGTH_LIMIT:g}.",
            )


class Planner(Protocol):
    """Turns parameters into a plan; raises `ConfigurationError` for parameters it does not know."""

    def __call__(self, parameters: Parameters, context: PlanContext) -> Plan: ...


STRATEGIES: Registry[Planner] = Registry("strategy")


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


@STRATEGIES.register("single")
def single(parameters: Parameters, context: PlanContext) -> Plan:
    """One direction per site: the layer's own (scope per_layer) or one for all (scope global, fractional index)."""
    layers = context.architecture.layers
    scope = parameters.get("direction_scope", "per_layer")
    shared = context.bank.at(number(parameters, "direction_index"))[:1] if scope == "global" else None
    table = {
        component: strengths(kernel, layers, context.profile, cap=context.cap)
        for component in context.architecture.components
        if (kernel := kernel_of(parameters, component)) is not None
    }
    rows = [
        PlanRow(
            site=site,
            directions=context.bank.at(site.layer)[:1] if shared is None else shared,
            strengths=torch.tensor([table[site.component][site.layer]]),
        )
        for site in context.architecture.sites
        if site.component in table and table[site.component][site.layer] > 0.0
    ]
    return Plan(rows=tuple(rows))
