# SPDX-License-Identifier: Apache-2.0
"""Random findings for any loaded model, and what the formulas of algorithms 4 make of a writer under a strategy.

The contract itself is in `heretic.testing.strategies`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from heretic.architectures.resolve import stream_scale
from heretic.architectures.site import Site
from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings, Head, Shift
from heretic.exceptions import ConfigurationError
from heretic.interventions.additions import input_carrier, require_constant
from heretic.interventions.edit import Edit
from heretic.interventions.heads import head_columns, head_layout, head_layouts
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.placement import Goal, PlanContext
from heretic.interventions.plan import Plan
from heretic.interventions.planners import Planner
from heretic.interventions.probe import edited_weights
from heretic.interventions.schedule import LayerProfile
from heretic.interventions.weights import edited_bias, edited_parameter
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.testing.theorems import forward, streams

Value = float | int | str | None
Values = Mapping[str, Value]

OWN: Final[Mapping[str, Values]] = MappingProxyType(
    {
        "single": {},
        "subspace": {"n_components": 3},
        "cones": {},
        "norm_preserving": {"n_components": 2, "norm_mode": "column"},
        "oblique": {"center": "yes"},
        "heads": {"n_heads": 3},
        "caa": {"addition_strength": 0.5},
    }
)
"""Strategy -> the parameters that it has beside the kernels and the scope. A strategy is known when it is here."""


def planted_findings(model: Model, strategy: str, goal: Goal = "suppress", *, seed: int = 0) -> Findings:
    """All that planners work with, at random, as extraction for this strategy and goal would hand it over.

    Two sources: `difference` with 3 orthonormal components (and co-vectors for `oblique`), and `probe` with one
    direction and its co-vector. Component weights for strategies that take `n_components`. Two protected rows a layer,
    orthogonal to all directions of it. Every query head. Shifts of the writers that can carry a constant, by the
    carrier of their inputs where there is no bias: their mean write over `tokens()`; for `caa` one of length 2 in the
    last of a block, outside what is removed or protected.
    """
    generator = torch.Generator().manual_seed(seed)
    sites, layers = model.architecture.sites, model.architecture.layers
    shape = 8, model.architecture.hidden_size
    # Neighbouring layers resemble one another, so that a mix of them is defined.
    drawn = torch.randn(*shape, generator=generator) + torch.randn(layers, *shape, generator=generator)
    frame = torch.linalg.qr(drawn.double().mT).Q.mT.float()
    rows, benign = frame[:, :3], 0.5 * frame[:, 5:6]
    bank = DirectionBank(
        rows,
        torch.tensor([3.0, 2.0, 1.0]).repeat(layers, 1),
        rows + benign if strategy == "oblique" else None,
    )
    other = nn.functional.normalize(frame[:, :1] + frame[:, 1:2], dim=2)
    layouts = head_layouts(model.network, sites)
    ranks = [(number, site.layer) for site, layout in layouts.items() for number in range(layout.heads)]
    compliant = {site.layer: (site, 2.0 * frame[site.layer, 6]) for site in carrying(model)}
    return Findings(
        sources={"difference": bank, "probe": DirectionBank(other, torch.ones(layers, 1), other + benign)},
        weights=torch.tensor([1.0, 0.6, 0.3]).repeat(layers, 1) if "n_components" in OWN[strategy] else None,
        heads=tuple(Head(layer, number, 0.5**number) for number, layer in sorted(ranks)),
        head_sites=frozenset(site.path for site in layouts),
        shifts=_shifts(model, dict(compliant.values()) if (strategy, goal) == ("caa", "suppress") else None),
        protected=frame[:, 3:5],
    )


def carrying(model: Model) -> list[Site]:
    """The writers that can carry a constant."""
    found = []
    for site in model.architecture.sites:
        try:
            require_constant(site)
        except ConfigurationError:
            continue
        found.append(site)
    return found


def _shifts(model: Model, units: Mapping[Site, Tensor] | None) -> dict[str, Shift]:
    """Shifts of the given units, else of what each carrying writer makes of `tokens()` on average."""
    seen: dict[Site, tuple[Tensor, Tensor]] = {}
    with ExitStack() as stack:
        for site in carrying(model):

            def keep(
                module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, site: Site = site
            ) -> None:
                seen[site] = inputs[0].flatten(0, -2), output.flatten(0, -2)

            handle = model.network.get_submodule(site.hook).register_forward_hook(keep)
            stack.callback(handle.remove)
        forward(model.network)
    found = {site: output.mean(dim=0) for site, (_, output) in seen.items()} if units is None else units
    return {
        site.path: Shift(unit, None if site.bias is not None else input_carrier(seen[site][0]))
        for site, unit in found.items()
    }


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """One strategy on one model. `own` are the strategy's parameters, where they are not those of `OWN`."""

    strategy: str
    planner: Planner
    model: Model
    findings: Findings
    goal: Goal = "suppress"

    @property
    def summed(self) -> list[Site]:
        """Writers that a router adds up, whose lengths and inputs no edit can reach."""
        sites = self.model.architecture.sites
        return [
            site for site in sites if site.experts is not None or site.hook != site.path.rpartition(".")[0]
        ]

    def parameters(self, strength: float, own: Values) -> dict[str, Value]:
        """The strategy's own parameters, and a flat kernel for each component that it can edit."""
        shut = {site.component for site in self.summed} if self.strategy == "norm_preserving" else set()
        point: dict[str, Value] = {"direction_scope": "per_layer", **OWN[self.strategy]}
        for component in self.model.architecture.components:
            point |= {
                f"{component}.max_weight": 0.0 if component in shut else strength,
                f"{component}.max_weight_position": 0.0,
                f"{component}.min_weight": 1.0,
                f"{component}.min_weight_distance": float(self.model.architecture.layers),
            }
        return {**point, **own}

    def plan(self, strength: float, own: Values = OWN["single"]) -> Plan:
        """The plan at one strength everywhere."""
        context = PlanContext(self.model.architecture, self.findings, LayerProfile(), 2.0, self.goal)
        return self.planner(self.parameters(strength, own), context)

    def edits(self, strength: float, own: Values = OWN["single"]) -> Edits:
        """The edits at one strength everywhere, no writer named twice."""
        plan = self.plan(strength, own)
        assert len({row.site for row in plan.rows}) == len(plan.rows), "two rows for one writer"
        return plan.edits(Writers(self.model.network))

    def chosen(self, own: Values) -> dict[int, list[int]]:
        """Layer -> the query heads that are edited."""
        count = int(float({**OWN[self.strategy], **own}["n_heads"] or 0))
        found: dict[int, list[int]] = {}
        for head in self.findings.heads[:count]:
            found.setdefault(head.layer, []).append(head.head)
        return found

    def reached(self, own: Values) -> set[Site]:
        """The writers that the strategy edits."""
        point = self.parameters(1.0, own)
        sites = {site for site in self.model.architecture.sites if point[f"{site.component}.max_weight"]}
        if self.strategy != "heads":
            return sites
        chosen = self.chosen(own)
        return {site for site in sites if site.path in self.findings.head_sites and site.layer in chosen}

    def pair(self, site: Site, own: Values) -> tuple[Tensor, Tensor, Tensor]:
        """(R [d, k], D [d, k] with DT R = I, weights [k]) at a writer, float64, as the stream sees them."""
        point, bank = self.parameters(1.0, own), self.findings.bank
        index = float(site.layer)
        if point["direction_scope"] == "global":
            index = float(point["direction_index"] or 0.0)
        count = int(float(point.get("n_components") or (bank.components if self.strategy == "cones" else 1)))
        rows, covectors, table = (
            bank.at(index)[:count].double(),
            bank.covectors_at(index),
            self.findings.weights,
        )
        weights = torch.ones(count) if table is None else table[bank.nearest(index)][:count]
        guarded = self.findings.protected
        if guarded is not None and point["direction_scope"] == "global":
            # What the site's own layer protects need not be what the direction's layer protects.
            kept = guarded[site.layer].double()
            rows = nn.functional.normalize(rows - (rows @ kept.T) @ kept, dim=1)
        if covectors is None:
            basis = torch.linalg.qr(rows.T).Q
            return basis, basis, weights.double()
        reading = covectors[:count].double()
        return rows.T, torch.linalg.solve(reading @ rows.T, reading).T, weights.double()


def written(model: Model, site: Site, edit: Edit | None) -> Tensor:
    """[W, b] of a writer under an edit in weight form, float64 [.., d, m + 1]; a missing bias is 0."""
    nothing = Edit(
        torch.zeros(model.architecture.hidden_size, 0), torch.zeros(model.architecture.hidden_size, 0)
    )
    local = (edit or nothing).to("cpu", torch.float64)
    matrix = edited_parameter(model.parameter(site.path), local, site)
    matrix = matrix if site.residual_axis == 0 else matrix.mT
    bias = matrix.new_zeros(matrix.shape[:-1])
    if site.bias is not None:
        bias = edited_bias(model.parameter(site.bias), local)
    return torch.cat([matrix, bias[..., None]], dim=-1)


def seen_by(model: Model, site: Site, read: Tensor) -> Tensor:
    """What of a writer's own output a reading [d, k] of the stream reads: through the gain of the norm behind it."""
    gamma = Writers(model.network, torch.float64).gain(site)
    if gamma is None:
        return read
    through = gamma[:, None] * read
    assert site.gain is not None
    return through - through.mean(dim=0) if site.gain.kind == "layer" else through


def deviation(subject: Subject, site: Site, edit: Edit, strength: float, own: Values) -> float:
    """How far an edited writer is from the formulas, relative to the largest number of [W, b].

    W' = W - R diag(a) DT W + t pT and b' = b - R diag(a) DT b + t with the a and t of algorithms 4.7; on the columns
    of the chosen heads alone (4.6); with columns as long as they were (4.4). Behind a norm the formulas say only what
    the stream receives along D.
    """
    removed, read, weights = subject.pair(site, own)
    base, after = written(subject.model, site, None), written(subject.model, site, edit)
    shares, constant = _amounts(subject, site, strength * weights, own)
    if site.gain is not None:
        read = seen_by(subject.model, site, read)
        removed = torch.linalg.pinv(read).T
    lost = (removed * shares) @ (read.T @ base)
    if subject.strategy == "heads":
        lost = lost * head_mask(subject, site, own)
    expected = base - lost + constant * carrier(subject, site)
    if subject.strategy == "norm_preserving":
        assert edit.column_gain is not None, f"{site.path} has no column gains"
        lengths = [values[:, :-1].norm(dim=0) for values in (base, expected)]
        gains = edit.column_gain.double() if site.gain is not None else lengths[0] / lengths[1]
        expected[:, :-1] *= gains
    if site.gain is not None:
        expected, after = read.T @ expected, read.T @ after
    return float((after - expected).abs().max() / base.abs().max())


def _amounts(subject: Subject, site: Site, shares: Tensor, own: Values) -> tuple[Tensor, Tensor]:
    """(a [k], t [d, 1]) of algorithms 4.7. shares: [k], the strength times the component weights."""
    point = subject.parameters(1.0, own)
    removed, read, weights = subject.pair(site, own)
    known = subject.findings.shifts.get(site.path)
    centre = removed.new_zeros(len(removed)) if known is None else known.unit.double()
    amount = (
        0.0 if known is None or subject.strategy == "heads" else float(point.get("addition_strength") or 0)
    )
    towards = (removed * shares) @ (read.T @ centre)
    if subject.goal == "induce":
        gain = float(point.get("amplification") or 0.0)
        return (amount - gain) * shares, amount * towards[:, None]
    if subject.strategy == "caa":
        return shares, amount * min(1.0, float(shares[0] / weights[0])) * centre[:, None]
    return shares, float(point.get("center") == "yes") * towards[:, None]


def carrier(subject: Subject, site: Site) -> Tensor:
    """[m + 1], what a constant is multiplied with: the inputs where the findings have a carrier, else the bias."""
    known = subject.findings.shifts.get(site.path)
    if known is not None and known.carrier is not None:
        return torch.cat([known.carrier.double(), torch.zeros(1, dtype=torch.float64)])
    width = subject.model.parameter(site.path).shape[-1 if site.residual_axis == 0 else -2]
    return torch.eye(width + 1, dtype=torch.float64)[-1]


def head_mask(subject: Subject, site: Site, own: Values) -> Tensor:
    """[m + 1], 1 at the columns of the chosen heads of a writer."""
    layout = head_layout(subject.model.network, site)
    assert layout is not None
    mask = torch.zeros(layout.heads * layout.size + 1, dtype=torch.float64)
    for head in subject.chosen(own)[site.layer]:
        mask[head_columns(head, layout.size)] = 1.0
    return mask


def stream_share(model: Model, edits: Edits, readings: Mapping[int, Tensor]) -> float:
    """Largest |DT (h_l - h_(l-1))| / |h_l - h_(l-1)| over blocks and tokens, in weight form; D [d, k] per layer."""
    shares = []
    with edited_weights(model.network, edits):
        for layer, (entering, leaving) in enumerate(streams(model.network, model.architecture)):
            change = leaving - stream_scale(model.network, model.architecture, layer) * entering
            along = change @ nn.functional.normalize(readings[layer].float(), dim=0)
            shares.append(float((along.norm(dim=-1) / change.norm(dim=-1)).max()))
    return max(shares)


def turned_subject(subject: Subject, turn: Tensor) -> Subject:
    """The subject with all directions and shifts, and all writers that no norm follows, turned by O = turn [d, d]."""
    network = copy.deepcopy(subject.model.network)

    def rows(old: Tensor) -> Tensor:
        return (old.double() @ turn.T).to(old.dtype)

    for site in subject.model.architecture.sites:
        if site.gain is None:
            weight = network.get_parameter(site.path)
            weight.data = (
                rows(weight.data) if site.residual_axis == 1 else rows(weight.data.mT).mT.contiguous()
            )
            if site.bias is not None:
                bias = network.get_parameter(site.bias)
                bias.data = rows(bias.data)
    found = subject.findings
    banks = {
        name: replace(
            bank,
            directions=rows(bank.directions),
            covectors=None if bank.covectors is None else rows(bank.covectors),
        )
        for name, bank in found.sources.items()
    }
    shifts = {path: replace(shift, unit=rows(shift.unit)) for path, shift in found.shifts.items()}
    guarded = None if found.protected is None else rows(found.protected)
    turned = replace(found, sources=banks, shifts=shifts, protected=guarded)
    return replace(subject, model=replace(subject.model, network=network), findings=turned)


def tensors_of(subject: Subject) -> list[Tensor]:
    """Everything that planning must leave as it is."""
    found = subject.findings
    values = [bank.directions for bank in found.sources.values()]
    values += [shift.unit for shift in found.shifts.values()]
    return values + [parameter.detach() for parameter in subject.model.network.parameters()]


def changes_nothing(model: Model, edits: Edits) -> bool:
    """No bit of the logits differs, with hooks or with weights; both or neither."""
    batch = model.batch([[90, 100, 110, 120, 130], [95, 105]])
    base = model.logits(batch, 2)
    with applied(model.network, [edits], Rows(torch.zeros(2, dtype=torch.int64))):
        hooked = torch.equal(model.logits(batch, 2), base)
    with edited_weights(model.network, edits):
        changed = torch.equal(model.logits(batch, 2), base)
    assert hooked == changed, "one form changes something and the other does not"
    return hooked
