# SPDX-License-Identifier: Apache-2.0
"""The search loop: ask a batch, measure it, tell it, so that a kill at any moment changes nothing (REL-R03).

The unit is the ask batch, named by logical trial indexes k and stored before it is asked. After a kill its
rows that hold all their parameters are adopted with number and parameters, never failed and asked again: the
rows already told would alter what the rest are asked from. An interrupted k stays open; a k whose measurement
failed is spent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from optuna.trial import FrozenTrial, TrialState

from heretic.exceptions import FingerprintMismatchError, StudyCorruptError, TooManyFailedTrialsError
from heretic.study.asker import Asker, stored_constraints
from heretic.study.measuring import Result, Row, measured, record_of
from heretic.study.progress import Meter, has_stalled
from heretic.study.records import differences, finished_from, plain, scores_record
from heretic.study.space import describe_space
from heretic.study.state import Study
from heretic.study.storage import PATIENCE_S, patiently
from heretic.study.types import (
    Dimension,
    Evaluate,
    FinishedTrial,
    Json,
    Progress,
    Proposal,
    Scores,
    TrialFailure,
    Value,
)

T = TypeVar("T")
_logger = logging.getLogger("heretic.study")

FAILURES_IN_A_ROW: Final = 5
FIRST_BATCH: Final = 4
"""So many times smaller is the first batch, the next fills it up: first figures come soon, and their replies are drafts
for all that follow."""

EndReason = Literal["finished", "stopped", "out of time", "stalled"]


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """How a run of the search ended. finished: all complete trials of the study; failed: index -> reason."""

    finished: tuple[FinishedTrial, ...]
    failed: Mapping[int, str]
    reason: EndReason


def run_study(
    study: Study,
    evaluate: Evaluate,
    *,
    space: Sequence[Dimension],
    seed: int,
    n_trials: int,
    batch_size: int,
    sampler: str = "tpe",
    n_startup_trials: int = 30,
    warm_start: Sequence[Mapping[str, Value]] = (),
    deadline: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] | None = None,
    on_told: Callable[[int], None] | None = None,
    max_trial_retries: int = 2,
    max_failed: int | None = None,
    reference: tuple[float, float] = (1.0, 1.0),
    kl_limit: float | None = None,
    stop_on_stall: bool = False,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
) -> StudyOutcome:
    """Runs the study up to `n_trials` complete trials in all, resumed ones included (requirements 7.3, 7.4).

    batch_size: trials per ask batch of a new study; a stored one keeps its own. warm_start[k] is tried as
    trial k, completed from the Sobol sequence and made legal. deadline: value of `clock` after which no batch
    starts, the very first one excepted: a search without a trial would have been for nothing. stop: asked
    between batches. on_told(k): the result of k is durable. max_trial_retries: how often a trial whose
    process died is taken up again before it is failed. max_failed: cap of failed trials, default
    max(20, n_trials). reference: the objectives of the worst point, which scale the hypervolume;
    kl_limit: bound on objective 1 for `Progress.best`. stop_on_stall: end when the hypervolume grew less than
    0.5 % over the last max(40, 20 %) trials (algorithms 8).

    Raises `TooManyFailedTrialsError`, `FingerprintMismatchError` when space, sampler or seed are not the
    stored ones, and storage errors after waiting up to `patience_s`; every result so far is kept.
    """
    limit = max(20, n_trials) if max_failed is None else max_failed
    search = Search(tuple(space), seed, sampler, n_startup_trials, reference)
    runner = _Runner(study, evaluate, search, n_trials, max_trial_retries, on_told, patience_s)
    runner.prepare(batch_size, warm_start)
    meter = Meter(n_trials, reference, kl_limit, clock, already=len(runner.finished))

    def reason_to_end() -> EndReason | None:
        if stop():
            return "stopped"
        if deadline is not None and clock() >= deadline and runner.finished:
            return "out of time"
        stalls = stop_on_stall and not runner.has_open_rows
        return "stalled" if stalls and has_stalled(runner.sorted_trials(), reference) else None

    while indexes := runner.next_batch():
        if (reason := reason_to_end()) is not None:
            return runner.outcome(reason)
        batch = runner.run_batch(indexes)
        if on_progress is not None:
            on_progress(meter.reading(runner.sorted_trials(), len(runner.failed), batch))
        refuse_failures(runner.failed_in_a_row, runner.failed, len(runner.finished), limit)
    return runner.outcome("finished")


@dataclass(frozen=True, slots=True)
class Search:
    """What decides the sequence of points; `reference` follows from what the fingerprint covers and is not stored."""

    space: tuple[Dimension, ...]
    seed: int
    sampler: str
    n_startup_trials: int
    reference: tuple[float, float]

    def described(self) -> dict[str, Json]:
        """As stored with the study."""
        return {
            "space": describe_space(self.space),
            "seed": self.seed,
            "sampler": self.sampler,
            "n_startup_trials": self.n_startup_trials,
        }


def asker_for(study: Study, search: Search, warm_start: Sequence[Mapping[str, Value]]) -> Asker:
    """The asker of a study; the first call stores how the search is set up, later ones compare.

    Raises `FingerprintMismatchError` when space, sampler or seed are not the stored ones.
    """
    plan = search.described()
    stored = study.stored("plan")
    if stored is None:
        study.store("plan", {"search": plan, "warm_start": [dict(point) for point in warm_start]})
        stored = study.stored("plan")
    lines = differences(stored["search"], plain(plan, "plan"))
    if lines:
        raise FingerprintMismatchError(
            f"The study {study.name!r} searches another space or with another sampler.",
            hint="Use --study-name NAME for a new study, or --resume fresh to keep the old one renamed.",
            details=tuple(lines),
        )
    return Asker(
        search.space,
        seed=search.seed,
        sampler=search.sampler,
        n_startup_trials=search.n_startup_trials,
        # Trial k keeps the warm start it was given first, even if the profile has changed since.
        warm_start=stored["warm_start"],
        reference=search.reference,
    )


def refuse_failures(in_a_row: int, failed: Mapping[int, str], complete: int, limit: int) -> None:
    """Stops a run that only fails: raises `TooManyFailedTrialsError` (reliability A09, A11)."""
    hint = "Finished trials are kept. Remove the cause and start the same command again."
    if in_a_row >= FAILURES_IN_A_ROW:
        last = failed[max(failed)]
        raise TooManyFailedTrialsError(f"{in_a_row} trials in a row failed; the last one: {last}", hint=hint)
    if len(failed) > limit:
        raise TooManyFailedTrialsError(
            f"{len(failed)} trials failed beside {complete} complete ones, "
            f"more than the {limit} allowed; the last one: {failed[max(failed)]}",
            hint=hint,
        )


@dataclass(slots=True)
class _Runner:
    study: Study
    evaluate: Evaluate
    search: Search
    n_trials: int
    max_trial_retries: int
    on_told: Callable[[int], None] | None
    patience_s: float
    asker: Asker = field(init=False)
    batch_size: int = 1
    batch: tuple[int, int] = (0, 0)
    finished: dict[int, FinishedTrial] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    failed_in_a_row: int = 0

    @property
    def has_open_rows(self) -> bool:
        """True when a batch of an earlier process waits to be completed."""
        return bool(self.rows)

    def sorted_trials(self) -> tuple[FinishedTrial, ...]:
        """All complete trials by index."""
        return tuple(self.finished[index] for index in sorted(self.finished))

    def outcome(self, reason: EndReason) -> StudyOutcome:
        """The end of the run."""
        return StudyOutcome(self.sorted_trials(), dict(self.failed), reason)

    def prepare(self, batch_size: int, warm_start: Sequence[Mapping[str, Value]]) -> None:
        """Reads the state back: what is done, what is open, and how the search was set up."""
        self.batch_size = self.study.resolved_batch_size(batch_size)
        self.asker = asker_for(self.study, self.search, warm_start)
        start, size = self.study.stored("batch") or (0, 0)
        self.batch = (int(start), int(size))
        for trial in self._patiently(lambda: self.study.inner.get_trials(deepcopy=False)):
            self._take_back(trial)
        self.failed_in_a_row = 0

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.study.location, patience_s=self.patience_s)

    def _take_back(self, trial: FrozenTrial) -> None:
        attributes = trial.user_attrs
        proposal = attributes.get("proposal")
        running = trial.state == TrialState.RUNNING
        if proposal is None or (running and proposal["index"] in self.asker):
            if running:
                self._discard(trial)
            return
        index = int(proposal["index"])
        if trial.state == TrialState.COMPLETE:
            finished = finished_from(attributes)
            self._compare_with_ledger(finished)
            self.finished[index] = finished
            self.asker.replay(index, trial, finished.scores)
            return
        self.asker.replay(index, trial, None)
        if running:
            self._adopt(trial, Proposal(index, proposal["parameters"]))
        else:
            self.failed[index] = str(attributes.get("failure", "no reason stored"))

    def _compare_with_ledger(self, trial: FinishedTrial) -> None:
        recorded = self.study.ledger.entry(trial.index)
        if recorded is not None and recorded.get("scores") != scores_record(trial.scores):
            raise StudyCorruptError(
                f"Trial {trial.index} of {self.study.name!r} differs from the ledger's record of it.",
                hint="Keep both files for recovery and use another --storage.",
            )

    def _discard(self, trial: FrozenTrial) -> None:
        """Closes a row whose parameters are incomplete; its k is asked again."""

        def close() -> None:
            self.study.rows.set_trial_user_attr(
                trial._trial_id, "discarded", "the process ended while asking"
            )
            self.study.rows.set_trial_state_values(trial._trial_id, TrialState.FAIL)

        self._patiently(close)

    def _adopt(self, trial: FrozenTrial, proposal: Proposal) -> None:
        row = Row(trial.number, trial._trial_id, proposal)
        times = int(trial.user_attrs.get("adopted", 0)) + 1
        if self.study.ledger.entry(proposal.index) is None and times > self.max_trial_retries:
            reason = f"The process ended {times} times while this trial was measured."
            self._tell(row, Result(TrialFailure(reason)))
            return
        rows = self.study.rows
        self._patiently(lambda: rows.set_trial_user_attr(row.storage_id, "adopted", times))
        self.rows[proposal.index] = row

    def next_batch(self) -> list[int]:
        """Open indexes of the stored batch, else those of a new one; empty when the study is complete."""
        spent = self.finished.keys() | self.failed.keys()
        start, size = self.batch
        waiting = [index for index in range(start, start + size) if index not in spent]
        if waiting:
            return waiting
        first = max(spent, default=-1) + 1
        size = self.batch_size - first % self.batch_size if first else -(-self.batch_size // FIRST_BATCH)
        return list(range(first, first + min(size, self.n_trials - len(self.finished))))

    def run_batch(self, indexes: Sequence[int]) -> tuple[FinishedTrial, ...]:
        """Asks what is not open yet, measures all, tells in order of index."""
        if indexes[0] >= sum(self.batch):
            # Stored, because after a kill among the tells the number of complete trials no longer says where
            # the batch ends.
            self.batch = (indexes[0], len(indexes))
            self._patiently(lambda: self.study.store("batch", list(self.batch)))
        for index in indexes:
            if index not in self.rows:
                self.rows[index] = self._ask(index)
        results = measured(
            [self.rows[index] for index in indexes],
            self.evaluate,
            self.sorted_trials(),
            self.study.ledger,
            before=self.batch[0],
        )
        for index in indexes:
            self._tell(self.rows.pop(index), results[index])
        return tuple(self.finished[index] for index in indexes if index in self.finished)

    def _ask(self, index: int) -> Row:
        template = self.asker.ask(index, len(self.finished))
        rows, inner = self.study.rows, self.study.inner
        # One transaction: a row exists with all its parameters or not at all.
        study_id = inner._study_id
        storage_id = self._patiently(lambda: rows.create_new_trial(study_id, template_trial=template))
        proposal = template.user_attrs["proposal"]
        number = rows.get_trial_number_from_id(storage_id)
        return Row(number, storage_id, Proposal(index, proposal["parameters"]))

    def _tell(self, row: Row, result: Result) -> None:
        record = record_of(row, result)
        if not result.recorded:
            self._patiently(lambda: self.study.ledger.append(record))
        self._patiently(lambda: self._store(row, result))
        index = row.proposal.index
        self.asker.told(index, result.outcome)
        if isinstance(result.outcome, Scores):
            self.finished[index] = FinishedTrial(index, row.proposal.parameters, result.outcome)
            self.failed_in_a_row = 0
        else:
            self.failed[index] = result.outcome.reason
            self.failed_in_a_row += 1
            _logger.warning("Trial %d failed: %s", index, result.outcome.reason)
        if self.on_told is not None:
            self.on_told(index)

    def _store(self, row: Row, result: Result) -> None:
        """Writes attributes, constraints and at last the state; may be repeated after a storage error."""
        rows, storage_id = self.study.rows, row.storage_id
        if rows.get_trial(storage_id).state.is_finished():
            return
        if result.duplicate_of is not None:
            rows.set_trial_user_attr(storage_id, "duplicate_of", result.duplicate_of)
        if isinstance(result.outcome, TrialFailure):
            rows.set_trial_user_attr(storage_id, "failure", result.outcome.reason)
            rows.set_trial_state_values(storage_id, TrialState.FAIL)
            return
        rows.set_trial_user_attr(storage_id, "scores", scores_record(result.outcome))
        for name, values in stored_constraints(result.outcome).items():
            rows.set_trial_system_attr(storage_id, name, values)
        rows.set_trial_state_values(storage_id, TrialState.COMPLETE, list(result.outcome.objectives))
