# SPDX-License-Identifier: Apache-2.0
"""`heretic apply MODEL FILE...`: edit a model with direction files, without a search (requirements R-CLI-06)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected
from heretic.cli.direction import comparison_entry, match_scales, parse_scale
from heretic.cli.effects import Effect, command
from heretic.cli.run import conclude, show_plan, without_trials
from heretic.exceptions import ConfigurationError
from heretic.model.libraries import quick_imports
from heretic.report import flat_measurement

if TYPE_CHECKING:
    from heretic.phases.application import Application

SUFFIX: Final = ".direction.safetensors"
ANGLES: Final = ("files", "smallest angle", "at entry", "median angle", "largest angle")
FilesAndSettings = Annotated[
    str,
    Parameter(
        name="FILES",
        help="Direction files (*.direction.safetensors), then settings.",
        allow_leading_hyphen=True,
    ),
]


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "apply", Effect.WRITE_LOCAL, settings=True)(apply)


def apply(
    model: str,
    *tokens: FilesAndSettings,
    strength: float = 1.0,
    direction_layer: str = "best",
    peak_position: float | None = None,
    edge: float | None = None,
    half_width: float | None = None,
    scale: Annotated[list[str] | None, Parameter(negative=())] = None,
    out: str | None = None,
    context: Injected,
) -> int:
    """Edit MODEL with the directions of one or more files, without a search, and save it.

    All files are removed at once, as one orthonormal basis. Layer profiles and max_strength of the settings hold.

    Parameters
    ----------
    model
        Hub id or folder; stands before the files.
    strength
        Share that is removed: 0 nothing, 1 all, above 1 reversed; with --goal induce the share that is added.
    direction_layer
        Layer whose directions are removed at all depths: a number from 0, or best, the one that separates best; own
        removes at each layer its own directions.
    peak_position
        Depth at which it is strongest, 0 to 1; the last block unless given.
    edge
        Share of the strength that is left at the half-width, 0 to 1.
    half_width
        Depth on both sides beyond which nothing is edited, 0 to 1; the whole depth unless given.
    scale
        NAME=x, times the strength of one file; may repeat. NAME is the file's own name or its file name.
    out
        Output folder, or its parent when it exists or ends in a slash.
    """
    files, rest = split_files(tokens)
    if not files:
        raise ConfigurationError(
            f"no direction file is named after {model}", hint=f"Write: heretic apply MODEL NAME{SUFFIX}"
        )
    asked = [parse_scale(text) for text in scale or ()]
    layer = _layer(direction_layer)
    chosen = [f"--model={model}", "--auto-select", *([] if out is None else [f"--auto-select-path={out}"])]
    resolved = context.resolve([*chosen, *rest], notices=False)
    with quick_imports(compiling=resolved.settings.compile):
        from heretic import main

    parts = main.load_parts([Path(file).expanduser() for file in files])
    scales = match_scales(asked, files, [part.file.name for part in parts])
    application = main.plan_application(
        resolved,
        [replace(part, scale=value) for part, value in zip(parts, scales, strict=True)],
        main.Strength(strength, peak_position, edge, half_width),
        layer,
    )
    return _carried_out(application, context)


def _carried_out(application: Application, context: Context) -> int:
    """Show the plan and, unless it is all that was asked for, follow it."""
    from heretic import main

    context.console.document(describe_application(application))
    _show(application, context)
    if context.flags.dry_run:
        plan = main.dry_run(application.resolved, console=context.console)
        return show_plan({**without_trials(plan), "notes": list(application.notes)}, context)
    applied = main.apply_directions(application, console=context.console)
    context.console.document(
        {"measured": flat_measurement(applied.measured), "strengths": dict(applied.strengths)}
    )
    return conclude(applied.report, context)


def _layer(text: str) -> Literal["best", "own"] | float:
    if text == "best":
        return "best"
    if text == "own":
        return "own"
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"--direction-layer is {text!r}", hint="Use best, own, or the number of a layer from 0."
        ) from None


def split_files(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """(direction files, settings): the words before the first flag, and every later one with the ending of a file."""
    first = next((place for place, token in enumerate(tokens) if token.startswith("-")), len(tokens))
    later = [token for token in tokens[first:] if not token.startswith("-") and token.endswith(SUFFIX)]
    return [*tokens[:first], *later], [token for token in tokens[first:] if token not in later]


def describe_application(application: Application) -> dict[str, object]:
    """What is planned as a document: the files, how alike they are, what was dropped, how strong the edit is."""
    names = [part.name for part in application.parts]
    return {
        "files": [
            {"file": part.name, "name": part.file.name, "scale": part.scale, "sha256": part.sha256}
            for part in application.parts
        ],
        "angles": [
            {
                "first": names[first],
                "second": names[second],
                "entries": [comparison_entry(entry) for entry in entries],
            }
            for first, second, entries in application.comparisons
        ],
        "dropped": list(application.basis.dropped),
        "strengths": application.plan.effective_strengths(),
        "command": application.command,
    }


def _show(application: Application, context: Context) -> None:
    names = [part.name for part in application.parts]
    rows = []
    for first, second, entries in application.comparisons:
        angles = {entry.entry: math.degrees(entry.angles[0]) for entry in entries}
        nearest = min(angles, key=lambda entry: angles[entry])
        figures = (angles[nearest], nearest, statistics.median(angles.values()), max(angles.values()))
        cells = [str(value) if isinstance(value, int) else f"{value:.2f}" for value in figures]
        rows.append((f"{names[first]}, {names[second]}", *cells))
    if rows:
        title = "First principal angle in degrees: 0 is a shared direction, 90 nothing in common"
        context.console.table(ANGLES, rows, title=title, right=(1, 2, 3, 4), result=True)
    strengths = [abs(value) for row in application.plan.effective_strengths().values() for value in row]
    if not strengths:
        context.console.note("The strength is 0: the saved model is the unedited one.")
        return
    index = application.parameters.get("direction_index")
    whose = (
        "its own directions at each layer"
        if index is None
        else f"the directions of layer {index:g} everywhere"
    )
    verb = "Strengthened" if application.resolved.settings.goal == "induce" else "Removed"
    context.console.note(
        f"{verb}: {whose}, at {len(application.plan.rows)} matrices with strength {min(strengths):.3g} to "
        f"{max(strengths):.3g}."
    )
    if application.resolved.settings.enable_layer_profiles and min(strengths) != max(strengths):
        context.console.note(
            "Layer profiles multiply the strength; --no-enable-layer-profiles makes it the same at all depths."
        )
