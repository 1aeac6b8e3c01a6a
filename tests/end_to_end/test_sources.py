# SPDX-License-Identifier: Apache-2.0
"""Prompts from every kind of local source, with slices, through the command line (R-DAT-01 to R-DAT-05)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from .world import World, base_run

Writer = Callable[[Path, Sequence[str]], str]


def lines(folder: Path, texts: Sequence[str]) -> str:
    """One prompt a line."""
    (folder / "p.txt").write_text("\n".join(texts), encoding="utf-8")
    return "p.txt"


def json_list(folder: Path, texts: Sequence[str]) -> str:
    """A list of objects."""
    (folder / "p.json").write_text(json.dumps([{"question": text} for text in texts]))
    return "p.json"


def json_lines(folder: Path, texts: Sequence[str]) -> str:
    """Chats: the first user turn counts."""
    rows = [
        {"question": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]}
        for text in texts
    ]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "p.jsonl"


def comma_separated(folder: Path, texts: Sequence[str]) -> str:
    """With a heading, quotes and line ends inside."""
    with (folder / "p.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([["number", "question"], *([number, text] for number, text in enumerate(texts))])
    return "p.csv"


def parquet(folder: Path, texts: Sequence[str]) -> str:
    """A column store."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"question": list(texts)}), folder / "p.parquet")
    return "p.parquet"


def saved_folder(folder: Path, texts: Sequence[str]) -> str:
    """`save_to_disk` of a set with two splits."""
    import datasets

    data = datasets.Dataset.from_dict({"question": list(texts)})
    datasets.DatasetDict(train=data, test=data.select(range(3))).save_to_disk(str(folder / "saved"))
    return "saved"


@pytest.mark.parametrize("write", [lines, json_list, json_lines, comma_separated, parquet, saved_folder])
def test_source_with_a_slice_reaches_the_trials(write: Writer, world: World) -> None:
    """The slice's rows and no others are what the run reports; all sources give the same content hash."""
    texts = [f'Ask "{number}", please\tnow' for number in range(40)]
    name = write(world.folder, texts)
    column = [] if write is lines else ["--bad-prompts.column=question"]
    told = world.heretic(
        *base_run(
            f"--bad-prompts.dataset={name}", "--bad-prompts.split=train[10:50%]+train[30:32]", "--n-trials=2"
        ),
        *column,
        "--json",
    )
    assert told.code == 0, told.err
    record = told.document["data"]["bad"]
    assert record["rows"] == 12
    assert record["content_hash"] == REFERENCE.setdefault("hash", record["content_hash"])


REFERENCE: dict[str, str] = {}
"""Content hash of the first source; every other must have the same."""


@pytest.mark.parametrize(
    "encoded",
    [
        "caf\u00e9 \U0001f600 number {}".encode(),
        b"\xef\xbb\xbfwith a byte order mark {}",
        b"line ends of DOS {}\r",
    ],
    ids=["emoji", "bom", "dos"],
)
def test_real_world_text_files_are_read(encoded: bytes, world: World) -> None:
    """R-DAT: UTF-8 with anything in it."""
    world.write("p.txt", b"\n".join(encoded.replace(b"{}", str(row).encode()) for row in range(12)))
    told = world.heretic(
        *base_run("--bad-prompts.dataset=p.txt", "--bad-prompts.split=train", "--n-trials=2", "--json")
    )
    assert told.code == 0, told.err
    assert told.document["data"]["bad"]["rows"] == 12


def test_windows_text_is_refused_with_the_cure(world: World) -> None:
    """A file in Windows-1252 is no UTF-8; guessing would change what is measured."""
    world.write("p.txt", "na\u00efve caf\u00e9\n".encode("cp1252") * 12)
    told = world.heretic(*base_run("--bad-prompts.dataset=p.txt", "--bad-prompts.split=train"))
    assert told.code == 1 and "UTF-8" in told.err and "p.txt" in told.err
