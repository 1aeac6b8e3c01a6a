# SPDX-License-Identifier: Apache-2.0
"""`heretic direction ...`: look at direction files, compare them, make one of several (requirements R-CLI-07)."""

from __future__ import annotations

import datetime
import itertools
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected
from heretic.cli.effects import Effect, command
from heretic.exceptions import ConfigurationError

if TYPE_CHECKING:
    from heretic.directions.compose import EntryComparison
    from heretic.directions.file import DirectionFile

ENTRY_COLUMNS: Final = (
    "entry",
    "block",
    "components",
    "class difference",
    "AUROC",
    "d'",
    "cosine to entry before",
)
Files = Annotated[str, Parameter(help="Direction files (*.direction.safetensors).", negative=())]


def register(app: App) -> None:
    """Add the group of commands to `app`."""
    group = App(name="direction", help="Show, compare or combine direction files.", help_formatter="plain")
    app.command(group)
    command(group, "show", Effect.READ)(show)
    command(group, "compare", Effect.READ)(compare)
    command(group, "combine", Effect.WRITE_LOCAL)(combine)


def show(*files: Files, context: Injected) -> int:
    """Show where the directions of each file come from and how well they separate, entry by entry.

    Entry 0 is the embedding, where no direction can be found; entry 1 is the output of block 0.
    """
    loaded = _load(files, at_least=1)
    context.console.document({"files": [describe(*pair) for pair in zip(files, loaded, strict=True)]})
    for path, file in zip(files, loaded, strict=True):
        _show_file(path, file, context)
    other = files[1:] or ("OTHER.direction.safetensors",)
    context.console.next_command(shlex.join(["heretic", "direction", "compare", files[0], *other]))
    return 0


def compare(*files: Files, context: Injected) -> int:
    """Show the cosine of the first components and the principal angles of the spans, for each pair of files.

    An angle of 0 degrees is a shared direction; 90 degrees means nothing in common.
    """
    loaded = _load(files, at_least=2)
    from heretic.directions import compose

    documents = []
    for first, second in itertools.combinations(range(len(files)), 2):
        one, other = loaded[first], loaded[second]
        found = compose.compare(one, other)
        if one.model != other.model:
            context.console.warn(
                f"{files[first]} belongs to {one.model}, {files[second]} to {other.model}",
                "The figures mean something only if one of the models was made from the other.",
            )
        documents.append(
            {
                "first": files[first],
                "second": files[second],
                "entries": [comparison_entry(row) for row in found],
            }
        )
        _show_comparison(f"{files[first]} and {files[second]}", found, context)
    context.console.document({"comparisons": documents})
    line = ["heretic", "direction", "combine", *files, "--out", "NEW.direction.safetensors"]
    context.console.next_command(shlex.join(line))
    return 0


def combine(
    *files: Files,
    out: str,
    scale: Annotated[list[str] | None, Parameter(negative=())] = None,
    name: str | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    context: Injected,
) -> int:
    """Add up the first components of several files, each times its scale, and save the sum as one direction.

    Parameters
    ----------
    out
        The new file; ends in .direction.safetensors.
    scale
        NAME=x, the weight of one file, 1 unless given; may repeat. NAME is the file's own name or its file name.
    name
        What the new directions are called; the names of the files unless given.
    overwrite
        Replace an existing direction file.
    """
    # Before torch is loaded: whether the line says what it needs.
    _require_files(files, at_least=2)
    asked = [parse_scale(text) for text in scale or ()]
    loaded = _load(files, at_least=2)
    from heretic.directions import compose
    from heretic.directions.file import require_free_name, save_directions

    path = Path(out).expanduser()
    require_free_name(path, overwrite=overwrite)
    scales = match_scales(asked, files, [file.name for file in loaded])
    found = compose.combine(
        loaded,
        scales,
        name=name or " + ".join(dict.fromkeys(file.name for file in loaded)),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    parts = [{"path": file, "scale": value} for file, value in zip(files, scales, strict=True)]
    context.console.document({"parts": parts, "output": str(path), "file": describe(out, found)})
    context.console.table(
        ("file", "scale"), [(part["path"], part["scale"]) for part in parts], right=(1,), result=True
    )
    if context.flags.dry_run:
        context.console.document({"status": "planned"})
        context.console.result(f"plan: {found.name} would be saved as {path}; nothing was written")
        return 0
    save_directions(path, found, overwrite=overwrite)
    context.console.result(f"saved {found.name} as {path}")
    context.console.next_command(shlex.join(["heretic", "direction", "show", out]))
    return 0


# What the command line says


def _require_files(files: Sequence[str], *, at_least: int) -> None:
    if len(files) < at_least:
        raise ConfigurationError(
            f"{len(files)} files were named, at least {at_least} are needed",
            hint="Name the direction files one after another.",
        )


def _load(files: Sequence[str], *, at_least: int) -> list[DirectionFile]:
    _require_files(files, at_least=at_least)
    from heretic.directions.file import load_directions

    return [load_directions(Path(name).expanduser()) for name in files]


def parse_scale(text: str) -> tuple[str, float]:
    """`NAME=x`; raises `ConfigurationError` for anything else."""
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise ConfigurationError(f"--scale is {text!r}", hint="Write NAME=x, such as --scale refusal=0.5.")
    return name, value


def match_scales(
    asked: Sequence[tuple[str, float]], files: Sequence[str], names: Sequence[str]
) -> list[float]:
    """The scale of each file, 1 where none was asked for.

    A file is meant by its own name (`names`) or by its file name, with or without the ending. Raises
    `ConfigurationError` for a word that means no file or several, and for a second scale of one file.
    """
    scales: dict[int, float] = {}
    for word, value in asked:
        meant = [place for place, file in enumerate(files) if word in _words_for(file, names[place])]
        if len(meant) != 1 or meant[0] in scales:
            known = ", ".join(f"{Path(file).name} ({name})" for file, name in zip(files, names, strict=True))
            finding = (
                f"means {len(meant)} of the files" if len(meant) != 1 else "is a second scale of one file"
            )
            raise ConfigurationError(
                f"--scale {word}={value:g} {finding}", hint=f"The files and their names: {known}."
            )
        scales[meant[0]] = value
    return [scales.get(place, 1.0) for place in range(len(files))]


def _words_for(file: str, name: str) -> set[str]:
    base = Path(file).name
    return {name, file, base, base.removesuffix(".safetensors").removesuffix(".direction")}


# What is shown


def describe(path: str, file: DirectionFile) -> dict[str, object]:
    """A direction file as a document."""
    bank = file.bank
    return {
        "path": path,
        "version": file.version,
        "name": file.name,
        "behaviour": file.behaviour,
        "goal": file.goal,
        "method": file.method,
        "model": file.model,
        "revision": file.revision,
        "hidden_size": bank.width,
        "layers": bank.layers,
        "components": bank.components,
        "component_weights": list(file.component_weights),
        "covectors": bank.covectors is not None,
        "data": dict(file.data),
        "source": file.source,
        "created": file.created,
        "entries": [{"block": entry.entry - 1, **asdict(entry)} for entry in _entries(file)],
        "provenance": dict(bank.provenance),
    }


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a file. cosine_to_entry_before: of component 0 with that of the entry before."""

    entry: int
    spread: tuple[float, ...]
    auroc: float | None
    effect_size: float | None
    cosine_to_entry_before: float | None


def _entries(file: DirectionFile) -> list[_Entry]:
    bank = file.bank
    first = bank.directions[:, 0].double()
    cosines = [None, *(first[1:] * first[:-1]).sum(dim=1).tolist()]
    return [
        _Entry(
            entry=layer + 1,
            spread=tuple(bank.spread[layer, : bank.count_at(layer)].tolist()),
            auroc=file.auroc[layer],
            effect_size=file.effect_size[layer],
            cosine_to_entry_before=cosines[layer],
        )
        for layer in range(bank.layers)
    ]


def comparison_entry(row: EntryComparison) -> dict[str, object]:
    """One entry of a comparison as a document."""
    degrees = [math.degrees(angle) for angle in row.angles]
    return {"entry": row.entry, "block": row.entry - 1, "cosine": row.cosine, "angles_degrees": degrees}


def _show_file(path: str, file: DirectionFile, context: Context) -> None:
    bank = file.bank
    facts = {
        "name": file.name,
        "behaviour": file.behaviour,
        "goal": file.goal,
        "method": file.method,
        "model": file.model if file.revision is None else f"{file.model} at {file.revision}",
        "sizes": f"{bank.layers} layers, hidden size {bank.width}, {bank.components} components",
        "component weights": ", ".join(f"{weight:.3g}" for weight in file.component_weights),
        "reads": "vectors of its own (covectors)" if bank.covectors is not None else "what it removes",
        "prompts": ", ".join(f"{name} {found[:12]}" for name, found in file.data.items()) or "-",
        "source": file.source,
        "created": file.created,
    }
    context.console.facts(facts, title=path, result=True)
    rows = [
        (
            entry.entry,
            entry.entry - 1,
            len(entry.spread),
            ", ".join(f"{length:.3g}" for length in entry.spread),
            _figure(entry.auroc, ".3f"),
            _figure(entry.effect_size, ".2f"),
            _figure(entry.cosine_to_entry_before, ".3f"),
        )
        for entry in _entries(file)
    ]
    context.console.table(ENTRY_COLUMNS, rows, right=range(len(ENTRY_COLUMNS)), result=True)


def _show_comparison(title: str, found: Sequence[EntryComparison], context: Context) -> None:
    rows = [
        (
            row.entry,
            row.entry - 1,
            f"{row.cosine:.4f}",
            ", ".join(f"{math.degrees(angle):.2f}" for angle in row.angles),
        )
        for row in found
    ]
    columns = ("entry", "block", "cosine", "principal angles, degrees")
    context.console.table(columns, rows, title=title, right=(0, 1, 2, 3), result=True)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
