# SPDX-License-Identifier: Apache-2.0
"""A pico model with its tokenizer and structure as one `Model`, and edits for it: what contract tests work on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from heretic.architectures.resolve import resolve
from heretic.interventions.hooks import Edits
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.model.source import ModelSource
from heretic.model.tokens import PromptEncoder
from heretic.testing.pico import pico_model
from heretic.testing.theorems import unit
from heretic.testing.tokenizers import byte_tokenizer


def loaded_pico(
    name: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    changes: dict[str, object] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Model:
    """The pico model `name` as the loading room would return it, without files; no system prompt."""
    network = pico_model(name, seed=seed, dtype=dtype, changes=changes)
    network.requires_grad_(False)
    return Model(
        network=network,
        encoder=PromptEncoder(tokenizer or byte_tokenizer(), system_prompt=""),
        architecture=resolve(network),
        source=ModelSource(name=name, path=Path(name), commit=None),
        dtype=str(dtype).removeprefix("torch."),
    )


def removal(model: Model, seed: int = 1, strength: float = 1.0, rank: int = 1) -> Edits:
    """Edits that remove `rank` random directions with one strength at every site, gains behind writers honoured."""
    size = model.architecture.hidden_size
    directions = torch.stack([unit(size, 100 * seed + number) for number in range(rank)])
    rows = tuple(
        PlanRow(site, directions, torch.full((rank,), strength)) for site in model.architecture.sites
    )
    return Plan(rows).edits(Writers(model.network))
