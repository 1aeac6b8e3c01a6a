# SPDX-License-Identifier: Apache-2.0
"""The terminal driver against a small program that asks the same questions as heretic-llm."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from benchmarks.conditions import Conditions
from benchmarks.records import BenchmarkError
from benchmarks.theirs import Session

PROGRAM = """#!{python}
import sys, pathlib
down = "\\x1b[B"
while True:
    print("? Which trial do you want to use? (Use arrow keys)")
    print(" [Trial   7] Refusals: 1/20, KL divergence: 0.5")
    print(" [Trial   2] Refusals: 3/20, KL divergence: 0.1", flush=True)
    position = sys.stdin.readline().count(down)
    print("? What do you want to do with the decensored model? (Use arrow keys)", flush=True)
    assert down not in sys.stdin.readline()
    print("? Path to the folder:", flush=True)
    folder = pathlib.Path(sys.stdin.readline().strip())
    folder.mkdir()
    (folder / "position").write_text(str(position))
    print(f"Model saved to {{folder}}.")
    print("? What do you want to do with the decensored model? (Use arrow keys)", flush=True)
    assert sys.stdin.readline().count(down) == 4
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(text.format(python=sys.executable), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def conditions(folder: Path) -> Conditions:
    return Conditions(model=folder, good=folder, bad=folder, trials=1, markers=(), timeout_s=20.0)


def test_two_entries_of_the_menu_are_saved(tmp_path: Path) -> None:
    with Session(script(tmp_path, PROGRAM), [], conditions(tmp_path), tmp_path) as session:
        assert session.trial_menu() == [7, 2]
        session.save(1, tmp_path / "second")
        assert session.trial_menu() == [7, 2]
        session.save(0, tmp_path / "first")
    positions = [(tmp_path / name / "position").read_text(encoding="utf-8") for name in ("second", "first")]
    assert positions == ["1", "0"]


def test_a_program_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    program = script(tmp_path, "#!{python}\nprint('no data set of that name')\nraise SystemExit(1)\n")
    with (
        Session(program, [], conditions(tmp_path), tmp_path) as session,
        pytest.raises(BenchmarkError, match="no data set of that name"),
    ):
        session.trial_menu()
