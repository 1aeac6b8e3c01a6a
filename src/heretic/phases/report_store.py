# SPDX-License-Identifier: Apache-2.0
"""What a study keeps so that its report can be drawn later without the model: the final document, and residuals seen
from two sides.

Kept as attributes of the study, which follow it when it is renamed or deleted and which every storage has; compressed,
with a version, a checksum and bounds on both sizes, because a storage may come from a stranger.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from heretic.exceptions import StorageError, StudyCorruptError
from heretic.linalg.geometry import silhouette
from heretic.sanitise import redact
from heretic.study.state import Study

VERSION: Final = 1
REPORT: Final = "report"
RESIDUALS: Final = "residual_view"
POINTS: Final = 200
"""Prompts of each class that are kept as points, and that the silhouette is computed from."""
PICTURES: Final = 6
"""Layers whose points are kept."""
TEXT_LIMIT: Final = 4_000
"""Characters of one text."""
PACKED_LIMIT: Final = 2 * 1024 * 1024
PLAIN_LIMIT: Final = 32 * 1024 * 1024
"""Bytes before compression; what would unpack to more is not read."""
DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer. Norms in activation units; mean_cosine: between the class means; previous_cosine: of the direction
    with that of the layer before, None where one of them is missing; silhouette: of at most `POINTS` prompts a class;
    auroc, effect_size, stability: cross-fitted, from the extraction (algorithms 3.12, 3.13)."""

    layer: int
    target_norm: float
    control_norm: float
    difference_norm: float
    mean_cosine: float
    previous_cosine: float | None
    silhouette: float
    auroc: float
    effect_size: float
    stability: float


@dataclass(frozen=True, slots=True)
class Projection:
    """Prompts of one layer as points (x, y), in activation units.

    x: along the direction, 0 half-way between the class means. y: along the first principal component of what is left
    without the direction, 0 at the mean; share: of the variance that is left, how much y holds.
    """

    layer: int
    share: float
    target: tuple[tuple[float, float], ...]
    control: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ResidualView:
    """Both classes over depth, of target_count and control_count prompts."""

    target_count: int
    control_count: int
    best_layer: int
    layers: tuple[LayerFigures, ...]
    projections: tuple[Projection, ...]


@dataclass(frozen=True, slots=True)
class StoredReport:
    """The document of the last run that ended, and the certificate of what it saved (one record a site)."""

    document: Mapping[str, Any]
    certificate: tuple[Mapping[str, Any], ...]


def residual_view(
    target: Tensor,
    control: Tensor,
    directions: Tensor,
    *,
    auroc: Sequence[float],
    effect_size: Sequence[float],
    stability: Sequence[float],
    seed: int = 0,
) -> ResidualView:
    """Figures of every layer and points of a few, from residuals [n+, L, d] and [n-, L, d] and directions [L, d].

    auroc, effect_size, stability: L values each, as the extraction found them. A direction of length zero gives no
    points. The same input gives the same view; one layer at a time is held in float64.
    """
    layers = target.shape[1]
    assert control.shape[1] == layers == len(auroc) == len(effect_size) == len(stability)
    generator = torch.Generator().manual_seed(seed)
    rows = [_drawn(len(side), generator) for side in (target, control)]
    best = max(range(layers), key=lambda layer: effect_size[layer])
    units = [_unit(directions[layer].double()) for layer in range(layers)]
    figures = tuple(
        LayerFigures(
            layer=layer,
            **_norms(target[:, layer], control[:, layer]),
            previous_cosine=_previous(units, layer),
            silhouette=_rounded(
                silhouette(target[rows[0], layer].double(), control[rows[1], layer].double())
            ),
            auroc=_rounded(auroc[layer]),
            effect_size=_rounded(effect_size[layer]),
            stability=_rounded(stability[layer]),
        )
        for layer in range(layers)
    )
    pictures = [
        _projection(layer, target[rows[0], layer], control[rows[1], layer], unit)
        for layer in shown_layers(layers, best)
        if (unit := units[layer]) is not None
    ]
    return ResidualView(len(target), len(control), best, figures, tuple(pictures))


def shown_layers(layers: int, best: int) -> tuple[int, ...]:
    """At most `PICTURES` layers, evenly over the depth, the best one among them."""
    count = min(PICTURES - 1, layers)
    even = {round(step * (layers - 1) / max(1, count - 1)) for step in range(count)}
    return tuple(sorted(even | {best}))


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Numbers of at most `POINTS` rows, in order."""
    return torch.randperm(count, generator=generator)[:POINTS].sort().values


def _unit(direction: Tensor) -> Tensor | None:
    length = float(direction.norm())
    return direction / length if math.isfinite(length) and length > 0 else None


def _previous(units: Sequence[Tensor | None], layer: int) -> float | None:
    own, before = units[layer], units[layer - 1] if layer else None
    return None if own is None or before is None else _rounded(float(own @ before))


def _norms(target: Tensor, control: Tensor) -> dict[str, float]:
    first, second = target.mean(dim=0, dtype=torch.float64), control.mean(dim=0, dtype=torch.float64)
    return {
        "target_norm": _rounded(float(first.norm())),
        "control_norm": _rounded(float(second.norm())),
        "difference_norm": _rounded(float((first - second).norm())),
        "mean_cosine": _rounded(float(torch.nn.functional.cosine_similarity(first, second, dim=0))),
    }


def _projection(layer: int, target: Tensor, control: Tensor, unit: Tensor) -> Projection:
    classes = target.double(), control.double()
    middle = (classes[0].mean(dim=0) + classes[1].mean(dim=0)) / 2
    rows = torch.cat(classes)
    along = (rows - middle) @ unit
    rest = rows - rows.mean(dim=0)
    rest = rest - (rest @ unit)[:, None] * unit
    # Of the small matrix of inner products: there are at most 2 * POINTS rows of thousands of columns.
    values, vectors = torch.linalg.eigh(rest @ rest.T)
    scores = vectors[:, -1] * values[-1].clamp_min(0).sqrt()
    # A component has no sign of its own; the farthest point is put on top.
    scores = scores * torch.sign(scores[scores.abs().argmax()])
    total = float(rest.square().sum())
    points = [(_rounded(float(x)), _rounded(float(y))) for x, y in zip(along, scores, strict=True)]
    return Projection(
        layer=layer,
        share=_rounded(float(values[-1]) / total) if total > 0 else 0.0,
        target=tuple(points[: len(target)]),
        control=tuple(points[len(target) :]),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def store_residual_view(study: Study, view: ResidualView) -> None:
    """Keep the view with the study; a later one replaces it."""
    study.set_attribute(RESIDUALS, packed(asdict(view)))


def stored_residual_view(study: Study) -> ResidualView | None:
    """The view, if one was kept. Raises `StudyCorruptError` for a damaged one and for one of another version."""
    stored = study.attribute(RESIDUALS)
    if stored is None:
        return None
    document = unpacked(stored, "residuals")
    try:
        return ResidualView(
            target_count=int(document["target_count"]),
            control_count=int(document["control_count"]),
            best_layer=int(document["best_layer"]),
            layers=tuple(_read_layer(entry) for entry in document["layers"]),
            projections=tuple(_read_projection(entry) for entry in document["projections"][:PICTURES]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged("residuals", type(error).__name__) from error


def _read_layer(entry: Mapping[str, Any]) -> LayerFigures:
    names = [name for name in LayerFigures.__dataclass_fields__ if name not in ("layer", "previous_cosine")]
    previous = entry["previous_cosine"]
    return LayerFigures(
        layer=int(entry["layer"]),
        previous_cosine=None if previous is None else _finite(previous),
        **{name: _finite(entry[name]) for name in names},
    )


def _read_projection(entry: Mapping[str, Any]) -> Projection:
    sides = [
        tuple((_finite(x), _finite(y)) for x, y in entry[name][:POINTS]) for name in ("target", "control")
    ]
    return Projection(int(entry["layer"]), _finite(entry["share"]), *sides)


def _finite(value: float) -> float:
    """The number; raises `ValueError` for what is none, however it is written."""
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is not finite")
    return found


def store_report(
    study: Study, document: Mapping[str, object], certificate: Sequence[Mapping[str, object]] = ()
) -> str | None:
    """Keep the document of a run (`RunReport.to_document`); a later run replaces it.

    Long texts are cut, credentials blanked out, and what is no number becomes null. What is too large even so loses the
    certificate and the strengths of trials that were not chosen; the sentence about it is returned. None: all is kept.
    """
    whole = {"document": dict(document), "certificate": [dict(entry) for entry in certificate]}
    try:
        study.set_attribute(REPORT, packed(whole))
    except StorageError:
        short = {"document": _without_strengths(document), "certificate": []}
        study.set_attribute(REPORT, packed(short))
        return "the stored report lacks the certificate and the strengths of other trials: it was too large"
    return None


def stored_report(study: Study) -> StoredReport | None:
    """The report of the last run, if one was kept. Raises `StudyCorruptError` as `stored_residual_view`."""
    stored = study.attribute(REPORT)
    if stored is None:
        return None
    found = unpacked(stored, "report")
    document, certificate = found.get("document"), found.get("certificate")
    if not isinstance(document, dict) or not isinstance(certificate, list):
        raise _damaged("report", "no document")
    return StoredReport(document, tuple(entry for entry in certificate if isinstance(entry, dict)))


def _without_strengths(document: Mapping[str, object]) -> dict[str, object]:
    front = document.get("front")
    trials = [
        {key: value for key, value in trial.items() if key != "strengths"}
        for trial in (front if isinstance(front, list | tuple) else ())
        if isinstance(trial, Mapping)
    ]
    return {**document, "front": trials}


def packed(value: object) -> dict[str, str | int]:
    """The value as an attribute; raises `StorageError` where it is larger than the bounds."""
    plain = json.dumps(_cleaned(value), separators=(",", ":"), allow_nan=False).encode("ascii")
    data = zlib.compress(plain, 9)
    if len(plain) > PLAIN_LIMIT or len(data) > PACKED_LIMIT:
        raise StorageError(
            f"The report is too large to be stored: {len(plain):,} bytes, {len(data):,} compressed.",
            hint=f"At most {PLAIN_LIMIT:,} and {PACKED_LIMIT:,} are kept with a study.",
        )
    digest = hashlib.sha256(plain).hexdigest()
    return {"version": VERSION, "sha256": digest, "data": base64.b64encode(data).decode("ascii")}


def unpacked(stored: object, what: str) -> dict[str, Any]:
    """`packed` read back; raises `StudyCorruptError` for anything else."""
    if not isinstance(stored, Mapping) or stored.get("version") != VERSION:
        found = stored.get("version") if isinstance(stored, Mapping) else None
        raise _damaged(what, f"version {found!r}, this program knows {VERSION}")
    text = stored.get("data")
    if not isinstance(text, str) or len(text) > 2 * PACKED_LIMIT:
        raise _damaged(what, "its size")
    try:
        reader = zlib.decompressobj()
        plain = reader.decompress(base64.b64decode(text, validate=True), PLAIN_LIMIT)
        if reader.unconsumed_tail or hashlib.sha256(plain).hexdigest() != stored.get("sha256"):
            raise _damaged(what, "its checksum")
        value = json.loads(plain)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise _damaged(what, type(error).__name__) from error
    if not isinstance(value, dict):
        raise _damaged(what, "no document")
    return value


def _damaged(what: str, why: str) -> StudyCorruptError:
    return StudyCorruptError(
        f"The {what} kept with the study cannot be read ({why}).",
        hint="It is written anew when the run is started again.",
    )


def _cleaned(value: object) -> object:
    """The value as strict JSON has it: no NaN, texts of bounded length and without credentials."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        text = redact(value[: 2 * TEXT_LIMIT])
        return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT - 3]}..."
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key)[:TEXT_LIMIT]: _cleaned(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [_cleaned(entry) for entry in value]
    return _cleaned(str(value))
