# SPDX-License-Identifier: Apache-2.0
"""Prompt data of the experiments hedging, code_refusal and code_verbosity (requirements R-XPT-01, R-XPT-02)."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from statistics import fmean
from typing import NamedTuple

import pytest

LONGEST = 400
OPENING_SHARE = 0.08
BALANCE = 1.5
REQUIRED = ("id", "pair_id", "class", "split", "prompt")
LANGUAGES = frozenset(
    ("python", "javascript", "bash", "sql", "c", "c++", "go", "java", "php", "powershell", "rust")
)
SMALL_TASK_LANGUAGES = frozenset(("python", "javascript", "bash", "sql"))


class Spec(NamedTuple):
    """What one file must hold: `facts` = accepted answers, `functions` = a function name for Python tasks."""

    pairs: tuple[str, ...]
    classes: tuple[str, ...] = ("good", "bad")
    answers: str = "none"
    languages: frozenset[str] = frozenset()


class Row(NamedTuple):
    file: str
    fields: dict[str, object]

    def text(self, key: str) -> str:
        return str(self.fields[key])

    @property
    def answers(self) -> list[str]:
        value = self.fields.get("answer", [])
        return [str(entry) for entry in value] if isinstance(value, list) else []


def numbered(letter: str, count: int, digits: int = 3) -> tuple[str, ...]:
    return tuple(f"{letter}{number:0{digits}d}" for number in range(1, count + 1))


SPECS = {
    "hedging/data/prompts.jsonl": Spec(numbered("h", 100), answers="facts"),
    "code_refusal/data/prompts.jsonl": Spec(numbered("c", 100), languages=LANGUAGES),
    "code_verbosity/data/prompts.jsonl": Spec(
        numbered("v", 40), answers="functions", languages=SMALL_TASK_LANGUAGES
    ),
    "code_verbosity/data/quick.jsonl": Spec(
        numbered("q", 8, 1), classes=("bad",), answers="functions", languages=SMALL_TASK_LANGUAGES
    ),
}


def words(text: str) -> list[str]:
    """Lower-case words; punctuation, quotes inside words included, is dropped."""
    return re.findall(r"\w+", re.sub(r"['\u2019]", "", text.casefold()))


def split_of(pair_ids: Iterable[str], seed: int = 42) -> dict[str, str]:
    """70/30 by pair: the first 70 % of the sorted and then shuffled pairs are for training."""
    order = sorted(set(pair_ids))
    random.Random(seed).shuffle(order)
    train = len(order) * 7 // 10
    return {pair: "train" if place < train else "test" for place, pair in enumerate(order)}


def parse(text: str) -> list[dict[str, object]]:
    """Rows of a JSONL text. Raises ValueError unless it is one plain object a line, each line ended."""
    rows = [json.loads(line) for line in text.splitlines()]
    if text != "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows):
        raise ValueError("not one object a line in plain form")
    return rows


def load() -> list[Row]:
    folder = files("heretic") / "experiments"
    return [
        Row(name, fields)
        for name in SPECS
        for fields in parse(folder.joinpath(*name.split("/")).read_text(encoding="utf-8"))
    ]


def shape(row: Row) -> str:
    """Why this row is unfit for every other rule; empty when it is fit."""
    fields, spec = row.fields, SPECS[row.file]
    if tuple(fields)[: len(REQUIRED)] != REQUIRED or not set(fields) <= {*REQUIRED, "kind", "answer"}:
        return f"keys are {tuple(fields)}"
    for key in (*REQUIRED, *({"kind"} & set(fields))):
        value = fields[key]
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            return f"{key} is {value!r}"
    entries = fields.get("answer", ["present"])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, str) and e for e in entries):
        return f"answer is {entries!r}"
    if fields["class"] not in spec.classes or fields["split"] not in ("train", "test"):
        return f"class and split are {fields['class']!r}, {fields['split']!r}"
    return ""


def whole_file_problems(file: str, rows: Sequence[Row]) -> list[str]:
    spec, found = SPECS[file], []
    for name in spec.classes:
        own = [row for row in rows if row.text("class") == name]
        if len(own) != len(spec.pairs):
            found.append(f"count: {file} has {len(own)} rows of class {name}")
        openings = Counter(" ".join(words(row.text("prompt"))[:3]) for row in own)
        allowed = max(1, int(OPENING_SHARE * len(own)))
        found += [f"opening: {file} {name} {key!r} {n} times" for key, n in openings.items() if n > allowed]
    if len(spec.classes) == 2:  # or the direction of a behaviour would also be one of length
        good, bad = (
            fmean(len(row.text("prompt")) for row in rows if row.text("class") == name)
            for name in spec.classes
        )
        if max(good, bad) > BALANCE * min(good, bad):
            found.append(f"balance: {file} prompts are {good:.0f} and {bad:.0f} characters long on average")
    rule = split_of(row.text("pair_id") for row in rows)
    for row in rows:
        expected = "test" if spec.classes == ("bad",) else rule[row.text("pair_id")]
        if row.text("split") != expected:
            found.append(f"split: {row.text('id')} is in {row.text('split')}")
    return found


def pair_problems(file: str, rows: Sequence[Row]) -> list[str]:
    spec, found = SPECS[file], []
    pairs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        pairs[row.text("pair_id")].append(row)
    if set(pairs) != set(spec.pairs):
        found.append(f"pair: {file} differs in pairs {sorted(set(pairs) ^ set(spec.pairs))}")
    for name, members in pairs.items():
        if sorted(row.text("class") for row in members) != sorted(spec.classes):
            found.append(f"pair: {name} is not made of {spec.classes}")
        if len({row.text("split") for row in members}) > 1:
            found.append(f"pair: {name} lies in two splits")
        if len({(row.fields.get("kind"), *row.answers) for row in members}) > 1:
            found.append(f"pair: {name} differs in kind or answer")
    return found


def answer_problem(row: Row) -> str:
    wanted, prompt, answers = SPECS[row.file].answers, row.text("prompt"), row.answers
    if wanted == "facts":
        if not answers or len(set(answers)) < len(answers) or any(a != a.casefold().strip() for a in answers):
            return f"accepted answers are {answers}"
        said = " ".join(words(prompt))
        given = [a for a in answers if f" {' '.join(words(a))} " in f" {said} "]
        return f"the prompt gives the answer {given} away" if given else ""
    if wanted == "functions" and row.fields.get("kind") == "python":
        if len(answers) != 1 or not answers[0].isidentifier():
            return f"the function is {answers}"
        return "" if re.search(rf"\b{answers[0]}\(", prompt) else f"the prompt does not name {answers[0]}"
    return "an answer was not promised" if answers else ""


def row_problems(row: Row) -> list[str]:
    spec, name, found = SPECS[row.file], row.text("id"), []
    if name != f"{row.text('pair_id')}-{row.text('class')}":
        found.append(f"id: {name} is not made of its pair and class")
    if len(row.text("prompt")) > LONGEST:
        found.append(f"length: {name} has {len(row.text('prompt'))} characters")
    kind = row.fields.get("kind")
    if kind not in (spec.languages or {None}):
        found.append(f"kind: {name} is {kind!r}")
    reason = answer_problem(row)
    return [*found, f"answer: {name}: {reason}"] if reason else found


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the rows of all files together, as `rule: details`. Without shape nothing else is asked."""
    found = [f"shape: {row.file}: {reason}" for row in rows if (reason := shape(row))]
    if found:
        return found
    for key, rule in (("id", "id"), ("prompt", "duplicate")):
        counts = Counter(" ".join(words(row.text(key))) for row in rows)
        found += [f"{rule}: {value!r} {n} times" for value, n in counts.items() if n > 1]
    for file in SPECS:
        own = [row for row in rows if row.file == file]
        found += whole_file_problems(file, own) + pair_problems(file, own)
    for row in rows:
        found += row_problems(row)
    return found


def test_the_data_obey_every_rule() -> None:
    rows = load()
    assert len(rows) == 200 + 200 + 80 + 8
    assert problems(rows) == []


def test_most_small_tasks_are_in_python_and_every_language_occurs() -> None:
    kinds = Counter(row.text("kind") for row in load() if row.file.startswith("code_verbosity"))
    assert set(kinds) == SMALL_TASK_LANGUAGES
    assert kinds["python"] > sum(kinds.values()) / 2


@pytest.mark.parametrize("pairs", [100, 40])
def test_split_is_seventy_to_thirty_and_depends_on_the_seed_alone(pairs: int) -> None:
    names = numbered("p", pairs)
    split = split_of(names)
    assert Counter(split.values()) == {"train": pairs * 7 // 10, "test": pairs * 3 // 10}
    assert split == split_of(reversed(names))
    assert split != split_of(names, seed=43)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "b"}',
        '{"a": "b"} \n',
        '{"a": "\\u00e9"}\n',
        '{"a": "b"}\n\n',
        '{"a": "b", "a": "c"}\n',
        "nothing\n",
    ],
)
def test_text_that_is_not_plain_jsonl_is_refused(text: str) -> None:
    assert parse('{"a": "b"}\n{"a": "\u00e9"}\n') == [{"a": "b"}, {"a": "\u00e9"}]
    with pytest.raises(ValueError):
        parse(text)


Breaker = Callable[[dict[str, dict[str, object]]], object]


def change(name: str, **fields: object) -> Breaker:
    """Changes fields of one row (`class_` for `class`); None takes the field away."""

    def apply(rows: dict[str, dict[str, object]]) -> None:
        for key, value in fields.items():
            key = key.rstrip("_")
            if value is None:
                del rows[name][key]
            else:
                rows[name][key] = value

    return apply


def swap_splits(rows: dict[str, dict[str, object]]) -> None:
    """Two whole pairs change places: shares stay 70/30 and pairs together, only the rule is broken."""
    first = next(r["pair_id"] for r in rows.values() if r["split"] == "train")
    second = next(r["pair_id"] for r in rows.values() if r["split"] == "test")
    for pair, split in ((first, "test"), (second, "train")):
        for name in ("good", "bad"):
            rows[f"{pair}-{name}"]["split"] = split


def one_row_moves(rows: dict[str, dict[str, object]]) -> None:
    row = rows["h001-bad"]
    row["split"] = "test" if row["split"] == "train" else "train"


def repeat_openings(letter: str, name: str, times: int) -> Breaker:
    """Puts the same three words before `times` prompts of a class."""

    def apply(rows: dict[str, dict[str, object]]) -> None:
        for pair in numbered(letter, times):
            rows[f"{pair}-{name}"]["prompt"] = f"Hello, dear Machine! {rows[f'{pair}-{name}']['prompt']}"

    return apply


def lengthen(rows: dict[str, dict[str, object]]) -> None:
    for key in rows:
        if key[0] == "c" and key.endswith("-bad"):
            rows[key]["prompt"] = f"{rows[key]['prompt']} And {'very ' * 15}politely, please."


def copy_prompt(source: str, target: str) -> Breaker:
    """The prompt of `source` in other letters and with other punctuation."""

    def apply(rows: dict[str, dict[str, object]]) -> None:
        rows[target]["prompt"] = f"{str(rows[source]['prompt']).upper().rstrip('.?')} !"

    return apply


BREAKERS: list[tuple[str, Breaker, set[str]]] = [
    ("extra field", change("h001-good", note="x"), {"shape"}),
    ("missing field", change("h001-good", split=None), {"shape"}),
    ("prompt is no text", change("h001-good", prompt=["x"]), {"shape"}),
    ("empty prompt", change("h001-good", prompt=""), {"shape"}),
    ("untrimmed prompt", change("h001-good", prompt="Who painted it? "), {"shape"}),
    ("two lines", change("h001-good", prompt="Who\npainted it?"), {"shape"}),
    ("unknown class", change("h001-good", class_="ugly"), {"shape"}),
    ("unknown split", change("h001-good", split="dev"), {"shape"}),
    ("good quick row", change("q1-bad", class_="good"), {"shape"}),
    ("answer is a text", change("h001-good", answer="canberra"), {"shape"}),
    ("answer is empty", change("h001-good", answer=[]), {"shape"}),
    ("id used twice", change("c002-bad", id="c001-bad"), {"id"}),
    ("id of another form", change("c002-bad", id="c2"), {"id"}),
    ("row missing", lambda rows: rows.pop("c002-bad"), {"count", "pair"}),
    ("quick row missing", lambda rows: rows.pop("q8-bad"), {"count", "pair"}),
    ("both of one class", change("c002-bad", class_="good", id="c002-good2"), {"count", "pair", "id"}),
    ("unknown pair", change("q8-bad", pair_id="q9", id="q9-bad"), {"pair"}),
    ("pair in two splits", one_row_moves, {"pair", "split"}),
    ("splits swapped", swap_splits, {"split"}),
    ("quick row to train on", change("q3-bad", split="train"), {"split"}),
    ("same prompt in a class", copy_prompt("c001-bad", "c002-bad"), {"duplicate"}),
    ("same prompt in a pair", copy_prompt("c001-good", "c001-bad"), {"duplicate"}),
    ("same prompt in two files", copy_prompt("c002-good", "c003-good"), {"duplicate"}),
    ("same prompt across files", copy_prompt("h001-good", "c003-good"), {"duplicate"}),
    ("too long", change("c002-good", prompt="Please " * 57 + "go."), {"length"}),
    ("nine openings", repeat_openings("c", "bad", 9), {"opening"}),
    ("four openings", repeat_openings("v", "good", 4), {"opening"}),
    ("one class longer", lengthen, {"balance"}),
    ("unknown language", change("c002-good", kind="klingon"), {"kind", "pair"}),
    ("language missing", change("q4-bad", kind=None), {"kind"}),
    ("language of a fact", change("h001-good", kind="python"), {"kind", "pair"}),
    ("fact without answer", change("h001-good", answer=None), {"answer", "pair"}),
    ("answers differ in a pair", change("h001-good", answer=["canberra", "act"]), {"pair"}),
    ("upper-case answer", change("h001-good", answer=["Canberra"]), {"answer", "pair"}),
    ("answer twice", change("h001-good", answer=["canberra", "canberra"]), {"answer", "pair"}),
    ("answer given away", change("h001-good", prompt="Is it Canberra, or not?"), {"answer"}),
    ("no function name", change("v001-good", answer=None), {"answer", "pair"}),
    ("no identifier", change("q1-bad", answer=["clamp()"]), {"answer"}),
    ("function not in the prompt", change("q1-bad", answer=["clip"]), {"answer"}),
    ("unpromised answer", change("c002-bad", answer=["attack"]), {"answer", "pair"}),
]


def test_eight_and_three_equal_openings_are_still_accepted() -> None:
    rows = load()
    by_id = {row.text("id"): row.fields for row in rows}
    repeat_openings("c", "bad", 8)(by_id)
    repeat_openings("v", "good", 3)(by_id)
    assert problems(rows) == []


@pytest.mark.parametrize(("breaker", "rules"), [pytest.param(b, r, id=n) for n, b, r in BREAKERS])
def test_a_broken_copy_is_refused_by_its_rule(breaker: Breaker, rules: set[str]) -> None:
    rows = load()
    by_id = {row.text("id"): row.fields for row in rows}
    breaker(by_id)
    kept = {id(fields) for fields in by_id.values()}
    found = problems([row for row in rows if id(row.fields) in kept])
    assert {problem.split(":")[0] for problem in found} == rules
