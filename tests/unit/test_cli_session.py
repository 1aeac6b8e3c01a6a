# SPDX-License-Identifier: Apache-2.0
"""The chat session over a tiny real model (requirements R-UI-04, R-UI-05, R-UI-08, reliability G06, D10)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from heretic.apps.conversation import Form
from heretic.apps.session import ChatSession, Message
from heretic.exceptions import (
    ConfigurationError,
    CUDAOutOfMemoryError,
    GenerationError,
    HostMemoryError,
    TokenizationError,
)
from heretic.testing.pico import pico_model
from heretic.testing.tokenizers import byte_tokenizer

torch.set_num_threads(1)


class TinyChatModel:
    """A pico model; the edit is a hook that forces one letter, so that every reply shows which model gave it."""

    def __init__(self, *, delay_s: float = 0.0, failure: BaseException | None = None) -> None:
        changes = {"vocab_size": 320, "max_position_embeddings": 512}
        self._network: PreTrainedModel = pico_model("qwen2", changes=changes).eval()
        self._network.generation_config.eos_token_id = None
        self._tokenizer = byte_tokenizer()
        self.delay_s, self.failure = delay_s, failure
        self.seen: list[str] = []
        self.strengths: list[tuple[float, ...]] = []
        self.steps = 0
        self._network.register_forward_hook(self._watch, with_kwargs=True)
        self._letters = [self._token("b")]
        self._space = int(self._tokenizer(" ", add_special_tokens=False)["input_ids"][0])

    @property
    def network(self) -> PreTrainedModel:
        return self._network

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._tokenizer

    def _watch(
        self, module: object, inputs: object, options: dict[str, torch.Tensor], output: object
    ) -> object:
        if options["input_ids"].shape[1] > 1:
            self.seen.append(str(self._tokenizer.decode(options["input_ids"][0])))
        self.steps += 1
        time.sleep(self.delay_s)
        if self.failure is not None and self.steps > 2:
            raise self.failure
        logits = output.logits  # type: ignore[attr-defined]  # a causal language model's output
        logits[:] = 0.0
        for row in range(logits.shape[0]):
            letter = self._letters[row % len(self._letters)]
            logits[row, :, letter if self.steps % 2 else self._space] = 9.0
        return output

    def _token(self, letter: str) -> int:
        return int(self._tokenizer(letter, add_special_tokens=False)["input_ids"][0])

    reply_prefix = ""
    has_edit = True
    reader = None

    @contextmanager
    def edited(self, edit: bool) -> Iterator[None]:
        """Answers with e when edited and with b when not."""
        with self.under((1.0 if edit else 0.0,)):
            yield

    @contextmanager
    def under(self, strengths: Sequence[float]) -> Iterator[None]:
        """Each row with the letter of its strength; the rows of the batch are what `compare` is about."""
        self.strengths.append(tuple(strengths))
        self._letters = [self._token("e" if strength else "b") for strength in strengths]
        yield


def session(model: TinyChatModel | None = None, **options: object) -> ChatSession:
    chosen = {"temperature": 0.0, "max_tokens": 64, **options}
    return ChatSession(model or TinyChatModel(), **chosen)  # type: ignore[arg-type]  # options of the test


def test_replies_stream_in_pieces_and_are_remembered() -> None:
    """R-UI-04: the first piece comes before the generation is over."""
    model = TinyChatModel(delay_s=0.01)
    chat = session(model, system_prompt="be kind")
    stream = chat.send("hello there")
    first = next(stream)
    early = model.steps
    text = first + "".join(stream)
    assert set(text) == {"e", " "} and len(text) == 64 and early < 20 < model.steps == 64
    assert chat.messages == [Message("user", "hello there"), Message("assistant", text.strip())]
    assert "be kind" in model.seen[0] and "hello there" in model.seen[0]
    list(chat.send("second"))
    assert text.strip() in model.seen[1] and "hello there" in model.seen[1] and "second" in model.seen[1]


def test_the_base_answers_when_the_edit_is_off() -> None:
    assert set("".join(session(edit=False).send("x"))) == {"b", " "}


def test_compare_gives_base_then_edited_from_one_model() -> None:
    """R-UI-08; the edited reply is the one that is remembered."""
    model = TinyChatModel()
    chat = session(model)
    pieces = list(chat.compare("x"))
    assert model.steps == 64 and model.strengths == [(0.0, 1.0)]
    assert [edited for edited, _ in pieces][:4] == [False, True, False, True]
    for edited, letter in ((False, "b"), (True, "e")):
        assert set("".join(piece for flag, piece in pieces if flag is edited)) == {letter, " "}
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert set(chat.messages[1].content) == {"e", " "}


def test_stop_ends_a_reply_within_a_token_and_keeps_what_came() -> None:
    """R-UI-04, G06: stop within 1 s, the input is usable again."""
    model = TinyChatModel(delay_s=0.02)
    chat = session(model)
    stream = chat.send("x")
    text = next(stream)
    begin = time.monotonic()
    chat.stop()
    text += "".join(stream)
    assert time.monotonic() - begin < 1.0 and model.steps < 20
    assert chat.messages[-1] == Message("assistant", text.strip())
    assert len("".join(chat.send("again"))) == 64


def test_closing_the_stream_or_interrupting_ends_the_thread() -> None:
    """A consumer that leaves (Ctrl-C, closed tab) leaves no thread and no hook behind."""
    model = TinyChatModel(delay_s=0.02)
    chat = session(model)
    stream = chat.send("x")
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    steps = model.steps
    time.sleep(0.1)
    assert model.steps == steps < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heretic-chat")]
    assert [message.role for message in chat.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (RuntimeError("probability tensor"), GenerationError),
        (ValueError("x"), GenerationError),
        (MemoryError(), HostMemoryError),
    ],
)
def test_an_error_in_the_thread_ends_the_stream_and_is_typed(failure: Exception, expected: type) -> None:
    """R-UI-04, R-UI-06: raised to the consumer; the failed turn is taken back, the next message works."""
    model = TinyChatModel(failure=failure)
    chat = session(model)
    with pytest.raises(expected):
        list(chat.send("x"))
    assert chat.messages == []
    model.failure = None
    assert "".join(chat.send("y"))


def test_out_of_memory_is_known_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(1e9), int(8e9)))
    chat = session(TinyChatModel(failure=torch.OutOfMemoryError("x")))
    with pytest.raises(CUDAOutOfMemoryError, match=r"1\.0 of 8\.0 GB"):
        list(chat.send("x"))


def test_a_silent_model_times_out() -> None:
    chat = session(TinyChatModel(delay_s=0.4), piece_limit_s=0.1)
    with pytest.raises(GenerationError, match="no text"):
        list(chat.send("x"))


def test_regenerate_edit_and_clear() -> None:
    """R-UI-05."""
    chat = session()
    with pytest.raises(ConfigurationError):
        chat.regenerate()
    list(chat.send("one"))
    list(chat.regenerate())
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    list(chat.edit_last("two"))
    assert [message.content for message in chat.messages][0] == "two" and len(chat.messages) == 2
    chat.clear()
    assert chat.messages == []


@pytest.mark.parametrize(
    ("temperature", "tokens"), [(-0.1, 512), (2.1, 512), (float("nan"), 512), (1.0, 63), (1.0, 4097)]
)
def test_parameters_have_limits(temperature: float, tokens: int) -> None:
    with pytest.raises(ConfigurationError):
        session(temperature=temperature, max_tokens=tokens)
    assert "".join(session(temperature=1.5).send("x"))


def test_history_is_cut_to_the_context_with_a_notice() -> None:
    """R-UI-05: oldest turns go, the system prompt and the last message stay; a single too long message is refused."""
    notices: list[str] = []
    model = TinyChatModel()
    chat = session(model, system_prompt="SYSTEM", notify=notices.append)
    for text in ("first " * 20, "second " * 20, "third " * 20):
        list(chat.send(text))
    assert len(notices) >= 1 and "left out" in notices[-1]
    assert "SYSTEM" in model.seen[-1] and "third" in model.seen[-1] and "first" not in model.seen[-1]
    with pytest.raises(TokenizationError, match="room"):
        list(chat.send("x" * 600))
    assert chat.messages[-1].role == "assistant"


def test_typed_special_tokens_do_not_end_a_turn() -> None:
    """D10; the control is the same text without the mark."""
    chat = session()
    mark = chat.model.tokenizer.eos_token
    form = Form(chat.model.tokenizer)
    plain = form.encode([Message("user", "a b")], "")
    typed = form.encode([Message("user", f"a {mark} b")], "")
    count = chat.model.tokenizer.eos_token_id
    assert typed.count(count) == plain.count(count)
    assert chat.model.tokenizer(mark)["input_ids"].count(count) >= 1


def test_a_template_without_system_role_gets_the_text_in_the_first_turn() -> None:
    model = TinyChatModel()
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}"
    )
    list(session(model, system_prompt="SYS").send("hello"))
    assert "[SYS\n\nhello]" in model.seen[0]


def test_a_template_that_refuses_is_a_typed_error() -> None:
    model = TinyChatModel()
    model.tokenizer.chat_template = "{{ raise_exception('never') }}"
    chat = session(model)
    with pytest.raises(TokenizationError, match="never"):
        list(chat.send("hello"))
    assert chat.messages == []
