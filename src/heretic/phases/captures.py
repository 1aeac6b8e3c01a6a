# SPDX-License-Identifier: Apache-2.0
"""What the unedited model is asked while directions are found; every prompt set passes it once (R-DIR-07)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from heretic.architectures.site import Site
from heretic.attribution import capture_inputs, capture_writes
from heretic.batching import AdaptiveBatch
from heretic.decoding.protocol import Engine, Reply
from heretic.model.model import Model
from heretic.prompts import Prompt
from heretic.residuals import capture, capture_at
from heretic.scorers.protocol import ReplyScorer

REPLY_START = 16
"""Reply tokens among which positions of benign text are drawn."""

Position = Literal["prompt_end", "response_mean"]
Sequences = Sequence[tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Captures:
    """position: where activations are read: at the last prompt token, or averaged over the tokens of the model's own
    reply. labelled: reply tokens by which a behaviour is judged; response: tokens of a reply that is averaged over.
    keep: residuals stay in memory for a second reader, who must not change them."""

    model: Model
    engine: Engine
    scorer: ReplyScorer
    width: int
    position: Position = "prompt_end"
    labelled: int = 30
    response: int = 100
    keep: bool = False
    _residuals: dict[Sequences, Tensor] = field(default_factory=dict)
    _replies: dict[tuple[Sequences, int], list[Reply]] = field(default_factory=dict)

    def afresh(self) -> Captures:
        """The same without the residuals of before: for a model that is under edits now."""
        return replace(self, keep=False, _residuals={})

    def residuals(self, prompts: Sequence[Prompt]) -> Tensor:
        """[n, L, d] float32 of the unedited model."""
        sequences = self._encoded(prompts)
        key = tuple(sequences)
        if key in self._residuals:
            return self._residuals[key]
        found = capture(
            self.model,
            sequences,
            run=self._batches("residuals"),
            prepare=self.engine.prepare,
            replies=self._averaged(sequences),
        ).samples
        if self.keep:
            self._residuals[key] = found
        return found

    def anywhere(self, prompts: Sequence[Prompt], *, each: int, seed: int) -> Tensor:
        """[n * each, L, d] float32 at random positions of prompts and the model's own replies to them.

        One pass over each text, in which every position is what it would be at the end of a prefix.
        """
        sequences = self._encoded(prompts)
        replies = self.replies(sequences, min(self.labelled, REPLY_START))
        whole = [(*prompt, *reply.tokens) for prompt, reply in zip(sequences, replies, strict=True)]
        firsts = [min(len(prompt) // 2, len(text) - 1) for prompt, text in zip(sequences, whole, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        distances = torch.stack(
            [
                len(text) - torch.randint(first, len(text), (each,), generator=generator)
                for text, first in zip(whole, firsts, strict=True)
            ]
        )
        run = self._batches("residuals")
        return capture_at(self.model, whole, distances, run=run, prepare=self.engine.prepare)

    def inputs(self, prompts: Sequence[Prompt], sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        """Writer -> its input [n, m]."""
        return self._at_sites(capture_inputs, prompts, sites)

    def writes(self, prompts: Sequence[Prompt], sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        """Writer -> what it writes [n, d], before any norm behind it."""
        return self._at_sites(capture_writes, prompts, sites)

    def showed(self, prompts: Sequence[Prompt]) -> Tensor:
        """[n] bool: the unedited model's reply shows the behaviour."""
        replies = self.replies(self._encoded(prompts), self.labelled)
        verdicts = self.scorer.judge([prompt.text for prompt in prompts], [reply.text for reply in replies])
        return torch.tensor([verdict.hit for verdict in verdicts])

    def replies(self, sequences: Sequences, limit: int) -> list[Reply]:
        """Greedy replies of the unedited model, made once."""
        key = (tuple(sequences), limit)
        if key not in self._replies:
            order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))

            def batch(rows: Sequence[int]) -> list[Reply]:
                prepared = self.engine.prepare([sequences[row] for row in rows], reply=limit)
                decoding = self.engine.start(prepared)
                decoding.advance(limit)
                return decoding.replies()

            found = [reply for part in self._batches("replies")(order, batch) for reply in part]
            self._replies[key] = [reply for _, reply in sorted(zip(order, found, strict=True), key=_number)]
        return self._replies[key]

    def _encoded(self, prompts: Sequence[Prompt]) -> Sequences:
        return self.model.encoder.encode_all(prompts)

    def _averaged(self, sequences: Sequences) -> list[tuple[int, ...]] | None:
        if self.position == "prompt_end":
            return None
        return [reply.tokens for reply in self.replies(sequences, self.response)]

    def _at_sites(
        self, captured: Callable[..., Mapping[Site, Tensor]], prompts: Sequence[Prompt], sites: Sequence[Site]
    ) -> Mapping[Site, Tensor]:
        sequences = self._encoded(prompts)
        return captured(
            self.model,
            sequences,
            sites,
            run=self._batches("activations"),
            prepare=self.engine.prepare,
            replies=self._averaged(sequences),
        )

    def _batches(self, operation: str) -> AdaptiveBatch:
        return AdaptiveBatch(operation, self.width)


def _number(pair: tuple[int, Reply]) -> int:
    return pair[0]
