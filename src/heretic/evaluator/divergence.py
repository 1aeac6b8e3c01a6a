# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced KL of several trials, batch after batch; a trial leaves once it is above the cap for certain.

KL terms are not negative, so after m of N prompts their sum over N is a lower bound (algorithms 6.5): a rejection by it
is the one that all prompts would have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from heretic.evaluator.outcome import KlBound
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.linalg.divergence import kl_per_position
from heretic.report import Divergence
from heretic.scorers.kl_divergence import divergence_summary

if TYPE_CHECKING:
    from heretic.evaluator.evaluator import Evaluator

ROUNDING: Final = 1e-4
"""Nats by which a term of float32 may fall below zero; the bound has to exceed the cap by as much."""


def kl_of_rows(evaluator: Evaluator, rows: Sequence[int], trials: Sequence[Edits]) -> Tensor:
    """KL at each teacher-forced position of these prompts, [K, rows, T]; masked positions are 0."""
    reference = evaluator.require_reference()
    device, steps = evaluator.model.device, evaluator.lengths.kl
    prompts = evaluator.reference_rows(rows)
    base = reference.log_probabilities[list(rows)].to(device)
    counts = reference.counts[list(rows)].to(device)
    used = torch.arange(steps, device=device)[None, :] >= steps - counts[:, None]
    values = torch.zeros((len(trials) * len(rows), steps), device=device)
    assignment = Rows(torch.arange(len(trials), device=device).repeat_interleave(len(rows)))
    with applied(evaluator.model.network, trials, assignment):
        for passed in evaluator.engine.logits(prompts, rows=assignment):
            index = torch.tensor(passed.rows, device=device) % len(rows)
            found = kl_per_position(base[index], passed.logits)
            values[passed.rows] = torch.where(used[index], found, torch.zeros_like(found))
    return values.view(len(trials), len(rows), steps).cpu()


class DivergencePass:
    """All prompts under all trials, less what a cap makes superfluous. cap: mean KL above which a trial is rejected."""

    def __init__(self, evaluator: Evaluator, trials: Sequence[Edits], cap: float) -> None:
        reference = evaluator.require_reference()
        self._evaluator = evaluator
        self._cap = cap
        self._counts = reference.counts
        # What is not finite would reach its neighbours, whose vectors are multiplied beside its own.
        self._finite = [all(edit.is_finite for edit in edits.values()) for edits in trials]
        self._trials = [edits if good else {} for edits, good in zip(trials, self._finite, strict=True)]
        shape = (len(trials), len(reference.sequences))
        self._values = torch.zeros((*shape, evaluator.lengths.kl))
        self._seen = torch.zeros(shape, dtype=torch.bool)
        self._running = list(range(len(trials)))

    def run(self) -> list[Divergence | KlBound | None]:
        """The KL of each trial; a bound above the cap where it left; None where it is not finite."""
        self._evaluator.kl_batches(range(self._values.shape[1]), self._batch)
        return [self._found(trial) for trial in range(len(self._trials))]

    def _batch(self, rows: Sequence[int]) -> None:
        if not self._running:
            return
        values = kl_of_rows(self._evaluator, rows, [self._trials[trial] for trial in self._running])
        first, last = rows[0], rows[-1] + 1
        for slot, trial in enumerate(self._running):
            self._values[trial, first:last] = values[slot]
            self._seen[trial, first:last] = True
        self._running = [trial for trial in self._running if not self._decided(trial)]

    def _decided(self, trial: int) -> bool:
        if not self._finite[trial] or not bool(torch.isfinite(self._values[trial]).all()):
            return True
        return self._bound(trial).at_least > self._cap + ROUNDING

    def _bound(self, trial: int) -> KlBound:
        used = self._counts > 0
        seen = used & self._seen[trial]
        means = self._values[trial, seen].double().sum(dim=1) / self._counts[seen]
        total, count = float(means.sum()), int(seen.sum())
        return KlBound(total / max(1, int(used.sum())), total / max(1, count), count)

    def _found(self, trial: int) -> Divergence | KlBound | None:
        if not self._finite[trial]:
            return None
        if bool(self._seen[trial].all()) or not bool(torch.isfinite(self._values[trial]).all()):
            return divergence_summary(self._values[trial], self._counts)
        return self._bound(trial)
