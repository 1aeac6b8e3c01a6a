# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.models [NAME ...]`: small models beside the demo model, for experiments about the search.

They speak and refuse as the demo model does and are trained on parts of its corpus, but with other weights, shapes and
families, so that a default which only suits the demo model shows:

- `llama`: Llama, 10 narrow layers. Refusal and its overlap with ordinary text are planted along one axis, as in the
  demo model, but in the first two thirds of the depth only (`heretic.demo.overlap.BLOCKS` counts layers).
- `olmo`: OLMo 2, 6 layers, norms behind the writers (algorithms 1.4). Nothing is planted: refusal lies where training
  happens to put it, in as many directions as it likes.
- `phi`: Phi, 9 layers whose attention and feed-forward parts stand side by side. Nothing is planted. No default
  was chosen with it: it is the control of those that were.
- `mistral`: Mistral, 7 layers. Nothing is planted, and no default was chosen with it either. heretic-llm 1.4.0 finds
  nothing to edit in Phi, so comparisons on a model that is new to both sides use this one.

Seeded: the same kind of processor, the same torch version and one thread give the same weights. They are written to
`.bench/models`, some minutes each, and not kept in the repository.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)

from heretic.demo import model_path
from heretic.demo.documents import ANSWERS, REFUSALS
from heretic.demo.tokenizer import CONTEXT
from heretic.demo.train import Stage, run_stage, save

FOLDER = Path(__file__).resolve().parents[1] / ".bench" / "models"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made. seed: of the initial weights. network: an untrained model for the size of a vocabulary."""

    seed: int
    network: Callable[[Mapping[str, Any]], Any]
    stages: tuple[Stage, ...]


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def _llama(common: Mapping[str, Any]) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 10,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**common, **sizes, num_key_value_heads=2))


def _olmo(common: Mapping[str, Any]) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    }
    return Olmo2ForCausalLM(Olmo2Config(**common, **sizes, num_key_value_heads=4))


def _mistral(common: Mapping[str, Any]) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 112,
        "intermediate_size": 320,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
    }
    return MistralForCausalLM(
        MistralConfig(**common, **sizes, num_key_value_heads=2, head_dim=28, sliding_window=None)
    )


def _phi(common: Mapping[str, Any]) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 112,
        "intermediate_size": 336,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
    }
    return PhiForCausalLM(PhiConfig(**common, **sizes))


RECIPES: dict[str, Recipe] = {
    "llama": Recipe(
        31, _llama, (Stage(ANSWERS, 11_000, 3e-3, 3e-3), Stage(REFUSALS, 7_000, 2e-3, 2e-3, overlap=True))
    ),
    "olmo": Recipe(32, _olmo, (Stage(ANSWERS, 9_000, 3e-3, 3e-3), Stage(REFUSALS, 4_000, 2e-3, 2e-3))),
    "phi": Recipe(33, _phi, (Stage(ANSWERS, 9_000, 3e-3, 3e-3), Stage(REFUSALS, 4_000, 2e-3, 2e-3))),
    "mistral": Recipe(34, _mistral, (Stage(ANSWERS, 9_000, 3e-3, 3e-3), Stage(REFUSALS, 4_000, 2e-3, 2e-3))),
}


def folder_of(name: str) -> Path:
    """Where a model stands, the bundled demo model included. Raises KeyError for an unknown name."""
    if name == "demo":
        return model_path()
    if name not in RECIPES:
        raise KeyError(f"{name!r} is none of demo, {', '.join(RECIPES)}")
    return FOLDER / name


def build(name: str) -> Path:
    """The folder of a model, trained now if it is not there. Raises KeyError for an unknown name."""
    folder = folder_of(name)
    if (folder / "config.json").exists():
        return folder
    recipe = RECIPES[name]
    tokenizer: Any = AutoTokenizer.from_pretrained(model_path())
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = recipe.network(_common(tokenizer))
    logging.info("%s: %d parameters", name, model.num_parameters())
    begin = time.monotonic()
    for stage in recipe.stages:
        run_stage(model, tokenizer, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, folder)
    logging.info("%s: %.0f s", name, time.monotonic() - begin)
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Build the models named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("names", nargs="*", help=f"models to build, of {', '.join(RECIPES)}; none = all")
    names: list[str] = parser.parse_args(arguments).names or list(RECIPES)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names:
        sys.stdout.write(f"{name}: {build(name)}\n")


if __name__ == "__main__":
    main()
