# SPDX-License-Identifier: Apache-2.0
"""The files of a model folder that are not its weights: copied byte for byte, with a reason for each
exception.

R-OUT-05, R-MOD-43, REL-B06, REL-F02.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from heretic.constants import CHECKSUM_FILE, HIDDEN_MANIFEST
from heretic.export.edits_file import EDITS_FILE
from heretic.export.folder import PICKLE_SUFFIXES, ModelFiles, read_json_table
from heretic.export.tensors import Shard, StoredTensor, read_bytes, read_shard, stream_bytes

OTHER_WEIGHTS = frozenset({".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".mlmodel", ".onnx_data"})
SAMPLE = 4096
"""Bytes compared at each end of a tensor when looking for a second copy of an edited one."""


class SkippedFile(NamedTuple):
    """A file that was left out or written anew, and why."""

    name: str
    reason: str


def copy_companions(
    files: ModelFiles, staging: Path, edited: Iterable[tuple[Shard, StoredTensor]]
) -> tuple[tuple[SkippedFile, ...], tuple[SkippedFile, ...]]:
    """Copy everything beside the weights into `staging`; returns (rewritten, skipped).

    edited: places of the edited tensors; a further safetensors file that holds one of them again (another
    layout of the same model) is left out, because it would carry the unedited weights.
    """
    rewritten: list[SkippedFile] = []
    skipped: list[SkippedFile] = []
    samples = {_sample(shard, tensor) for shard, tensor in edited}
    for name in (*files.others, *files.extra_shards):
        reason = _reason_to_skip(files.folder, name, samples)
        if reason is not None:
            skipped.append(SkippedFile(name, reason))
            continue
        destination = staging / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        repaired = _repaired_tokenizer(files.folder / name)
        if repaired is not None:
            destination.write_bytes(repaired)
            rewritten.append(SkippedFile(name, "extra_special_tokens written as a table"))
            continue
        size = (files.folder / name).stat().st_size
        with destination.open("wb") as stream:
            for data in stream_bytes(files.folder / name, 0, size):
                stream.write(data)
    return tuple(rewritten), tuple(skipped)


def _reason_to_skip(folder: Path, name: str, samples: set[tuple[str, tuple[int, ...], bytes]]) -> str | None:
    path = folder / name
    if path.suffix in PICKLE_SUFFIXES:
        return "a pickle or raw array file: opening it can run code"
    if path.suffix in OTHER_WEIGHTS:
        return "another copy of the weights, without the edit"
    if name in (CHECKSUM_FILE, HIDDEN_MANIFEST, EDITS_FILE):
        return "describes the source folder; written anew"
    if path.suffix == ".safetensors" and samples:
        shard = read_shard(path)
        if any(_sample(shard, tensor) in samples for tensor in shard.tensors):
            return "holds an edited tensor again, without the edit"
    return None


def _sample(shard: Shard, tensor: StoredTensor) -> tuple[str, tuple[int, ...], bytes]:
    first = read_bytes(shard.path, tensor.start, min(tensor.start + SAMPLE, tensor.end))
    return (
        tensor.dtype,
        tensor.shape,
        first + read_bytes(shard.path, max(tensor.start, tensor.end - SAMPLE), tensor.end),
    )


def _repaired_tokenizer(path: Path) -> bytes | None:
    """A tokenizer_config.json whose `extra_special_tokens` is a list, with a table instead (R-MOD-43); else
    None.

    Its tokens are kept in `additional_special_tokens`, where every reader finds them.
    """
    if path.name != "tokenizer_config.json":
        return None
    table = read_json_table(path)
    tokens = table.get("extra_special_tokens")
    if not isinstance(tokens, list):
        return None
    known = table.get("additional_special_tokens")
    kept = list(known) if isinstance(known, list) else []
    table["extra_special_tokens"] = {}
    table["additional_special_tokens"] = kept + [token for token in tokens if token not in kept]
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
