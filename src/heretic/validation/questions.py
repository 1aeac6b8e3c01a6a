# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions: read by schema from any source of prompts, checked, sampled by subject (R-VAL-02).

The fields are those of MMLU: `question`, `choices` (a list), `answer` (index or letter), `subject`. Shots come from the
split `dev`; a single file has none, so the first rows of each subject are set aside for it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from heretic.exceptions import DatasetConfigError, DatasetError
from heretic.prompts import DatasetSpecification, LoadedRows, Row, load_rows, parse_split
from heretic.prompts.sources import PACKAGED_PREFIX

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHOT_SPLIT: Final = "dev"
QUESTION_COLUMN: Final = "question"
PROMPT_COLUMN: Final = "text"
"""Column of a specification that names none: questions are then in `question`."""

ALL_SUBJECTS: Final = "all"
"""The config of MMLU that holds every subject; a local folder need not have a folder of that name."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is the index of the right choice."""

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions that are asked, and the solved ones shown before those of the same subject.

    seed: of the sample. notes: what was left out or taken from elsewhere, in sentences. content_hash: SHA-256 of all.
    """

    questions: tuple[Question, ...]
    shots: Mapping[str, tuple[Question, ...]]
    source: str
    seed: int
    revision: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of questions and shots, in order."""
        entries = [*self.questions, *(shot for shots in self.shots.values() for shot in shots)]
        lines = [json.dumps([e.text, e.choices, e.answer, e.subject]) for e in entries]
        return hashlib.sha256("\n".join(lines).encode("ascii")).hexdigest()

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)


def load_questions(
    spec: DatasetSpecification,
    *,
    categories: Sequence[str] = (),
    per_category: int = 20,
    few_shot: int = 3,
    seed: int = 0,
    offline: bool = False,
    any_category: bool = False,
    role: str = "mmlu_source",
) -> QuestionSet:
    """The questions of `spec`: `per_category` of each category at random from its split, shots from its split `dev`.

    categories: subjects in the order of the report; () = all. any_category: of those the set lacks none is missed, and
    where it has none of them all of its subjects are taken (the categories were nobody's choice). The sample of a
    subject does not depend on the other subjects.

    Raises `DatasetConfigError` (missing column or split, unknown category with near ones, shots from the split that is
    asked), `DatasetError` (a row that is no question, nothing to ask), `NetworkError` and its kin.
    """
    pool, shown, loaded, notes = _read(spec, few_shot, offline, role)
    known = tuple(dict.fromkeys(question.subject for question in pool))
    chosen = _checked_categories(known, categories, any_category, role)
    shots = {name: _of(shown, name)[:few_shot] for name in chosen} if few_shot else {}
    short = [name for name, found in shots.items() if len(found) < few_shot]
    if short:
        notes.append(f"fewer than {few_shot} shots for {', '.join(short)}")
    seen = {_key(shot) for found in shots.values() for shot in found}
    questions: list[Question] = []
    few: list[str] = []
    for name in chosen:
        of_subject = _of(pool, name)
        fresh = [question for question in of_subject if _key(question) not in seen]
        if len(fresh) < len(of_subject):
            notes.append(f"{len(of_subject) - len(fresh)} questions of {name} are shots and not asked")
        if len(fresh) < per_category:
            few.append(f"{name} ({len(fresh)})")
        questions += _sample(fresh, per_category, f"{seed} {name}")
    if few:
        notes.append(f"fewer than {per_category} questions: {', '.join(few)}")
    if not questions:
        raise DatasetError(f"{role}: {loaded.source} leaves no question to ask.", hint="Give a larger set.")
    return QuestionSet(
        questions=tuple(questions),
        shots={name: tuple(found) for name, found in shots.items()},
        source=f"{loaded.source} {spec.split}",
        seed=seed,
        revision=loaded.revision,
        notes=tuple(notes),
    )


def _read(
    spec: DatasetSpecification, few_shot: int, offline: bool, role: str
) -> tuple[list[Question], list[Question], LoadedRows, list[str]]:
    """(questions that may be asked, questions that may be shown, their source, notes)."""
    column = QUESTION_COLUMN if spec.column == PROMPT_COLUMN else spec.column
    subject = spec.category or "subject"
    columns = (column, "choices", "answer", subject)
    spec, single = _local_form(spec)
    if few_shot and SHOT_SPLIT in {part.name for part in parse_split(spec.split)}:
        raise DatasetConfigError(
            f"{role}: shots and questions would both come from the split {SHOT_SPLIT!r}.",
            hint="Ask another split, or set mmlu_few_shot = 0.",
        )
    loaded = load_rows(spec, columns, offline=offline, role=role)
    pool = [_question(row, column, subject, f"{role}: {loaded.source}") for row in loaded.rows]
    if not few_shot:
        return pool, [], loaded, []
    if single:
        names = dict.fromkeys(question.subject for question in pool)
        aside = [question for name in names for question in _of(pool, name)[:few_shot]]
        return pool, aside, loaded, [f"the first {few_shot} rows of each subject are the shots"]
    try:
        shown = load_rows(replace(spec, split=SHOT_SPLIT), columns, offline=offline, role=role)
    except DatasetConfigError as error:
        raise DatasetConfigError(
            error.message,
            hint=f"Shots come from the split {SHOT_SPLIT!r}; without one set mmlu_few_shot = 0.",
            data=error.data,
        ) from error
    return (
        pool,
        [_question(row, column, subject, f"{role}: {shown.source}") for row in shown.rows],
        loaded,
        [],
    )


def _local_form(spec: DatasetSpecification) -> tuple[DatasetSpecification, bool]:
    """The specification with the split and config that a local source has; whether it is one file."""
    if spec.dataset.startswith(PACKAGED_PREFIX):
        return spec, False
    try:
        path = Path(spec.dataset).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError):
        return spec, False  # the loader says what is wrong with the name
    if is_file:
        named = parse_split(spec.split)[0].name
        return (spec if named in ("train", path.stem) else replace(spec, split="train")), True
    if is_folder and spec.config == ALL_SUBJECTS and not (path / ALL_SUBJECTS).is_dir():
        return replace(spec, config=None), False
    return spec, False


def _question(row: Row, column: str, subject: str, source: str) -> Question:
    place = f"{source}, {row.where}"
    text, name = row.values.get(column), row.values.get(subject)
    for field, value in ((column, text), (subject, name)):
        if not isinstance(value, str) or not value.strip():
            raise DatasetError(f"{place}: {field!r} holds no text.", hint="Each question needs one.")
    choices = _choices(row.values.get("choices"), place)
    return Question(str(text), choices, _answer(row.values.get("answer"), len(choices), place), str(name))


def _choices(value: object, place: str) -> tuple[str, ...]:
    if isinstance(value, str):  # a table of text, such as CSV
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    found = tuple(str(choice) for choice in value) if isinstance(value, list | tuple) else ()
    if not 2 <= len(found) <= len(LETTERS):
        raise DatasetError(
            f"{place}: 'choices' is no list of 2 to {len(LETTERS)} texts.",
            hint='Write a list, in CSV as JSON: ["one", "two"].',
        )
    return found


def _answer(value: object, count: int, place: str) -> int:
    """The index of the right choice: given as such, in digits, or as its letter (what a class number is read as)."""
    index = -1
    if isinstance(value, int) and not isinstance(value, bool):
        index = value
    elif isinstance(value, str):
        word = value.strip()
        if word.isascii() and word.isdecimal():
            index = int(word)
        elif len(word) == 1:
            index = LETTERS.find(word.upper())
    if not 0 <= index < count:
        raise DatasetError(
            f"{place}: 'answer' is {value!r}; it should be the index (from 0) or letter of one of {count} choices.",
            hint="Correct the row.",
        )
    return index


def _checked_categories(
    known: Sequence[str], wanted: Sequence[str], any_category: bool, role: str
) -> tuple[str, ...]:
    """The subjects to ask, each once; raises `DatasetConfigError` naming unknown ones and their near ones."""
    chosen = tuple(dict.fromkeys(wanted))
    unknown = [name for name in chosen if name not in known]
    if any_category:
        return tuple(name for name in chosen if name in known) or tuple(known)
    if not unknown:
        return chosen or tuple(known)
    near = {name: difflib.get_close_matches(name, known, n=3, cutoff=0.5) for name in unknown}
    details = tuple(f"{name}: did you mean {', '.join(found)}?" for name, found in near.items() if found)
    raise DatasetConfigError(
        f"{role} has no subject {', '.join(map(repr, unknown))}. It has: {', '.join(sorted(known))}.",
        hint="Set mmlu_categories to subjects of the set, or to [] for all.",
        details=details,
        data={"unknown": unknown, "near": near, "known": sorted(known)},
    )


def _of(questions: Sequence[Question], subject: str) -> list[Question]:
    return [question for question in questions if question.subject == subject]


def _key(question: Question) -> tuple[str, tuple[str, ...]]:
    return question.text, question.choices


def _sample(questions: Sequence[Question], count: int, seed: str) -> list[Question]:
    """`count` of them in their order, all where there are fewer. A seed of text is hashed, the same everywhere."""
    chosen = random.Random(seed).sample(range(len(questions)), min(count, len(questions)))
    return [questions[number] for number in sorted(chosen)]
