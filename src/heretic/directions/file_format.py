# SPDX-License-Identifier: Apache-2.0
"""The bytes of a direction file: tensors of known names and one JSON table in the header, with a checksum over both.

Nothing in such a file is trusted. What the header claims is checked against limits and against the size of the file
before memory is taken, then every value; nothing is unpickled (reliability REL-C01, REL-C02, REL-R11).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import BinaryIO, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from heretic.constants import FLOAT_TOLERANCE

DOCUMENT: Final = "direction_file"
"""The one key of the header's metadata; several would come in another order each time."""
HEADER_LIMIT: Final = 1 << 20
"""Bytes. A model of 200 layers needs 30 thousand."""
SIZE_LIMIT: Final = 1 << 31
"""Bytes. 200 layers of 16 components and width 32,768 are a fifth of it."""
DEPTH_LIMIT: Final = 16
_TENSORS: Final = ("directions", "spread", "covectors")


class DirectionFileFault(ValueError):
    """What is wrong with the content of a file whose name is not known here; `hint` is a remedy of its own."""

    def __init__(self, finding: str, hint: str | None = None) -> None:
        super().__init__(finding)
        self.hint = hint


def encode(document: Mapping[str, object], tensors: Mapping[str, Tensor]) -> bytes:
    """The file of a JSON table and of float32 tensors, see `decode`; equal arguments give equal bytes."""
    text = json.dumps({**document, "sha256": _digest(document, tensors)}, separators=(",", ":"))
    return safetensors.torch.save(dict(tensors), metadata={DOCUMENT: text})


def decode(stream: BinaryIO, size: int) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The table, without its checksum, and the checked tensors of the `size` bytes of `stream`.

    directions [L + 1, k, d]: entry 0 zero, the others orthonormal to 1e-4; those that have fewer than k components end
    in zero rows, and have at least one. spread [L + 1, k]: positive where there is a component, else 0. covectors
    [L + 1, k, d], optional: D_i . r_j is 1 for i = j and 0 otherwise. Raises `DirectionFileFault`.
    """
    head = _read_head(stream, size)
    document, shapes = _parse_header(head[8:])
    expected = sum(4 * math.prod(shape) for shape in shapes.values())
    if len(head) + expected != size:
        raise DirectionFileFault(
            f"its header describes {len(head) + expected:,} bytes, the file has {size:,}"
        )
    if size > SIZE_LIMIT:
        raise DirectionFileFault(f"it has {size:,} bytes, the limit is {SIZE_LIMIT:,}")
    try:
        tensors = safetensors.torch.load(head + stream.read(expected))
    except SafetensorError as error:
        raise DirectionFileFault(f"its tensors are not where its header says ({error})") from error
    _check_values(tensors)
    if document.pop("sha256", None) != _digest(document, tensors):
        raise DirectionFileFault("its checksum is not that of its content, so some of it was changed")
    return document, tensors


def _digest(document: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 as hex of the table with sorted keys and of the tensors in turn."""
    found = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    for name in _TENSORS:
        if name in tensors:
            found.update(tensors[name].numpy().tobytes())
    return found.hexdigest()


# The header


def _read_head(stream: BinaryIO, size: int) -> bytes:
    """The eight bytes of the header's length, and the header."""
    prefix = stream.read(8)
    if prefix == b"version ":
        raise DirectionFileFault("it is a Git LFS pointer", "Run 'git lfs pull' in its repository.")
    if len(prefix) < 8:
        raise DirectionFileFault(f"it has {size} bytes, at least 8 are expected")
    length = int.from_bytes(prefix, "little")
    if length > HEADER_LIMIT:
        raise DirectionFileFault(
            f"it does not begin as one (a header of {length:,} bytes, the limit is {HEADER_LIMIT:,})"
        )
    if 8 + length > size:
        raise DirectionFileFault(f"its header ends at byte {8 + length:,}, the file has {size:,}")
    return prefix + stream.read(length)


def _parse_header(raw: bytes) -> tuple[dict[str, object], dict[str, tuple[int, ...]]]:
    """The table and the shape of each tensor; only the known tensors in float32 are accepted."""
    header = _json_table(raw, "its header")
    metadata = header.pop("__metadata__", None)
    text = metadata.get(DOCUMENT) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise DirectionFileFault(
            f"its header says nothing under {DOCUMENT!r}, so it holds something else",
            "Name a file that heretic saved as *.direction.safetensors.",
        )
    shapes = {name: _shape(name, entry) for name, entry in header.items()}
    _check_shapes(shapes)
    return _json_table(text.encode("utf-8", "surrogatepass"), "its description"), shapes


def _json_table(raw: bytes, what: str) -> dict[str, object]:
    try:
        found = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise DirectionFileFault(f"{what} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DirectionFileFault(f"{what} is not a table")
    _check_depth(found, what, DEPTH_LIMIT)
    return found


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON number")


def _check_depth(value: object, what: str, left: int) -> None:
    """Everything that walks through the table later, to show it for instance, calls itself once for each level."""
    if not left:
        raise DirectionFileFault(f"{what} is nested deeper than {DEPTH_LIMIT} levels")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, what, left - 1)


def _shape(name: str, entry: object) -> tuple[int, ...]:
    if name not in _TENSORS:
        raise DirectionFileFault(f"it holds an unknown tensor {name[:80]!r}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DirectionFileFault(f"the entry of {name} in its header is malformed")
    if entry["dtype"] != "F32":
        raise DirectionFileFault(f"{name} has the dtype {str(entry['dtype'])[:20]}, not F32")
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 1 << 31 for side in shape):
        raise DirectionFileFault(f"the shape of {name} is malformed")
    return tuple(shape)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in ("directions", "spread") if name not in shapes]
    if missing:
        raise DirectionFileFault(f"it lacks the tensor {missing[0]}")
    directions = shapes["directions"]
    if len(directions) != 3 or directions[0] < 2:
        raise DirectionFileFault(f"directions has the shape {directions}, not (layers + 1, k, hidden size)")
    for name, wanted in (("spread", directions[:2]), ("covectors", directions)):
        if shapes.get(name, wanted) != wanted:
            raise DirectionFileFault(f"{name} has the shape {shapes[name]}, expected {wanted}")


# The values


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, values in tensors.items():
        bad = ~values.isfinite().flatten(1).all(dim=1)
        if bool(bad.any()):
            raise DirectionFileFault(f"{name} holds NaN or infinity at entry {int(bad.nonzero()[0])}")
        if bool(values[0].any()):
            raise DirectionFileFault(f"{name} is not zero at entry 0, the embedding")
    _check_presence(tensors["directions"].any(dim=2), tensors["spread"])
    covectors = tensors.get("covectors")
    for entry, rows in enumerate(tensors["directions"].double()):
        if not entry:
            continue
        present = rows.any(dim=1)
        _check_products("directions", entry, rows @ rows.T, present, FLOAT_TOLERANCE)
        if covectors is not None:
            read = covectors[entry].double()
            # A long covector is rounded in proportion to its length.
            tolerance = FLOAT_TOLERANCE * max(1.0, float(read.norm(dim=1).max()))
            _check_products("covectors", entry, read @ rows.T, present, tolerance)


def _check_presence(present: Tensor, spread: Tensor) -> None:
    """present [L + 1, k]: component 0 is there, absent ones come last, and the spread counts those that are there."""
    if bool((spread < 0).any()) or not bool(torch.equal(spread > 0, present)):
        entry = int(((spread < 0) | ((spread > 0) != present)).any(dim=1).nonzero()[0])
        raise DirectionFileFault(
            f"spread at entry {entry} is not positive where there is a component and zero where there is none"
        )
    counts = present[1:].sum(dim=1)
    expected = torch.arange(present.shape[1]) < counts[:, None]
    bad = (counts == 0) | (present[1:] != expected).any(dim=1)
    if bool(bad.any()):
        raise DirectionFileFault(
            f"a component before the last ones is missing at entry {int(bad.nonzero()[0]) + 1}"
        )


def _check_products(name: str, entry: int, products: Tensor, present: Tensor, tolerance: float) -> None:
    """Products with the directions [k, k]: 1 for a component with itself, 0 with another and where there is none."""
    wrong = (products - torch.diag(present.to(products.dtype))).abs()
    if float(wrong.max()) <= tolerance:
        return
    first, second = divmod(int(wrong.argmax()), len(products))
    raise DirectionFileFault(
        f"{name} are not orthonormal: at entry {entry} the product of the components {first} and {second} is "
        f"{float(products[first, second]):.6g}"
    )
