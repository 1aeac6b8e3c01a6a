# SPDX-License-Identifier: Apache-2.0
"""The tensors of a safetensors file, read from its header alone, without trusting a byte of it (REL-C01).

The format is 8 bytes of header length (little endian), a JSON header, then the payload without gaps.
Everything the header claims is checked against the size of the file before any memory is taken. No torch
here: a model folder is checked before the libraries are loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
from numpy.typing import NDArray

from heretic.exceptions import ModelValidationError, NonFiniteError

HEADER_LIMIT = 32 * 1024 * 1024
TENSOR_LIMIT = 200_000
CHUNK = 8 * 1024 * 1024
"""Bytes read at a time when a payload is streamed."""

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits per element of every dtype of the format."""

_EXPONENT = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10)}
_EXPONENT["BF16"] = ("<u2", 0xFF << 7)
_EXPONENT["F8_E5M2"] = ("<u1", 0x1F << 2)
"""dtype -> (integer view, exponent mask): a value whose exponent bits are all set is an infinity or a NaN."""

_NAN_CODE = {"F8_E4M3": 0x7F}
"""dtypes without infinity: NaN is one code, sign aside."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file. `start` and `end` are byte offsets from the start of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: `header` are its first bytes up to the payload, `tensors` are in file order."""

    path: Path
    header: bytes
    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str] = field(default_factory=dict)


def read_shard(path: Path) -> Shard:
    """Parse and check the header of one safetensors file.

    Raises `ModelValidationError` naming the file, with expected and actual bytes where sizes disagree.
    """
    try:
        actual = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise _invalid(path, f"it has {actual} bytes, at least 8 are expected")
            if prefix == _LFS_POINTER:
                raise ModelValidationError(
                    f"{path.name} is a Git LFS pointer of {actual} bytes, not the weights themselves.",
                    hint="Run 'git lfs pull' in the repository, or fetch the model with 'hf download'.",
                )
            if length > HEADER_LIMIT:
                raise _invalid(path, f"its header claims {length:,} bytes, the limit is {HEADER_LIMIT:,}")
            if 8 + length > actual:
                raise _invalid(path, f"its header needs {8 + length:,} bytes, the file has {actual:,}")
            raw = stream.read(length)
    except OSError as error:
        raise ModelValidationError(
            f"{path.name} cannot be read ({error.strerror}).", hint=_FETCH_AGAIN
        ) from error
    tensors, metadata = _parse(path, raw)
    end = tensors[-1].end if tensors else 8 + length
    if end != actual:
        raise _invalid(path, f"its header describes {end:,} bytes, the file has {actual:,}")
    return Shard(path, prefix + raw, tensors, metadata)


_LFS_POINTER = b"version "
_FETCH_AGAIN = "The file is damaged or incomplete: delete it and fetch it again."


def _invalid(path: Path, finding: str) -> ModelValidationError:
    return ModelValidationError(f"{path.name} is not a valid safetensors file: {finding}.", hint=_FETCH_AGAIN)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _parse(path: Path, raw: bytes) -> tuple[tuple[StoredTensor, ...], dict[str, str]]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _invalid(path, "its header is not a table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(path, "its metadata is not a table of strings")
    if len(header) > TENSOR_LIMIT:
        raise _invalid(path, f"it claims {len(header):,} tensors, the limit is {TENSOR_LIMIT:,}")
    base = 8 + len(raw)
    tensors = sorted((_entry(path, key, value, base) for key, value in header.items()), key=_place)
    position = base
    for tensor in tensors:
        if tensor.start != position:
            raise _invalid(path, f"{tensor.key} starts at byte {tensor.start:,}, expected {position:,}")
        position = tensor.end
    return tuple(tensors), metadata


def _place(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.start, tensor.end


def _numbers(value: object) -> tuple[int, ...] | None:
    """A list of non-negative integers as a tuple; None for anything else."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        return None
    return tuple(value)


def _entry(path: Path, key: str, value: object, base: int) -> StoredTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _invalid(path, f"the entry of {key} is malformed")
    dtype, shape, offsets = value["dtype"], _numbers(value["shape"]), _numbers(value["data_offsets"])
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _invalid(path, f"{key} has the unknown dtype {dtype!r}")
    if shape is None or len(shape) > 64 or offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(path, f"the shape or place of {key} is malformed")
    expected = math.prod(shape) * BITS[dtype]
    if expected != 8 * (offsets[1] - offsets[0]):
        raise _invalid(
            path, f"{key} needs {expected // 8:,} bytes, its place has {offsets[1] - offsets[0]:,}"
        )
    return StoredTensor(key, dtype, shape, base + offsets[0], base + offsets[1])


def read_bytes(path: Path, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file; raises `ModelValidationError` when the file became shorter meanwhile."""
    with path.open("rb") as stream:
        stream.seek(start)
        data = stream.read(end - start)
    if len(data) != end - start:
        raise _invalid(path, f"it ends at byte {start + len(data):,}, expected {end:,}")
    return data


def stream_bytes(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The same bytes in pieces of at most `CHUNK`."""
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end:
            data = stream.read(min(CHUNK, end - start))
            if not data:
                raise _invalid(path, f"it ends at byte {start:,}, expected {end:,}")
            start += len(data)
            yield data


def check_finite(shard: Shard) -> None:
    """Stream all floating-point tensors of a file; raises `NonFiniteError` naming the first bad one
    (REL-C05)."""
    for tensor in shard.tensors:
        found = sum(_count_non_finite(tensor.dtype, data) for data in _pieces(shard.path, tensor))
        if found:
            raise NonFiniteError(
                f"{tensor.key} in {shard.path.name} holds {found:,} values that are NaN or infinite.",
                hint="The weights are damaged; fetch the model again.",
                data={"tensor": tensor.key, "file": shard.path.name, "count": found},
            )


def _pieces(path: Path, tensor: StoredTensor) -> Iterator[bytes]:
    if tensor.dtype in _EXPONENT or tensor.dtype in _NAN_CODE:
        yield from stream_bytes(path, tensor.start, tensor.end)


def _count_non_finite(dtype: str, data: bytes) -> int:
    bad: NDArray[numpy.bool_]
    if dtype in _NAN_CODE:
        bad = (numpy.frombuffer(data, dtype="<u1") & 0x7F) == _NAN_CODE[dtype]
    else:
        view, mask = _EXPONENT[dtype]
        values = numpy.frombuffer(data, dtype=view)
        bad = (values & values.dtype.type(mask)) == values.dtype.type(mask)
    return int(numpy.count_nonzero(bad))
