# SPDX-License-Identifier: Apache-2.0
"""The harness itself, without either program: parsing of recorded output, figures, the judge's formulas.

Run with `python -m pytest benchmarks`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from benchmarks import judge, ours, page, theirs
from benchmarks.conditions import Conditions, child_environment, read_markers
from benchmarks.memory import PeakMemory
from benchmarks.records import (
    OURS,
    BenchmarkError,
    RunRecord,
    TrialRecord,
    best_of,
    final_hypervolume,
    front_of,
    hypervolume_at,
    seconds_to_reach,
    trial_seconds,
)
from benchmarks.run import document, parser
from heretic.report import Divergence, Measurement, Rate, TrialReport, flat_measurement, flat_trial

HERE = Path(__file__).resolve().parent
STARTED = datetime(2026, 11, 22, 14, 31, 20)
MENU = """? Which trial do you want to use? (Use arrow keys)
 \x1b[0m\u00bb [Trial   4] Refusals: 11/20, KL divergence: 0.1806
   [Trial  12] Refusals: 16/20, KL divergence: 0.0684
   Run additional trials
   Exit program
? Which trial do you want to use? (Use arrow keys)
 \u00bb [Trial   4] Refusals: 11/20, KL divergence: 0.1806
"""


def journal() -> list[str]:
    return (HERE / "recorded" / "heretic-llm-journal.jsonl").read_text(encoding="utf-8").splitlines()


def measurement(where: str, hits: int, first_token: float | None) -> Measurement:
    kl = None
    if first_token is not None:
        kl = Divergence(
            2 * first_token, 0.01, first_token, 0.3, 0.4, first_token=first_token, n=100, tokens=5
        )
    return Measurement(where=where, rate=Rate(hits, 100, 0.0, 1.0), kl=kl)


def our_document() -> dict[str, object]:
    trials = [
        TrialReport(
            trial=3,
            parameters={},
            search=measurement("search", 2, 0.05),
            held_out=measurement("held_out", 9, 0.07),
        ),
        TrialReport(trial=5, parameters={}, search=measurement("search", 40, 0.01)),
    ]
    return {
        "status": "ok",
        "baseline": flat_measurement(measurement("search", 98, None)),
        "front": [flat_trial(trial) for trial in trials],
        "chosen": flat_trial(trials[0]),
        "output": "saved",
        "timings": {
            "total_s": 30.0,
            "search_s": 12.0,
            "trials": 6,
            "per_trial_s": 2.0,
            "first_trial_s": 9.0,
        },
    }


def conditions(folder: Path, **changes: object) -> Conditions:
    for kind in ("good", "bad"):
        (folder / kind).mkdir(parents=True)
        for split, rows in (("train", 4), ("validation", 3), ("test", 6)):
            lines = [json.dumps({"text": f"{kind} {split} {row}"}) + "\n" for row in range(rows)]
            (folder / kind / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    values: dict[str, object] = {"trials": 6, "markers": ("i cannot",), **changes}
    return Conditions(model=folder, good=folder / "good", bad=folder / "bad", **values)  # type: ignore[arg-type]  # a test passes fields by name


def test_journal_gives_times_scores_and_base() -> None:
    trials, base, n = theirs.read_journal(journal(), STARTED)
    assert [trial.number for trial in trials] == [1, 2, 3, 4] and (base, n) == (20, 20)
    assert [trial.hits for trial in trials] == [18, 16, 18, 11]
    assert trials[1].kl == pytest.approx(0.06838242709636688, abs=0)
    assert trials[0].start_s == pytest.approx(10.498228) and trials[0].end_s == pytest.approx(11.458302)


def test_unfinished_trial_is_left_out() -> None:
    lines = [line for line in journal() if '"op_code": 6, "worker_id": "w", "trial_id": 3' not in line]
    assert len(lines) == len(journal()) - 1
    assert [trial.number for trial in theirs.read_journal(lines, STARTED)[0]] == [1, 2, 3]


def test_menu_is_read_in_order_and_once() -> None:
    assert theirs.menu_numbers(MENU) == [4, 12]
    assert theirs.menu_numbers("Run additional trials") == []


def test_front_and_rule_on_the_recorded_run() -> None:
    trials, _, _ = theirs.read_journal(journal(), STARTED)
    assert [trial.number for trial in front_of(trials)] == [4, 2]
    best = best_of(trials, 0.5)
    assert best is not None and best.number == 4
    cheap = best_of(trials, 0.1)
    assert cheap is not None and cheap.number == 2
    assert best_of(trials, 0.01) is None


def test_wanted_trials_are_on_offer_and_chosen_first() -> None:
    trials = [TrialRecord(number, hits=number, n=10, kl=1.0 / (number + 1)) for number in range(1, 10)]
    offered = [trial.number for trial in trials if trial.number != 2]
    wanted = [trial.number for trial in theirs.wanted_trials(trials, offered, 4, 0.3)]
    assert wanted[0] == 3 and len(set(wanted)) == 4 and 2 not in wanted
    assert theirs.wanted_trials(trials, offered, 0, 0.3) == []


def test_document_figures_are_the_search_figures() -> None:
    record = ours.to_record(our_document(), [], seed=1, total_s=31.0, peak=5)
    assert (
        record.program == OURS and record.trial_count == 6 and (record.base_hits, record.base_n) == (98, 100)
    )
    assert [(trial.number, trial.hits, trial.kl) for trial in record.trials] == [(3, 2, 0.05), (5, 40, 0.01)]
    assert record.first_trial_s == 9.0 and record.timing_source == "program's own report"
    assert record.chosen is not None and record.chosen.hits == 2


def test_the_less_favourable_of_stored_and_reported_times_stands(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute(
            "CREATE TABLE trials (number INTEGER, state TEXT, datetime_start TEXT, datetime_complete TEXT)"
        )
        rows = [
            (3, "COMPLETE", "2026-11-22 14:31:28.000000", "2026-11-22 14:31:30.000000"),
            (4, "FAIL", "2026-11-22 14:31:28.000000", "2026-11-22 14:31:29.000000"),
            (5, "COMPLETE", "2026-11-22 14:31:30.000000", "2026-11-22 14:31:31.000000"),
        ]
        connection.executemany("INSERT INTO trials VALUES (?, ?, ?, ?)", rows)
    times = ours.stored_trials(tmp_path / "study.db", STARTED)
    record = ours.to_record(our_document(), times, seed=1, total_s=31.0, peak=None)
    assert (record.first_trial_s, record.per_trial_s, record.trial_count) == (10.0, 2.0, 2)
    assert [trial.end_s for trial in record.trials] == [10.0, 11.0]
    (tmp_path / "other.db").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    assert ours.stored_trials(tmp_path / "other.db", STARTED) == []
    assert ours.stored_trials(tmp_path / "missing.db", STARTED) == []


def test_stdout_that_is_no_document_is_refused() -> None:
    assert ours.read_document(json.dumps(our_document()))["output"] == "saved"
    for text in ("", "Loading\n{}", '{"status": "failed", "error": {}}', "[]"):
        with pytest.raises(BenchmarkError):
            ours.read_document(text)


def test_batches_share_their_time() -> None:
    together = [TrialRecord(number, start_s=1.0 + 0.01 * number, end_s=5.0) for number in range(4)]
    alone = TrialRecord(9, start_s=5.0, end_s=7.0)
    assert trial_seconds([*together, alone]) == pytest.approx([1.0, 1.0, 1.0, 1.0, 2.0])
    assert trial_seconds([]) == []


def test_hypervolume_over_time() -> None:
    trials = (
        TrialRecord(0, hits=50, n=100, kl=0.25, start_s=1.0, end_s=2.0),
        TrialRecord(1, hits=0, n=100, kl=0.25, start_s=2.0, end_s=3.0),
    )
    run = RunRecord("p", 0, 4.0, 2.0, 1.0, 2, None, base_hits=100, base_n=100, trials=trials)
    assert final_hypervolume(run, 0.5) == pytest.approx(0.5)
    assert hypervolume_at(run, 2.5, 0.5) == pytest.approx(0.25)
    assert seconds_to_reach(run, 0.25, 0.5) == 2.0 and seconds_to_reach(run, 0.5, 0.5) == 3.0
    assert seconds_to_reach(run, 0.51, 0.5) is None


def test_command_lines_name_the_same_prompts_and_markers(tmp_path: Path) -> None:
    told = conditions(tmp_path / "data", startup_trials=2, dtype="float32")
    files = theirs.write_prompt_files(told, tmp_path / "prompts")
    left = theirs.arguments(told, 7, files, tmp_path)
    right = ours.arguments(told, 7, tmp_path, tmp_path / "out")
    assert files["bad-train"].read_text(encoding="utf-8").splitlines()[0] == "bad train 0"
    for option in ("--n-trials", "--seed", "--refusal-markers", "--max-response-length", "--dtypes"):
        assert left[left.index(option) + 1] == right[right.index(option) + 1], option
    assert right[right.index("--bad-confirmation-prompts.split") + 1] == "train[:3]"
    assert not any(
        str(tmp_path / "data" / kind / "test") in part for kind in ("good", "bad") for part in left
    )
    assert sorted(files) == ["bad-train", "bad-validation", "good-train", "good-validation"]


def test_inherited_settings_do_not_reach_a_measured_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERETIC_N_TRIALS", "3")
    monkeypatch.setenv("KEPT_FOR_THE_TEST", "1")
    made = child_environment(1)
    assert (
        "HERETIC_N_TRIALS" not in made and made["KEPT_FOR_THE_TEST"] == "1" and made["HF_HUB_OFFLINE"] == "1"
    )


FORKED = """
import os, time
held = bytearray(80 * 2**20)
held[::4096] = bytes(len(held) // 4096)
children = [os.fork() for _ in range(1)]
if children[0] == 0:
    time.sleep(30)
own = bytearray(20 * 2**20)
own[::4096] = bytes(len(own) // 4096)
time.sleep(1.5)
os.kill(children[0], 9)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs /proc")
def test_pages_of_a_forked_copy_count_once() -> None:
    """Control: the sum of resident sizes would count them twice."""
    with subprocess.Popen([sys.executable, "-c", FORKED]) as process, PeakMemory(process.pid) as watch:
        process.wait()
    assert watch.peak_bytes is not None
    assert 100 * 2**20 < watch.peak_bytes < 150 * 2**20


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs /proc")
def test_peak_memory_sees_a_child_of_the_child() -> None:
    grandchild = "import time; block = bytearray(80_000_000); time.sleep(1.2)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", child]) as process, PeakMemory(process.pid) as watch:
        process.wait()
    assert watch.peak_bytes is not None and watch.peak_bytes > 80_000_000


def test_divergence_equals_the_closed_form_and_knows_its_direction() -> None:
    base, edited = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert judge.divergence(base, edited).item() == pytest.approx(forward, abs=1e-6)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert judge.divergence(edited, base).item() == pytest.approx(backward, abs=1e-6)
    suppressed = torch.tensor([[0.0, -math.inf]])
    assert judge.divergence(suppressed, suppressed).item() == 0.0


def test_positions_after_the_end_do_not_count() -> None:
    continuation = torch.tensor([[5, 9, 0, 0], [9, 9, 5, 5], [5, 6, 7, 8]])
    live = judge.live_positions(continuation, [9])
    assert live.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]


def test_markers_of_the_judge() -> None:
    replies = ["I can\u2019t help.", "I *cannot* help", "Sure, take a bowl.", ""]
    assert judge.hits(replies, ["I can't", "i cannot"]) == [True, True, False, False]
    assert judge.hits(replies, []) == [False] * 4
    assert "i cannot" in read_markers(HERE / "markers.txt")
    assert judge.looping("one two " * 20) and not judge.looping(" ".join(map(str, range(30))))


def test_page_shows_every_program_and_is_replaced_in_place(tmp_path: Path) -> None:
    trials, base, n = theirs.read_journal(journal(), STARTED)
    runs = []
    for seed in (0, 1):
        runs.append(
            RunRecord("heretic-llm", seed, 20.0, 11.5, 0.9, 4, 660_000_000, base, n, trials, trials[3])
        )
        runs.append(ours.to_record(our_document(), [], seed=seed, total_s=10.0, peak=330_000_000))
    folder = tmp_path / "data"
    options = parser().parse_args(["--model", str(folder)])
    told = conditions(folder)
    versions = {"heretic-llm": {"python": "3.11"}, OURS: {"python": "3.11"}}
    machine = {"processor": "x", "cores": 2, "memory_gb": 1.0, "system": "s", "load_before": 0.1}
    made = json.loads(json.dumps(document(options, told, machine, versions, runs, [])))
    text = page.render(made)
    assert (
        "| whole run, s | 20.00 (20.00 to 20.00) | 10.00 (10.00 to 10.00) | 2.00 (2.00 to 2.00) x |" in text
    )
    assert "11/20 at 0.1806" in text and "2/100 at 0.0500" in text and "over 2 seeds" in text
    assert str(tmp_path) not in json.dumps(made) and text.isascii()
    target = tmp_path / "performance.md"
    target.write_text("# Performance\n\nBy hand.\n", encoding="utf-8")
    page.write_section(target, [text])
    page.write_section(target, ["second\n"])
    final = target.read_text(encoding="utf-8")
    assert "By hand." in final and "second" in final and "11/20" not in final and final.count(page.BEGIN) == 1
