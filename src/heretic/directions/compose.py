# SPDX-License-Identifier: Apache-2.0
"""Several direction files together: how alike they are, their weighted sum, one basis for all (algorithms 4.1, 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.file import DirectionFile, require_fits
from heretic.exceptions import AbliterationError, DirectionFileError
from heretic.linalg.geometry import principal_angles
from heretic.linalg.lowrank import DEPENDENT, orthonormal_columns

CANCELLED: Final = 1e-3
"""A sum of unit vectors that is shorter than this share of their weights is what noise and rounding left."""
CONDITION_LIMIT: Final = 1e4
"""Of the products of what is read with what is removed (algorithms 4.2)."""


@dataclass(frozen=True, slots=True)
class EntryComparison:
    """Two files at one entry, which is the block + 1.

    cosine: of the components 0, with its sign. angles: principal angles of the two spans in radians, ascending; 0 is a
    shared direction, pi / 2 nothing in common.
    """

    entry: int
    cosine: float
    angles: tuple[float, ...]


def compare(first: DirectionFile, second: DirectionFile) -> tuple[EntryComparison, ...]:
    """The entries from 1 to L. Raises `DirectionFileError` naming both sizes when they differ.

    Files of different models are compared where their sizes are equal; that says something only if one model was made
    from the other.
    """
    require_fits(second, hidden_size=first.bank.width, layers=first.bank.layers, model_name=first.model)
    found = []
    for layer in range(first.bank.layers):
        one, other = (_present(file.bank.directions[layer].double()) for file in (first, second))
        angles = sorted(float(angle) for angle in principal_angles(one, other))
        found.append(EntryComparison(layer + 1, float(one[0] @ other[0]), tuple(angles)))
    return tuple(found)


def combine(
    files: Sequence[DirectionFile], scales: Sequence[float], *, name: str, created: str
) -> DirectionFile:
    """The sum of the components 0, each times its scale, as unit vectors: one direction that stands for several.

    The spread is the mean, weighted with the sizes of the scales, of what the class difference of each file has along
    the result. What is read (covectors) is summed alike, so that what no file reads the sum does not read either. The
    goal is that of the first file; separability is unknown, because nobody measured it.

    Raises `DirectionFileError` for files of different models, `AbliterationError` with layer and value where the sum
    nearly vanishes.
    """
    assert files and len(files) == len(scales), "one scale for each file"
    _require_one_model(files)
    weights = torch.tensor(scales, dtype=torch.float64)
    rows = torch.stack([file.bank.directions[:, 0].double() for file in files])
    directions = _unit_sum(weights, rows)
    lengths = torch.stack([file.bank.spread[:, 0].double() for file in files])
    along = lengths * torch.einsum("fld,ld->fl", rows, directions).abs()
    sizes = weights.abs() / weights.abs().sum()
    bank = DirectionBank(
        directions=directions.float()[:, None],
        spread=(sizes @ along).float()[:, None],
        covectors=_summed_covectors(files, weights, directions),
        provenance={"method": "combine", "parts": [_part(*pair) for pair in zip(files, scales, strict=True)]},
    )
    unknown = (None,) * bank.layers
    revisions = {file.revision for file in files}
    return DirectionFile(
        bank=bank,
        name=name,
        behaviour=" + ".join(dict.fromkeys(file.behaviour for file in files)),
        goal=files[0].goal,
        method="combine",
        component_weights=(1.0,),
        auroc=unknown,
        effect_size=unknown,
        model=files[0].model,
        revision=files[0].revision if len(revisions) == 1 else None,
        data={
            f"{place}.{key}": found for place, file in enumerate(files, 1) for key, found in file.data.items()
        },
        source=f"weighted sum of {len(files)} direction files",
        created=created,
    )


@dataclass(frozen=True, slots=True, eq=False)
class JointBasis:
    """bank: one orthonormal basis per layer. weights: [L, k], scale of the file times weight of the component that each
    row comes from, 0 where there is none. dropped: what added nothing at some layers, in sentences."""

    bank: DirectionBank
    weights: Tensor
    dropped: tuple[str, ...] = ()


def joint_basis(files: Sequence[DirectionFile], scales: Sequence[float] | None = None) -> JointBasis:
    """The directions of all files as one basis, to remove them at once: one after another would leave part of the first
    (algorithms 4.1).

    Rows are ordered by file, then by component. Each is what is left of its direction outside those before it, and its
    spread shrinks alike; where less than 1e-3 is left it is dropped. The span does not depend on the order of the
    files. Where one of them reads other vectors than it removes, there are covectors for the whole basis. A single file
    gives its bank as it is. scales: 1 for each file unless stated.

    Raises `DirectionFileError` for files of different models; `AbliterationError` when a file adds nothing in any
    layer, or when what is read hardly meets what is removed.
    """
    scales = [1.0] * len(files) if scales is None else scales
    assert files and len(files) == len(scales), "one scale for each file"
    _require_one_model(files)
    banks = [file.bank for file in files]
    rows = torch.cat([bank.directions for bank in banks], dim=1).double()
    weights = torch.cat(
        [torch.tensor(file.component_weights) * scale for file, scale in zip(files, scales, strict=True)]
    )
    if len(files) == 1:
        return JointBasis(banks[0], weights * rows.any(dim=2))
    parts = [_join(layer) for layer in rows]
    basis, left = (torch.stack([part[side] for part in parts]) for side in (0, 1))
    used = basis.any(dim=2)
    dropped = _dropped(files, used, rows.any(dim=2) & ~used, left)
    order = (~used).sort(dim=1, stable=True).indices[:, : int(used.sum(dim=1).max())]

    def packed(values: Tensor) -> Tensor:
        """[L, all, ...] with the rows that are used first, and no more places than a layer needs."""
        return values[torch.arange(len(values))[:, None], order]

    bank = DirectionBank(
        directions=packed(basis).float(),
        spread=packed(torch.cat([bank.spread for bank in banks], dim=1) * left * used).float(),
        covectors=_joint_covectors(banks, packed, packed(basis)),
        provenance={
            "method": "joint",
            "parts": [_part(*pair) for pair in zip(files, scales, strict=True)],
            "degradations": list(dropped),
        },
    )
    return JointBasis(bank, packed(weights * used), dropped)


# Inside


def _require_one_model(files: Sequence[DirectionFile]) -> None:
    first = files[0]
    for other in files[1:]:
        require_fits(other, hidden_size=first.bank.width, layers=first.bank.layers, model_name=first.model)
        if other.model != first.model:
            raise DirectionFileError(
                f"The directions {first.name!r} are those of {first.model}, {other.name!r} those of {other.model}.",
                hint="Directions of one model mean nothing in another one; extract both from the same model.",
            )


def _present(rows: Tensor) -> Tensor:
    """The rows [k, d] that are there: a layer with fewer components than others has zero rows."""
    return rows[rows.any(dim=1)]


def _part(file: DirectionFile, scale: float) -> dict[str, object]:
    """What a file was, for the provenance of what is made of it."""
    words = {key: getattr(file, key) for key in ("name", "behaviour", "goal", "method", "source", "created")}
    return {**words, "scale": scale, "data": dict(file.data)}


def _unit_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """sum of w_f r_f, normalised: weights [f], rows [f, L, d] -> [L, d]."""
    total = torch.einsum("f,fld->ld", weights, rows)
    lengths, size = total.norm(dim=1), float(weights.abs().sum())
    layer = int(lengths.argmin())
    if float(lengths[layer]) <= CANCELLED * size:
        raise AbliterationError(
            f"The directions cancel each other: at layer {layer} a length of {float(lengths[layer]):.2e} is left of "
            f"scales that add up to {size:g}.",
            hint="Choose other scales, or leave one of the files out.",
        )
    unit: Tensor = total / lengths[:, None]
    return unit


def _covectors(bank: DirectionBank) -> Tensor:
    """What is read [L, k, d], float64."""
    return (bank.directions if bank.covectors is None else bank.covectors).double()


def _summed_covectors(files: Sequence[DirectionFile], weights: Tensor, directions: Tensor) -> Tensor | None:
    if all(file.bank.covectors is None for file in files):
        return None
    reads = torch.stack([_covectors(file.bank)[:, 0] for file in files])
    total = torch.einsum("f,fld->ld", weights, reads)
    meeting = (total * directions).sum(dim=1)
    _require_meeting(meeting.abs() / total.norm(dim=1))
    return (total / meeting[:, None]).float()[:, None]


def _require_meeting(shares: Tensor) -> None:
    """shares [L]: 1 = what is read is what is removed, 0 = it never sees it."""
    layer = int(shares.nan_to_num(0.0).argmin())
    if not float(shares[layer]) > 1 / CONDITION_LIMIT:
        raise AbliterationError(
            f"What the files read hardly meets what they remove: at layer {layer} the share is "
            f"{float(shares[layer]):.2e}, the least usable one {1 / CONDITION_LIMIT:g}.",
            hint="Leave out the file that was extracted with protected directions, or protect fewer.",
        )


def _join(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(basis [k, d], left [k]) of rows [k, d]: each row outside those before it, zero where it depends on them, and the
    length that was left of it.
    """
    there = rows.any(dim=1).nonzero().flatten()
    columns, used = orthonormal_columns(rows[there].T)
    kept = there[used]
    basis = torch.zeros_like(rows)
    basis[kept] = columns.T
    left = (rows - rows @ columns @ columns.T).norm(dim=1)
    left[kept] = (rows[kept] * basis[kept]).sum(dim=1)
    return basis, left


def _joint_covectors(
    banks: Sequence[DirectionBank], packed: Callable[[Tensor], Tensor], basis: Tensor
) -> Tensor | None:
    """C = (D Q^T)^-1 D per layer, so that C_i . q_j = 1 for i = j and 0 otherwise; [L, k, d]."""
    if all(bank.covectors is None for bank in banks):
        return None
    reads = packed(torch.cat([_covectors(bank) for bank in banks], dim=1))
    found, shares = torch.zeros_like(reads), []
    for layer, rows in enumerate(basis):
        there = rows.any(dim=1)
        products = reads[layer, there] @ rows[there].T
        spectrum = torch.linalg.svdvals(products)
        shares.append(float(spectrum[-1] / spectrum[0]))
        found[layer, there] = torch.linalg.pinv(products) @ reads[layer, there]
    _require_meeting(torch.tensor(shares))
    return found.float()


def _dropped(files: Sequence[DirectionFile], used: Tensor, dropped: Tensor, left: Tensor) -> tuple[str, ...]:
    """What adds nothing at some layers; raises `AbliterationError` for a file that adds nothing anywhere, which was
    given in vain and would not be missed."""
    sentences = []
    place = 0
    for file in files:
        own = slice(place, place + file.bank.components)
        place = own.stop
        if not bool(used[:, own].any()):
            raise AbliterationError(
                f"The directions {file.name!r} lie within those of the files before it at every layer: at most "
                f"{float(left[:, own].max()):.1e} of their length is left, {DEPENDENT:g} is needed.",
                hint="Leave one of these files out.",
            )
        for component in range(file.bank.components):
            layers = dropped[:, own.start + component].nonzero().flatten().tolist()
            if layers:
                sentences.append(
                    f"Component {component} of {file.name!r} lies within the directions before it and is left out at "
                    f"the layers {', '.join(map(str, layers))}."
                )
    return tuple(sentences)
