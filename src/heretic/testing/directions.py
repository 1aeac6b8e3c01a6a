# SPDX-License-Identifier: Apache-2.0
"""Planted contrasts, and the contract that every direction method keeps (algorithms 3.0).

check_direction_method(METHODS["difference"])
check_direction_method(fit, waived={"rotation": "standardises each channel"})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.contrast import Contrast, Fitter, unit_rows
from heretic.exceptions import ExtractionError
from heretic.linalg.lowrank import orthonormal_columns, project_out
from heretic.linalg.separation import auroc

TOLERANCE: Final = 1e-4
FOUND: Final = 0.95
CHANCE: Final = 0.35, 0.65
"""Held-out AUROC of a direction fitted to shuffled labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """A contrast and what is in it.

    direction [L, d]: unit, where the classes differ, outside the control mean and what is protected. second [L, d]:
    unit, orthogonal to it, along which target prompts differ from one another in either sign. ordinary [L, d]: unit,
    the control mean of infinitely many prompts. All float64, and different in each layer.
    """

    contrast: Contrast
    direction: Tensor
    second: Tensor
    ordinary: Tensor


def planted_contrast(
    *,
    seed: int = 0,
    signal: float = 12.0,
    second: float = 0.0,
    along_mean: float = 0.0,
    protected: int = 0,
    replies: bool = False,
    layers: int = 3,
    width: int = 48,
    prompts: int = 100,
) -> Planted:
    """Two classes of `prompts` each, around a common mean about 28 long, with noise of standard deviation 0.5 to 2.

    signal: length of the class difference; second: how far target prompts lie to either side along `second`;
    along_mean: further class difference along the control mean; all in units of the noise. protected: so many rows, the
    first ones oblique to the direction and to the control mean, so that projecting on one after the other fails.
    replies: half of the target prompts show the behaviour, and only those carry the signal.
    """
    source = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    # No axis of the noise is a channel, so that treating channels apart shows.
    frame = torch.linalg.qr(drawn(width, width)).Q * torch.logspace(-0.3, 0.3, width, dtype=torch.float64)
    ordinary, plain = unit_rows(drawn(layers, width)), drawn(layers, 2 + protected, width)
    axes = torch.stack(
        [
            orthonormal_columns(torch.stack([ordinary[layer], plain[layer, 0], plain[layer, 1]]).T)[0].T
            for layer in range(layers)
        ]
    )
    direction, along = axes[:, 1], axes[:, 2]
    showed = torch.arange(prompts) % 2 == 0
    present = showed.double() if replies else torch.ones(prompts, dtype=torch.float64)
    side = torch.randn(prompts, generator=source, dtype=torch.float64).sign()
    noise = drawn(2, prompts, layers, width) @ frame.T
    control = noise[1] + 28 * ordinary
    target = noise[0] + 28 * ordinary + present[:, None, None] * signal * direction
    target = target + side[:, None, None] * second * along + along_mean * ordinary
    guarded = None
    if protected:
        guarded, direction = _guarded(plain[:, 2:], ordinary, direction)
    contrast = Contrast(
        target.float(),
        control.float(),
        protected=None if guarded is None else guarded.float(),
        showed=showed if replies else None,
    )
    return Planted(contrast, unit_rows(direction), along, ordinary)


def _guarded(rows: Tensor, ordinary: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows [L, p, d], oblique to both vectors [L, d], and what they leave of the direction."""
    oblique = unit_rows(rows)
    oblique[:, :2] += ordinary[:, None] + direction[:, None]
    guarded = torch.stack([orthonormal_columns(own.T)[0].T for own in oblique])
    both = torch.cat([guarded, ordinary[:, None]], dim=1)
    outside = [
        project_out(vector[None], orthonormal_columns(own.T)[0])[0]
        for vector, own in zip(direction, both, strict=True)
    ]
    return guarded, torch.stack(outside)


def check_direction_method(
    fit: Fitter, *, waived: Mapping[str, str] = MappingProxyType({}), seed: int = 0
) -> None:
    """Raises `AssertionError` naming every theorem of `THEOREMS` that the method breaks.

    waived: theorem -> reason why it does not hold for this method.
    """
    unknown = sorted(set(waived) - set(THEOREMS))
    assert not unknown, f"no such theorem: {', '.join(unknown)}"
    assert all(waived.values()), "each waived theorem needs its reason"
    broken = broken_theorems(fit, seed=seed, waived=waived)
    assert not broken, "; ".join(f"{name}: {what}" for name, what in broken.items())


def broken_theorems(fit: Fitter, *, waived: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """Theorem -> how the method breaks it, of those that are not waived."""
    found: dict[str, str] = {}
    for name, theorem in THEOREMS.items():
        if name in waived:
            continue
        try:
            theorem(fit, seed)
        except AssertionError as error:
            found[name] = str(error)
    return found


def _rich(seed: int) -> Planted:
    """A contrast in which everything that a method may look at is there."""
    return planted_contrast(seed=seed, second=5.0, along_mean=3.0, protected=2)


def _shape(fit: Fitter, seed: int) -> None:
    """Unit rows, orthonormal per layer, component 0 everywhere; unused rows zero and last; co-vectors biorthogonal."""
    for planted in (planted_contrast(seed=seed), _rich(seed), planted_contrast(seed=seed, replies=True)):
        contrast, bank = planted.contrast, fit(planted.contrast)
        rows, spread = bank.directions, bank.spread
        assert rows.shape == (contrast.layers, bank.components, contrast.width), (
            f"directions {tuple(rows.shape)}"
        )
        assert spread.shape == rows.shape[:2] and rows.dtype == spread.dtype == torch.float32, (
            "spread or dtype"
        )
        assert bool(rows.isfinite().all()) and bool((spread >= 0).all()), "not finite, or a negative spread"
        present = spread > 0
        assert bool(present[:, 0].all()), "a layer without component 0"
        assert bool((present[:, :-1] >= present[:, 1:]).all()), "a component behind an absent one"
        wanted = torch.diag_embed(present.float())
        assert _near(rows @ rows.mT, wanted), "rows are not orthonormal"
        if bank.covectors is not None:
            assert _near(bank.covectors @ rows.mT, wanted), "co-vectors do not read 1 of their own row alone"
        assert bank.provenance.get("method"), "provenance names no method"
        json.dumps(dict(bank.provenance), allow_nan=False)


def _order(fit: Fitter, seed: int) -> None:
    """The same result for shuffled prompts."""
    for planted in (_rich(seed), planted_contrast(seed=seed, replies=True)):
        contrast = planted.contrast
        first, second = (_permutation(len(side), seed) for side in (contrast.target, contrast.control))
        shuffled = Contrast(
            contrast.target[first],
            contrast.control[second],
            protected=contrast.protected,
            showed=None if contrast.showed is None else contrast.showed[first],
        )
        _same(fit(shuffled), fit(contrast), "the order of prompts changes the result")


def _repeatable(fit: Fitter, seed: int) -> None:
    """Bit-equal when repeated, whatever the global generator holds; the samples are left as they were."""
    contrast = _rich(seed).contrast
    target, control = contrast.target.clone(), contrast.control.clone()
    banks: list[DirectionBank] = []
    with torch.random.fork_rng():
        for state in (1, 2):
            torch.manual_seed(state)
            banks.append(fit(contrast))
    assert torch.equal(banks[0].directions, banks[1].directions), "a second call gives another result"
    unchanged = torch.equal(target, contrast.target) and torch.equal(control, contrast.control)
    assert unchanged, "the samples were changed"


def _sign(fit: Fitter, seed: int) -> None:
    """From control to target; with the classes exchanged the direction turns round."""
    planted = planted_contrast(seed=seed)
    contrast = planted.contrast
    gap = contrast.target.mean(dim=0) - contrast.control.mean(dim=0)
    assert bool(((fit(contrast).directions[:, 0] * gap).sum(dim=1) > 0).all()), (
        "points from target to control"
    )
    turned = _cosines(fit(Contrast(contrast.control, contrast.target)), planted.direction)
    assert bool((turned < -0.5).all()), f"exchanged classes give cosine {float(turned.max()):.2f}"


def _rotation(fit: Fitter, seed: int) -> None:
    """fit(X O) = fit(X) O."""
    contrast = _rich(seed).contrast
    source = torch.Generator().manual_seed(seed + 1)
    turn = torch.linalg.qr(torch.randn(contrast.width, contrast.width, generator=source).double()).Q
    assert contrast.protected is not None, "the planted contrast protects something"
    target, control, protected = (
        (rows.double() @ turn).float() for rows in (contrast.target, contrast.control, contrast.protected)
    )
    bank = fit(contrast)
    expected = DirectionBank((bank.directions.double() @ turn).float(), bank.spread)
    _same(
        fit(Contrast(target, control, protected=protected)),
        expected,
        "the result does not turn with the space",
    )


def _planted(fit: Fitter, seed: int) -> None:
    """The planted direction is recovered, with or without reply labels; control: a random one is not."""
    for replies in (False, True):
        planted = planted_contrast(seed=seed, replies=replies)
        bank = fit(planted.contrast)
        cosines = _cosines(bank, planted.direction)
        assert bool((cosines > FOUND).all()), f"planted cosine {float(cosines.min()):.3f}"
        other = unit_rows(
            torch.randn(planted.direction.shape, generator=torch.Generator().manual_seed(seed + 1))
        )
        assert bool((_cosines(bank, other.double()).abs() < 0.7).all()), "any direction is found"


def _chance(fit: Fitter, seed: int) -> None:
    """Shuffled labels: held-out AUROC near one half (or the method refuses); control: true labels, above 0.9."""
    contrast = planted_contrast(seed=seed).contrast
    rows, size = torch.cat([contrast.target, contrast.control]), len(contrast.target)
    true = _held_out(fit, contrast.target, contrast.control)
    assert true > 0.9, f"true labels give a held-out AUROC of {true:.2f}"
    areas: list[float] = []
    for draw in range(4):
        mixed = rows[_permutation(len(rows), seed + draw)]
        try:
            areas.append(_held_out(fit, mixed[:size], mixed[size:]))
        except ExtractionError:
            continue
    area = sum(areas) / len(areas) if areas else 0.5
    assert CHANCE[0] <= area <= CHANCE[1], f"shuffled labels give a held-out AUROC of {area:.2f}"


def _equal(fit: Fitter, seed: int) -> None:
    """Equal classes raise `ExtractionError`, in any order of prompts."""
    control = planted_contrast(seed=seed).contrast.control
    for target in (control.clone(), control[_permutation(len(control), seed)]):
        try:
            fit(Contrast(target, control))
        except ExtractionError:
            continue
        raise AssertionError("equal classes give a direction")


def _protected(fit: Fitter, seed: int) -> None:
    """No component contains a protected row; control: one does when nothing is protected."""
    planted = _rich(seed)
    contrast = planted.contrast
    assert contrast.protected is not None, "the planted contrast protects something"
    bank = fit(contrast)
    left = float((bank.directions @ contrast.protected.mT).abs().max())
    assert left < TOLERANCE, f"{left:.1e} of a protected row is left"
    cosines = _cosines(bank, planted.direction)
    assert bool((cosines > 0.9).all()), (
        f"what is not protected is found with cosine {float(cosines.min()):.3f}"
    )
    free = (fit(contrast.guarded(None)).directions @ contrast.protected.mT).abs().max()
    assert float(free) > 0.1, "nothing of a protected row is found even where nothing is protected"


def _control_mean(fit: Fitter, seed: int) -> None:
    """Nothing that is removed or read contains the control mean: an edit leaves it where it is (algorithms 3.1 a)."""
    rich = _rich(seed).contrast
    for contrast in (rich, rich.guarded(None)):
        bank, mean = fit(contrast), unit_rows(contrast.control.double().mean(dim=0))
        for rows in (bank.directions, bank.covectors):
            left = 0.0 if rows is None else float((rows.double() @ mean[:, :, None]).abs().max())
            assert left < TOLERANCE, f"{left:.1e} of the control mean is left"


THEOREMS: Final[Mapping[str, Callable[[Fitter, int], None]]] = MappingProxyType(
    {
        "shape": _shape,
        "order": _order,
        "repeatable": _repeatable,
        "sign": _sign,
        "rotation": _rotation,
        "planted": _planted,
        "chance": _chance,
        "equal": _equal,
        "protected": _protected,
        "control_mean": _control_mean,
    }
)


def _near(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() < TOLERANCE)


def _same(first: DirectionBank, second: DirectionBank, otherwise: str) -> None:
    assert first.directions.shape == second.directions.shape, f"{otherwise}: another number of components"
    worst = float((first.directions - second.directions).abs().max())
    assert worst < TOLERANCE, f"{otherwise}: by {worst:.1e}"
    assert torch.allclose(first.spread, second.spread, rtol=TOLERANCE, atol=TOLERANCE), f"{otherwise}: spread"


def _permutation(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + 7))


def _cosines(bank: DirectionBank, wanted: Tensor) -> Tensor:
    """[L] between component 0 and unit rows [L, d]."""
    return (bank.directions[:, 0].double() * wanted).sum(dim=1)


def _held_out(fit: Fitter, target: Tensor, control: Tensor) -> float:
    """Mean AUROC over layers along component 0 of the other half of the prompts."""
    rows = fit(Contrast(target[::2], control[::2])).directions[:, 0]
    sides = [(side[1::2] * rows).sum(dim=2) for side in (target, control)]
    areas = [auroc(sides[0][:, layer], sides[1][:, layer]) for layer in range(len(rows))]
    return sum(areas) / len(areas)
