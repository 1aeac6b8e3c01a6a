# SPDX-License-Identifier: Apache-2.0
"""Questions of every source become the same set; what is shown is never asked, and mistakes are named
(requirements R-VAL-02, algorithms 11)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from heretic.demo import prompts_path
from heretic.exceptions import DatasetConfigError, DatasetError
from heretic.prompts import DatasetSpecification
from heretic.validation.questions import Question, QuestionSet, load_questions

PACKAGED = DatasetSpecification("heretic:knowledge", split="test", column="question")


def row(number: int, subject: str = "sums", **changes: Any) -> dict[str, Any]:
    """One row in the fields of MMLU."""
    made = {
        "question": f"Question {number} of {subject}?",
        "choices": ["w", "x", "y", "z"],
        "answer": number % 4,
    }
    return {**made, "subject": subject, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    return path


def folder(path: Path, test: list[dict[str, Any]], dev: list[dict[str, Any]] | None) -> DatasetSpecification:
    write(path / "test.jsonl", test)
    if dev is not None:
        write(path / "dev.jsonl", dev)
    return DatasetSpecification(str(path), split="test", column="question")


def texts(questions: QuestionSet) -> list[str]:
    return [question.text for question in questions.questions]


def test_the_packaged_set_is_read_whole_with_shots_of_each_subject() -> None:
    found = load_questions(PACKAGED, per_category=1000, few_shot=3)
    assert len(found.questions) == 256 and len(found.shots) == 8
    dev = [json.loads(line) for line in prompts_path("knowledge", "dev").read_text("utf-8").splitlines()]
    for name, shots in found.shots.items():
        assert [shot.text for shot in shots] == [e["question"] for e in dev if e["subject"] == name][:3]
    shown = {(shot.text, shot.choices) for shots in found.shots.values() for shot in shots}
    assert not shown & {(question.text, question.choices) for question in found.questions}
    assert found.chance == 0.25
    assert "fewer than 1000 questions" in found.notes[0]
    assert load_questions(PACKAGED, per_category=32).notes == ()  # control: as many as there are


def test_the_sample_is_seeded_and_a_subject_does_not_depend_on_others() -> None:
    first = load_questions(PACKAGED, per_category=5, seed=1)
    assert len(first.questions) == 40
    assert first == load_questions(PACKAGED, per_category=5, seed=1)
    assert first.content_hash != load_questions(PACKAGED, per_category=5, seed=2).content_hash
    alone = load_questions(PACKAGED, per_category=5, seed=1, categories=("food",))
    assert texts(alone) == [question.text for question in first.questions if question.subject == "food"]
    assert set(alone.shots) == {"food"}


def test_sources_and_forms_of_the_fields_give_the_same_questions(tmp_path: Path) -> None:
    """A folder of JSONL, one of CSV with choices as JSON, answers as letters (a class number's name) or digits."""
    test, dev = [row(n) for n in range(6)], [row(n) for n in range(10, 13)]
    plain = load_questions(folder(tmp_path / "a", test, dev))
    assert plain.questions[3] == Question("Question 3 of sums?", ("w", "x", "y", "z"), 3, "sums")
    letters = [{**entry, "answer": "ABCD"[entry["answer"]]} for entry in test]
    assert load_questions(folder(tmp_path / "b", letters, dev)).content_hash == plain.content_hash
    for name, entries in (("test", test), ("dev", dev)):
        lines = ["question,choices,answer,subject"]
        for entry in entries:
            choices = json.dumps(entry["choices"]).replace('"', '""')
            lines.append(f'{entry["question"]},"{choices}",{entry["answer"]},{entry["subject"]}')
        path = tmp_path / "c" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = DatasetSpecification(str(tmp_path / "c"), split="test", column="question", config="all")
    assert load_questions(table).content_hash == plain.content_hash
    named = [{"prompt": e["question"], "topic": e["subject"], **e} for e in test]
    for entry in (*named, *(shown := [{"prompt": e["question"], "topic": e["subject"], **e} for e in dev])):
        del entry["question"], entry["subject"]
    write(tmp_path / "d" / "test.jsonl", named)
    write(tmp_path / "d" / "dev.jsonl", shown)
    other = DatasetSpecification(str(tmp_path / "d"), split="test", column="prompt", category="topic")
    assert load_questions(other).content_hash == plain.content_hash


def test_of_a_single_file_the_first_rows_are_shown_and_never_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [row(n, name) for n in range(8) for name in ("sums", "words")])
    found = load_questions(DatasetSpecification(str(path), split="test", column="question"), few_shot=2)
    assert [shot.text for shot in found.shots["words"]] == ["Question 0 of words?", "Question 1 of words?"]
    assert len(found.questions) == 12 and not any("n 0 of" in t or "n 1 of" in t for t in texts(found))
    assert "first 2 rows" in found.notes[0]
    whole = load_questions(DatasetSpecification(str(path), split="test", column="question"), few_shot=0)
    assert len(whole.questions) == 16 and whole.shots == {}  # control


def test_a_question_that_is_also_a_shot_is_not_asked(tmp_path: Path) -> None:
    test, dev = [row(n) for n in range(5)], [row(2), row(10), row(4)]
    found = load_questions(folder(tmp_path, test, dev), few_shot=2)
    assert texts(found) == [f"Question {n} of sums?" for n in (0, 1, 3, 4)]
    assert found.notes[0].startswith("1 questions of sums are shots")


def test_shots_from_the_split_that_is_asked_are_refused(tmp_path: Path) -> None:
    spec = folder(tmp_path, [row(0)], [row(1)])
    asked = DatasetSpecification(spec.dataset, split="dev", column="question")
    with pytest.raises(DatasetConfigError, match="both come from the split 'dev'"):
        load_questions(asked)
    assert len(load_questions(asked, few_shot=0).questions) == 1  # control


def test_a_set_without_shots_is_named_and_works_without(tmp_path: Path) -> None:
    spec = folder(tmp_path, [row(0)], None)
    with pytest.raises(DatasetConfigError, match="mmlu_source: .*'dev'") as caught:
        load_questions(spec)
    assert "mmlu_few_shot = 0" in str(caught.value.hint)
    assert len(load_questions(spec, few_shot=0).questions) == 1


def test_unknown_subjects_are_named_with_near_ones() -> None:
    with pytest.raises(DatasetConfigError, match="no subject 'geografy'") as caught:
        load_questions(PACKAGED, categories=("geografy", "food"))
    assert caught.value.details == ("geografy: did you mean geography?",)
    assert caught.value.data["unknown"] == ["geografy"]
    some = load_questions(PACKAGED, categories=("geografy", "food"), any_category=True)
    assert {question.subject for question in some.questions} == {"food"}
    assert len(load_questions(PACKAGED, categories=("geografy",), any_category=True).shots) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": 4}, "'answer' is 4"),
        ({"answer": True}, "'answer' is True"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": "E"}, "'answer' is 'E'"),
        ({"answer": None}, "'answer' is None"),
        ({"choices": ["one"]}, "'choices' is no list"),
        ({"choices": "w, x"}, "'choices' is no list"),
        ({"question": " "}, "'question' holds no text"),
        ({"subject": None}, "'subject' holds no text"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Never a score of 0; control: the same row without the change."""
    assert len(load_questions(folder(tmp_path / "a", [row(0)], [row(1)])).questions) == 1
    with pytest.raises(DatasetError, match=f"line 1: {words}"):
        load_questions(folder(tmp_path / "b", [row(0, **change)], [row(1)]))


def test_a_missing_field_is_an_error_with_the_real_names(tmp_path: Path) -> None:
    entry = row(0)
    del entry["choices"]
    with pytest.raises(DatasetConfigError, match=r"no column 'choices'.*question, answer, subject"):
        load_questions(folder(tmp_path, [entry], [row(1)]))
