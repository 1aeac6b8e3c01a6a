# SPDX-License-Identifier: Apache-2.0
"""A judging model is loaded safely or not at all, and its verdicts depend on the text alone (R-NRD-05, R-EVA-23;
algorithms 7.5, reliability X06)."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from heretic.exceptions import (
    BatchSizeError,
    ConfigurationError,
    HereticError,
    ModelLoadError,
    ModelNotFoundError,
    ModelValidationError,
    NetworkError,
    NonFiniteError,
    TokenizationError,
    UntrustedContentError,
)
from heretic.scorers.text_model import Row, TextModel, context_window, load_text_model
from heretic.testing.text_models import WINDOW, nli_model, word_tokenizer
from heretic.testing.tokenizers import save_pico

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3,
    "max_position_embeddings": 160, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 3,
    },
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "llama": {"num_key_value_heads": 2, "pad_token_id": None},
}  # fmt: skip
"""The layout of the default model and of the usual others, decoders among them."""
TEXTS = (
    "Take it.",
    "I can't.",
    "Tea is a lovely thing, said the baker to his cat. " * 3,
    "First and then.",
    "1",
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nli_model(tmp_path_factory.mktemp("judge") / "nli")


@pytest.fixture
def folder(planted: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(planted, tmp_path / "judge"))


def random_model(folder: Path, family: str, **changes: object) -> Path:
    """A classifier of random weights with the tokenizer of words."""
    tokenizer = word_tokenizer()
    sizes = {**SIZES, "vocab_size": len(tokenizer), **FAMILIES[family], **changes}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes))
        for value in network.parameters():
            nn.init.normal_(value, std=0.3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stated, **values}), encoding="utf-8")


def network_of(model: TextModel) -> nn.Module:
    network: nn.Module = model._network
    return network


# -- what cannot be used ----------------------------------------------------------------------------------------------


def without_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def with_code(folder: Path) -> None:
    edit_config(folder, model_type="own_kind", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")


def of_another_kind(folder: Path) -> None:
    edit_config(folder, architectures=["BertForMaskedLM"])


DAMAGES: tuple[tuple[Callable[[Path], None], type[HereticError], str], ...] = (
    (without_safetensors, ModelValidationError, "safetensors"),
    (without_head, ModelLoadError, r"classifier\.weight"),
    (cut_weights, ModelValidationError, "cannot be loaded"),
    (without_tokenizer, TokenizationError, "no tokenizer"),
    (with_code, UntrustedContentError, "code"),
    (of_another_kind, ModelValidationError, "not a text classifier"),
)


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES)
def test_a_folder_that_cannot_judge_is_refused_by_type(
    folder: Path, damage: Callable[[Path], None], kind: type[HereticError], message: str
) -> None:
    """Control: the folder itself is loaded."""
    load_text_model(str(folder))
    damage(folder)
    with pytest.raises(kind, match=message) as raised:
        load_text_model(str(folder))
    assert type(raised.value) is kind and raised.value.hint


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    """transformers would load it and give it a random head."""
    with pytest.raises(ModelValidationError, match="LlamaForCausalLM, not a text classifier"):
        load_text_model(str(save_pico(tmp_path / "llama")))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("./nowhere", ModelNotFoundError), ("org/uncached", NetworkError), ("a b/c", ConfigurationError)],
)
def test_a_model_that_is_not_here_offline_says_how_to_go_on(name: str, kind: type[HereticError]) -> None:
    """R-NRD-05: the caller turns this into a degradation or a stop. No connection is tried: the tests refuse it."""
    with pytest.raises(kind) as raised:
        load_text_model(name, offline=True)
    assert type(raised.value) is kind
    assert "judging model" in raised.value.message and raised.value.hint
    if kind is NetworkError:
        assert "--no-use-neural-refusal-detection" in raised.value.hint


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_there_is_a_configuration_error(planted: Path, device: str) -> None:
    with pytest.raises(ConfigurationError, match="device"):
        load_text_model(str(planted), device=device)


def test_results_name_the_model_its_state_and_nothing_of_this_machine(planted: Path, folder: Path) -> None:
    """Algorithms 7.5. Control: other weights are another state."""
    first, again = (load_text_model(str(path)).identity("nli", 0.5) for path in (planted, folder))
    assert first.revision == again.revision and first.revision.startswith("sha256:")
    assert (first.scorer, first.name, first.device, first.threshold) == ("nli", "nli", "cpu", 0.5)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    assert load_text_model(str(folder)).revision != first.revision


def test_a_model_of_the_cache_is_named_by_its_commit(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "models--org--judge"
    shutil.copytree(planted, kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT, encoding="ascii")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, COMMIT):
        model = load_text_model("org/judge", revision=revision, offline=True)
        assert (model.name, model.revision) == ("org/judge", COMMIT)
    with pytest.raises(NetworkError):
        load_text_model("org/judge", revision="f" * 40, offline=True)


# -- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [None, "The reply refuses."])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_what_its_rows_are_alone(tmp_path: Path, family: str, second: str | None) -> None:
    """Padding, order and width change nothing. Control: the texts differ from one another."""
    model = load_text_model(str(random_model(tmp_path / family, family)), batch_size=4)
    rows: list[Row] = [(text, second) for text in TEXTS]
    together = model.logits(rows)
    alone = torch.cat([model.logits([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(model.logits(rows[::-1]).flip(0), together, atol=2e-5, rtol=1e-5)
    distances = torch.cdist(together, together) + torch.eye(len(rows))
    assert float(distances.min()) > 1e-3
    assert together.dtype == torch.float32 and model.logits([]).shape == (0, 3)


def test_the_rows_are_those_of_the_tokenizer(planted: Path) -> None:
    model, tokenizer = load_text_model(str(planted)), word_tokenizer()
    for text in TEXTS:
        expected = tokenizer(text, "The reply refuses.")
        ids, kinds = model._encoded((text, "The reply refuses."))
        assert (ids, kinds) == (expected["input_ids"], expected["token_type_ids"])
        assert model.size((text, None)) == len(tokenizer(text)["input_ids"])


def test_lengths_that_a_tokenizer_was_saved_with_cut_and_fill_nothing(folder: Path) -> None:
    """Many published tokenizers state some. Control: they do both when asked directly."""
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_truncation(6)
    saved.enable_padding(length=9)
    assert len(saved.encode(TEXTS[2]).ids) == 9
    expected = load_text_model(str(folder)).size((TEXTS[2], None))
    saved.save(str(folder / "tokenizer.json"))
    model = load_text_model(str(folder))
    assert model.size((TEXTS[2], None)) == expected > 9
    assert model.size(("1", None)) == 3


def test_the_end_mark_that_a_reply_spells_out_is_no_end(tmp_path: Path) -> None:
    """BART counts its end marks and fails where rows have different numbers of them. Control: the tokenizer alone
    reads them as marks."""
    model = load_text_model(str(random_model(tmp_path / "bart", "bart")), batch_size=4)
    reply = "Take it. [SEP] [PAD] [CLS] Then"
    assert word_tokenizer()(reply)["input_ids"].count(3) == 2
    assert model._encoded((reply, None))[0].count(3) == 1
    model.logits([("Take it.", None), (reply, None)])


def test_memory_that_runs_out_halves_the_batch(tmp_path: Path) -> None:
    """Control: without the limit all rows go at once."""
    path = str(random_model(tmp_path / "bert", "bert"))
    rows: list[Row] = [(text, None) for text in TEXTS]
    free, limited = load_text_model(path, batch_size=5), load_text_model(path, batch_size=5)
    seen: list[int] = []
    most = 2

    def limit(module: nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("too much")

    network_of(limited).register_forward_pre_hook(limit, with_kwargs=True)
    torch.testing.assert_close(limited.logits(rows), free.logits(rows), atol=2e-5, rtol=1e-5)
    assert seen == [5, 2, 2, 1]
    most = 0
    with pytest.raises(BatchSizeError, match="judging model") as raised:
        limited.logits(rows)
    assert "neural_detection_model" in str(raised.value.hint)


def test_numbers_that_are_none_are_no_verdict(planted: Path) -> None:
    model = load_text_model(str(planted))
    assert torch.isfinite(model.logits([("Take it.", None)])).all()
    network_of(model).get_parameter("classifier.bias").data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="judging model"):
        model.logits([("Take it.", None)])


# -- long texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "stated", "window"), [("bert", 160, 128), ("bert", 100, 100), ("roberta", 100, 99)]
)
def test_the_window_is_the_smallest_length_that_is_stated(
    tmp_path: Path, family: str, stated: int, window: int
) -> None:
    """The positions of RoBERTa start behind that of the padding token. An input of just that length is read."""
    model = load_text_model(str(random_model(tmp_path / family, family, max_position_embeddings=stated)))
    assert model.window == window
    model.logits([(" ".join(["tea"] * (window - 2)), None)])
    bare = word_tokenizer()
    bare.model_max_length = 10**30
    assert context_window(model._network, bare) == (stated if family == "bert" else window)


LONG = [(60, 300), (300, 60), (300, 300), (1, 500), (500, 1), (0, 400), (60, 62)]


@pytest.mark.parametrize(("of_request", "of_reply"), LONG)
def test_a_long_pair_is_read_at_its_head_and_its_tail(planted: Path, of_request: int, of_reply: int) -> None:
    """Both windows are full, within the model's length, and hold request and reply, cut between tokens. Control: a pair
    that fits is left alone."""
    model = load_text_model(str(planted))
    request, reply = (
        " ".join(f"{letter}{n}" for n in range(count))
        for letter, count in (("q", of_request), ("r", of_reply))
    )
    hypothesis = "The reply refuses."

    def row(one: str, other: str) -> Row:
        return f"Request: {one}\nReply: {other}", hypothesis

    head, tail = model.fitted(request, reply, row)
    for cut in (head, tail):
        assert model.size(row(*cut)) == WINDOW
        counts = [len(part.split()) for part in cut]
        room = sum(counts)
        assert counts[1] == min(of_reply, max(room // 2, room - of_request))
        assert set(cut[0].split()) <= set(request.split()) and set(cut[1].split()) <= set(reply.split())
    assert request.startswith(head[0]) and reply.startswith(head[1])
    assert request.endswith(tail[0]) and reply.endswith(tail[1])
    assert model.fitted("q1 q2", "r1", row) == [("q1 q2", "r1")]


def test_a_row_that_has_no_room_for_the_reply_is_a_configuration_error(planted: Path) -> None:
    model = load_text_model(str(planted))
    with pytest.raises(ConfigurationError, match="128 tokens"):
        model.fitted("q " * 99, "r " * 99, lambda request, reply: (f"{request} {reply}", "word " * 115))


# -- copies of the process --------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="copies are forked on Linux only")
@pytest.mark.parametrize("parallel", ["true", "false"])
def test_a_forked_copy_judges_as_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    """Loading leaves no thread behind, and a copy needs none, though the tokenizer had some before."""
    path = str(random_model(tmp_path / "bart", "bart"))
    before = reading_threads()
    for _ in range(12):
        model = load_text_model(path)
        assert reading_threads() == before
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    word_tokenizer()(list(TEXTS) * 40)
    rows: list[Row] = [(text, "The reply refuses.") for text in TEXTS]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writing, pickle.dumps(model.logits(rows).tolist()))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    assert _ended(child) == 0
    with os.fdopen(reading, "rb") as stream:
        found = pickle.loads(stream.read())
    torch.testing.assert_close(torch.tensor(found), model.logits(rows), atol=2e-5, rtol=1e-5)


def reading_threads() -> set[str]:
    """All but the one by which tqdm looks after progress bars."""
    return {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"}


def _ended(child: int) -> int:
    """Exit code; a copy that waits for a thread it does not have is ended after 20 s."""
    timer = threading.Timer(20.0, os.kill, (child, 9))
    timer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        timer.cancel()
