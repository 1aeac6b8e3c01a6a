# SPDX-License-Identifier: Apache-2.0
"""The shipped test kit: byte tokenizers and pico folders behave like downloaded ones (reliability T1,
R-MOD-40..45)."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from heretic.testing.pico import VOCABULARY, pico_model
from heretic.testing.tokenizers import StartToken, Template, byte_tokenizer, save_pico

torch.set_num_threads(1)

USER = [{"role": "user", "content": "hi"}]
SYSTEM = [{"role": "system", "content": "be kind"}, *USER]


@pytest.mark.parametrize("text", ["plain", "  two  spaces\n", "caf\u00e9 \u4f60\u597d \U0001f600", ""])
def test_every_text_survives_encoding_one_token_a_byte(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert max(ids, default=0) < len(tokenizer) < VOCABULARY


@pytest.mark.parametrize(("start", "written"), [("none", 0), ("template", 1), ("tokenizer", 1), ("both", 2)])
def test_only_the_trap_doubles_the_start_token(start: StartToken, written: int) -> None:
    """R-MOD-41: rendering first and encoding afterwards doubles it; one templated call does not."""
    tokenizer = byte_tokenizer(start=start)
    rendered = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert isinstance(rendered, str)
    assert tokenizer(rendered)["input_ids"].count(1) == written
    at_once = tokenizer.apply_chat_template(
        USER, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert isinstance(at_once, list)
    assert sum(token == 1 for token in at_once) == (1 if start in ("template", "both") else 0)


@pytest.mark.parametrize(("template", "kept"), [("chat", True), ("ignores_system", False)])
def test_a_template_may_drop_the_system_text(template: Template, kept: bool) -> None:
    text = byte_tokenizer(template=template).apply_chat_template(SYSTEM, tokenize=False)
    assert ("be kind" in text) == kept and "hi" in text


def test_a_template_may_reject_the_system_role() -> None:
    tokenizer = byte_tokenizer(template="rejects_system")
    assert "hi" in tokenizer.apply_chat_template(USER, tokenize=False)
    with pytest.raises(jinja2.exceptions.TemplateError):
        tokenizer.apply_chat_template(SYSTEM, tokenize=False)


def test_the_thinking_template_has_a_switch() -> None:
    tokenizer = byte_tokenizer(template="thinking")
    prompts = [
        tokenizer.apply_chat_template(
            USER, tokenize=False, add_generation_prompt=True, enable_thinking=switch
        )
        for switch in (True, False)
    ]
    assert "</think>" not in str(prompts[0])
    assert prompts[1] == f"{prompts[0]}<think>\n\n</think>\n\n"


def test_the_padding_token_can_be_missing() -> None:
    assert byte_tokenizer(pad=False).pad_token is None
    assert byte_tokenizer().padding_side == "left"
    assert byte_tokenizer(template=None).chat_template is None


def test_a_pico_folder_loads_like_a_downloaded_model(tmp_path: Path) -> None:
    folder = save_pico(tmp_path / "model", "qwen3", max_shard_size="60KB", seed=3)
    assert len(list(folder.glob("*.safetensors"))) > 1 and (folder / "model.safetensors.index.json").exists()
    loaded, built = AutoModelForCausalLM.from_pretrained(folder), pico_model("qwen3", seed=3)
    assert all(
        torch.equal(left, right)
        for left, right in zip(loaded.state_dict().values(), built.state_dict().values(), strict=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert not torch.equal(pico_model("qwen3", seed=4).lm_head.weight, built.lm_head.weight)
