# SPDX-License-Identifier: Apache-2.0
"""One file of a known format to one table: JSON, JSONL, CSV, Parquet, plain text (R-DAT-03)."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from heretic.exceptions import DatasetError
from heretic.prompts.decoding import check_json_escapes, decode_utf8
from heretic.prompts.tables import Row, Table, table_of_rows

PLAIN_COLUMN = "text"
"""The column that a bare string is said to be in."""


class ReadableFile(Protocol):
    """What a reader needs of a path or a packaged resource."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    def read_bytes(self) -> bytes:
        """The whole content."""
        ...


def read_table(file: ReadableFile, label: str) -> Table:
    """The rows of one file, by its ending; an unknown ending is read as plain text.

    Raises `DatasetError` naming the file, with line or byte offset, for an unreadable, empty or bad file.
    """
    suffix = "." + file.name.rpartition(".")[2].lower()
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{label} cannot be read: {error.strerror or error}.", hint="Check the path and its permissions."
        ) from error
    if not raw:
        raise DatasetError(f"{label} is empty (0 bytes).", hint="Give a file with at least one prompt.")
    return READERS.get(suffix, read_text)(raw, label)


def read_text(raw: bytes, label: str) -> Table:
    """One prompt per line."""
    lines = decode_utf8(raw, label).split("\n")
    # The line end of the last line does not start another one.
    if lines and not lines[-1]:
        lines.pop()
    return table_of_rows(label, [Row(f"line {n}", {PLAIN_COLUMN: line}) for n, line in enumerate(lines, 1)])


def read_jsonl(raw: bytes, label: str) -> Table:
    """One JSON string or object per line; empty lines are skipped."""
    text = decode_utf8(raw, label)
    check_json_escapes(raw, label)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_json_row(_parse_json(line, label, first_line=number), f"line {number}", label))
    return table_of_rows(label, rows)


def read_json(raw: bytes, label: str) -> Table:
    """A list of strings or objects, or an object whose `data` is such a list."""
    text = decode_utf8(raw, label)
    check_json_escapes(raw, label)
    document = _parse_json(text, label)
    if isinstance(document, dict) and "data" in document:
        document = document["data"]
    if not isinstance(document, list):
        raise DatasetError(
            f"{label} holds a JSON {type(document).__name__}, not a list.",
            hint='Give a list of strings or objects, or {"data": [...]}; for one per line use .jsonl.',
        )
    return table_of_rows(label, [_json_row(item, f"row {n}", label) for n, item in enumerate(document, 1)])


def _parse_json(text: str, label: str, first_line: int = 1) -> object:
    try:
        document: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DatasetError(
            f"{label} is not valid JSON: line {line}, column {error.colno}: {error.msg}."
        ) from error
    except RecursionError as error:
        raise DatasetError(f"{label} nests JSON too deeply (from line {first_line}).") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise DatasetError(f"{label}: a JSON number is too long (from line {first_line}).") from error
    return document


def _json_row(item: object, where: str, label: str) -> Row:
    if isinstance(item, str):
        return Row(where, {PLAIN_COLUMN: item})
    if isinstance(item, dict):
        return Row(where, item)
    raise DatasetError(
        f"{label}, {where}: a {type(item).__name__} where a string or an object belongs.",
        hint="Each row is a string, or an object with the text in the column named by `column`.",
    )


def read_csv(raw: bytes, label: str, delimiter: str = ",") -> Table:
    """A table with a header line; quoted fields may hold line breaks."""
    stream = io.StringIO(decode_utf8(raw, label), newline="")
    # The limit of 128 KiB for one field is a process-wide variable: raised here, put back afterwards.
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = []
    try:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise DatasetError(
                    f"{label}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}.",
                    hint="Put double quotes around fields that hold the delimiter.",
                )
            rows.append(Row(f"line {reader.line_num}", dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise DatasetError(f"{label} is not valid CSV: line {reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(limit)
    return table_of_rows(label, rows)


def read_tsv(raw: bytes, label: str) -> Table:
    """As `read_csv`, with tabs."""
    return read_csv(raw, label, delimiter="\t")


def read_parquet(raw: bytes, label: str) -> Table:
    """An Arrow table; only the rows and columns asked for become Python values."""
    import pyarrow
    import pyarrow.parquet

    # Damage also shows as text that does not decode, in column names as well as in values (a ValueError).
    damage = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    try:
        source = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
        names = tuple(source.schema_arrow.names)
        count = int(source.metadata.num_rows)
    except damage as error:
        raise DatasetError(f"{label} is not a readable Parquet file: {str(error).rstrip('.')}.") from error

    def fetch(start: int, stop: int, wanted: Sequence[str]) -> list[Row]:
        try:
            found = source.read(columns=list(wanted)).slice(start, stop - start).to_pylist()
        except damage as error:
            raise DatasetError(f"{label} is damaged: {str(error).rstrip('.')}.") from error
        return [Row(f"row {start + n}", values) for n, values in enumerate(found, 1)]

    return Table(label, names, count, fetch)


READERS: Mapping[str, Callable[[bytes, str], Table]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
