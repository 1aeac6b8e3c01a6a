# SPDX-License-Identifier: Apache-2.0
"""Everything a run measured, as one frozen record; console, JSON document, model card and manifest are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rate:
    """A behaviour rate: hits of n prompts with its 95 % Wilson interval (algorithms 7.7).

    mean: of scorers that grade, the mean degree in 0 ... 1; the interval is then that of the mean.
    """

    hits: int
    n: int
    low: float
    high: float
    mean: float | None = None

    @property
    def value(self) -> float:
        """The mean degree, hits / n where nothing is graded; 0 for an empty set."""
        if self.mean is not None:
            return self.mean
        return self.hits / self.n if self.n else 0.0

    @property
    def complement(self) -> Rate:
        """The rate of the other prompts."""
        mean = None if self.mean is None else 1.0 - self.mean
        return Rate(self.n - self.hits, self.n, 1.0 - self.high, 1.0 - self.low, mean)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Teacher-forced KL(base || edited) in nats per token over n prompts (algorithms 7.1).

    floor: KL of the base against itself in two batch shapes. first_token: the same at the first reply token only, for
    comparison with other tools. unstable: one prompt supplies over half of the mean.
    """

    mean: float
    standard_error: float
    median: float
    p95: float
    maximum: float
    first_token: float
    n: int
    tokens: int
    floor: float = 0.0
    worst_prompt: int = -1
    unstable: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """One model (base, trial, or reloaded files) measured on one pair of prompt sets.

    where: `search`, `held_out` or `saved`. rate: behaviour on the behaviour's prompts; over_rate: on prompts that
    should not show it; classes: how many replies fell in each class; replies: the texts, kept for front trials.
    mode: whether the model was allowed to think (R-MOD-53); thoughts: lengths in tokens and counts, empty in mode
    `off`; thinking: the same prompts in thinking mode, where both were measured (R-MOD-52). inverted: `rate` counts
    replies without the behaviour (goal `induce`), because that is what the search makes rare. beside: what the further
    scorers say of the same replies, by name.
    """

    where: str
    rate: Rate
    kl: Divergence | None
    over_rate: Rate | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)
    replies: Sequence[str] = ()
    mode: str = "off"
    thoughts: Mapping[str, float] = field(default_factory=dict)
    thinking: Measurement | None = None
    inverted: bool = False
    beside: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def behaviour(self) -> Rate:
        """Replies that show the behaviour, whatever the goal."""
        return self.rate.complement if self.inverted else self.rate


@dataclass(frozen=True, slots=True)
class TrialReport:
    """One trial of the front as the user sees it."""

    trial: int
    parameters: Mapping[str, object]
    search: Measurement
    held_out: Measurement | None = None
    flags: Sequence[str] = ()
    strengths: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the base model's reply and the edited model's."""

    prompt: str
    base: str
    edited: str


@dataclass(frozen=True, slots=True)
class CategoryRate:
    """The behaviour on the held-out prompts of one category, before and after (requirements R-CON-03)."""

    name: str
    before: Rate
    after: Rate


@dataclass(frozen=True, slots=True)
class RunReport:
    """The whole run.

    baseline: the unedited model on the prompts on which the chosen trial was judged; search_baseline: on those of the
    search. verified: measured again from the saved and reloaded files; None when nothing was saved. categories: of the
    prompts on which the chosen trial was judged; empty where they have none. controls: what the chosen trial has to
    beat on the same prompts, by name. verdict: `word`, `sentence` and the paired `difference` to the base.
    validation: the document of the validation report; empty where none was made.
    scorers: what judged trials and finalists, with the judging model that was really used.
    """

    status: str
    model: str
    behaviour: str
    goal: str
    strategy: str
    study: Mapping[str, object]
    settings: Mapping[str, object]
    baseline: Measurement
    noise_floor: float
    front: Sequence[TrialReport]
    chosen: TrialReport | None
    reason: str
    separable: str
    verified: Measurement | None
    verification: Mapping[str, object]
    output: str | None
    uploaded: str | None
    timings: Mapping[str, float]
    phases: Mapping[str, float]
    degradations: Sequence[str]
    coverage: Mapping[str, object]
    data: Mapping[str, object]
    environment: Mapping[str, object]
    examples: Sequence[Example] = ()
    categories: Sequence[CategoryRate] = ()
    controls: Mapping[str, Measurement] = field(default_factory=dict)
    verdict: Mapping[str, object] = field(default_factory=dict)
    scorers: Sequence[Mapping[str, object]] = ()
    validation: Mapping[str, object] = field(default_factory=dict)
    next_command: str = ""
    search_baseline: Measurement | None = None

    def to_document(self) -> dict[str, Any]:
        """The `--json` result (requirements R-FMT-03): JSON values only, with the flat keys that scripts read."""
        document = asdict(self)
        search = document.pop("search_baseline")
        if self.search_baseline is not None:
            search = flat_measurement(self.search_baseline)
        document["baseline"] = {**flat_measurement(self.baseline), "search": search}
        document["front"] = [flat_trial(trial) for trial in self.front]
        document["chosen"] = None if self.chosen is None else flat_trial(self.chosen)
        document["controls"] = {name: flat_measurement(found) for name, found in self.controls.items()}
        document["verified"] = None if self.verified is None else flat_measurement(self.verified)
        return document


def flat_measurement(measurement: Measurement) -> dict[str, Any]:
    """A measurement with the keys `behaviour_rate`, `n`, `interval`, `kl_mean`, `kl_first_token` at top level."""
    kl, shown = measurement.kl, measurement.behaviour
    return {
        "behaviour_rate": shown.value,
        "hits": shown.hits,
        "n": shown.n,
        "graded": shown.mean is not None,
        "interval": [shown.low, shown.high],
        "kl_mean": None if kl is None else kl.mean,
        "kl_first_token": None if kl is None else kl.first_token,
        "kl": None if kl is None else asdict(kl),
        "over_rate": None if measurement.over_rate is None else asdict(measurement.over_rate),
        "classes": dict(measurement.classes),
        "guards": dict(measurement.guards),
        "where": measurement.where,
        "thinking_mode": measurement.mode,
        "thoughts": dict(measurement.thoughts),
        "beside": {name: {**asdict(rate), "value": rate.value} for name, rate in measurement.beside.items()},
        "thinking": None if measurement.thinking is None else flat_measurement(measurement.thinking),
    }


def flat_trial(trial: TrialReport) -> dict[str, Any]:
    """A trial as a flat document: the held-out figures where there are some, the search figures beside them."""
    judged = trial.held_out or trial.search
    return {
        "trial": trial.trial,
        **flat_measurement(judged),
        "search": flat_measurement(trial.search),
        "held_out": None if trial.held_out is None else flat_measurement(trial.held_out),
        "parameters": dict(trial.parameters),
        "flags": list(trial.flags),
        "strengths": dict(trial.strengths),
    }
