# SPDX-License-Identifier: Apache-2.0
"""Where each site lies in the files: names on disk are not names in memory (algorithms 10.3).

Loaders fuse experts, rename and transpose. The tracer does not guess: it builds the model's class without
memory (on the meta device, so at full depth), gives every site a tiny stand-in tensor filled with numbers
that occur nowhere else, lets the library save them, and looks where each number went. That yields key,
expert and orientation of every slice of every layer, hybrids included. Shapes, and values where the model
is at hand, are then compared with the file.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from heretic.architectures.site import Site
from heretic.exceptions import ExportError
from heretic.export.folder import ModelFiles
from heretic.export.tensors import Shard, StoredTensor
from heretic.model.construction import WithoutReferences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("heretic.export")

Part = Literal["matrix", "bias"]

STAND_IN = (4, 6)
"""Shape of the matrix that stands for a real one; unequal, so that a transposition shows."""

PACKED_ENDINGS = ("_blocks", "_scales", "_packed", "_scale", "_scale_inv", ".qweight", ".absmax", ".SCB")
"""What follows the name of a quantised tensor in the files of MXFP4, compressed-tensors, FP8, GPTQ/AWQ and
bnb."""


@dataclass(frozen=True, slots=True)
class Target:
    """One stored tensor that holds a matrix (or a bias) of a site.

    expert: number of the slice in memory that this tensor holds; None when it holds the whole parameter,
    that is all experts in order for a fused one. transposed: the stored matrix (or each slice) is the
    transpose of that in memory.
    """

    site: Site
    part: Part
    key: str
    expert: int | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the numbers of one stand-in come from: first number and shape (the fused axis included)."""

    site: Site
    part: Part
    first: int
    shape: tuple[int, ...]


def trace_sites(
    model: PreTrainedModel, sites: Iterable[Site], files: ModelFiles, *, compare_values: bool = True
) -> tuple[Target, ...]:
    """Find every matrix and bias of `sites` in the files of the model's source.

    model: the loaded model; only its class and config are used, and its parameters when `compare_values`
    (to be switched off when the loaded model is a quantised form of the files, R-MOD-11). Raises
    `ExportError` when a site has no target, a packed target, a target of another shape, or when the stored
    values are not those of the loaded model.
    """
    chosen = tuple(sites)
    skeleton = build_skeleton(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
    predicted = _trace(skeleton, chosen, shapes)
    stored = files.tensors()
    endings = _endings(stored) if any(target.key not in stored for target in predicted) else {}
    targets = tuple(_locate(target, shapes, stored, endings) for target in predicted)
    check_complete(chosen, targets)
    if compare_values:
        parameters = dict(model.named_parameters())
        for target in targets:
            _compare_values(target, parameters, stored)
    return targets


def build_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """The class of `model` built again from its config on the meta device: names and shapes, no memory."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the names wanted are those of the full-precision files
    with torch.device("meta"), WithoutReferences():
        return type(model)(config)


def parameter_path(site: Site, part: Part) -> str:
    """Path in memory of the site's matrix or bias."""
    if part == "matrix":
        return site.path
    assert site.bias is not None
    return site.bias


def _trace(
    skeleton: PreTrainedModel, sites: Sequence[Site], shapes: Mapping[str, tuple[int, ...]]
) -> list[Target]:
    """Save stand-ins for all sites with the library and read back where they are."""
    origins: list[_Origin] = []
    state: dict[str, Tensor] = {}
    position = 1
    for site in sites:
        parts: tuple[Part, ...] = ("matrix",) if site.bias is None else ("matrix", "bias")
        for part in parts:
            path = parameter_path(site, part)
            if path not in shapes:
                raise ExportError(f"The model has no parameter {path}, which the plan edits.")
            if path in state:
                raise ExportError(f"Two sites of the plan are the same parameter {path}.")
            ending = STAND_IN if part == "matrix" else STAND_IN[:1]
            shape = ending if site.experts is None else (site.experts, *ending)
            size = math.prod(shape)
            state[path] = torch.arange(position, position + size, dtype=torch.float64).reshape(shape)
            origins.append(_Origin(site, part, position, shape))
            position += size
    with tempfile.TemporaryDirectory() as folder:
        skeleton.save_pretrained(folder, state_dict=state)
        return [
            _recognise(key, value, origins)
            for file in sorted(Path(folder).glob("*.safetensors"))
            for key, value in _read_all(file)
        ]


def _read_all(file: Path) -> list[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as stream:
        return [(key, stream.get_tensor(key)) for key in stream.keys()]  # noqa: SIM118 (no mapping)


def _recognise(key: str, value: Tensor, origins: Sequence[_Origin]) -> Target:
    """The target a saved stand-in stands for: a whole parameter or one expert of it, as it is or
    transposed."""
    low = int(value.min())
    origin = next(item for item in reversed(origins) if item.first <= low)
    source = torch.arange(origin.first, origin.first + math.prod(origin.shape), dtype=value.dtype)
    source = source.reshape(origin.shape)
    candidates: list[tuple[int | None, Tensor]] = [(None, source)]
    if origin.site.experts:
        number = (low - origin.first) // math.prod(origin.shape[1:])
        candidates.append((number, source[number]))
    for expert, expected in candidates:
        if torch.equal(value, expected):
            return Target(origin.site, origin.part, key, expert)
        if origin.part == "matrix" and torch.equal(value, expected.transpose(-1, -2)):
            return Target(origin.site, origin.part, key, expert, transposed=True)
    raise ExportError(
        f"{parameter_path(origin.site, origin.part)} is stored in {key} in a form this program cannot patch.",
        hint="Export an adapter instead, or report the model family.",
    )


def _locate(
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, tuple[Shard, StoredTensor]],
    endings: Mapping[str, list[str]],
) -> Target:
    """The same target under the name it has in these files, its shape checked."""
    path = parameter_path(target.site, target.part)
    key = target.key if target.key in stored else _find_by_ending(target.key, endings)
    if key is None:
        packed = [f"{target.key.removesuffix('.weight')}{ending}" for ending in PACKED_ENDINGS]
        if any(name in stored or f"{target.key}{name}" in stored for name in packed):
            raise _packed_error(target.key)
        raise ExportError(
            f"{path} has no place in the model's files: {target.key} is not there.",
            hint="The files and the loaded model differ; load and export the same folder.",
        )
    entry = stored[key][1]
    if entry.dtype not in ("F64", "F32", "F16", "BF16") or any(
        f"{stem}{ending}" in stored
        for stem in (key, key.removesuffix(".weight"))
        for ending in PACKED_ENDINGS
    ):
        raise _packed_error(key)
    expected = shapes[path] if target.expert is None else shapes[path][1:]
    if target.transposed:
        expected = (*expected[:-2], expected[-1], expected[-2])
    if entry.shape != expected:
        raise ExportError(f"{key} has the shape {entry.shape}; the loaded model expects {expected}.")
    return Target(target.site, target.part, key, target.expert, target.transposed)


def _packed_error(key: str) -> ExportError:
    return ExportError(
        f"{key} is stored in a quantised format, and an edit cannot be merged into it (R-MOD-12).",
        hint="Export to the full-precision repository of this model, or export an adapter.",
    )


def _endings(stored: Iterable[str]) -> dict[str, list[str]]:
    """Every ending (whole parts) of every stored key -> the keys that have it."""
    result: dict[str, list[str]] = {}
    for key in stored:
        parts = key.split(".")
        for first in range(len(parts)):
            result.setdefault(".".join(parts[first:]), []).append(key)
    return result


def _find_by_ending(key: str, endings: Mapping[str, list[str]]) -> str | None:
    """A stored key that ends like `key`: folders differ in the prefix (`transformer.h.0...` and `h.0...`).

    The shared ending must hold all numbers of the name (layer, expert), else at least two parts; it must be
    unique.
    """
    parts = key.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    # A name without numbers must share two parts; one with numbers the part before the first as well.
    last = max(numbers[0] - 1, 0) if numbers else len(parts) - 2
    for first in range(1, last + 1):
        matches = endings.get(".".join(parts[first:]), [])
        if len(matches) > 1:
            raise ExportError(f"{key} could be any of {', '.join(sorted(matches)[:4])} in the model's files.")
        if matches:
            return matches[0]
    return None


def check_complete(sites: Sequence[Site], targets: Sequence[Target]) -> None:
    """Every matrix and bias of every site exactly once, every stored tensor at most once."""
    found: dict[tuple[Site, Part], list[int | None]] = {}
    keys: set[str] = set()
    for target in targets:
        if target.key in keys:
            raise ExportError(f"Two sites of the plan are stored in the same tensor {target.key}.")
        keys.add(target.key)
        found.setdefault((target.site, target.part), []).append(target.expert)
    for site in sites:
        parts: tuple[Part, ...] = ("matrix",) if site.bias is None else ("matrix", "bias")
        for part in parts:
            experts = found.get((site, part), [])
            wanted = set(range(site.experts or 1))
            if experts == [None] or (site.experts and len(experts) == len(wanted) and set(experts) == wanted):
                continue
            missing = sorted(wanted - {expert for expert in experts if expert is not None})
            raise ExportError(
                f"{parameter_path(site, part)} was not found as a whole in the model's files: "
                f"{len(missing)} of {len(wanted)} matrices are missing ({missing[:8]}).",
                hint="Export an adapter instead, or report the model family.",
            )


def _compare_values(
    target: Target, parameters: Mapping[str, Tensor], stored: Mapping[str, tuple[Shard, StoredTensor]]
) -> None:
    """A sample of rows of the stored tensor equals the loaded parameter, after the loader's cast."""
    path = parameter_path(target.site, target.part)
    loaded = parameters.get(path)
    if loaded is None or loaded.is_meta:
        return  # offloaded: the name and the shape must do
    matrix = loaded.detach() if target.expert is None else loaded.detach()[target.expert]
    if target.transposed:
        matrix = matrix.transpose(-1, -2)
    rows = sorted({round(part * (matrix.shape[0] - 1) / 7) for part in range(8)})
    with safe_open(stored[target.key][0].path, framework="pt") as stream:
        view = stream.get_slice(target.key)
        for row in rows:
            if not torch.equal(view[row].to(loaded.dtype), matrix[row].cpu()):
                raise ExportError(
                    f"{target.key} in the files differs from {path} in the loaded model (row {row}).",
                    hint="The files changed after loading, or another revision was loaded; load it again.",
                )
