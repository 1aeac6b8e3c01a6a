# SPDX-License-Identifier: Apache-2.0
"""The base measured once, then batches of trials against it; no search logic.

Order in a trial (requirements R-EVA-22): teacher-forced KL on the base's own replies to the good prompts, then replies
to the bad prompts. Many trials share each forward pass; every row stands under its own trial's hooks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from heretic.batching import AdaptiveBatch
from heretic.decoding.prompts import Prompts
from heretic.decoding.protocol import Engine, Reply, Stopper
from heretic.exceptions import BatchSizeError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.linalg.divergence import kl_per_position
from heretic.model.model import Model
from heretic.model.tokens import PromptLike
from heretic.report import Divergence
from heretic.scorers.degeneration import reply_condition
from heretic.scorers.kl_divergence import divergence_summary
from heretic.scorers.protocol import Judgement, ReplyScorer

logger = logging.getLogger("heretic.evaluator")
T = TypeVar("T")
CanWin = Callable[[int, int, float], bool]
"""(position of the trial in the batch, hits so far, mean KL) -> may it still enter the front?"""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: response, the length at which a reply is finally judged; check, the first look; kl, teacher-forced."""

    response: int
    check: int
    kl: int


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What KL is measured against: prompt + base reply, aligned at the end.

    sequences: token ids of prompt and all but the last reply token. log_probabilities: [n, T, V] float32 on the CPU,
    the last T positions. counts: reply tokens per prompt, at most T; 0 = excluded.
    """

    sequences: Sequence[tuple[int, ...]]
    log_probabilities: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One trial measured; per-prompt values stand in the order of the prompts.

    status: `complete`, `rejected_by_kl`, `dominated` (hits is then a lower bound and there are no per-prompt values) or
    `failed`.
    """

    status: str
    kl: Divergence | None
    hits: int = 0
    n: int = 0
    labels: Sequence[str] = ()
    conditions: Sequence[str] = ()
    replies: Sequence[Reply] = ()
    reason: str = ""


class Evaluator:
    """Measures the base and trials on one pair of prompt lists.

    bad: prompts that show the behaviour (rate). good: prompts that do not (KL). width: prompts in one pass; shrinks on
    memory errors. max_kl: a trial above it skips generation.
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
    ) -> None:
        self.model = model
        self.engine = engine
        self.scorer = scorer
        self.lengths = lengths
        self.max_kl = max_kl
        self.early_exit = early_exit
        self.bad_order, self.bad = by_length(model.encoder.encode_all(bad))
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
            made = self.engine.prepare(self.bad[first:last], reply=self.lengths.response, reuse=True)
            self._prepared["bad", first, last] = made
        return self._prepared["bad", first, last]

    def _reference_rows(self, numbers: Sequence[int]) -> Prompts:
        """Prompts with their base replies for the KL, prepared once where they are a run."""
        rows = self._require_reference().sequences
        first, last = numbers[0], numbers[-1] + 1
        if list(numbers) != list(range(first, last)):
            return self.engine.prepare([rows[number] for number in numbers], keep=self.lengths.kl)
        if ("good", first, last) not in self._prepared:
            made = self.engine.prepare(rows[first:last], keep=self.lengths.kl, reuse=True)
            self._prepared["good", first, last] = made
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
        prompts = self._reference_rows(numbers)
        found: Tensor | None = None
        for passed in self.engine.logits(prompts):
            values = passed.logits.log_softmax(dim=-1).cpu()
            if found is None:
                found = torch.empty((len(prompts), *values.shape[1:]))
            found[passed.rows] = values
        assert found is not None
        return found

    def noise_floor(self) -> float:
        """Mean KL of the base against itself in another batch shape (requirements R-EVA-21)."""
        reference = self._require_reference()
        order = list(range(0, len(reference.sequences), 2)) + list(range(1, len(reference.sequences), 2))
        other = AdaptiveBatch("log-probabilities", max(1, min(self.kl_batches.width, len(order)) // 3))
        parts = other(order, lambda rows: self._kl_of_rows(rows, [{}])[0])
        summary = divergence_summary(torch.cat(parts), reference.counts[torch.tensor(order)])
        return 0.0 if summary is None else max(0.0, summary.mean)

    def base_outcome(self) -> Outcome:
        """The unedited model on the bad prompts: whole replies, judged."""
        parts = self.decoding_batches(
            range(len(self.bad)),
            lambda numbers: self._decoded(self.bad_prompts(numbers), self.lengths.response),
        )
        replies = [reply for part in parts for reply in part]
        verdicts = self.scorer.judge(self.requests, [reply.text for reply in replies])
        replies = restore_order(replies, self.bad_order)
        return Outcome(
            status="complete",
            kl=None,
            hits=sum(verdict.hit for verdict in verdicts),
            n=len(replies),
            labels=restore_order([verdict.label for verdict in verdicts], self.bad_order),
            conditions=[reply_condition(reply) for reply in replies],
            replies=replies,
        )

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

    def score(self, trials: Sequence[Edits], can_win: CanWin = lambda trial, hits, kl: True) -> list[Outcome]:
        """One outcome per trial. One that does not fit in memory even alone, or is not finite, comes back as `failed`."""
        try:
            return self._score(trials, can_win)
        except BatchSizeError as error:
            if len(trials) == 1:
                return [Outcome(status="failed", kl=None, reason=error.message)]
            logger.warning("%d trials do not fit in one pass; measuring them one by one", len(trials))
        # One prompt of all trials was too much; the single trials start from widths of their own.
        self.decoding_batches = AdaptiveBatch("generation", len(trials))
        self.kl_batches = AdaptiveBatch("log-probabilities", len(trials))
        alone = [
            self.score([edits], lambda _, hits, kl, number=number: can_win(number, hits, kl))  # type: ignore[misc]
            for number, edits in enumerate(trials)
        ]
        return [outcomes[0] for outcomes in alone]

    def _score(self, trials: Sequence[Edits], can_win: CanWin) -> list[Outcome]:
        divergences = self.divergences(trials)
        outcomes: list[Outcome | None] = [None] * len(trials)
        for number, kl in enumerate(divergences):
            if kl is None:
                outcomes[number] = Outcome(status="failed", kl=None, reason="KL is NaN or infinite")
            elif kl.mean > self.max_kl:
                outcomes[number] = Outcome(status="rejected_by_kl", kl=kl)
        running = [number for number, outcome in enumerate(outcomes) if outcome is None]
        if running:
            generation = _Generation(self, trials, divergences, running, can_win)
            for number, outcome in zip(running, generation.run(), strict=True):
                outcomes[number] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def divergences(self, trials: Sequence[Edits]) -> list[Divergence | None]:
        """Teacher-forced KL of each trial, None where it is not finite."""
        reference = self._require_reference()
        # What is not finite would reach its neighbours, whose vectors are multiplied beside its own.
        finite = [all(edit.is_finite for edit in edits.values()) for edits in trials]
        safe = [edits if good else {} for edits, good in zip(trials, finite, strict=True)]
        parts = self.kl_batches(range(len(reference.sequences)), lambda rows: self._kl_of_rows(rows, safe))
        per_position = torch.cat(parts, dim=1)
        return [
            divergence_summary(values, reference.counts) if good else None
            for values, good in zip(per_position, finite, strict=True)
        ]

    def _kl_of_rows(self, rows: Sequence[int], trials: Sequence[Edits]) -> Tensor:
        """KL at each teacher-forced position, [K, rows, T]; masked positions are 0."""
        reference = self._require_reference()
        device, steps = self.model.device, self.lengths.kl
        prompts = self._reference_rows(rows)
        base = reference.log_probabilities[list(rows)].to(device)
        counts = reference.counts[list(rows)].to(device)
        used = torch.arange(steps, device=device)[None, :] >= steps - counts[:, None]
        values = torch.zeros((len(trials) * len(rows), steps), device=device)
        assignment = Rows(torch.arange(len(trials), device=device).repeat_interleave(len(rows)))
        with applied(self.model.network, trials, assignment):
            for passed in self.engine.logits(prompts, rows=assignment):
                index = torch.tensor(passed.rows, device=device) % len(rows)
                found = kl_per_position(base[index], passed.logits)
                values[passed.rows] = torch.where(used[index], found, torch.zeros_like(found))
        return values.view(len(trials), len(rows), steps).cpu()

    def _require_reference(self) -> Reference:
        return self.reference if self.reference is not None else self.set_reference()


class _Generation:
    """Replies of several trials to the bad prompts, batch after batch; rows leave once their verdict is decided."""

    def __init__(
        self,
        evaluator: Evaluator,
        trials: Sequence[Edits],
        divergences: Sequence[Divergence | None],
        running: Sequence[int],
        can_win: CanWin,
    ) -> None:
        self.evaluator = evaluator
        self.trials = [trials[number] for number in running]
        self.running = running
        self.divergences = [divergences[number] for number in running]
        self.can_win = can_win
        self.replies: list[list[Reply]] = [[] for _ in running]
        self.judgements: list[list[Judgement]] = [[] for _ in running]
        self.dominated = [False] * len(running)

    def run(self) -> list[Outcome]:
        """One outcome per running trial."""
        total = len(self.evaluator.bad)
        self.evaluator.decoding_batches(range(total), self._batch)
        return [self._outcome(trial, total) for trial in range(len(self.trials))]

    def _batch(self, prompts: Sequence[int]) -> None:
        alive = [trial for trial, lost in enumerate(self.dominated) if not lost]
        if not alive:
            return
        evaluator = self.evaluator
        device = evaluator.model.device
        assignment = torch.arange(len(alive), device=device).repeat_interleave(len(prompts))
        rows = Rows(assignment)
        requests = [evaluator.requests[prompt] for _ in alive for prompt in prompts]
        stop = self._stopper(requests) if evaluator.early_exit and evaluator.scorer.monotone else None
        prepared = evaluator.bad_prompts(prompts)
        with applied(evaluator.model.network, [self.trials[trial] for trial in alive], rows):
            decoding = evaluator.engine.start(prepared, stop=stop, rows=rows)
            if stop is not None:
                decoding.advance(evaluator.lengths.check)
                self._drop_hopeless(alive, len(prompts), requests, decoding.replies(), decoding.leave)
            decoding.advance(evaluator.lengths.response)
        replies = decoding.replies()
        for slot, trial in enumerate(alive):
            part = slice(slot * len(prompts), (slot + 1) * len(prompts))
            texts = [reply.text for reply in replies[part]]
            # A reply cut at the check point may grow, so only what it shows for certain counts in the bound.
            whole = not self.dominated[trial]
            self.replies[trial].extend(replies[part])
            self.judgements[trial].extend(evaluator.scorer.judge(requests[part], texts, final=whole))

    def _stopper(self, requests: Sequence[str]) -> Stopper:
        scorer = self.evaluator.scorer

        def stop(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
            return [
                verdict.hit for verdict in scorer.judge([requests[row] for row in rows], texts, final=False)
            ]

        return stop

    def _drop_hopeless(
        self,
        alive: Sequence[int],
        size: int,
        requests: Sequence[str],
        replies: Sequence[Reply],
        leave: Callable[[Sequence[int]], None],
    ) -> None:
        """Trials whose hits so far already lose against the front leave: an exact bound, because hits only grow."""
        verdicts = self.evaluator.scorer.judge(requests, [reply.text for reply in replies], final=False)
        for slot, trial in enumerate(alive):
            first = slot * size
            hits = sum(verdict.hit for verdict in verdicts[first : first + size])
            hits += sum(verdict.hit for verdict in self.judgements[trial])
            kl = self.divergences[trial]
            if kl is not None and not self.can_win(self.running[trial], hits, kl.mean):
                self.dominated[trial] = True
                leave(range(first, first + size))

    def _outcome(self, trial: int, total: int) -> Outcome:
        replies, verdicts = self.replies[trial], self.judgements[trial]
        order = self.evaluator.bad_order
        status = "dominated" if self.dominated[trial] else "complete"
        ordered = restore_order(replies, order) if status == "complete" else []
        return Outcome(
            status=status,
            kl=self.divergences[trial],
            hits=sum(verdict.hit for verdict in verdicts),
            n=total,
            labels=restore_order([v.label for v in verdicts], order) if status == "complete" else (),
            conditions=[reply_condition(reply) for reply in ordered],
            replies=ordered,
        )


def by_length(sequences: Sequence[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Order by length (stable), so that batches hold little padding; returns (original numbers, sorted sequences)."""
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))
    return order, [sequences[number] for number in order]


def restore_order(values: Sequence[T], order: Sequence[int]) -> list[T]:
    """Values in evaluation order back in the order of the prompts."""
    pairs = sorted(zip(order, values, strict=True), key=lambda pair: pair[0])
    return [value for _, value in pairs]
