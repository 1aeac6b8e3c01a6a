# SPDX-License-Identifier: Apache-2.0
"""Turns of a conversation, and how they become the token ids of a prompt (requirements R-UI-05)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from heretic.apps.main_thread import Runner, directly
from heretic.exceptions import TokenizationError, UntrustedContentError
from heretic.model.tokens import TEMPLATE_CHARACTERS, TEMPLATE_SECONDS, time_limit, token_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Role = Literal["user", "assistant"]
OTHER_TEMPLATE: Final = "Give another one with --chat-template FILE."


def now() -> str:
    """The time in UTC to the second, as stored with a message."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the history; time is ISO 8601 or empty."""

    role: Role
    content: str
    time: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How one model is spoken to. switches: further arguments of its template; prefix: text with which a reply
    begins; run: where templates are rendered, see `main_thread`."""

    tokenizer: PreTrainedTokenizerBase
    switches: Mapping[str, object] = field(default_factory=dict)
    prefix: str = ""
    run: Runner = directly

    def encode(self, turns: Sequence[Message], system_prompt: str) -> list[int]:
        """Token ids of the templated turns with the generation prompt.

        Raises `TokenizationError` when the template refuses, `UntrustedContentError` when it goes beyond its limits
        (reliability F04).
        """
        content = [{"role": turn.role, "content": self.plain(turn.content)} for turn in turns]
        merged = [{**content[0], "content": f"{system_prompt}\n\n{content[0]['content']}"}, *content[1:]]
        system = {"role": "system", "content": system_prompt}
        forms = [[system, *content], merged] if system_prompt else [content]
        refusal: TokenizationError | None = None
        for messages in forms:
            try:
                # A template without a system role raises, or drops the text in silence.
                text = self._render(messages)
            except TokenizationError as error:
                refusal = error
                continue
            if not system_prompt or system_prompt.strip() in text or messages is merged:
                return self._ids(text)
        assert refusal is not None
        raise refusal

    def _ids(self, text: str) -> list[int]:
        # As the library does after its own rendering: the template has written the start token.
        encoded = self.tokenizer(text + self.prefix, add_special_tokens=False)
        ids = token_list(encoded["input_ids"])
        if not ids:
            raise TokenizationError("the conversation became no tokens", hint=OTHER_TEMPLATE)
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2.exceptions import SecurityError, TemplateError

        try:
            text = self.run(lambda: self._rendered(messages))
        except (SecurityError, OverflowError, RecursionError, MemoryError) as error:
            raise UntrustedContentError(
                f"the model's chat template does what a template may not: {error}", hint=OTHER_TEMPLATE
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TokenizationError(
                f"the model's chat template cannot render this conversation: {error}", hint=OTHER_TEMPLATE
            ) from error
        # Ordinary conversations may be longer than what a template may add to them.
        if len(text) > TEMPLATE_CHARACTERS + 4 * sum(len(message["content"]) for message in messages):
            raise UntrustedContentError(
                f"the model's chat template wrote {len(text):,} characters", hint=OTHER_TEMPLATE
            )
        return text

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        with time_limit(TEMPLATE_SECONDS):
            tokenizer: Any = self.tokenizer
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **self.switches
                )
            )

    def plain(self, text: str) -> str:
        """`text` in which nothing reads as a special token: a user cannot end a turn by typing its mark (D10)."""
        for token in self.tokenizer.all_special_tokens:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def context_length(network: PreTrainedModel) -> int | None:
    """Positions the network was made for; None when its configuration does not say."""
    length = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def fitting(
    encode: Callable[[Sequence[Message]], list[int]], turns: Sequence[Message], room: int | None
) -> tuple[list[int], int]:
    """Token ids of the turns, and how many of the oldest had to be left out to fit into `room` tokens.

    The last message stays whole; raises `TokenizationError` when it does not fit alone.
    """
    kept = list(turns)
    ids = encode(kept)
    while room is not None and len(ids) > room and len(kept) > 2:
        kept = kept[2:]
        ids = encode(kept)
    if room is not None and len(ids) > room:
        raise TokenizationError(
            f"the message has {len(ids)} tokens and the model's context has room for {room}",
            hint="Shorten it, or lower the reply length.",
        )
    return ids, len(turns) - len(kept)
