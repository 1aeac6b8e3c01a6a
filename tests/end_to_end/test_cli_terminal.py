# SPDX-License-Identifier: Apache-2.0
"""Menu, chat and confirmations at a pseudo-terminal (requirements R-MEN-01 to R-MEN-03, R-CLI-14, R-CLI-50).

The file is its own program: the tests start it with the name of a scene, and the scene runs the real classes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DOWN, ENTER, CTRL_C, CTRL_D = "\x1b[B", "\r", "\x03", "\x04"


def scene_menu() -> None:
    """Three trials; saving trial 2 fails with a typed error, saving trial 1 works, chatting can be interrupted."""
    from heretic.apps.menu import Menu, StudyAction, TrialAction
    from heretic.console import Console
    from heretic.exceptions import ExportError
    from heretic.report import Divergence, Measurement, Rate, TrialReport

    def trial(number: int) -> TrialReport:
        kl = Divergence(0.1 * number, 0.01, 0.1, 0.1, 0.1, 0.1, 100, 500)
        replies = ("a [bold]reply[/] \x1b]52;c;eA==\x07",)
        return TrialReport(
            number,
            {},
            Measurement("search", Rate(number, 100, 0.0, 0.1), kl, replies=replies),
            strengths={"mlp": (0.25,)},
        )

    def save(chosen: TrialReport) -> str:
        if chosen.trial == 2:
            raise ExportError("the shard could not be written", hint="Free some space.")
        return f"saved trial {chosen.trial}"

    def chat(chosen: TrialReport) -> None:
        console.note("chat is running")
        time.sleep(30)

    console = Console()
    menu = Menu(
        console,
        [trial(1), trial(2)],
        actions=[TrialAction("Save", save, chooses=True), TrialAction("Chat", chat)],
        study_actions=[StudyAction("More trials", lambda: [trial(1), trial(2), trial(3)])],
        all_trials=lambda: [trial(number) for number in range(1, 5)],
    )
    outcome = menu.run()
    chosen = None if outcome.chosen is None else outcome.chosen.trial
    console.result(f"chosen={chosen} went_on={outcome.went_on} done={'; '.join(outcome.done)}")


def scene_chat() -> None:
    """A tiny model that says one word again and again, a different one when edited."""
    import torch

    from heretic.apps.session import ChatSession
    from heretic.apps.terminal_chat import TerminalChat
    from heretic.console import Console
    from heretic.testing.pico import pico_model
    from heretic.testing.tokenizers import byte_tokenizer

    torch.set_num_threads(1)

    class Repeating:
        network = pico_model("qwen2", changes={"vocab_size": 320, "max_position_embeddings": 4096}).eval()
        tokenizer = byte_tokenizer()
        reply_prefix, has_edit, reader = "", True, None
        words, step = ["b "], 0

        @contextmanager
        def edited(self, edit: bool) -> Iterator[None]:
            with self.under((float(edit),)):
                yield

        @contextmanager
        def under(self, strengths: Sequence[float]) -> Iterator[None]:
            self.words = ["e " if strength else "b " for strength in strengths]
            yield

        def answer(self, module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
            self.step += 1
            time.sleep(0.01)
            output[:] = 0.0
            for row, word in enumerate(self.words):
                token = self.tokenizer(word[self.step % 2], add_special_tokens=False)["input_ids"][0]
                output[row, ..., token] = 9.0
            return output

    model = Repeating()
    model.network.generation_config.eos_token_id = None
    model.network.get_output_embeddings().register_forward_hook(model.answer)
    console = Console()
    TerminalChat(ChatSession(model, temperature=0.0, max_tokens=64), console).run()
    console.result("left the chat")


def scene_confirm() -> None:
    """One destructive question through the rim."""
    from heretic.cli.context import Context
    from heretic.cli.flags import CommonFlags
    from heretic.cli.rim import guarded
    from heretic.console import Console

    console = Console()

    def action() -> int:
        console.confirm_word("Overwrite the folder?", lost=("the folder out, 3 files",))
        console.result("overwritten")
        return 0

    sys.exit(guarded(action, Context(console, CommonFlags())))


def scene_progress() -> None:
    """The live display on a real terminal."""
    from heretic.console import Console
    from heretic.study.types import FinishedTrial, Progress, Scores

    console = Console()
    with console.phase("Search") as phase, console.trials(60) as display:
        for index in range(10, 61, 10):
            batch = tuple(
                FinishedTrial(k, {}, Scores((1 / (k + 1), k / 60), {}, {"rate": 1 / (k + 1)}))
                for k in range(index - 10, index)
            )
            display.update(Progress(index, 60, 0, batch[-1], 4, index / 60, 9.0, 3.0, batch))
            time.sleep(0.05)
        phase.result("front of 4")


if __name__ == "__main__":
    globals()[f"scene_{sys.argv[1]}"]()
    sys.exit(0)

pexpect = pytest.importorskip("pexpect")


@contextmanager
def played(scene: str) -> Iterator[Any]:
    """A scene in a pseudo-terminal; its process is ended whatever the test does."""
    environment = {
        **os.environ,
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "TERM": "xterm",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    child = pexpect.spawn(
        sys.executable,
        [str(Path(__file__)), scene],
        env=environment,
        encoding="utf-8",
        timeout=60,
        dimensions=(50, 120),
    )
    try:
        yield child
    finally:
        child.close(force=True)


def pick(child: Any, downs: int) -> None:
    """Move down and press Enter; the pauses let the program redraw between keys, as a person would."""
    for _ in range(downs):
        child.send(DOWN)
        time.sleep(0.05)
    child.send(ENTER)


@pytest.mark.timeout(120)
def test_an_error_in_an_action_is_shown_and_the_menu_stays() -> None:
    """R-MEN-03; then another trial is saved and is the choice."""
    with played("menu") as child:
        child.expect("What next")
        pick(child, 1)  # trial 2
        child.expect("Read stored replies")
        pick(child, 0)  # save: fails
        child.expect("error: the shard could not be written")
        child.expect("Free some space")
        child.expect("Back")
        pick(child, 4)  # back
        child.expect("What next")
        pick(child, 0)  # trial 1
        child.expect("Back")
        pick(child, 0)  # save: works
        child.expect("saved trial 1")
        child.expect("Back")
        pick(child, 4)
        child.expect("What next")
        child.send(CTRL_C)
        child.expect("chosen=1 went_on=False done=Save: trial 1")


@pytest.mark.timeout(120)
def test_ctrl_c_in_an_action_returns_to_the_menu() -> None:
    """R-MEN-03."""
    with played("menu") as child:
        child.expect("What next")
        pick(child, 0)
        child.expect("Back")
        pick(child, 1)
        child.expect("chat is running")
        time.sleep(0.2)
        child.kill(signal.SIGINT)
        child.expect("Chat: interrupted, back in the menu")
        child.expect("Back")
        pick(child, 4)
        child.expect("What next")
        child.send(CTRL_C)
        child.expect("chosen=None")


@pytest.mark.timeout(120)
def test_views_replies_strengths_and_more_trials() -> None:
    """R-MEN-01, R-MEN-02; stored replies lose escape sequences and are no markup (D10)."""
    with played("menu") as child:
        child.expect("Trials that no other trial beats, by rate")
        child.expect("What next")
        pick(child, 3)  # all trials
        child.expect("All trials, by rate")
        child.expect("Exit")
        pick(child, 4)  # sort by KL
        child.expect("All trials, by KL")
        child.expect("Exit")
        pick(child, 5)  # front only
        child.expect("Trials that no other trial beats, by KL")
        child.expect("Exit")
        pick(child, 4)  # more trials
        child.expect("Trial +3: 3.0%")
        child.expect("Exit")
        pick(child, 2)  # trial 3
        child.expect("Back")
        pick(child, 2)  # replies
        child.expect(r"a \[bold\]reply\[/\] +\|")
        child.expect("Back")
        pick(child, 3)  # strengths
        child.expect("0.250")
        child.expect("Back")
        pick(child, 4)
        child.expect("Exit")
        pick(child, 6)  # exit
        child.expect("chosen=None went_on=True done=More trials")


@pytest.mark.timeout(120)
def test_chat_streams_compares_stops_and_leaves() -> None:
    """R-CLI-14, R-UI-04, R-UI-05, R-UI-08."""
    with played("chat") as child:
        child.expect("you>")
        child.send("hello\r")
        child.expect("e e e e e")
        child.expect("you>")
        child.send("/compare\r")
        child.expect("both models answer")
        child.expect("you>")
        child.send("hello\r")
        child.expect(r"\| base +\| edited, strength 1 +\|")
        child.expect(r"\| (b )+b? *\| (e )+e? *\|")
        child.expect("you>")
        child.send("/compare\r")
        child.expect("one model answers")
        child.send("/tokens 4096\r")
        child.expect("replies end after 4096 tokens")
        child.send("/temperature 9\r")
        child.expect("error: the temperature is 9")
        child.send("/nonsense\r")
        child.expect("error: there is no command /nonsense")
        child.send("talk for long\r")
        child.expect("e e e e e")
        child.kill(signal.SIGINT)
        child.expect("stopped")
        child.expect("you>")
        child.send("/clear\r")
        child.expect("forgotten")
        child.expect("you>")
        child.send("/help\r")
        child.expect("/regenerate")
        child.expect("you>")
        child.send("/exit\r")
        child.expect("left the chat")


@pytest.mark.timeout(60)
def test_ctrl_d_leaves_the_chat() -> None:
    with played("chat") as child:
        child.expect("you>")
        child.send(CTRL_D)
        child.expect("left the chat")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("answer", ["y", "ok", "YES", "do it", "complete", ""])
def test_wrong_words_abort(answer: str) -> None:
    """R-CLI-50: only the exact word; what is lost is said first."""
    with played("confirm") as child:
        child.expect("will be lost: the folder out, 3 files")
        child.expect("cannot be undone")
        child.expect("Type 'yes' to go on")
        child.send(f"{answer}\r")
        child.expect("nothing was changed")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 2 and "overwritten" not in child.before


@pytest.mark.timeout(60)
def test_the_exact_word_goes_on() -> None:
    """Control of the test above."""
    with played("confirm") as child:
        child.expect("Type 'yes' to go on")
        child.send("yes\r")
        child.expect("overwritten")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0


@pytest.mark.timeout(60)
def test_ctrl_c_at_a_question_is_130() -> None:
    with played("confirm") as child:
        child.expect("Type 'yes' to go on")
        child.send(CTRL_C)
        child.expect("interrupted")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 130


@pytest.mark.timeout(60)
def test_live_progress_draws_only_ascii() -> None:
    """R-LOG-02, R-SEA-14."""
    with played("progress") as child:
        child.expect(pexpect.EOF)
        text = child.before
    assert "new best after" in text and "KL 0.98" in text and "###" in text and "front of 4" in text
    assert text.isascii()
