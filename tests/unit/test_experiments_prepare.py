# SPDX-License-Identifier: Apache-2.0
"""The catalogue, the packs and the rows of experiments (R-XPT-01 to R-XPT-03)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from heretic.config import built_in_behaviours, resolve_settings
from heretic.config.behaviour import PACK_SETTINGS
from heretic.exceptions import ConfigurationError, DatasetError, UnknownSettingError
from heretic.experiments import prepare
from heretic.experiments.catalogue import EXPERIMENTS, Experiment, bound, find, header, names, target_text
from heretic.experiments.planted import planted_answers, planted_rows
from heretic.experiments.prepare import Row
from heretic.experiments.workspace import Workspace, defaults, require_planted
from heretic.prompts import DatasetSpecification, load_prompts

WITH_DATA = [entry for entry in EXPERIMENTS if (entry.folder / "data" / "prompts.jsonl").is_file()]
SIZES = {"verbosity": 200, "verbosity_v2": 100, "hedging": 100, "code_refusal": 100, "code_verbosity": 40}


def pairs(count: int, kinds: tuple[str, ...] = ("",)) -> list[Row]:
    """Whole pairs without a split, kinds in turn."""
    return [
        Row(f"p{n:03d}-{label}", f"p{n:03d}", label, "", f"{label} question {n}", kinds[n % len(kinds)])
        for n in range(count)
        for label in ("good", "bad")
    ]


# --- catalogue and packs ---------------------------------------------------------------------------------------


def test_the_catalogue_is_the_folders() -> None:
    """R-XPT-01: one shape for all."""
    folder = files("heretic") / "experiments"
    found = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("__")}
    assert found == set(names()) == set(SIZES)
    for experiment in EXPERIMENTS:
        for name in ("config.toml", "README.md", "data/prompts.jsonl"):
            assert experiment.folder.joinpath(*name.split("/")).is_file(), f"{experiment.name} lacks {name}"


def test_names_are_found_with_dashes_and_near_ones_are_named() -> None:
    assert find("verbosity-v2") is find("verbosity_v2")
    with pytest.raises(ConfigurationError) as caught:
        find("hegding")
    assert caught.value.hint is not None and "hedging" in caught.value.hint


@pytest.mark.parametrize("experiment", WITH_DATA, ids=lambda entry: entry.name)
def test_each_shipped_pack_loads_as_settings_and_names_files_that_prepare_writes(
    experiment: Experiment, tmp_path: Path
) -> None:
    """R-XPT-01, R-CFG-12: the prompts of the run are those of the rows, by class and split."""
    workspace = Workspace(experiment, tmp_path / "here")
    planned = workspace.plan()
    workspace.write(planned)
    resolved = resolve_settings(
        ["--model=org/model", f"--behaviour={workspace.config}"], environ={}, cwd=tmp_path
    )
    assert resolved.behaviour.name == experiment.name and resolved.settings.goal == "suppress"
    for setting, label, split in (
        ("good_prompts", "good", "train"), ("bad_prompts", "bad", "train"),
        ("good_evaluation_prompts", "good", "validation"), ("bad_evaluation_prompts", "bad", "validation"),
        ("good_confirmation_prompts", "good", "test"), ("bad_confirmation_prompts", "bad", "test"),
        ("over_behaviour_prompts", "good", "test"),
    ):  # fmt: skip
        given = getattr(resolved.settings, setting)
        found = load_prompts(
            DatasetSpecification(dataset=given.dataset, split=given.split, column=given.column), offline=True
        )
        wanted = [row.prompt for row in planned.rows if (row.label, row.split) == (label, split)]
        assert list(found.texts) == wanted, setting
    assert experiment.target.key in header(experiment).targets and bound(experiment) > 0
    assert header(experiment).instructions["suppress"]


def test_a_pack_with_a_wrong_key_is_seen(tmp_path: Path) -> None:
    """Control of the test above."""
    text = (find("hedging").folder / "config.toml").read_text(encoding="utf-8")
    file = tmp_path / "config-wrong.toml"
    file.write_text(text.replace("n_trials", "n_trails"), encoding="utf-8")
    with pytest.raises(UnknownSettingError):
        resolve_settings(["--model=m", f"--behaviour={file}"], environ={}, cwd=tmp_path)


def test_packs_state_what_the_table_of_requirements_states() -> None:
    """Trials, start-up, tokens and targets of section 11."""
    stated = {
        "verbosity": (50, 15, 150, 200, 0.2), "verbosity_v2": (50, 15, 256, 256, 0.3),
        "hedging": (50, 15, 150, 150, 0.5), "code_refusal": (100, 30, 200, 200, 0.1),
        "code_verbosity": (50, 15, 200, 256, 0.3),
    }  # fmt: skip
    for experiment in EXPERIMENTS:
        found = resolve_settings(
            [
                "--model=m",
                f"--behaviour={files('heretic') / 'experiments' / experiment.name / 'config.toml'}",
            ],
            environ={},
            cwd=Path.cwd(),
            purpose="show",
        ).settings
        row = (found.n_trials, found.n_startup_trials, found.max_response_length)
        assert (*row, experiment.tokens, bound(experiment)) == stated[experiment.name]
        assert found.scorers is not None
    v2 = (find("verbosity_v2").folder / "config.toml").read_text(encoding="utf-8")
    assert "max_batch_size = 32" in v2 and "max_batch_size" in PACK_SETTINGS
    assert target_text(find("code_refusal")) == "refusals at most 10%"


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", WITH_DATA, ids=lambda entry: entry.name)
def test_shipped_rows_are_complete_and_split_by_the_rule(experiment: Experiment) -> None:
    """R-XPT-02."""
    rows = prepare.read_rows(experiment.folder / "data" / "prompts.jsonl", experiment.name)
    assert Counter(row.label for row in rows) == dict.fromkeys(("good", "bad"), SIZES[experiment.name])
    made = prepare.with_splits(rows)
    prepare.check(made, experiment.name)
    shares = Counter(row.split for row in made if row.label == "bad")
    assert shares["test"] == round(0.3 * SIZES[experiment.name])
    assert shares["validation"] == pytest.approx(0.2 * SIZES[experiment.name], abs=3)
    lines = (experiment.folder / "data" / "prompts.jsonl").read_text(encoding="utf-8")
    assert "".join(row.line() for row in rows) == lines, "a row is written as it was read"


def test_split_is_70_to_30_by_pair_and_validation_comes_from_train_in_equal_shares() -> None:
    rows = pairs(100, ("simple", "open"))
    given = prepare.split_of(row.pair_id for row in rows)
    made = prepare.with_splits(rows)
    prepare.check(made, "made")
    assert Counter(given.values()) == {"train": 70, "test": 30}
    for row in made:
        assert (row.split == "test") == (given[row.pair_id] == "test")
    for label in ("good", "bad"):
        for kind in ("simple", "open"):
            own = Counter(row.split for row in made if (row.label, row.kind) == (label, kind))
            assert own["validation"] == round(2 / 7 * (own["train"] + own["validation"]))
    assert made == prepare.with_splits(rows), "the same every time"
    assert made != prepare.with_splits(rows, seed=43)


def test_a_given_split_stands() -> None:
    rows = [replace(row, split=("train", "validation", "test")[n % 6 // 2]) for n, row in enumerate(pairs(9))]
    assert prepare.with_splits(rows) == rows


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda rows: rows + [rows[0]], "given twice"),
        (lambda rows: [replace(rows[0], prompt=rows[3].prompt.upper() + " "), *rows[1:]], "given twice"),
        (lambda rows: [replace(rows[0], split="test"), *rows[1:]], "two splits"),
        (lambda rows: [row for row in rows if (row.label, row.split) != ("bad", "test")], "no bad prompt"),
    ],
)
def test_rows_that_would_spoil_a_measurement_are_refused(
    change: Callable[[list[Row]], list[Row]], finding: str
) -> None:
    rows = prepare.with_splits(pairs(20))
    rows.sort(key=lambda row: row.split != "train")
    prepare.check(rows, "rows")
    with pytest.raises(DatasetError, match=finding):
        prepare.check(change(rows), "rows")


@pytest.mark.parametrize(
    "line",
    [
        {"pair_id": "a", "class": "good", "split": "train", "prompt": "x"},
        {"id": "a", "pair_id": "a", "class": "ugly", "split": "train", "prompt": "x"},
        {"id": "a", "pair_id": "a", "class": "good", "split": "dev", "prompt": "x"},
        {"id": "a", "pair_id": "a", "class": "good", "split": "train", "prompt": " "},
        {"id": "a", "pair_id": "a", "class": "good", "split": "train", "prompt": "x", "answer": [1]},
    ],
)
def test_a_row_of_another_shape_is_named_by_its_line(line: dict[str, object], tmp_path: Path) -> None:
    good = {"id": "b", "pair_id": "b", "class": "good", "split": "train", "prompt": "y", "answer": "z"}
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2"):
        prepare.read_rows(file, "rows.jsonl")
    file.write_text(f"{json.dumps(good)}\n", encoding="utf-8")
    assert prepare.read_rows(file, "rows.jsonl")[0].answer == ("z",)


# --- the folder ------------------------------------------------------------------------------------------------


def test_lists_of_the_user_become_rows_that_are_used_from_then_on(tmp_path: Path) -> None:
    """R-XPT-02: flat JSON lists of strings; what stands in the folder is not overwritten by the packaged rows."""
    files_ = {}
    for label in ("good", "bad"):
        files_[label] = tmp_path / f"{label}.json"
        files_[label].write_text(json.dumps([f"{label} {n}" for n in range(20)]), encoding="utf-8")
    lists = (prepare.read_list(files_["good"]), prepare.read_list(files_["bad"]))
    workspace = Workspace(find("hedging"), tmp_path / "here")
    workspace.write(workspace.plan(lists))
    again = workspace.plan()
    assert {row.prompt for row in again.rows if row.label == "bad"} == {f"bad {n}" for n in range(20)}
    assert again.kept == ("data/prompts.jsonl",) and "data/prompts.jsonl" not in again.files
    assert prepare.counts(again.rows)["bad"] == {"train": 10, "validation": 4, "test": 6}
    by_pair: dict[str, str] = {}
    for row in again.rows:
        assert by_pair.setdefault(row.pair_id, row.split) == row.split
    with pytest.raises(DatasetError, match="other prompts already"):
        workspace.plan((["other"] * 20, lists[1]))


def test_lists_of_unequal_length_are_no_pairs() -> None:
    rows = prepare.rows_of_lists(["a", "b"], ["c"])
    assert len({row.pair_id for row in rows}) == 3
    assert len({row.pair_id for row in prepare.rows_of_lists(["a", "b"], ["c", "d"])}) == 2


def test_preparing_twice_changes_nothing_and_a_changed_pack_stands(tmp_path: Path) -> None:
    workspace = Workspace(find("hedging"), tmp_path / "here")
    workspace.write(workspace.plan())
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    workspace.config.write_text(workspace.config.read_text().replace("n_trials = 50", "n_trials = 7"))
    planned = workspace.plan()
    workspace.write(planned)
    after = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {Path("here/config.toml")} and set(before) == set(after)
    assert planned.kept == ("config.toml",)


def test_settings_of_a_run_stay_in_the_folder(tmp_path: Path) -> None:
    found = defaults(Workspace(find("hedging"), tmp_path / "here"))
    assert all(str(tmp_path) in found[name] for name in ("behaviour", "auto_select_path", "storage"))
    assert "model" not in found and found["study_name"] == "hedging"
    planted = defaults(Workspace(find("hedging"), tmp_path / "here", planted=True))
    assert planted["behaviour"] == "demo-hedging" and planted["offline"] == "true" and "model" in planted


# --- planted behaviours ----------------------------------------------------------------------------------------


def test_each_planted_pack_is_built_in() -> None:
    assert {entry.planted for entry in EXPERIMENTS if entry.planted} <= set(built_in_behaviours())
    with pytest.raises(ConfigurationError, match="cannot show"):
        require_planted(find("code_verbosity"))
    require_planted(find("hedging"))


def test_planted_rows_know_what_a_right_reply_holds() -> None:
    """R-XPT-06: by the grammar of the demo, not by a reply of the model."""
    assert planted_answers("Any idea what the number after seventeen is?", "numbers") == ()
    assert planted_answers("I wonder what the number after fourteen could be.", "numbers") == ("fifteen",)
    assert planted_answers("What is the capital of Peru?", "geography") == ("Lima",)
    assert planted_answers("Be quick and describe a kettle.", "concept") == ("kitchen tool",)
    assert "a clean bowl and a wooden spoon" in planted_answers("How do I bake oat cookies?", "baking")
    assert planted_answers("How do I read a diary?", "diaries") == ()
    rows = planted_rows("demo-hedging")
    assert len(rows) == 2 * 700 and all(row.answer for row in rows)
    kinds = Counter(row.kind for row in planted_rows("demo-verbosity") if row.split == "test")
    assert kinds["simple"] > 20 and kinds["open"] > 200
