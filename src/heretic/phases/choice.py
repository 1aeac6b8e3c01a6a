# SPDX-License-Identifier: Apache-2.0
"""Steps 8 and 9 of the flow: confirm the best of the front on held-out prompts, then choose by the stated rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from heretic.constants import KL_FLOOR
from heretic.evaluator import Outcome
from heretic.exceptions import ConfigurationError
from heretic.phases.confirmation import Confirmation
from heretic.phases.evaluation import rate_of
from heretic.phases.state import Run
from heretic.report import Divergence, Measurement, Rate, TrialReport
from heretic.study.selection import Limits, Selection, candidates, finalists, front_of, select
from heretic.study.types import FinishedTrial, Json, Scores

OVER_MARGIN = 0.03
"""The behaviour on borderline prompts may exceed the base's by at most this (requirements R-EVA-24)."""


@dataclass(frozen=True, slots=True, eq=False)
class Confirmed:
    """A finalist with its held-out figures."""

    trial: FinishedTrial
    outcome: Outcome
    measurement: Measurement

    def as_trial(self, kl_scale: float, base_over: float | None) -> FinishedTrial:
        """The finalist in the form that the selection rule judges, with held-out figures in place of those of the
        search. A finalist without a finite KL breaks a constraint."""
        kl = self.measurement.kl
        constraints = dict(self.measurement.guards)
        constraints["finite"] = 1.0 if kl is None else 0.0
        over = self.measurement.over_rate
        if over is not None and base_over is not None:
            constraints["over_behaviour"] = over.value - base_over - OVER_MARGIN
        measured: dict[str, Json] = {
            "status": "complete",
            "rate": self.measurement.rate.value,
            "hits": self.measurement.rate.hits,
            "n": self.measurement.rate.n,
            "graded": self.measurement.rate.mean is not None,
            "kl_mean": None if kl is None else kl.mean,
            "verdicts": [round(judgement.value, 4) for judgement in self.outcome.judged],
        }
        cost = float("inf") if kl is None else max(kl.mean, KL_FLOOR) / kl_scale
        return replace(self.trial, scores=Scores((self.measurement.rate.value, cost), constraints, measured))

    def flags(self, kl_scale: float, base_over: float | None) -> list[str]:
        """Names of broken guards."""
        trial = self.as_trial(kl_scale, base_over)
        return [name for name, value in trial.scores.constraints.items() if value > 0]


def limits(run: Run) -> Limits:
    """The rule's bounds from the settings."""
    return Limits(run.settings.select_max_kl, run.settings.select_max_rate)


def confirm(
    run: Run, confirmation: Confirmation, trials: Sequence[FinishedTrial], count: int | None = None
) -> list[Confirmed]:
    """The best of the front (or the one the user named) measured on the held-out prompts."""
    chosen = list(finalists(trials, limits(run), count or run.settings.finalists))
    if run.settings.trial is not None:
        chosen = [named_trial(trials, run.settings.trial)]
    if not chosen:
        return []
    results = confirmation.measure_trials([run.edits(trial.parameters) for trial in chosen])
    return [
        Confirmed(trial, outcome, measurement)
        for trial, (outcome, measurement) in zip(chosen, results, strict=True)
    ]


def named_trial(trials: Sequence[FinishedTrial], index: int) -> FinishedTrial:
    """Trial `index`; `ConfigurationError` naming what there is."""
    for trial in trials:
        if trial.index == index:
            return trial
    known = ", ".join(str(trial.index) for trial in front_of(trials))
    raise ConfigurationError(
        f"There is no finished trial {index}.", hint=f"Trials of the front: {known or 'none'}."
    )


def choose(run: Run, confirmation: Confirmation, confirmed: Sequence[Confirmed]) -> Selection:
    """The rule of requirements 7.5 applied to the held-out figures."""
    judged = [
        entry.as_trial(run.settings.kl_divergence_scale, base_over(confirmation)) for entry in confirmed
    ]
    if run.settings.trial is None:
        return select(judged, limits(run), fallback=run.settings.select_fallback)
    selection = select(judged, limits(run), fallback="knee")
    reason = f"trial {run.settings.trial} was named by the user"
    return replace(selection, winner=judged[0], qualified=True, reason=reason)


def base_over(confirmation: Confirmation) -> float | None:
    """Behaviour rate of the base on the borderline prompts."""
    return None if confirmation.base_over is None else confirmation.base_over.value


def trial_reports(
    run: Run, confirmation: Confirmation, trials: Sequence[FinishedTrial], confirmed: Sequence[Confirmed]
) -> list[TrialReport]:
    """The front for tables and documents: finalists first by the rule, then the rest by KL."""
    scale, over = run.settings.kl_divergence_scale, base_over(confirmation)
    by_index = {entry.trial.index: entry for entry in confirmed}
    front = {trial.index: trial for trial in front_of(trials)}
    order = [entry.trial for entry in confirmed] + [t for i, t in front.items() if i not in by_index]
    reports = []
    for trial in order:
        entry = by_index.get(trial.index)
        reports.append(
            TrialReport(
                trial=trial.index,
                parameters=dict(trial.parameters),
                search=replace(
                    search_measurement(trial),
                    mode="on" if run.settings.thinking == "on" else "off",
                    inverted=run.induces,
                ),
                held_out=None if entry is None else entry.measurement,
                flags=[] if entry is None else entry.flags(scale, over),
                strengths=strengths_of(trial),
            )
        )
    return reports


def strengths_of(trial: FinishedTrial) -> dict[str, list[float]]:
    """Effective strengths as stored with the trial."""
    stored = trial.scores.measured.get("strengths")
    if not isinstance(stored, Mapping):
        return {}
    return {str(path): [float(str(value)) for value in _sequence(values)] for path, values in stored.items()}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else []


def _number(measured: Mapping[str, object], name: str) -> float:
    value = measured.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def search_measurement(trial: FinishedTrial) -> Measurement:
    """A stored trial's figures in the report's form."""
    measured = trial.scores.measured
    # A trial that was cut short, which only the user can name, has no count and perhaps no KL.
    counted = measured.get("hits") is not None
    hits, n = (int(_number(measured, name)) if counted else 0 for name in ("hits", "n"))
    kl = Divergence(
        mean=_number(measured, "kl_mean"),
        standard_error=_number(measured, "kl_standard_error"),
        median=_number(measured, "kl_median"),
        p95=_number(measured, "kl_p95"),
        maximum=_number(measured, "kl_maximum"),
        first_token=_number(measured, "kl_first_token"),
        n=int(_number(measured, "kl_n")),
        tokens=int(_number(measured, "kl_tokens")),
        worst_prompt=int(_number(measured, "kl_worst_prompt")),
        unstable=bool(measured.get("kl_unstable")),
    )
    known = measured.get("kl_mean") is not None
    guards = {
        name: value
        for name, value in trial.scores.constraints.items()
        if name not in ("kl", "effect", "race")
    }
    classes = measured.get("classes")
    counts = {str(k): int(str(v)) for k, v in classes.items()} if isinstance(classes, Mapping) else {}
    replies = [str(text) for text in _sequence(measured.get("samples"))]
    return Measurement(
        where="search",
        rate=_stored_rate(measured, hits, n),
        kl=kl if known else None,
        guards=guards,
        classes=counts,
        replies=replies,
    )


def _stored_rate(measured: Mapping[str, object], hits: int, n: int) -> Rate:
    """Counted, or the stored mean degree with its interval."""
    interval = _sequence(measured.get("interval"))
    if not measured.get("graded") or len(interval) != 2:
        return rate_of(hits, n)
    low, high = (float(str(value)) for value in interval)
    return Rate(hits, n, low, high, _number(measured, "rate"))


def separability(selection: Selection) -> str:
    """In words: is the winner really better than the runner-up (requirements R-GEN-06)."""
    if selection.winner is None or selection.runner_up is None:
        return "no runner-up"
    words = {True: "separable from", False: "not separable from", None: "not compared with"}
    return f"trial {selection.winner.index} is {words[selection.separable]} trial {selection.runner_up.index}"


def usable(trials: Sequence[FinishedTrial]) -> int:
    """How many trials may be chosen at all."""
    return len(candidates(trials))
