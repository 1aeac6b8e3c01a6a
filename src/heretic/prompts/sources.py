# SPDX-License-Identifier: Apache-2.0
"""Sources on this machine: packaged sets, saved data sets, folders and files (R-DAT-01..03).

Nothing here uses the network, and nothing runs code found in a folder.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path

from heretic.exceptions import DatasetError
from heretic.prompts import hub_client
from heretic.prompts.readers import READERS, read_table
from heretic.prompts.slices import SplitPart
from heretic.prompts.specification import DatasetSpecification
from heretic.prompts.tables import (
    LoadedRows,
    Splits,
    Table,
    concatenate,
    missing_name,
    select_rows,
)

PACKAGED_PREFIX = "heretic:"
_SHARD = re.compile(r"(?P<name>.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_SPLIT_NAMES = frozenset({"train", "test", "validation", "valid", "val", "dev"})
_IGNORED_FILES = frozenset({"dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"})


def packaged_root() -> Traversable:
    """The folder of the packaged sets: one folder for each set, one JSONL file for each split."""
    return importlib.resources.files("heretic") / "demo" / "prompts"


def read_packaged(
    spec: DatasetSpecification, parts: Sequence[SplitPart], wanted: Sequence[str]
) -> LoadedRows:
    """The rows of `heretic:NAME`; raises `DatasetError` listing the sets when there is none of that name."""
    root = packaged_root()
    name = spec.dataset.removeprefix(PACKAGED_PREFIX)
    known = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    if name not in known:
        raise DatasetError(
            f"There is no packaged prompt set {name!r}. There are: {', '.join(known) or 'none'}.",
            hint="Write heretic:NAME with one of these names.",
        )
    files = {entry.name.removesuffix(".jsonl"): entry for entry in (root / name).iterdir() if entry.is_file()}
    files = {split: entry for split, entry in sorted(files.items()) if entry.name.endswith(".jsonl")}
    splits = {split: partial(read_table, entry, f"{spec.dataset} {split}") for split, entry in files.items()}
    return LoadedRows(select_rows(splits, parts, wanted, spec.dataset), spec.dataset)


def local_path(dataset: str) -> Path | None:
    """The existing path that `dataset` names, or None for a Hub id.

    An existing path wins over a Hub id of the same name (R-DAT-02). Raises `DatasetError` for a name that can
    only be a path and does not exist: an explicit file that is missing is never looked for elsewhere
    (reliability D09).
    """
    try:
        path = Path(dataset).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a NUL, or of no known user
        raise DatasetError(f"{dataset[:200]!r} cannot be looked up: {error}.") from error
    looks_local = (
        path.is_absolute()
        or dataset.startswith((".", "~"))
        or "\\" in dataset
        or dataset.count("/") > 1
        or path.suffix.lower() in READERS
    )
    if looks_local:
        raise DatasetError(
            f"There is no file or folder {dataset} (looked in {Path.cwd()}).",
            hint="Check the path; a Hub data set is named OWNER/NAME.",
        )
    return None


def read_local(
    spec: DatasetSpecification, path: Path, parts: Sequence[SplitPart], wanted: Sequence[str]
) -> LoadedRows:
    """The rows of a local file or folder; raises `DatasetError`, `DatasetConfigError` with the real names."""
    source = str(path)
    try:
        splits = _file_splits(path) if path.is_file() else _folder_splits(spec, path)
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read: {error.strerror or error}.", hint="Check the path and its permissions."
        ) from error
    return LoadedRows(select_rows(splits, parts, wanted, source), source)


def _file_splits(path: Path) -> Splits:
    """A single file is the split `train`; it also answers to its own stem (`test.jsonl` to `test`)."""
    return dict.fromkeys(("train", path.stem), partial(read_table, path, str(path)))


def _folder_splits(spec: DatasetSpecification, folder: Path) -> Splits:
    if spec.data_files is None:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return hub_client.read_saved(folder)
        if _declares_configs(folder):
            return hub_client.read_repository(folder, spec.config)
    if spec.config is not None:
        folder = _config_folder(folder, spec.config)
    files = _data_files(folder) if spec.data_files is None else _named_files(folder, spec.data_files)
    return _split_files(files)


def _declares_configs(folder: Path) -> bool:
    """Whether the folder is a copy of a Hub repository whose card says which files make which config."""
    card = folder / "README.md"
    try:
        lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    except OSError:  # an unreadable card only means that the files speak for themselves
        return False
    front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return any(line.startswith("configs:") for line in front)


def _config_folder(folder: Path, config: str) -> Path:
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if config not in names:
        raise missing_name("config", config, names, str(folder))
    return folder / config


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder and of its `data` folder, in order of name."""
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    files = [
        entry
        for place in places
        for entry in sorted(place.iterdir())
        if entry.is_file() and entry.suffix.lower() in READERS and entry.name not in _IGNORED_FILES
    ]
    if not files:
        raise DatasetError(
            f"The folder {folder} holds no data files ({', '.join(READERS)}) and no saved data set.",
            hint="Scripts are never run; convert the set to such a format, or name a subfolder as `config`.",
        )
    return files


def _named_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        try:
            matches = sorted(entry for entry in folder.glob(pattern) if entry.is_file())
        except (ValueError, NotImplementedError) as error:  # an empty or an absolute pattern
            raise DatasetError(
                f"`data_files` {pattern!r} is not a pattern inside {folder}: {error}."
            ) from error
        if not matches:
            raise DatasetError(f"`data_files` {pattern!r} matches no file in {folder}.")
        files += [entry for entry in matches if entry not in files]
    return files


def _split_files(files: Sequence[Path]) -> Splits:
    """Tables by stem without shard number; where none is a known split, all files together are `train`."""
    groups: dict[str, list[Path]] = {}
    for path in files:
        match = _SHARD.fullmatch(path.stem)
        groups.setdefault(match["name"] if match else path.stem, []).append(path)
    if not _SPLIT_NAMES & groups.keys():
        groups["train"] = list(files)
    return {name: partial(_read_files, name, tuple(group)) for name, group in groups.items()}


def _read_files(name: str, files: tuple[Path, ...]) -> Table:
    return concatenate(f"{files[0].parent} {name}", [read_table(path, str(path)) for path in files])
