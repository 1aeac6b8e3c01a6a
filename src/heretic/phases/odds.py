# SPDX-License-Identifier: Apache-2.0
"""Log-odds of the behaviour's openers beside the rate of each trial, where `log_odds` is a scorer (algorithms 7.3)."""

from __future__ import annotations

from collections.abc import Sequence

from heretic.exceptions import DatasetError
from heretic.interventions.hooks import Edits
from heretic.phases.state import Run
from heretic.study.types import FinishedTrial
from heretic.validation.log_odds import behaving_openers, correlation_text, measure_log_odds, spearman
from heretic.validation.subject import Subject

NAME = "log_odds"


class TrialOdds:
    """Mean sigmoid of the log-odds at the first reply token, in 0 ... 1, of any edit on the bad evaluation prompts."""

    def __init__(self, run: Run) -> None:
        assert run.evaluator is not None and run.baseline is not None and run.model is not None
        assert run.engine is not None
        evaluator = run.evaluator
        pairs = zip(run.baseline.outcome.replies, run.baseline.outcome.judged, strict=True)
        behaving = [reply.tokens for reply, verdict in pairs if verdict.hit != run.induces]
        control = evaluator.generate(evaluator.good, 1)
        self._openers = behaving_openers(behaving, [reply.tokens for reply in control])
        self._run = run

    def __call__(self, edits: Edits) -> float:
        """The rate under these edits."""
        run = self._run
        assert run.evaluator is not None and run.model is not None and run.engine is not None
        subject = Subject(run.model, run.engine, edits)
        return measure_log_odds(subject, run.evaluator.bad, self._openers).rate


def trial_odds(run: Run) -> TrialOdds | None:
    """What measures it; None where it is no scorer of this run, or where no first token tells the classes apart."""
    if not any(entry.name == NAME for entry in run.settings.scorers or ()):
        return None
    try:
        return TrialOdds(run)
    except DatasetError as error:
        if "scorers" in run.resolved.explicit:
            raise
        run.degradations.append(f"log_odds: {error.message}")
        return None


def agreement(trials: Sequence[FinishedTrial]) -> str:
    """How far the log-odds of the finished trials follow their full rates, in words; empty where none has any."""
    pairs = [
        (float(odds), float(rate))
        for odds, rate in (
            (trial.scores.measured.get(NAME), trial.scores.measured.get("rate")) for trial in trials
        )
        if isinstance(odds, int | float) and isinstance(rate, int | float)
    ]
    if not pairs:
        return ""
    return correlation_text(spearman([odds for odds, _ in pairs], [rate for _, rate in pairs]))
