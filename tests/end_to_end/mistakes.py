# SPDX-License-Identifier: Apache-2.0
"""The catalogue of seeded mistakes (reliability REL-09): what is wrong, the command, and what must be said."""

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


def _remove(*names: str) -> Damage:
    def damage(world: World) -> None:
        for name in names:
            (world.model / name).unlink()

    return damage


def _file(name: str, content: str | bytes) -> Damage:
    def damage(world: World) -> None:
        world.write(name, content)

    return damage


def _config(**changes: object) -> Damage:
    def damage(world: World) -> None:
        world.config(**changes)

    return damage


def _truncate(world: World) -> None:
    path = world.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
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


def _index(shard: str) -> Damage:
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


def _pickle(world: World) -> None:
    (world.model / "model.safetensors").unlink()
    (world.model / "pytorch_model.bin").write_bytes(b"\x80\x04")


MODEL = (
    Mistake("path that does not exist", base_run(model="./nowhere"), 1, "ModelNotFoundError", ["./nowhere", "path"]),
    Mistake(
        "misspelt Hub id, offline", base_run(model="org/modle"), 1, "NetworkError", ["org/modle", "offline"]
    ),
    Mistake("misspelt folder", base_run(model="modle"), 1, "NetworkError", ["no folder 'modle'", "offline"]),
    Mistake(
        "name with a blank", base_run(model="my model"), 2, "ConfigurationError", ["my model", "org/model"]
    ),
    Mistake("file instead of a folder", base_run(model="model/model.safetensors"), 1, "ModelValidationError", ["is a file"]),
    Mistake("no config.json", base_run(), 1, "ModelValidationError", ["config.json", "model"], _remove("config.json")),
    Mistake("broken config.json", base_run(), 1, "ModelValidationError", ["config.json"], _file("model/config.json", "{")),
    Mistake("config.json is a list", base_run(), 1, "ModelValidationError", ["config.json", "object"], _file("model/config.json", "[]")),
    Mistake("config.json is binary", base_run(), 1, "ModelValidationError", ["config.json"], _file("model/config.json", b"\xff\xfe\x00")),
    Mistake("no model type", base_run(), 1, "ModelValidationError", ["config.json"], _config(model_type=None)),
    Mistake("unknown model type", base_run(), 1, "ModelValidationError", ["frobnicator"], _config(model_type="frobnicator")),
    Mistake("wrong type in config.json", base_run(), 1, "ModelValidationError", ["config.json"], _config(num_hidden_layers="two")),
    Mistake(
        "needs code of the repository", base_run(), 1, "UntrustedContentError", ["--trust-remote-code"],
        _config(model_type="frobnicator", auto_map={"AutoModelForCausalLM": "m.M"}),
    ),
    Mistake("truncated shard", base_run(), 1, "ModelValidationError", ["model.safetensors"], _truncate),
    Mistake("empty shard", base_run(), 1, "ModelValidationError", ["model.safetensors"], _file("model/model.safetensors", b"")),
    Mistake("shard is a Git LFS pointer", base_run(), 1, "ModelValidationError", ["model.safetensors", "git lfs pull"], _file("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
    Mistake("NaN in a weight", base_run(), 1, "NonFiniteError", ["model.layers.1.mlp.down_proj.weight"], _tensors(_not_a_number), loads=True),
    Mistake("tensor of another shape", base_run(), 1, "ModelLoadError", ["down_proj", "[40, 3]"], _tensors(_wrong_shape), loads=True),
    Mistake("fewer layers stored than configured", base_run(), 1, "ModelLoadError", ["model.layers.2", "config.json"], _config(num_hidden_layers=3, layer_types=None, max_window_layers=None), loads=True),
    Mistake("shard of the index is missing", base_run(), 1, "ModelValidationError", ["model-00002-of-00002.safetensors"], _index("model-00002-of-00002.safetensors")),
    Mistake("index leaves the folder", base_run(), 1, "UntrustedContentError", ["../secret.safetensors"], _index("../secret.safetensors")),
    Mistake("index is no JSON", base_run(), 1, "ModelValidationError", ["model.safetensors.index.json"], _broken_index),
    Mistake("weights are pickled", base_run(), 1, "UntrustedContentError", ["pytorch_model.bin", "safetensors"], _pickle),
    Mistake("no weights", base_run(), 1, "ModelValidationError", ["safetensors"], _remove("model.safetensors")),
    Mistake("no tokenizer", base_run(), 1, "TokenizationError", ["tokenizer"], _remove("tokenizer.json", "tokenizer_config.json")),
    Mistake("broken tokenizer.json", base_run(), 1, "TokenizationError", ["tokenizer"], _file("model/tokenizer.json", "{")),
    Mistake("broken chat template", base_run(), 1, "TokenizationError", ["template"], _file("model/chat_template.jinja", "{% for m in %}")),
    Mistake("memory", base_run(), 1, "HostMemoryError", ["GB", "--quantization"]),
)

SETTINGS = (
    Mistake("no model", ["--n-trials", "3"], 2, "ConfigurationError", ["model"]),
    Mistake("flag misspelt", base_run("--n-trails=5"), 2, "UnknownSettingError", ["n-trails", "n-trials"]),
    Mistake("key misspelt in a file", base_run(), 2, "UnknownSettingError", ["config.toml:2", "n_trails", "n_trials"], _file("config.toml", "seed = 1\nn_trails = 5\n")),
    Mistake("key misspelt in a table", base_run(), 2, "UnknownSettingError", ["config.toml:2", "splitt", "split"], _file("config.toml", "[bad_prompts]\nsplitt = 'train'\n")),
    Mistake("top-level key inside a table", base_run(), 2, "UnknownSettingError", ["config.toml:3", "n_trials", "above"], _file("config.toml", "[bad_prompts]\nsplit = 'train'\nn_trials = 5\n")),
    Mistake("malformed TOML", base_run(), 2, "ConfigurationError", ["config.toml:2:9"], _file("config.toml", "seed = 1\nstudy = = 2\n")),
    Mistake("TOML in another encoding", base_run(), 2, "ConfigurationError", ["config.toml", "UTF-8"], _file("config.toml", "seed = 1\n".encode("utf-16"))),
    Mistake("settings file missing", base_run("--config", "nowhere.toml"), 2, "ConfigurationError", ["nowhere.toml"]),
    Mistake("out of range", base_run("--n-trials=0"), 2, "ConfigurationError", ["n-trials", "0"]),
    Mistake("wrong type", base_run("--n-trials=many"), 2, "ConfigurationError", ["n-trials", "many"]),
    Mistake("two at once", base_run("--n-trials=many", "--sampler=best"), 2, "ConfigurationError", ["many", "best", "tpe"]),
    Mistake("value missing", base_run("--seed"), 2, "ConfigurationError", ["seed"]),
    Mistake("wrong type in a file", base_run(), 2, "ConfigurationError", ["config.toml:1", "seed"], _file("config.toml", "seed = 'one'\n")),
    Mistake("check length above reply length", base_run("--refusal-check-tokens=90"), 2, "ConfigurationError", ["refusal_check_tokens", "max_response_length", "90", "8"]),
    Mistake("weights do not sum to one", base_run("--ensemble-weight-probe=0.9"), 2, "ConfigurationError", ["ensemble_weight_probe", "ensemble_weight_pca"]),
    Mistake("strategy against a switch", base_run("--strategy=single", "--use-concept-cones"), 2, "ConfigurationError", ["strategy", "use_concept_cones"]),
    Mistake("layer ranges overlap", base_run('--layer-range-profiles=[{"start":0.0,"end":0.6,"multiplier":1.0},{"start":0.5,"end":1.0,"multiplier":1.0}]'), 2, "ConfigurationError", ["layer_range_profiles"]),
    Mistake("strategy of a later version", base_run("--strategy=cones"), 2, "ConfigurationError", ["cones", "not available"]),
    Mistake("switch of a later version", base_run("--use-caa"), 2, "ConfigurationError", ["use_caa", "not available"]),
    Mistake("default switched on explicitly", base_run("--use-neural-refusal-detection=true"), 2, "ConfigurationError", ["use_neural_refusal_detection", "not available"]),
    Mistake("export format of a later version", base_run("--export-formats=lora"), 2, "ConfigurationError", ["lora", "not available"]),
    Mistake("unknown behaviour", base_run("--behaviour=refusel"), 2, "ConfigurationError", ["refusel", "refusal"]),
    Mistake("unused setting", base_run("--n-concept-cones=3"), 2, "UnusedSettingError", ["n_concept_cones"]),
    Mistake("unknown family", base_run("--model-family=lama"), 2, "WarmStartError", ["lama"]),
    Mistake("duration", base_run("--time-budget=soon"), 2, "ConfigurationError", ["time-budget", "soon", "90s"]),
    Mistake("log level", base_run("--log-level=loud"), 2, "ConfigurationError", ["loud", "info"]),
    Mistake("switch with a word", base_run("--json=maybe"), 2, "ConfigurationError", ["maybe"]),
    Mistake("bad regular expression", base_run("--evasive-patterns=(["), 2, "ConfigurationError", ["evasive_patterns", "(["]),
)

DATA = (
    Mistake("empty prompt file", base_run(), 1, "DatasetError", ["bad_prompts", "bad.txt", "empty"], _file("bad.txt", "")),
    Mistake("blank prompt file", base_run("--bad-prompts.split=train"), 1, "DatasetError", ["bad_prompts", "bad.txt", "blank"], _file("bad.txt", "\n  \n\t\n")),
    Mistake("binary prompt file", base_run(), 1, "DatasetError", ["bad.txt"], _file("bad.txt", bytes(range(256)) * 8)),
    Mistake("UTF-16 without a mark", base_run(), 1, "DatasetError", ["bad.txt"], _file("bad.txt", "one\ntwo\n".encode("utf-16-le"))),
    Mistake("prompt file missing", base_run("--bad-prompts.dataset=nowhere.txt"), 1, "DatasetError", ["nowhere.txt"]),
    Mistake("data set not in the cache", base_run("--bad-prompts.dataset=org/set"), 1, "NetworkError", ["org/set", "offline"]),
    Mistake("missing column", base_run("--bad-prompts.dataset=rows.jsonl"), 1, "DatasetConfigError", ["text", "question", "answer"], _file("rows.jsonl", '{"question": "a", "answer": "b"}\n' * 40)),
    Mistake("missing split", base_run("--bad-prompts.split=test[:9]"), 1, "DatasetConfigError", ["test", "train"]),
    Mistake("missing config", base_run("--bad-prompts.dataset=sets", "--bad-prompts.config=third"), 1, "DatasetConfigError", ["third", "first", "second"], lambda world: [world.write(f"sets/{name}/train.txt", "one\n") for name in ("first", "second")] and None),
    Mistake("malformed slice", base_run("--bad-prompts.split=train[:x]"), 1, "DatasetError", ["train[:x]"]),
    Mistake("broken JSON line", base_run("--bad-prompts.dataset=rows.jsonl"), 1, "DatasetError", ["rows.jsonl", "2"], _file("rows.jsonl", '{"text": "a"}\n{"text": \n')),
    Mistake("broken Parquet", base_run("--bad-prompts.dataset=rows.parquet"), 1, "DatasetError", ["rows.parquet"], _file("rows.parquet", b"PAR1nothing")),
    Mistake("folder without data", base_run("--bad-prompts.dataset=empty"), 1, "DatasetError", ["empty"], lambda world: (world.folder / "empty").mkdir()),
    Mistake("identical bad and good", base_run("--good-prompts.dataset=bad.txt"), 1, "DatasetError", ["30 of 30", "bad_prompts", "good_prompts"]),
    Mistake("too few prompts", base_run("--bad-prompts.split=train[:3]"), 1, "DatasetError", ["3", "8"]),
    Mistake("packaged set unknown", base_run("--bad-prompts.dataset=heretic:refusal"), 1, "DatasetError", ["heretic:NAME"]),
    Mistake("behaviour never shown", [flag for flag in base_run() if flag != "--allow-zero-baseline"], 1, "DatasetError", ["0 of 6", "--allow-zero-baseline"], loads=True),
)

PLACES = (
    Mistake("output is a model folder", base_run("--auto-select-path=model"), 2, "OutputExistsError", ["model folder"]),
    Mistake("output is somebody else's", base_run("--auto-select-path=place", "--overwrite", "--yes"), 2, "OutputExistsError", ["model-heretic", "left alone"], _file("place/model-heretic/notes.txt", "mine")),
    Mistake("output exists", base_run("--auto-select-path=saved"), 2, "OutputExistsError", ["saved", "--overwrite"], _file("saved/heretic_run.json", "{}")),
    Mistake("overwriting is not confirmed", base_run("--auto-select-path=saved", "--overwrite"), 2, "ConfirmationRequiredError", ["saved", "--yes"], _file("saved/heretic_run.json", "{}")),
    Mistake("output below a file", base_run("--auto-select-path=bad.txt/out"), 1, "FileOperationError", ["bad.txt"]),
    Mistake("storage folder missing", base_run("--storage=sqlite:///nowhere/study.db"), 1, "StorageError", ["nowhere"]),
    Mistake("storage is no database", base_run("--storage=sqlite:///bad.txt"), 1, "StudyCorruptError", ["bad.txt"]),
    Mistake("storage is no URL", base_run("--storage=study.db"), 2, "ConfigurationError", ["study.db", "sqlite:///"]),
    Mistake("nothing to continue", base_run("--resume=continue"), 2, "StudyNotFoundError", ["heretic_study"]),
    Mistake("upload without a token", base_run("--hf-upload=me/model"), 1, "HubAccessError", ["me/model", "HF_TOKEN"]),
    Mistake("log file in a missing folder", base_run("--log-file=bad.txt/x.log"), 1, "FileOperationError", ["bad.txt", "--log-file"]),
    Mistake("verify without a folder", ["verify", "nowhere"], 2, "ConfigurationError", ["nowhere"]),
    Mistake("verify of a foreign folder", ["verify", "model"], 1, "SaveVerificationError", ["SHA256SUMS"]),
    Mistake("study that does not exist", ["study", "show", "mine", "--storage", "sqlite:///study.db"], 2, "StudyNotFoundError", ["mine"]),
    Mistake("export of a study that does not exist", ["export", "mine", "--model", "model"], 2, "StudyNotFoundError", ["mine"]),
    Mistake("evaluate without a base", ["evaluate", "model"], 2, "ConfigurationError", ["--against"]),
    Mistake("chat without a terminal", ["chat", "model"], 2, "ConfirmationRequiredError", ["terminal"]),
    Mistake("command of a later version", ["worker"], 2, "ConfigurationError", ["worker", "not available"]),
    Mistake("misspelt command", ["exprot", "mine"], 2, "ConfigurationError", ["exprot", "export"]),
    Mistake("inspect of nothing", ["inspect", "./nowhere"], 1, "ModelNotFoundError", ["./nowhere"]),
    Mistake("demo with an unknown flag", ["demo", "--n-trails=3"], 2, "UnknownSettingError", ["n-trails", "n-trials"]),
    Mistake("dry run of a damaged model", base_run("--dry-run"), 1, "ModelValidationError", ["model.safetensors"], _truncate),
)

CATALOGUE = (*MODEL, *SETTINGS, *DATA, *PLACES)
