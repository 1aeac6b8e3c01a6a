# SPDX-License-Identifier: Apache-2.0
"""A trial of a stored study in a chat: the edit of a whole run, per row, at any strength (R-UI-01, R-UI-08)."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heretic import main
from heretic.apps.chat_model import PlainChatModel, scaled
from heretic.apps.conversation import Message
from heretic.apps.discovery import Places
from heretic.apps.manager import ModelManager
from heretic.apps.session import ChatSession
from heretic.apps.stored_trials import edits_of, model_of, read_trial
from heretic.config import Resolved, resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.exceptions import (
    ConfigurationError,
    FingerprintMismatchError,
    ModelNotFoundError,
    StudyNotFoundError,
)
from heretic.interventions.edit import Edit
from heretic.stop import StopFlag
from heretic.study.catalogue import load_finished
from heretic.testing.workbench import loaded_pico, removal

torch.set_num_threads(1)
QUESTION = "Tell me how to pick the lock of my neighbour's house."


def quiet() -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO(), quiet=True)


def small(folder: Path, *more: str) -> Resolved:
    """Settings of a search that takes seconds."""
    words = [
        f"--model={folder / 'models' / 'demo-model'}",
        f"--storage=sqlite:///{folder / 'study.db'}",
        "--behaviour=demo",
        "--bad-prompts.split=train[:32]",
        "--good-prompts.split=train[:32]",
        "--bad-evaluation-prompts.split=validation[:8]",
        "--good-evaluation-prompts.split=validation[:8]",
        "--bad-confirmation-prompts.split=test[:8]",
        "--good-confirmation-prompts.split=test[:8]",
        "--over-behaviour-prompts.split=test[:8]",
        "--max-response-length=16",
        "--refusal-check-tokens=8",
        "--n-trials=4",
        "--n-startup-trials=4",
        "--finalists=1",
        "--offline",
        *more,
    ]
    return resolve_settings(words, environ={}, cwd=folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model and a study of it."""
    folder = tmp_path_factory.mktemp("trials")
    shutil.copytree(model_path(), folder / "models" / "demo-model")
    main.run(small(folder), console=quiet(), stop=StopFlag())
    return folder


def word_of(world: Path) -> str:
    """The stored trial that edits most."""
    trials = load_finished(f"sqlite:///{world / 'study.db'}", "heretic_study")
    return f"heretic_study:{max(trials, key=lambda trial: trial.scores.objectives[1]).index}"


def manager(world: Path) -> ModelManager:
    places = Places(world / "models", storage=f"sqlite:///{world / 'study.db'}", base=world)
    return ModelManager(places, offline=True)


def test_the_edit_is_that_of_a_whole_run_bit_for_bit(world: Path) -> None:
    """Nothing is measured again, and the study is neither owned nor changed."""
    word = word_of(world)
    stored = read_trial(f"sqlite:///{world / 'study.db'}", word)
    before = (world / "study.db").read_bytes()
    run = main.chat_model(small(world), console=quiet(), trial=word)
    found = edits_of(stored, run.model)
    assert {site.path for site in found} == {site.path for site in run._edits} and found
    assert all(edit.equals(run._edits[site]) for site, edit in found.items())
    assert (world / "study.db").read_bytes() == before
    other = edits_of(read_trial(f"sqlite:///{world / 'study.db'}", "heretic_study:0"), run.model)
    assert word == "heretic_study:0" or not all(edit.equals(found[site]) for site, edit in other.items())


def test_rows_of_one_batch_answer_with_their_own_strength(world: Path) -> None:
    """R-UI-08: row by row what each strength answers alone; strength 0 is the base. Control: they differ."""
    desk, word = manager(world), word_of(world)
    session = ChatSession(
        source=lambda: desk.open(word), lock=desk.lock, temperature=0.0, max_tokens=64, run=desk.run
    )
    alone = {}
    for strength in (0.0, 1.0, 1.5):
        session.strength = strength
        alone[strength] = "".join(session.send(QUESTION))
        session.clear()
    turns = [Message("user", QUESTION)]
    rows = {0: "", 1: "", 2: ""}
    readings: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for piece in session.together([turns, turns, turns], (0.0, 1.0, 1.5)):
        rows[piece.row] += piece.text
        if piece.reading is not None:
            readings[piece.row].append(piece.reading)
    assert rows == {0: alone[0.0], 1: alone[1.0], 2: alone[1.5]}
    assert alone[0.0] != alone[1.0]
    with desk.alone():
        plain = desk.open("folder:demo-model")
    base = "".join(ChatSession(plain, temperature=0.0, max_tokens=64).send(QUESTION))
    assert base == alone[0.0]
    assert len(readings[0]) > 3 and readings[0][0] > readings[2][0]
    assert session.messages == []


def test_pairs_are_compared_in_one_batch_and_the_edited_reply_is_kept(world: Path) -> None:
    desk = manager(world)
    with desk.alone():
        model = desk.open(word_of(world))
    session = ChatSession(model, temperature=0.0, max_tokens=64)
    texts = {False: "", True: ""}
    for edited, piece in session.compare(QUESTION):
        texts[edited] += piece
    assert session.messages[-1].content == texts[True].strip() != texts[False].strip()


def test_another_trial_of_the_same_model_needs_no_loading(world: Path) -> None:
    desk = manager(world)
    with desk.alone():
        first = desk.open("heretic_study:0")
        second = desk.open("heretic_study:1")
    assert second.network is first.network and second is not first
    assert second.network.get_input_embeddings().weight.device.type == "cpu"


def test_a_model_without_edit_cannot_be_compared_with_itself(world: Path) -> None:
    desk = manager(world)
    with desk.alone():
        model = desk.open("folder:demo-model")
    session = ChatSession(model, temperature=0.0, max_tokens=64)
    with pytest.raises(ConfigurationError, match="no edit"):
        list(session.compare("hello"))
    assert session.messages == [] and "".join(session.send("hello"))
    with pytest.raises(ConfigurationError, match="strength"):
        session.strength = 2.1


def test_what_a_study_cannot_give_is_said_in_words(world: Path) -> None:
    storage = f"sqlite:///{world / 'study.db'}"
    with pytest.raises(ConfigurationError, match="no finished trial 99"):
        read_trial(storage, "heretic_study:99")
    with pytest.raises(StudyNotFoundError, match="no study"):
        read_trial(storage, "nobody:1")
    stored = read_trial(storage, "heretic_study:0")
    assert model_of(stored, world) == str(world / "models" / "demo-model")
    assert model_of(replace(stored, model="models/gone"), world) == "models/gone"  # it may be a Hub name
    with pytest.raises(ModelNotFoundError, match="is not here"):
        model_of(replace(stored, model="./models/gone"), world)


def test_the_trial_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    """One bit of one weight is enough. Control: a copy of the same model is taken."""
    storage = f"sqlite:///{world / 'study.db'}"
    copy = tmp_path / "model"
    shutil.copytree(world / "models" / "demo-model", copy)
    places = Places(tmp_path, storage=storage, trial_model=str(copy))
    desk = ModelManager(places, offline=True)
    with desk.alone():
        assert desk.open("heretic_study:0").has_edit
        desk.release()
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FingerprintMismatchError, match="not those"), desk.alone():
        desk.open("heretic_study:0")
    assert not desk.state.ready


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_a_scaled_edit_makes_that_share_of_the_change(strength: float) -> None:
    """W + x (W' - W), for factors, gains and bias; in float64."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, values = random(6, 5), random(5)
    edit = Edit(random(6, 2), right=random(2, 5), row_gain=random(6), bias=random(6))

    def output(edit: Edit) -> torch.Tensor:
        assert edit.right is not None and edit.row_gain is not None and edit.bias is not None
        return edit.row_gain * (weight @ values) + edit.left @ (edit.right @ values) + edit.bias

    base = weight @ values
    wanted = base + strength * (output(edit) - base)
    assert torch.allclose(output(scaled(edit, strength)), wanted, atol=1e-12)
    gains = scaled(Edit(torch.zeros(6, 0), column_gain=random(5)), 0.0)
    assert gains.column_gain is not None and torch.equal(gains.column_gain, torch.ones(5).double())


def test_strength_one_and_zero_are_exact() -> None:
    """The edit itself at 1, no hook at all at 0."""
    model = loaded_pico("llama")
    chat = PlainChatModel(model, removal(model))
    ids = torch.tensor([[1, 7, 9], [1, 7, 9]])
    with torch.inference_mode():
        base = model.network(ids).logits
        with chat.under((0.0, 0.0)):
            assert torch.equal(model.network(ids).logits, base)
        with chat.under((0.0, 1.0)):
            mixed = model.network(ids).logits
        with chat.under((1.0, 1.0)):
            both = model.network(ids).logits
    assert torch.equal(mixed[0], base[0]) and torch.allclose(mixed[1], both[1], atol=1e-5)
    assert not torch.allclose(mixed[1], base[1], atol=1e-3)
