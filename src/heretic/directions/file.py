# SPDX-License-Identifier: Apache-2.0
"""Direction files: a bank of directions with all it takes to judge it and to use it again (requirements R-FMT-04).

`NAME.direction.safetensors` holds float32 tensors with one entry per point of the residual stream: entry 0 is the
output of the embedding, entry l + 1 that of block l. Entry 0 is zero, because the last token of a prompt belongs to the
template and is the same for all prompts, so that two classes do not differ there.

    directions [L + 1, k, d]    spread [L + 1, k]    covectors [L + 1, k, d], where there are any

Everything else is one JSON table in the header.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.file_format import DirectionFileFault, decode, encode
from heretic.exceptions import DirectionFileError, OutputExistsError
from heretic.publish import write_file
from heretic.sanitise import redact

SUFFIX: Final = ".direction.safetensors"
FILE_VERSION: Final = 1
"""Of this format alone: a file that was given away stays readable when the form of a study changes."""
GOALS: Final = ("suppress", "induce")
TEXT_LIMIT: Final = 1000
NUMBER_LIMIT: Final = 1e12


@dataclass(frozen=True, slots=True, eq=False)
class DirectionFile:
    """Directions, where they come from and how well they separate.

    name: what the user calls them. behaviour, goal (suppress or induce), method: of the extraction. component_weights:
    [k], strength of each component relative to the others. auroc, effect_size: [L], cross-fitted (algorithms 3.13);
    None where nothing was measured. model: Hub id, or the last part of a folder's name, never a local path; revision:
    its commit, None for a folder. data: name of a prompt set -> hash of its content. source: what made the file, in
    words. created: ISO 8601, given by the caller. version: of the format.
    """

    bank: DirectionBank
    name: str
    behaviour: str
    goal: str
    method: str
    component_weights: tuple[float, ...]
    auroc: tuple[float | None, ...]
    effect_size: tuple[float | None, ...]
    model: str
    revision: str | None
    data: Mapping[str, str]
    source: str
    created: str
    version: int = FILE_VERSION


def save_directions(path: Path, file: DirectionFile, *, overwrite: bool = False) -> None:
    """Write `file` in one atomic step; what was encoded is decoded and checked before anything is written.

    Credentials in its texts are replaced. Equal records give equal bytes. Raises `DirectionFileError` for a name
    without `SUFFIX` and for a record that could not be read again, `OutputExistsError` when the name is taken and
    `overwrite` is not set or it is no file, and what `write_file` raises.
    """
    require_free_name(path, overwrite=overwrite)
    try:
        data = encode(_document(file), _tensors(file.bank))
        _record(*decode(io.BytesIO(data), len(data)))
    except DirectionFileFault as fault:
        raise DirectionFileError(
            f"{path.name} was not written, because nobody could read it: {fault}.",
            hint="Extract the directions again with other settings; the message says what is wrong with them.",
        ) from fault
    write_file(path, data)


def require_free_name(path: Path, *, overwrite: bool) -> None:
    """Raise what `save_directions` would raise about the name alone: worth asking before the work is done."""
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        stem = path.name.removesuffix(".safetensors").removesuffix(".direction") or "NAME"
        raise DirectionFileError(
            f"{path.name!r} is no name for a direction file, which ends in {SUFFIX}.",
            hint=f"Call it {stem}{SUFFIX}.",
        )
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise OutputExistsError(f"{path} exists and is not a file.", hint="Choose another name.")
    if not overwrite:
        raise OutputExistsError(
            f"{path} exists.", hint="Choose another name, or allow it to be replaced with --overwrite."
        )


def load_directions(path: Path) -> DirectionFile:
    """Read and check a direction file.

    Raises `DirectionFileError` with what was found and the remedy, whatever is wrong: no such file, damage of any kind,
    another format, another version, vectors that are no directions.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise DirectionFileFault("it is a folder or a device", "Name the file itself.")
        with path.open("rb") as stream:
            return _record(*decode(stream, os.fstat(stream.fileno()).st_size))
    except FileNotFoundError as error:
        raise DirectionFileError(f"There is no file {path}.", hint="Check the path.") from error
    except OSError as error:
        raise DirectionFileError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path and its permissions."
        ) from error
    except DirectionFileFault as fault:
        raise DirectionFileError(
            f"{path} is not a usable direction file: {fault}.",
            hint=fault.hint or "Fetch the file again, or extract the directions again.",
        ) from fault


def require_fits(file: DirectionFile, *, hidden_size: int, layers: int, model_name: str) -> None:
    """Raise `DirectionFileError` naming both sizes unless the directions have those of the model.

    Different models may have equal sizes: whoever edits one should compare the names as well.
    """
    bank = file.bank
    if (bank.width, bank.layers) == (hidden_size, layers):
        return
    raise DirectionFileError(
        f"The directions {file.name!r} are those of {file.model}, with hidden size {bank.width} and {bank.layers} "
        f"layers; {model_name} has hidden size {hidden_size} and {layers} layers.",
        hint=f"Use directions that were extracted from {model_name}.",
        data={"hidden_size": [bank.width, hidden_size], "layers": [bank.layers, layers]},
    )


# Writing


def _document(file: DirectionFile) -> dict[str, object]:
    bank = file.bank
    document = {
        "version": file.version,
        "name": file.name,
        "behaviour": file.behaviour,
        "goal": file.goal,
        "method": file.method,
        "component_weights": list(file.component_weights),
        "auroc": [None, *file.auroc],
        "effect_size": [None, *file.effect_size],
        "model": {
            "id": file.model,
            "revision": file.revision,
            "hidden_size": bank.width,
            "layers": bank.layers,
        },
        "data": dict(file.data),
        "source": file.source,
        "created": file.created,
        "provenance": dict(bank.provenance),
    }
    try:
        # These files are made to be given away: no token leaves in one.
        found: dict[str, object] = json.loads(redact(json.dumps(document, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise DirectionFileFault(f"its description is not JSON ({error})") from error
    return found


def _tensors(bank: DirectionBank) -> dict[str, Tensor]:
    tensors = {"directions": bank.directions, "spread": bank.spread}
    if bank.covectors is not None:
        tensors["covectors"] = bank.covectors
    return {name: _with_embedding(values) for name, values in tensors.items()}


def _with_embedding(blocks: Tensor) -> Tensor:
    """[L, ...] as [L + 1, ...] float32 with a zero entry in front."""
    rows = blocks.detach().cpu().float()
    return torch.cat([torch.zeros_like(rows[:1]), rows])


# Reading


def _record(document: Mapping[str, object], tensors: Mapping[str, Tensor]) -> DirectionFile:
    """The record of a decoded file; raises `DirectionFileFault` for a value of the wrong type, range or length."""
    entries, components, width = tensors["directions"].shape
    _check_keys(document)
    model = _table(document, "model", ("id", "revision", "hidden_size", "layers"))
    if (model["hidden_size"], model["layers"]) != (width, entries - 1):
        raise DirectionFileFault(
            f"it says hidden size {str(model['hidden_size'])[:20]} and {str(model['layers'])[:20]} layers, its tensors "
            f"have {width} and {entries - 1}"
        )
    weights = _numbers(document, "component_weights", components)
    if None in weights:
        raise DirectionFileFault("component_weights has an empty place")
    covectors = tensors.get("covectors")
    bank = DirectionBank(
        directions=tensors["directions"][1:].clone(),
        spread=tensors["spread"][1:].clone(),
        covectors=None if covectors is None else covectors[1:].clone(),
        provenance=_table(document, "provenance"),
    )
    return DirectionFile(
        bank=bank,
        name=_text(document, "name"),
        behaviour=_text(document, "behaviour"),
        goal=_choice(document, "goal", GOALS),
        method=_text(document, "method"),
        component_weights=tuple(weight for weight in weights if weight is not None),
        auroc=_numbers(document, "auroc", entries, low=0.0, high=1.0)[1:],
        effect_size=_numbers(document, "effect_size", entries)[1:],
        model=_text(model, "id"),
        revision=None if model["revision"] is None else _text(model, "revision"),
        data={name: _text(found, name) for found in [_table(document, "data")] for name in found},
        source=_text(document, "source"),
        created=_time(document, "created"),
    )


_KEYS: Final = (
    "version", "name", "behaviour", "goal", "method", "component_weights", "auroc", "effect_size", "model", "data",
    "source", "created", "provenance",
)  # fmt: skip


def _check_keys(document: Mapping[str, object]) -> None:
    # The version first: another one may have other keys.
    version = document.get("version")
    if type(version) is not int or version != FILE_VERSION:
        raise DirectionFileFault(
            f"it has the version {str(version)[:20]}, this program reads {FILE_VERSION}",
            "Use the version of the program that wrote it.",
        )
    missing = [name for name in _KEYS if name not in document]
    unknown = [name for name in document if name not in _KEYS]
    if missing or unknown:
        finding = f"lacks {missing[0]!r}" if missing else f"has the unknown key {unknown[0][:80]!r}"
        raise DirectionFileFault(f"its description {finding}")


def _text(table: Mapping[str, object], name: str) -> str:
    value = table[name]
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_LIMIT:
        raise DirectionFileFault(f"{name[:80]!r} is not a text of 1 to {TEXT_LIMIT} characters")
    return value


def _choice(table: Mapping[str, object], name: str, choices: tuple[str, ...]) -> str:
    value = _text(table, name)
    if value not in choices:
        raise DirectionFileFault(f"{name!r} is {value[:80]!r}, not one of {', '.join(choices)}")
    return value


def _time(table: Mapping[str, object], name: str) -> str:
    value = _text(table, name)
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise DirectionFileFault(f"{name!r} is {value[:80]!r}, which is no ISO time") from error
    return value


def _table(table: Mapping[str, object], name: str, keys: tuple[str, ...] = ()) -> dict[str, object]:
    value = table[name]
    if not isinstance(value, dict) or (keys and set(value) != set(keys)):
        of = f" of {', '.join(keys)}" if keys else ""
        raise DirectionFileFault(f"{name!r} is not a table{of}")
    return value


def _numbers(
    table: Mapping[str, object],
    name: str,
    count: int,
    *,
    low: float = -NUMBER_LIMIT,
    high: float = NUMBER_LIMIT,
) -> tuple[float | None, ...]:
    """A list of numbers; null where one is not known."""
    values = table[name]
    if not isinstance(values, list) or len(values) != count:
        raise DirectionFileFault(f"{name!r} is not a list of {count} numbers")
    found: list[float | None] = []
    for value in values:
        if value is not None and (type(value) not in (int, float) or not low <= value <= high):
            raise DirectionFileFault(
                f"{name!r} holds {str(value)[:20]}, not a number from {low:g} to {high:g}"
            )
        found.append(None if value is None else float(value))
    return tuple(found)
