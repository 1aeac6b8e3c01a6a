# SPDX-License-Identifier: Apache-2.0
"""Prompt data of the experiments verbosity and verbosity_v2 (requirements R-XPT-01, R-XPT-02)."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from importlib.resources import files
from statistics import fmean
from typing import NamedTuple

import pytest

from heretic.experiments.metrics import has_answer
from heretic.experiments.prepare import check, read_rows, with_splits
from heretic.experiments.prepare import split_of as packaged_split_of

CLASSES = ("bad", "good")
LONGEST = 300
SHARE = 0.08
"""Of a class, at most this share begins, or ends, with the same three words."""
BALANCE = 1.5
SAME_WORDS = 3
KEY_WORDS = 3
REQUIRED = ("id", "pair_id", "class", "split", "prompt")


class Spec(NamedTuple):
    """What one file must hold. kinds: kind -> number of pairs. same: both prompts of a pair ask one question."""

    pairs: tuple[str, ...]
    kinds: dict[str, int]
    answered: tuple[str, ...]
    same: bool


def numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{number:03d}" for number in range(1, count + 1))


SPECS = {
    "verbosity": Spec(numbered("v", 200), {}, ("good",), same=False),
    "verbosity_v2": Spec(numbered("w", 100), {"simple": 50, "open": 50}, CLASSES, same=True),
}


class Row(NamedTuple):
    experiment: str
    fields: dict[str, object]

    def text(self, key: str) -> str:
        return str(self.fields.get(key, ""))

    @property
    def answers(self) -> list[str]:
        value = self.fields.get("answer", [])
        return [str(entry) for entry in value] if isinstance(value, list) else []

    @property
    def spec(self) -> Spec:
        return SPECS[self.experiment]


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
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    if text != "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows):
        raise ValueError("not one object a line in plain form")
    return rows


def load() -> list[Row]:
    folder = files("heretic") / "experiments"
    return [
        Row(name, fields)
        for name in SPECS
        for fields in parse(folder.joinpath(name, "data", "prompts.jsonl").read_text(encoding="utf-8"))
    ]


def shape(row: Row) -> str:
    """Why this row is unfit for every other rule; empty when it is fit."""
    fields = row.fields
    for key in (*REQUIRED, *({"kind"} & set(fields))):
        value = fields.get(key)
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            return f"{key} is {value!r}"
    if tuple(fields)[: len(REQUIRED)] != REQUIRED or not set(fields) <= {*REQUIRED, "kind", "answer"}:
        return f"keys are {tuple(fields)}"
    entries = fields.get("answer", ["present"])
    if not isinstance(entries, list) or not entries or not all(isinstance(e, str) and e for e in entries):
        return f"answer is {entries!r}"
    if fields["class"] not in CLASSES or fields["split"] not in ("train", "test"):
        return f"class and split are {fields['class']!r}, {fields['split']!r}"
    return ""


def plain(text: str) -> bool:
    """Printable, composed, with straight quotes and dashes and none of the marks of a wrong decoding."""
    odd = set("\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u00a0\u00c3\ufffd")
    return text.isprintable() and unicodedata.is_normalized("NFC", text) and not odd & set(text)


def class_problems(name: str, rows: Sequence[Row]) -> Iterator[str]:
    """Counts, and how much the prompts of a class differ from each other."""
    lengths = []
    for label in CLASSES:
        prompts = [row.text("prompt") for row in rows if row.text("class") == label]
        if len(prompts) != len(SPECS[name].pairs):
            yield f"count: {name} has {len(prompts)} rows of class {label}"
        for rule, part in (("opening", slice(None, 3)), ("ending", slice(-3, None))):
            parts = Counter(" ".join(words(prompt)[part]) for prompt in prompts)
            yield from (
                f"{rule}: {name} {label} {key!r} {n} times"
                for key, n in parts.items()
                if n > SHARE * len(prompts)
            )
        lengths.append(fmean(map(len, prompts)))
    if max(lengths) > BALANCE * min(lengths):  # or the direction of verbosity would be one of prompt length
        yield f"balance: {name} prompts are {lengths} characters long on average"


def pair_problems(name: str, rows: Sequence[Row]) -> Iterator[str]:
    pairs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        pairs[row.text("pair_id")].append(row)
    spec, split = SPECS[name], split_of(pairs)
    if set(pairs) != set(spec.pairs):
        yield f"pair: {name} differs in {sorted(set(pairs) ^ set(spec.pairs))}"
    kinds = Counter(members[0].text("kind") for members in pairs.values())
    if spec.kinds and kinds != spec.kinds:
        yield f"count: {name} has pairs of the kinds {dict(kinds)}"
    for pair, members in pairs.items():
        if tuple(sorted(row.text("class") for row in members)) != CLASSES:
            yield f"pair: {pair} is not one good and one bad prompt"
        if len({row.text("split") for row in members}) > 1:
            yield f"pair: {pair} lies in two splits"
        if any(row.text("split") != split[pair] for row in members):
            yield f"split: {pair} should be in {split[pair]}"
        if spec.same and len({(row.text("kind"), *row.answers) for row in members}) > 1:
            yield f"pair: {pair} differs in kind or answer"
        if spec.same and not same_question(*(row.text("prompt") for row in (members[0], members[-1]))):
            yield f"question: {pair} asks two questions"


def same_question(first: str, second: str) -> bool:
    match = SequenceMatcher(None, words(first), words(second), autojunk=False).find_longest_match()
    return match.size >= SAME_WORDS


def answer_problem(row: Row) -> str:
    answers = row.answers
    if row.text("class") not in row.spec.answered:
        return f"{answers} were not promised" if answers else ""
    if not answers or len(set(answers)) < len(answers):
        return f"accepted answers are {answers}"
    if any(answer != answer.casefold().strip() or not plain(answer) for answer in answers):
        return f"{answers} are not plain lower case"
    # A short reply that repeats the question must not count as a right one.
    said = f" {' '.join(words(row.text('prompt')))} "
    if given := [answer for answer in answers if f" {' '.join(words(answer))} " in said]:
        return f"the prompt gives {given} away"
    if row.text("kind") == "open" and len({answer[:3] for answer in answers}) > KEY_WORDS:
        return f"more than {KEY_WORDS} key words, their forms not counted: {answers}"
    return ""


def row_problems(row: Row) -> Iterator[str]:
    name, prompt = row.text("id"), row.text("prompt")
    if name != f"{row.text('pair_id')}-{row.text('class')}":
        yield f"id: {name} is not made of its pair and class"
    if len(prompt) > LONGEST:
        yield f"length: {name} has {len(prompt)} characters"
    if not plain(prompt):
        yield f"text: {name} is {ascii(prompt)}"
    if row.fields.get("kind") not in (row.spec.kinds or {None}):
        yield f"kind: {name} is {row.fields.get('kind')!r}"
    if reason := answer_problem(row):
        yield f"answer: {name}: {reason}"


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the rows of both files, as `rule: details`. Without shape nothing else is asked."""
    found = [f"shape: {row.experiment}: {reason}" for row in rows if (reason := shape(row))]
    if found:
        return found
    for key, rule in (("id", "id"), ("prompt", "duplicate")):
        counts = Counter(" ".join(words(row.text(key))) for row in rows)
        found += [f"{rule}: {value!r} {n} times" for value, n in counts.items() if n > 1]
    for name in SPECS:
        own = [row for row in rows if row.experiment == name]
        found += [*class_problems(name, own), *pair_problems(name, own)]
    return found + [problem for row in rows for problem in row_problems(row)]


def test_the_data_obey_every_rule() -> None:
    rows = load()
    assert len(rows) == 200 + 200 + 100 + 100
    assert problems(rows) == []


def test_held_out_pairs_are_of_both_kinds_in_equal_number() -> None:
    held_out = Counter(row.text("kind") for row in load() if row.text("split") == "test")
    assert held_out == {"": 2 * 60, "simple": 2 * 15, "open": 2 * 15}


@pytest.mark.parametrize("name", SPECS)
def test_the_experiment_reads_the_file_and_agrees_on_the_split(name: str) -> None:
    rows = read_rows(files("heretic") / "experiments" / name / "data" / "prompts.jsonl", name)
    assert {row.pair_id: row.split for row in rows} == packaged_split_of(SPECS[name].pairs)
    check(with_splits(rows), name)
    for row in rows:
        assert all(has_answer(row, f"It is **{text.capitalize()}**.") for text in row.answer)
        assert not has_answer(row, row.prompt)  # control: the question alone does not count as answered


@pytest.mark.parametrize("pairs", [200, 100])
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
        '{"a": "b"}\r\n',
        '{"a": "b", "a": "c"}\n',
        "nothing\n",
    ],
)
def test_text_that_is_not_plain_jsonl_is_refused(text: str) -> None:
    assert parse('{"a": "b"}\n{"a": "\u00e9"}\n') == [{"a": "b"}, {"a": "\u00e9"}]
    with pytest.raises(ValueError):
        parse(text)


Fields = dict[str, dict[str, object]]
Breaker = Callable[[Fields], object]


def change(name: str, **fields: object) -> Breaker:
    """Changes fields of one row (`class_` for `class`); None takes the field away."""

    def apply(rows: Fields) -> None:
        for key, value in fields.items():
            key = key.rstrip("_")
            if value is None:
                del rows[name][key]
            else:
                rows[name][key] = value

    return apply


def change_pair(pair: str, **fields: object) -> Breaker:
    return lambda rows: [change(f"{pair}-{label}", **fields)(rows) for label in CLASSES]


def prompts(letter: str, label: str, times: int, form: str) -> Breaker:
    """Puts each of the first prompts of a class into the form, a text with {}."""

    def apply(rows: Fields) -> None:
        for pair in numbered(letter, times):
            row = rows[f"{pair}-{label}"]
            row["prompt"] = form.format(row["prompt"])

    return apply


def swap_splits(rows: Fields) -> None:
    """Two whole pairs change places: shares stay 70/30 and pairs together, only the rule is broken."""
    first = next(row["pair_id"] for row in rows.values() if row["split"] == "train")
    second = next(row["pair_id"] for row in rows.values() if row["split"] == "test")
    change_pair(str(first), split="test")(rows)
    change_pair(str(second), split="train")(rows)


def one_row_moves(rows: Fields) -> None:
    row = rows["w001-bad"]
    row["split"] = "test" if row["split"] == "train" else "train"


def copy_prompt(source: str, target: str) -> Breaker:
    """The prompt of `source` in other letters and with other punctuation."""
    return lambda rows: change(target, prompt=f"{str(rows[source]['prompt']).upper().rstrip('.?')} !")(rows)


HELLO, BYE = "Hello, dear Machine! {}", "{} Thanks, dear machine!"
BREAKERS: list[tuple[str, Breaker, set[str]]] = [
    ("extra field", change("v001-good", note="x"), {"shape"}),
    ("missing field", change("v001-good", split=None), {"shape"}),
    ("prompt is no text", change("v001-good", prompt=["x"]), {"shape"}),
    ("empty prompt", change("v001-good", prompt=""), {"shape"}),
    ("untrimmed prompt", change("v001-bad", prompt="Who knows about bread? "), {"shape"}),
    ("two lines", change("v001-bad", prompt="Who knows\nabout bread?"), {"shape"}),
    ("unknown class", change("v001-good", class_="ugly"), {"shape"}),
    ("unknown split", change("v001-good", split="dev"), {"shape"}),
    ("answer is a text", change("v001-good", answer="1500"), {"shape"}),
    ("answer is empty", change("v001-good", answer=[]), {"shape"}),
    ("row given twice", change("v005-bad", pair_id="v001", id="v001-bad"), {"id", "pair"}),
    ("id of another row", change("v002-bad", id="v001-bad"), {"id"}),
    ("id of another form", change("v002-bad", id="v2"), {"id"}),
    ("row missing", lambda rows: rows.pop("v002-bad"), {"count", "pair"}),
    ("both bad", change("v002-good", class_="bad", id="v002-bad2", answer=None), {"count", "pair", "id"}),
    ("unknown pair", change_pair("v002", pair_id="v201"), {"pair", "id", "split"}),
    ("pair in two splits", one_row_moves, {"pair", "split"}),
    ("splits swapped", swap_splits, {"split"}),
    ("same prompt in a class", copy_prompt("v001-bad", "v002-bad"), {"duplicate"}),
    ("same prompt in a pair", copy_prompt("w001-good", "w001-bad"), {"duplicate"}),
    ("same prompt in two files", copy_prompt("w001-good", "v003-bad"), {"duplicate"}),
    ("too long", change("v001-bad", prompt=("Bread? " * 43).strip() + "?"), {"length"}),
    ("wrong decoding", change("v001-bad", prompt="Is caf\u00c3\u00a9 bread any good?"), {"text"}),
    ("bent quote", change("v001-bad", prompt="What\u2019s good bread?"), {"text"}),
    ("accent on its own", change("v001-bad", prompt="Is cafe\u0301 bread any good?"), {"text"}),
    ("17 openings", prompts("v", "bad", 17, HELLO), {"opening"}),
    ("9 openings", prompts("w", "good", 9, HELLO), {"opening"}),
    ("17 endings", prompts("v", "good", 17, BYE), {"ending"}),
    ("9 endings", prompts("w", "bad", 9, BYE), {"ending"}),
    ("one class longer", prompts("v", "bad", 120, "{0} Again: {0}"), {"balance"}),
    ("kind where none is", change("v001-bad", kind="open"), {"kind"}),
    ("kind missing", change("w001-bad", kind=None), {"kind", "pair"}),
    ("kind unknown", change_pair("w002", kind="hard"), {"kind", "count"}),
    ("51 simple pairs", change_pair("w002", kind="simple"), {"count"}),
    ("two questions", change("w001-bad", prompt="Say all you know about whales."), {"question"}),
    ("no answer", change("v001-good", answer=None), {"answer"}),
    ("no answer for a bad prompt", change("w001-bad", answer=None), {"answer", "pair"}),
    ("unpromised answer", change("v001-bad", answer=["flour"]), {"answer"}),
    ("answers differ in a pair", change("w001-good", answer=["red"]), {"pair"}),
    ("upper-case answer", change("v001-good", answer=["Much"]), {"answer"}),
    ("answer twice", change("v001-good", answer=["much", "much"]), {"answer"}),
    ("answer with a dash", change("v001-good", answer=["1\u20132"]), {"answer"}),
    ("answer given away", change("v001-good", prompt="Is it 1,500 grams of flour?"), {"answer"}),
    ("four key words", change_pair("w002", answer=["beam", "dust", "haze", "wave"]), {"answer"}),
]


def test_what_lies_on_the_line_is_still_accepted() -> None:
    rows = load()
    by_id = {row.text("id"): row.fields for row in rows}
    prompts("v", "bad", 16, HELLO)(by_id)
    prompts("w", "good", 8, HELLO)(by_id)
    prompts("w", "bad", 8, BYE)(by_id)
    change_pair("w002", answer=["beam", "dust", "wave", "waves"])(by_id)
    change("v020-bad", prompt=("Bread? " * 43).strip())(by_id)
    assert len(str(by_id["v020-bad"]["prompt"])) == LONGEST
    assert problems(rows) == []


@pytest.mark.parametrize(("breaker", "rules"), [pytest.param(b, r, id=n) for n, b, r in BREAKERS])
def test_a_broken_copy_is_refused_by_its_rule(breaker: Breaker, rules: set[str]) -> None:
    rows = load()
    by_id = {row.text("id"): row.fields for row in rows}
    breaker(by_id)
    kept = {id(fields) for fields in by_id.values()}
    found = problems([row for row in rows if id(row.fields) in kept])
    assert {problem.split(":")[0] for problem in found} == rules
