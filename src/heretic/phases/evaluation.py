# SPDX-License-Identifier: Apache-2.0
"""Steps 5 and 8 of the flow: the base measured once, and finalists confirmed on prompts not used before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from heretic.decoding import Engine, Reply, choose_engine
from heretic.evaluator import Evaluator, Outcome
from heretic.exceptions import DatasetError
from heretic.interventions.hooks import Edits
from heretic.linalg.intervals import bonett_price, wilson
from heretic.model.model import Model
from heretic.phases.state import Baseline, Run
from heretic.prompts import Prompt
from heretic.report import Divergence, Example, Measurement, Rate
from heretic.scorers import ReplyScorer, build_scorer

LATE_SHARE = 0.02
PREFIX_PROMPTS = 12
PREFIX_TOKENS = 24
GUARD_MARGIN = 0.05
THINK = "<think>"
"""A model that opens every reply with this is given a closed, empty thought instead (requirements R-MOD-50)."""


def make_scorer(run: Run) -> ReplyScorer:
    """The behaviour's scorer of replies from the settings (requirements R-EVA-03)."""
    settings = run.settings
    table: dict[str, object] = {
        "core": settings.refusal_markers,
        "soft": settings.soft_refusal_markers,
        "evasive": settings.evasive_patterns,
        "mode": settings.refusal_detection_mode,
        "detect_soft": settings.detect_soft_refusals,
        "detect_evasive": settings.detect_evasive_responses,
    }
    return build_scorer("markers", table)


def make_evaluator(run: Run, bad: Sequence[Prompt], good: Sequence[Prompt], *, early_exit: bool) -> Evaluator:
    """An evaluator over one pair of prompt lists with the run's engine, scorer and lengths."""
    settings = run.settings
    assert run.model is not None
    if run.engine is None:
        run.engine, note = choose_engine(run.model, settings.engine)
        if note:
            run.degradations.append(note)
    if run.scorer is None:
        run.scorer = make_scorer(run)
    return Evaluator(
        run.model,
        run.engine,
        run.scorer,
        bad=bad,
        good=good,
        lengths=run.lengths,
        width=settings.batch_size or settings.max_batch_size,
        max_kl=settings.max_trial_kl,
        early_exit=early_exit,
    )


def detect_response_prefix(run: Run) -> str:
    """The common start of base replies, put at the end of every prompt so that the first free token is measured.

    Only what all of a dozen replies from both sets share counts (requirements R-MOD-46).
    """
    bundle, model = run.bundle, run.model
    assert bundle is not None and model is not None
    if run.settings.response_prefix is not None or model.encoder.response_prefix:
        return model.encoder.response_prefix
    half = PREFIX_PROMPTS // 2
    prompts = [*bundle.bad_evaluation.prompts[:half], *bundle.good_evaluation.prompts[:half]]
    evaluator = make_evaluator(run, prompts, prompts[:1], early_exit=False)
    replies = evaluator.generate(evaluator.bad, PREFIX_TOKENS)
    shared = common_start([reply.tokens for reply in replies])
    prefix = str(model.encoder.tokenizer.decode(list(shared), skip_special_tokens=False)) if shared else ""
    if prefix.lstrip().startswith(THINK) and run.settings.thinking == "off":
        prefix = f"{THINK}\n\n</think>\n\n"
    model.encoder.response_prefix = prefix
    return prefix


def common_start(sequences: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The longest start that all token sequences share; empty for fewer than four or when one is all of it."""
    if len(sequences) < 4:
        return ()
    length = 0
    while all(len(tokens) > length + 1 for tokens in sequences) and len({t[length] for t in sequences}) == 1:
        length += 1
    return tuple(sequences[0][:length])


def measure_baseline(run: Run, evaluator: Evaluator) -> Baseline:
    """Base replies, their judgement, base log-probabilities and the noise floor (requirements R-EVA-09, 11, 21).

    Raises `DatasetError` when the base never shows the behaviour, unless `allow_zero_baseline`.
    """
    outcome = evaluator.base_outcome()
    evaluator.set_reference()
    late = _late_hits(evaluator, outcome)
    if outcome.hits == 0 and not run.settings.allow_zero_baseline:
        raise DatasetError(
            f"The unedited model shows the behaviour in 0 of {outcome.n} replies to bad_evaluation_prompts, so there is "
            "nothing to suppress.",
            hint="Use prompts that draw the behaviour, or --allow-zero-baseline to go on.",
        )
    return Baseline(outcome=outcome, floor=evaluator.noise_floor(), late=late)


def _late_hits(evaluator: Evaluator, outcome: Outcome) -> int:
    """Hits of whole replies that the reply cut at the first check point does not show."""
    tokenizer = evaluator.model.encoder.tokenizer
    check = evaluator.lengths.check
    cut = tokenizer.batch_decode(
        [list(reply.tokens[:check]) for reply in outcome.replies], skip_special_tokens=True
    )
    early = evaluator.scorer.judge([""] * len(cut), cut)
    return outcome.hits - sum(verdict.hit for verdict in early)


def rate_of(hits: int, n: int) -> Rate:
    """A rate with its Wilson interval."""
    low, high = wilson(hits, n)
    return Rate(hits=hits, n=n, low=low, high=high)


def guard_values(outcome: Outcome, base: Outcome) -> dict[str, float]:
    """Constraint values of the guards: lower bound of the paired rise of each defect, minus 0.05 (algorithms 7.6)."""
    values: dict[str, float] = {}
    for defect in ("empty", "loop", "degenerate"):
        mine = [found == defect for found in outcome.conditions]
        theirs = [found == defect for found in base.conditions]
        more = sum(a and not b for a, b in zip(mine, theirs, strict=True))
        less = sum(b and not a for a, b in zip(mine, theirs, strict=True))
        low, _ = bonett_price(more, less, len(mine))
        values[defect] = low - GUARD_MARGIN
    return values


def measurement(
    where: str, outcome: Outcome, kl: Divergence | None, base: Outcome | None, over: Rate | None = None
) -> Measurement:
    """The report's form of an outcome."""
    return Measurement(
        where=where,
        rate=rate_of(outcome.hits, outcome.n),
        kl=kl,
        over_rate=over,
        classes={**Counter(outcome.labels), **Counter(c for c in outcome.conditions if c != "valid")},
        guards={} if base is None or outcome.status != "complete" else guard_values(outcome, base),
        replies=tuple(reply.text for reply in outcome.replies),
    )


class Confirmation:
    """Held-out prompts, measured for the base once and then for each finalist (algorithms section 8, confirmation).

    Where no held-out set could be had the evaluation prompts stand in, and `held_out` is False.
    """

    def __init__(self, run: Run) -> None:
        bundle = run.bundle
        assert bundle is not None
        bad, good = bundle.bad_confirmation, bundle.good_confirmation
        self.held_out = bad is not None and good is not None
        self.bad = (bad if bad is not None and good is not None else bundle.bad_evaluation).prompts
        self.good = (good if bad is not None and good is not None else bundle.good_evaluation).prompts
        self.where = "held_out" if self.held_out else "search"
        self.evaluator = make_evaluator(run, self.bad, self.good, early_exit=False)
        self.evaluator.max_kl = float("inf")
        over = bundle.over_behaviour
        self.over = [] if over is None else self.evaluator.model.encoder.encode_all(over.prompts)
        self.over_requests = [] if over is None else list(over.texts)
        self.base: Outcome | None = None
        self.base_over: Rate | None = None
        self.floor = 0.0

    def measure_base(self) -> Measurement:
        """The unedited model on the held-out prompts."""
        self.base = self.evaluator.base_outcome()
        self.evaluator.set_reference()
        self.floor = self.evaluator.noise_floor()
        self.base_over = self._over_rate(self.evaluator.generate(self.over, self.evaluator.lengths.response))
        return measurement(self.where, self.base, None, None, self.base_over)

    def measure_trials(self, trials: Sequence[Edits]) -> list[tuple[Outcome, Measurement]]:
        """Each trial on the held-out prompts at full length, then on the borderline prompts."""
        results: list[tuple[Outcome, Measurement]] = []
        for edits, outcome in zip(trials, self.evaluator.score(trials), strict=True):
            over = self._over_rate(
                self.evaluator.replies_under(edits, self.over, self.evaluator.lengths.response)
            )
            results.append((outcome, self._measured(outcome, over)))
        return results

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
        over = self._over_rate(other.generate(self.over, other.lengths.response))
        return outcome, self._measured(outcome, over)

    def _measured(self, outcome: Outcome, over: Rate | None) -> Measurement:
        kl = None if outcome.kl is None else replace(outcome.kl, floor=self.floor)
        return measurement(self.where, outcome, kl, self.base, over)

    def _over_rate(self, replies: Sequence[Reply]) -> Rate | None:
        if not replies:
            return None
        verdicts = self.evaluator.scorer.judge(self.over_requests, [reply.text for reply in replies])
        return rate_of(sum(verdict.hit for verdict in verdicts), len(verdicts))


def examples(requests: Sequence[str], base: Outcome, edited: Outcome, count: int = 3) -> list[Example]:
    """Prompts on which the base showed the behaviour and the edited model does not, else the first ones."""
    changed = [
        number
        for number in range(min(len(base.labels), len(edited.labels)))
        if base.labels[number] != "none"
        and edited.labels[number] == "none"
        and edited.conditions[number] == "valid"
    ]
    chosen = (changed or list(range(len(base.replies))))[:: max(1, len(changed) // count)][:count]
    return [Example(requests[n], base.replies[n].text, edited.replies[n].text) for n in chosen]


def describe_model(model: Model) -> str:
    """One line about the loaded model for the console."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    architecture = model.architecture
    return (
        f"{architecture.family}, {architecture.layers} layers x {architecture.hidden_size}, "
        f"{parameters / 1e6:,.1f} M parameters, {model.dtype}, {len(architecture.sites)} writers in "
        f"{len(architecture.components)} components, coverage {architecture.covered_share():.0%}"
    )
