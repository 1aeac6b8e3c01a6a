# SPDX-License-Identifier: Apache-2.0
"""A judging model behind the markers, through the command line (requirements 5.2, R-NRD-01 to R-NRD-06)."""

from __future__ import annotations

import json

import pytest

from heretic.demo import model_path
from heretic.testing.text_models import nli_model

from .world import World

SETS = (
    ("good", "refusal-good", "train[:60]"), ("bad", "refusal-bad", "train[:60]"),
    ("good-evaluation", "refusal-good", "validation[:12]"), ("bad-evaluation", "refusal-bad", "validation[:12]"),
    ("good-confirmation", "refusal-good", "test[:12]"), ("bad-confirmation", "refusal-bad", "test[:12]"),
    ("over-behaviour", "refusal-borderline", "test[:6]"),
)  # fmt: skip
RUN = (
    str(model_path()), "--behaviour=refusal", "--offline", "--n-trials=2", "--n-startup-trials=2", "--storage=",
    "--auto-select=true", "--auto-select-path=out", "--finalists=1", "--no-enable-validation", "--no-use-covectors",
    "--json",
    *(f"--{name}-prompts.dataset=heretic:{source}" for name, source, _ in SETS),
    *(f"--{name}-prompts.split={split}" for name, _, split in SETS),
)  # fmt: skip
BLIND = ("--refusal-markers=zzz", "--refusal-detection-mode=strict", "--allow-zero-baseline")
"""Markers that find only what weak words tell: most refusals are left open."""


@pytest.fixture
def judge(world: World) -> str:
    return str(nli_model(world.folder / "judge"))


def test_refusals_without_a_marker_are_counted_by_the_model_in_trials_and_after(
    world: World, judge: str
) -> None:
    told = world.heretic(
        *RUN, *BLIND, f"--neural-detection-model={judge}", "--neural-detection-for-optuna", "--seed=1"
    )
    assert told.code == 0, told.err
    document = told.document
    assert document["baseline"]["search"]["classes"]["model"] >= 2, "by the model alone"
    assert document["baseline"]["behaviour_rate"] > 0.65
    assert document["chosen"]["behaviour_rate"] < 0.3
    judged = {entry["used_for"]: entry for entry in document["scorers"]}
    assert judged["trials"]["scorer"] == judged["finalists"]["scorer"] == "markers+nli"
    assert judged["trials"]["model"]["revision"].startswith("sha256:")
    assert judge not in json.dumps(document["scorers"]), "no path of this machine"


def test_control_without_the_model_they_are_not(world: World) -> None:
    told = world.heretic(*RUN, *BLIND, "--no-use-neural-refusal-detection")
    assert told.document["baseline"]["behaviour_rate"] < 0.6
    assert "model" not in told.document["baseline"]["search"]["classes"]
    assert told.document["scorers"][0]["scorer"] == "markers"


def test_on_a_processor_it_judges_only_when_asked_and_finalists_first(world: World, judge: str) -> None:
    plain = world.heretic(*RUN)
    assert plain.code in (0, 3), plain.err
    assert any("neural detection is off on a processor" in line for line in plain.document["degradations"])
    asked = world.heretic(*RUN, *BLIND, f"--neural-detection-model={judge}", "--overwrite", "--yes")
    judged = {entry["used_for"]: entry["scorer"] for entry in asked.document["scorers"]}
    assert judged == {"trials": "markers", "finalists": "markers+nli"}
    assert "model" not in asked.document["baseline"]["search"]["classes"]
    assert asked.document["baseline"]["behaviour_rate"] > 0.65, "held out, judged by the model"


def test_a_model_that_was_asked_for_and_cannot_be_had_ends_the_run(world: World) -> None:
    told = world.heretic(*RUN, "--use-neural-refusal-detection")
    assert told.code == 1 and "bart-large-mnli" in told.err, told.err
    told = world.heretic(*RUN, "--neural-detection-model=nowhere")
    assert told.code == 1 and "nowhere" in told.err
    assert not (world.folder / "out").exists()
