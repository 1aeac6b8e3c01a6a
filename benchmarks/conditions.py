# SPDX-License-Identifier: Apache-2.0
"""The conditions of a benchmark, equal for both programs: model, prompts, lengths, markers, threads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "validation", "test")
"""Directions come from train, trials are scored on validation; confirmation and judge halve test."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Everything both programs are told.

    good, bad: folders with train.jsonl, validation.jsonl and test.jsonl, rows {"text": ...}. max_tokens:
    reply length at which the behaviour is judged. batch_size 0 lets each program find its own. threads:
    OMP_NUM_THREADS of both.
    """

    model: Path
    good: Path
    bad: Path
    trials: int
    markers: tuple[str, ...]
    startup_trials: int | None = None
    max_tokens: int = 100
    batch_size: int = 0
    dtype: str = "auto"
    threads: int = 2
    timeout_s: float = 6 * 3600.0
    everything_measured: bool = True
    ours_extra: tuple[str, ...] = ()
    theirs_extra: tuple[str, ...] = ()

    def prompt_file(self, kind: str, split: str) -> Path:
        """The JSONL file of one class (`good` or `bad`) and split."""
        return (self.good if kind == "good" else self.bad) / f"{split}.jsonl"

    def confirmed_rows(self, kind: str) -> int:
        """Rows of the test split that a program may confirm its finalists on; the judge reads those after.

        A program that picks its winner on the judge's own prompts would be judged too kindly.
        """
        return len(prompt_texts(self.prompt_file(kind, "test"))) // 2

    def check(self) -> None:
        """Raise BenchmarkError for anything missing, before anything is started."""
        if not (self.model / "config.json").is_file():
            raise BenchmarkError(f"{self.model} holds no config.json: not a model folder")
        for kind in ("good", "bad"):
            for split in SPLITS:
                if not self.prompt_file(kind, split).is_file():
                    raise BenchmarkError(f"prompt file {self.prompt_file(kind, split)} is missing")


def prompt_texts(path: Path) -> list[str]:
    """The `text` of each row of a JSONL file. Raises BenchmarkError for a file that is not of that form."""
    try:
        return [
            str(json.loads(line)["text"]) for line in path.read_text(encoding="utf-8").split("\n") if line
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path}: not JSONL with a text field ({error})") from error


def read_markers(path: Path) -> tuple[str, ...]:
    """Marker strings, one a line."""
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def child_environment(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a measured process: offline, fixed threads, no settings that either program reads."""
    # Both programs read HERETIC_*; an inherited value would make the comparison unequal without a trace.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERETIC_", "PYTHON"))}
    number = str(threads)
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**kept, **fixed, **(extra or {})}
