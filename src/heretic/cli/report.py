# SPDX-License-Identifier: Apache-2.0
"""`heretic report NAME`: what a study found, as one page for a browser and pictures; no model is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from heretic.cli.context import Injected
from heretic.cli.effects import Effect, command


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "report", Effect.WRITE_LOCAL)(report)


def report(
    name: str,
    *,
    storage: str | None = None,
    out: str | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    context: Injected,
) -> int:
    """Write the report of the study NAME: one HTML page and its figures as pictures; needs the extra 'plot'.

    Parameters
    ----------
    name
        The study.
    storage
        Where studies are kept; as the setting of that name.
    out
        The new folder; report_NAME unless given.
    overwrite
        Replace an older report.
    """
    from heretic.apps.report_page.make import make_report

    given = [] if storage is None else [f"--storage={storage}"]
    location: str | None = context.peek(given).settings.storage
    with context.console.phase("Writing the report") as phase:
        made = make_report(location, name, None if out is None else Path(out), overwrite=overwrite)
        phase.result(f"{len(made.files) - 1} figures")
    context.console.document(
        {
            "status": "complete",
            "study": name,
            "output": str(made.folder),
            "page": str(made.page),
            "files": list(made.files),
            "missing": list(made.missing),
        }
    )
    for line in made.missing:
        context.console.warn(line)
    context.console.result(f"the page is {made.page}")
    shown = [] if storage is None else ["--storage", storage]
    context.console.next_command(shlex.join(["heretic", "study", "front", name, *shown]))
    return 0
