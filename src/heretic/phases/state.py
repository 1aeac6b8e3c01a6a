# SPDX-License-Identifier: Apache-2.0
"""What a run has made so far, handed from step to step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heretic.config import Resolved, Settings
from heretic.console import Console, Phase
from heretic.decoding.protocol import Engine
from heretic.evaluator import Evaluator, Lengths, Outcome
from heretic.interventions.hooks import Edits
from heretic.interventions.placement import Parameters, PlanContext
from heretic.interventions.plan import Plan
from heretic.interventions.planners import STRATEGIES
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.phases.dataset_loading import DatasetBundle
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.scorers.protocol import ReplyScorer
from heretic.stop import StopFlag

if TYPE_CHECKING:
    from heretic.phases.validation_base import ValidationBase, ValidationData
    from heretic.study.state import Study


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """The unedited model on one pair of prompt sets; `late` counts hits that start after the first check point."""

    outcome: Outcome
    floor: float
    late: int = 0

    @property
    def rate(self) -> float:
        """Behaviour rate of the unedited model."""
        return self.outcome.rate


@dataclass(slots=True, eq=False)
class Run:
    """The workspace of one run; later steps fill later fields. `seconds` collects the duration of each phase.

    questions: what validation asks, loaded before the weights; validation: the unedited model's answers, once needed.
    scorer: the objective of trials; judge: of finalists and saved files, which a model may judge as well.
    """

    resolved: Resolved
    console: Console
    stop: StopFlag
    started: float = 0.0
    bundle: DatasetBundle | None = None
    model: Model | None = None
    engine: Engine | None = None
    questions: ValidationData | None = None
    validation: ValidationBase | None = None
    scorer: ReplyScorer | None = None
    judge: ReplyScorer | None = None
    evaluator: Evaluator | None = None
    baseline: Baseline | None = None
    extraction: DirectionExtractionResult | None = None
    context: PlanContext | None = None
    study: Study | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    degradations: list[str] = field(default_factory=list)
    deferred: list[Callable[[], None]] = field(default_factory=list)
    trials_here: int = 0
    first_trial_s: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.started or self.console.started

    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return self.resolved.settings

    @property
    def induces(self) -> bool:
        """The goal is more of the behaviour."""
        return self.settings.goal == "induce"

    @property
    def lengths(self) -> Lengths:
        """Reply lengths in tokens."""
        settings = self.settings
        return Lengths(
            settings.max_response_length, settings.refusal_check_tokens, settings.kl_divergence_tokens
        )

    @contextmanager
    def phase(self, name: str, title: str) -> Iterator[Phase]:
        """A step shown on the console and timed under `name` (requirements R-FLOW-12)."""
        begin = time.monotonic()
        with self.console.phase(title) as phase:
            yield phase
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def do_deferred(self) -> None:
        """Work that nobody waits for, once the first trials are in."""
        while self.deferred:
            self.deferred.pop(0)()

    def plan(self, parameters: Parameters) -> Plan:
        """The plan of a trial's parameters under the run's strategy."""
        assert self.context is not None
        return STRATEGIES[self.settings.strategy](parameters, self.context)

    @property
    def writers(self) -> Writers:
        """The writers of the loaded model."""
        assert self.model is not None
        return Writers(self.model.network)

    def edits(self, parameters: Parameters) -> Edits:
        """The edits of a trial's parameters."""
        return self.plan(parameters).edits(self.writers)
