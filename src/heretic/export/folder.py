# SPDX-License-Identifier: Apache-2.0
"""What a model folder holds: weight files, their tensors, everything else; refused where it cannot be right.

Used before loading and before exporting; needs no torch (R-CLI-44, REL-C01, REL-C06).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from heretic.exceptions import ModelValidationError, UntrustedContentError
from heretic.export.tensors import Shard, StoredTensor, check_finite, read_shard

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
JSON_LIMIT = 64 * 1024 * 1024
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"})
"""Files that run code when opened by the libraries that write them (REL-F02)."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """An inspected model folder.

    shards: the weight files transformers loads, in the order of the index (or the single file).
    extra_shards: further safetensors files (drafts, another layout). others: all remaining files. Names are
    relative, with `/`. index: the weight map (key -> file name); None for a single file. config: the parsed
    config.json.
    """

    folder: Path
    shards: tuple[Shard, ...]
    extra_shards: tuple[str, ...]
    others: tuple[str, ...]
    index: dict[str, str] | None
    config: dict[str, object]

    def tensors(self) -> dict[str, tuple[Shard, StoredTensor]]:
        """Key -> (its file, its place), over all shards."""
        return {tensor.key: (shard, tensor) for shard in self.shards for tensor in shard.tensors}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.path.stat().st_size for shard in self.shards)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files of the folder: what a copy of it needs on the disk."""
        names = (*self.extra_shards, *self.others)
        return self.weight_bytes + sum((self.folder / name).stat().st_size for name in names)


def inspect_folder(folder: Path) -> ModelFiles:
    """Check a model folder from its headers and small files, without loading a weight.

    Raises `ModelValidationError` listing every missing, unreadable or inconsistent file in `details`, and
    `UntrustedContentError` when the only weights are pickle files or a path leaves the folder.
    """
    if not folder.is_dir():
        raise ModelValidationError(f"{folder} is not a folder.", hint="Name a model folder or a Hub model.")
    names = _names(folder)
    config = read_json_table(folder / CONFIG_FILE)
    index: dict[str, str] | None = None
    if SINGLE_FILE in names:  # transformers loads it even where an index lies beside it
        weight_names = [SINGLE_FILE]
    elif INDEX_FILE in names:
        index = _read_index(folder)
        weight_names = list(dict.fromkeys(index.values()))
    else:
        raise _no_weights(folder, names)
    shards = _read_shards(folder, weight_names, names)
    _check_keys(folder, shards, index)
    rest = [name for name in names if name not in weight_names]
    extra = tuple(name for name in rest if name.endswith(".safetensors"))
    others = tuple(name for name in rest if not name.endswith(".safetensors"))
    return ModelFiles(folder, shards, extra, others, index, config)


def check_finite_folder(files: ModelFiles, report: Callable[[str], None] | None = None) -> None:
    """Stream every weight once and raise `NonFiniteError` for a NaN or an infinity; `report` gets each file
    name."""
    for shard in files.shards:
        if report is not None:
            report(shard.path.name)
        check_finite(shard)


def read_json_table(path: Path) -> dict[str, object]:
    """A JSON file that holds one table; raises `ModelValidationError` naming the file and the reason."""
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise ModelValidationError(
                f"{path.name} has more than {JSON_LIMIT:,} bytes.", hint="Fetch it again."
            )
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelValidationError(
            f"{path.name} is missing in {path.parent}.",
            hint="A model folder holds config.json and model.safetensors or its shards with their index.",
        ) from error
    except OSError as error:
        raise ModelValidationError(
            f"{path.name} cannot be read: {error.strerror}.", hint="Check the permissions, or fetch it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelValidationError(
            f"{path.name} is not valid JSON ({error}).", hint="Fetch it again."
        ) from error
    if not isinstance(found, dict):
        raise ModelValidationError(f"{path.name} holds no JSON table.", hint="Fetch it again.")
    return found


def _no_weights(folder: Path, names: list[str]) -> ModelValidationError | UntrustedContentError:
    pickles = [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]
    if pickles:
        return UntrustedContentError(
            f"{folder.name} has only pickle weights ({pickles[0]}), and opening a pickle can run code.",
            hint="Use a revision with safetensors files, or convert it elsewhere.",
        )
    return ModelValidationError(
        f"{folder.name} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}.",
        hint="Fetch the model again.",
    )


def _names(folder: Path) -> list[str]:
    """Relative names of all files, sorted; hidden folders and the libraries' caches left out."""
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in (*names, *(name for name in folders if Path(parent, name).is_symlink())):
            path = Path(parent, name)
            _check_inside(folder, path)
            if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
                raise UntrustedContentError(f"{path} is a device, not a file.", hint="Remove it.")
            if path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _check_inside(folder: Path, path: Path) -> None:
    """A link may lead to another file of the folder or to the blobs of the Hub cache the folder lies in."""
    if not path.is_symlink():
        return
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if target.is_relative_to(home) and target.is_file():
        return
    blobs = home.parent.parent / "blobs"
    if home.parent.name == "snapshots" and target.parent == blobs:
        return
    raise UntrustedContentError(
        f"{path.relative_to(folder)} in the model folder is a link to {target}, outside of the folder.",
        hint="Replace the link by the file if you trust it.",
    )


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = read_json_table(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelValidationError(f"{INDEX_FILE} has no weight_map.", hint="Fetch it again.")
    index: dict[str, str] = {}
    for key, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and "\\" not in name
        if not plain or not _stays_inside(name):
            raise UntrustedContentError(
                f"{INDEX_FILE} places {key} in {name!r}, which is not a safetensors file of the folder.",
                hint="The index is damaged or hostile; do not use this folder.",
            )
        index[key] = name
    return index


def _stays_inside(name: str) -> bool:
    paths = PurePosixPath(name), PureWindowsPath(name)
    return not any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _read_shards(folder: Path, weight_names: list[str], names: list[str]) -> tuple[Shard, ...]:
    """All weight files; every problem of every file is collected before raising."""
    shards, problems, hint = [], [], None
    for name in weight_names:
        if name not in names:
            problems.append(f"{name} is missing.")
            continue
        try:
            shards.append(read_shard(folder / name))
        except ModelValidationError as error:
            problems.append(error.message)
            hint = error.hint
    if problems:
        more = f" ({len(problems)} files in all)" if len(problems) > 1 else ""
        raise ModelValidationError(
            f"The model folder {folder} is incomplete or damaged: {problems[0]}{more}",
            hint=hint or "Fetch the missing files again.",
            details=tuple(problems) if len(problems) > 1 else (),
        )
    return tuple(shards)


def _check_keys(folder: Path, shards: tuple[Shard, ...], index: dict[str, str] | None) -> None:
    place: dict[str, Path] = {}
    problems: list[str] = []
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.key in place:
                problems.append(f"{tensor.key} is in {place[tensor.key].name} and in {shard.path.name}.")
            place[tensor.key] = shard.path
    for key, name in (index or {}).items():
        if place.get(key) != folder / name:
            problems.append(f"{key} is not in {name}, where the index places it.")
    if problems:
        raise ModelValidationError(
            f"Weights and index disagree: {problems[0]}",
            hint="The folder mixes two models or lost a file; fetch it again.",
            details=tuple(problems[:20]),
        )
