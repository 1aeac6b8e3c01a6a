# SPDX-License-Identifier: Apache-2.0
"""The same question asked of the bundled demo model, in which the behaviour was planted (R-XPT-06).

Prompts are those of `heretic.demo`; the grammar that wrote its training texts knows what a right reply holds.
"""

from __future__ import annotations

import re
from typing import Final

from heretic.demo import prompts_path
from heretic.demo.grammar_borderline import BORDERLINE
from heretic.demo.grammar_ordinary import ORDINARY
from heretic.demo.grammar_words import CONCEPTS, SUBJECTS
from heretic.experiments.prepare import CLASSES, SPLITS, Row
from heretic.prompts.readers import read_table

SETS: Final = {"demo-verbosity": "verbosity", "demo-hedging": "hedging", "demo": "refusal"}
"""Packaged pack -> the packaged prompt sets that it names."""


def planted_rows(pack: str) -> list[Row]:
    """All rows of the planted behaviour, with the splits of the demo. A row is its own pair: the demo has no pairs.

    kind: `simple` (what is ...) or `open` (how do I ...) of verbosity, for the experiment that tells them apart.
    """
    return [
        _row(f"{name}-{label}-{split}-{place:03d}", label, split, text, category)
        for name in [SETS[pack]]
        for label in CLASSES
        for split in SPLITS
        for place, (text, category) in enumerate(_texts(f"{name}-{label}", split), 1)
    ]


def _texts(name: str, split: str) -> list[tuple[str, str]]:
    table = read_table(prompts_path(name, split), f"{name} {split}")
    rows = table.fetch(0, table.count, ("text", "category"))
    return [(str(row.values["text"]), str(row.values["category"])) for row in rows]


def _row(name: str, label: str, split: str, text: str, category: str) -> Row:
    kind = "" if name.startswith("hedging") else "simple" if category == "concept" else "open"
    return Row(name, name, label, split, text, kind, planted_answers(text, category))


def planted_answers(text: str, category: str) -> tuple[str, ...]:
    """What a right reply holds one of: the value of a fact, the kind of a thing, a tool for a task; else nothing."""
    for subject in SUBJECTS:
        if subject.name == category:
            known = {subject.phrase.format(entity): answer for entity, answer in subject.facts}
            named = [phrase for phrase in known if re.search(rf"\b{re.escape(phrase)}\b", text)]
            return (known[max(named, key=len)],) if named else ()
    if category == "concept":
        return tuple(kind for thing, kind, _ in CONCEPTS if thing in text)[:1]
    return next((domain.tools for domain in (*ORDINARY, *BORDERLINE) if domain.name == category), ())
