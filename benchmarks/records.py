# SPDX-License-Identifier: Apache-2.0
"""What one benchmark run measured, the same record for both programs, and the figures derived from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from heretic.linalg.pareto import hypervolume, pareto_front

OURS = "heretic-workbench"
THEIRS = "heretic-llm"


class BenchmarkError(Exception):
    """A program under measurement did not do what the harness needs; the message carries its last output."""


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of one run. Times in seconds since the process was started; None where the program told
    nothing.

    hits of n: replies of the behaviour's prompts that show it. kl: KL(base || edited) of the first reply
    token in nats, which both programs measure.
    """

    number: int
    hits: int | None = None
    n: int | None = None
    kl: float | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def measured(self) -> bool:
        """Whether both objectives are known."""
        return self.hits is not None and self.kl is not None and bool(self.n)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of one program.

    total_s: process start to the trial menu (heretic-llm) or to the end of the process with the chosen model
    saved and measured again (ours). first_start_s, first_trial_s: process start to the moment at which the first
    trial began, and to the first finished one. per_trial_s:
    span from the start of the first to the end of the last trial, divided by their number. trial_seconds:
    each trial alone (of a batch of trials, the batch's time divided by its size). peak_memory_bytes: resident
    memory of the process tree.
    """

    program: str
    seed: int
    total_s: float
    first_trial_s: float
    per_trial_s: float
    trial_count: int
    peak_memory_bytes: int | None
    base_hits: int
    base_n: int
    trials: Sequence[TrialRecord] = ()
    chosen: TrialRecord | None = None
    trial_seconds: Sequence[float] = ()
    timing_source: str = ""
    first_start_s: float | None = None
    self_reported: dict[str, float] = field(default_factory=dict)

    @property
    def base_rate(self) -> float:
        """Behaviour rate of the unedited model; 0 if nothing was measured.

        A rate, because ours reports its baseline on other prompts (held out) than the trials.
        """
        return self.base_hits / self.base_n if self.base_n else 0.0


@dataclass(frozen=True, slots=True)
class JudgedRecord:
    """One saved model measured by `benchmarks.judge`: `trial` of the run of `program` with `seed`."""

    program: str
    seed: int
    trial: int
    verdict: dict[str, object]


def points_of(
    trials: Sequence[TrialRecord], base_rate: float, kl_reference: float
) -> list[tuple[float, float]]:
    """Points (KL / kl_reference, rate / base rate) of the measured trials, both minimised (algorithms 8)."""
    points: list[tuple[float, float]] = []
    for trial in trials:
        if trial.measured and base_rate > 0:
            assert trial.hits is not None and trial.kl is not None and trial.n
            points.append((max(0.0, trial.kl) / kl_reference, trial.hits / trial.n / base_rate))
    return points


def front_of(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The measured trials that no other dominates, fewest hits first."""
    known = [trial for trial in trials if trial.measured]
    indices = pareto_front([(trial.kl or 0.0, float(trial.hits or 0)) for trial in known])
    return sorted((known[index] for index in indices), key=lambda trial: (trial.hits or 0, trial.kl or 0.0))


def best_of(trials: Sequence[TrialRecord], kl_limit: float) -> TrialRecord | None:
    """The rule of R-SEL-01 on search figures: fewest hits with KL within the limit, then lower KL."""
    allowed = [trial for trial in front_of(trials) if (trial.kl or 0.0) <= kl_limit]
    return allowed[0] if allowed else None


def final_hypervolume(run: RunRecord, kl_reference: float) -> float:
    """Hypervolume of everything the run found, reference point (kl_reference, base rate), between 0 and 1."""
    return hypervolume(points_of(run.trials, run.base_rate, kl_reference))


def hypervolume_at(run: RunRecord, seconds: float, kl_reference: float) -> float:
    """Hypervolume of the trials that had finished `seconds` after the start."""
    done = [trial for trial in run.trials if trial.end_s is not None and trial.end_s <= seconds]
    return hypervolume(points_of(done, run.base_rate, kl_reference))


def seconds_to_reach(run: RunRecord, target: float, kl_reference: float) -> float | None:
    """First moment at which the run's hypervolume was at least `target`; None if it never was."""
    for end in sorted(trial.end_s for trial in run.trials if trial.end_s is not None):
        if hypervolume_at(run, end, kl_reference) >= target - 1e-12:
            return end
    return None


def middle(values: Sequence[float]) -> float:
    """Median; 0 for nothing."""
    return median(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """y = slope x + intercept by least squares; r_squared: share of the variance of y that it explains."""

    slope: float
    intercept: float
    r_squared: float


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The line through points (x, y); R^2 = 1 - residual / total sum of squares, and 1 where y does not vary."""
    assert len({x for x, _ in points}) >= 2, "a line needs two different x"
    centre_x, centre_y = mean(x for x, _ in points), mean(y for _, y in points)
    spread = sum((x - centre_x) ** 2 for x, _ in points)
    slope = sum((x - centre_x) * (y - centre_y) for x, y in points) / spread
    intercept = centre_y - slope * centre_x
    residual = sum((y - slope * x - intercept) ** 2 for x, y in points)
    total = sum((y - centre_y) ** 2 for _, y in points)
    return Line(slope, intercept, 1.0 - residual / total if total > 0 else 1.0)


def trial_seconds(trials: Sequence[TrialRecord]) -> list[float]:
    """Seconds of each trial; trials that ran together in a batch share its time equally."""
    timed = sorted(
        (t for t in trials if t.start_s is not None and t.end_s is not None), key=lambda t: t.end_s or 0
    )
    result: list[float] = []
    batch: list[TrialRecord] = []
    for trial in timed:
        # A trial that starts before the first of the batch has ended runs together with it.
        if batch and (trial.start_s or 0.0) >= (batch[0].end_s or 0.0):
            result += _share(batch)
            batch = []
        batch.append(trial)
    return result + _share(batch)


def _share(batch: Sequence[TrialRecord]) -> list[float]:
    if not batch:
        return []
    span = max(t.end_s or 0.0 for t in batch) - min(t.start_s or 0.0 for t in batch)
    return [span / len(batch)] * len(batch)
