# SPDX-License-Identifier: Apache-2.0
"""What an edit did to one site, measured on the stored values (algorithms 10.2 and 10.8, R-OUT-31)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from heretic.architectures.site import Site
from heretic.interventions.edit import Edit
from heretic.linalg.lowrank import read_rows

CERTIFICATE_TOLERANCE = 1e-3
"""Allowed difference of two certificates of one edit: another kernel's rounding, not more."""

STRENGTH_TOLERANCE = 0.10
"""A strength that rounding moved by more than this share is a warning (algorithms 10.2)."""


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """The certificate of one site; sums run over all experts of a fused one.

    keys: stored tensors holding it, matrices then biases. wanted, achieved: [k] removed share of each
    component, `1 - <readT W, readT W'> / |readT W|^2` for the edit in float32 and for the written values;
    empty for an edit that does not read the writer's own output. leftover: `|readT W'| / |readT W|`.
    relative_change: `|W' - W| / |W|`.
    realised: `<dW written, dW wanted> / |dW wanted|^2`, 1 when rounding lost nothing. protected_change:
    `|ST (W' - W)| / |ST W|` for protected directions S, None without them. column_drift, row_drift: largest change of
    the length of what one input writes, and of one row of the output, as a share of it (algorithms 4.4).
    """

    path: str
    layer: int
    component: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    rank: int
    wanted: tuple[float, ...]
    achieved: tuple[float, ...]
    leftover: float | None
    relative_change: float
    realised: float | None
    protected_change: float | None = None
    column_drift: float = 0.0
    row_drift: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """The record as plain values, for the manifest."""
        return asdict(self)

    def warning(self) -> str | None:
        """One sentence when rounding moved a strength by more than 10 %, else None."""
        for wanted, achieved in zip(self.wanted, self.achieved, strict=True):
            if abs(achieved - wanted) > STRENGTH_TOLERANCE * abs(wanted) + 1e-9:
                return (
                    f"{self.path}: strength {wanted:.3g} became {achieved:.3g} when rounded to {self.dtype}."
                )
        return None


class SiteMeter:
    """Accumulates the sums behind a `SiteRecord`, one matrix at a time, in float64."""

    def __init__(self, site: Site, edit: Edit, protected: Tensor | None = None) -> None:
        """protected: [d, p] orthonormal directions that should not move, or None."""
        self.site = site
        self.edit = edit
        self.protected = protected
        zeros = torch.zeros(edit.rank, dtype=torch.float64)
        self.before, self.after = zeros.clone(), zeros.clone()
        self.cross_exact, self.cross = zeros.clone(), zeros.clone()
        self.base = self.change = self.wanted_change = self.overlap = 0.0
        self.protected_base = self.protected_moved = 0.0
        self.drift = [0.0, 0.0]

    def add(self, original: Tensor, exact: Tensor, written: Tensor) -> None:
        """One matrix in memory's layout: as stored, after the edit in float32, and as written."""
        old, new = original.to(exact.dtype), written.to(exact.dtype)
        wanted, change = exact - old, new - old
        self.base += _square(old)
        self.change += _square(change)
        self.wanted_change += _square(wanted)
        self.overlap += float((wanted * change).sum(dtype=torch.float64))
        axis = self.site.residual_axis
        self.drift = [
            max(known, _drift(old, new, side))
            for known, side in zip(self.drift, (axis, 1 - axis), strict=True)
        ]
        if self.edit.read is not None:
            rows = [
                read_rows(matrix, self.edit.read.to(exact.dtype), axis).double()
                for matrix in (old, exact, new)
            ]
            self.before += rows[0].square().sum(1)
            self.after += rows[2].square().sum(1)
            self.cross_exact += (rows[0] * rows[1]).sum(1)
            self.cross += (rows[0] * rows[2]).sum(1)
        if self.protected is not None:
            directions = self.protected.to(exact.dtype)
            self.protected_base += _square(read_rows(old, directions, axis))
            self.protected_moved += _square(read_rows(change, directions, axis))

    def record(self, keys: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> SiteRecord:
        """The finished certificate."""
        reads = self.edit.read is not None and self.edit.rank > 0 and bool((self.before > 0).all())
        total = float(self.before.sum())
        return SiteRecord(
            path=self.site.path,
            layer=self.site.layer,
            component=self.site.component,
            keys=keys,
            shape=shape,
            dtype=dtype,
            rank=self.edit.rank,
            wanted=_shares(self.cross_exact, self.before) if reads else (),
            achieved=_shares(self.cross, self.before) if reads else (),
            leftover=_root_ratio(float(self.after.sum()), total) if reads else None,
            relative_change=_root_ratio(self.change, self.base) or 0.0,
            realised=self.overlap / self.wanted_change if self.wanted_change else None,
            protected_change=_root_ratio(self.protected_moved, self.protected_base),
            column_drift=self.drift[0],
            row_drift=self.drift[1],
        )


COMPARED = {
    "relative_change": "relative change",
    "protected_change": "change of protected directions",
    "column_drift": "drift of column norms",
    "row_drift": "drift of row norms",
}


def certificate_differences(then: object, now: object) -> list[str]:
    """Sites whose edit is not the recorded one beyond rounding (algorithms 10.2). Both are lists of `as_dict` rows, as
    JSON has them; anything else counts as no certificate."""
    recorded, found = _by_path(then), _by_path(now)
    if not recorded and (found or then != []):  # an empty list says that nothing was edited
        return ["the record holds no certificate to compare with"]
    differences = [f"{path} is edited in one of the two only" for path in sorted(set(recorded) ^ set(found))]
    for path in sorted(set(recorded) & set(found)):
        old, new = recorded[path], found[path]
        pairs = [(name, old.get(key), new.get(key)) for key, name in COMPARED.items()]
        before, after = old.get("achieved"), new.get("achieved")
        if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
            pairs += [("removed share", one, two) for one, two in zip(before, after, strict=True)]
        else:
            pairs.append(("removed share", before, None))
        differences += [f"{path}: {name} {one} became {two}" for name, one, two in pairs if _differ(one, two)]
    return differences


def _differ(one: object, two: object) -> bool:
    if one is None and two is None:
        return False
    known = isinstance(one, int | float) and isinstance(two, int | float)
    return not known or abs(float(str(one)) - float(str(two))) > CERTIFICATE_TOLERANCE


def _by_path(certificate: object) -> dict[str, Mapping[str, object]]:
    rows = certificate if isinstance(certificate, list | tuple) else []
    return {str(row.get("path")): row for row in rows if isinstance(row, Mapping)}


def _square(matrix: Tensor) -> float:
    return float(matrix.square().sum(dtype=torch.float64))


def _drift(old: Tensor, new: Tensor, axis: int) -> float:
    """Largest relative change of the norms along an axis; vectors of zeros are left out."""
    before, after = old.norm(dim=axis), new.norm(dim=axis)
    present = before > 0
    if not bool(present.any()):
        return 0.0
    return float((after[present] / before[present] - 1.0).abs().max())


def _shares(cross: Tensor, before: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in 1.0 - cross / before)


def _root_ratio(part: float, whole: float) -> float | None:
    return (part / whole) ** 0.5 if whole > 0 else None
