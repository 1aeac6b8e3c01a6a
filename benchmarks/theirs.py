# SPDX-License-Identifier: Apache-2.0
"""Run heretic-llm headless: a pseudo-terminal answers its menus, its study journal gives times and scores.

Written from its `--help`, its package description, its printed output and its output files alone.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pexpect

from benchmarks.conditions import Conditions, child_environment, prompt_texts
from benchmarks.memory import PeakMemory
from benchmarks.records import (
    THEIRS,
    BenchmarkError,
    RunRecord,
    TrialRecord,
    best_of,
    front_of,
    middle,
    trial_seconds,
)

TRIAL_MENU = r"Which trial do you want to use\?"
ACTION_MENU = r"What do you want to do with the decensored model\?"
FOLDER_QUESTION = r"Path to the folder:"
SAVED = r"Model saved to "
MENU_ENTRY = re.compile(r"\[Trial +(\d+)\] +Refusals: *(\d+)/(\d+), +KL divergence: *([0-9.eE+-]+|nan|inf)")
DOWN = "\x1b[B"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CREATED, FINISHED, ATTRIBUTE = 4, 6, 8
"""Operation codes of Optuna's journal file (documented format of optuna.storages.JournalStorage)."""
COMPLETE = 1


def write_prompt_files(conditions: Conditions, folder: Path) -> dict[str, Path]:
    """heretic-llm reads plain text with one prompt a line; keys `good-train`, `bad-validation`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for kind in ("good", "bad"):
        for split in ("train", "validation"):
            texts = prompt_texts(conditions.prompt_file(kind, split))
            if any("\n" in text or "\r" in text for text in texts):
                raise BenchmarkError(
                    f"{kind} {split}: a prompt of several lines cannot be given as plain text"
                )
            files[f"{kind}-{split}"] = folder / f"{kind}-{split}.txt"
            files[f"{kind}-{split}"].write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return files


def arguments(conditions: Conditions, seed: int, files: Mapping[str, Path], work: Path) -> list[str]:
    """Command line without the program."""
    given = [
        *("--model", str(conditions.model)),
        *("--n-trials", str(conditions.trials)),
        *("--seed", str(seed)),
        *("--batch-size", str(conditions.batch_size)),
        *("--max-response-length", str(conditions.max_tokens)),
        *("--study-checkpoint-dir", str(work / "checkpoints")),
        *("--export-strategy", "MERGE"),
        *("--refusal-markers", json.dumps(conditions.markers)),
    ]
    if conditions.startup_trials is not None:
        given += ["--n-startup-trials", str(conditions.startup_trials)]
    if conditions.dtype != "auto":
        given += ["--dtypes", json.dumps([conditions.dtype])]
    for option, name in (
        ("good-prompts", "good-train"),
        ("bad-prompts", "bad-train"),
        ("good-evaluation-prompts", "good-validation"),
        ("bad-evaluation-prompts", "bad-validation"),
    ):
        # Plain text has neither split nor column; the defaults of both would be looked up in a data set.
        given += [
            f"--{option}.dataset",
            str(files[name]),
            f"--{option}.split",
            "null",
            f"--{option}.column",
            "null",
        ]
    return [*given, *conditions.theirs_extra]


def read_journal(lines: Sequence[str], started: datetime) -> tuple[list[TrialRecord], int, int]:
    """Finished trials, base refusals and number of prompts from a study journal; times relative to `started`.

    The numbers are those of the menu, which counts from 1.
    """
    created: list[datetime] = []
    ended: dict[int, datetime] = {}
    attributes: dict[int, dict[str, Any]] = {}
    for line in lines:
        entry = json.loads(line)
        code = entry["op_code"]
        if code == CREATED:
            created.append(datetime.fromisoformat(entry["datetime_start"]))
        elif code == ATTRIBUTE:
            attributes.setdefault(entry["trial_id"], {}).update(entry["user_attr"])
        elif code == FINISHED and entry["state"] == COMPLETE:
            ended[entry["trial_id"]] = datetime.fromisoformat(entry["datetime_complete"])
    trials: list[TrialRecord] = []
    base_hits = base_n = 0
    for trial_id, end in sorted(ended.items()):
        known = attributes.get(trial_id, {})
        base_hits, base_n = int(known.get("base_refusals", 0)), int(known.get("n_bad_prompts", 0))
        trials.append(
            TrialRecord(
                number=int(known.get("index", trial_id + 1)),
                hits=None if "refusals" not in known else int(known["refusals"]),
                n=base_n,
                kl=None if "kl_divergence" not in known else float(known["kl_divergence"]),
                start_s=(created[trial_id] - started).total_seconds(),
                end_s=(end - started).total_seconds(),
            )
        )
    return trials, base_hits, base_n


def menu_numbers(screen: str) -> list[int]:
    """Trial numbers in the order of the menu (each once, though the screen may be drawn twice)."""
    return list(dict.fromkeys(int(match.group(1)) for match in MENU_ENTRY.finditer(ESCAPES.sub("", screen))))


class Session:
    """One heretic-llm process behind a pseudo-terminal, as a context manager that ends the process."""

    def __init__(self, program: Path, given: Sequence[str], conditions: Conditions, work: Path) -> None:
        # Without these the prompt library asks the terminal for the cursor position and waits for an answer.
        quiet = {
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "TERM": "xterm-256color",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._log = (work / "heretic-llm.log").open("w", encoding="utf-8")
        self._timeout = conditions.timeout_s
        self.started = datetime.now()
        self._clock = time.perf_counter()
        self._child = pexpect.spawn(
            str(program),
            list(given),
            cwd=str(work),
            env=child_environment(conditions.threads, quiet),
            timeout=conditions.timeout_s,
            dimensions=(200, 250),
            encoding="utf-8",
            codec_errors="replace",
        )
        self._child.logfile_read = self._log
        self.pid = int(self._child.pid)

    @property
    def seconds(self) -> float:
        """Since the start of the process."""
        return time.perf_counter() - self._clock

    def wait(self, pattern: str, timeout_s: float | None = None) -> None:
        """Until `pattern` is printed. Raises BenchmarkError when the process ends or takes too long."""
        answers = [pattern, pexpect.EOF, pexpect.TIMEOUT]
        index = self._child.expect(answers, timeout=timeout_s or self._timeout)
        if index:
            words = ESCAPES.sub("", str(self._child.before or ""))[-1500:]
            why = "ended" if index == 1 else "printed nothing that was expected"
            raise BenchmarkError(f"heretic-llm {why} while waiting for {pattern!r}; its last words:\n{words}")

    def screen(self, settle_s: float = 1.0) -> str:
        """What is printed until `settle_s` seconds of silence (menus are drawn after their question)."""
        seen = ""
        while True:
            if self._child.expect([r".+", pexpect.TIMEOUT, pexpect.EOF], timeout=settle_s):
                return seen
            seen += str(self._child.after)

    def send(self, keys: str) -> None:
        """Type keys."""
        self._child.send(keys)

    def trial_menu(self) -> list[int]:
        """Wait for the menu of trials; their numbers from top to bottom."""
        self.wait(TRIAL_MENU)
        return menu_numbers(self.screen())

    def save(self, position: int, folder: Path) -> None:
        """From the trial menu: choose the entry, save the merged model to `folder`, come back to the menu."""
        self.send(DOWN * position + "\r")
        self.wait(ACTION_MENU)
        self.screen()
        self.send("\r")
        self.wait(FOLDER_QUESTION, 60)
        self.screen(0.3)
        self.send(f"{folder}\r")
        self.wait(SAVED)
        self.wait(ACTION_MENU)
        self.screen()
        # The last of the five entries leads back.
        self.send(DOWN * 4 + "\r")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        # Its own close gives the process a tenth of a second; freeing the memory of a model takes longer.
        self._child.delayafterterminate = 20.0
        self._child.ptyproc.delayafterterminate = 20.0
        self._child.close(force=True)
        self._log.close()


def run(
    program: Path, conditions: Conditions, seed: int, work: Path, judged: int, kl_limit: float
) -> tuple[RunRecord, dict[int, Path]]:
    """One search with heretic-llm; the record and the folders of the saved trials (`judged` of the front at
    most).

    The first saved trial is the one the rule of `best_of` chooses. Raises BenchmarkError.
    """
    work.mkdir(parents=True, exist_ok=True)
    given = arguments(conditions, seed, write_prompt_files(conditions, work / "prompts"), work)
    saved: dict[int, Path] = {}
    with Session(program, given, conditions, work) as session:
        with PeakMemory(session.pid) as memory:
            session.wait(TRIAL_MENU)
            total = session.seconds
        numbers = menu_numbers(session.screen())
        trials, base_hits, base_n = read_journal(_journal_lines(work), session.started)
        if not trials:
            raise BenchmarkError("heretic-llm reached its menu without one finished trial")
        for trial in wanted_trials(trials, numbers, judged, kl_limit):
            folder = work / f"saved-{trial.number}"
            session.save(numbers.index(trial.number), folder)
            saved[trial.number] = folder
            numbers = session.trial_menu()
    starts = [trial.start_s for trial in trials if trial.start_s is not None]
    ends = [trial.end_s for trial in trials if trial.end_s is not None]
    alone = trial_seconds(trials)
    record = RunRecord(
        program=THEIRS,
        seed=seed,
        total_s=total,
        first_trial_s=min(ends),
        per_trial_s=(max(ends) - min(starts)) / len(trials),
        trial_count=len(trials),
        peak_memory_bytes=memory.peak_bytes,
        base_hits=base_hits,
        base_n=base_n,
        trials=trials,
        chosen=best_of(trials, kl_limit),
        trial_seconds=alone,
        timing_source="study journal",
        first_start_s=min(starts),
        self_reported={"median_trial_s": middle(alone)},
    )
    return record, saved


def wanted_trials(
    trials: Sequence[TrialRecord], offered: Sequence[int], count: int, kl_limit: float
) -> list[TrialRecord]:
    """The chosen trial first, then others spread evenly over the front, all of them among those on offer."""
    front = [trial for trial in front_of(trials) if trial.number in offered]
    best = best_of(front, kl_limit)
    chosen = [best] if best else front[:1]
    rest = [trial for trial in front if trial not in chosen]
    extra = min(len(rest), max(0, count - 1))
    spread = [rest[(index * len(rest)) // extra] for index in range(extra)]
    return (chosen + spread)[:count]


def _journal_lines(work: Path) -> list[str]:
    files = sorted((work / "checkpoints").glob("*.jsonl"))
    if len(files) != 1:
        raise BenchmarkError(f"expected one study journal in {work / 'checkpoints'}, found {len(files)}")
    return files[0].read_text(encoding="utf-8").splitlines()
