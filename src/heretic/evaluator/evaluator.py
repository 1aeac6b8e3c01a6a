# SPDX-License-Identifier: Apache-2.0
"""The base measured once, then batches of trials against it; no search logic.

Order in a trial (requirements R-EVA-22): teacher-forced KL on the base's own replies to the good prompts, then replies
to the bad prompts. Many trials share each forward pass; every row stands under its own trial's hooks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from heretic.batching import AdaptiveBatch
from heretic.decoding.prompts import Prompts
from heretic.decoding.protocol import Engine, Reply
from heretic.evaluator.divergence import DivergencePass, kl_of_rows
from heretic.evaluator.generation import Generation
from heretic.evaluator.order import by_length, restore_order, spread_first
from heretic.evaluator.outcome import CanWin, Hopeless, KlBound, Lengths, Outcome, Reference
from heretic.exceptions import BatchSizeError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.model.model import Model
from heretic.model.tokens import PromptLike
from heretic.report import Divergence
from heretic.scorers.degeneration import reply_condition
from heretic.scorers.kl_divergence import divergence_summary
from heretic.scorers.protocol import ReplyScorer

logger = logging.getLogger("heretic.evaluator")


class Evaluator:
    """Measures the base and trials on one pair of prompt lists.

    bad: prompts that show the behaviour (rate). good: prompts that do not (KL). width: prompts in one pass; shrinks on
    memory errors. max_kl: a trial above it skips generation. first: prompts that are generated before the others, so
    that trials can be given up after them; 0 = all at once. seed: chooses those prompts.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        scorer: ReplyScorer,
        *,
        bad: Sequence[PromptLike],
        good: Sequence[PromptLike],
        lengths: Lengths,
        width: int,
        max_kl: float = float("inf"),
        early_exit: bool = True,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.engine = engine
        self.scorer = scorer
        self.lengths = lengths
        self.max_kl = max_kl
        self.early_exit = early_exit
        sequences = model.encoder.encode_all(bad)
        self.bad_order = spread_first(by_length(sequences)[0], first, seed)
        self.bad = [sequences[number] for number in self.bad_order]
        cut = first if 0 < first < len(bad) else len(bad)
        self.stages = [stage for stage in (range(cut), range(cut, len(bad))) if stage]
        self.good_order, self.good = by_length(model.encoder.encode_all(good))
        self._prepared: dict[tuple[str, int, int], Prompts] = {}
        self.requests = [bad[number].text for number in self.bad_order]
        self.decoding_batches = AdaptiveBatch("generation", width)
        self.kl_batches = AdaptiveBatch("log-probabilities", width)
        self.reference: Reference | None = None

    # -- the base -------------------------------------------------------------------------------------------------

    def generate(self, sequences: Sequence[tuple[int, ...]], limit: int) -> list[Reply]:
        """Whole replies of the unedited model, no early exit."""

        def batch(rows: Sequence[tuple[int, ...]]) -> list[Reply]:
            return self._decoded(self.engine.prepare(rows, reply=limit), limit)

        return [reply for replies in self.decoding_batches(sequences, batch) for reply in replies]

    def _decoded(self, prompts: Prompts, limit: int) -> list[Reply]:
        decoding = self.engine.start(prompts)
        decoding.advance(limit)
        return decoding.replies()

    def bad_prompts(self, numbers: Sequence[int]) -> Prompts:
        """A run of the bad prompts, prepared once for all trials."""
        first, last = numbers[0], numbers[-1] + 1
        if ("bad", first, last) not in self._prepared:
            made = self.engine.prepare(self.bad[first:last], reply=self.lengths.response)
            self._prepared["bad", first, last] = made
        return self._prepared["bad", first, last]

    def reference_rows(self, numbers: Sequence[int]) -> Prompts:
        """Prompts with their base replies for the KL, prepared once where they are a run."""
        rows = self.require_reference().sequences
        first, last = numbers[0], numbers[-1] + 1
        if list(numbers) != list(range(first, last)):
            return self.engine.prepare([rows[number] for number in numbers], keep=self.lengths.kl)
        if ("good", first, last) not in self._prepared:
            self._prepared["good", first, last] = self.engine.prepare(rows[first:last], keep=self.lengths.kl)
        return self._prepared["good", first, last]

    def set_reference(self) -> Reference:
        """Base replies to the good prompts and their log-probabilities, made once."""
        replies = self.generate(self.good, self.lengths.kl)
        end = self.model.end_tokens[:1]
        rows: list[tuple[int, ...]] = []
        counts: list[int] = []
        for prompt, reply in zip(self.good, replies, strict=True):
            tokens = (reply.tokens + (end if reply.ended else ()))[: self.lengths.kl]
            counts.append(len(tokens))
            rows.append(prompt + tokens[:-1] if tokens else prompt)
        self.reference = Reference(rows, torch.empty(0), torch.tensor(counts))
        parts = self.kl_batches(range(len(rows)), self._base_log_probabilities)
        self.reference = Reference(rows, torch.cat(parts), torch.tensor(counts))
        return self.reference

    def _base_log_probabilities(self, numbers: Sequence[int]) -> Tensor:
        """[rows, T, V] float32 on the CPU; the pass also leaves what trials share with the base."""
        prompts = self.reference_rows(numbers)
        found: Tensor | None = None
        for passed in self.engine.logits(prompts):
            values = passed.logits.log_softmax(dim=-1).cpu()
            if found is None:
                found = torch.empty((len(prompts), *values.shape[1:]))
            found[passed.rows] = values
        assert found is not None
        return found

    def require_reference(self) -> Reference:
        """What KL is measured against, made at the first call."""
        return self.reference if self.reference is not None else self.set_reference()

    def noise_floor(self) -> float:
        """Mean KL of the base against itself in another batch shape (requirements R-EVA-21)."""
        reference = self.require_reference()
        order = list(range(0, len(reference.sequences), 2)) + list(range(1, len(reference.sequences), 2))
        other = AdaptiveBatch("log-probabilities", max(1, min(self.kl_batches.width, len(order)) // 3))
        parts = other(order, lambda rows: kl_of_rows(self, rows, [{}])[0])
        summary = divergence_summary(torch.cat(parts), reference.counts[torch.tensor(order)])
        return 0.0 if summary is None else max(0.0, summary.mean)

    def base_outcome(self) -> Outcome:
        """The unedited model on the bad prompts: whole replies, judged."""
        replies: list[Reply] = []
        for stage in self.stages:  # in the batches of the trials, which reuse what this leaves
            for part in self.decoding_batches(stage, self._base_replies):
                replies += part
        verdicts = self.scorer.judge(self.requests, [reply.text for reply in replies])
        replies = restore_order(replies, self.bad_order)
        return Outcome(
            status="complete",
            kl=None,
            hits=sum(verdict.hit for verdict in verdicts),
            total=sum(verdict.value for verdict in verdicts),
            n=len(replies),
            judged=restore_order(verdicts, self.bad_order),
            conditions=[reply_condition(reply) for reply in replies],
            replies=replies,
            seen=len(replies),
        )

    def _base_replies(self, numbers: Sequence[int]) -> list[Reply]:
        return self._decoded(self.bad_prompts(numbers), self.lengths.response)

    def replies_under(
        self, trials: Sequence[Edits], sequences: Sequence[tuple[int, ...]], limit: int
    ) -> list[list[Reply]]:
        """Whole replies of each trial to any token sequences, in their order."""
        count = len(trials)

        def batch(rows: Sequence[tuple[int, ...]]) -> list[list[Reply]]:
            trial = torch.arange(count, device=self.model.device).repeat_interleave(len(rows))
            assignment = Rows(trial)
            with applied(self.model.network, trials, assignment):
                decoding = self.engine.start(self.engine.prepare(rows, reply=limit), rows=assignment)
                decoding.advance(limit)
            replies = decoding.replies()
            return [replies[number * len(rows) : (number + 1) * len(rows)] for number in range(count)]

        order, ordered = by_length(sequences)
        parts = self.decoding_batches(ordered, batch)
        return [restore_order([r for part in parts for r in part[number]], order) for number in range(count)]

    # -- trials ---------------------------------------------------------------------------------------------------

    def score(
        self,
        trials: Sequence[Edits],
        can_win: CanWin | None = None,
        hopeless: Hopeless | None = None,
    ) -> list[Outcome]:
        """One outcome per trial. One that does not fit in memory even alone, or is not finite, comes back as `failed`.

        Without `can_win`, `hopeless` and `max_kl` every trial is measured in full.
        """
        try:
            return self._score(trials, can_win, hopeless)
        except BatchSizeError as error:
            if len(trials) == 1:
                return [Outcome(status="failed", kl=None, reason=error.message)]
            logger.warning("%d trials do not fit in one pass; measuring them one by one", len(trials))
        # One prompt of all trials was too much; the single trials start from widths of their own.
        self.decoding_batches = AdaptiveBatch("generation", len(trials))
        self.kl_batches = AdaptiveBatch("log-probabilities", len(trials))
        return [self.score([edits], can_win, hopeless)[0] for edits in trials]

    def _score(
        self, trials: Sequence[Edits], can_win: CanWin | None, hopeless: Hopeless | None
    ) -> list[Outcome]:
        outcomes: list[Outcome | None] = []
        running: list[tuple[Edits, Divergence]] = []
        for edits, kl in zip(trials, DivergencePass(self, trials, self.max_kl).run(), strict=True):
            if kl is None:
                outcomes.append(Outcome(status="failed", kl=None, reason="KL is NaN or infinite"))
            elif isinstance(kl, KlBound):
                outcomes.append(Outcome(status="rejected_by_kl", kl=None, kl_bound=kl))
            elif kl.mean > self.max_kl:
                outcomes.append(Outcome(status="rejected_by_kl", kl=kl))
            else:
                outcomes.append(None)
                running.append((edits, kl))
        if not running:
            return [outcome for outcome in outcomes if outcome is not None]
        chosen, divergences = zip(*running, strict=True)
        generated = iter(Generation(self, chosen, divergences, can_win, hopeless).run())
        return [next(generated) if outcome is None else outcome for outcome in outcomes]

    def divergences(self, trials: Sequence[Edits]) -> list[Divergence | None]:
        """Teacher-forced KL of each trial on all prompts, None where it is not finite."""
        found = DivergencePass(self, trials, float("inf")).run()
        return [kl if isinstance(kl, Divergence) else None for kl in found]
