# SPDX-License-Identifier: Apache-2.0
"""Results of a batch of open trials: from the ledger, from an equal trial, or measured (requirements
R-SEA-21).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from heretic.exceptions import AbliterationError, DiskSpaceError, HereticError, ModelError, ResourceError
from heretic.study.ledger import Ledger
from heretic.study.records import checked, scores_from, scores_record
from heretic.study.space import canonical_key
from heretic.study.types import Evaluate, FinishedTrial, Proposal, Scores, TrialFailure

_logger = logging.getLogger("heretic.study")

_TRIAL_ERRORS: Final = (
    ModelError,
    ResourceError,
    AbliterationError,
    ArithmeticError,
    RuntimeError,
    ValueError,
)
"""What may go wrong with one edit. Anything else is a mistake of ours or of the user and ends the run."""


@dataclass(slots=True)
class Row:
    """An open trial: where its row is and what it tries."""

    number: int
    storage_id: int
    proposal: Proposal


@dataclass(slots=True)
class Result:
    """What is told for a row. duplicate_of: the index it was answered from; recorded: the ledger has it
    already.
    """

    outcome: Scores | TrialFailure
    duplicate_of: int | None = None
    recorded: bool = False


def measured(
    rows: Sequence[Row],
    evaluate: Evaluate,
    finished: Sequence[FinishedTrial],
    ledger: Ledger,
    *,
    before: int,
) -> dict[int, Result]:
    """Results by index; no parameter set is evaluated twice.

    `evaluate` sees only trials of earlier batches (index below `before`), so that a batch cut by a kill is
    measured from the same knowledge as an uninterrupted one.
    """
    by_key: dict[str, FinishedTrial] = {}
    for trial in finished:
        by_key.setdefault(canonical_key(trial.parameters), trial)
    results: dict[int, Result] = {}
    fresh: dict[str, Proposal] = {}
    copies: dict[int, int] = {}
    for row in rows:
        index, key = row.proposal.index, canonical_key(row.proposal.parameters)
        recorded = _recorded(row.proposal, ledger)
        if recorded is not None:
            results[index] = recorded
        elif key in by_key:
            results[index] = Result(by_key[key].scores, duplicate_of=by_key[key].index)
        elif key in fresh:
            copies[index] = fresh[key].index
        else:
            fresh[key] = row.proposal
    if fresh:
        known = tuple(trial for trial in finished if trial.index < before)
        outcomes = _outcomes(evaluate, tuple(fresh.values()), known)
        for proposal, outcome in zip(fresh.values(), outcomes, strict=True):
            results[proposal.index] = Result(outcome)
    for index, original in copies.items():
        results[index] = Result(results[original].outcome, duplicate_of=original)
    return results


def _recorded(proposal: Proposal, ledger: Ledger) -> Result | None:
    """The ledger's result for this trial, if its tell was lost and its parameters are the same."""
    entry = ledger.entry(proposal.index)
    if entry is None or entry["parameters"] != dict(proposal.parameters):
        return None
    outcome = TrialFailure(entry["failure"]) if "failure" in entry else scores_from(entry["scores"])
    return Result(outcome, entry.get("duplicate_of"), recorded=True)


def record_of(row: Row, result: Result) -> dict[str, Any]:
    """The ledger's line for a result."""
    record: dict[str, Any] = {
        "index": row.proposal.index,
        "row": row.number,
        "parameters": dict(row.proposal.parameters),
    }
    if isinstance(result.outcome, Scores):
        record["scores"] = scores_record(result.outcome)
    else:
        record["failure"] = result.outcome.reason
    if result.duplicate_of is not None:
        record["duplicate_of"] = result.duplicate_of
    return record


def _outcomes(
    evaluate: Evaluate, proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]
) -> list[Scores | TrialFailure]:
    """Measures the proposals in one pass; if it fails, one by one, so that only the guilty ones fail."""
    try:
        results: Sequence[object] = evaluate(proposals, finished)
    except DiskSpaceError:
        raise
    except _TRIAL_ERRORS as error:
        if len(proposals) > 1:
            _logger.warning(
                "A batch of %d trials failed (%s); they are measured one by one.", len(proposals), error
            )
            return [
                outcome for proposal in proposals for outcome in _outcomes(evaluate, [proposal], finished)
            ]
        hint = f" {error.hint}" if isinstance(error, HereticError) and error.hint else ""
        return [TrialFailure(f"{type(error).__name__}: {error}{hint}")]
    assert len(results) == len(proposals), f"{len(results)} results for {len(proposals)} proposals"
    return [
        checked(result, f"Trial {proposal.index}")
        for proposal, result in zip(proposals, results, strict=True)
    ]
