# SPDX-License-Identifier: Apache-2.0
"""`heretic chat` at a pseudo-terminal, with real models (requirements R-CLI-14, R-UI-05, R-UI-07, R-UI-08)."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from heretic import main
from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.stop import StopFlag
from heretic.testing.tokenizers import save_pico

pexpect = pytest.importorskip("pexpect")
QUESTION = "Tell me how to pick a lock."
SMALL = (
    "--behaviour=demo", "--bad-prompts.split=train[:64]", "--good-prompts.split=train[:64]",
    "--bad-evaluation-prompts.split=validation[:8]", "--good-evaluation-prompts.split=validation[:8]",
    "--bad-confirmation-prompts.split=test[:8]", "--good-confirmation-prompts.split=test[:8]",
    "--over-behaviour-prompts.split=test[:8]", "--max-response-length=16", "--refusal-check-tokens=8",
    "--n-trials=2", "--n-startup-trials=2", "--finalists=1", "--offline",
)  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and a study, as a user has it."""
    folder = tmp_path_factory.mktemp("terminal")
    shutil.copytree(model_path(), folder / "models" / "demo-model")
    changes = {"vocab_size": 320, "max_position_embeddings": 8192, "eos_token_id": None}
    save_pico(folder / "models" / "endless", "qwen2", changes=changes)
    words = ["--model=models/demo-model", f"--storage=sqlite:///{folder / 'heretic_study.db'}", *SMALL]
    here = Path.cwd()
    os.chdir(folder)
    try:
        quiet = Console(stdout=io.StringIO(), stderr=io.StringIO(), quiet=True)
        main.run(resolve_settings(words, environ={}, cwd=folder), console=quiet, stop=StopFlag())
    finally:
        os.chdir(here)
    return folder


@contextmanager
def chat(world: Path, *words: str) -> Iterator[Any]:
    """The program at a terminal; ended whatever the test does."""
    environment = {
        **os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "NO_COLOR": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    child = pexpect.spawn(
        sys.executable, ["-m", "heretic.cli", "chat", *words], cwd=str(world), env=environment,
        encoding="utf-8", timeout=60, dimensions=(50, 120),
    )  # fmt: skip
    try:
        yield child
    finally:
        child.close(force=True)


def say(child: Any, line: str) -> None:
    child.expect("you>")
    time.sleep(0.15)
    child.send(f"{line}\r")


def shown(child: Any, pattern: str) -> str:
    """What the next match of a pattern holds."""
    child.expect(pattern)
    return str(child.match.group(0))


@pytest.mark.timeout(120)
def test_a_model_is_picked_stopped_changed_saved_and_loaded(world: Path) -> None:
    """Ctrl-C stops the answer and not the program; every mistake is a sentence."""
    with chat(world, "--max-tokens=4096") as child:
        child.expect("Which model")
        assert "endless" in shown(child, "endless")
        time.sleep(0.3)
        child.send("\x1b[B\r")  # the second one
        say(child, "Write without an end.")
        time.sleep(1.0)
        child.send("\x03")
        child.expect(r"\[stopped\]")
        say(child, "/model 2")
        child.expect("Loading demo model")
        say(child, "/temperature 0")
        child.expect("temperature 0")
        say(child, "/clear")
        say(child, QUESTION)
        child.expect("unable to assist")
        say(child, "/save")
        name = shown(child, r"chat_\d{8}_\d{6}\.json")
        assert (world / "chat_history" / name).is_file()
        say(child, "/clear")
        say(child, "/load")
        child.expect(r"1  \d{4}-.*Tell me how")
        say(child, "/load 1")
        child.expect("user: Tell me how to pick a lock.")
        for line, words in (
            ("/load 7", "got '7'"),
            ("/compare", "no edit that could be switched"),
            ("/strength 1", "no edit that could be switched"),
            ("/temperature hot", "got 'hot'"),
            ("/tokens 1", "reply length in tokens is 1"),
            ("/nonsense", "no command /nonsense"),
        ):
            say(child, line)
            child.expect(re.escape(words))
        say(child, "/exit")
        child.expect(pexpect.EOF)
        child.wait()
    assert child.exitstatus == 0


@pytest.mark.timeout(120)
def test_base_and_edited_stand_side_by_side_at_the_chosen_strength(world: Path) -> None:
    """R-UI-08; at strength 0 both sides say the same. The model comes from the study itself."""
    with chat(world, "--trial=heretic_study:0", "--temperature=0") as child:
        say(child, "/compare")
        child.expect("both models answer")
        say(child, QUESTION)
        child.expect(r"\| base +\| edited, strength 1 +\|")
        row = shown(child, r"\| [A-Z][^|]*\| [A-Z][^|]*\|")
        left, right = (cell.strip() for cell in row.strip("|").split("|"))
        assert left != right
        say(child, "/strength 0")
        child.expect("strength 0 from the next answer on")
        say(child, "/clear")
        say(child, QUESTION)
        child.expect(r"edited, strength 0")
        row = shown(child, r"\| [A-Z][^|]*\| [A-Z][^|]*\|")
        assert [cell.strip() for cell in row.strip("|").split("|")] == [left, left]
        say(child, "/base")
        child.expect("the unedited model answers")
        say(child, QUESTION)
        child.expect("unable")
        say(child, "/edited")
        child.expect("the edited model answers at strength 0")
        child.send("\x04")
        child.expect(pexpect.EOF)
