# SPDX-License-Identifier: Apache-2.0
"""The slow, trusted engine: transformers `generate` with a bare greedy configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from heretic.decoding.passes import Passed, float32_logits
from heretic.decoding.prompts import Prompts
from heretic.decoding.protocol import Reply, Stopper, settled
from heretic.decoding.reading import read_replies, read_texts
from heretic.interventions.hooks import Rows
from heretic.model.model import Model


class ReferenceEngine:
    """See `Engine`."""

    name = "reference"

    def __init__(self, model: Model) -> None:
        self.model = model

    def prepare(
        self, sequences: Sequence[Sequence[int]], *, keep: int = 1, reply: int = 0, reuse: bool = False
    ) -> Prompts:
        """See `Engine.prepare`; nothing is shared here."""
        return Prompts(self.model, sequences, keep=keep)

    def start(
        self,
        prompts: Prompts | Sequence[Sequence[int]],
        *,
        stop: Stopper | None = None,
        rows: Rows | None = None,
    ) -> ReferenceDecoding:
        """Nothing runs before the first `advance`."""
        given = prompts.sequences if isinstance(prompts, Prompts) else prompts
        times = 1 if rows is None else len(rows.trial) // len(given)
        return ReferenceDecoding(self.model, list(given) * times, stop, rows)

    def logits(self, prompts: Prompts, *, rows: Rows | None = None) -> Iterator[Passed]:
        """See `Engine.logits`."""
        return float32_logits(self.model, prompts, rows)


class ReferenceDecoding:
    """Each `advance` decodes the remaining rows from their prompts again: twice the work, nothing to keep in step."""

    def __init__(
        self, model: Model, sequences: Sequence[Sequence[int]], stop: Stopper | None, rows: Rows | None
    ) -> None:
        self.model = model
        self.sequences = sequences
        self.stop = stop
        self.rows = rows
        self._trial = None if rows is None else rows.trial
        self.running = [True] * len(sequences)
        self._replies = [Reply(tokens=(), text="", ended=False)] * len(sequences)

    def advance(self, limit: int) -> None:
        """See `Decoding.advance`."""
        rows = [row for row, running in enumerate(self.running) if running]
        if not rows:
            return
        if self.rows is not None and self._trial is not None:
            self.rows.assign(self._trial[torch.tensor(rows, device=self._trial.device)])
        batch = self.model.batch([self.sequences[row] for row in rows])
        width = batch.ids.shape[1]
        decided = _Decided(self, rows, width)
        output = self._generate(batch.ids, batch.mask, limit, decided)
        for slot, row in enumerate(rows):
            self._replies[row] = self._reply(output[slot, width:].tolist(), decided.length[slot])
            self.running[row] = not self._replies[row].ended and decided.length[slot] is None

    def _generate(self, ids: Tensor, mask: Tensor, limit: int, decided: _Decided) -> Tensor:
        from transformers import GenerationConfig, StoppingCriteriaList

        configured = self.model.network.generation_config
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=list(self.model.end_tokens) or None,
            pad_token_id=self.model.encoder.pad,
            suppress_tokens=getattr(configured, "suppress_tokens", None),
            use_cache=True,
        )
        with torch.inference_mode():
            output = self.model.network.generate(  # type: ignore[operator]  # generate comes from a mixin
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([decided]),
            )
        assert isinstance(output, Tensor)
        return output

    def _reply(self, tokens: list[int], decided_at: int | None) -> Reply:
        if decided_at is not None:
            tokens = tokens[:decided_at]
        ends = frozenset(self.model.end_tokens)
        stop = next((position for position, token in enumerate(tokens) if token in ends), None)
        kept = tokens if stop is None else tokens[:stop]
        return read_replies(self.model.encoder, [kept], [stop is not None])[0]

    def leave(self, rows: Sequence[int]) -> None:
        """See `Decoding.leave`."""
        for row in rows:
            self.running[row] = False

    def replies(self) -> list[Reply]:
        """See `Decoding.replies`."""
        return list(self._replies)


class _Decided:
    """A stopping criterion for single rows; remembers at how many tokens each row was decided."""

    def __init__(self, decoding: ReferenceDecoding, rows: Sequence[int], width: int) -> None:
        self.decoding = decoding
        self.rows = rows
        self.width = width
        self.length: list[int | None] = [None] * len(rows)

    def __call__(self, ids: Tensor, scores: object, **arguments: object) -> Tensor:
        stop = self.decoding.stop
        if stop is not None:
            texts = read_texts(self.decoding.model.encoder, ids[:, self.width :].tolist())
            for slot, decided in enumerate(stop(self.rows, settled(texts))):
                if decided and self.length[slot] is None:
                    self.length[slot] = int(ids.shape[1]) - self.width
        return torch.tensor([length is not None for length in self.length], device=ids.device)
