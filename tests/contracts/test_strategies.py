# SPDX-License-Identifier: Apache-2.0
"""Every registered strategy keeps its contract on every layout of writers; broken planners are found out
(algorithms 1.7, 4, 5.1, 6.6, 12; R-DIR-05, R-DIR-09)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from heretic.exceptions import ConfigurationError
from heretic.interventions.edit import Edit, ablation
from heretic.interventions.heads import head_layouts
from heretic.interventions.placement import Parameters, PlanContext
from heretic.interventions.plan import Plan, PlanRow, edit_of
from heretic.interventions.planners import STRATEGIES, Planner
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.model.tokens import Batch
from heretic.testing.pico import PICO_FAMILIES
from heretic.testing.strategies import (
    INDUCING,
    THEOREMS,
    broken_theorems,
    check_strategy,
    check_together,
)
from heretic.testing.strategy_cases import OWN, Subject, carrying, planted_findings
from heretic.testing.workbench import loaded_pico

LAYOUTS = (
    "llama",  # linear writers with biases
    "gpt2",  # Conv1D, absolute positions
    "gptj",  # a bias at one of two writers
    "gemma2",  # norms behind all writers, gain 1 + weight
    "gemma4",  # a third writer, norms, a scaled stream
    "gpt_oss",  # routed experts [E, m, d] with biases
    "qwen2_moe",  # a dense layer, then routed [E, d, m] and shared experts; no bias
    "llama4",  # experts that are hooked together with the shared one
    "afmoe",  # a norm behind routed experts
    "lfm2",  # a token mixer without query heads
    "recurrent_gemma",  # the same with a bias
)
"""One family for each kind of writer, see `test_each_kind_of_writer_is_among_the_layouts`."""

BATCH_SENSITIVE = ("recurrent_gemma",)
"""The library's own convolution reads the padding: batch against batch (algorithms 6.6)."""

RESCALED = "keeping lengths rescales whole columns, protected coordinates among them"
WAIVED = {"norm_preserving": {"protected": RESCALED}}
"""Strategy -> theorem -> why it does not hold for it."""


@cache
def model_of(name: str) -> Model:
    return loaded_pico(name)


def subject(strategy: str, name: str) -> Subject:
    return Subject(strategy, STRATEGIES[strategy], model_of(name), planted_findings(model_of(name), strategy))


def test_every_registered_strategy_is_known_to_the_contract() -> None:
    """Architecture rule 12: a new strategy says here which parameters it has."""
    assert set(OWN) == set(STRATEGIES)


def kinds(name: str) -> set[tuple[object, ...]]:
    """Everything about the writers of a family that an edit can depend on."""
    model = model_of(name)
    divided = head_layouts(model.network, model.architecture.sites)
    return {
        (
            site.component,
            site.residual_axis,
            site.experts is not None,
            site.bias is not None,
            site.gain and (site.gain.form, site.gain.kind),
            site.hook != site.path.rpartition(".")[0],
            site in divided,
        )
        for site in model.architecture.sites
    }


def test_each_kind_of_writer_is_among_the_layouts() -> None:
    known = set[tuple[object, ...]]().union(*map(kinds, LAYOUTS))
    for name in PICO_FAMILIES:
        assert kinds(name) <= known, f"{name} has a writer that no layout above has"


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_a_registered_strategy_keeps_the_contract(strategy: str, name: str) -> None:
    waived = dict(WAIVED.get(strategy, {}))
    if name in BATCH_SENSITIVE:
        waived["together"] = "the family's own batch differs from single rows; compared in one shape below"
    check_strategy(strategy, model_of(name), waived=waived)


@pytest.mark.parametrize("name", PICO_FAMILIES)
def test_on_every_family_all_strategies_share_a_pass_and_are_exact(name: str) -> None:
    """Hook form = weight form, batch = single, 1.7 for whole-layer strategies, refusals by name; both goals at once."""
    model = model_of(name)
    trials = {}
    for strategy in STRATEGIES:
        own = subject(strategy, name)
        trials[strategy] = own.edits(0.8)
        if strategy in ("single", "norm_preserving", "oblique", "heads", "caa"):
            THEOREMS["refused"](own)
        if strategy in ("subspace", "oblique"):
            THEOREMS["exact"](own)
    for strategy in INDUCING:
        more = replace(
            subject(strategy, name), goal="induce", findings=planted_findings(model, strategy, "induce")
        )
        trials[f"{strategy}, induce"] = more.edits(0.5, {"amplification": 0.4, "addition_strength": 0.8})
    if not head_layouts(model.network, model.architecture.sites):
        assert not trials["heads"], "a family without query heads has no edits of heads"
    check_together(model, trials, same_shape=name in BATCH_SENSITIVE)


def test_waivers_are_of_registered_strategies_and_needed() -> None:
    """The control of `protected`: keeping lengths breaks it."""
    for strategy, theorems in WAIVED.items():
        assert strategy in STRATEGIES
        assert set(broken_theorems(strategy, model_of("llama"))) == set(theorems), strategy


@pytest.mark.parametrize("name", ("gemma2", "olmo2", "exaone4", "gemma4"))
def test_behind_a_norm_nothing_can_be_added(name: str) -> None:
    """Section 4.7: no shift is planted there, so that caa only removes. Control: llama has shifts."""
    assert len(subject("caa", "llama").findings.shifts) == model_of("llama").architecture.layers
    assert not carrying(model_of(name)) and not subject("caa", name).findings.shifts
    removing, adding = subject("single", name).edits(1.0), subject("caa", name).edits(1.0)
    assert all(edit.equals(adding[site]) for site, edit in removing.items())


@pytest.mark.parametrize("name", ("mixtral", "gpt_oss", "llama4"))
def test_routed_experts_are_refused_or_skipped_by_name(name: str) -> None:
    """Sections 4.4, 4.6, 6.1: lengths are refused; heads and constants leave the experts out; the rest edits them."""
    keeping = subject("norm_preserving", name)
    experts = {site for site in keeping.model.architecture.sites if site.experts is not None}
    assert experts
    for component in {site.component for site in experts}:
        with pytest.raises(ConfigurationError, match=r"experts.* routed experts; this edit needs one matrix"):
            keeping.edits(1.0, {f"{component}.max_weight": 1.0})
    assert not experts & set(subject("heads", name).edits(1.0))
    adding = subject("caa", name)
    assert experts <= set(adding.edits(1.0))
    assert not {site.path for site in experts} & set(adding.findings.shifts)
    assert all(adding.edits(1.0)[site].bias is None for site in experts)


# Controls: each is a registered planner with one fault.


@dataclass(frozen=True, slots=True, eq=False)
class OtherEdits(Plan):
    """A plan whose rows become edits in another way."""

    make: Callable[[PlanRow, Writers], Edit] = edit_of

    def edits(self, writers: Writers) -> dict[object, Edit]:  # type: ignore[override]  # the keys are sites
        return {row.site: self.make(row, writers) for row in self.rows}


def made_by(strategy: str, make: Callable[[PlanRow, Writers], Edit]) -> Planner:
    return lambda parameters, context: OtherEdits(STRATEGIES[strategy](parameters, context).rows, make)


def changed(strategy: str, change: Callable[[PlanRow], PlanRow]) -> Planner:
    return lambda parameters, context: Plan(
        tuple(change(row) for row in STRATEGIES[strategy](parameters, context).rows)
    )


def altered(name: str, change: Callable[[Any], object], row: PlanRow) -> PlanRow:
    changes: dict[str, Any] = {name: change(getattr(row, name))}
    return replace(row, **changes)


def singly(row: PlanRow, writers: Writers) -> list[Edit]:
    pairs = zip(row.directions, row.strengths, strict=True)
    return [
        edit_of(replace(row, directions=direction[None], strengths=strength[None]), writers)
        for direction, strength in pairs
    ]


def one_after_another(row: PlanRow, writers: Writers) -> Edit:
    first, *others = singly(row, writers)
    for other in others:
        first = other.after(first)
    return first


def sum_of_projections(row: PlanRow, writers: Writers) -> Edit:
    parts = singly(row, writers)
    return Edit(
        torch.cat([part.left for part in parts], dim=1),
        torch.cat([part.read for part in parts if part.read is not None], dim=1),
    )


def rows_of_heads(row: PlanRow, writers: Writers) -> Edit:
    """Rows of the matrix in place of columns: all heads lose something, and the chosen ones keep something."""
    whole = edit_of(replace(row, heads=None), writers)
    mask = torch.zeros(len(whole.left), 1)
    for head in row.heads or ():
        mask[10 * head : 10 * (head + 1)] = 1.0
    return replace(whole, left=whole.left * mask)


def multiplied(row: PlanRow, writers: Writers) -> Edit:
    """(I + s v vT) W: even in v, so that nothing is added on average."""
    edit = edit_of(replace(row, shift=None, carrier=None), writers)
    if row.shift is None:
        return edit
    assert edit.read is not None
    along = torch.nn.functional.normalize(row.shift, dim=0)[:, None]
    size = float(row.shift.norm())
    return replace(edit, left=torch.cat([edit.left, size * along], 1), read=torch.cat([edit.read, along], 1))


def gain_forgotten(row: PlanRow, writers: Writers) -> Edit:
    return ablation(row.directions, row.strengths)


def bias_forgotten(row: PlanRow, writers: Writers) -> Edit:
    edit, bias = edit_of(row, writers), writers.bias(row.site)
    assert edit.read is not None and bias is not None
    return replace(edit, bias=-edit.left @ (edit.read.T @ bias))


def random_start(row: PlanRow, writers: Writers) -> Edit:
    edit = edit_of(row, writers)
    return replace(edit, left=edit.left + 1e-7 * torch.randn(edit.left.shape))


def ignored_strength(parameters: Parameters, context: PlanContext) -> Plan:
    full = {name: 1.0 if name.endswith(".max_weight") else value for name, value in parameters.items()}
    return STRATEGIES["single"](full, context)


def next_layer(parameters: Parameters, context: PlanContext) -> Plan:
    rows, bank = STRATEGIES["single"](parameters, context).rows, context.findings.bank
    return Plan(
        tuple(replace(row, directions=bank.at((row.site.layer + 1) % bank.layers)[:1]) for row in rows)
    )


def by_position(parameters: Parameters, context: PlanContext) -> Plan:
    rows = STRATEGIES["single"](parameters, context).rows
    return Plan(tuple(replace(row, strengths=row.strengths / (1 + place)) for place, row in enumerate(rows)))


def in_place(parameters: Parameters, context: PlanContext) -> Plan:
    context.findings.bank.directions.mul_(1.0001)
    return STRATEGIES["single"](parameters, context)


def twice(parameters: Parameters, context: PlanContext) -> Plan:
    rows = STRATEGIES["single"](parameters, context).rows
    return Plan(rows + rows)


def some_heads(parameters: Parameters, context: PlanContext) -> Plan:
    rows = STRATEGIES["heads"](parameters, context).rows
    return Plan(tuple(replace(row, heads=(row.heads or ())[:1]) for row in rows))


def guarded_too(parameters: Parameters, context: PlanContext) -> Plan:
    rows, guarded = STRATEGIES["single"](parameters, context).rows, context.findings.protected
    assert guarded is not None
    return Plan(tuple(replace(row, directions=row.directions + guarded[row.site.layer, :1]) for row in rows))


def never_adding(parameters: Parameters, context: PlanContext) -> Plan:
    return STRATEGIES["single"](parameters, replace(context, goal="suppress"))


def target_unweighted(parameters: Parameters, context: PlanContext) -> Plan:
    """Further components are drawn to the whole target, although only a share of them is removed."""
    rows = []
    for row in STRATEGIES["subspace"](parameters, context).rows:
        known = context.findings.shifts.get(row.site.path)
        if row.shift is not None and known is not None:
            names = "addition_strength", f"{row.site.component}.max_weight"
            share, strength = (float(str(parameters[name])) for name in names)
            row = replace(row, shift=share * strength * (row.directions @ known.unit) @ row.directions)
        rows.append(row)
    return Plan(tuple(rows))


flipped = partial(altered, "strengths", torch.neg)
squared = partial(altered, "strengths", torch.square)
by_channel = partial(altered, "directions", lambda rows: rows.sign() * rows.abs().sqrt())
uncarried = partial(altered, "carrier", lambda old: None)
unmeasured = partial(altered, "covectors", lambda old: None)
unkept = partial(altered, "keep", lambda old: None)
by_rows = partial(altered, "keep", lambda old: "row")


def without_experts(parameters: Parameters, context: PlanContext) -> Plan:
    rows = STRATEGIES["norm_preserving"](parameters, context).rows
    return Plan(tuple(row for row in rows if row.site.experts is None))


FAULTS: dict[str, tuple[str, Planner, str, str]] = {
    "sign flipped": ("single", changed("single", flipped), "exact", "llama"),
    "strength squared": ("single", changed("single", squared), "share", "llama"),
    "strength ignored": ("single", ignored_strength, "identity", "llama"),
    "one after another": ("subspace", made_by("subspace", one_after_another), "joint", "llama"),
    "sum of projections": ("cones", made_by("cones", sum_of_projections), "joint", "llama"),
    "rows of heads": ("heads", made_by("heads", rows_of_heads), "share", "gpt2"),
    "some heads": ("heads", some_heads, "exact", "llama"),
    "multiplication for addition": ("caa", made_by("caa", multiplied), "share", "llama"),
    "a constant without a carrier": ("caa", changed("caa", uncarried), "together", "mistral"),
    "gain forgotten": ("single", made_by("single", gain_forgotten), "exact", "gemma2"),
    "bias forgotten": ("single", made_by("single", bias_forgotten), "exact", "llama"),
    "covector forgotten": ("oblique", changed("oblique", unmeasured), "exact", "gpt2"),
    "directions of the next layer": ("single", next_layer, "exact", "llama"),
    "strength by position": ("single", by_position, "order", "llama"),
    "random start": ("single", made_by("single", random_start), "repeatable", "llama"),
    "bank changed in place": ("single", in_place, "repeatable", "llama"),
    "a writer twice": ("single", twice, "share", "llama"),
    "protected rows too": ("single", guarded_too, "protected", "llama"),
    "lengths lost": ("norm_preserving", changed("norm_preserving", unkept), "norms", "llama"),
    "rows for columns": ("norm_preserving", changed("norm_preserving", by_rows), "norms", "gpt2"),
    "never adding": ("single", never_adding, "induce", "llama"),
    "target unweighted": ("subspace", target_unweighted, "induce", "gpt2"),
    "channels apart": ("single", changed("single", by_channel), "rotation", "llama"),
    "experts passed over": ("norm_preserving", without_experts, "refused", "mixtral"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_planner_is_found_out(fault: str) -> None:
    strategy, planner, theorem, name = FAULTS[fault]
    assert theorem in broken_theorems(strategy, loaded_pico(name), planner=planner)


def test_every_theorem_has_a_fault_that_breaks_it() -> None:
    assert {theorem for _, _, theorem, _ in FAULTS.values()} == set(THEOREMS)


class Unmasked(Model):
    """A model that reads the padding."""

    def batch(self, sequences: object) -> Batch:
        batch = super().batch(sequences)  # type: ignore[arg-type]  # handed on as it came
        return replace(batch, mask=torch.ones_like(batch.mask))


def test_control_padding_that_is_read_is_seen() -> None:
    """The control of batch = single: in one shape, where all rows are padded alike, nothing is seen."""
    own = model_of("llama")
    model = Unmasked(own.network, own.encoder, own.architecture, own.source, own.dtype)
    trials = {"single": subject("single", "llama").edits(0.8)}
    check_together(own, trials)
    check_together(model, trials, same_shape=True)
    with pytest.raises(AssertionError, match="not the trial alone"):
        check_together(model, trials)


def test_control_a_weight_that_is_written_to_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded_pico("llama")
    trials = {"single": subject("single", "llama").edits(0.8)}
    logits = Model.logits

    def careless(self: Model, batch: Batch, keep: int) -> Tensor:
        self.parameter("model.norm.weight").mul_(1 + 1e-7)
        return logits(self, batch, keep)

    monkeypatch.setattr(Model, "logits", careless)
    with pytest.raises(AssertionError, match="a parameter is not what it was"):
        check_together(model, trials)


def test_a_broken_theorem_is_named_and_a_waiver_needs_a_known_one_and_a_reason() -> None:
    with pytest.raises(AssertionError, match="induce: "):
        check_strategy("single", model_of("llama"), planner=never_adding)
    with pytest.raises(AssertionError, match="no such theorem: shar"):
        check_strategy("single", model_of("llama"), waived={"shar": "a typing error"})
    with pytest.raises(AssertionError, match="reason"):
        check_strategy("single", model_of("llama"), waived={"share": ""})
