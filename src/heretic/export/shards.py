# SPDX-License-Identifier: Apache-2.0
"""Patching the files of a model: only the bytes of edited tensors change (algorithms 10.1 and 10.3,
R-OUT-04).

Headers are copied bit for bit, tensors are streamed, an edited matrix is computed in float32 and cast once.
Memory: one matrix. The source is only read, so that an interrupted export starts again from clean files
(REL-B11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heretic.architectures.site import EMBEDDING_LAYER, Site
from heretic.exceptions import ExportError, NonFiniteError
from heretic.export.certificate import SiteMeter, SiteRecord
from heretic.export.companions import SkippedFile, copy_companions
from heretic.export.folder import ModelFiles
from heretic.export.tensors import Shard, StoredTensor, read_bytes, stream_bytes
from heretic.export.trace import Target, check_complete
from heretic.export.untie import untie_head
from heretic.interventions.edit import Edit
from heretic.interventions.weights import edited_bias, edited_matrix

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class PatchReport:
    """What `patch_model` wrote.

    sites: one certificate per edited site. changed: keys whose bytes were computed anew. tensors: number of
    all.
    rewritten: companion files that differ from the source, with the reason. skipped: files left out, with
    the reason.
    """

    sites: tuple[SiteRecord, ...]
    changed: tuple[str, ...]
    tensors: int
    rewritten: tuple[SkippedFile, ...]
    skipped: tuple[SkippedFile, ...]

    def warnings(self) -> tuple[str, ...]:
        """Sentences about strengths that rounding moved by more than 10 %."""
        return tuple(text for record in self.sites if (text := record.warning()) is not None)


def patch_model(
    files: ModelFiles,
    staging: Path,
    edits: Mapping[Site, Edit],
    targets: Sequence[Target],
    *,
    protected: Mapping[int, Tensor] | None = None,
    tied_head: str | None = None,
    untie: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PatchReport:
    """Write the edited model into the empty folder `staging`.

    files: the inspected source (`inspect_folder`). targets: from `trace_sites` for all sites of `edits`.
    protected: layer -> orthonormal [d, p] whose change is put into the certificate. tied_head: parameter
    path of the head when it is tied to the embedding (else None); an edit of the embedding then needs
    `untie` (algorithms 10.4).
    progress: called with the number of bytes written.
    Raises `ExportError` (incomplete targets, an impossible bias, a tied embedding), `NonFiniteError` naming
    a tensor that overflowed, `ModelValidationError` when the source became shorter; `OSError` is left to
    the staging.
    """
    active = {site: edit.to("cpu") for site, edit in edits.items() if not edit.is_identity}
    check_complete(tuple(edits), tuple(target for target in targets if target.site in edits))
    _refuse_impossible(active, tied_head, untie)
    places = {target.key: target for target in targets if target.site in active}
    job = EditJob(active, places, protected or {})
    for shard in files.shards:
        path = staging / shard.path.relative_to(files.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(shard.header)
            for data in (data for tensor in shard.tensors for data in job.payload(shard, tensor)):
                stream.write(data)
                if progress is not None:
                    progress(len(data))
    job.check_all_written()
    stored = files.tensors()
    rewritten, skipped = copy_companions(files, staging, [stored[key] for key in job.changed])
    if tied_head is not None and any(site.layer == EMBEDDING_LAYER for site in active):
        embedding = next(target.key for target in targets if target.site.layer == EMBEDDING_LAYER)
        rewritten += untie_head(files, staging, embedding, tied_head)
    return PatchReport(job.records(), tuple(job.changed), len(stored), rewritten, skipped)


def _refuse_impossible(active: Mapping[Site, Edit], tied_head: str | None, untie: bool) -> None:
    for site, edit in active.items():
        if edit.bias is not None and site.bias is None:
            raise ExportError(
                f"{site.path} has no bias in this architecture, and the edit adds one; "
                "a reader of the files would ignore it (R-OUT-05).",
                hint="Export a control vector, or choose a strategy that adds nothing.",
            )
        if site.layer == EMBEDDING_LAYER and tied_head is not None and not untie:
            raise ExportError(
                f"{site.path} is tied to the output head {tied_head}: "
                "editing it would change the head as well.",
                hint="Leave the embedding out of the plan, or allow the head to be untied.",
            )


class EditJob:
    """The edits by stored key, their meters, and the count of what was written."""

    def __init__(
        self, edits: Mapping[Site, Edit], targets: Mapping[str, Target], protected: Mapping[int, Tensor]
    ) -> None:
        self.edits = edits
        self.targets = targets
        self.written: Counter[str] = Counter()
        self.changed: list[str] = []
        self.meters = {site: SiteMeter(site, edit, protected.get(site.layer)) for site, edit in edits.items()}
        self.shapes: dict[Site, tuple[tuple[int, ...], str]] = {}

    def payload(self, shard: Shard, tensor: StoredTensor) -> Iterator[bytes]:
        """The new bytes of one stored tensor, in pieces."""
        target = self.targets.get(tensor.key)
        if target is None:
            yield from stream_bytes(shard.path, tensor.start, tensor.end)
            return
        self.written[tensor.key] += 1
        self.changed.append(tensor.key)
        edit = self.edits[target.site]
        if target.part == "bias":
            values = _read(shard, tensor, 0, 1, tensor.shape)
            yield _cast(edited_bias(values, _precise(edit, tensor)), tensor)
            return
        self.shapes[target.site] = (tensor.shape, tensor.dtype)
        count = 1 if target.site.experts is None or target.expert is not None else target.site.experts
        meter = self.meters[target.site]
        for number in range(count):
            stored = _read(shard, tensor, number, count, tensor.shape[-2:])
            original = stored.T.contiguous() if target.transposed else stored
            exact = edited_matrix(original, _precise(edit, tensor), target.site)
            data = _cast(exact.T if target.transposed else exact, tensor)
            meter.add(original, exact, exact.to(DTYPES[tensor.dtype]))
            yield data

    def check_all_written(self) -> None:
        """Every target written exactly once, else `ExportError`: the header and the map would disagree."""
        wrong = [key for key in self.targets if self.written[key] != 1]
        if wrong:
            raise ExportError(f"{wrong[0]} was written {self.written[wrong[0]]} times instead of once.")

    def records(self) -> tuple[SiteRecord, ...]:
        """Certificates in the order of the plan."""
        keys: dict[Site, list[str]] = {}
        for target in sorted(self.targets.values(), key=lambda target: target.part == "bias"):
            keys.setdefault(target.site, []).append(target.key)
        return tuple(
            meter.record(tuple(keys[site]), *self.shapes[site]) for site, meter in self.meters.items()
        )


def _precise(edit: Edit, tensor: StoredTensor) -> Edit:
    """float32 factors (algorithms 10.1); float64 for the rare file stored so."""
    return edit.to("cpu", torch.float64 if tensor.dtype == "F64" else torch.float32)


def _read(shard: Shard, tensor: StoredTensor, number: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Slice `number` of `count` equal slices of a stored tensor."""
    size = tensor.size // count
    start = tensor.start + number * size
    data = bytearray(read_bytes(shard.path, start, start + size))
    return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).reshape(shape)


def _cast(exact: Tensor, tensor: StoredTensor) -> bytes:
    """The one cast to the stored dtype, as bytes; raises `NonFiniteError` when a value overflows."""
    cast = exact.to(DTYPES[tensor.dtype]).contiguous()
    if not bool(torch.isfinite(cast).all()):
        raise NonFiniteError(
            f"{tensor.key} holds NaN or infinity after the edit (stored as {tensor.dtype}).",
            hint="Lower the strength, or start from a source in another precision.",
            data={"tensor": tensor.key},
        )
    return cast.view(torch.uint8).numpy().tobytes()
