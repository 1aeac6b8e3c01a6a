# SPDX-License-Identifier: Apache-2.0
"""How the end-to-end tests start the program: as a user would, in a process of its own, on the bundled model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heretic.demo import model_path

SMALL = (
    "--behaviour=demo",
    "--bad-prompts.split=train[:64]",
    "--good-prompts.split=train[:64]",
    "--bad-evaluation-prompts.split=validation[:16]",
    "--good-evaluation-prompts.split=validation[:16]",
    "--bad-confirmation-prompts.split=test[:24]",
    "--good-confirmation-prompts.split=test[:24]",
    "--over-behaviour-prompts.split=test[:16]",
    "--max-response-length=48",
    "--refusal-check-tokens=16",
    "--finalists=2",
    "--trials-per-batch=4",
    "--offline",
)
"""Flags of a run that takes seconds."""

TRIALS = 20
"""Trials of the undisturbed run that the tests share."""


@dataclass(frozen=True)
class Ended:
    """A finished process."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A clean environment with one thread and no network."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **(extra or {})}


def command(*words: str) -> list[str]:
    """The program's command line in this interpreter."""
    return [sys.executable, "-m", "heretic.cli", *words]


def heretic(
    *words: str, cwd: Path, stdin: str | None = None, extra: Mapping[str, str] | None = None
) -> Ended:
    """Run to the end."""
    ended = subprocess.run(
        command(*words),
        cwd=cwd,
        env=environment(extra),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def run_flags(folder: Path, trials: int, *more: str, model: Path | None = None) -> list[str]:
    """Flags of a headless run in `folder` that saves to `folder/out`."""
    return [
        str(model or model_path()),
        *SMALL,
        f"--storage=sqlite:///{folder / 'study.db'}",
        f"--n-trials={trials}",
        f"--n-startup-trials={min(8, trials)}",
        "--auto-select",
        f"--auto-select-path={folder / 'out'}",
        *more,
    ]


def here(*words: str, capture: pytest.CaptureFixture[str]) -> Ended:
    """The same in this process: where the libraries are loaded already and no process is what is tested."""
    from heretic.cli import main

    capture.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capture.readouterr()
    return Ended(int(str(ended.value.code)), out, err)


def assert_clean_failure(ended: Ended, code: int, words: Sequence[str]) -> None:
    """The right exit code, the words of the sentence, a remedy, and no traceback."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err, f"{word!r} is not in: {ended.err}"
