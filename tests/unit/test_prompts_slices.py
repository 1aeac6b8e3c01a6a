# SPDX-License-Identifier: Apache-2.0
"""Split expressions mean the same rows for every kind of source (R-DAT-01)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from heretic.exceptions import DatasetConfigError, DatasetError
from heretic.prompts import DatasetSpecification, load_prompts, parse_split

TEXTS = [f"prompt {number}" for number in range(20)]


def write_text(folder: Path) -> Path:
    (folder / "p.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return folder / "p.txt"


def write_json(folder: Path) -> Path:
    (folder / "p.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    return folder / "p.json"


def write_jsonl(folder: Path) -> Path:
    (folder / "p.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    return folder / "p.jsonl"


def write_csv(folder: Path) -> Path:
    (folder / "p.csv").write_text("id,text\n" + "".join(f"{n},{t}\n" for n, t in enumerate(TEXTS)), "utf-8")
    return folder / "p.csv"


def write_parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "p.parquet")
    return folder / "p.parquet"


def write_folder(folder: Path) -> Path:
    """Two shards of `train` beside a `test` file."""
    for shard, texts in enumerate((TEXTS[:7], TEXTS[7:])):
        path = folder / f"train-{shard:05d}-of-00002.jsonl"
        path.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    (folder / "test.txt").write_text("other\n", encoding="utf-8")
    return folder


def write_saved(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def write_saved_dict(folder: Path) -> Path:
    import datasets

    splits = {
        "train": datasets.Dataset.from_dict({"text": TEXTS}),
        "test": datasets.Dataset.from_dict({"text": ["x"]}),
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return folder / "saved"


WRITERS = [
    write_text,
    write_json,
    write_jsonl,
    write_csv,
    write_parquet,
    write_folder,
    write_saved,
    write_saved_dict,
]
SLICES = [
    ("train", TEXTS),
    ("train[:5]", TEXTS[:5]),
    ("train[15:]", TEXTS[15:]),
    ("train[5:9]", TEXTS[5:9]),
    ("train[-3:]", TEXTS[-3:]),
    ("train[:-18]", TEXTS[:-18]),
    ("train[10%:25%]", TEXTS[2:5]),
    ("train[-10%:]", TEXTS[18:]),
    ("train[6:8]+train[:2]", TEXTS[6:8] + TEXTS[:2]),
    ("train[ : 5 ] + train[19:]", [*TEXTS[:5], TEXTS[19]]),
]


@pytest.mark.parametrize("write", WRITERS)
def test_r_dat_01_every_source_reads_every_slice(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    for split, expected in SLICES:
        loaded = load_prompts(DatasetSpecification(str(path), split=split))
        assert list(loaded.texts) == expected, split
        assert loaded.rows_read == len(expected)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("split", "numbers"), [("train[:21]", (21, 20)), ("train[25:30]", (30, 20)), ("train[-22:]", (22, 20))]
)
def test_r_dat_06_fewer_rows_than_asked_gives_both_numbers(
    write: Callable[[Path], Path], split: str, numbers: tuple[int, int], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError) as caught:
        load_prompts(DatasetSpecification(str(write(tmp_path)), split=split))
    assert (caught.value.data["rows_needed"], caught.value.data["rows_found"]) == numbers
    assert all(str(number) in caught.value.message for number in numbers)


@pytest.mark.parametrize("write", [write_text, write_folder, write_saved_dict])
def test_r_dat_02_missing_split_lists_those_present(write: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetConfigError, match="train") as caught:
        load_prompts(DatasetSpecification(str(write(tmp_path)), split="harmful[:3]"))
    assert "harmful" in caught.value.message
    assert "train" in caught.value.data["known"]  # type: ignore[operator]  # the value is typed as object


@pytest.mark.parametrize(
    "split", ["", "train[", "train[1]", "train[a:b]", "train[:1.5]", "train[0:200%]", "a++b"]
)
def test_malformed_split_is_quoted(split: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parse_split(split)
    assert repr(split) in caught.value.message


def test_empty_slice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="empty"):
        load_prompts(DatasetSpecification(str(write_text(tmp_path)), split="train[5:5]"))


def test_only_absolute_slices_can_be_streamed() -> None:
    def bounds(text: str) -> tuple[int, int] | None:
        return parse_split(text)[0].absolute()

    assert bounds("train[400:600]") == (400, 600)
    assert bounds("train[:200]") == (0, 200)
    assert [bounds(text) for text in ("train", "train[4:]", "train[:5%]", "train[-4:9]", "train[:-4]")] == [
        None
    ] * 5
