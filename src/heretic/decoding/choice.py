# SPDX-License-Identifier: Apache-2.0
"""Which engine a model gets: the fast one where a short probe shows that its loop is right (algorithms 6.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.decoding.fast import CHECK_EVERY, FastEngine
from heretic.decoding.protocol import Engine, Reply
from heretic.decoding.reference import ReferenceEngine
from heretic.exceptions import GenerationError
from heretic.model.model import Model
from heretic.registry import Registry

logger = logging.getLogger("heretic.decoding")

ENGINES: Registry[type[FastEngine] | type[ReferenceEngine]] = Registry("engine")
ENGINES.register("fast")(FastEngine)
ENGINES.register("reference")(ReferenceEngine)

PROBE_TOKENS = 2 * CHECK_EVERY
LOWEST_GAP = 0.02
"""A chosen token may lie this share of the logits' spread below the top one: rounding of small dtypes, not a fault."""


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    system_prompt: str | None = None


PROBE = (
    _Text("Hi"),
    _Text("How do I boil an egg?"),
    _Text("Name three rivers of Europe, please."),
    _Text("Why? " * 9),
)
"""Four texts of different length, so that padding and positions matter."""


def choose_engine(model: Model, setting: str = "auto") -> tuple[Engine, str]:
    """The engine for a setting (`auto`, `fast`, `reference`) and, where `auto` had to give way, why in a sentence.

    `auto` is the fast engine if its tokens are those of whole forward passes without a cache, also after a row has
    left; without compaction if only that fails; else the reference engine.
    """
    if setting != "auto":
        return ENGINES[setting](model), ""
    sequences = [model.encoder.encode(text) for text in PROBE]
    try:
        if _is_right(model, FastEngine(model), sequences):
            return FastEngine(model), ""
        if _is_right(model, FastEngine(model, compact=False), sequences):
            return FastEngine(
                model, compact=False
            ), "Rows of this model's cache cannot be dropped; decoding is slower."
        reason = "its tokens differ from those of whole forward passes"
    except GenerationError as error:
        reason = error.message
    note = f"The fast engine does not fit this model ({reason}); the slower reference engine is used."
    logger.warning(note)
    return ReferenceEngine(model), note


def _is_right(model: Model, engine: FastEngine, sequences: Sequence[tuple[int, ...]]) -> bool:
    """Decode with row 1 forced out after the first look, then check every token against passes without a cache."""

    def leave(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
        return [row == 1 for row in rows]

    decoding = engine.start(sequences, stop=leave)
    decoding.advance(PROBE_TOKENS)
    replies = decoding.replies()
    logits = _uncached(model, sequences, replies)
    return all(_follows(part, reply, model) for part, reply in zip(logits, replies, strict=True))


def _uncached(model: Model, sequences: Sequence[tuple[int, ...]], replies: Sequence[Reply]) -> list[Tensor]:
    """Logits [tokens of the reply, V] at the positions that chose each reply token."""
    rows = [prompt + reply.tokens[:-1] for prompt, reply in zip(sequences, replies, strict=True)]
    logits = model.logits(model.batch(rows), PROBE_TOKENS)
    return [part[part.shape[0] - len(reply.tokens) :] for part, reply in zip(logits, replies, strict=True)]


def _follows(logits: Tensor, reply: Reply, model: Model) -> bool:
    """True when every token of the reply is a top token of its position, up to rounding."""
    if not reply.tokens:
        return True
    scores = logits.clone()
    suppressed = list(getattr(model.network.generation_config, "suppress_tokens", None) or [])
    scores[:, suppressed] = -torch.inf
    top = scores.max(dim=-1).values
    chosen = scores.gather(1, torch.tensor(reply.tokens, device=scores.device)[:, None]).squeeze(1)
    spread = top - logits.mean(dim=-1)
    return bool((top - chosen <= LOWEST_GAP * spread).all())
