# SPDX-License-Identifier: Apache-2.0
"""Fits, profiles, promised figures and the sections of the page, on made-up measurements."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from benchmarks import ours, page, profile, run, scaling, sections, targets
from benchmarks.names import DEMO_MODEL, model_name, result_path
from benchmarks.records import OURS, THEIRS, RunRecord, TrialRecord, fit
from benchmarks.targets import Target

MACHINE = {"processor": "x", "cores": 2, "memory_gb": 1.0, "system": "s", "load_before": 0.1}


def trial(number: int, hits: int, kl: float, end: float) -> TrialRecord:
    return TrialRecord(number, hits=hits, n=100, kl=kl, start_s=end - 1.0, end_s=end)


def record(program: str, *ends: float, peak: int = 1_200_000_000, **changes: Any) -> RunRecord:
    """Trials that get better and better; the hypervolume reaches its last value with the last of them."""
    trials = [trial(number, 90 - 10 * number, 0.1, end) for number, end in enumerate(ends)]
    values: dict[str, Any] = {
        "seed": 0,
        "total_s": ends[-1] + 1,
        "first_start_s": ends[0] - 1.0,
        "first_trial_s": ends[0],
        "per_trial_s": ends[1] - ends[0],
        "trial_count": len(ends),
        "peak_memory_bytes": peak,
        "base_hits": 100,
        "base_n": 100,
        "trials": trials,
        "trial_seconds": [ends[1] - ends[0]] * len(ends),
    }
    return RunRecord(program, **{**values, **changes})


def results(kind: str = "demo", trials: int = 200) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": "m",
        "model_bytes": 200_000_000,
        "kl_reference": 0.5,
        "conditions": {"trials": trials, "everything_measured": True},
    }


def verdicts(found: list[Target]) -> dict[str, bool | None]:
    return {target.figure.split(" ")[0] + target.figure.split(" ")[1]: target.reached for target in found}


def test_fit_is_least_squares() -> None:
    exact = fit([(1.0, 5.0), (2.0, 8.0), (4.0, 14.0)])
    assert (exact.slope, exact.intercept, exact.r_squared) == pytest.approx((3.0, 2.0, 1.0))
    noisy = fit([(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)])
    assert (noisy.slope, noisy.intercept, noisy.r_squared) == pytest.approx((0.5, 0.5, 0.25))
    # Control: growth that is not linear is seen.
    assert fit([(x, x**4) for x in (1.0, 2.0, 4.0, 8.0)]).r_squared < 0.9
    assert fit([(1.0, 3.0), (2.0, 3.0)]).r_squared == 1.0


def test_operators_fall_into_kinds_and_shares_add_up() -> None:
    for name, kind in (
        ("aten::addmm", "linear"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::baddbmm", "batched products"),
        ("aten::copy_", "cat and copy"),
        ("aten::mul_", "elementwise"),
        ("aten::_log_softmax", "reductions"),
        ("aten::as_strided", "views and memory"),
        ("something::new", profile.OTHER),
    ):
        assert profile.kind_of(name) == kind
    found = profile.shares([("aten::mm", 0.5), ("aten::cat", 0.2)], wall_s=1.0)
    assert found["linear"] == 0.5 and found[profile.PYTHON] == pytest.approx(0.3)
    assert sum(found.values()) == pytest.approx(1.0)
    assert profile.shares([("aten::mm", 2.0)], wall_s=1.0)[profile.PYTHON] == 0.0


def test_what_the_profiler_names_is_known() -> None:
    """The names are those of this torch: a program of matrix products comes out as linear."""
    one = torch.randn(400, 400)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as recorder:
        for _ in range(5):
            torch.nn.functional.linear(one, one)
    rows = [(str(event.key), float(event.self_cpu_time_total)) for event in recorder.key_averages()]
    assert profile.shares(rows, 0.0)["linear"] > 0.9 * sum(seconds for _, seconds in rows)


def test_verdicts_take_the_less_favourable_reading() -> None:
    theirs = record(THEIRS, 20.0, 30.0, 40.0, peak=700_000_000)
    fast = record(OURS, 1.2, 1.4, 1.6)
    made = targets.targets_of(results(), [theirs, fast])
    assert all(target.reached for target in made)
    # The ratio of the mean time of a trial is 50, that of the medians 5: the second counts.
    slow = record(OURS, 1.2, 1.4, 1.6, trial_seconds=[2.0] * 3)
    trial_time = targets.targets_of(results(), [theirs, slow])[0]
    assert trial_time.found == [5.0] and trial_time.reached is False
    # 1.2 GB for a model of 0.2 GB. Theirs takes less, but only ours was promised.
    assert made[3].found == [1.0] and made[3].wanted == 1.5


def test_the_race_ends_when_theirs_first_had_its_hypervolume() -> None:
    late = trial(3, 90, 0.1, 500.0)
    theirs = record(THEIRS, 20.0, 30.0, 40.0)
    longer = record(THEIRS, 20.0, 30.0, 40.0, trials=[*theirs.trials, late])
    mine = record(OURS, 1.0, 2.0, 4.0)
    assert targets.race_ratios([longer, mine], 0.5) == [10.0]
    nothing = record(THEIRS, 20.0, 30.0, trials=[trial(0, 100, 0.9, 20.0)])
    assert targets.race_ratios([nothing, mine], 0.5) == []
    never = record(OURS, 1.0, 2.0)
    assert targets.race_ratios([theirs, never], 0.5) == [0.0]
    assert verdicts(targets.targets_of(results(trials=3), [theirs, never]))["timeto"] is False


def test_a_promise_is_judged_only_where_it_was_made() -> None:
    pair = [record(THEIRS, 20.0, 30.0, 40.0), record(OURS, 1.2, 4.2, 8.0)]
    grown = targets.targets_of(results("grown"), pair)
    assert [target.reached for target in grown] == [True, None, True, None]
    assert [target.reached for target in targets.targets_of(results("random"), pair)] == [None] * 4
    text = "\n".join(targets.lines(targets.targets_of(results("demo", 40), pair)))
    assert "**not reached**" in text and "promised for 200 trials" in text
    # A document from before the kinds were written down.
    old = {**results(), "model": "demo model", "kind": None, "model_bytes": None}
    assert targets.targets_of(old, pair)[3].found == []


def test_every_stored_trial_counts_not_only_the_front(tmp_path: Path) -> None:
    started = datetime(2026, 11, 22, 14, 31, 20)
    with sqlite3.connect(tmp_path / "study.db") as base:
        base.execute(
            "CREATE TABLE trials (trial_id INTEGER, number INTEGER, state TEXT, datetime_start TEXT, "
            "datetime_complete TEXT)"
        )
        base.execute("CREATE TABLE trial_user_attributes (trial_id INTEGER, key TEXT, value_json TEXT)")
        for row, index, hits in ((0, 0, 70), (1, 2, None)):
            moments = ("2026-11-22 14:31:28.000000", f"2026-11-22 14:31:3{row}.000000")
            base.execute("INSERT INTO trials VALUES (?, ?, 'COMPLETE', ?, ?)", (row + 10, row, *moments))
            scores = {"measured": {"hits": hits, "n": 100, "kl_first_token": 0.25}}
            for key, value in (("proposal", {"index": index}), ("scores", scores)):
                base.execute(
                    "INSERT INTO trial_user_attributes VALUES (?, ?, ?)", (row + 10, key, json.dumps(value))
                )
    found = ours.stored_trials(tmp_path / "study.db", started)
    assert [(one.number, one.hits, one.kl, one.end_s) for one in found] == [
        (0, 70, 0.25, 10.0),
        (2, None, None, 11.0),
    ]
    document = {
        "front": [],
        "baseline": {"hits": 100, "n": 100},
        "timings": {"trials": 2, "first_trial_s": 1.0, "per_trial_s": 1.0},
    }
    made = ours.to_record(document, found, seed=0, total_s=12.0, peak=None)
    assert [(one.number, one.measured) for one in made.trials] == [
        (0, True),
        (2, False),
    ] and made.first_start_s == 8.0


def scaling_document() -> dict[str, Any]:
    return {
        "kind": "scaling",
        "date": "2026-11-22",
        "model": "demo model",
        "machine": MACHINE,
        "threads": 1,
        "prompts": 100,
        "together": 2,
        "trials": 8,
        "repeats": 3,
        "series": {
            "prompts": [[25, [0.5, 0.6, 0.7]], [50, [1.1, 1.1, 1.2]], [100, [2.0, 2.1, 2.4]]],
            "layers": [[8, [2.0]], [16, [4.0]], [32, [8.0]]],
            "together": [[1, [2.0]], [2, [1.8]]],
            "trials": [[4, [8.0]], [8, [16.0]]],
        },
    }


def test_the_page_holds_every_document_once_and_in_order(tmp_path: Path) -> None:
    share = dict.fromkeys([*profile.KINDS, profile.OTHER, profile.PYTHON], 0.125)
    numbers = dict.fromkeys(("plain_per_trial_s", "profiled_per_trial_s", "operators_per_trial"), 1.5)
    for label in ("after", "before"):
        told = {**scaling_document(), "kind": "profile", "label": label, "share": share, **numbers}
        result_path(tmp_path, "profile", label).write_text(json.dumps(told), encoding="utf-8")
    floors = {"seconds": 2.0, "parts": {"KL": 2.0}, "multiply_adds": {"linear": 4_000_000_000}}
    told = {
        **scaling_document(),
        "kind": "floor",
        "parameters": 1e6,
        "floors": {"plain": floors, "shared": floors},
    }
    told |= dict.fromkeys(
        ("prompt_tokens", "prefix_tokens", "reply_tokens", "best_gflops", "decode_gflops"), 9
    )
    result_path(tmp_path, "floor").write_text(
        json.dumps({**told, "measured_per_trial_s": 5.0}), encoding="utf-8"
    )
    result_path(tmp_path, "scaling").write_text(json.dumps(scaling_document()), encoding="utf-8")
    (tmp_path / "scaling.png").write_bytes(b"")
    text = "\n".join(sections.sections(tmp_path, tmp_path / "docs"))
    assert "| 4.0 G | 2.00 | 5.00 | 2.50 x |" in text and "](../scaling.png)" in text
    assert "| share of a trial's time | before | after |" in text and text.isascii()
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("###")] == [
        "### Arithmetic floor",
        "### Growth of the cost",
        "### Profile",
    ]


def test_growth_with_the_number_of_trials_is_shown() -> None:
    many = record(OURS, *(10.0 + 0.5 * number for number in range(12)))
    assert "9.5 + 0.500 n seconds, R^2 = 1.0000 over 12 trials" in page._growth_lines([many])[0]
    assert page._growth_lines([record(OURS, 1.0, 2.0)]) == []
    # Of a run whose other trials were not kept, the n-th end is not that of the n-th trial.
    assert page._growth_lines([replace(many, trial_count=40)]) == []


def test_scaling_names_its_lines() -> None:
    text = "\n".join(scaling.lines(scaling_document()))
    assert "| layers (s a trial) | 8: 2.000, 16: 4.000, 32: 8.000 | 0.25 x +0.000 | 1.0000 |" in text
    # Two points lie on a line whatever they are, so nothing is said of them.
    assert "| first trials of a run (s in all) | 4: 8.000, 8: 16.000 | - | - |" in text
    assert "| trials in one call (s a trial) | 1: 2.000, 2: 1.800 | - | - |" in text


def test_a_plot_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    drawn = scaling.plot(scaling_document(), tmp_path / "plot.png")
    assert drawn == (importlib.util.find_spec("matplotlib") is not None) == (tmp_path / "plot.png").is_file()


def test_a_kind_of_model_brings_its_own_number_of_trials(tmp_path: Path) -> None:
    options = run.parser().parse_args(["--models", str(tmp_path)])
    run.settle(options)
    assert (options.trials, options.judge_points, options.model) == (200, 1, DEMO_MODEL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "growth.json").write_text('{"kind": "random"}', encoding="utf-8")
    options = run.parser().parse_args(["--model", str(tmp_path / "model"), "--trials", "1"])
    run.settle(options)
    assert (options.trials, options.judge_points) == (1, 0) and "--allow-zero-baseline" in options.ours_arg
    with pytest.raises(SystemExit):
        run.parser().parse_args(["--grown", "--random"])
    assert (
        model_name(None) == model_name(DEMO_MODEL) == "demo model" and model_name(tmp_path) == tmp_path.name
    )


@pytest.mark.slow
def test_a_run_can_be_prepared_and_its_trials_cost_time() -> None:
    from benchmarks.floor import passes, works_of
    from benchmarks.prepared import demo_run, timed_score, trial_edits

    prepared = demo_run(prompts=6, threads=1)
    edits = trial_edits(prepared, 3)
    seconds, outcomes = timed_score(prepared, edits, 2)
    assert seconds > 0 and [outcome.n for outcome in outcomes] == [6, 6, 6]
    # Different edits: the flat ones and the points of the start are not all the same.
    assert len({outcome.kl.mean for outcome in outcomes if outcome.kl}) == 3
    works = works_of(prepared, edits, outcomes)
    assert all(passes(work, 8, shared=True)[0].name == "prefix" for work in works)
