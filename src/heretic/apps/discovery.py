# SPDX-License-Identifier: Apache-2.0
"""Which models there are to talk to, and whether a folder can be one (requirements R-UI-01, R-UI-02, reliability G02).

What a browser sends is a word to be looked up in a list made here, never a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from heretic.constants import HIDDEN_MANIFEST
from heretic.exceptions import ModelNotFoundError, ModelValidationError
from heretic.sanitise import single_line

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TRIAL: Final = re.compile(r"[\w .@+,=-]{1,200}:\d{1,9}")
TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
Kind = Literal["folder", "named", "trial", "hub"]


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that can be opened. name: the word by which it is chosen; label: for reading; where: what is loaded;
    problem: why it cannot be, None when nothing speaks against it; verified: it has a manifest of this program."""

    name: str
    label: str
    where: str
    kind: Kind
    problem: str | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look. models_dir: its sub-folders are models. named: label -> folder or Hub id, chosen at the start of
    the program. storage: of the studies whose trials can be opened. base: what relative paths in a study mean.
    trial_model: the model of trials, in place of the path that their study knows."""

    models_dir: Path
    named: Mapping[str, str] = field(default_factory=dict)
    storage: str | None = None
    base: Path = Path()
    trial_model: str | None = None


def choices(places: Places) -> tuple[Choice, ...]:
    """What is named, then the sub-folders of the models folder by name; looked up anew each time."""
    named = [
        Choice(f"named:{label}", label, where, "named", _problem_of(Path(where)))
        for label, where in places.named.items()
    ]
    return (*named, *_folders(places.models_dir))


def is_trial(word: str) -> bool:
    """Whether a word is STUDY:N and no listed name."""
    return TRIAL.fullmatch(word) is not None and not word.startswith(("folder:", "named:"))


def _problem_of(folder: Path) -> str | None:
    return "; ".join(missing_files(folder)) or None if folder.is_dir() else None


def _folders(models_dir: Path) -> list[Choice]:
    try:
        with os.scandir(models_dir) as found:
            names = sorted(
                entry.name
                for entry in found
                if entry.is_dir(follow_symlinks=False)
                and not entry.name.startswith(".")
                and not entry.name.endswith((".partial", ".backup"))
            )
    except OSError:
        return []
    return [_folder(models_dir / name) for name in names]


def _folder(path: Path) -> Choice:
    verified = (path / HIDDEN_MANIFEST).is_file()
    shown = single_line(path.name.replace("-", " "))
    return Choice(f"folder:{path.name}", shown, str(path), "folder", _problem_of(path), verified)


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be a model, one sentence each; weights and headers are checked when it is loaded."""
    missing = [] if (folder / "config.json").is_file() else ["config.json is missing"]
    if not (folder / SINGLE).is_file():
        missing += _missing_shards(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append(f"no tokenizer: none of {', '.join(TOKENIZERS)}")
    return missing


def _missing_shards(folder: Path) -> list[str]:
    from heretic.export.folder import read_json_table

    if not (folder / INDEX).is_file():
        pickled = any(folder.glob("*.bin"))
        return [
            f"no weights: neither {SINGLE} nor {INDEX}"
            + (" (pickled weights are not opened)" if pickled else "")
        ]
    try:
        stated = read_json_table(folder / INDEX).get("weight_map")
    except ModelValidationError as error:
        return [error.message]
    names = sorted({str(name) for name in stated.values()}) if isinstance(stated, dict) else []
    if not names:
        return [f"{INDEX} lists no weights"]
    gone = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    return (
        [f"{len(gone)} of {len(names)} files of weights are missing: {', '.join(gone[:3])}"] if gone else []
    )


def chosen(places: Places, word: object) -> Choice:
    """The choice for a word: a listed name, STUDY:N, or org/model of the Hub. Raises `ModelNotFoundError`, and
    `ModelValidationError` listing what a folder lacks."""
    if not isinstance(word, str) or not word:
        raise ModelNotFoundError("no model is chosen", hint="Choose one from the list.")
    found = next((entry for entry in choices(places) if entry.name == word), None)
    if found is None and is_trial(word) and places.storage:
        return Choice(word, word, word, "trial")
    if found is None and HUB_ID.fullmatch(word) and ".." not in word:
        return Choice(word, word, word, "hub")
    if found is None:
        raise ModelNotFoundError(
            f"there is no model {single_line(word, 80)!r}",
            hint="Refresh the list and choose one; a trial is written STUDY:N, a Hub model org/name.",
        )
    if found.problem is not None:
        raise ModelValidationError(
            f"{found.label!r} is no complete model: {found.problem}",
            details=tuple(found.problem.split("; ")),
            hint="Copy the missing files into the folder, or save the model again.",
        )
    return found
