# SPDX-License-Identifier: Apache-2.0
"""The report of a study as a folder: one page and its figures as files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heretic.apps.report_page.drawing import require_matplotlib
from heretic.apps.report_page.figures import draw
from heretic.apps.report_page.page import build_page
from heretic.apps.report_page.record import gather
from heretic.publish import refuse_taken_target, staged_folder

PAGE: Final = "index.html"
_SAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
NAME_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Made:
    """A published report. files: names in the folder, the page first. missing: what the page lacks."""

    folder: Path
    files: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / PAGE


def default_folder(name: str) -> Path:
    """`report_<study>`, with what a file system or a shell would take otherwise replaced."""
    safe = _SAFE.sub("_", name)[:NAME_LIMIT].strip(".") or "study"
    return Path(f"report_{safe}")


def make_report(storage: str | None, name: str, out: Path | None = None, *, overwrite: bool = False) -> Made:
    """Write the report of the study `name` as a folder, in one step; reads the study and loads no model.

    overwrite: replace an older report. Raises `StudyNotFoundError` naming near ones, `OutputExistsError`,
    `ConfigurationError` where matplotlib is missing, and the errors of storage and disk.
    """
    folder = default_folder(name) if out is None else out.expanduser()
    require_matplotlib()
    refuse_taken_target(folder, overwrite=overwrite)
    record = gather(storage, name)
    drawings = draw(record)
    # A reply may hold half of a surrogate pair, which has no encoding.
    contents = {PAGE: build_page(record, drawings).encode("utf-8", "replace")}
    contents |= {f"{drawing.name}.png": drawing.png for drawing in drawings.values()}
    with staged_folder(folder, overwrite=overwrite, needed_bytes=sum(map(len, contents.values()))) as staging:
        for file, data in contents.items():
            (staging.path / file).write_bytes(data)
        published = staging.commit()
    return Made(published, tuple(contents), record.missing)
