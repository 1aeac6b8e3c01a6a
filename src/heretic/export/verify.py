# SPDX-License-Identifier: Apache-2.0
"""Checking a saved folder from its files alone, and against its base (R-CLI-11, R-OUT-31, algorithms 10.8).

Scores are measured again elsewhere; here it is bytes: checksums, keys, shapes, untouched tensors, the edit
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from heretic.constants import HIDDEN_MANIFEST
from heretic.exceptions import ChecksumError, HereticError, ModelValidationError
from heretic.export.certificate import SiteRecord, certificate_differences
from heretic.export.edits_file import load_edits
from heretic.export.folder import ModelFiles, check_finite_folder, inspect_folder
from heretic.export.manifest import read_manifest
from heretic.export.shards import EditJob
from heretic.export.tensors import Shard, StoredTensor, read_bytes, stream_bytes
from heretic.export.untie import HEAD_FILE
from heretic.publish import verify_checksums

Grade = Literal["bit-equal", "within rounding", "different", "not compared"]

ROUNDING_SHARE = 0.01
"""Another kind of CPU sums in another order: at most this share of the edited values may differ, by one
unit."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """problems: one sentence each, empty when the folder is right. notes: differences that are allowed.

    grade: the edited tensors against base plus stored edits. changed: keys whose bytes differ from the base.
    sites: the certificate computed again; empty without base or without stored edits.
    """

    folder: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    grade: Grade
    changed: tuple[str, ...] = ()
    sites: tuple[SiteRecord, ...] = ()

    @property
    def passed(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def require_intact(folder: Path) -> None:
    """Raise `ChecksumError` when a folder of ours differs from its `SHA256SUMS`; other folders pass
    (REL-C02)."""
    if not (folder / HIDDEN_MANIFEST).is_file():
        return
    problems = verify_checksums(folder)
    if problems:
        raise ChecksumError(
            f"The model in {folder} is damaged or incomplete: {problems[0]}",
            hint="Save it again, or fetch it again from where it was uploaded.",
            details=tuple(problems),
        )


def verify_folder(folder: Path, base: Path | None = None) -> VerifyReport:
    """Check `folder`: checksums, headers, finite weights, manifest; with `base` also every tensor.

    Raises nothing about the folder: findings are in the report. Raises `ModelValidationError` for a bad
    `base`.
    """
    problems = verify_checksums(folder)
    notes: list[str] = []
    try:
        files = inspect_folder(folder)
        check_finite_folder(files)
        read_manifest(folder)
    except HereticError as error:
        details = error.details or (error.message,)
        return VerifyReport(folder, tuple(dict.fromkeys([*problems, *details])), (), "not compared")
    if base is None:
        return VerifyReport(folder, tuple(problems), (), "not compared")
    source = inspect_folder(base)
    problems += _compare_layout(source, files)
    if problems:
        return VerifyReport(folder, tuple(problems), tuple(notes), "not compared")
    notes += _compare_companions(source, files)
    try:
        stored = load_edits(folder)
    except ModelValidationError as error:
        changed = tuple(_changed_keys(source, files))
        problems += _check_listed(folder, changed)
        return VerifyReport(folder, tuple(problems), (*notes, error.message), "not compared", changed)
    job = EditJob(stored.edits, {target.key: target for target in stored.targets}, stored.protected)
    comparison = _Comparison()
    for shard in source.shards:
        for tensor in shard.tensors:
            written = files.tensors()[tensor.key]
            comparison.add(tensor, job.payload(shard, tensor), written, edited=tensor.key in job.targets)
    job.check_all_written()
    problems += comparison.problems
    recorded = read_manifest(folder).get("certificate")
    computed = [record.as_dict() for record in job.records()]
    problems += [f"certificate: {line}" for line in certificate_differences(recorded, computed)]
    changed = tuple(comparison.changed)
    return VerifyReport(folder, tuple(problems), tuple(notes), comparison.grade(), changed, job.records())


class _Comparison:
    """Compares expected with written bytes, tensor by tensor."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.changed: list[str] = []
        self.edited = self.off_by_one = self.off_by_more = 0

    def add(
        self,
        tensor: StoredTensor,
        expected: Iterator[bytes],
        written: tuple[Shard, StoredTensor],
        *,
        edited: bool,
    ) -> None:
        shard, place = written
        position = place.start
        wrong = 0
        for data in expected:
            found = read_bytes(shard.path, position, position + len(data))
            position += len(data)
            if edited:
                wrong += self._count(data, found, tensor.dtype)
            elif data != found:
                wrong += 1
        if edited:
            self.changed.append(tensor.key)
        if wrong:
            kind = "is not base plus edit" if edited else "was not edited, and differs from the base"
            self.problems.append(f"{tensor.key} {kind}.")

    def _count(self, data: bytes, found: bytes, dtype: str) -> int:
        """Values that differ by more than one unit in the last place; one unit is another CPU's sum."""
        first, second = _integers(data, dtype), _integers(found, dtype)
        distance = (first - second).abs()
        self.edited += distance.numel()
        self.off_by_one += int((distance == 1).sum())
        more = int((distance > 1).sum())
        self.off_by_more += more
        return more

    def grade(self) -> Grade:
        if self.problems or self.off_by_one > ROUNDING_SHARE * self.edited:
            return "different"
        return "within rounding" if self.off_by_one else "bit-equal"


def _integers(data: bytes, dtype: str) -> Tensor:
    """The bit patterns as integers in the order of the values, so that neighbours differ by one."""
    kind = {"F64": torch.int64, "F32": torch.int32}.get(dtype, torch.int16)
    bits = torch.frombuffer(bytearray(data), dtype=kind).to(torch.int64)
    lowest = -(1 << 8 * kind.itemsize - 1)
    return torch.where(bits < 0, lowest - bits, bits)


def _compare_layout(source: ModelFiles, files: ModelFiles) -> list[str]:
    """Key set, dtypes and shapes against the base: no tensor lost, none added but an untied head
    (REL-L14)."""
    old, new = source.tensors(), files.tensors()
    problems = [f"{key} of the base is missing." for key in old if key not in new]
    for key, (shard, tensor) in new.items():
        if key not in old:
            if shard.path.name != HEAD_FILE:
                problems.append(f"{key} is not in the base.")
        elif (tensor.dtype, tensor.shape) != (old[key][1].dtype, old[key][1].shape):
            was = old[key][1]
            problems.append(f"{key} is {tensor.dtype} {tensor.shape}, in the base {was.dtype} {was.shape}.")
    return problems


def _compare_companions(source: ModelFiles, files: ModelFiles) -> list[str]:
    """Notes on files that were left out or differ; the manifest says why (REL-B06)."""
    notes = []
    present = set(files.others) | set(files.extra_shards)
    for name in (*source.others, *source.extra_shards):
        if name not in present:
            notes.append(f"{name} of the base is not in the folder.")
        elif (source.folder / name).read_bytes() != (files.folder / name).read_bytes():
            notes.append(f"{name} differs from the base.")
    return notes


def _changed_keys(source: ModelFiles, files: ModelFiles) -> Iterator[str]:
    new = files.tensors()
    for key, (shard, tensor) in source.tensors().items():
        other, place = new[key]
        first = stream_bytes(shard.path, tensor.start, tensor.end)
        second = stream_bytes(other.path, place.start, place.end)
        if any(one != two for one, two in zip(first, second, strict=True)):
            yield key


def _check_listed(folder: Path, changed: tuple[str, ...]) -> list[str]:
    """Without the edits: every changed tensor must be one that the certificate names."""
    certificate = read_manifest(folder).get("certificate")
    rows = certificate if isinstance(certificate, list) else []
    named = {key for row in rows if isinstance(row, Mapping) for key in row.get("keys", ())}
    return [
        f"{key} differs from the base and is not in the certificate." for key in changed if key not in named
    ]
