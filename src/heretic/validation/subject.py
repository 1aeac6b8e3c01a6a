# SPDX-License-Identifier: Apache-2.0
"""A model under measurement, as it is or under edits, and the logits it gives to token sequences.

Base and edited go through the same passes: the base is the model under no edits, so that nothing but the edits differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from heretic.batching import AdaptiveBatch
from heretic.decoding.protocol import Engine
from heretic.evaluator.order import by_length
from heretic.exceptions import TokenizationError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.model.model import Model
from heretic.model.tokens import PromptEncoder

Result = TypeVar("Result")
WIDTH = 16
"""Sequences prepared together; memory errors halve it."""


class Subject:
    """A model with its engine. edits: put on by hooks for the length of a pass; None = the model as it is."""

    def __init__(
        self, model: Model, engine: Engine, edits: Edits | None = None, *, width: int = WIDTH
    ) -> None:
        self.model = model
        self.engine = engine
        self.edits: Edits = edits or {}
        self.batches = AdaptiveBatch("log-probabilities", width)

    def read(
        self,
        sequences: Sequence[tuple[int, ...]],
        counts: Sequence[int],
        function: Callable[[int, Tensor], Result],
    ) -> list[Result]:
        """`function(number, logits)` of each sequence, in their order; logits: [counts[number], V] float32 of its last
        positions, valid only during the call. Raises `BatchSizeError` when not even one sequence fits in memory."""
        assert all(0 < count <= len(row) for row, count in zip(sequences, counts, strict=True))
        device = self.model.device

        def batch(numbers: Sequence[int]) -> list[tuple[int, Result]]:
            keep = max(counts[number] for number in numbers)
            prompts = self.engine.prepare([sequences[number] for number in numbers], keep=keep)
            assignment = Rows(torch.zeros(len(numbers), dtype=torch.int64, device=device))
            found: list[tuple[int, Result]] = []
            with applied(self.model.network, [self.edits], assignment):
                for passed in self.engine.logits(prompts, rows=assignment):
                    for row, logits in zip(passed.rows, passed.logits, strict=True):
                        number = numbers[row]
                        found.append((number, function(number, logits[keep - counts[number] :])))
            return found

        order, _ = by_length(sequences)
        results = dict(pair for part in self.batches(order, batch) for pair in part)
        return [results[number] for number in range(len(sequences))]

    def log_likelihoods(
        self, sequences: Sequence[tuple[int, ...]], counts: Sequence[int]
    ) -> list[tuple[float, ...]]:
        """Natural log-likelihood of each of the last counts[n] tokens of sequence n, given all tokens before them.

        A sequence needs one token more than are asked for.
        """

        def read(number: int, logits: Tensor) -> tuple[float, ...]:
            tokens = torch.tensor(sequences[number][-counts[number] :], device=logits.device)
            found = logits.log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)
            return tuple(found.tolist())

        return self.read([row[:-1] for row in sequences], counts, read)


def plain_tokens(encoder: PromptEncoder, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of texts as they stand, without chat template: the start token where the tokenizer writes one, no end
    token. Raises `TokenizationError` for a token that the model does not have."""
    start = start_tokens(encoder)
    rows = encoder.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    assert isinstance(rows, list)
    found = [start + tuple(int(token) for token in row) for row in rows]
    limit = encoder.vocabulary
    for text, row in zip(texts, found, strict=True):
        if limit is not None and max(row, default=0) >= limit:
            raise TokenizationError(
                f"The text {text[:60]!r} holds token {max(row)}, but the model has {limit} embeddings.",
                hint="The tokenizer files belong to another model.",
            )
    return found


def start_tokens(encoder: PromptEncoder) -> tuple[int, ...]:
    """The start token if the tokenizer puts one before a text by itself."""
    tokenizer = encoder.tokenizer
    ids = tokenizer("a")["input_ids"]
    start = tokenizer.bos_token_id
    return (int(start),) if start is not None and list(ids)[:1] == [start] else ()
