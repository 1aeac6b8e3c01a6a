# SPDX-License-Identifier: Apache-2.0
"""`heretic extract MODEL`: the directions of a model as a file, without a search (requirements R-CLI-05)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.context import Context, Injected, Tokens
from heretic.cli.direction import describe
from heretic.cli.effects import Effect, command
from heretic.cli.run import show_plan, without_trials
from heretic.model.libraries import quick_imports

if TYPE_CHECKING:
    from heretic.direction_tasks import Extracted

COLUMNS: Final[dict[str, tuple[str, str]]] = {
    "difference_norm": ("difference", ".3g"),
    "target_mean_norm": ("mean with", ".3g"),
    "control_mean_norm": ("without", ".3g"),
    "mean_cosine": ("cosine", ".3f"),
    "difference_cosine": ("medians", ".3f"),
    "auroc": ("AUROC", ".3f"),
    "effect_size": ("d'", ".2f"),
    "silhouette": ("silhouette", ".3f"),
    "accuracy": ("accuracy", ".2f"),
}
"""Fields of the geometry table, their heading and their form."""
LEGEND: Final = (
    "difference, mean with, without: lengths of the means and of their difference, in activation units. cosine: of the "
    "two means. medians: of the difference of the means with that of the geometric medians; far below 1, outliers "
    "make the direction. AUROC, d': on prompts the direction was not made from. accuracy: estimated cosine with the "
    "direction of infinitely many prompts."
)


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "extract", Effect.WRITE_LOCAL, settings=True)(extract)


def extract(
    model: str,
    *tokens: Tokens,
    out: str,
    name: str | None = None,
    source: str | None = None,
    plot: str | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    context: Injected,
) -> int:
    """Find the directions of MODEL and save them as a file, without a search.

    Parameters
    ----------
    model
        Hub id or folder; stands before the settings.
    out
        The new file; ends in .direction.safetensors.
    name
        What the directions are called; the behaviour unless given.
    source
        Which of the candidate sources is saved: difference, probe or ensemble; the first that was found unless given.
    plot
        Draw the table over the layers as a picture (.png, .svg, .pdf); needs the extra 'plot'.
    overwrite
        Replace an existing file.
    """
    resolved = context.resolve([f"--model={model}", *tokens], notices=False)
    with quick_imports(compiling=resolved.settings.compile):
        from heretic import main
        from heretic.apps.geometry_plot import require_plot, save_plot

    path = Path(out).expanduser()
    picture = None if plot is None else Path(plot).expanduser()
    if picture is not None:
        require_plot(picture, overwrite=overwrite)
    main.require_extraction(resolved, path, name=name, source=source, overwrite=overwrite)
    if context.flags.dry_run:
        plan = main.dry_run(resolved, console=context.console)
        return show_plan({**without_trials(plan), "directions": str(path)}, context)
    found = main.extract_directions(
        resolved, path, name=name, source=source, overwrite=overwrite, console=context.console
    )
    if picture is not None:
        save_plot(picture, found.geometry, f"{found.file.name}, {found.file.model}")
    _show(found, picture, context)
    again = ["heretic", "apply", model, out]
    behaviour = resolved.origins.get("behaviour")
    if behaviour is not None and behaviour.layer != "default":
        again += ["--behaviour", resolved.settings.behaviour]
    context.console.next_command(shlex.join(again))
    return 0


def _show(found: Extracted, picture: Path | None, context: Context) -> None:
    counts = [found.file.bank.count_at(layer) for layer in range(found.file.bank.layers)]
    rows: list[Sequence[object]] = []
    for row, count in zip(found.geometry, counts, strict=True):
        figures = [format(getattr(row, field), form) for field, (_, form) in COLUMNS.items()]
        rows.append((row.layer + 1, row.layer, count, *figures))
    headings = ("entry", "block", "count", *(heading for heading, _ in COLUMNS.values()))
    console = context.console
    console.document(
        {
            "status": "complete",
            "output": str(found.path),
            "plot": None if picture is None else str(picture),
            "file": describe(str(found.path), found.file),
            "sources": list(found.sources),
            "geometry": [
                {"entry": row.layer + 1, "block": row.layer, **asdict(row)} for row in found.geometry
            ],
            "warnings": list(found.warnings),
            "degradations": list(found.degradations),
        }
    )
    console.table(headings, rows, right=range(len(headings)), result=True)
    console.note(LEGEND)
    console.result(f"saved {found.file.name} ({found.file.method}) as {found.path}")
    if picture is not None:
        console.result(f"drawn in {picture}")
    others = [name for name in found.sources if name != found.source]
    if others:
        console.note(f"Other sources were found too; save one with --source: {', '.join(others)}.")
