# SPDX-License-Identifier: Apache-2.0
"""Strategies: each is one short planner that turns a trial's parameters into a plan (requirements 5.1).

What they share is in `heretic.interventions.placement`: where strength falls and which directions belong there.
"""

from __future__ import annotations

from typing import Protocol

from heretic.exceptions import ConfigurationError
from heretic.interventions.additions import require_constant
from heretic.interventions.placement import (
    Parameters,
    PlanContext,
    amplified,
    number,
    placed,
    require_suppress,
    shares,
    signed,
    spans,
    target_along,
)
from heretic.interventions.plan import Plan, PlanRow
from heretic.registry import Registry


class Planner(Protocol):
    """Turns parameters into a plan; raises `ConfigurationError` for missing or unknown values."""

    def __call__(self, parameters: Parameters, context: PlanContext) -> Plan: ...


STRATEGIES: Registry[Planner] = Registry("strategy")


@STRATEGIES.register("single")
def single(parameters: Parameters, context: PlanContext) -> Plan:
    """One direction per site: the layer's own (scope per_layer) or one for all (scope global, fractional index)."""
    return _spanned(parameters, context, limit=1)


@STRATEGIES.register("subspace")
def subspace(parameters: Parameters, context: PlanContext) -> Plan:
    """The span of the first `n_components`, jointly orthonormal, each with its weight (algorithms 4.1)."""
    return _spanned(parameters, context, limit=int(number(parameters, "n_components")))


@STRATEGIES.register("cones")
def cones(parameters: Parameters, context: PlanContext) -> Plan:
    """The span of the directions of all categories of prompts, with one strength (algorithms 3.7)."""
    return _spanned(parameters, context, limit=context.bank(parameters).components)


def _spanned(parameters: Parameters, context: PlanContext, limit: int) -> Plan:
    """Removal of a span, or for the goal `induce` amplification and a signed shift along it (algorithms 4.7)."""
    span_of = spans(parameters, context, limit)
    rows = []
    for site, strength in placed(parameters, context):
        span = span_of(site.layer)
        removed, shift = signed(parameters, context, site, span, strength)
        rows.append(
            PlanRow(
                site,
                span.directions,
                removed,
                covectors=span.covectors,
                shift=shift,
                carrier=None if shift is None else context.findings.shifts[site.path].carrier,
            )
        )
    return Plan(tuple(rows))


@STRATEGIES.register("norm_preserving")
def norm_preserving(parameters: Parameters, context: PlanContext) -> Plan:
    """As `subspace`, with the length of what each input writes (column) or of each output row kept (algorithms 4.4)."""
    require_suppress(context, "norm_preserving")
    span_of = spans(parameters, context, int(number(parameters, "n_components")))
    mode = parameters.get("norm_mode")
    if mode not in ("column", "row"):
        raise ConfigurationError(f"The trial's norm_mode is {mode!r}.", hint="Use column or row.")
    return Plan(
        tuple(
            PlanRow(
                site,
                span.directions,
                shares(span, strength, context),
                covectors=span.covectors,
                keep="column" if mode == "column" else "row",
            )
            for site, strength in placed(parameters, context)
            for span in (span_of(site.layer),)
        )
    )


@STRATEGIES.register("oblique")
def oblique(parameters: Parameters, context: PlanContext) -> Plan:
    """Removal measured by a co-vector that benign activity hardly moves (LEACE form; algorithms 3.6, 4.2).

    With `center` the edit turns about what the writer makes of benign prompts, y' = y - a R DT (y - c), where the
    writer can carry the constant a R DT c.
    """
    require_suppress(context, "oblique")
    span_of = spans(parameters, context, 1)
    center = parameters.get("center")
    if center not in ("yes", "no", None):
        raise ConfigurationError(f"The trial's center is {center!r}.", hint="Use yes or no.")
    rows = []
    for site, strength in placed(parameters, context):
        span = span_of(site.layer)
        if span.covectors is None:
            raise ConfigurationError(
                "The directions of this run have no co-vectors.", hint="Extract them again."
            )
        removed = shares(span, strength, context)
        known = context.findings.shifts.get(site.path) if center == "yes" else None
        rows.append(
            PlanRow(
                site,
                span.directions,
                removed,
                covectors=span.covectors,
                shift=None if known is None else target_along(span, removed, site, known.unit),
                carrier=None if known is None else known.carrier,
            )
        )
    return Plan(tuple(rows))


@STRATEGIES.register("heads")
def heads(parameters: Parameters, context: PlanContext) -> Plan:
    """Removal from what the strongest query heads write, and from nothing else (algorithms 4.6).

    For the goal `induce` what they write is amplified; a head can carry no constant.
    """
    factor = 1.0 if context.goal == "suppress" else amplified(parameters)
    chosen: dict[int, list[int]] = {}
    for head in context.findings.heads[: int(number(parameters, "n_heads"))]:
        chosen.setdefault(head.layer, []).append(head.head)
    span_of = spans(parameters, context, 1)
    rows = []
    for site, strength in placed(parameters, context):
        if site.path not in context.findings.head_sites or site.layer not in chosen:
            continue
        span = span_of(site.layer)
        rows.append(
            PlanRow(
                site,
                span.directions,
                factor * shares(span, strength, context),
                covectors=span.covectors,
                heads=tuple(sorted(chosen[site.layer])),
            )
        )
    return Plan(tuple(rows))


@STRATEGIES.register("caa")
def caa(parameters: Parameters, context: PlanContext) -> Plan:
    """Removal of one direction, and a signed shift towards replies without the behaviour (algorithms 3.8, 4.7).

    The shift is made by the last writer of a block that can carry a constant; its unit is what that writer makes of
    replies without the behaviour, less what it makes of replies with it.
    """
    if context.goal == "induce":
        return single(parameters, context)
    span_of = spans(parameters, context, 1)
    amount = parameters.get("addition_strength")
    rows = []
    for site, strength in placed(parameters, context):
        span = span_of(site.layer)
        known = context.findings.shifts.get(site.path)
        shift = None
        if known is not None and isinstance(amount, int | float) and amount > 0:
            require_constant(site)
            shift = float(amount) * min(1.0, strength) * known.unit
        rows.append(
            PlanRow(
                site,
                span.directions,
                shares(span, strength, context),
                covectors=span.covectors,
                shift=shift,
                carrier=None if known is None or shift is None else known.carrier,
            )
        )
    return Plan(tuple(rows))
