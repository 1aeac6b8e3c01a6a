# SPDX-License-Identifier: Apache-2.0
"""Step 5 of the flow: the base measured once, and what every measurement of replies is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from heretic.decoding import Reply, choose_engine, compiled_engine, read_texts
from heretic.evaluator import Evaluator, Outcome
from heretic.exceptions import DatasetError
from heretic.linalg.intervals import bonett_price, mean_interval, wilson
from heretic.model.model import Model
from heretic.model.thinking import split_thought
from heretic.phases.scoring import make_scorers
from heretic.phases.state import Baseline, Run
from heretic.prompts import Prompt, PromptSet
from heretic.report import Divergence, Measurement, Rate
from heretic.scorers.absence import Absence
from heretic.scorers.protocol import Judgement

LATE_SHARE = 0.02
PREFIX_PROMPTS = 12
PREFIX_TOKENS = 24
FIRST_TOKENS = 2
GUARD_MARGIN = 0.05
THOUGHT_PROMPTS = 3
THOUGHT_TOKENS = 8
DEFECTS = ("empty", "loop", "degenerate")
THOUGHT_DEFECTS = ("thinking_loop", "thinking_exhausted")


def make_evaluator(
    run: Run,
    bad: Sequence[Prompt],
    good: Sequence[Prompt],
    *,
    early_exit: bool,
    early_stop: bool = False,
    thinking: bool = False,
    final: bool = False,
) -> Evaluator:
    """An evaluator over one pair of prompt lists with the run's engine, scorer and lengths.

    bad: prompts on which the objective is counted; good: prompts on which nothing should change. For the goal `induce`
    a reply counts while it does not show the behaviour (see `sides`). early_exit: rows leave when decided. early_stop:
    trials end at the settings' KL cap, and may be raced; else every trial is measured in full. thinking: in thinking
    mode, whatever the search does (R-MOD-52). In that mode a reply may be longer by its thought. final: judged as
    finalists and saved files are, which may be by a model.
    """
    settings = run.settings
    assert run.model is not None
    if run.engine is None:
        run.engine, note = choose_engine(run.model, settings.engine, reuse_bytes=reuse_bytes(run))
        if note:
            run.degradations.append(note)
        if settings.compile:
            run.engine, note = compiled_engine(run.model, run.engine)
            if note:
                run.degradations.append(note)
                run.console.warn(note)
    if run.scorer is None:
        make_scorers(run)
    chosen = run.judge if final else run.scorer
    assert chosen is not None
    model, engine, lengths = run.model, run.engine, run.lengths
    scorer = Absence(chosen) if run.induces else chosen
    if thinking and not model.encoder.thinking:
        model = thinking_model(run, model)
        engine, _ = choose_engine(model, settings.engine, reuse_bytes=reuse_bytes(run))
    if model.encoder.thinking:
        lengths = replace(lengths, response=lengths.response + settings.thinking_tokens)
    return Evaluator(
        model,
        engine,
        scorer,
        bad=bad,
        good=good,
        lengths=lengths,
        width=settings.batch_size or settings.max_batch_size,
        max_kl=settings.max_trial_kl if early_stop else float("inf"),
        early_exit=early_exit,
        first=settings.racing_prompts if early_stop and settings.racing else 0,
        seed=settings.seed,
    )


def sides(run: Run, bad: PromptSet, good: PromptSet) -> tuple[PromptSet, PromptSet]:
    """(prompts the objective is counted on, prompts on which nothing should change).

    `suppress` counts on the prompts that show the behaviour; `induce` on those that do not, and its damage is measured
    where the behaviour is shown already (requirements R-DIR-09).
    """
    return (good, bad) if run.induces else (bad, good)


def reuse_bytes(run: Run) -> int:
    """Memory for activations of fixed prompts that all trials share (`reuse_lower_layers`)."""
    return int(run.settings.reuse_budget * 1e9) if run.settings.reuse_lower_layers else 0


def thinking_model(run: Run, model: Model) -> Model:
    """The same network spoken to in thinking mode."""
    encoder = model.encoder.with_thinking(True)
    if run.settings.response_prefix is not None:
        encoder.response_prefix = run.settings.response_prefix
    return replace(model, encoder=encoder)


def verify_no_thought(run: Run) -> None:
    """With thinking off no reply may open a thought; three prompts are asked (requirements R-MOD-50)."""
    bundle, model = run.bundle, run.model
    assert bundle is not None and model is not None
    if model.encoder.thinking or not model.encoder.can_think:
        return
    prompts = bundle.good_evaluation.prompts[:THOUGHT_PROMPTS]
    evaluator = make_evaluator(run, prompts, prompts[:1], early_exit=False)
    replies = evaluator.generate(evaluator.bad, THOUGHT_TOKENS)
    texts = model.encoder.tokenizer.batch_decode(
        [list(reply.tokens) for reply in replies], skip_special_tokens=False
    )
    opened = sum(split_thought(text).marker is not None for text in texts)
    if opened:
        note = f"thinking could not be switched off: {opened} of {len(texts)} replies begin with a thought"
        run.degradations.append(note)
        run.console.warn(note)


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
    shared: tuple[int, ...] = ()
    for limit in (FIRST_TOKENS, PREFIX_TOKENS):  # most models share nothing, which the first token shows
        replies = evaluator.generate(evaluator.bad, limit)
        shared = common_start([reply.tokens for reply in replies])
        if not shared:
            break
    prefix = str(model.encoder.tokenizer.decode(list(shared), skip_special_tokens=False)) if shared else ""
    marker = split_thought(prefix).marker if prefix else None
    if marker is not None and not model.encoder.thinking:
        model.encoder.can_think, prefix = True, marker.closed_block
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
    if outcome.total == 0 and not run.settings.allow_zero_baseline:
        if run.induces:
            raise DatasetError(
                f"The unedited model shows the behaviour in all {outcome.n} replies to good_evaluation_prompts, so "
                "there is nothing to induce.",
                hint="Use prompts that do not draw the behaviour, or --allow-zero-baseline to go on.",
            )
        raise DatasetError(
            f"The unedited model shows the behaviour in 0 of {outcome.n} replies to bad_evaluation_prompts, so "
            "there is nothing to suppress.",
            hint="Use prompts that draw the behaviour, or --allow-zero-baseline to go on.",
        )
    return Baseline(outcome=outcome, floor=evaluator.noise_floor(), late=late)


def _late_hits(evaluator: Evaluator, outcome: Outcome) -> int:
    """Hits of whole replies that the reply cut at the first check point does not show."""
    check = evaluator.lengths.check
    cut = read_texts(evaluator.model.encoder, [reply.tokens[:check] for reply in outcome.replies])
    early = evaluator.scorer.judge([""] * len(cut), cut)
    return abs(outcome.hits - sum(verdict.hit for verdict in early))


def rate_of(hits: int, n: int) -> Rate:
    """A rate with its Wilson interval."""
    low, high = wilson(hits, n)
    return Rate(hits=hits, n=n, low=low, high=high)


def rate_from(judged: Sequence[Judgement]) -> Rate:
    """The rate of judged replies: counted with a Wilson interval, or the mean degree with its own."""
    found = rate_of(sum(judgement.hit for judgement in judged), len(judged))
    if all(judgement.degree is None for judgement in judged):
        return found
    values = [judgement.value for judgement in judged]
    low, high = mean_interval(values)
    return replace(found, low=low, high=high, mean=sum(values) / len(values))


def guard_values(outcome: Outcome, base: Outcome) -> dict[str, float]:
    """Constraint values of the guards: lower bound of the paired rise of each defect, minus 0.05 (algorithms 7.6)."""
    values: dict[str, float] = {}
    thinks = any(reply.thought is not None for reply in base.replies)
    for defect in (*DEFECTS, *(THOUGHT_DEFECTS if thinks else ())):
        mine = [found == defect for found in outcome.conditions]
        theirs = [found == defect for found in base.conditions]
        more = sum(a and not b for a, b in zip(mine, theirs, strict=True))
        less = sum(b and not a for a, b in zip(mine, theirs, strict=True))
        low, _ = bonett_price(more, less, len(mine))
        values[defect] = low - GUARD_MARGIN
    return values


def measurement(
    where: str,
    outcome: Outcome,
    kl: Divergence | None,
    base: Outcome | None,
    over: Rate | None = None,
    *,
    inverted: bool = False,
) -> Measurement:
    """The report's form of an outcome; inverted: its hits are replies without the behaviour."""
    return Measurement(
        where=where,
        rate=rate_from(outcome.judged) if outcome.judged else rate_of(outcome.hits, outcome.n),
        kl=kl,
        over_rate=over,
        classes={**Counter(outcome.labels), **Counter(c for c in outcome.conditions if c != "valid")},
        guards={} if base is None or outcome.status != "complete" else guard_values(outcome, base),
        replies=tuple(reply.text for reply in outcome.replies),
        mode="on" if any(reply.thought is not None for reply in outcome.replies) else "off",
        thoughts=thought_figures(outcome.replies),
        inverted=inverted,
    )


def thought_figures(replies: Sequence[Reply]) -> dict[str, float]:
    """Length of thoughts in tokens, and how many replies had one, or never came to an answer (R-MOD-51)."""
    thoughts = [reply.thought for reply in replies if reply.thought is not None]
    if not thoughts:
        return {}
    lengths = sorted(thought.length for thought in thoughts)
    return {
        "with_thought": sum(thought.state != "none" for thought in thoughts),
        "mean_tokens": sum(lengths) / len(lengths),
        "median_tokens": float(lengths[len(lengths) // 2]),
        "longest_tokens": float(lengths[-1]),
        "exhausted": sum(thought.exhausted for thought in thoughts),
    }


def describe_model(model: Model) -> str:
    """One line about the loaded model for the console."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    architecture = model.architecture
    return (
        f"{model.network.config.model_type}, {architecture.layers} layers x {architecture.hidden_size}, "
        f"{parameters / 1e6:,.1f} M parameters, {model.dtype}, {len(architecture.sites)} writers in "
        f"{len(architecture.components)} components, coverage {architecture.covered_share():.0%}"
    )
