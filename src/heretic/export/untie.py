# SPDX-License-Identifier: Apache-2.0
"""Giving a tied output head its own tensor when the embedding is edited (algorithms 10.4)."""

from __future__ import annotations

import json
from pathlib import Path

from heretic.export.companions import SkippedFile
from heretic.export.folder import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, ModelFiles, read_json_table
from heretic.export.tensors import stream_bytes

HEAD_FILE = "model-untied-head.safetensors"
BODY_FILE = "model-without-head.safetensors"
"""New name of a single weight file: transformers ignores the index where `model.safetensors` exists."""


def untie_head(files: ModelFiles, staging: Path, embedding: str, head: str) -> tuple[SkippedFile, ...]:
    """Write the unedited embedding as the head into an extra shard; index and config say so.

    files: the source. embedding: stored key of the embedding. head: parameter path of the head's weight.
    Returns the files written or changed, with the reason.
    """
    shard, tensor = files.tensors()[embedding]
    entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [0, tensor.size]}
    header = json.dumps({"__metadata__": {"format": "pt"}, head: entry}).encode()
    header += b" " * (-len(header) % 8)
    with (staging / HEAD_FILE).open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for data in stream_bytes(shard.path, tensor.start, tensor.end):
            stream.write(data)
    if files.index is None:
        (staging / SINGLE_FILE).rename(staging / BODY_FILE)
    _write_index(files, staging, head, tensor.size)
    config = read_json_table(staging / CONFIG_FILE)
    config["tie_word_embeddings"] = False
    text = config.get("text_config")
    if isinstance(text, dict):
        text["tie_word_embeddings"] = False
    _write_json(staging / CONFIG_FILE, config)
    return (
        SkippedFile(HEAD_FILE, "new: the output head, untied from the edited embedding"),
        SkippedFile(INDEX_FILE, "lists the untied head"),
        SkippedFile(CONFIG_FILE, "tie_word_embeddings is false"),
    )


def _write_index(files: ModelFiles, staging: Path, head: str, size: int) -> None:
    if files.index is None:
        index: dict[str, object] = {"metadata": {"total_size": 0}}
        weight_map = dict.fromkeys(files.tensors(), BODY_FILE)
    else:
        index = read_json_table(files.folder / INDEX_FILE)
        weight_map = dict(files.index)
    total = sum(tensor.size for shard in files.shards for tensor in shard.tensors)
    metadata = index.get("metadata")
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total + size}
    index["weight_map"] = {**weight_map, head: HEAD_FILE}
    _write_json(staging / INDEX_FILE, index)


def _write_json(path: Path, table: dict[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8")
