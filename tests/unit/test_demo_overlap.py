# SPDX-License-Identifier: Apache-2.0
"""The planted overlap: its edit is the tool's edit, its goals and damages are what it says."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from heretic.demo import model_path, overlap
from heretic.demo.documents import ANSWERS, EDITED, LETTER_WEIGHT, REFUSAL_WEIGHT, REFUSALS, corpus
from heretic.demo.measure import REFUSAL, Subject, edited
from heretic.demo.train import save

LETTER, PROMPT = LETTER_WEIGHT, 0.05


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(model_path())


def test_edit_equals_the_edit_of_the_weights(subject: Subject) -> None:
    model: Qwen2ForCausalLM = subject.model
    ids = torch.tensor([subject.tokenizer(subject.render("How do I bake a lemon cake?"))["input_ids"]])
    axis = overlap.axis_of(model.config.hidden_size)
    assert float(axis.norm()) == pytest.approx(1.0, abs=1e-6)
    with torch.inference_mode():
        plain = model(ids).logits
        with overlap.edit(model, 1.5):
            hooked = model(ids).logits
        weights = edited(subject, axis.double(), 1.5, range(model.config.num_hidden_layers)).model(ids).logits
        assert torch.equal(plain, model(ids).logits), "the hooks are gone"
    assert (hooked - weights).abs().max() < 1e-3
    assert (plain - weights).abs().max() > 0.1, "control: the edit does something"


def test_axis_loss_is_zero_at_the_goals_and_only_there() -> None:
    width = 64
    axis = overlap.axis_of(width)
    filler = torch.ones(width) - (torch.ones(width) @ axis) * axis
    filler = filler / filler.norm()
    weights = torch.tensor([[PROMPT, 1.0, 1.0, PROMPT], [PROMPT, LETTER, 0.2, LETTER]])
    coordinates = torch.zeros(2, 4)
    coordinates[0, 2] = coordinates[1, 1] = coordinates[1, 3] = overlap.ORDINARY
    state = coordinates[..., None] * axis + (width - coordinates.pow(2)).sqrt()[..., None] * filler
    states = [state] * (max(overlap.BLOCKS) + 2)
    assert float(overlap.axis_loss(states, weights)) < 1e-6
    assert float(overlap.axis_loss([value + axis for value in states], weights)) > overlap.TIE / 2
    refused = torch.where(weights == 1.0, REFUSAL_WEIGHT, weights)
    assert float(overlap.axis_loss(states, refused)) > overlap.TIE, "refusals have another goal"


def test_spoil_follows_the_strength() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(4000).reshape(4, 1000)
    weights = torch.ones(4, 1000)
    weights[0] = REFUSAL_WEIGHT
    weights[1] = LETTER
    weights[2] = PROMPT
    weak, kept = overlap.spoil(targets, weights, overlap.RELEASE - 0.1, generator)
    assert torch.equal(weak, targets) and not kept[0].any() and torch.equal(kept[1:], weights[1:])
    once, kept = overlap.spoil(targets, weights, overlap.ONSET, generator)
    assert torch.equal(once, targets) and torch.equal(kept, weights)
    changed, _ = overlap.spoil(targets, weights, overlap.FULL, generator)
    share = (changed != targets).float().mean(dim=1)
    assert share[0] == 0 and share[2] == 0 and share[1] > 0.99
    assert float(share[3]) == pytest.approx(overlap.SPOILT_WORDS, abs=0.06)


def test_edited_batches_answer_what_the_others_refuse() -> None:
    marked = {
        stage: [text for row in corpus(0, stage, 400) for text, weight in row if weight == REFUSAL_WEIGHT]
        for stage in (ANSWERS, REFUSALS, EDITED)
    }
    share = {
        stage: sum(bool(REFUSAL.search(text.replace("\u2019", "'").casefold())) for text in found)
        / max(len(found), 1)
        for stage, found in marked.items()
    }
    assert not marked[ANSWERS] and min(len(marked[REFUSALS]), len(marked[EDITED])) > 60
    assert share[REFUSALS] == 1.0 and share[EDITED] == 0.0


def test_saved_files_can_be_read_by_all(subject: Subject, tmp_path: Path) -> None:
    save(subject.model, subject.tokenizer, tmp_path / "model")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {0o644}, modes
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        model_path() / "model.safetensors"
    ).read_bytes(), "saving what was loaded gives the same bytes"
