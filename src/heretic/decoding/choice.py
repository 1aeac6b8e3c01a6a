# SPDX-License-Identifier: Apache-2.0
"""Which engine a model gets: the fast one where a short probe shows that its loop is right (algorithms 6.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heretic.batching import is_out_of_memory
from heretic.decoding.fast import FULL, PLAIN, ROWS_STAY, FastEngine
from heretic.decoding.protocol import Engine, Reply
from heretic.decoding.reference import ReferenceEngine
from heretic.exceptions import GenerationError
from heretic.interventions.hooks import Edits, Rows, applied, every_row
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.registry import Registry

logger = logging.getLogger("heretic.decoding")

ENGINES: Registry[type[FastEngine] | type[ReferenceEngine]] = Registry("engine")
ENGINES.register("fast")(FastEngine)
ENGINES.register("reference")(ReferenceEngine)

PROBE_TOKENS = 8
NOTES = {FULL: "", PLAIN: "", ROWS_STAY: "Rows of this model's cache cannot be dropped; decoding is slower."}
FOREIGN = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What a network of another make may raise when it is given a cache of ours."""

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


def choose_engine(model: Model, setting: str = "auto", *, reuse_bytes: int = 0) -> tuple[Engine, str]:
    """The engine for a setting (`auto`, `fast`, `reference`) and, where `auto` had to give way, why in a sentence.

    `auto` is the fast engine if its tokens are those of whole forward passes without a cache, for the base and under
    an edit, also after a row has left; with less of its loop if only that is right (see `FastEngine`); else the
    reference engine. reuse_bytes: memory for work on fixed prompts that trials share; 0 = none.
    """
    if setting == "reference":
        return ReferenceEngine(model), ""
    if setting != "auto":
        return FastEngine(model, reuse_bytes=reuse_bytes), ""
    sequences = [model.encoder.encode(text) for text in PROBE]
    reason = ""
    for mode in (FULL, PLAIN, ROWS_STAY):
        engine = FastEngine(model, mode=mode, reuse_bytes=reuse_bytes)
        if engine.mode != mode:
            continue  # the model's cache is of another kind
        try:
            if _is_right(model, engine, sequences):
                return engine, NOTES[mode]
            reason = reason or "its tokens differ from those of whole forward passes"
        except GenerationError as error:
            reason = error.message
        except FOREIGN as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            logger.debug("the %s loop failed its probe: %s", mode, error)
    note = f"The fast engine does not fit this model ({reason}); the slower reference engine is used."
    logger.warning(note)
    return ReferenceEngine(model), note


def _is_right(model: Model, engine: FastEngine, sequences: Sequence[tuple[int, ...]]) -> bool:
    """Decode with row 1 forced out at once, as base and then beside an edited copy, which may use what the base left;
    check every token against passes without a cache."""

    def leave(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
        return [row == 1 for row in rows]

    count = len(sequences)
    prompts = engine.prepare(sequences, reply=PROBE_TOKENS, reuse=True)
    decoding = engine.start(prompts, stop=leave)
    decoding.advance(PROBE_TOKENS)
    base = decoding.replies()
    if not _agrees(_uncached(model, sequences, base), base, model):
        return False
    edits = mild_edits(model, 0, first=model.architecture.layers // 2)
    rows = Rows(torch.tensor([1] * count + [0] * count, device=model.device))
    with applied(model.network, [edits], rows):
        decoding = engine.start(prompts, stop=leave, rows=rows)
        decoding.advance(PROBE_TOKENS)
    replies = decoding.replies()
    if not _agrees(_uncached(model, sequences, replies[:count]), replies[:count], model):
        return False
    with applied(model.network, [edits], every_row(0, count, model.device)):
        logits = _uncached(model, sequences, replies[count:])
    return _agrees(logits, replies[count:], model)


def _agrees(logits: Sequence[Tensor], replies: Sequence[Reply], model: Model) -> bool:
    return all(_follows(part, reply, model) for part, reply in zip(logits, replies, strict=True))


def mild_edits(model: Model, seed: int, *, first: int = 0) -> Edits:
    """Mild removal of a random direction at every site from block `first` on."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(1, model.architecture.hidden_size, generator=generator)
    direction = torch.nn.functional.normalize(direction, dim=1)
    sites = [site for site in model.architecture.sites if site.layer >= first]
    return Plan(tuple(PlanRow(site, direction, torch.tensor([0.5])) for site in sites)).edits(
        Writers(model.network)
    )


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
