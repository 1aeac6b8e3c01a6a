# SPDX-License-Identifier: Apache-2.0
"""The catalogue of seeded mistakes (reliability REL-09): what is wrong, the command, and what must be said. Here:
models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file

from .world import World, base_run

Damage = Callable[[World], None]


@dataclass(frozen=True)
class Mistake:
    """words: of the sentence, its findings or its remedy. loads: weights must be read to notice it."""

    name: str
    command: Sequence[str]
    code: int
    error: str
    words: Sequence[str]
    damage: Damage | None = None
    loads: bool = False


def without(*names: str) -> Damage:
    def damage(world: World) -> None:
        for name in names:
            (world.model / name).unlink()

    return damage


def with_file(name: str, content: str | bytes) -> Damage:
    def damage(world: World) -> None:
        world.write(name, content)

    return damage


def with_config(**changes: object) -> Damage:
    def damage(world: World) -> None:
        world.config(**changes)

    return damage


def truncate(world: World) -> None:
    path = world.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(world: World) -> None:
        path = str(world.model / "model.safetensors")
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")


def _wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(40, 3)


def with_index(shard: str) -> Damage:
    def damage(world: World) -> None:
        path = world.model / "model.safetensors"
        names = list(load_file(str(path)))
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
        path.rename(world.model / "model-00001-of-00002.safetensors")
        (world.model / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _broken_index(world: World) -> None:
    (world.model / "model.safetensors").unlink()
    (world.model / "model.safetensors.index.json").write_text("{")


def pickle_only(world: World) -> None:
    (world.model / "model.safetensors").unlink()
    (world.model / "pytorch_model.bin").write_bytes(b"\x80\x04")


MODEL = (
    Mistake(
        "path that does not exist",
        base_run(model="./nowhere"),
        1,
        "ModelNotFoundError",
        ["./nowhere", "path"],
    ),
    Mistake(
        "misspelt Hub id, offline", base_run(model="org/modle"), 1, "NetworkError", ["org/modle", "offline"]
    ),
    Mistake("misspelt folder", base_run(model="modle"), 1, "NetworkError", ["no folder 'modle'", "offline"]),
    Mistake(
        "name with a blank", base_run(model="my model"), 2, "ConfigurationError", ["my model", "org/model"]
    ),
    Mistake(
        "file instead of a folder",
        base_run(model="model/model.safetensors"),
        1,
        "ModelValidationError",
        ["is a file"],
    ),
    Mistake(
        "no config.json",
        base_run(),
        1,
        "ModelValidationError",
        ["config.json", "model"],
        without("config.json"),
    ),
    Mistake(
        "broken config.json",
        base_run(),
        1,
        "ModelValidationError",
        ["config.json"],
        with_file("model/config.json", "{"),
    ),
    Mistake(
        "config.json is a list",
        base_run(),
        1,
        "ModelValidationError",
        ["config.json", "object"],
        with_file("model/config.json", "[]"),
    ),
    Mistake(
        "config.json is binary",
        base_run(),
        1,
        "ModelValidationError",
        ["config.json"],
        with_file("model/config.json", b"\xff\xfe\x00"),
    ),
    Mistake(
        "no model type", base_run(), 1, "ModelValidationError", ["config.json"], with_config(model_type=None)
    ),
    Mistake(
        "unknown model type",
        base_run(),
        1,
        "ModelValidationError",
        ["frobnicator"],
        with_config(model_type="frobnicator"),
    ),
    Mistake(
        "wrong type in config.json",
        base_run(),
        1,
        "ModelValidationError",
        ["config.json"],
        with_config(num_hidden_layers="two"),
    ),
    Mistake(
        "needs code of the repository",
        base_run(),
        1,
        "UntrustedContentError",
        ["--trust-remote-code"],
        with_config(model_type="frobnicator", auto_map={"AutoModelForCausalLM": "m.M"}),
    ),
    Mistake("truncated shard", base_run(), 1, "ModelValidationError", ["model.safetensors"], truncate),
    Mistake(
        "empty shard",
        base_run(),
        1,
        "ModelValidationError",
        ["model.safetensors"],
        with_file("model/model.safetensors", b""),
    ),
    Mistake(
        "shard is a Git LFS pointer",
        base_run(),
        1,
        "ModelValidationError",
        ["model.safetensors", "git lfs pull"],
        with_file("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
    ),
    Mistake(
        "NaN in a weight",
        base_run(),
        1,
        "NonFiniteError",
        ["model.layers.1.mlp.down_proj.weight"],
        with_tensors(_not_a_number),
        loads=True,
    ),
    Mistake(
        "tensor of another shape",
        base_run(),
        1,
        "ModelLoadError",
        ["down_proj", "[40, 3]"],
        with_tensors(_wrong_shape),
        loads=True,
    ),
    Mistake(
        "fewer layers stored than configured",
        base_run(),
        1,
        "ModelLoadError",
        ["model.layers.2", "config.json"],
        with_config(num_hidden_layers=3, layer_types=None, max_window_layers=None),
        loads=True,
    ),
    Mistake(
        "shard of the index is missing",
        base_run(),
        1,
        "ModelValidationError",
        ["model-00002-of-00002.safetensors"],
        with_index("model-00002-of-00002.safetensors"),
    ),
    Mistake(
        "index leaves the folder",
        base_run(),
        1,
        "UntrustedContentError",
        ["../secret.safetensors"],
        with_index("../secret.safetensors"),
    ),
    Mistake(
        "index is no JSON",
        base_run(),
        1,
        "ModelValidationError",
        ["model.safetensors.index.json"],
        _broken_index,
    ),
    Mistake(
        "weights are pickled",
        base_run(),
        1,
        "UntrustedContentError",
        ["pytorch_model.bin", "safetensors"],
        pickle_only,
    ),
    Mistake(
        "no weights", base_run(), 1, "ModelValidationError", ["safetensors"], without("model.safetensors")
    ),
    Mistake(
        "no tokenizer",
        base_run(),
        1,
        "TokenizationError",
        ["tokenizer"],
        without("tokenizer.json", "tokenizer_config.json"),
    ),
    Mistake(
        "broken tokenizer.json",
        base_run(),
        1,
        "TokenizationError",
        ["tokenizer"],
        with_file("model/tokenizer.json", "{"),
    ),
    Mistake(
        "broken chat template",
        base_run(),
        1,
        "TokenizationError",
        ["template"],
        with_file("model/chat_template.jinja", "{% for m in %}"),
    ),
    Mistake("memory", base_run(), 1, "HostMemoryError", ["GB", "--quantization"]),
)
