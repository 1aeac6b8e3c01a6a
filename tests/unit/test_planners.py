# SPDX-License-Identifier: Apache-2.0
"""From a trial's parameters to plans: strength, directions, weights, additions; every parameter counts
(algorithms 3.11, 4.1, 4.6 to 4.8, 5.1; R-DIR-05, R-DIR-09; requirements 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from heretic.directions.findings import Findings, Head, Shift
from heretic.exceptions import ConfigurationError
from heretic.interventions.hooks import Edits
from heretic.interventions.placement import Goal, Parameters, PlanContext
from heretic.interventions.plan import Plan
from heretic.interventions.planners import STRATEGIES, Planner
from heretic.interventions.schedule import LayerProfile
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.study.space import default_space
from heretic.testing.strategies import INDUCING
from heretic.testing.strategy_cases import OWN, planted_findings, written
from heretic.testing.workbench import loaded_pico

LAYERS = 4
FLAT = LayerProfile()
Point = dict[str, float | int | str | None]


@cache
def model() -> Model:
    return loaded_pico("llama", changes={"num_hidden_layers": LAYERS})


def context(
    findings: Findings, goal: Goal = "suppress", *, profile: LayerProfile = FLAT, cap: float = 2.0
) -> PlanContext:
    return PlanContext(model().architecture, findings, profile, cap, goal)


def point(strength: float = 1.0, *, attention: float | None = None, **own: float | int | str | None) -> Point:
    """One strength everywhere, or another one at attention."""
    found: Point = {"direction_scope": "per_layer"}
    for component in model().architecture.components:
        peak = attention if component == "attn.o_proj" and attention is not None else strength
        found |= {
            f"{component}.max_weight": peak,
            f"{component}.max_weight_position": 0.0,
            f"{component}.min_weight": 1.0,
            f"{component}.min_weight_distance": float(LAYERS),
        }
    return {**found, **own}


def planned(strategy: str, parameters: Parameters, findings: Findings, goal: Goal = "suppress") -> Plan:
    return STRATEGIES[strategy](parameters, context(findings, goal))


def edits(strategy: str, parameters: Parameters, findings: Findings, goal: Goal = "suppress") -> Edits:
    return planned(strategy, parameters, findings, goal).edits(Writers(model().network))


def found(strategy: str = "single", goal: Goal = "suppress") -> Findings:
    # Without what is protected, which a direction of another layer would have to leave alone.
    return replace(planted_findings(model(), strategy, goal), protected=None)


# Strength.


def test_profile_and_calibration_multiply_before_the_cap_and_weights_cannot_pass_it() -> None:
    """Section 5.1: min(cap, kernel * profile * factor), then the weight of each component, below the cap again."""
    factors = (0.5, 1.0, 2.0, 1.0)
    findings = replace(
        found("subspace"), factors=factors, weights=torch.tensor([1.0, 3.0, 0.25]).repeat(4, 1)
    )
    halved = LayerProfile(((0.0, 0.5, 0.5),))
    plan = STRATEGIES["subspace"](
        point(1.0, n_components=3, attention=0.0), context(findings, profile=halved, cap=1.5)
    )
    assert [row.site.component for row in plan.rows] == ["mlp.down_proj"] * LAYERS
    wanted = [[0.25, 0.75, 0.0625], [0.5, 1.5, 0.125], [1.5, 1.5, 0.375], [1.0, 1.5, 0.25]]
    assert [row.strengths.tolist() for row in plan.rows] == [pytest.approx(row) for row in wanted]
    assert plan.effective_strengths()[plan.rows[1].site.path] == [0.5, 1.5, 0.125]
    one = STRATEGIES["single"](point(1.2), context(replace(found(), factors=factors), cap=2.0))
    strengths = {row.site.layer: float(row.strengths) for row in one.rows}
    assert strengths == pytest.approx({0: 0.6, 1: 1.2, 2: 2.0, 3: 1.2}), "not min(cap, kernel) * factor = 2.4"


def test_a_component_without_strength_and_a_layer_outside_the_tent_have_no_rows() -> None:
    narrow = point(1.0, attention=0.0)
    narrow |= {"mlp.down_proj.max_weight_position": 2.0, "mlp.down_proj.min_weight_distance": 1.0}
    for strategy in ("single", "subspace", "cones", "norm_preserving", "oblique", "caa"):
        rows = planned(strategy, {**OWN[strategy], **narrow}, found(strategy)).rows
        assert [(row.site.component, row.site.layer) for row in rows] == [
            ("mlp.down_proj", layer) for layer in (1, 2, 3)
        ], strategy
    assert not planned("heads", {**OWN["heads"], **narrow}, found("heads")).rows
    empty = {name: value for name, value in narrow.items() if not name.startswith("mlp.")}
    assert not planned("single", empty, found()).rows


# Directions.


def test_direction_source_chooses_the_bank_and_an_unknown_one_is_refused() -> None:
    """R-DIR-04. What a source reads with comes along, also where lengths are kept."""
    findings = found("subspace")
    default, other = findings.sources["difference"], findings.sources["probe"]
    assert other.covectors is not None
    for strategy in ("single", "subspace", "cones", "norm_preserving", "heads", "caa"):
        for name, bank in ((None, default), ("difference", default), ("probe", other)):
            for row in planned(strategy, {**OWN[strategy], **point(direction_source=name)}, findings).rows:
                assert torch.equal(row.directions[0], bank.directions[row.site.layer, 0]), strategy
                if bank.covectors is None:
                    assert row.covectors is None
                else:
                    assert row.covectors is not None, strategy
                    assert torch.equal(row.covectors, bank.covectors[row.site.layer])
    with pytest.raises(ConfigurationError, match="direction_source is 'prob'") as error:
        planned("single", point(1.0, direction_source="prob"), findings)
    assert "difference, probe" in str(error.value.hint)


def test_n_components_limits_the_span_and_layers_may_have_fewer() -> None:
    findings = found("subspace")
    spread = torch.tensor([[3.0, 2.0, 1.0], [3.0, 0.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    bank = replace(
        findings.bank, directions=findings.bank.directions * (spread > 0)[:, :, None], spread=spread
    )
    findings = replace(findings, sources={"difference": bank})
    for wanted, counts in ((1, [1, 1, 1, 1]), (2, [2, 1, 2, 1]), (3, [3, 1, 2, 1]), (9, [3, 1, 2, 1])):
        plan = planned("subspace", point(1.0, attention=0.0, n_components=wanted), findings)
        assert [len(row.directions) for row in plan.rows] == counts
        assert [len(row.strengths) for row in plan.rows] == counts
        assert [edit.rank for edit in plan.edits(Writers(model().network)).values()] == [*counts[:3], 0]
    every = planned("cones", point(1.0, attention=0.0), replace(findings, weights=None))
    assert [row.strengths.tolist() for row in every.rows] == [[1.0] * 3, [1.0], [1.0] * 2, [1.0]]
    single = planned("single", point(1.0, attention=0.0), findings)
    assert all(row.directions.shape[0] == 1 for row in single.rows)
    with pytest.raises(ConfigurationError, match="n_components"):
        planned("subspace", point(1.0), findings)


def test_at_a_fractional_index_component_0_is_mixed_and_the_rest_is_the_nearest_layers() -> None:
    """Section 3.11: for all writers alike; weights and co-vectors are those of the nearest layer."""
    table = torch.tensor([[1.0, 0.9, 0.8], [1.0, 0.7, 0.6], [1.0, 0.5, 0.4], [1.0, 0.3, 0.2]])
    findings = replace(found("subspace"), weights=table)
    bank = findings.bank
    for index, nearest in ((1.25, 1), (1.5, 2), (1.75, 2)):
        own = point(1.0, n_components=3, direction_scope="global", direction_index=index)
        share = index - 1
        mixed = (1 - share) * bank.directions[1, 0] + share * bank.directions[2, 0]
        for row in planned("subspace", own, findings).rows:
            assert torch.allclose(row.directions[0], mixed / mixed.norm(), atol=1e-6)
            assert torch.equal(row.directions[1:], bank.directions[nearest, 1:])
            assert torch.equal(row.strengths, table[nearest])
        for row in planned("oblique", own, found("oblique")).rows:
            reading = found("oblique").bank.covectors
            assert reading is not None and row.covectors is not None
            assert torch.equal(row.covectors, reading[nearest, :1])
    whole = planned("subspace", {**own, "direction_index": 2.0}, findings)
    assert all(torch.equal(row.directions, bank.directions[2]) for row in whole.rows)
    apart = planned("subspace", point(1.0, n_components=3), findings)
    assert all(torch.equal(row.directions, bank.directions[row.site.layer]) for row in apart.rows)


# Every parameter counts.

OTHER: Mapping[str, float | int | str] = {
    "direction_scope": "per_layer",
    "direction_index": 2.6,
    "direction_source": "probe",
    "max_weight": 0.7,
    "max_weight_position": 1.5,
    "min_weight": 0.6,
    "min_weight_distance": 2.0,
    "n_components": 1,
    "norm_mode": "row",
    "center": "no",
    "n_heads": 5,
    "addition_strength": 0.2,
    "amplification": 0.9,
}
"""Parameter -> a value that no base point below has."""


def base_point(strategy: str, goal: Goal) -> Point:
    """A point with every parameter of the strategy, each active."""
    components = ("attn.o_proj",) if strategy == "heads" else model().architecture.components
    space = default_space(components, LAYERS)
    values: Point = {"direction_scope": "global", "direction_index": 1.3, "direction_source": "difference"}
    values |= OWN[strategy]
    if goal == "induce":
        values |= {"amplification": 0.4} | ({} if strategy == "heads" else {"addition_strength": 0.6})
    kernel = {"max_weight": 0.9, "max_weight_position": 2.0, "min_weight": 0.3, "min_weight_distance": 3.0}
    values |= {f"{component}.{name}": value for component in components for name, value in kernel.items()}
    assert {dimension.name for dimension in space} <= set(values), (
        "the search has a parameter that is not tried"
    )
    return values


def ignored(planner: Planner, strategy: str, goal: Goal) -> set[str]:
    """Parameters that change no edit."""
    own, writers = context(found(strategy, goal), goal), Writers(model().network)
    start = base_point(strategy, goal)
    before = planner(start, own).edits(writers)
    silent = set()
    for name in start:
        value = OTHER[name if name in OTHER else name.rpartition(".")[2]]
        assert value != start[name]
        after = planner({**start, name: value}, own).edits(writers)
        if set(after) == set(before) and all(edit.equals(after[site]) for site, edit in before.items()):
            silent.add(name)
    return silent


CASES: list[tuple[str, Goal]] = [(name, "suppress") for name in OWN] + [(name, "induce") for name in INDUCING]


@pytest.mark.parametrize(("strategy", "goal"), CASES)
def test_every_parameter_of_a_strategy_changes_its_edits(strategy: str, goal: Goal) -> None:
    """Requirements 5.1, R-GEN-09: nothing shadows anything."""
    assert ignored(STRATEGIES[strategy], strategy, goal) == set()


def test_control_a_parameter_that_is_shadowed_is_found() -> None:
    def always_centred(parameters: Parameters, context: PlanContext) -> Plan:
        return STRATEGIES["oblique"]({**parameters, "center": "yes"}, context)

    def layers_only(parameters: Parameters, context: PlanContext) -> Plan:
        return STRATEGIES["single"]({**parameters, "direction_scope": "per_layer"}, context)

    assert ignored(always_centred, "oblique", "suppress") == {"center"}
    assert ignored(layers_only, "single", "suppress") == {"direction_scope", "direction_index"}


@pytest.mark.parametrize("strategy", list(OWN))
def test_cap_profile_calibration_and_what_was_found_change_the_edits(strategy: str) -> None:
    findings, writers = found(strategy), Writers(model().network)
    parameters = {**OWN[strategy], **point(1.2)}
    start = STRATEGIES[strategy](parameters, context(findings)).edits(writers)
    others = (
        context(findings, cap=1.1),
        context(findings, profile=LayerProfile(((0.0, 1.0, 0.5),))),
        context(replace(findings, factors=(0.9,) * LAYERS)),
        context(planted_findings(model(), strategy, seed=1)),
    )
    for other in others:
        after = STRATEGIES[strategy](parameters, other).edits(writers)
        assert set(after) == set(start)
        assert not any(edit.equals(after[site]) for site, edit in start.items())


# What is added.


def coordinates(read: Tensor, findings: Findings, changed: Edits) -> tuple[Tensor, Tensor, Tensor]:
    """(before, after, target) along D [k, d] of the first writer with a bias: DT [W, b], and DT c."""
    site, edit = next(iter(changed.items()))
    before, after = (read.double() @ written(model(), site, value) for value in (None, edit))
    return before, after, read.double() @ findings.shifts[site.path].unit.double()


@pytest.mark.parametrize("source", ("difference", "probe"))
def test_induced_coordinates_are_those_that_are_read(source: str) -> None:
    """Section 4.7: (1 + (g - s) a) own + s a target along D, where a source reads another vector than it removes.

    Control: the target along the direction itself is another one.
    """
    findings = found("single", "induce")
    own = point(0.5, direction_source=source, amplification=0.4, addition_strength=0.6)
    bank = findings.sources[source]
    read = bank.directions[0, :1] if bank.covectors is None else bank.covectors[0, :1]
    before, after, target = coordinates(read, findings, edits("single", own, findings, "induce"))
    expected = (1 + (0.4 - 0.6) * 0.5) * before
    expected[:, -1] += 0.6 * 0.5 * target
    assert torch.allclose(after, expected, atol=1e-5)
    along = bank.directions[0, :1].double() @ next(iter(findings.shifts.values())).unit.double()
    assert (abs(float(along - target)) > 1e-2) == (source == "probe")


def test_the_target_of_each_component_has_its_weight_also_between_layers() -> None:
    """At strength w_i the coordinate along q_i is (1 - w_i) own + w_i target, never beyond it. Control: all of it."""
    findings = found("subspace", "induce")
    assert findings.weights is not None
    own = point(1.0, n_components=3, direction_scope="global", direction_index=1.5, addition_strength=1.0)
    basis = torch.linalg.qr(findings.bank.at(1.5).double().T).Q.T
    before, after, target = coordinates(basis, findings, edits("subspace", own, findings, "induce"))
    weights = findings.weights[2].double()
    expected = (1 - weights)[:, None] * before
    expected[:, -1] += weights * target
    assert torch.allclose(after, expected, atol=1e-5)
    assert not torch.allclose(after[:, -1], expected[:, -1] + (1 - weights) * target, atol=1e-2)
    assert float((findings.bank.at(1.5)[0] @ findings.bank.at(1.5)[1]).abs()) > 0.05, "the mix is oblique"


def test_heads_are_amplified_and_never_drawn_to_a_target_they_cannot_carry() -> None:
    """R-DIR-09: without amplification nothing happens. Control: whole writers do move."""
    findings = found("heads", "induce")
    own = point(1.0, n_heads=3, amplification=0.0, addition_strength=0.8)
    assert all(edit.is_identity for edit in edits("heads", own, findings, "induce").values())
    assert not any(edit.is_identity for edit in edits("single", own, findings, "induce").values())
    for row in planned("heads", {**own, "amplification": 0.5}, findings, "induce").rows:
        assert row.strengths.tolist() == [-0.5] and row.shift is None


@pytest.mark.parametrize("strategy", ("norm_preserving", "oblique"))
def test_a_strategy_that_cannot_add_refuses_to_induce(strategy: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{strategy} cannot induce"):
        planned(strategy, {**OWN[strategy], **point()}, found(strategy), "induce")


def test_center_is_yes_or_no() -> None:
    """Section 4.2, 4.7: y - a R DT (y - c), so that the coordinate along D moves towards c. Control: without, to 0."""
    findings = found("oblique")
    assert findings.bank.covectors is not None
    read = findings.bank.covectors[0, :1]
    for center, share in (("yes", 1.0), ("no", 0.0), (None, 0.0)):
        own = point(0.75, center=center)
        before, after, target = coordinates(read, findings, edits("oblique", own, findings))
        before *= 0.25
        before[:, -1] += share * 0.75 * target
        assert torch.allclose(after, before, atol=1e-5), center
        assert float(target.abs()) > 1e-2
    with pytest.raises(ConfigurationError, match="center is 'maybe'"):
        planned("oblique", point(1.0, center="maybe"), findings)


def test_compliance_is_added_by_the_last_writer_as_strongly_as_the_layer_is_edited() -> None:
    """Sections 3.8, 4.7: amount * min(1, a) * unit. A writer that can carry no constant is refused by name."""
    findings = found("caa")
    for strength, share in ((0.5, 0.5), (1.0, 1.0), (1.5, 1.0)):
        for row in planned("caa", point(strength, addition_strength=0.3), findings).rows:
            known = findings.shifts.get(row.site.path)
            assert (known is not None) == (row.site.component == "mlp.down_proj")
            assert (row.shift is None) == (known is None)
            if row.shift is not None and known is not None:
                assert torch.allclose(row.shift, 0.3 * share * known.unit)
    assert all(row.shift is None for row in planned("caa", point(1.0, addition_strength=0.0), findings).rows)
    gemma = loaded_pico("gemma2")
    site = gemma.architecture.sites[0]
    behind = replace(planted_findings(gemma, "caa"), shifts={site.path: Shift(torch.ones(40))})
    with pytest.raises(ConfigurationError, match=f"{site.path} is followed by the norm"):
        STRATEGIES["caa"](
            point(1.0, addition_strength=0.3), PlanContext(gemma.architecture, behind, FLAT, 2.0)
        )


# Heads.


def test_each_layers_heads_are_as_wide_as_that_layer_has_them() -> None:
    """Section 4.6: layers of one model may differ (Gemma 4). Control: the width of the first layer is another."""
    gemma = loaded_pico("gemma4", changes={"global_head_dim": 20})
    findings = replace(planted_findings(gemma, "heads"), heads=(Head(0, 2, 1.0), Head(1, 1, 0.5)))
    plan = STRATEGIES["heads"](point(1.0, n_heads=2), PlanContext(gemma.architecture, findings, FLAT, 2.0))
    columns = {
        site.layer: edit.right.any(dim=0).nonzero().flatten().tolist()
        for site, edit in plan.edits(Writers(gemma.network)).items()
        if edit.right is not None
    }
    assert columns == {0: list(range(24, 36)), 1: list(range(20, 40))}


def test_heads_are_taken_by_rank_and_unknown_ones_are_refused() -> None:
    findings = replace(found("heads"), heads=(Head(2, 3, 0.9), Head(0, 1, 0.5), Head(2, 0, 0.2)))
    for count, wanted in ((0, {}), (1, {2: (3,)}), (2, {0: (1,), 2: (3,)}), (3, {0: (1,), 2: (0, 3)})):
        rows = planned("heads", point(1.0, n_heads=count), findings).rows
        assert {row.site.layer: row.heads for row in rows} == wanted
        assert all(row.site.component == "attn.o_proj" for row in rows)
    for head, path, message in (
        (Head(0, 4, 1.0), "model.layers.0.self_attn.o_proj.weight", "no query head 4"),
        (Head(0, 1, 1.0), "model.layers.0.mlp.down_proj.weight", "down_proj.* not divided into query heads"),
    ):
        wrong = replace(findings, heads=(head,), head_sites=frozenset({path}))
        with pytest.raises(ConfigurationError, match=message):
            edits("heads", point(1.0, n_heads=1), wrong)


@pytest.mark.parametrize(
    ("strategy", "own", "message"),
    (
        ("norm_preserving", {"norm_mode": "frobenius", "n_components": 1}, "norm_mode is 'frobenius'"),
        ("norm_preserving", {"norm_mode": "row"}, "n_components"),
        ("heads", {}, "n_heads"),
        ("single", {"direction_scope": "globl"}, "direction_scope is 'globl'"),
        ("single", {"direction_scope": "global"}, "direction_index"),
        ("oblique", {}, "no co-vectors"),
    ),
)
def test_missing_and_unknown_values_are_named(
    strategy: str, own: dict[str, float | int | str | None], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        planned(strategy, {**point(), **own}, found())


def test_a_direction_used_at_another_layer_leaves_that_layers_protected_directions_alone() -> None:
    """3.10: what a layer protects holds at its writers whatever layer the direction is from; control: without."""
    findings, size = found(), model().architecture.hidden_size
    generator = torch.Generator().manual_seed(3)
    protected = torch.stack(
        [torch.linalg.qr(torch.randn(size, 2, generator=generator))[0].T for _ in range(LAYERS)]
    )
    guarded = replace(findings, protected=protected)
    elsewhere = point(direction_scope="global", direction_index=1.4)

    def touched(which: Findings) -> float:
        rows = planned("single", elsewhere, which).rows
        return max(float((protected[row.site.layer] @ row.directions.T).abs().max()) for row in rows)

    assert touched(guarded) < 1e-6 < 1e-2 < touched(replace(findings, protected=None))
