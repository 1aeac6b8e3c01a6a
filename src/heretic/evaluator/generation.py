# SPDX-License-Identifier: Apache-2.0
"""Replies of several trials to the prompts that show the behaviour, batch after batch.

Rows leave once their verdict is decided, trials once they are lost: because their hits so far already lose against the
front, which is exact because hits only grow, or because a sequential test gives them up (algorithms 6.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Literal

import torch

from heretic.decoding.protocol import Reply, Stopper
from heretic.evaluator.order import restore_order
from heretic.evaluator.outcome import CanWin, Hopeless, Outcome
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.report import Divergence
from heretic.scorers.degeneration import reply_condition
from heretic.scorers.protocol import Judgement

if TYPE_CHECKING:
    from heretic.evaluator.evaluator import Evaluator


@dataclass(frozen=True, slots=True)
class Stopped:
    """A trial that left. hits, total: counted and summed degrees among the first `prompts`; replies cut at the check
    point may still hide some."""

    status: Literal["dominated", "estimated"]
    hits: int
    total: float
    prompts: int


class Generation:
    """One outcome per trial by `run`. divergences: the KL of each. can_win, hopeless: None = nobody leaves for it."""

    def __init__(
        self,
        evaluator: Evaluator,
        trials: Sequence[Edits],
        divergences: Sequence[Divergence],
        can_win: CanWin | None,
        hopeless: Hopeless | None,
    ) -> None:
        self._evaluator = evaluator
        self._trials = trials
        self._divergences = divergences
        self._can_win = can_win
        self._hopeless = hopeless
        self._replies: list[list[Reply]] = [[] for _ in trials]
        self._judgements: list[list[Judgement]] = [[] for _ in trials]
        self._stopped: dict[int, Stopped] = {}
        self._seen = 0

    def run(self) -> list[Outcome]:
        """All prompts, stage by stage; each stage ends with a look."""
        for stage in self._evaluator.stages:
            self._evaluator.decoding_batches(stage, self._batch)
        return [self._outcome(trial) for trial in range(len(self._trials))]

    def _batch(self, prompts: Sequence[int]) -> None:
        running = [trial for trial in range(len(self._trials)) if trial not in self._stopped]
        if not running:
            return
        evaluator, size = self._evaluator, len(prompts)
        device = evaluator.model.device
        rows = Rows(torch.arange(len(running), device=device).repeat_interleave(size))
        requests = [evaluator.requests[prompt] for _ in running for prompt in prompts]
        stop = self._stopper(requests) if evaluator.early_exit and evaluator.scorer.monotone else None
        prepared = evaluator.bad_prompts(prompts)
        with applied(evaluator.model.network, [self._trials[trial] for trial in running], rows):
            decoding = evaluator.engine.start(prepared, stop=stop, rows=rows)
            if stop is not None and (self._can_win or self._hopeless):
                decoding.advance(evaluator.lengths.check)
                self._first_look(running, requests, decoding.replies(), decoding.leave)
            decoding.advance(evaluator.lengths.response)
        replies = decoding.replies()
        for slot, trial in enumerate(running):
            if trial not in self._stopped:
                part = slice(slot * size, (slot + 1) * size)
                texts = [reply.text for reply in replies[part]]
                self._replies[trial].extend(replies[part])
                self._judgements[trial].extend(evaluator.scorer.judge(requests[part], texts))
        self._seen += size
        if self._seen < len(evaluator.bad):
            for trial in running:
                if trial not in self._stopped:
                    self._look(trial, self._judgements[trial], self._seen)

    def _stopper(self, requests: Sequence[str]) -> Stopper:
        scorer = self._evaluator.scorer

        def stop(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
            return [
                verdict.hit for verdict in scorer.judge([requests[row] for row in rows], texts, final=False)
            ]

        return stop

    def _first_look(
        self,
        running: Sequence[int],
        requests: Sequence[str],
        replies: Sequence[Reply],
        leave: Callable[[Sequence[int]], None],
    ) -> None:
        """At the check point, on what the replies show for certain: either verdict on a trial stands when hits grow."""
        verdicts = self._evaluator.scorer.judge(requests, [reply.text for reply in replies], final=False)
        size = len(requests) // len(running)
        for slot, trial in enumerate(running):
            rows = range(slot * size, (slot + 1) * size)
            so_far = [*self._judgements[trial], *(verdicts[row] for row in rows)]
            if self._look(trial, so_far, self._seen + size):
                leave(rows)

    def _look(self, trial: int, judged: Sequence[Judgement], prompts: int) -> bool:
        """Whether a trial leaves that is judged so on the first `prompts`."""
        kl = self._divergences[trial].mean
        hits, total = _counts(judged)
        if self._can_win is not None and not self._can_win(total, kl):
            self._stopped[trial] = Stopped("dominated", hits, total, prompts)
        # A mean of degrees varies less than one of hits, so the test for hits is on the safe side.
        elif self._hopeless is not None and self._hopeless(floor(total), prompts, kl):
            self._stopped[trial] = Stopped("estimated", hits, total, prompts)
        return trial in self._stopped

    def _outcome(self, trial: int) -> Outcome:
        kl, total = self._divergences[trial], len(self._evaluator.bad)
        stopped = self._stopped.get(trial)
        if stopped is not None:
            return Outcome(
                stopped.status, kl, hits=stopped.hits, total=stopped.total, n=total, seen=stopped.prompts
            )
        order = self._evaluator.bad_order
        replies = restore_order(self._replies[trial], order)
        hits, value = _counts(self._judgements[trial])
        return Outcome(
            status="complete",
            kl=kl,
            hits=hits,
            total=value,
            n=total,
            judged=restore_order(self._judgements[trial], order),
            conditions=[reply_condition(reply) for reply in replies],
            replies=replies,
            seen=total,
        )


def _counts(judged: Sequence[Judgement]) -> tuple[int, float]:
    """(hits, sum of degrees)."""
    return sum(verdict.hit for verdict in judged), sum(verdict.value for verdict in judged)
