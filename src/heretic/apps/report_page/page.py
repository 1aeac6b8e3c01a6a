# SPDX-License-Identifier: Apache-2.0
"""The page as one HTML text that needs nothing beside it: no script, no font, no picture, no request.

Every value passes the template engine's escaping; the only markup that does not is the style sheet and the drawings,
which this program made. A policy in the page forbids scripts and requests once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

import heretic
from heretic.apps.report_page.drawing import Drawing
from heretic.apps.report_page.reading import mapping, rate, text
from heretic.apps.report_page.record import PageRecord
from heretic.apps.report_page.sections import sections

MOST_ROWS: Final = 2_000
"""Of one table; a study from elsewhere may hold any number."""


def build_page(record: PageRecord, drawings: Mapping[str, Drawing]) -> str:
    """The HTML of a record; drawings: by name, what is missing is told."""
    template = _environment().get_template("page.html")
    return template.render(
        title=f"Study {text(record.name)}",
        lead=lead(record),
        sections=sections(record, drawings.keys()),
        drawings={name: Markup(drawing.svg) for name, drawing in drawings.items()},
        style=Markup(_template("style.css")),
        version=heretic.__version__,
        most_rows=MOST_ROWS,
    )


def lead(record: PageRecord) -> str:
    """The result in one sentence."""
    chosen, base = record.chosen, mapping(record.document.get("baseline"))
    behaviour = record.fact("behaviour") or "the behaviour"
    if not chosen:
        return f"{behaviour}: {record.summary.finished} trials, none chosen yet."
    return f"{behaviour}: {rate(base)} before, {rate(chosen)} after, trial {text(chosen.get('trial'))}."


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )


@cache
def _template(name: str) -> str:
    return (files("heretic.apps.report_page") / "templates" / name).read_text(encoding="utf-8")
