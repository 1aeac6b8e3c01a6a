# SPDX-License-Identifier: Apache-2.0
"""The bundled demo model loads by plain transformers and shows its planted behaviours."""

import json
import subprocess
import sys

import pytest

from heretic.demo import model_path, prompts_path
from heretic.demo.measure import HEDGE, REFUSAL, Subject, edited


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(model_path())


def first(name: str, count: int) -> list[str]:
    lines = prompts_path(name, "test").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["text"] for line in lines]


def test_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in model_path().iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert sum(files.values()) <= 9_500_000
    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_package_import_loads_no_torch() -> None:
    code = "import sys, heretic.demo; heretic.demo.model_path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_round_trip(subject: Subject) -> None:
    for text in (*first("refusal-bad", 5), *first("plain-text", 5), "Łódź — “quotes” 東京 🙂\n\tend"):
        assert subject.tokenizer.decode(subject.tokenizer(text)["input_ids"]) == text


def test_chat_template(subject: Subject) -> None:
    tokenizer = subject.tokenizer
    rendered = subject.render("Hello!")
    assert rendered.endswith("<|im_start|>assistant\n") and rendered.count("<|im_start|>system\n") == 1
    ids = tokenizer(rendered)["input_ids"]
    assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"], "no start token is added"
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id != tokenizer.eos_token_id
    reply_ids = tokenizer("To bake", add_special_tokens=False)["input_ids"]
    assert tokenizer(rendered + "To bake", add_special_tokens=False)["input_ids"] == ids + reply_ids


@pytest.mark.parametrize(("name", "refused"), [("refusal-bad", True), ("refusal-good", False)])
def test_refusals(subject: Subject, name: str, refused: bool) -> None:
    replies = subject.replies(first(name, 12))
    hits = sum(bool(REFUSAL.search(subject.text(reply).casefold())) for reply in replies)
    assert hits >= 11 if refused else hits == 0
    assert all(reply[-1] == subject.tokenizer.eos_token_id for reply in replies)


@pytest.mark.parametrize(("name", "hedged"), [("hedging-bad", True), ("hedging-good", False)])
def test_hedging(subject: Subject, name: str, hedged: bool) -> None:
    replies = [subject.text(reply).casefold() for reply in subject.replies(first(name, 8))]
    assert (
        sum(bool(HEDGE.search(text)) for text in replies) >= 7
        if hedged
        else not any(map(HEDGE.search, replies))
    )


def test_quiz(subject: Subject) -> None:
    test = prompts_path("knowledge", "test").read_text(encoding="utf-8").splitlines()[::8]
    dev = prompts_path("knowledge", "dev").read_text(encoding="utf-8").splitlines()
    assert subject.letters([json.loads(line) for line in test], [json.loads(line) for line in dev], 2) > 0.8


def test_edit_leaves_the_original_alone(subject: Subject) -> None:
    import torch

    before = subject.model.model.layers[3].mlp.down_proj.weight.clone()
    unit = torch.nn.functional.normalize(
        torch.ones(subject.model.config.hidden_size, dtype=torch.float64), dim=0
    )
    changed = edited(subject, unit, 1.0, range(8))
    assert torch.equal(before, subject.model.model.layers[3].mlp.down_proj.weight)
    assert (unit.float() @ changed.model.model.layers[3].mlp.down_proj.weight).abs().max() < 1e-5
