# SPDX-License-Identifier: Apache-2.0
"""What every source turns into: tables of rows, one for each split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heretic.exceptions import DatasetConfigError
from heretic.prompts.slices import SplitPart

_SHOWN_NAMES = 100


@dataclass(frozen=True)
class Row:
    """One row: its values by column, and its place in words ("line 3"), for messages."""

    where: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """One split: its name in words, its columns, its length, and a way to read rows start..stop of some
    columns.

    Reading is deferred, so that a slice of a large Arrow table costs only its own rows.
    """

    label: str
    columns: tuple[str, ...]
    count: int
    fetch: Callable[[int, int, Sequence[str]], list[Row]]


@dataclass(frozen=True)
class LoadedRows:
    """The rows of all parts of a split expression, with the source in words."""

    rows: list[Row]
    source: str
    revision: str | None = None
    streamed: bool = False


def table_of_rows(label: str, rows: Sequence[Row]) -> Table:
    """A table over rows that are in memory already; its columns are all the names that occur."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row.values))

    def fetch(start: int, stop: int, wanted: Sequence[str]) -> list[Row]:
        return [
            Row(row.where, {name: row.values[name] for name in wanted if name in row.values})
            for row in rows[start:stop]
        ]

    return Table(label, columns, len(rows), fetch)


def concatenate(label: str, tables: Sequence[Table]) -> Table:
    """The tables one after the other, under one name."""
    if len(tables) == 1:
        return tables[0]

    def fetch(start: int, stop: int, wanted: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for table in tables:
            low, high = max(start, 0), min(stop, table.count)
            if low < high:
                rows += [
                    Row(f"{row.where} of {table.label}", row.values)
                    for row in table.fetch(low, high, [name for name in wanted if name in table.columns])
                ]
            start, stop = start - table.count, stop - table.count
        return rows

    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))
    return Table(label, columns, sum(table.count for table in tables), fetch)


def wanted_columns(column: str, category: str | None) -> tuple[str, ...]:
    """The columns a specification reads, each once."""
    return (column,) if category is None or category == column else (column, category)


def check_columns(label: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `DatasetConfigError` listing the real columns when one of `wanted` is not among them (D04)."""
    for name in wanted:
        if name not in columns:
            raise missing_name("column", name, columns, label)


def missing_name(kind: str, name: str | None, known: Sequence[str], label: str) -> DatasetConfigError:
    """The error for a config, split or column that a source lacks; it lists those it has (R-CLI-45)."""
    shown = ", ".join(known[:_SHOWN_NAMES]) or "none"
    more = f" and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else ""
    problem = f"{label} has no {kind} {name!r}." if name is not None else f"{label} needs a {kind}."
    return DatasetConfigError(
        f"{problem} It has: {shown}{more}.",
        hint=f"Set `{kind}` to one of these names.",
        data={"known": list(known)},
    )


Splits = Mapping[str, Callable[[], Table]]
"""The splits of a source by name; a split is opened only when it is asked for."""


def select_rows(splits: Splits, parts: Sequence[SplitPart], wanted: Sequence[str], source: str) -> list[Row]:
    """The rows of every part, in order.

    Raises `DatasetConfigError` for a missing split or column, `DatasetError` for a slice that does not fit.
    """
    rows: list[Row] = []
    opened: dict[str, Table] = {}
    for part in parts:
        if part.name not in splits:
            raise missing_name("split", part.name, tuple(splits), source)
        if part.name not in opened:
            opened[part.name] = splits[part.name]()
        table = opened[part.name]
        start, stop = part.rows(table.count, table.label)
        check_columns(table.label, table.columns, wanted)
        rows += table.fetch(start, stop, wanted)
    return rows
