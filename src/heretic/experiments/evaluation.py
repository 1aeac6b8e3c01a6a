# SPDX-License-Identifier: Apache-2.0
"""Replies of the base, of the edited model and of both controls to the held-out prompts (R-XPT-03, R-XPT-04).

Base and edit are measured from one load: the edit and the control are hooks on the loaded model. Unrelated models are
loaded one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from heretic.config import Resolved
from heretic.console import Console
from heretic.decoding.protocol import Reply
from heretic.evaluator import Evaluator, Outcome
from heretic.exceptions import DatasetError
from heretic.experiments.results import BASE, EDITED, INSTRUCTION, RANDOM
from heretic.interventions.controls import random_control
from heretic.interventions.hooks import Edits
from heretic.interventions.placement import Parameters
from heretic.interventions.plan import Plan
from heretic.model.model import Model
from heretic.phases import loading, steps
from heretic.phases.evaluation import detect_response_prefix, make_evaluator
from heretic.phases.method import captures_of
from heretic.phases.state import Run
from heretic.prompts import Prompt
from heretic.report import Divergence
from heretic.stop import StopFlag


@dataclass(slots=True)
class Measured:
    """What was measured, side by side. bad, good: side -> replies in the order of the prompts; objective: side -> mean
    value of the pack's scorer on the bad prompts; kl, conditions: by side. notes: what could not be done."""

    bad: dict[str, Sequence[Reply]] = field(default_factory=dict)
    good: dict[str, Sequence[Reply]] = field(default_factory=dict)
    objective: dict[str, float] = field(default_factory=dict)
    kl: dict[str, dict[str, float]] = field(default_factory=dict)
    conditions: dict[str, dict[str, int]] = field(default_factory=dict)
    floor: float = 0.0
    notes: list[str] = field(default_factory=list)

    def add(self, side: str, outcome: Outcome, good: Sequence[Reply]) -> None:
        """Keep one side; a side whose replies could not be made is a note."""
        if outcome.status != "complete":
            self.notes.append(f"{side}: not measured ({outcome.reason or outcome.status})")
            return
        self.bad[side], self.good[side] = outcome.replies, good
        self.objective[side] = outcome.rate
        self.conditions[side] = dict(Counter(name for name in outcome.conditions if name != "valid"))
        if outcome.kl is not None:
            self.kl[side] = flat_kl(outcome.kl)


def flat_kl(kl: Divergence) -> dict[str, float]:
    """The figures of a divergence that results keep."""
    names = ("mean", "standard_error", "median", "p95", "maximum", "first_token", "n")
    return {name: value for name, value in asdict(kl).items() if name in names}


@dataclass(slots=True, eq=False)
class Scene:
    """A loaded model and the held-out prompts. limit: tokens of scored replies."""

    run: Run
    bad: Sequence[Prompt]
    good: Sequence[Prompt]
    limit: int

    @property
    def model(self) -> Model:
        """The loaded model."""
        assert self.run.model is not None
        return self.run.model

    def replies(self, evaluator: Evaluator, prompts: Sequence[Prompt]) -> list[Reply]:
        """Greedy replies of the model as it stands."""
        return evaluator.generate(evaluator.model.encoder.encode_all(prompts), self.limit)


def open_scene(resolved: Resolved, *, console: Console, stop: StopFlag) -> Scene:
    """Load prompts and model. Raises `DatasetError` where there are no held-out prompts, and what loading raises."""
    run = Run(resolved, console, stop)
    source = loading.find_model(run.settings)
    run.bundle = steps.load_prompts(run)
    bad, good = run.bundle.bad_confirmation, run.bundle.good_confirmation
    if bad is None or good is None:
        raise DatasetError(
            "The experiment has no held-out prompts of both classes.",
            hint="Prepare it again; bad_confirmation_prompts and good_confirmation_prompts have to be there.",
        )
    run.model = steps.load_network(run, source)
    return Scene(run, bad.prompts, good.prompts, run.settings.max_response_length)


def plan_of(scene: Scene, parameters: Parameters) -> Plan:
    """The edit of a trial, from directions extracted again from the same prompts by the same settings."""
    run = scene.run
    run.evaluator, run.baseline = steps.measure_base(run)  # sources of directions are judged by it
    run.extraction = steps.extract_without_study(run, captures_of(run))
    run.context = steps.plan_context(run)
    return run.plan(parameters)


def with_length(scene: Scene, tokens: int) -> Scene:
    """The scene with replies scored at another length than the search's; directions have to be there already."""
    run = scene.run
    settings = run.settings.model_copy(
        update={
            "max_response_length": tokens,
            "refusal_check_tokens": min(run.settings.refusal_check_tokens, tokens),
        }
    )
    run.resolved, run.scorer = replace(run.resolved, settings=settings), None
    return replace(scene, limit=tokens)


def measure_edit(scene: Scene, plan: Plan, instruction: str) -> Measured:
    """Base, edit, random directions of equal strength, and the base that is told to do without (from one load)."""
    run = scene.run
    with run.phase("experiment", "Measuring base, edit and controls on the held-out prompts") as phase:
        evaluator, found = _measured_base(scene, instruction)
        sides: dict[str, Edits] = {
            EDITED: plan.edits(run.writers),
            RANDOM: random_control(plan, seed=run.settings.seed).edits(run.writers),
        }
        good = run.model.encoder.encode_all(scene.good) if run.model is not None else []
        for (side, edits), outcome in zip(sides.items(), evaluator.score(list(sides.values())), strict=True):
            replies = (
                [] if outcome.status != "complete" else evaluator.replies_under([edits], good, scene.limit)[0]
            )
            found.add(side, outcome, replies)
        phase.result(f"{len(scene.bad)} + {len(scene.good)} prompts")
    return found


def measure_other(scene: Scene, other: Resolved, instruction: str) -> tuple[Measured, Model]:
    """The base, then, after it has left the memory, another model on the same prompts.

    other: settings that name the second model. Without a common vocabulary there is no KL, and a note says so.
    """
    run = scene.run
    detect_response_prefix(run)
    with run.phase("experiment", f"Measuring {scene.model.source.basename}"):
        evaluator, found = _measured_base(scene, instruction)
    torch.nn.Module.to(scene.model.network, "meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    second = Run(other, run.console, run.stop, bundle=run.bundle)
    source = loading.find_model(second.settings)
    second.model = steps.load_network(second, source)
    detect_response_prefix(second)
    with run.phase("other", f"Measuring {source.basename}"):
        judge = make_evaluator(second, scene.bad, scene.good, early_exit=False)
        if same_vocabulary(scene.model, second.model):
            judge.reference = evaluator.reference
            outcome = judge.score([{}])[0]
        else:
            outcome = judge.base_outcome()
            found.notes.append("the two models have different vocabularies, so there is no KL between them")
        found.add(EDITED, outcome, scene.replies(judge, scene.good))
    return found, second.model


def same_vocabulary(first: Model, second: Model) -> bool:
    """Whether a token id means the same to both models."""
    one, two = (model.encoder.tokenizer.get_vocab() for model in (first, second))
    sizes = {int(model.network.config.get_text_config(decoder=True).vocab_size) for model in (first, second)}
    return bool(one == two) and len(sizes) == 1


def _measured_base(scene: Scene, instruction: str) -> tuple[Evaluator, Measured]:
    """The unedited model, as it is and told in the prompt to do without the behaviour."""
    found = Measured()
    evaluator = make_evaluator(scene.run, scene.bad, scene.good, early_exit=False)
    found.add(BASE, evaluator.base_outcome(), scene.replies(evaluator, scene.good))
    evaluator.set_reference()
    found.floor = evaluator.noise_floor()
    if instruction:
        asked = make_evaluator(scene.run, told(scene.bad, instruction), scene.good[:1], early_exit=False)
        found.add(INSTRUCTION, asked.base_outcome(), scene.replies(asked, told(scene.good, instruction)))
    return evaluator, found


def told(prompts: Sequence[Prompt], instruction: str) -> list[Prompt]:
    """The prompts with the instruction behind them."""
    return [replace(prompt, text=f"{prompt.text} {instruction}") for prompt in prompts]


def by_prompt(measured: Mapping[str, Sequence[Reply]], place: int) -> dict[str, str]:
    """Side -> reply to one prompt."""
    return {side: replies[place].text for side, replies in measured.items()}
