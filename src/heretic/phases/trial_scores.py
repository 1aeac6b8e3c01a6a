# SPDX-License-Identifier: Apache-2.0
"""What the study is told of a measured trial, and when a trial need not be measured further (algorithms 6.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from heretic.constants import KL_FLOOR, MINIMUM_EFFECT
from heretic.evaluator import Outcome
from heretic.linalg.sequential import SequentialTest, worse_rate
from heretic.phases.evaluation import guard_values, rate_from
from heretic.report import Divergence
from heretic.study.types import FinishedTrial, Json, Scores, TrialFailure

SAMPLES: Final = 8
SAMPLE_LENGTH: Final = 300
"""Replies kept with each trial, and the characters of each (requirements R-EVA-10)."""


DIGITS = 4


def kl_objective(kl: float, scale: float) -> float:
    """max(KL, floor) / scale: polishing KL under the floor earns nothing (algorithms 5.2).

    To `DIGITS` significant ones: beyond lies the rounding of another batch shape, which grows with the KL. A batch that
    is resumed after a kill is smaller, and what is asked next must not depend on that.
    """
    return float(f"{max(kl, KL_FLOOR) / scale:.{DIGITS}g}")


@dataclass(frozen=True, slots=True)
class Rivals:
    """The trials to beat: (rate, mean KL) of those that are measured in full and feasible. total: prompts of a rate.

    The KL is the measured one, not the objective with its floor: the choice among trials sees the difference below it.
    """

    points: tuple[tuple[float, float], ...]
    total: int

    @classmethod
    def of(cls, finished: Sequence[FinishedTrial], total: int) -> Rivals:
        """Those among the finished trials."""
        points = []
        for trial in finished:
            kl = trial.scores.measured.get("kl_mean")
            complete = trial.scores.measured.get("status") == "complete"
            if complete and trial.scores.feasible and isinstance(kl, int | float):
                points.append((trial.scores.objectives[0], float(kl)))
        return cls(tuple(points), total)

    def can_win(self, shown: float, kl: float) -> bool:
        """False when a rival is at least as good in both figures and better in one, whatever is still to come.

        shown: sum of degrees so far, hits where replies are counted."""
        rate = shown / self.total
        return not any(r <= rate and k <= kl and (r, k) != (rate, kl) for r, k in self.points)

    def test(self, kl: float) -> SequentialTest | None:
        """The race of a trial with this KL: the lowest rate among rivals of at most that KL is the target, which it has
        to undercut; a rate of `worse_rate` odds is hopeless. None without such a rival, and where one hit decides."""
        target = min((r for r, k in self.points if k <= kl), default=1.0)
        return SequentialTest(target, worse_rate(target)) if 0.0 < target < 1.0 else None

    def hopeless(self, hits: int, prompts: int, kl: float) -> bool:
        """The test decides against the trial: at most 5 % of those that reach the target are given up."""
        test = self.test(kl)
        return test is not None and test.is_high(hits, prompts)


def scores(
    outcome: Outcome,
    base: Outcome,
    rivals: Rivals,
    *,
    max_kl: float,
    scale: float,
    strengths: Mapping[str, Sequence[float]],
    log_odds: float | None = None,
) -> Scores | TrialFailure:
    """What is told to the study; `measured` never holds a number that was not measured.

    A trial rejected by its KL tells the base rate and the mean KL of the prompts seen, with a broken constraint; a
    dominated one its exact lower bound; one that was given up its estimate, with a broken constraint, so that it can
    neither enter the front nor be chosen.
    """
    if outcome.status == "failed":
        return TrialFailure(outcome.reason)
    base_rate = base.rate
    kept: dict[str, Json] = {path: list(values) for path, values in strengths.items()}
    measured: dict[str, Json] = {"status": outcome.status, "strengths": kept}
    if outcome.kl is None:
        bound = outcome.kl_bound
        assert bound is not None, outcome.status
        measured |= {"rate": None, "hits": None, "n": None, "kl_mean": None}
        measured |= {"kl_at_least": bound.at_least, "kl_prompts_seen": bound.prompts}
        told = max(bound.mean_seen, bound.at_least)
        return Scores((base_rate, kl_objective(told, scale)), {"kl": bound.at_least - max_kl}, measured)
    cost = kl_objective(outcome.kl.mean, scale)
    constraints = {"kl": outcome.kl.mean - max_kl}
    measured |= divergence_figures(outcome.kl)
    if outcome.status == "rejected_by_kl":
        measured |= {"rate": None, "hits": None, "n": None}
        return Scores((base_rate, cost), constraints, measured)
    if outcome.status == "complete":
        rate = outcome.rate
        measured |= reply_figures(outcome)
        measured |= {} if log_odds is None else {"log_odds": log_odds}
        constraints |= guard_values(outcome, base)
    else:
        measured |= {"rate": None, "hits": None, "n": outcome.n}
        measured |= {"hits_at_least": outcome.hits, "prompts_seen": outcome.seen}
        rate = outcome.rate
    if outcome.status == "estimated":
        test = rivals.test(outcome.kl.mean)
        assert test is not None
        estimate = outcome.total / outcome.seen
        measured["race"] = {"target": test.low, "hopeless": test.high, "risk": test.alpha}
        # Positive: no test decides for the worse rate before the share of hits lies above the target.
        constraints["race"] = estimate - test.low
        return Scores((max(estimate, rate), cost), constraints, measured)
    constraints["effect"] = MINIMUM_EFFECT * base_rate - (base_rate - rate)
    return Scores((rate, cost), constraints, measured)


def divergence_figures(kl: Divergence) -> dict[str, Json]:
    """The KL as it is stored."""
    return {
        "kl_mean": kl.mean,
        "kl_standard_error": kl.standard_error,
        "kl_median": kl.median,
        "kl_p95": kl.p95,
        "kl_maximum": kl.maximum,
        "kl_first_token": kl.first_token,
        "kl_worst_prompt": kl.worst_prompt,
        "kl_unstable": kl.unstable,
        "kl_n": kl.n,
        "kl_tokens": kl.tokens,
    }


def reply_figures(outcome: Outcome) -> dict[str, Json]:
    """Rate, interval, classes and a few replies of a complete trial, as they are stored."""
    found = rate_from(outcome.judged)
    labels = outcome.labels
    classes: dict[str, Json] = {label: labels.count(label) for label in sorted(set(labels))}
    return {
        "rate": outcome.rate,
        "hits": outcome.hits,
        "n": outcome.n,
        "graded": found.mean is not None,
        "interval": [found.low, found.high],
        "classes": classes,
        "samples": [reply.text[:SAMPLE_LENGTH] for reply in outcome.replies[:SAMPLES]],
    }
