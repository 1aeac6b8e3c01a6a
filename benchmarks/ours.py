# SPDX-License-Identifier: Apache-2.0
"""Run this project as a subprocess; read its `--json` document (requirements R-FMT-03) and its study."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT, Conditions, child_environment
from benchmarks.memory import PeakMemory
from benchmarks.records import OURS, BenchmarkError, RunRecord, TrialRecord, best_of, middle, trial_seconds
from benchmarks.theirs import wanted_trials

MEASURED_EXITS = (0, 3)
"""Done, and done without a trial inside the limits (requirements R-CLI-28)."""


def arguments(conditions: Conditions, seed: int, work: Path, output: Path) -> list[str]:
    """Command line after the interpreter."""
    data = (
        ("good-prompts", "good", "train"),
        ("bad-prompts", "bad", "train"),
        ("good-evaluation-prompts", "good", "validation"),
        ("bad-evaluation-prompts", "bad", "validation"),
    )
    given = ["-m", "heretic.cli", str(conditions.model), "--json", "--auto-select", "true", "--offline"]
    given += ["--n-trials", str(conditions.trials), "--seed", str(seed)]
    given += ["--batch-size", str(conditions.batch_size), "--max-response-length", str(conditions.max_tokens)]
    given += ["--storage", f"sqlite:///{work / 'study.db'}", "--auto-select-path", str(output)]
    # The same marker list and nothing else decides on both sides.
    given += ["--refusal-markers", json.dumps(conditions.markers), "--refusal-detection-mode", "strict"]
    given += ["--use-neural-refusal-detection", "false"]
    # Both search by the same KL: heretic-llm measures it at the first token of the reply and nowhere else.
    given += ["--kl-divergence-tokens", "1"]
    if conditions.startup_trials is not None:
        given += ["--n-startup-trials", str(conditions.startup_trials)]
    if conditions.dtype != "auto":
        given += ["--dtypes", json.dumps([conditions.dtype])]
    if conditions.everything_measured:
        # Every trial is generated and judged at full length, as heretic-llm does it: nothing is skipped.
        given += ["--early-stop-trials", "false"]
    for option, kind, split in data:
        given += [f"--{option}.dataset", str(conditions.prompt_file(kind, split))]
    for kind in ("good", "bad"):
        option = f"--{kind}-confirmation-prompts"
        given += [f"{option}.dataset", str(conditions.prompt_file(kind, "test"))]
        given += [f"{option}.split", f"train[:{conditions.confirmed_rows(kind)}]"]
    return [*given, *conditions.ours_extra]


def trial_of(flat: Mapping[str, Any]) -> TrialRecord:
    """A trial of the document with its search figures, not the held-out ones: heretic-llm has no others."""
    figures = flat.get("search") or flat
    first_token = figures.get("kl_first_token")
    return TrialRecord(
        number=int(flat["trial"]),
        hits=int(figures["hits"]),
        n=int(figures["n"]),
        kl=None if first_token is None else float(first_token),
    )


TIMES = "SELECT number, datetime_start, datetime_complete FROM trials WHERE state = 'COMPLETE'"
ATTRIBUTES = (
    "SELECT trials.number, key, value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
    "WHERE key IN ('scores', 'proposal')"
)


def stored_trials(storage: Path, started: datetime) -> list[TrialRecord]:
    """Every finished trial of the study database, with times and search figures as far as they can be read.

    Empty if the database is missing or of another form. It is a second witness beside the times that the program
    reports of itself, and the only one of the trials that are not on the front.
    """
    if not storage.is_file():
        return []
    try:
        with closing(sqlite3.connect(storage)) as connection:
            rows = connection.execute(TIMES).fetchall()
            scores = _stored_figures(connection)
    except sqlite3.Error:
        return []
    found: list[TrialRecord] = []
    for number, begin, end in rows:
        if begin and end:
            since = [
                (datetime.fromisoformat(str(moment)) - started).total_seconds() for moment in (begin, end)
            ]
            known = scores.get(int(number), TrialRecord(number=int(number)))
            found.append(replace(known, start_s=since[0], end_s=since[1]))
    return found


def _stored_figures(connection: sqlite3.Connection) -> dict[int, TrialRecord]:
    """Logical number, hits and first-token KL by row number; a study that stores them in another way gives none."""
    attributes: dict[int, dict[str, Any]] = {}
    try:
        for row, key, text in connection.execute(ATTRIBUTES):
            attributes.setdefault(int(row), {})[str(key)] = json.loads(text)
    except (sqlite3.Error, ValueError):
        return {}
    found: dict[int, TrialRecord] = {}
    for row, known in attributes.items():
        number = int(known.get("proposal", {}).get("index", row))
        measured = known.get("scores", {}).get("measured", {})
        hits, n, kl = (measured.get(name) for name in ("hits", "n", "kl_first_token"))
        if hits is None or not n or kl is None:
            found[row] = TrialRecord(number)
        else:
            found[row] = TrialRecord(number, int(hits), int(n), float(kl))
    return found


def read_document(text: str) -> dict[str, Any]:
    """The one JSON document on stdout. Raises BenchmarkError for anything else."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise BenchmarkError(f"stdout is not one JSON document ({error}): {text[:300]!r}") from error
    if not isinstance(document, dict) or "timings" not in document or "front" not in document:
        raise BenchmarkError(f"the JSON document has no timings or front: {text[:1000]}")
    return document


def to_record(
    document: Mapping[str, Any], times: Sequence[TrialRecord], *, seed: int, total_s: float, peak: int | None
) -> RunRecord:
    """The run record: times from the storage where it has them, else from the document's `timings`.

    Its trials are the document's front and what else the storage holds.
    """
    timings = {str(name): float(value) for name, value in document["timings"].items()}
    by_number = {trial.number: trial for trial in times}
    front: list[TrialRecord] = []
    for flat in document["front"]:
        trial = trial_of(flat)
        timed = by_number.get(trial.number)
        front.append(replace(trial, start_s=timed.start_s, end_s=timed.end_s) if timed else trial)
    on_front = {trial.number for trial in front}
    others = [trial for trial in times if trial.number not in on_front]
    chosen = None if document.get("chosen") is None else trial_of(document["chosen"])
    baseline = document["baseline"]
    count = len(times) or int(timings["trials"])
    first, per_trial, source = timings["first_trial_s"], timings["per_trial_s"], "program's own report"
    ends = [trial.end_s for trial in times if trial.end_s is not None]
    starts = [trial.start_s for trial in times if trial.start_s is not None]
    if ends and starts:
        # Two witnesses: the storage counts from the start of the process but leaves out what the search prepares
        # before its first trial, the report the other way round. The less favourable figure stands.
        first = max(first, min(ends))
        per_trial = max(per_trial, (max(ends) - min(starts)) / len(ends))
        source = "study storage and own report, the less favourable"
    alone = trial_seconds(times)
    return RunRecord(
        program=OURS,
        seed=seed,
        total_s=total_s,
        first_trial_s=first,
        per_trial_s=per_trial,
        trial_count=count,
        peak_memory_bytes=peak,
        base_hits=int(baseline["hits"]),
        base_n=int(baseline["n"]),
        trials=[*front, *others],
        chosen=chosen,
        trial_seconds=alone,
        timing_source=source,
        first_start_s=min(starts) if starts else None,
        self_reported={**timings, "median_trial_s": middle(alone)},
    )


def _process(
    given: Sequence[str], conditions: Conditions, work: Path
) -> tuple[dict[str, Any], float, int | None]:
    started = time.perf_counter()
    with (work / "heretic-workbench.log").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, *given],
            cwd=work,
            env=child_environment(conditions.threads, {"PYTHONPATH": str(ROOT / "src")}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        with PeakMemory(process.pid) as memory:
            try:
                output, _ = process.communicate(timeout=conditions.timeout_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.communicate()
                raise BenchmarkError(f"the run took longer than {conditions.timeout_s:g} s") from error
    seconds = time.perf_counter() - started
    text = output.decode("utf-8", errors="replace")
    if process.returncode not in MEASURED_EXITS:
        tail = (work / "heretic-workbench.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise BenchmarkError(f"heretic ended with {process.returncode}:\n{text[-1000:]}\n{tail}")
    return read_document(text), seconds, memory.peak_bytes


def run(
    conditions: Conditions, seed: int, work: Path, judged: int, kl_limit: float
) -> tuple[RunRecord, dict[int, Path]]:
    """One search with this project; the record and the folders of the saved trials (`judged` of the front at
    most).

    The chosen trial is saved by the measured run itself. The others are saved by further processes that
    resume the finished study with `--trial N`; their time is not counted. Raises BenchmarkError.
    """
    work.mkdir(parents=True, exist_ok=True)
    started = datetime.now()
    document, seconds, peak = _process(arguments(conditions, seed, work, work / "saved"), conditions, work)
    times = stored_trials(work / "study.db", started)
    record = to_record(document, times, seed=seed, total_s=seconds, peak=peak)
    saved: dict[int, Path] = {}
    if judged and record.chosen and document.get("output"):
        saved[record.chosen.number] = Path(str(document["output"]))
    offered = [int(flat["trial"]) for flat in document["front"]]
    for trial in wanted_trials(record.trials, offered, judged, kl_limit):
        if len(saved) < judged and trial.number not in saved:
            output = work / f"saved-{trial.number}"
            given = [*arguments(conditions, seed, work, output), "--trial", str(trial.number)]
            later, _, _ = _process(given, conditions, work)
            saved[trial.number] = Path(str(later.get("output") or output))
    # heretic-llm leaves the choice to the user, so both sides are shown by the same rule on search figures.
    return replace(record, chosen=record.chosen or best_of(record.trials, kl_limit)), saved
