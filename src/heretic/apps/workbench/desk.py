# SPDX-License-Identifier: Apache-2.0
"""What the page does for each visitor, without the page: conversations, replies, saved chats (requirements R-UI-26).

A handler is a generator of views; an error ends it as a view with words in it, never as an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from heretic.apps.conversation import Message
from heretic.apps.discovery import Choice, is_trial
from heretic.apps.history import ChatHistory, SavedChat
from heretic.apps.manager import ModelManager
from heretic.apps.session import ChatSession, without_reply
from heretic.apps.streaming import Piece
from heretic.apps.workbench.markup import bubbles, notice, problem
from heretic.exceptions import ConfigurationError, HereticError

LOGGER: Final = logging.getLogger("heretic_chat")
PACE_S: Final = 0.06
"""Least time between two looks at a growing reply: a fast model writes more than a page can draw."""
LONGEST_MESSAGE: Final = 100_000
PAGE_TOKENS: Final = (64, 2048)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a visitor chose beside the text; as the page sent it, so nothing is trusted."""

    model: object = None
    system_prompt: str = ""
    temperature: float = 0.7
    max_tokens: int = 512
    top_p: float = 1.0
    strength: float = 1.0


@dataclass(slots=True, eq=False)
class Visitor:
    """One open page. session: of the reply that is being written."""

    chat: list[Message] = field(default_factory=list)
    sides: tuple[list[Message], list[Message]] = field(default_factory=lambda: ([], []))
    session: ChatSession | None = None
    saved: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    model: str = ""
    stopped: bool = False

    def stop(self) -> None:
        """End the reply that is being written, if there is one."""
        self.stopped = True
        session = self.session
        if session is not None:
            session.stop()


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows after a step. turns: of the conversation (of both sides in Compare); words: a notice or a
    problem as HTML; busy: a reply is being written; pieces: texts with readings, of both sides."""

    turns: Sequence[list[dict[str, str]]]
    words: str = ""
    busy: bool = False
    pieces: Sequence[Sequence[tuple[str, float | None]]] = ()
    failed: bool = False


class Desk:
    """Serves all visitors with one manager and one folder of saved chats."""

    def __init__(self, manager: ModelManager, history: ChatHistory) -> None:
        self.manager = manager
        self.history = history

    # Chat

    def send(self, visitor: Visitor, text: object, wishes: Wishes) -> Iterator[View]:
        """A message and its reply as it is written."""

        def start(session: ChatSession) -> Iterator[str]:
            return session.send(_message(text))

        return self._chat(visitor, wishes, [*visitor.chat, Message("user", str(text))], start)

    def regenerate(self, visitor: Visitor, wishes: Wishes) -> Iterator[View]:
        """The last reply again."""
        return self._chat(visitor, wishes, without_reply(visitor.chat), ChatSession.regenerate)

    def edit_last(self, visitor: Visitor, text: object, wishes: Wishes) -> Iterator[View]:
        """The last message in other words."""
        turns = [*without_reply(visitor.chat)[:-1], Message("user", str(text))]
        return self._chat(visitor, wishes, turns, lambda session: session.edit_last(_message(text)))

    def _chat(
        self,
        visitor: Visitor,
        wishes: Wishes,
        turns: Sequence[Message],
        start: Callable[[ChatSession], Iterator[str]],
    ) -> Iterator[View]:
        """turns: what is shown above the growing reply."""
        notices: list[str] = []
        try:
            session = self._begun(visitor, wishes, visitor.chat, notices)
            stream = start(session)
        except HereticError as error:
            yield View([bubbles(visitor.chat)], problem(error), failed=True)
            return
        visitor.session = session
        try:
            text, due = "", 0.0
            yield View([bubbles(turns, "")], self._waits(), busy=True)
            for piece in stream:
                text += piece
                if time.monotonic() >= due:
                    yield View([bubbles(turns, text)], notice(" ".join(notices)), busy=True)
                    due = time.monotonic() + PACE_S
        except HereticError as error:
            visitor.session = None
            yield View([bubbles(visitor.chat)], problem(error), failed=True)
            return
        finally:
            visitor.session = None
        visitor.parameters, visitor.model = dict(session.parameters()), str(wishes.model)
        yield View([bubbles(visitor.chat)], notice(" ".join(notices)))

    def _waits(self) -> str:
        """Why nothing is written yet, where somebody else is being answered."""
        return notice(
            "Another reply is being written; this one waits for its end."
            if self.manager.lock.locked()
            else ""
        )

    def _begun(
        self, visitor: Visitor, wishes: Wishes, messages: list[Message], notices: list[str]
    ) -> ChatSession:
        """The session of a reply; one reply at a time for each page."""
        if visitor.session is not None:
            raise ConfigurationError("a reply is still being written", hint="Stop it, or wait for its end.")
        visitor.stopped = False
        return self._session(messages, wishes, notices)

    def _session(self, messages: list[Message], wishes: Wishes, notices: list[str]) -> ChatSession:
        word = wishes.model
        if not isinstance(word, str) or not word:
            raise ConfigurationError("no model is chosen", hint="Choose one from the list of models.")
        tokens = wishes.max_tokens
        if not PAGE_TOKENS[0] <= tokens <= PAGE_TOKENS[1]:
            raise ConfigurationError(
                f"the reply length is {tokens:g} tokens",
                hint=f"It lies between {PAGE_TOKENS[0]} and {PAGE_TOKENS[1]}.",
            )
        return ChatSession(
            source=lambda: self.manager.open(word),
            lock=self.manager.lock,
            run=self.manager.run,
            messages=messages,
            system_prompt=wishes.system_prompt,
            temperature=wishes.temperature,
            max_tokens=int(tokens),
            top_p=wishes.top_p,
            # Only a trial has a strength; for any other model the slider means nothing.
            strength=wishes.strength if is_trial(word) else 1.0,
            notify=notices.append,
        )

    def clear(self, visitor: Visitor) -> View:
        """Forget the conversation."""
        visitor.stop()
        visitor.chat, visitor.saved = [], None
        return View([[]], notice("The conversation is cleared."))

    # Saved chats

    def save(self, visitor: Visitor, system_prompt: str, word: object) -> str:
        """Write the conversation to the folder; the sentence to show. Raises as `ChatHistory.save`."""
        name = str(word or visitor.model)
        trial = name if is_trial(name) else None
        chat = SavedChat(
            tuple(visitor.chat),
            model=self.manager.label(name),
            trial=trial,
            system_prompt=system_prompt,
            parameters=visitor.parameters,
        )
        visitor.saved = self.history.save(chat, visitor.saved)
        return f"Saved as {visitor.saved}."

    def load(self, visitor: Visitor, name: object) -> SavedChat:
        """Take up a saved conversation. Raises as `ChatHistory.load`."""
        chat = self.history.load(name)  # type: ignore[arg-type]  # a client may send anything; it is looked up
        visitor.stop()
        visitor.chat = list(chat.messages)
        visitor.saved = str(name)
        visitor.parameters = dict(chat.parameters)
        return chat

    def saved(self) -> list[tuple[str, str]]:
        """(label, name) of the saved chats, damaged ones with their problem."""
        return [(entry.label, entry.name) for entry in self.history.entries()]

    # Models

    def choices(self) -> list[tuple[str, str]]:
        """(label, word) of the models, with what speaks against them."""
        return [(_label(entry), entry.name) for entry in self.manager.choices()]

    def load_model(self, word: object) -> str:
        """Load a model now; the sentence to show. Raises what loading raises."""
        if not isinstance(word, str) or not word:
            raise ConfigurationError("no model is chosen", hint="Choose one from the list of models.")
        with self.manager.alone():
            self.manager.open(word)
        return self.manager.state.text

    # Compare

    def compare(
        self, visitor: Visitor, text: object, wishes: Wishes, strengths: tuple[float, float], other: object
    ) -> Iterator[View]:
        """The same message to both sides: two strengths of one trial in one batch, or two models one after the other.
        other: the word of the second model; empty = the same one."""
        try:
            message = Message("user", _message(text))
            session = self._begun(visitor, wishes, [], [])
            for strength in strengths:
                session.strength = strength
            if other and other != wishes.model:
                second = self._session([], replace(wishes, model=other), [])
                second.use_source(lambda: self.manager.open(str(other), beside=str(wishes.model)))
                pieces = _one_after_the_other(visitor, (session, second), message)
            else:
                pieces = session.together([[*side, message] for side in visitor.sides], strengths)
        except HereticError as error:
            yield View([bubbles(side) for side in visitor.sides], problem(error), failed=True)
            return
        visitor.session = session
        try:
            yield from self._both(visitor, message, pieces)
        except HereticError as error:
            visitor.session = None
            yield View([bubbles(side) for side in visitor.sides], problem(error), failed=True)
        finally:
            visitor.session = None

    def _both(self, visitor: Visitor, message: Message, pieces: Iterator[Piece]) -> Iterator[View]:
        texts = ["", ""]
        read: list[list[tuple[str, float | None]]] = [[], []]
        due = 0.0
        turns = [[*side, message] for side in visitor.sides]
        yield View([bubbles(side, "") for side in turns], self._waits(), busy=True)
        for piece in pieces:
            texts[piece.row] += piece.text
            read[piece.row].append((piece.text, piece.reading))
            if time.monotonic() >= due:
                grown = zip(turns, texts, strict=True)
                yield View([bubbles(side, text) for side, text in grown], busy=True, pieces=read)
                due = time.monotonic() + PACE_S
        for side, text in zip(visitor.sides, texts, strict=True):
            side += [message, Message("assistant", text.strip())]
        yield View([bubbles(side) for side in visitor.sides], pieces=read)

    def clear_sides(self, visitor: Visitor) -> View:
        """Forget both conversations of Compare."""
        visitor.stop()
        visitor.sides = ([], [])
        return View([[], []], notice("Both conversations are cleared."))


def _one_after_the_other(
    visitor: Visitor, sessions: tuple[ChatSession, ChatSession], message: Message
) -> Iterator[Piece]:
    """Each model continues its own side; the second one is loaded when the first has answered."""
    for row, (session, side) in enumerate(zip(sessions, visitor.sides, strict=True)):
        if visitor.stopped:
            return
        visitor.session = session
        session.messages[:] = side
        for text in session.send(message.content):
            yield Piece(row, text)


def _message(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError("the message is empty", hint="Write something and send it again.")
    if len(text) > LONGEST_MESSAGE:
        raise ConfigurationError(
            f"the message has {len(text):,} characters", hint=f"At most {LONGEST_MESSAGE:,} are taken."
        )
    return text.strip()


def _label(entry: Choice) -> str:
    if entry.problem is not None:
        return f"{entry.label} (incomplete: {entry.problem})"
    return entry.label if entry.verified or entry.kind == "named" else f"{entry.label} (not verified)"
