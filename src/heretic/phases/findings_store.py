# SPDX-License-Identifier: Apache-2.0
"""Directions and all else that extraction found, kept with the study and read back on resume (reliability REL-R03)."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings, Head, Shift
from heretic.exceptions import StudyCorruptError
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.study.records import plain
from heretic.study.sharing import keep_file, kept_file
from heretic.study.state import Study

DIRECTIONS_FILE: Final = "directions.safetensors"
_PARTS: Final = ("directions", "spread", "covectors")


def store_extraction(study: Study, model: str, result: DirectionExtractionResult) -> None:
    """Keep the result with the study; raises `StudyCorruptError` when it has other directions already."""
    study.set_attribute("model", model)
    if study.location.url is None:
        return
    data = packed(result)
    digest = hashlib.sha256(data).hexdigest()
    known = study.attribute("directions")
    if known is not None and known["sha256"] != digest:
        raise StudyCorruptError(
            f"The stored directions of the study {study.name!r} are gone, and the new ones differ from them.",
            hint="Use --resume fresh; the old trials belong to the old directions.",
        )
    keep_file(study, DIRECTIONS_FILE, data)
    study.set_attribute("directions", {"sha256": digest})


def stored_extraction(study: Study) -> DirectionExtractionResult | None:
    """The directions that belong to the study, if they are stored: beside a SQLite file, inside a server."""
    known = study.attribute("directions")
    data = None if known is None else kept_file(study, DIRECTIONS_FILE)
    if data is None:
        return None
    if hashlib.sha256(data).hexdigest() != known["sha256"]:
        raise StudyCorruptError(
            f"The directions of {study.name!r} ({DIRECTIONS_FILE}) are not those the study was made with.",
            hint="Remove it to have them found again, or use --resume fresh.",
        )
    return unpacked(data)


def packed(result: DirectionExtractionResult) -> bytes:
    """One safetensors file: tensors by name, the rest as JSON in its header. Equal results give equal bytes."""
    found = result.findings
    tensors: dict[str, Tensor] = {}
    for name, bank in found.sources.items():
        for part in _PARTS:
            _add(tensors, f"source.{name}.{part}", getattr(bank, part))
    _add(tensors, "weights", found.weights)
    _add(tensors, "protected", found.protected)
    for number, shift in enumerate(found.shifts.values()):
        _add(tensors, f"shift.{number}.unit", shift.unit)
        _add(tensors, f"shift.{number}.carrier", shift.carrier)
    document = {
        "sources": {name: plain(dict(bank.provenance), name) for name, bank in found.sources.items()},
        "factors": list(found.factors),
        "heads": [[head.layer, head.head, head.importance] for head in found.heads],
        "head_sites": sorted(found.head_sites),
        "shifts": [[path, shift.spread] for path, shift in found.shifts.items()],
        "notes": plain(dict(found.notes), "notes"),
        "stability": list(result.stability),
        "auroc": list(result.auroc),
        "effect_size": list(result.effect_size),
        "warnings": list(result.warnings),
        "degradations": list(result.degradations),
    }
    return safetensors.torch.save(tensors, metadata={"result": json.dumps(document, sort_keys=False)})


def _add(tensors: dict[str, Tensor], name: str, value: Tensor | None) -> None:
    if value is not None:
        tensors[name] = value.detach().cpu().contiguous().clone()


def unpacked(data: bytes) -> DirectionExtractionResult:
    """`packed` read back; raises `StudyCorruptError` for anything else."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        document: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["result"])
        return _result(document, tensors)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StudyCorruptError(
            f"{DIRECTIONS_FILE} is damaged or was written by another version ({type(error).__name__}).",
            hint="Use --resume fresh.",
        ) from error


def _result(document: dict[str, Any], tensors: dict[str, Tensor]) -> DirectionExtractionResult:
    sources = {
        name: DirectionBank(
            tensors[f"source.{name}.directions"],
            tensors[f"source.{name}.spread"],
            tensors.get(f"source.{name}.covectors"),
            provenance,
        )
        for name, provenance in document["sources"].items()
    }
    shifts = {
        path: Shift(tensors[f"shift.{number}.unit"], tensors.get(f"shift.{number}.carrier"), spread)
        for number, (path, spread) in enumerate(document["shifts"])
    }
    findings = Findings(
        sources=sources,
        factors=tuple(document["factors"]),
        weights=tensors.get("weights"),
        heads=tuple(Head(*entry) for entry in document["heads"]),
        head_sites=frozenset(document["head_sites"]),
        shifts=shifts,
        protected=tensors.get("protected"),
        notes=document["notes"],
    )
    return DirectionExtractionResult(
        findings=findings,
        stability=tuple(document["stability"]),
        auroc=tuple(document["auroc"]),
        effect_size=tuple(document["effect_size"]),
        warnings=tuple(document["warnings"]),
        degradations=tuple(document["degradations"]),
    )
