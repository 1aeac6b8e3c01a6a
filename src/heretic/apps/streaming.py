# SPDX-License-Identifier: Apache-2.0
"""Replies as they are written: a thread generates, the caller iterates over pieces (requirements R-UI-04).

The thread ends the stream on every path and the caller waits with a limit, so that nothing can hang. Several rows are
answered in one batch, each under its own edit.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from heretic.exceptions import CUDAOutOfMemoryError, GenerationError, HereticError, HostMemoryError
from heretic.model.tokens import pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGGER: Final = logging.getLogger("heretic_chat")
REPLACEMENT: Final = "\ufffd"
"""What a tokenizer writes for bytes that are only a part of a character."""
LONGEST_CHARACTER: Final = 4
"""Bytes of a character at most; more tokens than that are no part of one, and nothing is held back for them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that was added to one row. reading: of the direction where the token was chosen, if one is read."""

    row: int
    text: str
    reading: float | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 = the most likely one; top_p: share of probability kept."""

    temperature: float = 0.7
    max_tokens: int = 512
    top_p: float = 1.0

    def arguments(self) -> dict[str, object]:
        """The library's names for it; what a model's own configuration suggests is overruled."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Reads one direction in the output of one block: [rows] activation units at the last position."""

    block: torch.nn.Module
    direction: Tensor

    def attach(self, readings: list[float]) -> torch.utils.hooks.RemovableHandle:
        """A hook that replaces the content of `readings` after each forward pass."""

        def read(module: object, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            unit = self.direction.to(hidden.device, torch.float32)
            readings[:] = (hidden[:, -1].float() @ unit).tolist()

        return self.block.register_forward_hook(read)


class Decoder:
    """Tokens of one row become text at once; bytes that are only a part of a character are held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = 0
        self._start = 0

    def add(self, token: int) -> str:
        """The text that this token adds."""
        self._tokens.append(token)
        text = self._new()
        held = len(self._tokens) - self._shown
        if not text or (text.endswith(REPLACEMENT) and held < LONGEST_CHARACTER):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return text

    def rest(self) -> str:
        """What is held back when the reply ends."""
        text = self._new()
        self._start = self._shown = len(self._tokens)
        return text

    def _new(self) -> str:
        # What is shown already is decoded once more beside the new tokens: alone they would lose their first space.
        known = self._text(self._tokens[self._start : self._shown])
        return self._text(self._tokens[self._start :])[len(known) :]

    def _text(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        return str(
            self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None = None


class _Streamer(BaseStreamer):
    """Takes tokens of the running generation and queues their text."""

    def __init__(
        self, rows: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], readings: list[float]
    ) -> None:
        self.pieces: queue.Queue[Piece | _End] = queue.Queue()
        self._decoders = [Decoder(tokenizer) for _ in range(rows)]
        self._open = [True] * rows
        self._ends = ends
        self._readings = readings
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """The prompts first, then one token a row in each step."""
        if self._prompt:
            self._prompt = False
            return
        readings = [*self._readings, *[None] * len(self._decoders)]
        for row, token in enumerate(value.reshape(-1).tolist()):
            if not self._open[row]:
                continue
            if token in self._ends:
                self._finish(row)
            else:
                self._queue(row, self._decoders[row].add(token), readings[row])

    def end(self) -> None:
        """All rows are written."""
        for row, is_open in enumerate(self._open):
            if is_open:
                self._finish(row)

    def _finish(self, row: int) -> None:
        self._open[row] = False
        self._queue(row, self._decoders[row].rest(), None)

    def _queue(self, row: int, text: str, reading: float | None) -> None:
        if text:
            self.pieces.put(Piece(row, text, reading))


class _StopWhen(StoppingCriteria):
    """Ends a generation after the token during which `event` was set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **arguments: Any) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device
        )


@dataclass(slots=True, eq=False)
class Generation:
    """One batch of replies. rows: token ids of each prompt. pad: a token for the padding. edits: the context in which
    the network runs. ends: tokens that end a reply. at_end: called once when the network is left, whatever happened.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Sequence[int]]
    sampling: Sampling
    edits: Callable[[], AbstractContextManager[object]]
    pad: int
    ends: frozenset[int]
    stop: threading.Event
    at_end: Callable[[], None]
    reader: Reader | None = None

    def stream(self, limit_s: float) -> Iterator[Piece]:
        """The pieces as they come; at most `limit_s` seconds between two of them.

        Raises `GenerationError`, `CUDAOutOfMemoryError`, `HostMemoryError`. Leaving the iteration stops the network
        after its next token.
        """
        readings: list[float] = []
        streamer = _Streamer(len(self.rows), self.tokenizer, self.ends, readings)
        # A daemon: a network that never returns must not keep the program from ending.
        thread = threading.Thread(
            target=self._produce, args=(streamer, readings), name="heretic-chat", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            self.at_end()
            raise GenerationError(f"no thread could be started: {error}", hint="Close programs.") from error
        try:
            yield from _until_end(streamer.pieces, limit_s)
        finally:
            self.stop.set()
            # At most one more token is computed; then nothing of this reply is left in the network.
            thread.join(limit_s)

    def _produce(self, streamer: _Streamer, readings: list[float]) -> None:
        # What no clause below knows is a failure as well, and Python reports it with its traceback.
        ending = _End(GenerationError("the reply ended in an unknown error", hint="The log may say more."))
        try:
            self._generate(streamer, readings)
            ending = _End()
        except (HereticError, RuntimeError, MemoryError, LookupError, ArithmeticError) as error:
            ending = _End(error)
        except (TypeError, ValueError, AttributeError, AssertionError, OSError, ImportError) as error:
            ending = _End(error)
        finally:
            # Before the end is told: who waits for it may start the next reply at once.
            self.at_end()
            streamer.pieces.put(ending)

    def _generate(self, streamer: _Streamer, readings: list[float]) -> None:
        network: Any = self.network
        batch = pad_left(self.rows, self.pad, network.get_input_embeddings().weight.device)
        handle = None if self.reader is None else self.reader.attach(readings)
        try:
            with torch.inference_mode(), self.edits():
                network.generate(
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    max_new_tokens=self.sampling.max_tokens,
                    pad_token_id=self.pad,
                    stopping_criteria=StoppingCriteriaList([_StopWhen(self.stop)]),
                    streamer=streamer,
                    **self.sampling.arguments(),
                )
        finally:
            if handle is not None:
                handle.remove()


def _until_end(pieces: queue.Queue[Piece | _End], limit_s: float) -> Iterator[Piece]:
    while True:
        try:
            piece = pieces.get(timeout=limit_s)
        except queue.Empty as error:
            raise GenerationError(
                f"the model gave no text for {limit_s:g} s",
                hint="Try a shorter prompt or a smaller model.",
            ) from error
        if isinstance(piece, Piece):
            yield piece
        elif piece.error is None:
            return
        else:
            raise typed(piece.error) from piece.error


def typed(error: BaseException) -> HereticError:
    """The error of our tree for what a generation raised; known by type, never by words (R-UI-06)."""
    if isinstance(error, HereticError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory()
    if isinstance(error, MemoryError):
        return HostMemoryError("the host has too little memory for a reply", hint="Lower the reply length.")
    LOGGER.debug("decoding failed", exc_info=error)
    return GenerationError(
        f"decoding failed: {type(error).__name__}: {error}",
        hint="If it speaks of a probability tensor, weights hold NaN: 'heretic inspect' finds them.",
    )


def out_of_memory() -> CUDAOutOfMemoryError:
    """The accelerator's memory ran out during a reply."""
    free, total = torch.cuda.mem_get_info()
    return CUDAOutOfMemoryError(
        f"the accelerator has too little memory: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free",
        hint="Clear the conversation, lower the reply length, or load with --quantization bnb_4bit.",
    )
