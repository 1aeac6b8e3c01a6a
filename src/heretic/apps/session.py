# SPDX-License-Identifier: Apache-2.0
"""A chat without a user interface: history, parameters, streaming (requirements 9.1).

The text appears while it is made: a second thread generates, the caller iterates. That thread ends the
stream on every path and the caller waits with a limit, so that nothing can hang (R-UI-04).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from heretic.exceptions import (
    ConfigurationError,
    CUDAOutOfMemoryError,
    GenerationError,
    HostMemoryError,
    TokenizationError,
)
from heretic.model.tokens import PLAIN_FORM, TEMPLATE_SECONDS, time_limit, token_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGGER: Final = logging.getLogger("heretic_chat")
Role = Literal["user", "assistant"]

TEMPERATURES: Final = (0.0, 2.0)
REPLY_TOKENS: Final = (64, 4096)
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


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the history."""

    role: Role
    content: str


class _StopWhen(StoppingCriteria):
    """Ends a generation after the token during which `event` was set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return torch.full(
            (input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device
        )


class ChatSession:
    """One conversation with one model.

    notify: receives sentences the user should see (the history was cut). lock: shared by the sessions of
    one model, so that their replies queue instead of mixing. thinking: for templates that can. edit:
    whether `send` answers as the edited model. Raises `ConfigurationError` for a temperature or length out
    of range.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        system_prompt: str = "",
        temperature: float = 0.7,
        max_tokens: int = 512,
        edit: bool = True,
        thinking: bool = False,
        notify: Callable[[str], None] = LOGGER.info,
        lock: threading.Lock | None = None,
        piece_limit_s: float = PIECE_LIMIT_S,
    ) -> None:
        self.model = model
        self.system_prompt = system_prompt
        self.edit = edit
        self.notify = notify
        self.messages: list[Message] = []
        self.temperature = temperature
        self.max_tokens = max_tokens
        # Templates without the switch ignore it.
        self._template_arguments: dict[str, object] = {"enable_thinking": thinking}
        self._lock = lock or threading.Lock()
        self._limit_s = piece_limit_s
        self._stop = threading.Event()
        if model.tokenizer.chat_template is None:
            model.tokenizer.chat_template = PLAIN_FORM

    @property
    def temperature(self) -> float:
        """0 = always the most likely token, up to 2."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = _within(value, TEMPERATURES, "temperature")

    @property
    def max_tokens(self) -> int:
        """Longest reply in tokens."""
        return self._max_tokens

    @max_tokens.setter
    def max_tokens(self, value: int) -> None:
        self._max_tokens = int(_within(value, REPLY_TOKENS, "reply length in tokens"))

    def send(self, text: str) -> Iterator[str]:
        """Add a user turn and stream the reply. A stopped reply is kept as far as it came; a failed one is
        not, and the user turn goes with it. Raises `TokenizationError`, `GenerationError`,
        `CUDAOutOfMemoryError`.
        """
        self.messages.append(Message("user", text))
        return self._reply(self.edit)

    def regenerate(self) -> Iterator[str]:
        """Replace the last reply by a new one; raises `ConfigurationError` when there is none."""
        if not self.messages:
            raise ConfigurationError("there is no reply to make again", hint="Write a message first.")
        if self.messages[-1].role == "assistant":
            self.messages.pop()
        return self._reply(self.edit)

    def edit_last(self, text: str) -> Iterator[str]:
        """Replace the last user turn and everything after it, and stream the reply to the new one."""
        while self.messages and self.messages[-1].role == "assistant":
            self.messages.pop()
        if self.messages:
            self.messages.pop()
        return self.send(text)

    def compare(self, text: str) -> Iterator[tuple[bool, str]]:
        """Stream the base model's reply, then the edited model's, as (edited, piece); the second one is
        remembered.
        """
        self.messages.append(Message("user", text))
        turns = list(self.messages)
        finished = False
        try:
            for piece in self._generate(turns, edit=False):
                yield False, piece
            finished = True
        finally:
            if not finished:
                self.messages.pop()
        for piece in self._reply(True):
            yield True, piece

    def clear(self) -> None:
        """Forget the conversation; the parameters stay."""
        self.messages.clear()

    def stop(self) -> None:
        """End the running reply after its next token; may be called from any thread."""
        self._stop.set()

    def _reply(self, edit: bool) -> Iterator[str]:
        pieces: list[str] = []
        finished = False
        try:
            for piece in self._generate(self.messages, edit=edit):
                pieces.append(piece)
                yield piece
            finished = True
        except (GenerationError, TokenizationError, CUDAOutOfMemoryError, HostMemoryError):
            pieces.clear()
            raise
        finally:
            text = "".join(pieces).strip()
            if text or finished:
                self.messages.append(Message("assistant", text))
            else:
                # Two user turns in a row would make many templates refuse the next message.
                self.messages.pop()

    def _generate(self, turns: Sequence[Message], *, edit: bool) -> Iterator[str]:
        ids = self._fitting(turns)
        if not self._lock.acquire(timeout=self._limit_s):
            raise GenerationError(
                "another reply is still being written", hint="Stop it, or wait for its end."
            )
        try:
            yield from self._stream(ids, edit)
        finally:
            self._lock.release()

    def _stream(self, ids: list[int], edit: bool) -> Iterator[str]:
        streamer = TextIteratorStreamer(
            self.model.tokenizer,
            skip_prompt=True,
            timeout=self._limit_s,
            skip_special_tokens=True,
        )
        self._stop.clear()
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="heretic-chat")
        producer = executor.submit(self._produce, ids, edit, streamer)
        try:
            yield from (piece for piece in streamer if piece)
            producer.result(timeout=self._limit_s)
        except queue.Empty as error:
            raise GenerationError(
                f"the model gave no text for {self._limit_s:g} s",
                hint="Try a shorter prompt or a smaller model.",
            ) from error
        except torch.OutOfMemoryError as error:
            raise _out_of_memory() from error
        except MemoryError as error:
            raise HostMemoryError(
                "the host has too little memory for a reply", hint="Lower /tokens."
            ) from error
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise GenerationError(
                f"decoding failed: {type(error).__name__}: {error}",
                hint="If it speaks of a probability tensor, weights hold NaN: 'heretic inspect' finds them.",
            ) from error
        finally:
            self._stop.set()
            # At most one more token is computed; waiting for it keeps hooks of two replies apart.
            executor.shutdown(wait=True)

    def _produce(self, ids: list[int], edit: bool, streamer: TextIteratorStreamer) -> None:
        """Generate into the streamer; whatever happens, the stream ends."""
        try:
            network: Any = self.model.network
            device = network.get_input_embeddings().weight.device
            tokens = torch.tensor([ids], dtype=torch.int64, device=device)
            sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if self.temperature > 0:
                sampling = {"do_sample": True, "temperature": self.temperature}
            with torch.inference_mode(), self.model.edited(edit):
                network.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=self._room(),
                    pad_token_id=self._pad(),
                    stopping_criteria=StoppingCriteriaList([_StopWhen(self._stop)]),
                    streamer=streamer,
                    **sampling,
                )
        finally:
            streamer.on_finalized_text("", stream_end=True)

    def _fitting(self, turns: Sequence[Message]) -> list[int]:
        """Token ids of the turns, the oldest ones left out until prompt and reply fit into the context."""
        kept = list(turns)
        ids = self._encode(kept)
        limit = self._context()
        if limit is None:
            return ids
        room = limit - self._room()
        while len(ids) > room and len(kept) > 2:
            kept = kept[2:]
            ids = self._encode(kept)
        if len(ids) > room:
            raise TokenizationError(
                f"the message has {len(ids)} tokens and the model's context has room for {room}",
                hint="Shorten it, or lower the reply length with /tokens.",
            )
        if len(kept) < len(turns):
            self.notify(
                f"the first {len(turns) - len(kept)} messages no longer fit into the context and are left out"
            )
        return ids

    def _encode(self, turns: Sequence[Message]) -> list[int]:
        from jinja2.exceptions import TemplateError

        content = [{"role": turn.role, "content": self._plain(turn.content)} for turn in turns]
        system = {"role": "system", "content": self.system_prompt}
        merged = [{**content[0], "content": f"{self.system_prompt}\n\n{content[0]['content']}"}, *content[1:]]
        forms = [[system, *content], merged] if self.system_prompt else [content]
        refusal: TemplateError | None = None
        for messages in forms:
            try:
                # A template without a system role raises, or drops the text in silence.
                text = self._render(messages, tokenize=False)
            except TemplateError as error:
                refusal = error
                continue
            if not self.system_prompt or self.system_prompt.strip() in str(text) or messages is merged:
                return token_list(self._render(messages, tokenize=True))
        raise TokenizationError(
            f"the model's chat template cannot render this conversation: {refusal}",
            hint="Give another one with --chat-template FILE.",
        ) from refusal

    def _render(self, messages: list[dict[str, str]], *, tokenize: bool) -> object:
        with time_limit(TEMPLATE_SECONDS):
            tokenizer: Any = self.model.tokenizer
            form = {"return_dict": False} if tokenize else {}
            result: object = tokenizer.apply_chat_template(
                messages, tokenize=tokenize, add_generation_prompt=True, **form, **self._template_arguments
            )
            return result

    def _plain(self, text: str) -> str:
        """`text` in which nothing reads as a special token: a user cannot end a turn by typing its mark
        (D10).
        """
        for token in self.model.tokenizer.all_special_tokens:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _context(self) -> int | None:
        """Positions the network was made for; None when its configuration does not say."""
        length = getattr(self.model.network.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    def _room(self) -> int:
        """Tokens kept free for the reply: the chosen length, at most half of the context."""
        limit = self._context()
        return self.max_tokens if limit is None else min(self.max_tokens, limit // 2)

    def _pad(self) -> int:
        tokenizer = self.model.tokenizer
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


def _within(value: float, limits: tuple[float, float], name: str) -> float:
    low, high = limits
    if not low <= value <= high:
        raise ConfigurationError(f"the {name} is {value:g}", hint=f"It lies between {low:g} and {high:g}.")
    return value


def _out_of_memory() -> CUDAOutOfMemoryError:
    free, total = torch.cuda.mem_get_info()
    return CUDAOutOfMemoryError(
        f"the accelerator has too little memory: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free",
        hint="Shorten the conversation with /clear, lower /tokens, or load with --quantization bnb_4bit.",
    )
