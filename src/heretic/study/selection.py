# SPDX-License-Identifier: Apache-2.0
"""The choice among finished trials: a pure, total order that never compares floats for equality (R-SEL-01 to
R-SEL-03).

Behaviour is compared as an exact fraction of counts, KL in units of 1e-6, then comes the distance to the knee
in the same units, then the trial index; so two machines that differ in the last bit choose the same trial
(reliability section 6). Figures are read from `Scores.measured`: rate, hits, n, kl_mean, and, if stored,
verdicts (one degree in 0 ... 1 per prompt; 0 and 1 where replies are counted).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from heretic.linalg.intervals import paired_rates
from heretic.linalg.pareto import distance_to, knee
from heretic.study.space import canonical_key
from heretic.study.types import FinishedTrial, Json

Goal = Literal["suppress", "induce"]
Fallback = Literal["knee", "none"]
_UNIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the rule: KL in nats per token, and optionally the objective rate in [0, 1]."""

    max_kl: float
    max_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen and why (R-SEL-03).

    winner: None only when nothing may be saved. qualified: the winner meets the limits (False: exit code 3).
    ranking: all candidates, best first; runner_up: the next after the winner. front: the trials no other
    beats in both figures. closest: the candidate nearest to the limits, to be shown when nothing qualifies.
    separable: whether the paired 95 % interval of winner and runner-up excludes 0; None when the verdicts per
    prompt are not stored.
    """

    winner: FinishedTrial | None
    qualified: bool
    ranking: tuple[FinishedTrial, ...]
    front: tuple[FinishedTrial, ...]
    runner_up: FinishedTrial | None
    closest: FinishedTrial | None
    separable: bool | None
    limits: Limits
    reason: str


@dataclass(frozen=True, slots=True)
class _Figures:
    """The exact figures of one candidate: share of unwanted outcomes, KL in 1e-6."""

    trial: FinishedTrial
    share: Fraction
    kl: int


def candidates(trials: Sequence[FinishedTrial], goal: Goal = "suppress") -> tuple[FinishedTrial, ...]:
    """The trials that may be chosen, by index: feasible, complete, finite, no edit twice."""
    chosen: dict[str, FinishedTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.index):
        if _figures(trial, goal) is not None:
            chosen.setdefault(canonical_key(trial.parameters), trial)
    return tuple(chosen.values())


def front_of(trials: Sequence[FinishedTrial], goal: Goal = "suppress") -> tuple[FinishedTrial, ...]:
    """The candidates that no other one matches or beats in both figures, by increasing KL."""
    return tuple(figures.trial for figures in _front(_all_figures(trials, goal)))


def knee_of(trials: Sequence[FinishedTrial], goal: Goal = "suppress") -> FinishedTrial | None:
    """The knee of the front (largest distance to its chord), or None without candidates."""
    front = _front(_all_figures(trials, goal))
    return front[knee(_points(front))].trial if front else None


def finalists(
    trials: Sequence[FinishedTrial], limits: Limits, count: int, goal: Goal = "suppress"
) -> tuple[FinishedTrial, ...]:
    """The `count` best of the front by the rule, to be confirmed on held-out prompts."""
    front = _front(_all_figures(trials, goal))
    return tuple(figures.trial for figures in _ranked(front, limits)[:count])


def select(
    trials: Sequence[FinishedTrial],
    limits: Limits,
    *,
    goal: Goal = "suppress",
    fallback: Fallback = "knee",
) -> Selection:
    """Applies the rule: among candidates within the limits the lowest rate, then KL, nearness to the knee,
    index.

    Give it the finalists with their held-out figures, or all trials where nothing was confirmed.
    """
    figures = _all_figures(trials, goal)
    front = _front(figures)
    ranked = _ranked(figures, limits)
    within = [entry for entry in ranked if _excess(entry, limits) == 0]
    winner: _Figures | None = within[0] if within else None
    if winner is None and fallback == "knee" and front:
        winner = front[knee(_points(front))]
    others = [entry for entry in ranked if entry is not winner]
    runner_up = others[0] if others and winner is not None else None
    separable = _separable(winner.trial, runner_up.trial) if winner and runner_up else None
    return Selection(
        winner=winner.trial if winner else None,
        qualified=bool(within),
        ranking=tuple(entry.trial for entry in ranked),
        front=tuple(entry.trial for entry in front),
        runner_up=runner_up.trial if runner_up else None,
        closest=ranked[0].trial if ranked else None,
        separable=separable,
        limits=limits,
        reason=_reason(limits, len(trials), len(ranked), within, winner, runner_up, separable, fallback),
    )


def _figures(trial: FinishedTrial, goal: Goal) -> _Figures | None:
    """Exact figures, or None for a trial that may not be chosen."""
    measured = trial.scores.measured
    numbers = [*trial.scores.objectives, *trial.scores.constraints.values()]
    if not all(_finite(value) for value in numbers) or not trial.scores.feasible:
        return None
    if measured.get("status", "complete") != "complete":
        return None
    divergence, rate = measured.get("kl_mean"), measured.get("rate")
    hits, total = measured.get("hits"), measured.get("n")
    if not isinstance(divergence, (int, float)) or not _finite(divergence):
        return None
    whole = isinstance(hits, int) and isinstance(total, int) and 0 <= hits <= total and total > 0
    if whole and not measured.get("graded"):
        assert isinstance(hits, int) and isinstance(total, int)
        share = Fraction(hits, total)
    elif isinstance(rate, (int, float)) and _finite(rate):
        share = Fraction(round(rate * _UNIT), _UNIT)
    else:
        return None
    return _Figures(trial, share if goal == "suppress" else 1 - share, round(divergence * _UNIT))


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _all_figures(trials: Sequence[FinishedTrial], goal: Goal) -> list[_Figures]:
    entries = [_figures(trial, goal) for trial in candidates(trials, goal)]
    return [entry for entry in entries if entry is not None]


def _front(entries: Sequence[_Figures]) -> list[_Figures]:
    front: list[_Figures] = []
    for entry in sorted(entries, key=lambda entry: (entry.kl, entry.share, entry.trial.index)):
        if not front or entry.share < front[-1].share:
            front.append(entry)
    return front


def _points(entries: Sequence[_Figures]) -> list[tuple[float, float]]:
    return [(entry.kl / _UNIT, float(entry.share)) for entry in entries]


def _ranked(entries: Sequence[_Figures], limits: Limits) -> list[_Figures]:
    """Within the limits by the rule, then the others by how far they miss the limits and by the rule."""
    if not entries:
        return []
    front = _front(entries)
    centre = front[knee(_points(front))]
    order = [centre, *(entry for entry in entries if entry is not centre)]
    nearness = {
        entry.trial.index: round(distance * _UNIT)
        for entry, distance in zip(order, distance_to(_points(order), 0), strict=True)
    }
    return sorted(
        entries,
        key=lambda entry: (
            _excess(entry, limits),
            entry.share,
            entry.kl,
            nearness[entry.trial.index],
            entry.trial.index,
        ),
    )


def _excess(entry: _Figures, limits: Limits) -> Fraction:
    """0 within the limits, else by how much they are missed, each relative to its limit."""
    # Through text: the float 0.15 is below 15/100, which must not reject 15 hits of 100.
    bound = max(Fraction(str(limits.max_kl)), Fraction(1, _UNIT))
    excess = max(Fraction(0), (Fraction(entry.kl, _UNIT) - bound) / bound)
    if limits.max_rate is not None:
        rate = Fraction(str(limits.max_rate))
        excess += max(Fraction(0), (entry.share - rate) / max(rate, Fraction(1, 100)))
    return excess


def _separable(winner: FinishedTrial, runner_up: FinishedTrial) -> bool | None:
    first, second = (_verdicts(trial.scores.measured.get("verdicts")) for trial in (winner, runner_up))
    if first is None or second is None or len(first) != len(second):
        return None
    interval = paired_rates(first, second)
    return interval.low > 0 or interval.high < 0


def _verdicts(stored: Json) -> list[float] | None:
    if isinstance(stored, (str, bytes)) or not isinstance(stored, Sequence):
        return None
    return [float(verdict) for verdict in stored if isinstance(verdict, int | float)]


def _reason(
    limits: Limits,
    total: int,
    eligible: int,
    within: Sequence[_Figures],
    winner: _Figures | None,
    runner_up: _Figures | None,
    separable: bool | None,
    fallback: Fallback,
) -> str:
    """The sentences that are printed and stored (R-SEL-03)."""
    rule = f"KL <= {limits.max_kl:g}"
    if limits.max_rate is not None:
        rule += f" and objective rate <= {limits.max_rate:g}"
    text = [f"Limits: {rule}. Of {total} trials {eligible} are valid and {len(within)} meet the limits."]
    if winner is None:
        text.append("None is chosen." if eligible else "None can be chosen.")
    elif within:
        text.append(f"Chosen: {_shown(winner)}, the lowest objective rate within the limits.")
    else:
        text.append(f"None qualifies; fallback {fallback}: {_shown(winner)}, the knee of the front.")
    if runner_up is not None:
        text.append(f"Runner-up: {_shown(runner_up)}.")
        verdict = {True: "Separable", False: "Not separable", None: "Separability unknown"}[separable]
        text.append(f"{verdict} (paired 95 % interval).")
    return " ".join(text)


def _shown(entry: _Figures) -> str:
    return f"trial {entry.trial.index} (objective rate {float(entry.share):.4f}, KL {entry.kl / _UNIT:.6f})"
