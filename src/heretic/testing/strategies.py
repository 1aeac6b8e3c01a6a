# SPDX-License-Identifier: Apache-2.0
"""The contract that every edit strategy keeps, on any loaded model (algorithms 1.7, 4, 6.6; requirements 5.1).

check_strategy("single", loaded_pico("llama"))
check_strategy("subspace", loaded_pico("gpt2"), planner=mine, waived={"protected": "keeps lengths"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Shift
from heretic.exceptions import ConfigurationError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.norms import leftover
from heretic.interventions.planners import STRATEGIES, Planner
from heretic.interventions.probe import edited_weights
from heretic.model.model import Model
from heretic.testing.strategy_cases import (
    OWN,
    Subject,
    Values,
    carrying,
    changes_nothing,
    deviation,
    head_mask,
    planted_findings,
    seen_by,
    stream_share,
    tensors_of,
    turned_subject,
    written,
)

TOLERANCE: Final = 1e-5
"""Of algebra on float32 factors, relative to the largest number of a writer."""
FORWARD: Final = 1e-4
"""Of a forward pass in another batch shape."""
STRENGTHS: Final = (0.25, 0.5, 1.0, 1.5, 2.0)
AS_IS: Final[Values] = MappingProxyType({})
BETWEEN: Final[Values] = MappingProxyType({"direction_scope": "global", "direction_index": 0.5})
"""One direction for all layers, mixed from two of them."""
NOTHING_ADDED: Final[Values] = MappingProxyType({"center": "no", "addition_strength": 0.0})
INDUCING: Final = ("single", "subspace", "heads", "caa")
"""Strategies that the goal `induce` is for (R-DIR-09)."""
AMOUNTS: Final = ((0.7, 0.0), (0.0, 0.6), (0.4, 1.0))
"""(amplification, addition_strength)."""
COSINE: Final = 0.8
DAMPED: Final = 0.02
"""Behind a norm the damping of algorithms 1.4 lets so much of a change reach other coordinates (measured: 0.007)."""
LENGTHS: Final = (5, 9, 3, 7)
"""Tokens of the prompts that share a batch."""


def check_strategy(
    strategy: str,
    model: Model,
    *,
    planner: Planner | None = None,
    waived: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
) -> None:
    """Raises `AssertionError` naming every theorem of `THEOREMS` that the planner breaks on this model.

    strategy: whose parameters and formulas hold; planner: another one than the registered. waived: theorem -> reason
    why it does not hold. A theorem that says nothing about a strategy or model holds.
    """
    unknown = sorted(set(waived) - set(THEOREMS))
    assert not unknown, f"no such theorem: {', '.join(unknown)}"
    assert all(waived.values()), "each waived theorem needs its reason"
    broken = broken_theorems(strategy, model, planner=planner, waived=waived, seed=seed)
    assert not broken, "; ".join(f"{name}: {what}" for name, what in broken.items())


def broken_theorems(
    strategy: str,
    model: Model,
    *,
    planner: Planner | None = None,
    waived: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
) -> dict[str, str]:
    """Theorem -> how the planner breaks it, of those that are not waived."""
    found = planted_findings(model, strategy, seed=seed)
    subject = Subject(strategy, planner or STRATEGIES[strategy], model, found)
    broken: dict[str, str] = {}
    for name, theorem in THEOREMS.items():
        if name in waived:
            continue
        try:
            theorem(subject)
        except AssertionError as error:
            broken[name] = str(error)
    return broken


def check_together(model: Model, trials: Mapping[str, Edits], *, same_shape: bool = False) -> None:
    """Trials that share a left-padded pass under hooks, a base row among them, are each alone in weight form.

    Raises `AssertionError` naming the trial. Each row has a prompt of another length than the next. same_shape: compare
    batch with batch, for models whose own batch differs from single rows (algorithms 6.6). Also asserts that no bit of
    a parameter changes, and as a control that rows under one another's edits differ.
    """
    network, source = model.network, torch.Generator().manual_seed(3)
    before = {path: parameter.clone() for path, parameter in network.named_parameters()}
    named: dict[str, Edits] = {**trials, "the base": {}}
    prompts = [torch.randint(80, 160, (size,), generator=source).tolist() for size in LENGTHS]
    texts = [prompts[row % len(prompts)] for row in range(len(named))]
    together, moved = (_rows(model, trials, texts, shift) for shift in (0, 1))
    for row, (name, edits) in enumerate(named.items()):
        part = slice(row, row + 1)
        with edited_weights(network, edits):
            whole = model.logits(model.batch(texts if same_shape else texts[part]), 3)
        alone = whole[part] if same_shape else whole
        assert _close(together[part], alone), f"{name}: the row of a batch is not the trial alone"
    assert len(named) < 3 or not _close(moved, together), "rows do not depend on their trial"
    same = all(torch.equal(before[path], value) for path, value in network.named_parameters())
    assert same, "a parameter is not what it was"


def _rows(model: Model, trials: Mapping[str, Edits], texts: Sequence[Sequence[int]], shift: int) -> Tensor:
    numbers = torch.arange(len(texts)).roll(shift)
    with applied(model.network, list(trials.values()), Rows(numbers)):
        return model.logits(model.batch(texts), 3)


def _identity(subject: Subject) -> None:
    """At strength 0, and with no head chosen, no bit of the logits changes in either form; control: at 0.01 they do."""
    cases: list[tuple[float, Values, bool]] = [(0.0, AS_IS, True), (0.01, AS_IS, False)]
    if subject.strategy == "heads":
        cases.append((1.0, {"n_heads": 0}, True))
    for strength, own, same in cases:
        edits = subject.edits(strength, own)
        assert changes_nothing(subject.model, edits) == same, f"strength {strength:g}, {dict(own)}"


def _exact(subject: Subject) -> None:
    """At strength 1 no edited writer, and so no block whose writers all are, moves the stream along D (1.7)."""
    model, equal = subject.model, replace(subject, findings=replace(subject.findings, weights=None))
    for scope in (AS_IS, BETWEEN):
        own = {**scope, **NOTHING_ADDED}
        edits = equal.edits(1.0, own)
        assert set(edits) == subject.reached(own), "not the writers that the strategy is for"
        readings: dict[int, Tensor] = {}
        for site, edit in edits.items():
            readings[site.layer] = read = subject.pair(site, own)[1]
            left, before = (seen_by(model, site, read).T @ written(model, site, e) for e in (edit, None))
            mask = head_mask(subject, site, own) if subject.strategy == "heads" else 1.0
            share = float((left * mask).abs().max() / before.abs().max())
            assert share < TOLERANCE, f"{share:.1e} of what {site.path} writes is left"
        if set(edits) == set(model.architecture.sites):
            share = stream_share(model, edits, readings)
            assert share < TOLERANCE, f"a block moves the stream by {share:.1e} of its change"


def _share(subject: Subject) -> None:
    """Every writer is what the formulas say, (1 - a) of what it was along D, and moves more with more strength."""
    for own in (AS_IS, BETWEEN):
        moved = [0.0]
        for strength in STRENGTHS:
            edits = subject.edits(strength, own)
            _follows(subject, edits, strength, own)
            moved.append(_distance(subject.model, edits))
        assert all(first < second for first, second in zip(moved, moved[1:], strict=False)), f"moved {moved}"


def _joint(subject: Subject) -> None:
    """Directions at cosine 0.8 are all gone at strength 1, and their order does not matter at equal weights (4.1)."""
    model, layers = subject.model, subject.model.architecture.layers
    axes = torch.linalg.qr(_normal(model.architecture.hidden_size, 4)).Q.T
    rows = (COSINE**0.5 * axes[:1] + (1 - COSINE) ** 0.5 * axes[1:]).float()
    spread = torch.ones(layers, len(rows))
    banks = [DirectionBank(order.repeat(layers, 1, 1), spread) for order in (rows, rows.flip(0))]
    first, second = (
        replace(subject, findings=replace(subject.findings, sources={"difference": bank}, weights=None))
        for bank in banks
    )
    if subject.strategy != "cones" and "n_components" not in OWN[subject.strategy]:
        return
    own = {"n_components": len(rows)}
    for site, edit in first.edits(1.0, own).items():
        seen = seen_by(model, site, rows.double().T)
        after, before = (seen.T @ written(model, site, value) for value in (edit, None))
        share = float(after.abs().max() / before.abs().max())
        assert share < TOLERANCE, f"{share:.1e} of what {site.path} writes is left"
    turned = second.edits(0.7, own)
    for site, edit in first.edits(0.7, own).items():
        _same(
            written(model, site, edit),
            written(model, site, turned[site]),
            f"{site.path}: order of directions",
        )


def _order(subject: Subject) -> None:
    """The order in which writers, and heads that are all chosen, are listed changes no bit of an edit."""
    own: Values = {"n_heads": len(subject.findings.heads)} if subject.strategy == "heads" else AS_IS
    architecture = subject.model.architecture
    turned = replace(
        subject,
        model=replace(subject.model, architecture=replace(architecture, sites=architecture.sites[::-1])),
        findings=replace(subject.findings, heads=subject.findings.heads[::-1]),
    )
    first, second = subject.edits(0.8, own), turned.edits(0.8, own)
    assert set(first) == set(second) and all(edit.equals(second[site]) for site, edit in first.items()), (
        "another order of writers or heads gives other edits"
    )


def _repeatable(subject: Subject) -> None:
    """Bit-equal when repeated, whatever the global generator holds; findings and parameters are left as they were."""
    kept = [tensor.clone() for tensor in tensors_of(subject)]
    found: list[Edits] = []
    with torch.random.fork_rng():
        for state in (1, 2):
            torch.manual_seed(state)
            found.append(subject.edits(0.8))
    assert all(edit.equals(found[1][site]) for site, edit in found[0].items()), (
        "a second call gives other edits"
    )
    pairs = zip(kept, tensors_of(subject), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs), "findings or weights were changed"


def _together(subject: Subject) -> None:
    """In a left-padded pass with trials of other strategies each row is its trial alone, hooks = weights (6.6)."""
    model = subject.model
    trials = {"own": subject.edits(0.6), "own, between layers": subject.edits(1.0, BETWEEN)}
    for name in ("single", "norm_preserving", "heads"):
        other = Subject(name, STRATEGIES[name], model, planted_findings(model, name, seed=1))
        trials[name] = other.edits(0.8)
    check_together(model, trials)


def _protected(subject: Subject) -> None:
    """What is protected stays, ST W' = ST W and ST b' = ST b, behind a norm nearly; control: the writer does change."""
    guarded, model = subject.findings.protected, subject.model
    assert guarded is not None, "the findings protect something"
    for site, edit in subject.edits(0.8).items():
        change = written(model, site, edit) - written(model, site, None)
        assert float(change.abs().max()) > 0.01, f"{site.path} does not change"
        seen = seen_by(model, site, guarded[site.layer].double().T).T @ change
        worst = float(seen.abs().max() / change.abs().max())
        allowed = TOLERANCE if site.gain is None else DAMPED
        assert worst < allowed, f"{site.path} changes what is protected by {worst:.1e}"


def _norms(subject: Subject) -> None:
    """Lengths are kept, of columns or of rows; control: rows bring a concentrated direction back (4.4)."""
    if subject.strategy != "norm_preserving":
        return
    model, bank = subject.model, subject.findings.bank
    axis = 2.0 * torch.eye(bank.width)[3]
    sharp = replace(bank, directions=torch.nn.functional.normalize(bank.directions + axis, dim=2))
    concentrated = replace(subject, findings=replace(subject.findings, sources={"difference": sharp}))
    for mode, dimension in (("column", 0), ("row", 1)):
        own: Values = {"norm_mode": mode, "n_components": 1}
        for site, edit in concentrated.edits(1.0, own).items():
            before, after = (written(model, site, value) for value in (None, edit))
            lengths, wanted = (value[:, :-1].norm(dim=dimension) for value in (after, before))
            _same(lengths, wanted, f"{site.path}: lengths of {mode}s")
            bias = seen_by(model, site, sharp.at(site.layer)[:1].double().T).T @ after[:, -1]
            assert float(bias.abs()) < TOLERANCE, (
                f"{site.path}: {float(bias):.1e} of the bias is left by {mode}"
            )
            left = leftover(edit, model.parameter(site.path), site.residual_axis)
            assert left > 1e-3 if mode == "row" else left < TOLERANCE, (
                f"{site.path}: {left:.1e} left by {mode}"
            )


def _induce(subject: Subject) -> None:
    """Coordinates become (1 + (g - s) a) own + s a target, and nothing happens without g, s or a (4.7).

    The target is measured, so it does not turn with the signs of the bank; it turns with the shift.
    """
    name, model = subject.strategy, subject.model
    inducing = replace(subject, goal="induce", findings=planted_findings(model, name, "induce"))
    found = inducing.findings
    try:
        inducing.edits(1.0, _amount(0.5, 0.5))
    except ConfigurationError:
        assert name not in INDUCING, f"{name} refuses the goal induce"
        return
    for own, strength in ((_amount(0.0, 0.0), 1.0), (_amount(0.7, 0.6), 0.0)):
        assert changes_nothing(model, inducing.edits(strength, own)), f"strength {strength:g}, {own}"
    for gain, share in AMOUNTS:
        for strength in (0.5, 1.0):
            own = _amount(gain, share)
            _follows(inducing, inducing.edits(strength, own), strength, own)
    own = _amount(0.0, 1.0)
    banks = {key: replace(bank, directions=-bank.directions) for key, bank in found.sources.items()}
    signs = replace(inducing, findings=replace(found, sources=banks)).edits(0.7, own)
    shifts = {path: replace(shift, unit=-shift.unit) for path, shift in found.shifts.items()}
    opposite = replace(inducing, findings=replace(found, shifts=shifts)).edits(0.7, own)
    alone = replace(inducing, goal="suppress").edits(0.7, NOTHING_ADDED)
    for site, edit in inducing.edits(0.7, own).items():
        value = written(model, site, edit)
        _same(written(model, site, signs[site]), value, f"{site.path}: signs of the bank")
        if site.path in shifts and name != "heads":
            middle = 2 * written(model, site, alone[site])
            _same(written(model, site, opposite[site]) + value, middle, f"{site.path}: sign of the shift")


def _rotation(subject: Subject) -> None:
    """Turned writers and directions give the turned writer, W'(O W, O r) = O W'(W, r); gains do not turn."""
    size = subject.model.architecture.hidden_size
    turn = torch.linalg.qr(_normal(size, size)).Q
    turned = turned_subject(subject, turn)
    edits, others = subject.edits(0.8), turned.edits(0.8)
    for site, edit in edits.items():
        if site.gain is None:
            expected = turn @ written(subject.model, site, edit)
            _same(written(turned.model, site, others[site]), expected, f"{site.path} does not turn")


def _refused(subject: Subject) -> None:
    """What cannot be edited in this way is refused by name: lengths or heads of routed experts, constants behind them
    or behind a norm."""
    model, found = subject.model, subject.findings
    bad = [site for site in model.architecture.sites if site not in carrying(model)]
    own: dict[str, float | int | str | None] = {}
    if subject.strategy == "norm_preserving":
        bad = subject.summed
        own = {f"{site.component}.max_weight": 1.0 for site in bad}
    elif subject.strategy == "heads":
        chosen = subject.chosen(AS_IS)
        bad = [s for s in model.architecture.sites if s.path not in found.head_sites and s.layer in chosen]
        found = replace(found, head_sites=frozenset(site.path for site in bad))
    elif subject.strategy in ("oblique", "caa"):
        unit = torch.ones(found.bank.width)
        found = replace(found, shifts={site.path: Shift(unit) for site in bad})
    else:
        return
    if not bad:
        return
    try:
        replace(subject, findings=found).edits(1.0, own)
    except ConfigurationError as error:
        assert any(site.path in error.message for site in bad), f"no writer is named: {error.message}"
        return
    raise AssertionError(f"{bad[0].path} is edited in a way that does not exist there")


THEOREMS: Final[Mapping[str, Callable[[Subject], None]]] = MappingProxyType(
    {
        "identity": _identity,
        "exact": _exact,
        "share": _share,
        "joint": _joint,
        "order": _order,
        "repeatable": _repeatable,
        "together": _together,
        "protected": _protected,
        "norms": _norms,
        "induce": _induce,
        "rotation": _rotation,
        "refused": _refused,
    }
)


def _amount(gain: float, share: float) -> Values:
    return {"amplification": gain, "addition_strength": share}


def _follows(subject: Subject, edits: Edits, strength: float, own: Values) -> None:
    assert set(edits) == subject.reached(own), "not the writers that the strategy is for"
    for site, edit in edits.items():
        worst = deviation(subject, site, edit, strength, own)
        assert worst < TOLERANCE, f"{site.path} is off by {worst:.1e} at strength {strength:g}, {dict(own)}"


def _distance(model: Model, edits: Edits) -> float:
    return sum(float((written(model, s, edit) - written(model, s, None)).norm()) for s, edit in edits.items())


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=FORWARD, atol=FORWARD * float(second.abs().max()))


def _same(first: Tensor, second: Tensor, what: str) -> None:
    worst = float((first - second).abs().max() / second.abs().max())
    assert worst < TOLERANCE, f"{what}: off by {worst:.1e}"


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
