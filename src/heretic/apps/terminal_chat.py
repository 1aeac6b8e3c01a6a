# SPDX-License-Identifier: Apache-2.0
"""The chat at the terminal: a prompt, commands with a slash, Ctrl-C stops the answer (R-CLI-14)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from heretic.apps.discovery import Choice
from heretic.apps.history import ChatHistory, SavedChat
from heretic.apps.session import STRENGTHS, ChatModel, ChatSession
from heretic.console import Console
from heretic.exceptions import ConfigurationError, HereticError
from heretic.sanitise import single_line
from heretic.stop import interruptible

COMMANDS: Final = {
    "/help": "this list",
    "/system TEXT": "system prompt; without a text it is removed",
    "/temperature X": "0 to 2; 0 always takes the most likely token",
    "/top-p X": "share of probability tokens are drawn from, up to 1",
    "/tokens N": "longest reply, 64 to 4096",
    "/base": "answer as the unedited model",
    "/edited": "answer as the edited model",
    "/compare": "answer as both, side by side, on or off",
    "/strength X": "times the edit, 0 to 2; acts on the next answer",
    "/regenerate": "the last reply again",
    "/edit TEXT": "the last message in other words",
    "/save": "keep the conversation in a file",
    "/load [N]": "list saved conversations, or open number N",
    "/model [N]": "list models, or change to number N",
    "/clear": "forget the conversation",
    "/exit": "leave (also Ctrl-D)",
}
PROMPT: Final = "you>"
TAIL: Final = 36
"""Characters of each reply on the line that moves while two are written."""


class Models(Protocol):
    """The models that can be changed to."""

    def choices(self) -> tuple[Choice, ...]: ...
    def change(self, word: str) -> ChatModel:
        """The model of a word, loaded; raises the errors of loading."""
        ...


class TerminalChat:
    """A chat session with a person at a terminal.

    compare: start with both models answering. history: where `/save` and `/load` work; models: where `/model` does.
    name, trial: of the model, stored with a saved conversation.
    """

    def __init__(
        self,
        session: ChatSession,
        console: Console,
        *,
        compare: bool = False,
        history: ChatHistory | None = None,
        models: Models | None = None,
        name: str = "",
        trial: str | None = None,
    ) -> None:
        self.session = session
        self.console = console
        self.compare = compare
        self._history = history
        self._models = models
        self._name, self._trial = name, trial
        self._saved: str | None = None
        session.notify = lambda text: console.note(f"note: {text}")
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/temperature": self._temperature,
            "/top-p": self._top_p,
            "/tokens": self._tokens,
            "/base": lambda _: self._answer_as(edit=False),
            "/edited": lambda _: self._answer_as(edit=True),
            "/compare": self._compare,
            "/strength": self._strength,
            "/regenerate": lambda _: self._print(self.session.regenerate()),
            "/edit": self._edit,
            "/save": self._save,
            "/load": self._load,
            "/model": self._model,
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
                except KeyboardInterrupt:
                    self.console.note("stopped")

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
        """Both replies grow on one moving line and stand side by side when they are done."""
        texts = {False: "", True: ""}
        live = None
        stopped = ""
        try:
            for edited, piece in pieces:
                texts[edited] += piece
                tails = (single_line(texts[side])[-TAIL:].ljust(TAIL) for side in (False, True))
                live = self.console.status(" | ".join(tails), live)
        except KeyboardInterrupt:
            self.session.stop()
            stopped = " [stopped]"
        finally:
            if live is not None:
                live.stop()
        columns = ("base", f"edited, strength {self.session.strength:g}")
        row = [f"{texts[side].strip()}{stopped}" for side in (False, True)]
        self.console.table(columns, [row], result=True)

    def _help(self, argument: str) -> None:
        self.console.facts({f"  {name}": meaning for name, meaning in COMMANDS.items()})

    def _system(self, argument: str) -> None:
        self.session.system_prompt = argument
        self.console.note("system prompt set" if argument else "no system prompt")

    def _temperature(self, argument: str) -> None:
        self.session.temperature = _number(argument, "/temperature")
        self.console.note(f"temperature {self.session.temperature:g}")

    def _top_p(self, argument: str) -> None:
        self.session.top_p = _number(argument, "/top-p")
        self.console.note(f"top-p {self.session.top_p:g}")

    def _tokens(self, argument: str) -> None:
        self.session.max_tokens = int(_number(argument, "/tokens"))
        self.console.note(f"replies end after {self.session.max_tokens} tokens")

    def _answer_as(self, *, edit: bool) -> None:
        self.session.require_edit()
        self.session.edit, self.compare = edit, False
        strength = f" at strength {self.session.strength:g}" if edit else ""
        self.console.note(f"the {'edited' if edit else 'unedited'} model answers{strength}")

    def _compare(self, argument: str) -> None:
        if not self.compare:
            self.session.require_edit()
        self.compare = not self.compare
        self.console.note("both models answer" if self.compare else "one model answers")

    def _strength(self, argument: str) -> None:
        self.session.require_edit()
        self.session.strength = _number(argument, "/strength")
        self.session.edit = True
        self.console.note(
            f"strength {self.session.strength:g} from the next answer on (0 = base, 1 = as the trial was, "
            f"at most {STRENGTHS[1]:g})"
        )

    def _edit(self, argument: str) -> None:
        if not argument:
            raise ConfigurationError("/edit got no text", hint="Write /edit and the message in other words.")
        self._print(self.session.edit_last(argument))

    def _save(self, argument: str) -> None:
        chat = SavedChat(
            tuple(self.session.messages),
            model=self._name,
            trial=self._trial,
            system_prompt=self.session.system_prompt,
            parameters=self.session.parameters(),
        )
        history = self._require_history()
        self._saved = history.save(chat, self._saved)
        self.console.note(f"saved as {history.folder / self._saved}")

    def _load(self, argument: str) -> None:
        history = self._require_history()
        entries = history.entries()
        if not argument or not entries:
            for number, entry in enumerate(entries, 1):
                self.console.note(
                    f"{number:3}  {entry.label}{f' ({entry.problem})' if entry.problem else ''}"
                )
            self.console.note("Open one with /load and its number." if entries else "no saved conversations")
            return
        name = entries[_choice(argument, len(entries), "/load")].name
        chat = history.load(name)
        self.session.messages[:] = chat.messages
        self.session.system_prompt = chat.system_prompt
        self.session.temperature = chat.parameters.get("temperature", self.session.temperature)
        self.session.max_tokens = max(64, int(chat.parameters.get("max_tokens", self.session.max_tokens)))
        self.session.top_p = chat.parameters.get("top_p", self.session.top_p)
        self._saved = name
        for turn in chat.messages:
            self.console.result(f"{turn.role}: {turn.content}")
        self.console.note(f"{len(chat.messages)} messages, made with {chat.model or 'an unnamed model'}")

    def _model(self, argument: str) -> None:
        if self._models is None:
            raise ConfigurationError(
                "the model cannot be changed here", hint="Start 'heretic chat' to choose among models."
            )
        found = [entry for entry in self._models.choices() if entry.problem is None]
        if not argument or not found:
            for number, entry in enumerate(found, 1):
                self.console.note(f"{number:3}  {entry.label}{'' if entry.verified else ' (not verified)'}")
            self.console.note("Change with /model and its number." if found else "no models are here")
            return
        chosen = found[_choice(argument, len(found), "/model")]
        with self.console.phase(f"Loading {chosen.label}"):
            self.session.use(self._models.change(chosen.name))
        self._name, self._trial, self.compare = chosen.label, None, False
        self.session.strength, self.session.edit = 1.0, True

    def _clear(self, argument: str) -> None:
        self.session.clear()
        self._saved = None
        self.console.note("the conversation is forgotten")

    def _require_history(self) -> ChatHistory:
        if self._history is None:
            raise ConfigurationError("conversations are not kept here", hint="Start 'heretic chat'.")
        return self._history


def _number(text: str, command: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigurationError(f"{command} got {text!r}", hint=f"Write {command} and a number.") from error


def _choice(text: str, count: int, command: str) -> int:
    """The place of a number that was chosen from a list."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= count):
        raise ConfigurationError(
            f"{command} got {text!r}", hint=f"Write {command} and a number, 1 to {count}."
        )
    return int(text) - 1
