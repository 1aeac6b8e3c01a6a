# SPDX-License-Identifier: Apache-2.0
"""Prompts become token ids once: template and tokenizer in one call, then left-padded batches.

One call matters: a template that writes the start token, tokenised a second time with special tokens on, would double
it (requirements R-MOD-41).
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from heretic.exceptions import TokenizationError, UntrustedContentError
from heretic.model.thinking import SWITCHES, Marker, family_marker, opened_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("heretic.model")

TEMPLATE_SECONDS = 2.0
TEMPLATE_CHARACTERS = 1_000_000
OTHER_TEMPLATE = "Give another one with --chat-template FILE."
TOGETHER = 64
"""Prompts that go through template and tokenizer in one call."""
PROBE = "zqprobeqz"
PLAIN_FORM = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The documented dialogue form for tokenizers without a template (R-MOD-45)."""


class PromptLike(Protocol):
    """What is needed of a prompt: its text, and a system text that replaces the run's when not None."""

    @property
    def text(self) -> str: ...
    @property
    def system_prompt(self) -> str | None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Left-padded rows. ids, mask, positions: [rows, width] int64; mask 1 = real token; positions count real tokens."""

    ids: Tensor
    mask: Tensor
    positions: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.ids.shape[0])


def pad_left(sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> Batch:
    """Left-pad token lists to the longest one; positions = cumsum(mask) - 1, never negative."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(sequences), width), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        mask[row, width - len(sequence) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(ids=ids.to(device), mask=mask.to(device), positions=positions.to(device))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code of a stranger's template after `seconds` (reliability F04).

    Uses the interval timer, so it acts only in the main thread of systems that have one; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise UntrustedContentError(
            f"The model's chat template ran longer than {seconds:g} s.",
            hint="Give another one with --chat-template.",
        )

    previous = signal.signal(signal.SIGALRM, stop)
    running, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
        if running:  # somebody else's timer goes on
            signal.setitimer(signal.ITIMER_REAL, running, interval)


class PromptEncoder:
    """Turns prompts into token ids with the model's chat template; results are cached by content.

    system_prompt: the run's system turn; empty = none. Templates without a system role (probed, not guessed) get the
    system text before the first user text. response_prefix is appended to every prompt (R-MOD-46).
    vocabulary: number of embeddings of the model once it is known; a token beyond them is an error, not a crash.
    max_tokens: longer prompts lose the start of the user text; `cut` counts them.
    thinking: replies may begin with a thought of up to `thinking_tokens` tokens, then an answer of up to
    `answer_tokens` (None = as long as it is); otherwise no thought is started. can_think: whether the template shows
    that the model knows thoughts at all (R-MOD-50 to R-MOD-52).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str,
        chat_template: Path | None = None,
        max_tokens: int = 2048,
        thinking: bool = False,
        thinking_tokens: int = 512,
        answer_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.max_tokens = max_tokens
        self.response_prefix = ""
        self.vocabulary: int | None = None
        self.thinking_tokens = thinking_tokens
        self.answer_tokens = answer_tokens
        self.cut = 0
        self.notes: list[str] = []
        self._cache: dict[tuple[str, str, str], tuple[int, ...]] = {}
        self._template_arguments: dict[str, Any] = {}
        self._set_template(chat_template)
        self._set_padding()
        self.has_system_role = self._probe_system_role()
        self._set_thinking(thinking)

    def _set_template(self, path: Path | None) -> None:
        if path is not None:
            try:
                self.tokenizer.chat_template = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizationError(
                    f"The chat template {str(path)!r} cannot be read: {error}",
                    hint="Give a readable UTF-8 file.",
                ) from error
        elif self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = PLAIN_FORM
            self.notes.append(
                "The tokenizer has no chat template; a plain 'User: ... Assistant:' form is used. "
                "Give the right one with --chat-template FILE."
            )

    def _set_padding(self) -> None:
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is not None:
            self.pad = int(self.tokenizer.pad_token_id)
        elif self.tokenizer.eos_token_id is not None:
            self.pad = int(self.tokenizer.eos_token_id)
        else:
            self.pad = 0

    def _messages(self, text: str, system: str) -> list[dict[str, str]]:
        if not system:
            return [{"role": "user", "content": text}]
        if self.has_system_role:
            return [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return [{"role": "user", "content": f"{system}\n\n{text}"}]

    def _probe_system_role(self) -> bool:
        probe = [{"role": "system", "content": "zqsystemqz"}, {"role": "user", "content": "zquserqz"}]
        try:
            return "zqsystemqz" in self.render(probe)
        except TokenizationError:
            return False

    def _set_thinking(self, thinking: bool) -> None:
        """Use the template's own switch where rendering shows that it has one (R-MOD-50)."""
        self.thinking = thinking
        self._template_arguments = {}
        messages = [{"role": "user", "content": PROBE}]
        for name in SWITCHES:
            if self.render(messages, **{name: True}) != self.render(messages, **{name: False}):
                self._template_arguments = {name: thinking}
                break
        tail = self._generation_prompt()
        opened = opened_by(tail)
        family = family_marker(str(self.tokenizer.chat_template))
        self.can_think = bool(self._template_arguments) or opened is not None or family is not None
        if thinking:
            return
        if opened is not None:
            self.response_prefix = opened.closed_block.removeprefix(opened.open)
        elif family is not None and not tail.rstrip().endswith(family.closed_block):
            self.response_prefix = family.closed_block

    def _generation_prompt(self) -> str:
        """What the template writes after the last user text."""
        return self.render([{"role": "user", "content": PROBE}]).rpartition(PROBE)[2]

    @property
    def opened_thought(self) -> Marker | None:
        """The thought in which every reply begins, because the prompt opens it."""
        return opened_by(self._generation_prompt() + self.response_prefix) if self.thinking else None

    def with_thinking(self, thinking: bool) -> PromptEncoder:
        """The same encoder in the other mode, with caches and prefix of its own."""
        other = copy.copy(self)
        other.response_prefix, other.notes, other._cache = "", [], {}
        other._set_thinking(thinking)
        return other

    def render(self, messages: Sequence[dict[str, str]], **arguments: Any) -> str:
        """The templated text, for probes and display.

        Raises `TokenizationError` when the template refuses, `UntrustedContentError` when it breaks out, runs for
        longer than 2 s or writes more than 1 MB (reliability F04, X12).
        """
        text = self._apply(list(messages), tokenize=False, **arguments)
        assert isinstance(text, str)
        if len(text) > TEMPLATE_CHARACTERS:
            raise UntrustedContentError(
                f"The model's chat template wrote {len(text):,} characters for a short conversation.",
                hint=OTHER_TEMPLATE,
            )
        return text

    def _apply(
        self,
        messages: list[dict[str, str]] | list[list[dict[str, str]]],
        *,
        tokenize: bool,
        **arguments: object,
    ) -> object:
        """The library's template call for one or several conversations, under a time limit for all of them; whatever
        a stranger's template raises gets our types."""
        from jinja2.exceptions import SecurityError, TemplateError

        form: dict[str, object] = (
            {"tokenize": True, "return_dict": False} if tokenize else {"tokenize": False}
        )
        try:
            with time_limit(TEMPLATE_SECONDS):
                result: object = self.tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=True,
                    **form,  # type: ignore[arg-type]  # two of the call's many keyword arguments
                    **{**self._template_arguments, **arguments},
                )
        except (SecurityError, OverflowError, RecursionError) as error:
            raise UntrustedContentError(
                f"The model's chat template does what a template may not: {error}", hint=OTHER_TEMPLATE
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TokenizationError(
                f"The model's chat template cannot render this conversation: {error}", hint=OTHER_TEMPLATE
            ) from error
        return result

    def encode(self, prompt: PromptLike) -> tuple[int, ...]:
        """Token ids of one templated prompt, generation prompt and response prefix included."""
        key = self._key(prompt)
        if key not in self._cache:
            text, system, _ = key
            self._cache[key] = tuple(self._cut(text, system, self._tokenise(text, system)))
        return self._cache[key]

    def encode_all(self, prompts: Sequence[PromptLike]) -> list[tuple[int, ...]]:
        """`encode` for each prompt; many at a time take half as long."""
        new = [key for key in dict.fromkeys(map(self._key, prompts)) if key not in self._cache]
        for start in range(0, len(new), TOGETHER):
            part = new[start : start + TOGETHER]
            try:
                encoded = self._apply(
                    [self._messages(text, system) for text, system, _ in part], tokenize=True
                )
            except (TokenizationError, UntrustedContentError):
                break  # one by one it is known which prompt it is, and whether it takes so long alone
            if not isinstance(encoded, list) or len(encoded) != len(part):
                break  # a tokenizer with a form of its own
            for key, ids in zip(part, encoded, strict=True):
                text, system, _ = key
                self._cache[key] = tuple(self._cut(text, system, self._checked(text, token_list(ids))))
        return [self.encode(prompt) for prompt in prompts]

    def _key(self, prompt: PromptLike) -> tuple[str, str, str]:
        system = self.system_prompt if prompt.system_prompt is None else prompt.system_prompt
        return prompt.text, system, self.response_prefix

    def _cut(self, text: str, system: str, ids: list[int]) -> list[int]:
        """The token ids, or those of as much of the end of the text as there is room for."""
        if len(ids) <= self.max_tokens:
            return ids
        self.cut += 1
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert isinstance(words, list)
        excess = len(ids) - self.max_tokens
        return self._tokenise(str(self.tokenizer.decode(words[excess + 8 :])), system)

    def _tokenise(self, text: str, system: str) -> list[int]:
        return self._checked(text, token_list(self._apply(self._messages(text, system), tokenize=True)))

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        """The token ids of a templated text with those of the response prefix, if the model can read them."""
        if self.response_prefix:
            ids = ids + token_list(
                self.tokenizer(self.response_prefix, add_special_tokens=False)["input_ids"]
            )
        if not ids:
            raise TokenizationError(
                f"The prompt {text[:60]!r} became no tokens.", hint="Check the chat template."
            )
        if self.vocabulary is not None and max(ids) >= self.vocabulary:
            raise TokenizationError(
                f"The prompt {text[:60]!r} holds token {max(ids)}, but the model has {self.vocabulary} embeddings.",
                hint="The tokenizer files belong to another model, or tokens were added without resizing the model.",
            )
        return ids


def token_list(encoded: object) -> list[int]:
    """Token ids from any form the library returns: a list, nested list, tensor, or encoding (R-MOD-41)."""
    if hasattr(encoded, "keys"):
        encoded = encoded["input_ids"]  # type: ignore[index]  # a BatchEncoding, typed as object here
    if isinstance(encoded, Tensor):
        encoded = encoded.tolist()
    assert isinstance(encoded, list | tuple)
    while encoded and isinstance(encoded[0], list | tuple):
        encoded = encoded[0]
    return [int(token) for token in encoded]
