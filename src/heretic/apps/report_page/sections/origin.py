# SPDX-License-Identifier: Apache-2.0
"""How the figures came to be: prompts, settings, programs, time; and the commands that go on from here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from heretic.apps.report_page.blocks import Block, Commands, Facts, Section, Table
from heretic.apps.report_page.reading import mapping, number, public, text
from heretic.apps.report_page.record import PageRecord
from heretic.trial_display import duration

DATA: Final = ("set", "source", "prompts", "dropped", "content hash")
DROPPED: Final = ("blank_dropped", "duplicates", "overlap_dropped")
DEFAULT: Final = "default"
OPEN_ROWS: Final = 12


def origin(record: PageRecord) -> Section:
    """Prompt sets, settings, environment and time."""
    blocks: list[Block] = []
    rows = [
        _data_row(text(name), mapping(entry)) for name, entry in mapping(record.document.get("data")).items()
    ]
    if rows:
        blocks.append(Table("Prompt sets", DATA, rows, figures=(2, 3)))
    blocks += _settings(record)
    facts = [
        (text(name), text(value))
        for name, value in mapping(record.document.get("environment")).items()
        if value
    ]
    if facts:
        blocks.append(Facts(facts))
    phases = mapping(record.document.get("phases"))
    times = [
        (text(name), duration(seconds))
        for name, value in phases.items()
        if (seconds := number(value)) is not None
    ]
    if times:
        blocks.append(Table("Time by step", ("step", "time"), times, figures=(1,), folded=True))
    return Section("origin", "How the figures came to be", blocks)


def _data_row(name: str, found: Mapping[str, object]) -> tuple[str, ...]:
    dropped = sum(number(found.get(key)) or 0 for key in DROPPED)
    digest = text(found.get("content_hash"))[:12]
    return name, public(found.get("source")), text(found.get("rows")), f"{dropped:g}", digest


def _settings(record: PageRecord) -> Iterator[Block]:
    """Those that were given, then those left alone; from the fingerprint where there is no document."""
    stored = mapping(record.document.get("settings"))
    if not stored:
        rows = [(text(name), public(value)) for name, value in record.made_with.items()]
        if rows:
            yield Table("Settings that decide a score", ("setting", "value"), rows, folded=True)
        return
    given: list[tuple[str, ...]] = []
    left: list[tuple[str, ...]] = []
    for name, value in stored.items():
        entry = mapping(value)
        shown = public(entry.get("value")) if "value" in entry else public(value)
        source = public(entry.get("source"))
        (left if source == DEFAULT else given).append((text(name), shown, source))
    columns = ("setting", "value", "from")
    if given:
        yield Table("Settings that were given", columns, given, folded=len(given) > OPEN_ROWS)
    if left:
        yield Table("Settings left at their defaults", columns, left, folded=True)


def commands(record: PageRecord) -> Section:
    """What can be done next."""
    name = shlex.quote(text(record.name, 200))
    lines = [
        (f"heretic study show {name}", "all trials and what the study was made with"),
        (f"heretic study front {name}", "the front as a table"),
    ]
    chosen, output = record.chosen, public(record.document.get("output"), 200)
    model = shlex.quote(public(record.fact("model"), 200) or "MODEL")
    trial = number(chosen.get("trial"))
    if trial is not None:
        lines.append(
            (f"heretic export {name} --trial {trial:.0f} --model {model}", "save the chosen trial again")
        )
    if output:
        folder = shlex.quote(output)
        lines.append((f"heretic chat {folder}", "talk to the saved model"))
        lines.append(
            (f"heretic verify {folder} --base {model}", "check the saved files and measure them again")
        )
    if not record.document:
        lines.insert(
            0, (f"heretic {model} --study-name {name} --resume continue", "go on with the search to its end")
        )
    return Section("commands", "Next commands", [Commands(lines)])
