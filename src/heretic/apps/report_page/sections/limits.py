# SPDX-License-Identifier: Apache-2.0
"""What this page does not say: features that were off, what nobody measured, what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from heretic.apps.report_page.blocks import Block, Section, Table, Text
from heretic.apps.report_page.reading import mapping, measured, number, sequence, text
from heretic.apps.report_page.record import PageRecord

NEVER = (
    "knowledge and reasoning benchmarks",
    "behaviour in languages and formats other than those of the prompts",
    "long conversations and the use of tools",
)


def limits(record: PageRecord) -> Section:
    """Three tables of one column each."""
    blocks: list[Block] = []
    if record.missing:
        blocks.append(Table("Missing on this page", ("what",), [(text(line),) for line in record.missing]))
    off = [text(line, 600) for line in sequence(record.document.get("degradations"))]
    if off:
        blocks.append(Table("Limited in this run", ("what",), [(line,) for line in off]))
    elif record.document:
        blocks.append(Text(("Nothing that was switched on was left out of this run.",)))
    blocks.append(Table("Not measured", ("what",), [(line,) for line in not_measured(record)]))
    return Section("limits", "Limits: what this page does not say", blocks)


def not_measured(record: PageRecord) -> Iterator[str]:
    """What a reader could assume and nobody measured; absence of data is no pass."""
    document, chosen = record.document, record.chosen
    if not chosen:
        yield "a chosen trial: none was chosen"
    elif not mapping(chosen.get("held_out")):
        yield "the chosen trial on held-out prompts"
    if chosen and number(chosen.get("kl_mean")) is None:
        yield "the damage of the chosen trial"
    if not measured(mapping(document.get("verified"))):
        yield "the saved files: none were saved and measured again"
    over = [
        mapping(entry).get("over_rate")
        for entry in (document.get("baseline"), chosen, document.get("verified"))
    ]
    if not any(over):
        yield "the behaviour on prompts that should not show it"
    if not mapping(document.get("controls")):
        yield "controls: random directions of the same strength, an instruction in words"
    yield from NEVER
