# SPDX-License-Identifier: Apache-2.0
"""lm-eval on a model in memory (R-VAL-04). What does not need the library is tested without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heretic.decoding import FastEngine
from heretic.demo import model_path, prompts_path
from heretic.exceptions import ConfigurationError, DatasetError
from heretic.linalg.intervals import bonett_price
from heretic.model.loading import LoadOptions, load_model
from heretic.model.source import ModelSource
from heretic.testing.workbench import removal
from heretic.validation import harness
from heretic.validation.harness import Score, compare_tasks, load_tasks, require_harness, run_tasks
from heretic.validation.multiple_choice import ask
from heretic.validation.questions import Question, QuestionSet
from heretic.validation.subject import Subject


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "LIBRARY", "no_such_library_lm_eval")
    with pytest.raises(ConfigurationError, match="lm-eval") as caught:
        load_tasks(["arc_easy"])
    assert "heretic-workbench[bench]" in str(caught.value.hint)
    monkeypatch.setattr(harness, "LIBRARY", "json")  # control: one that is there
    require_harness()


def test_results_are_paired_by_document() -> None:
    """Metrics of both sides only; documents of both sides only; no interval where documents have no values."""
    base = {
        ("arc", "acc,none"): Score(0.75, {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}, 4),
        ("wiki", "word_perplexity,none"): Score(9.0, {}, 4),
        ("gone", "acc,none"): Score(1.0, {0: 1.0}, 1),
    }
    edited = {
        ("arc", "acc,none"): Score(0.5, {0: 0.0, 1: 1.0, 2: 1.0, 9: 0.0}, 4),
        ("wiki", "word_perplexity,none"): Score(9.5, {}, 4),
    }
    arc, wiki = compare_tasks(base, edited)
    assert (arc.task, arc.metric, arc.n, arc.change) == ("arc", "acc,none", 4, -0.25)
    assert (arc.low, arc.high) == bonett_price(0, 1, 3)
    assert (wiki.change, wiki.low, wiki.high) == (0.5, None, None)


@pytest.mark.slow
def test_a_task_of_ones_own_runs_on_base_and_edited_from_one_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled quiz as a task: all right before, not under a strong edit, all right again after; no weight moves.
    Document by document the library and our own reader agree on what is right (algorithms 11)."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = {
        "task": "bundled_quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(prompts_path("knowledge", "test"))}},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
        "D. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "bundled_quiz.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    with pytest.raises(ConfigurationError, match="bundled_qiz") as caught:
        load_tasks(["bundled_qiz"], include=tmp_path / "tasks")
    assert "bundled_quiz" in caught.value.details[0]
    tasks = load_tasks(["bundled_quiz"], include=tmp_path / "tasks")
    model = load_model(ModelSource("demo", model_path(), None), LoadOptions())
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    base = run_tasks(model, tasks, limit=64)
    edits = removal(model, 3, 1.0, rank=60)
    edited = run_tasks(model, tasks, edits, limit=64)
    again = run_tasks(model, tasks, limit=64)
    assert base["bundled_quiz", "acc,none"].value == again["bundled_quiz", "acc,none"].value == 1.0
    assert len(base["bundled_quiz", "acc,none"].values) == 64
    (found,) = compare_tasks(base, edited)
    assert found.edited < 0.9 and found.high is not None and found.high < 0 and found.n == 64
    rows = [
        json.loads(line) for line in prompts_path("knowledge", "test").read_text("utf-8").splitlines()[:64]
    ]
    questions = tuple(Question(r["question"], tuple(r["choices"]), r["answer"], r["subject"]) for r in rows)
    own = ask(Subject(model, FastEngine(model), edits), QuestionSet(questions, {}, "bundled", 0))
    theirs = edited["bundled_quiz", "acc,none"].values
    assert [float(right) for right in own.right] == [theirs[number] for number in range(64)]
    assert all(torch.equal(before[name], value) for name, value in model.network.named_parameters())
    assert model.encoder.tokenizer.padding_side == "left"


@pytest.mark.slow
def test_tasks_whose_data_are_out_of_reach_are_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DatasetError, match="hellaswag"):
        load_tasks(["hellaswag"])
