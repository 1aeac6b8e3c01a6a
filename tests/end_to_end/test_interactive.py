# SPDX-License-Identifier: Apache-2.0
"""One session at a pseudo-terminal: run, choose, chat, save, leave (requirements R-FLOW-09, R-MEN-01, R-MEN-02)."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .support import command, environment
from .test_command_lines import SETTINGS

pexpect = pytest.importorskip("pexpect")
DOWN, ENTER = "\x1b[B", "\r"


def pick(child: Any, downs: int) -> None:
    """Move down and press Enter, as a person would."""
    for _ in range(downs):
        child.send(DOWN)
        time.sleep(0.1)
    child.send(ENTER)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.timeout(240)
def test_run_choose_chat_save_and_leave(template: Path, tmp_path: Path) -> None:
    """Nothing is saved before the user says so; afterwards the folder verifies and the exit code is 0."""
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    (folder / "config.toml").write_text(SETTINGS)
    words = command("model", "--n-trials=4", "--max-response-length=8", "--refusal-check-tokens=4")
    home = {"HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "110", "LINES": "50"}
    child = pexpect.spawn(
        words[0], words[1:], cwd=str(folder), env=environment(home), timeout=90, dimensions=(50, 110)
    )
    child.logfile_read = (tmp_path / "session.txt").open("wb")
    try:
        child.expect("Confirming the best trials")
        child.expect("What next")
        assert not list(folder.glob("*heretic/SHA256SUMS"))
        pick(child, 0)
        child.expect("Back")
        pick(child, 2)
        child.expect("you>")
        child.send("hello\r")
        child.expect("you>")
        child.send("/exit\r")
        child.expect("Back")
        pick(child, 0)
        child.expect("Folder")
        child.send("\r")
        child.expect("Saved to")
        child.expect("Back")
        pick(child, 6)
        child.expect("What next")
        child.send("\x03")
        child.expect("Before and after")
        child.expect(pexpect.EOF)
        child.wait()
    finally:
        child.close(force=True)
        child.logfile_read.close()
    assert child.exitstatus == 0
    assert (folder / "model-heretic" / "SHA256SUMS").is_file()
