# SPDX-License-Identifier: Apache-2.0
"""The search loop in one process: sequence, duplicates, failures, budgets, storage faults (R-SEA-10 to
R-SEA-21).
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heretic.exceptions import FingerprintMismatchError, TooManyFailedTrialsError
from heretic.linalg.pareto import hypervolume
from heretic.study.measuring import _outcomes
from heretic.study.progress import scaled_points
from heretic.study.records import checked
from heretic.study.runner import StudyOutcome, run_study
from heretic.study.sampler import SAMPLERS
from heretic.study.space import canonical_key, default_space
from heretic.study.state import Study, open_study
from heretic.study.types import Dimension, FinishedTrial, Json, Progress, Proposal, Scores, TrialFailure

SPACE = default_space(("attn.o_proj", "mlp.down_proj"), 8)
FINGERPRINT: dict[str, Json] = {"model": "m", "seed": 3}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: these tests are about order, not about the speed of a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def measure(proposal: Proposal) -> Scores:
    """A cheap landscape: strong edits lower the behaviour and raise the KL."""
    attention = float(proposal.parameters["attn.o_proj.max_weight"] or 0.0)
    dense = float(proposal.parameters["mlp.down_proj.max_weight"] or 0.0)
    rate = math.exp(-attention - 0.7 * dense)
    divergence = 0.1 * attention**2 + 0.2 * dense**2 + 1e-3
    hits = round(100 * rate)
    measured = {"rate": rate, "hits": hits, "n": 100, "kl_mean": divergence}
    return Scores((rate, divergence), {"effect": rate - 0.9, "guard": divergence - 0.5}, measured)


class Landscape:
    """Evaluates proposals and remembers which."""

    def __init__(self) -> None:
        self.evaluated: list[Proposal] = []
        self.seen: list[int] = []

    def __call__(
        self, proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> list[Scores | TrialFailure]:
        self.evaluated += proposals
        self.seen.append(len(finished))
        return [measure(proposal) for proposal in proposals]


def run(study: Study, evaluate: Any, n_trials: int, **options: Any) -> StudyOutcome:
    settings: dict[str, Any] = {"space": SPACE, "seed": 3, "batch_size": 4, "n_startup_trials": 8, **options}
    return run_study(study, evaluate, n_trials=n_trials, **settings)


def in_memory() -> Study:
    return open_study(None, fingerprint=FINGERPRINT)


def in_file(folder: Path, **options: Any) -> Study:
    return open_study(f"sqlite:///{folder}/s.db", "s", fingerprint=FINGERPRINT, **options)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_r_sea_06_every_sampler_is_a_function_of_seed_and_index(sampler: str) -> None:
    count = 24
    options: dict[str, Any] = {"sampler": sampler}
    if sampler == "gp":  # seconds a trial: one step of it over two dimensions
        count = 4
        peaks = tuple(dimension for dimension in SPACE if dimension.name.endswith("max_weight"))
        options |= {"space": peaks, "n_startup_trials": 3, "batch_size": 1}
    first, second, other = Landscape(), Landscape(), Landscape()
    run(in_memory(), first, count, **options)
    run(in_memory(), second, count, **options)
    run(in_memory(), other, count, **{**options, "seed": 4})
    assert first.evaluated == second.evaluated
    assert first.evaluated != other.evaluated, "control: the seed matters"
    assert len({canonical_key(proposal.parameters) for proposal in first.evaluated}) == len(first.evaluated)
    size = options.get("batch_size", 4)
    assert first.seen == sorted({0, -(-size // 4), *range(size, count, size)}), (
        "evaluate sees exactly the earlier batches"
    )


def test_tpe_learns_where_random_does_not() -> None:
    """Model and refinement find better points than the start-up sequence continued (control)."""
    reference = (1.0, 0.3)

    def searched(sampler: str, seed: int) -> tuple[FinishedTrial, ...]:
        options: dict[str, Any] = {"n_startup_trials": 16, "reference": reference, "seed": seed}
        return tuple(run(in_memory(), Landscape(), 60, sampler=sampler, **options).finished)

    def mean(trials: Sequence[FinishedTrial]) -> float:
        return sum(sum(trial.scores.objectives) for trial in trials) / len(trials)

    def best(trials: Sequence[FinishedTrial]) -> float:
        return min(sum(trial.scores.objectives) for trial in trials if trial.scores.feasible)

    learnt, control = searched("tpe", 3), searched("qmc", 3)
    assert best(learnt[16:]) < best(control[16:]) + 1e-9
    assert mean(learnt[30:]) < 0.9 * mean(control[30:])
    for seed in (3, 4, 5, 6):
        areas = [hypervolume(scaled_points(searched(sampler, seed), reference)) for sampler in ("tpe", "qmc")]
        assert areas[0] > areas[1], "what the search is for"


def test_r_sea_21_resume_adds_trials_and_continues_the_sequence(tmp_path: Path) -> None:
    whole = Landscape()
    reference = run(in_memory(), whole, 20)
    parts = Landscape()
    for total in (8, 8, 20):  # the second run finds nothing left to do
        with in_file(tmp_path) as study:
            outcome = run(study, parts, total)
            assert outcome.finished == reference.finished[:total] and outcome.reason == "finished"
    assert parts.evaluated == whole.evaluated


def test_reliability_a10_no_point_twice_over_odd_cuts(tmp_path: Path) -> None:
    landscape = Landscape()
    for total in (3, 5, 11, 18):
        with in_file(tmp_path) as study:
            run(study, landscape, total)
    keys = [canonical_key(proposal.parameters) for proposal in landscape.evaluated]
    assert len(keys) == len(set(keys)) == 18
    assert [proposal.index for proposal in landscape.evaluated] == list(range(18))


def test_duplicates_are_told_but_not_evaluated() -> None:
    """A space of four edits: ten trials complete, four are measured; copies carry the original's scores."""
    space = (Dimension("a.max_weight", "int", 0, 3),)
    calls: list[Proposal] = []

    def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        calls.extend(proposals)
        values = [float(proposal.parameters["a.max_weight"] or 0) for proposal in proposals]
        return [Scores((value, 3 - value), {}, {"call": len(calls)}) for value in values]

    study = in_memory()
    outcome = run(study, evaluate, 10, space=space)
    assert len(outcome.finished) == 10
    assert len(calls) == len({canonical_key(call.parameters) for call in calls}) == 4
    marks = {
        row.user_attrs["proposal"]["index"]: row.user_attrs.get("duplicate_of") for row in study.inner.trials
    }
    by_index = {trial.index: trial for trial in outcome.finished}
    copies = {index: original for index, original in marks.items() if original is not None}
    assert len(copies) == 6
    for index, original in copies.items():
        assert marks[original] is None
        assert by_index[index].parameters == by_index[original].parameters
        assert by_index[index].scores == by_index[original].scores


def test_warm_starts_are_the_first_trials_and_kept_on_resume(tmp_path: Path) -> None:
    warm = [
        {"attn.o_proj.max_weight": 0.75, "direction_scope": "per_layer"},
        {"mlp.down_proj.max_weight": 99.0},
    ]
    with in_file(tmp_path) as study:
        first = run(study, Landscape(), 1, warm_start=warm, batch_size=1).finished
    with in_file(tmp_path) as study:
        trials = run(study, Landscape(), 3, warm_start=[{"attn.o_proj.max_weight": 0.1}]).finished
    assert trials[0] == first[0]
    assert trials[0].parameters["attn.o_proj.max_weight"] == 0.75
    assert trials[0].parameters["direction_index"] is None
    assert trials[1].parameters["mlp.down_proj.max_weight"] == 1.5, "made legal"
    assert trials[2].parameters["attn.o_proj.max_weight"] != 0.1


@pytest.mark.parametrize(
    "bad",
    [
        Scores((float("nan"), 0.1)),
        Scores((0.1, float("inf"))),
        Scores((0.1, 0.1), {"guard": float("nan")}),
        Scores((0.1, 0.1), {}, {"kl_mean": float("nan")}),
        Scores((0.1, 0.1), {}, {"kl_mean": np.float32(0.5)}),  # type: ignore[dict-item]  # the fault under test
        None,
    ],
)
def test_reliability_a09_a16_bad_scores_fail_with_a_reason(bad: Any) -> None:
    def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Any]:
        return [bad if proposal.index in (2, 5) else measure(proposal) for proposal in proposals]

    study = in_memory()
    outcome = run(study, evaluate, 8)
    assert [trial.index for trial in outcome.finished] == [0, 1, 3, 4, 6, 7, 8, 9], (
        "A11: n_trials counts complete"
    )
    assert sorted(outcome.failed) == [2, 5] and "Trial 2" in outcome.failed[2]
    assert study.failed_trials() == outcome.failed
    assert isinstance(
        checked(measure(Proposal(0, {"attn.o_proj.max_weight": 1.0, "mlp.down_proj.max_weight": 0.0})), "x"),
        Scores,
    )


def test_a_failing_pass_is_repeated_one_by_one() -> None:
    def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        if any(proposal.index == 1 for proposal in proposals):
            raise FloatingPointError("overflow in trial 1")
        return [measure(proposal) for proposal in proposals]

    outcome = run(in_memory(), evaluate, 5)
    assert list(outcome.failed) == [1] and "overflow" in outcome.failed[1]

    def broken(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        raise KeyError("our own mistake")

    with pytest.raises(KeyError):
        _outcomes(broken, [Proposal(0, {})], [])


def test_reliability_a09_five_failures_in_a_row_stop_the_run() -> None:
    def evaluate(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> list[Scores | TrialFailure]:
        return [
            TrialFailure("no memory") if proposal.index >= 4 else measure(proposal) for proposal in proposals
        ]

    study = in_memory()
    with pytest.raises(TooManyFailedTrialsError) as error:
        run(study, evaluate, 30)
    assert "no memory" in error.value.message
    assert len(study.finished_trials()) == 4 and len(study.failed_trials()) == 8

    def often(
        proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
    ) -> list[Scores | TrialFailure]:
        return [TrialFailure("odd") if proposal.index % 2 else measure(proposal) for proposal in proposals]

    with pytest.raises(TooManyFailedTrialsError):
        run(in_memory(), often, 100, max_failed=9)


def test_stop_and_deadline_act_between_batches() -> None:
    """R-SEA-13, REL-R06: the running batch is finished, no row stays open, the next run goes on."""
    landscape, study, now = Landscape(), in_memory(), [0.0]
    stopped = run(study, landscape, 16, stop=lambda: len(landscape.evaluated) >= 4)
    assert stopped.reason == "stopped" and len(stopped.finished) == 4

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    late = run(study, landscape, 16, deadline=now[0] + 3, clock=clock)
    assert late.reason == "out of time" and 4 < len(late.finished) < 16
    done = run(study, landscape, 16)
    assert done.reason == "finished" and [trial.index for trial in done.finished] == list(range(16))


def test_progress_reports_this_process_only() -> None:
    """R-SEA-14 with a fake clock, two seconds a batch of four: old trials do not count as speed."""
    study, now = in_memory(), [100.0]
    seen: list[Progress] = []

    def evaluate(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        now[0] += 2.0
        return [measure(proposal) for proposal in proposals]

    run(study, evaluate, 8)
    run(
        study, evaluate, 16, on_progress=seen.append, clock=lambda: now[0], reference=(1.0, 0.5), kl_limit=0.3
    )
    progress = seen[0]
    assert (progress.finished, progress.wanted, progress.failed) == (12, 16, 0)
    assert progress.trials_per_second == pytest.approx(2.0) and progress.eta_s == pytest.approx(2.0)
    assert len(progress.batch) == 4 and progress.front_size >= 1 and 0 < progress.hypervolume < 1
    assert progress.best is not None and progress.best.scores.objectives[1] <= 0.3
    assert seen[1].hypervolume >= seen[0].hypervolume and seen[1].eta_s == 0


def test_stall_stops_a_search_that_no_longer_improves() -> None:
    def flat(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        return [Scores((0.5, 0.5)) for _ in proposals]

    outcome = run(in_memory(), flat, 80, sampler="qmc", stop_on_stall=True)
    assert outcome.reason == "stalled" and 40 < len(outcome.finished) < 60
    assert run(in_memory(), flat, 48, sampler="qmc").reason == "finished", "control: off by default"


def test_another_space_or_seed_is_refused_and_the_batch_size_is_kept(tmp_path: Path) -> None:
    with in_file(tmp_path) as study:
        run(study, Landscape(), 2, batch_size=2)
    with in_file(tmp_path) as study:
        for change in (
            {"seed": 4},
            {"space": default_space(("attn.o_proj", "mlp.down_proj"), 9)},
            {"sampler": "qmc"},
        ):
            with pytest.raises(FingerprintMismatchError) as error:
                run(study, Landscape(), 4, **change)
            assert error.value.details
        landscape = Landscape()
        run(study, landscape, 6, batch_size=64)
        assert landscape.seen == [2, 4], "A05: two trials per batch, as stored"


def test_no_warning_reaches_the_user() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(in_memory(), Landscape(), 12, n_startup_trials=4)
