# SPDX-License-Identifier: Apache-2.0
"""Proposes the next trial from an in-memory copy of the study.

Asking a database directly costs one synced transaction per parameter (a dozen, 0.3 s on a slow disk) and can
be cut in the middle by a kill. The copy is rebuilt from the stored rows in their order, so a resumed run asks
from the same history, and a finished proposal goes into the storage as one transaction.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from heretic.study.sampler import SAMPLERS, Request, startup_sampler, suggest
from heretic.study.space import resolve
from heretic.study.types import Dimension, Scores, TrialFailure, Value

_CONSTRAINTS = "constraints"


class Asker:
    """The history as the sampler sees it."""

    def __init__(
        self,
        space: tuple[Dimension, ...],
        *,
        seed: int,
        sampler: str,
        n_startup_trials: int,
        warm_start: Sequence[Mapping[str, Value]],
        reference: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self._space = space
        self._reference = reference
        self._seed = seed
        self._sampler = SAMPLERS[sampler]
        self._n_startup_trials = n_startup_trials
        self._warm_start = warm_start
        self._rows = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(storage=self._rows, directions=["minimize", "minimize"])
        self._ids: dict[int, int] = {}

    def __contains__(self, index: object) -> bool:
        return index in self._ids

    def replay(self, index: int, stored: FrozenTrial, scores: Scores | None) -> None:
        """Takes over a stored row; call in order of row number. scores: of a complete row."""
        row = copy.copy(stored)
        # A row that was killed while it was told has its constraints already; they come back with `told`.
        row.system_attrs = {key: value for key, value in stored.system_attrs.items() if key != _CONSTRAINTS}
        if scores is not None:
            row.system_attrs.update(_named(scores))
        row.user_attrs = {}  # samplers do not look at them, and a trial's figures can be large
        self._ids[index] = self._rows.create_new_trial(self._study._study_id, template_trial=row)

    def ask(self, index: int, complete: int) -> FrozenTrial:
        """A running row for trial `index` with all its parameters; `complete` trials are finished.

        Its attribute `proposal` holds index and parameters, clamped and with None for inactive ones.
        """
        request = Request(self._space, self._seed, index, self._n_startup_trials, complete, self._reference)
        if index < len(self._warm_start):
            self._study.sampler = startup_sampler(request, self._warm_start[index])
        else:
            self._study.sampler = self._sampler(request)
        trial = self._study.ask()
        parameters = resolve(self._space, lambda dimension: suggest(trial, dimension))
        trial.set_user_attr("proposal", {"index": index, "parameters": parameters})
        self._ids[index] = trial._trial_id
        return copy.deepcopy(self._rows.get_trial(trial._trial_id))

    def withdraw(self, index: int) -> None:
        """Takes back a proposal that was not used: the index may be given to another point."""
        self._rows.set_trial_state_values(self._ids.pop(index), TrialState.FAIL)

    def told(self, index: int, outcome: Scores | TrialFailure) -> None:
        """Adds a result to the history."""
        row = self._ids[index]
        if isinstance(outcome, TrialFailure):
            self._rows.set_trial_state_values(row, TrialState.FAIL)
            return
        for name, value in _named(outcome).items():
            self._rows.set_trial_system_attr(row, name, value)
        self._rows.set_trial_state_values(row, TrialState.COMPLETE, list(outcome.objectives))


def stored_constraints(scores: Scores) -> dict[str, list[float]]:
    """The row attribute by which other tools (a dashboard) see constraints: one write in place of one per
    name.
    """
    return {_CONSTRAINTS: list(scores.constraints.values())} if scores.constraints else {}


def _named(scores: Scores) -> dict[str, float]:
    """Constraints as `Trial.set_constraint` stores them, which is where samplers look."""
    return {f"{_CONSTRAINTS}:{name}": value for name, value in scores.constraints.items()}
