# SPDX-License-Identifier: Apache-2.0
"""Prompts become tokens once, with any template (R-MOD-40 to R-MOD-46, R-MOD-50; reliability C07, F04, X10, X12)."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from heretic.exceptions import TokenizationError, UntrustedContentError
from heretic.model.tokens import TOGETHER, PromptEncoder, pad_left, time_limit, token_list
from heretic.testing.tokenizers import byte_tokenizer

BOS, EOS = 1, 2


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    system_prompt: str | None = None


def encoder(template: str | None = None, *, system: str = "Be kind.", **options: Any) -> PromptEncoder:
    """An encoder over the byte tokenizer, with a template of its own where one is given."""
    kinds = {name: options.pop(name) for name in ("start", "pad") if name in options}
    tokenizer = byte_tokenizer(**kinds)
    if template is not None:
        tokenizer.chat_template = template
    return PromptEncoder(tokenizer, system_prompt=system, **options)


def text_of(coder: PromptEncoder, prompt: Text) -> str:
    return str(coder.tokenizer.decode(list(coder.encode(prompt))))


@pytest.mark.parametrize("start", ("none", "template", "tokenizer", "both"))
def test_the_start_token_is_never_doubled(start: str) -> None:
    """R-MOD-41; control: rendering first and tokenising the text doubles it."""
    coder = encoder(start=start)
    expected = 1 if start in ("template", "both") else 0
    assert coder.encode(Text("Hello")).count(BOS) == expected
    rendered = coder.render([{"role": "user", "content": "Hello"}])
    assert token_list(coder.tokenizer(rendered)["input_ids"]).count(BOS) == (
        2 if start == "both" else min(1, expected + (start == "tokenizer"))
    )


def test_the_prompts_own_system_text_replaces_the_runs() -> None:
    """R-MOD-44, R-DAT: None keeps the run's, an empty one removes the turn; results are cached by content."""
    coder = encoder()
    assert text_of(coder, Text("Hi")) == "<s><|system|>Be kind.</s><|user|>Hi</s><|assistant|>"
    assert text_of(coder, Text("Hi", "Be brief.")) == "<s><|system|>Be brief.</s><|user|>Hi</s><|assistant|>"
    assert text_of(coder, Text("Hi", "")) == "<s><|user|>Hi</s><|assistant|>"
    assert coder.encode(Text("Hi")) is coder.encode(Text("Hi"))
    coder.response_prefix = "Sure"
    assert text_of(coder, Text("Hi")).endswith("<|assistant|>Sure"), "R-MOD-46: the prefix is part of the key"


@pytest.mark.parametrize("template", ("ignores_system", "rejects_system"))
def test_templates_without_a_system_role_get_the_text_before_the_user(template: Any) -> None:
    """R-MOD-44, probed by rendering; control: the ordinary template keeps its turn."""
    coder = PromptEncoder(byte_tokenizer(template=template), system_prompt="Be kind.")
    assert not coder.has_system_role
    assert text_of(coder, Text("Hi")) == "<s><|user|>Be kind.\n\nHi</s><|assistant|>"
    assert encoder().has_system_role


def test_no_template_is_the_plain_form_with_a_note(tmp_path: Path) -> None:
    """R-MOD-45, C07; a file takes its place."""
    coder = PromptEncoder(byte_tokenizer(template=None), system_prompt="Be kind.")
    assert text_of(coder, Text("Hi")) == "System: Be kind.\n\nUser: Hi\n\nAssistant:"
    assert "--chat-template" in coder.notes[0]
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}> ", encoding="utf-8")
    own = PromptEncoder(byte_tokenizer(template=None), system_prompt="", chat_template=path)
    assert (text_of(own, Text("Hi")), own.notes) == ("[user] Hi > ", [])
    path.write_bytes(b"\xff\xfe")
    for bad in (path, tmp_path / "missing.jinja"):
        with pytest.raises(TokenizationError, match="cannot be read"):
            PromptEncoder(byte_tokenizer(), system_prompt="", chat_template=bad)


def test_without_a_padding_token_the_end_token_pads() -> None:
    """R-MOD-40: on the left, with a mask, and positions that do not count padding."""
    assert (encoder(pad=False).pad, encoder().pad) == (EOS, 0)
    batch = pad_left([[5, 6, 7], [8]], EOS)
    assert batch.ids.tolist() == [[5, 6, 7], [EOS, EOS, 8]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_template_that_runs_for_ever_is_stopped_after_two_seconds() -> None:
    """F04, X12: nested loops pass the sandbox's limit on ranges."""
    loops = "".join(f"{{% for i{n} in range(90000) %}}" for n in range(3)) + "x" + "{% endfor %}" * 3
    begin = time.monotonic()
    with pytest.raises(UntrustedContentError, match="longer than 2 s") as caught:
        encoder(loops)
    assert time.monotonic() - begin < 10
    assert "--chat-template" in str(caught.value.hint)


@pytest.mark.parametrize(
    "template",
    (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 2000000 }}",
    ),
)
def test_a_template_that_breaks_out_is_untrusted(template: str) -> None:
    """F04, X12."""
    with pytest.raises(UntrustedContentError) as caught:
        encoder(template)
    assert caught.value.hint


@pytest.mark.parametrize(
    "template",
    (
        "{% for m in messages %}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content.text }}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('never') }}",
        "{{ no_such_function() }}",
    ),
)
def test_a_template_that_cannot_be_used_is_a_typed_error(template: str) -> None:
    """X10: no library exception leaves the encoder."""
    with pytest.raises(TokenizationError) as caught:
        encoder(template)
    assert caught.value.hint


def test_a_template_that_refuses_one_prompt_only() -> None:
    """The same errors when a prompt is encoded, not only at the probes."""
    coder = encoder(
        "{% for m in messages %}{% if 'odd' in m.content %}{{ raise_exception('odd') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    assert coder.encode(Text("even"))
    with pytest.raises(TokenizationError, match="odd"):
        coder.encode(Text("odd"))
    silent = encoder("{% for m in messages if m.content != 'x' %}{{ m.content }}{% endfor %}", system="")
    with pytest.raises(TokenizationError, match="no tokens"):
        silent.encode(Text("x"))


def test_the_time_limit_gives_another_timer_back() -> None:
    """A timer that was running (of a test runner, of the program) goes on."""
    fired: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(number))
    before = signal.setitimer(signal.ITIMER_REAL, 50.0)
    try:
        with time_limit(1.0):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50.0
        assert not fired
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, previous)


def test_a_long_prompt_loses_the_start_of_the_users_text() -> None:
    """Requirements 3.3: template and end of the text stay, the number of cut prompts is counted."""
    coder = encoder(max_tokens=60)
    text = text_of(coder, Text("a" * 100 + " the end"))
    assert text.startswith("<s><|system|>Be kind.</s><|user|>a") and text.endswith(
        " the end</s><|assistant|>"
    )
    assert len(coder.encode(Text("a" * 100 + " the end"))) <= 60
    assert coder.cut == 1
    coder.encode(Text("short"))
    assert coder.cut == 1


@pytest.mark.parametrize("thinking", (False, True))
def test_the_templates_own_switch_decides_about_thinking(thinking: bool) -> None:
    """R-MOD-50: probed by rendering; a template without a switch has none."""
    coder = PromptEncoder(byte_tokenizer(template="thinking"), system_prompt="", thinking=thinking)
    closed = text_of(coder, Text("Hi")).endswith("<|assistant|><think>\n\n</think>\n\n")
    assert closed is not thinking
    assert encoder(system="").response_prefix == ""


def test_an_opened_thought_is_closed_at_once() -> None:
    """R-MOD-50: a template without a switch that opens a thought; control: with thinking on it stays open."""
    opens = "{% for m in messages %}{{ m.content }}{% endfor %}<|assistant|><think>\n"
    text = text_of(encoder(opens, system=""), Text("Hi"))
    assert text.count("<think>") == 1 and text.rstrip().endswith("</think>")
    assert "</think>" not in text_of(encoder(opens, system="", thinking=True), Text("Hi"))


def test_every_form_the_library_returns_is_accepted() -> None:
    """R-MOD-41."""
    tokenizer = byte_tokenizer()
    wanted = [7, 8, 9]
    for form in (
        wanted,
        [wanted],
        torch.tensor(wanted),
        torch.tensor([wanted]),
        {"input_ids": [wanted]},
        tuple(wanted),
    ):
        assert token_list(form) == wanted
    assert (
        token_list(tokenizer("Hi", add_special_tokens=False))
        == tokenizer("Hi", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize("start", ("none", "template", "tokenizer", "both"))
def test_many_prompts_together_are_the_same_tokens_as_one_by_one(
    start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut, doubled and own system texts included; control: one call of the template for each `TOGETHER` prompts."""
    prompts = [Text(f"{number} " * (1 + number % 90)) for number in range(150)]
    prompts += [Text("3 " * 4), Text("With a system", "Be brief."), Text("Without", "")]
    together, alone = (encoder(start=start, max_tokens=120) for _ in range(2))
    together.response_prefix = alone.response_prefix = "Sure"
    calls: list[int] = []
    apply = together.tokenizer.apply_chat_template

    def counted(conversation: Any, **options: Any) -> Any:
        calls.append(len(conversation) if isinstance(conversation[0], list) else 1)
        return apply(conversation, **options)

    monkeypatch.setattr(together.tokenizer, "apply_chat_template", counted)
    assert together.encode_all(prompts) == [alone.encode(prompt) for prompt in prompts]
    assert together.cut == alone.cut > 0
    assert calls.count(1) == together.cut and sum(calls) - together.cut == len(set(prompts))
    assert len(calls) - together.cut == -(-len(set(prompts)) // TOGETHER)


def test_a_refused_prompt_among_many_is_named_as_it_is_alone() -> None:
    """R-MOD-40; control: without it all are encoded."""
    template = "{{ 1 // 0 if 'bad' in messages[-1].content else messages[-1].content }}"
    coder = encoder(template, system="")
    prompts = [Text("one"), Text("two"), Text("a bad one")]
    assert len(coder.encode_all(prompts[:2])) == 2
    with pytest.raises(TokenizationError, match="division"):
        coder.encode_all(prompts)
