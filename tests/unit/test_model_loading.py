# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile model folders end in one typed error with a remedy (reliability C03 to C07, F01, F04, X05 to X12;
R-MOD-01, R-MOD-10, R-MOD-40 to R-MOD-45)."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from heretic.exceptions import (
    HereticError,
    ModelLoadError,
    ModelNotFoundError,
    ModelValidationError,
    NonFiniteError,
    TokenizationError,
    UntrustedContentError,
)
from heretic.interventions.hooks import applied, every_row
from heretic.model.loading import LoadOptions, load_model
from heretic.model.model import Model, float32_head
from heretic.model.source import locate
from heretic.testing.tokenizers import byte_tokenizer, save_pico
from heretic.testing.workbench import loaded_pico, removal

OPTIONS = LoadOptions(dtypes=("float32",), system_prompt="")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library's own load report is not what is tested."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("model") / "pico", changes={"num_hidden_layers": 4})


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "pico"))


def load(folder: Path, options: LoadOptions = OPTIONS) -> Model:
    return load_model(locate(str(folder)), options)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fails(folder: Path, kind: type[HereticError], text: str, options: LoadOptions = OPTIONS) -> HereticError:
    """The error, which is of our tree, says why and what to do."""
    with pytest.raises(kind, match=text) as caught:
        load(folder, options)
    assert caught.value.hint
    assert "Traceback" not in caught.value.message and "\n" not in caught.value.message
    return caught.value


def test_an_intact_folder_loads(original: Path) -> None:
    """Control of everything below."""
    model = load(original)
    assert (model.dtype, model.architecture.layers, model.quantization) == ("float32", 4, "none")
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert model.encoder.vocabulary == 320


def test_a_missing_config_and_a_missing_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    fails(folder, ModelValidationError, r"no config\.json")
    fails(folder / "nothing", ModelNotFoundError, "no folder")
    fails(folder / "tokenizer.json", ModelValidationError, "is a file")


@pytest.mark.parametrize(
    "content", (b"", b"{", b"[]", b'"llama"', b"\xff\xfe", b"{}", b'{"model_type": "no_such_type"}')
)
def test_a_broken_config(folder: Path, content: bytes) -> None:
    """C03, X07: four classes of the library become one."""
    (folder / "config.json").write_bytes(content)
    fails(folder, ModelValidationError, r"config\.json")


@pytest.mark.parametrize(
    "change",
    (
        {"hidden_size": "many"},
        {"num_hidden_layers": None},
        {"num_attention_heads": 0},
        {"rope_parameters": 5},
        {"vocab_size": -1},
        {"hidden_act": "no_such_function"},
    ),
)
def test_a_config_of_wrong_types(folder: Path, change: dict[str, Any]) -> None:
    """C03 fuzz."""
    edit_json(folder / "config.json", lambda table: table.update(change))
    with pytest.raises(ModelValidationError) as caught:
        load(folder)
    assert caught.value.hint


def test_six_layers_declared_and_four_stored(folder: Path) -> None:
    """C04, X08: the library fills the missing tensors with noise and says nothing."""
    edit_json(folder / "config.json", lambda table: table.update(num_hidden_layers=6))
    error = fails(folder, ModelLoadError, r"missing.*model\.layers\.4\.")
    assert "tensors" in error.message


def test_tensors_of_another_shape_or_name(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    fails(folder, ModelLoadError, r"model\.norm\.weight")


def test_a_weight_that_is_nan_or_infinite_is_named(folder: Path) -> None:
    """C05, X09: greedy decoding of such a model says nothing and shows no marker."""
    for value in (float("nan"), float("inf")):
        edit_weights(folder, lambda t, value=value: t["model.layers.2.mlp.down_proj.weight"].fill_(value))  # type: ignore[misc]
        fails(folder, NonFiniteError, r"model\.layers\.2\.mlp\.down_proj\.weight")


@pytest.mark.parametrize("size", (0, 4, 100, 20_000))
def test_a_truncated_file_of_weights(folder: Path, size: int) -> None:
    """X06."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    fails(folder, ModelValidationError, "weights")


def test_a_missing_shard_and_no_weights_at_all(folder: Path, tmp_path: Path) -> None:
    """C06, X07."""
    sharded = save_pico(tmp_path / "sharded", max_shard_size="40KB")
    assert load(sharded).architecture.layers == 2
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()
    fails(sharded, ModelValidationError, rf"1 of \d+ files of weights .* missing: {shards[1].name}")
    for name in (f"../{shards[0].name}", str(shards[0].resolve()), "..\\model.safetensors"):
        edit_json(
            sharded / "model.safetensors.index.json",
            lambda table, name=name: table["weight_map"].update({"model.norm.weight": name}),  # type: ignore[misc]
        )
        fails(sharded, ModelValidationError, "outside the folder")
    (folder / "model.safetensors").unlink()
    fails(folder, ModelValidationError, "weights")


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    """R-MOD-03, X11: the canary of a pickle is not run."""
    canary = tmp_path / "canary"
    payload = f"cbuiltins\nopen\n(S{str(canary)!r}\nS'w'\ntR.".encode()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(payload)
    fails(folder, ModelValidationError, "weights")
    assert not canary.exists()
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(folder / "pytorch_model.bin")], check=True)
    assert canary.exists(), "control: the payload works"


def test_code_in_the_repository_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    """F01: with consent withheld no file of the repository is imported; a known type keeps its own classes."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nclass Config: pass\nclass Net: pass\n"
    )
    table = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net"}
    edit_json(folder / "config.json", lambda config: config.update(model_type="evil", auto_map=table))
    error = fails(folder, UntrustedContentError, "code from its repository")
    assert "--trust-remote-code" in str(error.hint) and "--model-revision" in str(error.hint)
    edit_json(folder / "config.json", lambda config: config.update(model_type="llama"))
    edit_json(
        folder / "tokenizer_config.json",
        lambda config: config.update(auto_map={"AutoTokenizer": ["evil.Config", None]}),
    )
    try:
        load(folder)
    except HereticError as refused:
        assert refused.hint
    assert not canary.exists()


def test_the_dtype_chain_ends_at_the_first_that_is_finite(folder: Path) -> None:
    """R-MOD-01: reasons of failed entries are kept; control: the same chain without float32 fails."""

    def loud(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(4):
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"].mul_(2000.0)
            tensors[f"model.layers.{layer}.mlp.gate_proj.weight"].mul_(2000.0)

    edit_weights(folder, loud)
    model = load(folder, replace(OPTIONS, dtypes=("float16", "float32")))
    assert model.dtype == "float32"
    error = fails(folder, ModelLoadError, "float16", replace(OPTIONS, dtypes=("float16",)))
    assert error.details and "float16" in error.details[0] and "logits" in error.details[0]
    assert load(folder, replace(OPTIONS, dtypes=("auto",))).dtype == "float32"


# -- the tokenizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", (b"", b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}'))
def test_a_broken_tokenizer_file(folder: Path, content: bytes) -> None:
    """X10: the tokenizer library raises bare exceptions."""
    (folder / "tokenizer.json").write_bytes(content)
    fails(folder, HereticError, "tokenizer")


def test_no_tokenizer_at_all(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    fails(folder, TokenizationError, "tokenizer")


def test_special_tokens_stated_as_a_list(folder: Path) -> None:
    """R-MOD-43: accepted, and the tokens stay special."""
    listed = ["<|user|>", "<|assistant|>"]
    edit_json(folder / "tokenizer_config.json", lambda table: table.update(extra_special_tokens=listed))
    tokenizer = load(folder).encoder.tokenizer
    assert all(token in tokenizer.all_special_tokens for token in listed)


def test_a_tokenizer_larger_than_the_embeddings(folder: Path, tmp_path: Path) -> None:
    """A token that the model does not have: at the first prompt, or at the prompt that holds it."""
    small = save_pico(tmp_path / "small", changes={"vocab_size": 100})
    fails(small, ModelValidationError, "only 100 embeddings")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<|new{number}|>" for number in range(80)])
    larger = save_pico(tmp_path / "larger", tokenizer=tokenizer)
    encoder = load(larger).encoder
    with pytest.raises(TokenizationError, match="token 341.* 320 embeddings"):
        encoder.encode(_text("say <|new79|> now"))
    assert encoder.encode(_text("say it now")), "control: other prompts"


def _text(text: str, system: str | None = None) -> Any:
    from heretic.model.loading import _Probe

    return _Probe(text=text, system_prompt=system)


# -- running ------------------------------------------------------------------------------------------------------


def test_the_head_is_multiplied_in_float32_and_put_back() -> None:
    """Algorithms 7.1: a head in bf16 fakes a KL; control: without the context logits are bf16."""
    model = loaded_pico("gemma2", dtype=torch.bfloat16)
    batch = model.batch([(90, 91, 92)])
    precise = model.logits(batch, 2)
    with torch.inference_mode():
        plain = model.network(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, -2:]
        with pytest.raises(KeyError), float32_head(model.network):
            raise KeyError
    assert precise.dtype == torch.float32 and plain.dtype == torch.bfloat16
    assert 0 < float((precise - plain.float()).abs().max()) < 0.3
    assert "forward" not in vars(model.network.get_output_embeddings())


def test_four_bits_load_on_the_cpu_and_hooks_work_on_them(tmp_path: Path) -> None:
    """R-MOD-10, R-MOD-13: edits are hooks, so the base may be quantised; control: the edit changes the logits."""
    pytest.importorskip("bitsandbytes")
    widths = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # its kernels want multiples of 32
    folder = save_pico(tmp_path / "wide", changes={**widths, "num_key_value_heads": 4})
    model = load(folder, replace(OPTIONS, quantization="bnb_4bit"))
    linear = model.network.get_submodule("model.layers.0.mlp.down_proj")
    assert type(linear).__name__ == "Linear4bit"
    rows = [(90, 91, 92, 93)]
    base = model.logits(model.batch(rows), 1)
    edits = removal(model)
    with applied(model.network, [edits], every_row(0, 1, model.device)):
        edited = model.logits(model.batch(rows), 1)
    assert torch.isfinite(edited).all() and not torch.allclose(base, edited, atol=1e-3)
    assert torch.equal(model.logits(model.batch(rows), 1), base)
