# SPDX-License-Identifier: Apache-2.0
"""The chat at the terminal: a prompt, commands with a slash, Ctrl-C stops the answer (R-CLI-14)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from heretic.apps.session import ChatSession
from heretic.console import Console
from heretic.exceptions import ConfigurationError, HereticError
from heretic.stop import interruptible

COMMANDS: Final = {
    "/help": "this list",
    "/system TEXT": "system prompt; without a text it is removed",
    "/temperature X": "0 to 2; 0 always takes the most likely token",
    "/tokens N": "longest reply, 64 to 4096",
    "/compare": "answer as base and as edited model, on or off",
    "/regenerate": "the last reply again",
    "/clear": "forget the conversation",
    "/exit": "leave (also Ctrl-D)",
}
PROMPT: Final = "you>"


class TerminalChat:
    """A chat session with a person at a terminal. compare: start with both models answering."""

    def __init__(self, session: ChatSession, console: Console, *, compare: bool = False) -> None:
        self.session = session
        self.console = console
        self.compare = compare
        session.notify = lambda text: console.note(f"note: {text}")
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/temperature": self._temperature,
            "/tokens": self._tokens,
            "/compare": self._compare,
            "/regenerate": self._regenerate,
            "/clear": self._clear,
        }

    def run(self) -> None:
        """Talk until `/exit`, Ctrl-D, or Ctrl-C at the prompt. Raises `ConfirmationRequiredError` without a
        terminal.
        """
        with interruptible():
            self.console.note("Write a message, or /help. Ctrl-C stops an answer, Ctrl-D leaves.")
            while True:
                try:
                    line = self.console.read_line(PROMPT)
                except (EOFError, KeyboardInterrupt):
                    return
                if line == "/exit":
                    return
                try:
                    self._act(line)
                except HereticError as error:
                    self.console.error(error)

    def _act(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
            return
        name, _, argument = line.partition(" ")
        action = self._actions.get(name)
        if action is None:
            raise ConfigurationError(
                f"there is no command {name}", hint=f"Known: {', '.join(self._actions)}, /exit."
            )
        action(argument.strip())

    def _answer(self, text: str) -> None:
        if self.compare:
            self._print_both(self.session.compare(text))
        else:
            self._print(self.session.send(text))

    def _print(self, pieces: Iterator[str]) -> None:
        try:
            for piece in pieces:
                self.console.stream(piece)
        except KeyboardInterrupt:
            self.session.stop()
            self.console.stream(" [stopped]")
        finally:
            self.console.stream("\n")

    def _print_both(self, pieces: Iterator[tuple[bool, str]]) -> None:
        shown: bool | None = None

        def labelled() -> Iterator[str]:
            nonlocal shown
            for edited, piece in pieces:
                if edited is not shown:
                    shown = edited
                    yield "\nedited> " if edited else "base> "
                yield piece

        self._print(labelled())

    def _help(self, argument: str) -> None:
        self.console.facts({f"  {name}": meaning for name, meaning in COMMANDS.items()})

    def _system(self, argument: str) -> None:
        self.session.system_prompt = argument
        self.console.note("system prompt set" if argument else "no system prompt")

    def _temperature(self, argument: str) -> None:
        self.session.temperature = _number(argument, "/temperature")
        self.console.note(f"temperature {self.session.temperature:g}")

    def _tokens(self, argument: str) -> None:
        self.session.max_tokens = int(_number(argument, "/tokens"))
        self.console.note(f"replies end after {self.session.max_tokens} tokens")

    def _compare(self, argument: str) -> None:
        self.compare = not self.compare
        self.console.note("both models answer" if self.compare else "one model answers")

    def _regenerate(self, argument: str) -> None:
        self._print(self.session.regenerate())

    def _clear(self, argument: str) -> None:
        self.session.clear()
        self.console.note("the conversation is forgotten")


def _number(text: str, command: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{command} got {text!r}", hint=f"Write {command} and a number.") from error
