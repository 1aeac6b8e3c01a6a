# SPDX-License-Identifier: Apache-2.0
"""A chat without a user interface: history, parameters, replies as they are written (requirements 9.1)."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from heretic.apps.conversation import Form, Message, context_length, fitting, now
from heretic.apps.main_thread import Runner, directly
from heretic.apps.streaming import Generation, Piece, Reader, Sampling
from heretic.exceptions import ConfigurationError, GenerationError, HereticError
from heretic.model.thinking import SWITCHES
from heretic.model.tokens import PLAIN_FORM

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ChatModel", "ChatSession", "Message"]

LOGGER: Final = logging.getLogger("heretic_chat")
TEMPERATURES: Final = (0.0, 2.0)
REPLY_TOKENS: Final = (64, 4096)
TOP_P: Final = (0.01, 1.0)
STRENGTHS: Final = (0.0, 2.0)
PIECE_LIMIT_S: Final = 300.0
"""Longest wait for one piece of text: a long prompt on a slow CPU takes minutes before its first token."""


class ChatModel(Protocol):
    """What a chat needs of a model."""

    @property
    def network(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def edited(self, edit: bool) -> AbstractContextManager[object]:
        """While it lasts the network answers as the edited model (True) or as the base (False)."""
        ...


@runtime_checkable
class EditableModel(ChatModel, Protocol):
    """A chat model that may have an edit, whose strength is then chosen for each row of a batch."""

    @property
    def reply_prefix(self) -> str:
        """What closes the thought of a thinking model, so that it answers at once; else empty."""
        ...

    @property
    def has_edit(self) -> bool:
        """Whether there is an edit at all."""
        ...

    @property
    def reader(self) -> Reader | None:
        """What reads the direction, where there is one."""
        ...

    def under(self, strengths: Sequence[float]) -> AbstractContextManager[object]:
        """While it lasts row i answers with `strengths[i]` times the edit; 0 = the base."""
        ...


class ChatSession:
    """One conversation.

    model: who answers; or, with `source`, called under `lock` before each reply, so that a model is loaded when it is
    needed. notify: receives sentences the user should see (the history was cut). lock: shared by the sessions of one
    model, so that their replies queue instead of mixing; it is held from before the model is asked for until the
    network is left. thinking: for templates that can. edit: whether `send` answers as the edited model. messages: the
    history, which is changed in place. run: where templates are rendered. Raises `ConfigurationError` for a
    temperature or length out of range.
    """

    def __init__(
        self,
        model: ChatModel | None = None,
        *,
        source: Callable[[], ChatModel] | None = None,
        system_prompt: str = "",
        temperature: float = 0.7,
        max_tokens: int = 512,
        top_p: float = 1.0,
        edit: bool = True,
        strength: float = 1.0,
        thinking: bool = False,
        notify: Callable[[str], None] = LOGGER.info,
        lock: threading.Lock | None = None,
        piece_limit_s: float = PIECE_LIMIT_S,
        messages: list[Message] | None = None,
        run: Runner = directly,
    ) -> None:
        assert (model is None) != (source is None)
        self._model = model
        self._source = source
        self.system_prompt = system_prompt
        self.edit = edit
        self.strength = strength
        self.notify = notify
        self.messages: list[Message] = [] if messages is None else messages
        self._sampling = Sampling()
        self.temperature, self.max_tokens, self.top_p = temperature, max_tokens, top_p
        self._thinking = thinking
        self._lock = lock or threading.Lock()
        self._limit_s = piece_limit_s
        self._stop = threading.Event()
        self._run = run

    @property
    def model(self) -> ChatModel:
        """Who answers; loads it where that is still to be done."""
        if self._model is not None:
            return self._model
        assert self._source is not None
        return self._source()

    def use(self, model: ChatModel) -> None:
        """Go on with another model; the history stays."""
        self._model, self._source = model, None

    def use_source(self, source: Callable[[], ChatModel]) -> None:
        """Go on with the model that `source` gives before each reply."""
        self._model, self._source = None, source

    def require_edit(self) -> None:
        """Raise `ConfigurationError` when the model has no edit that could be switched or scaled."""
        _editable(self.model)

    @property
    def temperature(self) -> float:
        """0 = always the most likely token, up to 2."""
        return self._sampling.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._sampling = replace(self._sampling, temperature=_within(value, TEMPERATURES, "temperature"))

    @property
    def max_tokens(self) -> int:
        """Longest reply in tokens."""
        return self._sampling.max_tokens

    @max_tokens.setter
    def max_tokens(self, value: int) -> None:
        tokens = int(_within(value, REPLY_TOKENS, "reply length in tokens"))
        self._sampling = replace(self._sampling, max_tokens=tokens)

    @property
    def top_p(self) -> float:
        """Share of probability from which tokens are drawn; 1 = all of it."""
        return self._sampling.top_p

    @top_p.setter
    def top_p(self, value: float) -> None:
        self._sampling = replace(self._sampling, top_p=_within(value, TOP_P, "top-p"))

    @property
    def strength(self) -> float:
        """Times the edit, for models that have one: 0 = the base, 1 = as the trial was, up to 2."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = _within(value, STRENGTHS, "strength")

    def parameters(self) -> Mapping[str, float | int]:
        """How replies are made, as stored with a chat."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, "top_p": self.top_p}

    def send(self, text: str) -> Iterator[str]:
        """Add a user turn and stream the reply. A stopped reply is kept as far as it came; a failed one is not, and
        the user turn goes with it. Raises `TokenizationError`, `GenerationError`, `CUDAOutOfMemoryError`,
        `HostMemoryError`, `UntrustedContentError` and what loading a model raises.
        """
        return self._turns([*self.messages, Message("user", text, now())])

    def regenerate(self) -> Iterator[str]:
        """Replace the last reply by a new one; raises `ConfigurationError` when there is none."""
        if not self.messages:
            raise ConfigurationError("there is no reply to make again", hint="Write a message first.")
        return self._turns(without_reply(self.messages))

    def edit_last(self, text: str) -> Iterator[str]:
        """Replace the last user turn and everything after it, and stream the reply to the new one."""
        return self._turns([*without_reply(self.messages)[:-1], Message("user", text, now())])

    def compare(self, text: str) -> Iterator[tuple[bool, str]]:
        """Stream the replies of the base and of the edited model, made in one batch, as (edited, piece); the edited one
        is remembered. Raises as `send`, and `ConfigurationError` for a model without an edit.
        """
        turns = [*self.messages, Message("user", text, now())]
        for piece in self._remembered(turns, self._generate([turns, turns], (0.0, self.strength)), 1):
            yield piece.row == 1, piece.text

    def clear(self) -> None:
        """Forget the conversation; the parameters stay."""
        self.messages.clear()

    def stop(self) -> None:
        """End the running reply after its next token; may be called from any thread."""
        self._stop.set()

    def together(
        self, conversations: Sequence[Sequence[Message]], strengths: Sequence[float]
    ) -> Iterator[Piece]:
        """One batch: row i continues `conversations[i]` with `strengths[i]` times the edit. Nothing is remembered.
        Raises as `send`, and `ConfigurationError` for a model without an edit."""
        return self._generate(conversations, strengths)

    def _turns(self, turns: list[Message]) -> Iterator[str]:
        return (piece.text for piece in self._remembered(turns, self._generate([turns], None), 0))

    def _remembered(self, turns: list[Message], pieces: Iterator[Piece], row: int) -> Iterator[Piece]:
        """The pieces; `turns` and the text of `row` become the history unless the reply failed."""
        before = list(self.messages)
        self.messages[:] = turns
        texts: list[str] = []
        finished = failed = False
        try:
            for piece in pieces:
                if piece.row == row:
                    texts.append(piece.text)
                yield piece
            finished = True
        except HereticError:
            failed = True
            raise
        finally:
            text = "".join(texts).strip()
            if failed or not (text or finished):
                # Two user turns in a row would make many templates refuse the next message.
                self.messages[:] = before
            else:
                self.messages.append(Message("assistant", text, now()))

    def _generate(
        self, conversations: Sequence[Sequence[Message]], strengths: Sequence[float] | None
    ) -> Iterator[Piece]:
        """strengths: None = as `edit` and `strength` say."""
        self._stop.clear()
        if not self._lock.acquire(timeout=self._limit_s):
            raise GenerationError(
                "another reply is still being written", hint="Stop it, or wait for its end."
            )
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._lock.release)
            generation = self._prepared(self.model, conversations, strengths)
            on_error.pop_all()  # from here on the thread that generates releases it
        yield from generation.stream(self._limit_s)

    def _prepared(
        self,
        model: ChatModel,
        conversations: Sequence[Sequence[Message]],
        strengths: Sequence[float] | None,
    ) -> Generation:
        edits, reader = self._edits(model, strengths)
        network, tokenizer = model.network, model.tokenizer
        form = self._form(model)
        context = context_length(network)
        # At most half of the context is kept free for the reply.
        tokens = self.max_tokens if context is None else min(self.max_tokens, context // 2)
        rows = []
        for turns in conversations:
            ids, cut = fitting(
                lambda kept: form.encode(kept, self.system_prompt),
                turns,
                None if context is None else context - tokens,
            )
            rows.append(ids)
            if cut:
                self.notify(f"the first {cut} messages no longer fit into the context and are left out")
        return Generation(
            network=network,
            tokenizer=tokenizer,
            rows=rows,
            sampling=replace(self._sampling, max_tokens=tokens),
            edits=edits,
            pad=_pad(tokenizer),
            ends=_ends(network),
            stop=self._stop,
            at_end=self._lock.release,
            reader=reader,
        )

    def _edits(
        self, model: ChatModel, strengths: Sequence[float] | None
    ) -> tuple[Callable[[], AbstractContextManager[object]], Reader | None]:
        if strengths is None and (self.strength == 1.0 or not self.edit):
            return lambda: model.edited(self.edit), None
        wanted = (self.strength,) if strengths is None else tuple(strengths)
        editable = _editable(model)
        return lambda: editable.under(wanted), editable.reader

    def _form(self, model: ChatModel) -> Form:
        tokenizer = model.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_FORM
        # Templates without the switch ignore it.
        prefix = ""
        if isinstance(model, EditableModel) and not self._thinking:
            prefix = model.reply_prefix
        return Form(tokenizer, dict.fromkeys(SWITCHES, self._thinking), prefix, self._run)


def _editable(model: ChatModel) -> EditableModel:
    if not isinstance(model, EditableModel) or not model.has_edit:
        raise ConfigurationError(
            "this model has no edit that could be switched",
            hint="Open a trial of a study, such as heretic_study:12; a saved model is edited for good.",
        )
    return model


def without_reply(messages: Sequence[Message]) -> list[Message]:
    """The turns up to the last one of the user."""
    kept = list(messages)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    return kept


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _ends(network: PreTrainedModel) -> frozenset[int]:
    """Tokens after which the network writes no more, as the library sees them."""
    configuration = network.generation_config
    stated = None if configuration is None else configuration.eos_token_id
    if stated is None:
        return frozenset()
    return frozenset(int(token) for token in (stated if isinstance(stated, list | tuple) else [stated]))


def _within(value: float, limits: tuple[float, float], name: str) -> float:
    low, high = limits
    if not low <= value <= high:
        raise ConfigurationError(f"the {name} is {value:g}", hint=f"It lies between {low:g} and {high:g}.")
    return value
