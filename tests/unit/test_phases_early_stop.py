# SPDX-License-Identifier: Apache-2.0
"""The settings that cut measurements short: what they do in a search, that one switch turns all of it off, and that
finalists are never touched (R-EVA-22, R-EVA-25, R-SEA-12, R-SEA-20; reliability E09)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from heretic.config import resolve_settings, settings_for_fingerprint
from heretic.console import Console
from heretic.directions.bank import DirectionBank
from heretic.directions.findings import Findings
from heretic.exceptions import FingerprintMismatchError
from heretic.model.model import Model
from heretic.phases import steps
from heretic.phases.choice import confirm, search_measurement
from heretic.phases.confirmation import Confirmation
from heretic.phases.dataset_loading import DatasetBundle
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.evaluation import make_evaluator
from heretic.phases.optimization import (
    create_study,
    enqueue_warm_start_trials,
    scored_with,
    search_space,
)
from heretic.phases.state import Run
from heretic.phases.throughput import trials_per_batch
from heretic.prompts import Prompt, PromptSet
from heretic.stop import StopFlag
from heretic.study.records import plain
from heretic.study.space import resolve, sobol_point
from heretic.study.state import open_study
from heretic.study.types import FinishedTrial, Json, Proposal, Scores
from heretic.testing.theorems import unit
from heretic.testing.workbench import loaded_pico
from heretic.trial_display import figure_texts

WORDS = ("How? ", "Why", "List it. ", "a", "Go on ", "Tell ", "Name two", "b c")
PROMPTS = 24
MARKERS = r"\w*[a-mQ-Z]\w*"


@cache
def model() -> Model:
    return loaded_pico("olmo2", seed=2, changes={"vocab_size": 262})


def prompt_set(times: int) -> PromptSet:
    texts = [word * (1 + number) for number in range(times) for word in WORDS]
    return PromptSet(tuple(Prompt(text) for text in texts), "0", "test")


@cache
def run_with(folder: Path, *tokens: str) -> Run:
    """A run up to the point where trials begin, with a random direction in every layer."""
    words = ["m", "--behaviour=demo", f"--refusal-markers={MARKERS}", "--allow-zero-baseline"]
    words += ["--max-response-length=10", "--refusal-check-tokens=6", "--refusal-detection-mode=strict"]
    resolved = resolve_settings([*words, *tokens], environ={}, cwd=folder)
    run = Run(resolved, Console(quiet=True), StopFlag())
    run.model = model()
    some = prompt_set(3)
    run.bundle = DatasetBundle(some, some, some, some, some, some, None)
    run.evaluator, run.baseline = steps.measure_base(run)
    layers, size = model().architecture.layers, model().architecture.hidden_size
    directions = torch.stack([unit(size, 7 + layer)[None] for layer in range(layers)])
    figures = (1.0,) * layers
    run.extraction = DirectionExtractionResult(
        Findings({"difference": DirectionBank(directions, torch.ones(layers, 1))}), figures, figures, figures
    )
    run.context = steps.plan_context(run)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("early-stop")


def proposals(run: Run) -> list[Proposal]:
    """The strong edits that a search begins with, and points of its quasi-random design."""
    space = search_space(run)
    points = [sobol_point(space, 0, number) for number in range(4)]
    parameters = [resolve(space, lambda dimension, point=point: point[dimension.name]) for point in points]  # type: ignore[misc]  # no type is inferred for a default of a lambda
    return [
        Proposal(number, values)
        for number, values in enumerate([*enqueue_warm_start_trials(run), *parameters])
    ]


def rival(rate: float, kl: float) -> FinishedTrial:
    hits = round(rate * PROMPTS)
    measured: dict[str, Json] = {
        "status": "complete",
        "rate": rate,
        "hits": hits,
        "n": PROMPTS,
        "kl_mean": kl,
    }
    return FinishedTrial(99, {"x": 1.0}, Scores((hits / PROMPTS, kl), {}, measured))


def told(run: Run, finished: Sequence[FinishedTrial]) -> list[Scores]:
    assert run.evaluator is not None
    found = scored_with(run, run.evaluator.score)(proposals(run), finished)
    assert all(isinstance(result, Scores) for result in found)
    return [result for result in found if isinstance(result, Scores)]


def statuses(found: Sequence[Scores]) -> set[object]:
    return {scores.measured["status"] for scores in found}


def test_one_switch_measures_everything(folder: Path) -> None:
    """The same tiny KL cap, and a rival whom nobody can beat; the control is the default of the switch."""
    unbeatable = [rival(0.0, 0.0)]
    for tokens, cut in ((("--max-trial-kl=0.01",), "rejected_by_kl"), ((), "dominated")):
        whole = told(run_with(folder, *tokens, "--early-stop-trials=false"), unbeatable)
        assert statuses(whole) == {"complete"}
        assert all(isinstance(scores.measured["hits"], int) for scores in whole)
        short = told(run_with(folder, *tokens), unbeatable)
        assert cut in statuses(short)
        for mine, theirs in zip(short, whole, strict=True):
            if mine.measured["status"] == "rejected_by_kl":
                assert not theirs.feasible, "above the cap is infeasible, measured or not"
                assert theirs.constraints["kl"] == mine.constraints["kl"] > 0
            else:
                assert mine.measured["kl_mean"] == theirs.measured["kl_mean"]
                assert mine.objectives[0] <= theirs.objectives[0]


def test_racing_gives_trials_up_and_gives_the_same_up_again(folder: Path) -> None:
    """E09: explicit state and reason, and the same decision from the same knowledge. Control: without the setting."""
    run = run_with(folder, "--racing", "--racing-prompts=10")
    assert run.evaluator is not None and [len(stage) for stage in run.evaluator.stages] == [10, PROMPTS - 10]
    target = [rival(0.5, 0.0)]
    found = told(run, target)
    assert found == told(run, target)
    given_up = [scores for scores in found if scores.measured["status"] == "estimated"]
    assert given_up
    for scores in given_up:
        race = scores.measured["race"]
        assert isinstance(race, Mapping) and race["target"] == 0.5
        assert race["hopeless"] == pytest.approx(27 / 34)
        assert scores.measured["prompts_seen"] == 10 and scores.measured["hits"] is None
        assert not scores.feasible
        assert (
            figure_texts(FinishedTrial(0, {}, scores))[0]
            == f"{scores.measured['hits_at_least']} of the first 10"
        )
    assert "estimated" not in statuses(told(run_with(folder), target))
    assert "estimated" not in statuses(told(run, [])), "nobody to beat"
    assert not run.degradations
    few = run_with(folder, "--racing", f"--racing-prompts={PROMPTS}")
    assert any("no trial is raced" in line for line in few.degradations)
    alone = told(run, [rival(0.5, 10.0)])
    assert statuses(alone) == {"complete"}, "no rival of at most that KL"


def test_finalists_always_get_every_prompt_whatever_stops_trials(folder: Path) -> None:
    """R-EVA-25: all held-out prompts at full length, and a KL on all prompts. Control: the evaluator of the search."""
    run = run_with(folder, "--racing", "--racing-prompts=10", "--max-trial-kl=0.0001", "--finalists=15")
    trials = [
        FinishedTrial(
            proposal.index,
            proposal.parameters,
            Scores(
                (0.5 - proposal.index / 100, 0.01 * (1 + proposal.index)),
                {},
                {
                    "status": "complete",
                    "hits": 50 - proposal.index,
                    "n": 100,
                    "kl_mean": 0.01 * (1 + proposal.index),
                },
            ),
        )
        for proposal in proposals(run)
    ]
    confirmation = Confirmation(run)
    confirmation.measure_base()
    confirmed = confirm(run, confirmation, trials)
    assert len(confirmed) == len(trials)
    for entry in confirmed:
        assert (entry.outcome.status, entry.outcome.n, entry.outcome.seen) == ("complete", PROMPTS, PROMPTS)
        assert entry.measurement.kl is not None and entry.measurement.kl.n == PROMPTS
        assert len(entry.outcome.labels) == len(entry.outcome.replies) == PROMPTS
    assert confirmation.evaluator.stages == [range(PROMPTS)] and not confirmation.evaluator.early_exit
    prompts = prompt_set(3).prompts
    of_search = make_evaluator(run, prompts, prompts, early_exit=True, early_stop=True)
    cut = of_search.score([run.edits(proposal.parameters) for proposal in proposals(run)])
    assert "rejected_by_kl" in {outcome.status for outcome in cut}


def test_a_trial_that_was_cut_short_is_reported_without_figures(folder: Path) -> None:
    """The user may name one (--trial). Control: a complete one has them."""
    found = told(run_with(folder, "--max-trial-kl=0.01"), [rival(0.0, 0.0)])
    for scores in found:
        shown = search_measurement(FinishedTrial(0, {}, scores))
        assert shown.rate.n == 0, "not measured, and not 0 of 24"
        assert (shown.kl is None) == (scores.measured.get("kl_mean") is None)
    complete = told(run_with(folder, "--early-stop-trials=false"), [])
    assert all(search_measurement(FinishedTrial(0, {}, scores)).rate.n == PROMPTS for scores in complete)


def test_what_is_shown_of_a_bound_says_that_it_is_one() -> None:
    def shown(scores: Scores) -> tuple[str, str]:
        return figure_texts(FinishedTrial(0, {}, scores))

    whole: dict[str, Json] = {"status": "complete", "rate": 0.25, "kl_mean": 0.5}
    assert shown(Scores((0.25, 0.5), {}, whole)) == ("25.0%", "0.5000")
    lost: dict[str, Json] = {
        "status": "dominated",
        "rate": None,
        "hits": None,
        "n": 100,
        "hits_at_least": 7,
        "kl_mean": 0.5,
    }
    assert shown(Scores((0.07, 0.5), {}, lost)) == (">= 7/100", "0.5000")
    cut: dict[str, Json] = {"status": "rejected_by_kl", "rate": None, "kl_mean": None, "kl_at_least": 2.5}
    assert shown(Scores((1.0, 3.0), {}, cut)) == ("-", ">= 2.5000")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ("--racing", "settings.racing:"),
        ("--early-stop-trials=false", "settings.early_stop_trials:"),
        ("--max-trial-kl=1", "settings.max_trial_kl:"),
    ],
)
def test_a_study_is_not_resumed_with_another_way_of_stopping(
    changed: str, field: str, tmp_path: Path
) -> None:
    """R-SEA-20, R-SEA-22: these decide what trials are told. Control: racing_prompts without racing decides nothing."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def fingerprint(*tokens: str) -> dict[str, object]:
        settings = resolve_settings(["m", *tokens], environ={}, cwd=tmp_path).settings
        return {"settings": plain(settings_for_fingerprint(settings), "settings")}

    with open_study(storage, "one", fingerprint=fingerprint()):  # type: ignore[arg-type]  # plain JSON
        pass
    with pytest.raises(FingerprintMismatchError) as refused:
        open_study(storage, "one", fingerprint=fingerprint(changed))  # type: ignore[arg-type]  # plain JSON
    assert any(line.startswith(field) for line in refused.value.details)
    thirty, forty = (fingerprint("--racing", f"--racing-prompts={number}") for number in (30, 40))
    assert thirty != forty
    before = fingerprint()
    (tmp_path / "config.toml").write_text("racing_prompts = 40\n")
    assert fingerprint() == before


def test_racing_without_early_stops_is_said_to_have_no_effect(tmp_path: Path) -> None:
    """R-CFG-06."""
    resolved = resolve_settings(["m", "--racing", "--early-stop-trials=false"], environ={}, cwd=tmp_path)
    assert any("racing" in notice and "early_stop_trials is off" in notice for notice in resolved.notices)
    quiet = resolve_settings(["m", "--racing"], environ={}, cwd=tmp_path)
    assert not any("racing" in notice for notice in quiet.notices)


def test_a_study_keeps_its_number_of_trials_at_a_time(folder: Path) -> None:
    """Else a resumed study on another machine would ask other points. Control: measured, it would be another number."""
    run = run_with(folder)
    run.study = create_study(run)
    assert trials_per_batch(run) <= 4, "one thread: measured"
    run.study.store("trials_per_batch", 7)
    assert trials_per_batch(run) == 7
