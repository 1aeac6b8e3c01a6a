# SPDX-License-Identifier: Apache-2.0
"""Local and packaged sources: formats, encodings, rows, counts (R-DAT-02, R-DAT-03, reliability D01..D04)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from heretic.exceptions import ConfigurationError, DatasetConfigError, DatasetError
from heretic.prompts import (
    DatasetSpecification,
    Prompt,
    PromptSet,
    content_hash,
    load_prompts,
    load_rows,
    sources,
)


def load(path: Path, **fields: object) -> PromptSet:
    return load_prompts(DatasetSpecification(str(path), **fields))  # type: ignore[arg-type]  # fields of the tests


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["one", "two"]'),
        ("b.json", '[{"text": "one"}, {"text": "two", "more": 1}]'),
        ("c.json", '{"version": 1, "data": ["one", {"text": "two"}]}'),
        ("d.jsonl", '"one"\n\n{"text": "two"}'),
        ("e.jsonl", b'\xef\xbb\xbf"one"\r\n{"text": "two"}\r\n'),
        ("f.csv", "text,id\r\none,1\r\ntwo,2\r\n"),
        ("g.tsv", "id\ttext\n1\tone\n2\ttwo\n"),
        ("h.txt", "one\ntwo"),
        ("i.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"),
        ("j.prompts", "one\ntwo\n"),
    ],
)
def test_r_dat_03_accepted_forms(name: str, content: bytes | str, tmp_path: Path) -> None:
    assert load(written(tmp_path / name, content)).texts == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "offset"),
    [
        ("a.txt", "one\n".encode("utf-16"), 0),
        ("b.txt", "one\n".encode("utf-32"), 0),
        ("c.txt", "one\n".encode("utf-16-le"), 1),
        ("d.txt", b"one\ntw\0o\n", 6),
        ("e.txt", b"one\n\xed\xa0\x80\n", 4),
        ("f.txt", b"\xef\xbb\xbfcaf\xe9\n", 6),
        ("g.txt", b"\x89PNG\r\n\x1a\n", 0),
        ("h.json", b'["caf\xc3\xa9", "\\ud800"]', 11),
        ("i.jsonl", b'"one"\n"\\udc00"\n', 7),
        ("j.jsonl", b'"\\ud83d\\u0041"\n', 1),
        ("k.json", b'["\\u0000"]', 2),
        ("l.csv", b"text\n\xff\n", 5),
    ],
)
def test_d03_wrong_encodings_give_the_byte_offset(
    name: str, content: bytes, offset: int, tmp_path: Path
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DatasetError, match=rf"byte {offset}\b") as caught:
        load(path)
    assert str(path) in caught.value.message


def test_d03_surrogate_pairs_and_escaped_backslashes_are_text(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '"\\ud83d\\ude00"\n"a \\\\ud800 b"\n')
    assert load(path).texts == ("\U0001f600", "a \\ud800 b")


def test_unusual_line_separators_do_not_split_a_prompt(tmp_path: Path) -> None:
    path = written(tmp_path / "p.txt", "one\u2028still one\x0bone\ntwo\n")
    assert load(path).texts == ("one\u2028still one\x0bone", "two")


def test_r_dat_03_blank_rows_are_dropped_and_duplicates_reported(tmp_path: Path) -> None:
    loaded = load(written(tmp_path / "p.txt", "one\n\n  \t\nOne?\ntwo\none\n"))
    assert loaded.texts == ("one", "One?", "two", "one")
    assert (loaded.rows_read, loaded.blank_dropped, loaded.duplicates) == (6, 2, 2)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", ""), ("b.json", "[]"), ("c.txt", "\n \n"), ("d.csv", "text\n")]
)
def test_d01_empty_sources(name: str, content: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DatasetError, match=r"\b0 (bytes|rows)|2 blank") as caught:
        load_prompts(DatasetSpecification(str(path)), role="bad_prompts")
    assert caught.value.message.startswith("bad_prompts: ")
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '"one"\n{"text": 7}\n', "line 2"),
        ("b.jsonl", '"one"\n7\n', "line 2"),
        ("c.json", '[{"text": "one"}, {"text": null}]', "row 2"),
        ("d.jsonl", '"one"\n{"text": "two"', "line 2"),
        ("e.json", '["one",\n "two"', "line 2"),
        ("f.json", '[{"text": "one"}, {"id": 2}]', "row 2"),
        ("g.csv", "text,id\none,1\ntwo\n", "line 3"),
        ("h.csv", 'text\n"one\n', "line 2"),
        ("i.json", '{"text": "one"}', "not a list"),
        ("j.json", "[" * 100_000, "nests"),
        ("k.parquet", "not parquet", "Parquet"),
    ],
)
def test_d04_bad_rows_name_file_and_line(name: str, content: str, place: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DatasetError, match=place) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_d04_missing_column_and_category_list_the_real_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "Goal,Category\none,a\n")
    for fields in ({"column": "text"}, {"column": "Goal", "category": "kind"}):
        with pytest.raises(DatasetConfigError, match="Goal, Category"):
            load(path, **fields)
    assert load(path, column="Goal", category="Category").prompts == (Prompt("one", "a"),)


def test_prefix_suffix_system_prompt_and_category(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", '{"text": "one", "kind": 3}\n{"text": "two", "kind": null}\n')
    loaded = load(path, prefix="> ", suffix=" !", system_prompt="Be brief.", category="kind")
    assert loaded.prompts == (Prompt("> one !", "3", "Be brief."), Prompt("> two !", None, "Be brief."))
    assert list(loaded.by_category()) == ["3", None]
    assert loaded.content_hash != load(path).content_hash


@pytest.mark.parametrize(
    "chat",
    [
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "one"},
            {"role": "user", "content": "b"},
        ],
        [{"from": "human", "value": "one"}, {"from": "gpt", "value": "b"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one"}]}],
        {"role": ["system", "user"], "content": ["s", "one"]},
    ],
)
def test_r_dat_chat_columns_give_the_first_user_turn(chat: object, tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", json.dumps({"messages": chat}))
    assert load(path, column="messages").texts == ("one",)


def test_r_mod_42_content_none_is_blank_and_a_chat_without_user_is_an_error(tmp_path: Path) -> None:
    rows = [{"m": [{"role": "user", "content": None}]}, {"m": [{"role": "user", "content": "one"}]}]
    path = written(tmp_path / "p.json", json.dumps(rows))
    assert load(path, column="m").blank_dropped == 1
    path = written(tmp_path / "q.json", json.dumps([{"m": [{"role": "assistant", "content": "x"}]}]))
    with pytest.raises(DatasetError, match="row 1: .*no user turn"):
        load(path, column="m")


def test_chats_survive_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"m": [[{"role": "user", "content": "one"}]], "n": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    assert load(tmp_path / "p.parquet", column="m").texts == ("one",)
    with pytest.raises(DatasetError, match="row 1: .*int"):
        load(tmp_path / "p.parquet", column="n")


def test_sample_is_seeded_ordered_and_taken_from_rows_with_text(tmp_path: Path) -> None:
    path = written(tmp_path / "p.txt", "".join(f"prompt {n:03d}\n\n" for n in range(100)))
    first, again = load(path, sample=20), load(path, sample=20)
    other = load(path, sample=20, sample_seed=1)
    assert first == again and len(first) == 20 and first.texts == tuple(sorted(first.texts))
    assert other.texts != first.texts
    assert max(first.texts) > "prompt 050"  # not merely the first ones
    with pytest.raises(DatasetError, match=r"101 was asked for, but only 100"):
        load(path, sample=101)
    with pytest.raises(ConfigurationError):
        DatasetSpecification("x", sample=0)


def test_r_cli_46_minimum_gives_found_and_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "p.txt", "one\ntwo\n")
    with pytest.raises(DatasetError, match=r"2 prompts found, 3 needed"):
        load_prompts(DatasetSpecification(str(path)), minimum=3)
    assert len(load_prompts(DatasetSpecification(str(path)), minimum=2)) == 2


def test_e07_content_hash_sees_every_byte_and_not_the_source(tmp_path: Path) -> None:
    text = load(written(tmp_path / "p.txt", "one\ntwo\n"))
    same = load(written(tmp_path / "q.json", '["one", "two"]'))
    assert text.content_hash == same.content_hash
    hashes = {content_hash([Prompt(*row)]) for row in (("a",), ("a ",), ("A",), ("a", "c"), ("a", None, "c"))}
    assert len(hashes) == 5
    assert content_hash([Prompt("a"), Prompt("b")]) != content_hash([Prompt("b"), Prompt("a")])


def test_r_dat_10_record_is_plain_json(tmp_path: Path) -> None:
    loaded = load(written(tmp_path / "p.txt", "one\n\ntwo\n"))
    reduced = loaded.keeping(loaded.prompts[:1])
    assert json.loads(json.dumps(reduced.record()))["overlap_dropped"] == 1
    assert reduced.content_hash == content_hash([Prompt("one")]) != loaded.content_hash


def test_r_dat_02_existing_path_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "c4").mkdir(parents=True)
    written(tmp_path / "owner" / "c4" / "train.txt", "mine\n")
    assert load_prompts(DatasetSpecification("owner/c4")).texts == ("mine",)


@pytest.mark.parametrize(
    "name",
    [
        "./x/y",
        "/no/such/file",
        "prompts.txt",
        "a/b/c",
        "~/nothing-here",
        "~nobody-of-that-name/x",
        "x\\y.csv",
    ],
)
def test_d09_a_missing_path_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(DatasetError, match="no file or folder|cannot be looked up"):
        load_prompts(DatasetSpecification(name))


def test_folder_forms(tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", '"a"\n')
    written(tmp_path / "test.jsonl", "{ broken")
    written(tmp_path / "run.py", "raise SystemExit('scripts never run')")
    assert load(tmp_path).texts == ("a",)  # the broken split is not touched
    with pytest.raises(DatasetError, match=r"test\.jsonl"):
        load(tmp_path, split="test")
    assert load(tmp_path, split="train", data_files=("tr*.jsonl",)).texts == ("a",)
    with pytest.raises(DatasetError, match="matches no file"):
        load(tmp_path, data_files=("*.csv",))


def test_folder_without_split_names_is_train(tmp_path: Path) -> None:
    written(tmp_path / "b.txt", "b\n")
    written(tmp_path / "a.csv", "text\na\n")
    assert load(tmp_path).texts == ("a", "b")
    assert load(tmp_path, split="b").texts == ("b",)


def test_folder_configs_are_subfolders(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    written(tmp_path / "en" / "train.txt", "hello\n")
    assert load(tmp_path, config="en").texts == ("hello",)
    with pytest.raises(DatasetConfigError, match="It has: en"):
        load(tmp_path, config="de")
    with pytest.raises(DatasetError, match="no data files"):
        load(tmp_path)


def test_copied_hub_repository_uses_the_configs_of_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "copy"
    folder.mkdir()
    entries = [
        f"- config_name: {name}\n  data_files: {file}.jsonl" for name, file in (("x", "one"), ("y", "two"))
    ]
    card = "\n".join(["---", "configs:", *entries, "---", ""])
    written(folder / "README.md", card)
    written(folder / "one.jsonl", '{"text": "1"}\n')
    written(folder / "two.jsonl", '{"text": "2"}\n')
    assert load(folder, config="y").texts == ("2",)
    for config in (None, "z"):
        with pytest.raises(DatasetConfigError, match="x, y"):
            load(folder, config=config)


def test_class_numbers_become_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["law", "art"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "kind": [1, 0]}, features=features)
    data.with_format("numpy").save_to_disk(str(tmp_path / "s"))
    assert [prompt.category for prompt in load(tmp_path / "s", category="kind").prompts] == ["art", "law"]


def test_damaged_saved_set_is_a_dataset_error(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "s"))
    for path in (tmp_path / "s").glob("*.arrow"):
        path.write_bytes(b"\0" * 10)
    with pytest.raises(DatasetError, match="cannot be read"):
        load(tmp_path / "s")


def test_packaged_sets_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    written(
        tmp_path / "plain" / "train.jsonl", '{"text": "a", "category": "k"}\n{"text": "b", "category": "k"}\n'
    )
    monkeypatch.setattr(sources, "packaged_root", lambda: tmp_path)
    loaded = load_prompts(DatasetSpecification("heretic:plain", split="train[1:]", category="category"))
    assert loaded.prompts == (Prompt("b", "k"),)
    with pytest.raises(DatasetConfigError, match="It has: train"):
        load_prompts(DatasetSpecification("heretic:plain", split="test"))
    for name in ("nothing", "../plain", "plain/../plain", ""):
        with pytest.raises(DatasetError, match="There are: plain"):
            load_prompts(DatasetSpecification(f"heretic:{name}"))


def test_raw_rows_keep_their_types(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b"], "answer": 1}
    path = written(tmp_path / "mmlu.jsonl", json.dumps(row) + "\n")
    loaded = load_rows(DatasetSpecification(str(path)), ("choices", "answer"), role="mmlu_source")
    assert [dict(found.values) for found in loaded.rows] == [{"choices": ["a", "b"], "answer": 1}]
    with pytest.raises(DatasetConfigError, match="mmlu_source: .*question, choices, answer"):
        load_rows(DatasetSpecification(str(path)), ("subject",), role="mmlu_source")


def test_d02_long_lines_and_many_rows(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert load(written(tmp_path / "p.csv", f'text\n"{long}"\n')).texts == (long,)
    many = load(
        written(tmp_path / "p.txt", "".join(f"row {n}\n" for n in range(100_000))), split="train[-2:]"
    )
    assert many.texts == ("row 99998", "row 99999")


def mutated(raw: bytes, random_source: random.Random) -> bytes:
    """`raw` with one to six bytes changed, cut out or put in."""
    content = bytearray(raw)
    for _ in range(random_source.randint(1, 6)):
        place = random_source.randrange(len(content) + 1)
        end = place + random_source.randint(0, 4)
        content[place:end] = random_source.choices(
            b'{}[]",:\\u0d8\n\r\xff\x00 1e9-', k=random_source.randint(0, 4)
        )
    return bytes(content)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt", "parquet"])
def test_rel_04_damaged_files_give_only_our_errors(kind: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"p.{kind}"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"] * 9}), tmp_path / "p.parquet")
    contents = {
        "json": b'["one", {"text": "\\ud83d\\ude00"}]',
        "jsonl": b'"one"\n{"text": "two", "category": 3}\n',
        "csv": b'text,category\n"one, two",a\n',
        "txt": b"one\r\ntwo\xc3\xa9\n",
        "parquet": (tmp_path / "p.parquet").read_bytes(),
    }
    assert len(load(written(path, contents[kind]))) > 0
    random_source, refused = random.Random(0), 0
    for _ in range(200):
        try:
            load(written(path, mutated(contents[kind], random_source)))
        except DatasetError:
            refused += 1
    assert refused > 20  # the mutations do harm; anything but our own error fails the test by itself


def test_importing_the_package_loads_no_library() -> None:
    libraries = ("datasets", "huggingface_hub", "torch", "pyarrow", "httpx2")
    code = f"import sys, heretic.prompts; print([name for name in {libraries} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
