# SPDX-License-Identifier: Apache-2.0
"""Rows of prompts: read, checked, split, and written as one file per class and split (R-XPT-02, R-XPT-03)."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from heretic.exceptions import DatasetError
from heretic.prompts.readers import ReadableFile, read_table
from heretic.prompts.tables import Row as TableRow

SEED: Final = 42
CLASSES: Final = ("good", "bad")
SPLITS: Final = ("train", "validation", "test")
TRAIN_TENTHS: Final = 7
VALIDATION_SEVENTHS: Final = 2
"""Of the 7 tenths that are not held out, 2 sevenths score the trials: 50 + 20 + 30 of 100 pairs."""
REQUIRED: Final = ("id", "pair_id", "class", "prompt")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt. kind: a group of prompts, for code its language. answer: texts of which a right reply holds one."""

    id: str
    pair_id: str
    label: str
    split: str
    prompt: str
    kind: str = ""
    answer: tuple[str, ...] = ()

    def line(self) -> str:
        """The row as it stands in a file."""
        fields: dict[str, object] = {"id": self.id, "pair_id": self.pair_id, "class": self.label}
        fields |= {"split": self.split, "prompt": self.prompt}
        fields |= {"kind": self.kind} if self.kind else {}
        fields |= {"answer": list(self.answer)} if self.answer else {}
        return json.dumps(fields, ensure_ascii=False) + "\n"


def read_rows(file: ReadableFile, label: str) -> list[Row]:
    """The rows of a JSONL file. Raises `DatasetError` naming file and line of what cannot be used."""
    return [_row(dict(entry.values), f"{label}, {entry.where}") for entry in _entries(file, label)]


def _entries(file: ReadableFile, label: str) -> list[TableRow]:
    table = read_table(file, label)
    return table.fetch(0, table.count, table.columns)


def _row(fields: Mapping[str, object], where: str) -> Row:
    for name in REQUIRED:
        if not isinstance(fields.get(name), str) or not str(fields[name]).strip():
            raise DatasetError(
                f"{where}: {name} is {fields.get(name)!r}.",
                hint="A row has id, pair_id, class, split and prompt, all of them texts.",
            )
    split, answer = fields.get("split", ""), fields.get("answer", [])
    if fields["class"] not in CLASSES or split not in ("", *SPLITS):
        raise DatasetError(
            f"{where}: class is {fields['class']!r} and split is {split!r}.",
            hint=f"Classes: {', '.join(CLASSES)}; splits: {', '.join(SPLITS)}, or none.",
        )
    texts = [answer] if isinstance(answer, str) else answer
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DatasetError(f"{where}: answer is {answer!r}.", hint="Give a text, or a list of texts.")
    return Row(
        id=str(fields["id"]),
        pair_id=str(fields["pair_id"]),
        label=str(fields["class"]),
        split=str(split),
        prompt=str(fields["prompt"]),
        kind=str(fields.get("kind") or ""),
        answer=tuple(texts),
    )


def rows_of_lists(good: Sequence[str], bad: Sequence[str]) -> list[Row]:
    """Rows of a user's two lists. Lists of one length are pairs, place by place, and stay together in the split."""
    paired = len(good) == len(bad)
    return [
        Row(
            f"u{place:04d}-{label}",
            f"u{place:04d}" if paired else f"u{place:04d}-{label}",
            label,
            "",
            prompt.strip(),
        )
        for label, prompts in (("good", good), ("bad", bad))
        for place, prompt in enumerate(prompts, 1)
    ]


def read_list(file: Path) -> list[str]:
    """A flat JSON list of strings (R-XPT-02). Raises `DatasetError`."""
    found = [row.values.get("text") for row in _entries(file, str(file))]
    texts = [text for text in found if isinstance(text, str) and text.strip()]
    if len(texts) != len(found):
        raise DatasetError(
            f"{file} holds {len(found) - len(texts)} entries that are no text.",
            hint='Give a flat list: ["first prompt", "second prompt"].',
        )
    return texts


def split_of(pairs: Iterable[str], seed: int = SEED) -> dict[str, str]:
    """Pair -> `train` or `test`, 70 to 30: the first seven tenths of the sorted and then shuffled pairs."""
    order = sorted(set(pairs))
    random.Random(seed).shuffle(order)
    train = len(order) * TRAIN_TENTHS // 10
    return {pair: "train" if place < train else "test" for place, pair in enumerate(order)}


def with_splits(rows: Sequence[Row], seed: int = SEED) -> list[Row]:
    """The rows with `validation` cut from `train`, pair by pair, in equal shares of each kind and of each class.

    Rows without a split get one first. Rows that have a validation split are left as they are.
    """
    if any(not row.split for row in rows):
        given = split_of((row.pair_id for row in rows), seed)
        rows = [replace(row, split=given[row.pair_id]) for row in rows]
    if any(row.split == "validation" for row in rows):
        return list(rows)
    strata: dict[tuple[str, ...], set[str]] = {}
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(row.pair_id, []).append(row)
    for pair, own in members.items():
        if own[0].split == "train":
            key = (*sorted({row.label for row in own}), *sorted({row.kind for row in own}))
            strata.setdefault(key, set()).add(pair)
    chosen: set[str] = set()
    generator = random.Random(seed)
    for key in sorted(strata):
        order = sorted(strata[key])
        generator.shuffle(order)
        chosen |= set(order[: round(len(order) * VALIDATION_SEVENTHS / TRAIN_TENTHS)])
    return [replace(row, split="validation") if row.pair_id in chosen else row for row in rows]


def check(rows: Sequence[Row], label: str) -> None:
    """Raise `DatasetError` with every finding: ids and prompts given twice, pairs in two splits, a class missing."""
    findings = [
        f"the id {name!r} is given twice" for name, n in Counter(row.id for row in rows).items() if n > 1
    ]
    same = Counter(" ".join(row.prompt.casefold().split()) for row in rows)
    findings += [f"the prompt {text[:60]!r} is given twice" for text, n in same.items() if n > 1]
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.pair_id, set()).add(row.split)
    findings += [f"the pair {pair!r} lies in two splits" for pair, found in splits.items() if len(found) > 1]
    counts = Counter((row.label, row.split) for row in rows)
    findings += [
        f"there is no {name} prompt in the {split} split"
        for name in CLASSES
        for split in SPLITS
        if not counts[name, split]
    ]
    if findings:
        raise DatasetError(
            f"{label}: {findings[0]}." + (f" {len(findings) - 1} more." if findings[1:] else ""),
            details=tuple(findings[1:]),
            hint="Correct the rows; a pair stays in one split, and each class is in all of them.",
        )


def file_name(label: str, split: str) -> str:
    """Name of the file of one class and split, as the packs name it."""
    return f"{label}-{split}.jsonl"


def files_of(rows: Sequence[Row]) -> dict[str, str]:
    """Name -> content of the file of each class and split, in the order of the rows."""
    return {
        file_name(label, split): "".join(
            row.line() for row in rows if (row.label, row.split) == (label, split)
        )
        for label in CLASSES
        for split in SPLITS
    }


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows as they are written."""
    return hashlib.sha256("".join(row.line() for row in rows).encode("utf-8")).hexdigest()


def counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Class -> split -> number of prompts."""
    found = Counter((row.label, row.split) for row in rows)
    return {label: {split: found[label, split] for split in SPLITS} for label in CLASSES}
