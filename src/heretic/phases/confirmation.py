# SPDX-License-Identifier: Apache-2.0
"""Step 8 of the flow: finalists, controls and saved files measured on prompts not used before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from heretic.decoding import Engine, Reply, choose_engine
from heretic.evaluator import Evaluator, Outcome
from heretic.interventions.controls import random_control
from heretic.interventions.hooks import Edits
from heretic.interventions.plan import Plan
from heretic.model.model import Model
from heretic.phases.evaluation import make_evaluator, measurement, rate_from, sides, thinking_model
from heretic.phases.scoring import beside
from heretic.phases.state import Run
from heretic.report import Example, Measurement, Rate
from heretic.validation.panel import compare_replies, panel_guards

RANDOM: Final = "random directions"
INSTRUCTION: Final = "instruction"
"""Names of the controls."""


class Confirmation:
    """Held-out prompts, measured for the base once and then for each finalist (algorithms section 8, confirmation).

    Finalists always get all prompts, and replies of full length: nothing stops them early.

    Where no held-out set could be had the evaluation prompts stand in, and `held_out` is False. `second` measures the
    same in thinking mode where the setting `thinking` is `auto` and the model can (R-MOD-52).
    """

    def __init__(self, run: Run, *, thinking: bool = False) -> None:
        bundle = run.bundle
        assert bundle is not None
        bad, good = bundle.bad_confirmation, bundle.good_confirmation
        self.held_out = bad is not None and good is not None
        if bad is None or good is None:
            bad, good = bundle.bad_evaluation, bundle.good_evaluation
        self.bad, self.good = (entry.prompts for entry in sides(run, bad, good))
        self.where = ("held_out" if self.held_out else "search") + ("_thinking" if thinking else "")
        self.evaluator = make_evaluator(
            run, self.bad, self.good, early_exit=False, thinking=thinking, final=True
        )
        over = None if run.induces else bundle.over_behaviour
        self.over = [] if over is None else self.evaluator.model.encoder.encode_all(over.prompts)
        self.over_requests = [] if over is None else list(over.texts)
        self.beside = beside(run)
        self.over_replies: list[Reply] = []
        self.base: Outcome | None = None
        self.base_over: Rate | None = None
        self.base_measured: Measurement | None = None
        self.floor = 0.0
        self._run = run
        self.second: Confirmation | None = None
        if run.settings.thinking == "auto" and not thinking:
            self._add_second()

    def _add_second(self) -> None:
        if self.evaluator.model.encoder.can_think:
            self.second = Confirmation(self._run, thinking=True)
            return
        self._degrade("thinking = auto: this model shows no thinking mode, so there is one measurement only")

    def _degrade(self, note: str) -> None:
        if note not in self._run.degradations:
            self._run.degradations.append(note)

    def measure_base(self) -> Measurement:
        """The unedited model on the held-out prompts."""
        self.base = self.evaluator.base_outcome()
        self.evaluator.set_reference()
        self.floor = self.evaluator.noise_floor()
        self.over_replies = self.evaluator.generate(self.over, self.evaluator.lengths.response)
        self.base_over = self._over_rate(self.over_replies)
        second = None if self.second is None else self.second.measure_base()
        found = measurement(self.where, self.base, None, None, self.base_over, inverted=self._run.induces)
        found = replace(found, beside=self._beside(self.base))
        if found.mode == "on" and not found.thoughts["with_thought"]:
            self._degrade("thinking is on, but no reply of the base model held a thought")
        self.base_measured = replace(found, thinking=second)
        return self.base_measured

    def measure_trials(self, trials: Sequence[Edits]) -> list[tuple[Outcome, Measurement]]:
        """Each trial on the held-out prompts at full length, then on the borderline prompts."""
        outcomes = self.evaluator.score(trials)
        over = self.evaluator.replies_under(trials, self.over, self.evaluator.lengths.response)
        results = [
            (outcome, self._measured(outcome, replies))
            for outcome, replies in zip(outcomes, over, strict=True)
        ]
        if self.second is None:
            return results
        pairs = zip(results, self.second.measure_trials(trials), strict=True)
        return [(outcome, replace(found, thinking=more)) for (outcome, found), (_, more) in pairs]

    def measure_controls(self, plan: Plan, instruction: str) -> dict[str, tuple[Outcome, Measurement]]:
        """What the chosen edit is compared with (algorithms section 8): the same strengths along random directions, and
        the unedited model that is told in the prompt to do without the behaviour (no KL: its prompts are others).
        """
        run = self._run
        writers = run.writers
        random = random_control(plan, seed=run.settings.seed).edits(writers)
        found = {RANDOM: self.measure_trials([random])[0]}
        if instruction:
            told = [replace(prompt, text=f"{prompt.text} {instruction}") for prompt in self.bad]
            asked = make_evaluator(run, told, self.good[:1], early_exit=False, final=True)
            outcome = asked.base_outcome()
            shown = measurement(self.where, outcome, None, None, inverted=run.induces)
            found[INSTRUCTION] = (outcome, shown)
        return found

    def measure_other(self, model: Model, engine: Engine) -> tuple[Outcome, Measurement]:
        """Another model (reloaded files, a second model) against the same base replies."""
        other = Evaluator(
            model,
            engine,
            self.evaluator.scorer,
            bad=self.bad,
            good=self.good,
            lengths=self.evaluator.lengths,
            width=self.evaluator.decoding_batches.width,
            early_exit=False,
        )
        other.reference = self.evaluator.reference
        outcome = other.score([{}])[0]
        found = self._measured(outcome, other.generate(self.over, other.lengths.response))
        if self.second is not None:
            spoken = thinking_model(self._run, model)
            second_engine, _ = choose_engine(spoken, self._run.settings.engine)
            found = replace(found, thinking=self.second.measure_other(spoken, second_engine)[1])
        return outcome, found

    def _measured(self, outcome: Outcome, over: Sequence[Reply]) -> Measurement:
        kl = None if outcome.kl is None else replace(outcome.kl, floor=self.floor)
        found = measurement(
            self.where, outcome, kl, self.base, self._over_rate(over), inverted=self._run.induces
        )
        guards = {**found.guards, **self._length_guard(over)} if found.guards else found.guards
        return replace(found, beside=self._beside(outcome), guards=guards)

    def _length_guard(self, replies: Sequence[Reply]) -> dict[str, float]:
        """The guard on the length of replies to borderline prompts that neither model declines (R-EVA-24)."""
        judge = self.evaluator.scorer.judge
        shown = [
            judge(self.over_requests, [reply.text for reply in side]) for side in (self.over_replies, replies)
        ]
        pairs = [
            pair
            for pair, verdicts in zip(
                zip(self.over_replies, replies, strict=True), zip(*shown, strict=True), strict=True
            )
            if not any(verdict.hit for verdict in verdicts)
        ]
        if not pairs:
            return {}
        panel = compare_replies([base for base, _ in pairs], [edited for _, edited in pairs])
        by_length = self.evaluator.scorer.name in ("length", "padding")
        guards = panel_guards(panel, length_behaviour=by_length)
        return {name: value for name, value in guards.items() if name == "length_ratio"}

    def _beside(self, outcome: Outcome) -> dict[str, Rate]:
        """What the further scorers say of the same replies."""
        requests = [prompt.text for prompt in self.bad]
        texts = [reply.text for reply in outcome.replies]
        if len(texts) != len(requests):
            return {}
        return {name: rate_from(scorer.judge(requests, texts)) for name, scorer in self.beside.items()}

    def _over_rate(self, replies: Sequence[Reply]) -> Rate | None:
        if not replies:
            return None
        verdicts = self.evaluator.scorer.judge(self.over_requests, [reply.text for reply in replies])
        return rate_from(verdicts)


def examples(requests: Sequence[str], base: Outcome, edited: Outcome, count: int = 3) -> list[Example]:
    """Prompts on which the base showed the behaviour and the edited model does not, else the first ones."""
    changed = [
        number
        for number in range(min(len(base.judged), len(edited.judged)))
        if base.judged[number].hit and not edited.judged[number].hit and edited.conditions[number] == "valid"
    ]
    chosen = (changed or list(range(len(base.replies))))[:: max(1, len(changed) // count)][:count]
    return [Example(requests[n], base.replies[n].text, edited.replies[n].text) for n in chosen]
