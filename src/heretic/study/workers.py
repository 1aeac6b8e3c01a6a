# SPDX-License-Identifier: Apache-2.0
"""The search loop of one worker among several (requirements R-SEA-15, reliability A17, A18).

The order of trials depends on timing. Promised are: no result that was accepted is lost, no point is measured
twice but by a worker that replaces a lost one, one fingerprint, exactly `n_trials` complete trials; not one
sequence (REL-R03). `heretic.study.claims` decides between the workers; this loop holds nothing that must survive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from heretic.exceptions import HereticError
from heretic.study.asker import Asker
from heretic.study.claims import COMPLETE, FAILED, NOBODY, OPEN, Claim, Claims, NewClaim
from heretic.study.ledger import NoLedger
from heretic.study.measuring import Result, Row, measured, record_of
from heretic.study.progress import Meter, has_stalled
from heretic.study.records import finished_from
from heretic.study.runner import EndReason, Search, StudyOutcome, asker_for, refuse_failures
from heretic.study.sharing import Terms, claims_of, discard, point_of, project, require_terms
from heretic.study.state import Study
from heretic.study.storage import PATIENCE_S, patiently
from heretic.study.types import (
    Dimension,
    Evaluate,
    FinishedTrial,
    Progress,
    Proposal,
    Scores,
    TrialFailure,
    Value,
)
from heretic.study.watch import Heartbeat, Watch, new_owner, shown_owner

T = TypeVar("T")
_logger = logging.getLogger("heretic.study")

POLL_S: Final = 1.0
_EVERY_INDEX: Final = 1 << 62


def search_shared(
    study: Study,
    evaluate: Evaluate,
    *,
    space: Sequence[Dimension],
    seed: int,
    batch_size: int,
    sampler: str = "tpe",
    n_startup_trials: int = 30,
    warm_start: Sequence[Mapping[str, Value]] = (),
    deadline: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] | None = None,
    on_told: Callable[[int, Scores | TrialFailure], None] | None = None,
    reference: tuple[float, float] = (1.0, 1.0),
    stop_on_stall: bool = False,
    patience_s: float = PATIENCE_S,
    poll_s: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
) -> StudyOutcome:
    """Takes part in the search of a shared study until it has the complete trials of its terms, as `run_study`.

    The number of trials, the lease and the retries are the stored terms'. on_told(k, outcome): this worker's
    result was accepted. When nothing is left to begin, waits for the others, whose rows it takes over when they
    fall silent; rows that are open when it leaves are given back. clock: seconds that never go back.
    """
    terms = require_terms(study)
    worker = _Worker(
        study=study,
        claims=claims_of(study, new_owner(), patience_s=patience_s),
        asker=asker_for(study, Search(tuple(space), seed, sampler, n_startup_trials, reference), warm_start),
        watch=Watch(terms.lease_seconds, clock),
        evaluate=evaluate,
        space=tuple(space),
        terms=terms,
        batch_size=study.resolved_batch_size(batch_size),
        on_told=on_told,
        patience_s=patience_s,
    )
    worker.sync()
    meter = Meter(terms.n_trials, reference, None, clock, already=len(worker.finished))

    def reason_to_end() -> EndReason | None:
        if worker.is_complete or stop():
            return "finished" if worker.is_complete else "stopped"
        if deadline is not None and clock() >= deadline and worker.finished:
            return "out of time"
        return "stalled" if stop_on_stall and has_stalled(worker.sorted_trials(), reference) else None

    with Heartbeat(worker.claims.impatient(), worker.watch, study.location, terms.lease_seconds):
        try:
            while (reason := reason_to_end()) is None:
                batch = worker.step(poll_s)
                if on_progress is not None and batch is not None:
                    on_progress(meter.reading(worker.sorted_trials(), len(worker.failed), batch))
            if reason == "finished":
                worker.sweep()
        finally:
            worker.leave()
    return StudyOutcome(worker.sorted_trials(), dict(worker.failed), reason)


@dataclass(slots=True)
class _Worker:
    study: Study
    claims: Claims
    asker: Asker
    watch: Watch
    evaluate: Evaluate
    space: tuple[Dimension, ...]
    terms: Terms
    batch_size: int
    on_told: Callable[[int, Scores | TrialFailure], None] | None
    patience_s: float
    known: dict[int, Claim] = field(default_factory=dict)
    finished: dict[int, FinishedTrial] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    failed_in_a_row: int = 0

    @property
    def is_complete(self) -> bool:
        """True when enough trials are complete and every result is where readers look."""
        complete = sum(claim.state == COMPLETE for claim in self.known.values())
        return complete >= self.terms.n_trials and not any(claim.pending for claim in self.known.values())

    def sorted_trials(self) -> tuple[FinishedTrial, ...]:
        """All complete trials by index."""
        return tuple(self.finished[index] for index in sorted(self.finished))

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.study.location, patience_s=self.patience_s)

    def sync(self) -> None:
        """Reads what all workers have done since the last time."""
        self.known = self.claims.all()
        self.watch.observe(self.known)
        for claim in self.known.values():
            if claim.pending and claim.owner != self.claims.owner and self.watch.expired(claim):
                self._store_for(claim)
        indexes = {claim.trial_id: index for index, claim in self.known.items()}
        for trial in self._patiently(lambda: self.study.inner.get_trials(deepcopy=False)):
            index = indexes.get(trial._trial_id)
            if index is not None:
                self._learn(index, trial)

    def _learn(self, index: int, trial: FrozenTrial) -> None:
        if index in self.finished or index in self.failed:
            return
        outcome: Scores | TrialFailure | None = None
        if trial.state == TrialState.COMPLETE:
            self.finished[index] = finished_from(trial.user_attrs)
            outcome = self.finished[index].scores
        elif trial.state == TrialState.FAIL:
            self.failed[index] = str(trial.user_attrs.get("failure", "no reason stored"))
            outcome = TrialFailure(self.failed[index])
        if index not in self.asker:
            self.asker.replay(index, trial, outcome if isinstance(outcome, Scores) else None)
        elif outcome is not None:
            self.asker.told(index, outcome)

    def _store_for(self, claim: Claim) -> None:
        """Finishes what a worker began that was lost between acceptance and storage of a result."""
        record = self.claims.result(claim.index)
        if record is not None and claim.trial_id is not None and self.claims.take(claim, count=False):
            storage_id = claim.trial_id
            self._patiently(lambda: project(self.study, self.claims, claim.index, storage_id, record))

    def step(self, poll_s: float) -> tuple[FinishedTrial, ...] | None:
        """One batch, or a pause; this worker's new trials, None when nobody has any.

        Raises `TooManyFailedTrialsError` when its trials only fail, or too many of the study have.
        """
        before = len(self.finished)
        rows = self.next_rows()
        batch = self.run(rows) if rows else ()
        if rows is not None and not rows:
            time.sleep(poll_s)
        self.sync()
        limit = max(20, self.terms.n_trials)
        refuse_failures(self.failed_in_a_row, self.failed, len(self.finished), limit)
        return batch if len(self.finished) > before else None

    def next_rows(self) -> list[Row] | None:
        """Rows to measure: of lost workers first, then new ones. Empty: wait; None: look again at once."""
        taken = self._take_over()
        if taken:
            return taken
        states = [claim.state for claim in self.known.values()]
        room = self.terms.n_trials - states.count(COMPLETE) - states.count(OPEN)
        return self._begin(min(self.batch_size, room)) if room > 0 else []

    def _take_over(self) -> list[Row]:
        rows: list[Row] = []
        for claim in self.known.values():
            mine = claim.owner == self.claims.owner
            if claim.state != OPEN or mine or not self.watch.expired(claim):
                continue
            lost = claim.owner != NOBODY
            if not self.claims.take(claim, count=lost):
                continue
            row = self._row_of(claim)
            if row is None:
                continue
            if lost:
                _logger.warning("Trial %d is taken over from %s.", claim.index, shown_owner(claim.owner))
            if claim.handed_on + int(lost) > self.terms.max_trial_retries:
                times = claim.handed_on + 1
                reason = f"{times} workers in a row were lost while they measured this trial."
                self._tell(row, Result(TrialFailure(reason)))
                continue
            rows.append(row)
            if len(rows) == self.batch_size:
                break
        return rows

    def _row_of(self, claim: Claim) -> Row | None:
        """The row of a claim that was taken over; its first owner may have been lost before it had one."""
        parameters = self.claims.parameters(claim.index)
        storage_id = claim.trial_id
        if storage_id is None:
            storage_id = self._made(claim.index, _template(self.space, parameters))
        return None if storage_id is None else self._row(claim.index, storage_id, parameters)

    def _row(self, index: int, storage_id: int, parameters: Mapping[str, Value]) -> Row:
        number = self._patiently(lambda: self.study.rows.get_trial_number_from_id(storage_id))
        return Row(number, storage_id, Proposal(index, dict(parameters)))

    def _begin(self, count: int) -> list[Row] | None:
        """Claims up to `count` new indexes; all of them or none, because another worker may be faster."""
        first = max(self.known, default=-1) + 1
        templates: list[FrozenTrial] = []
        wanted: list[NewClaim] = []
        by_point = {claim.point: claim for claim in self.known.values()}
        for index in range(first, first + count):
            template = self.asker.ask(index, len(self.finished))
            parameters = template.user_attrs["proposal"]["parameters"]
            point = point_of(parameters)
            known = by_point.get(point)
            repeats = any(claim.point == point for claim in wanted)
            if known is not None and known.index not in self.finished and known.state != FAILED:
                # Another worker is measuring this very point: its result will be the answer.
                self.asker.withdraw(index)
                break
            templates.append(template)
            wanted.append(NewClaim(index, None if repeats or known else point, parameters))
        if not wanted:
            return []
        if not self.claims.add(wanted):
            for claim in wanted:
                self.asker.withdraw(claim.index)
            return None
        rows = []
        for claim, template in zip(wanted, templates, strict=True):
            storage_id = self._made(claim.index, template)
            if storage_id is not None:
                rows.append(self._row(claim.index, storage_id, claim.parameters))
        return rows or None

    def _made(self, index: int, template: FrozenTrial) -> int | None:
        """A row of the storage for a claim; None when the claim was handed on meanwhile."""
        template.user_attrs = {}
        rows, study_id = self.study.rows, self.study.inner._study_id
        storage_id = self._patiently(lambda: rows.create_new_trial(study_id, template_trial=template))
        if self.claims.attach(index, storage_id):
            return storage_id
        self._patiently(lambda: discard(self.study, storage_id))
        return None

    def run(self, rows: Sequence[Row]) -> tuple[FinishedTrial, ...]:
        """Measures rows and tells them in order; the trials of this batch that are complete."""
        results = measured(rows, self.evaluate, self.sorted_trials(), NoLedger(), before=_EVERY_INDEX)
        batch: list[FinishedTrial] = []
        for row in rows:
            result = results[row.proposal.index]
            if self._tell(row, result) and isinstance(result.outcome, Scores):
                batch.append(FinishedTrial(row.proposal.index, row.proposal.parameters, result.outcome))
        return tuple(batch)

    def _tell(self, row: Row, result: Result) -> bool:
        index, outcome, record = row.proposal.index, result.outcome, record_of(row, result)
        state = COMPLETE if isinstance(outcome, Scores) else FAILED
        if not self.claims.tell(index, state, record):
            _logger.warning(
                "Trial %d had been handed on to another worker while it was measured here; this late result is "
                "dropped.",
                index,
            )
            return False
        self._patiently(lambda: project(self.study, self.claims, index, row.storage_id, record))
        self.failed_in_a_row = 0 if isinstance(outcome, Scores) else self.failed_in_a_row + 1
        if isinstance(outcome, TrialFailure):
            _logger.warning("Trial %d failed: %s", index, outcome.reason)
        if self.on_told is not None:
            self.on_told(index, outcome)
        return True

    def sweep(self) -> None:
        """Closes rows that no claim uses: of workers lost in the moment between making and naming one."""
        used = {claim.trial_id for claim in self.known.values()}
        for trial in self._patiently(lambda: self.study.inner.get_trials(deepcopy=False)):
            if trial.state == TrialState.RUNNING and trial._trial_id not in used:
                self._patiently(partial(discard, self.study, trial._trial_id))

    def leave(self) -> None:
        """Gives back what is open, so that nobody has to wait for the lease."""
        try:
            self.claims.impatient().release()
        except HereticError as error:
            _logger.debug("Open rows could not be given back: %s", error.message)


def _template(space: Sequence[Dimension], parameters: Mapping[str, Value]) -> FrozenTrial:
    """A running row with these parameters."""
    active: dict[str, Any] = {name: value for name, value in parameters.items() if value is not None}
    distributions = {
        dimension.name: _distribution(dimension) for dimension in space if dimension.name in active
    }
    return create_trial(state=TrialState.RUNNING, params=active, distributions=distributions)


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.kind == "categorical":
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high)
