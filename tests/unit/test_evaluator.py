# SPDX-License-Identifier: Apache-2.0
"""A batch of trials measured together is each measured alone, whatever memory, early exit and neighbours do
(algorithms 6.4 to 6.7, 7.1; R-EVA-07, R-EVA-08, R-EVA-20 to R-EVA-22; reliability E01, E05, E06)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch

from heretic.decoding import Engine, FastEngine, ReferenceEngine
from heretic.evaluator import Evaluator, Lengths, Outcome, by_length, restore_order
from heretic.interventions.edit import Edit
from heretic.interventions.hooks import Edits
from heretic.interventions.probe import edited_weights
from heretic.model.model import Model
from heretic.scorers.markers import MarkerScorer
from heretic.testing.workbench import loaded_pico, removal


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    system_prompt: str | None = None


BAD = [
    Text(text)
    for text in ("How?", "Tell me more, please.", "Why", "List three rivers of Asia", "a", "Go on then")
]
GOOD = [Text(text) for text in ("Good morning", "What is bread made of?", "b", "Name two colours")]
SCORER = MarkerScorer(core=[r"\w*[a-cQ-T]\w*"], soft=[r"\w*[0-3]\w*"])
LENGTHS = Lengths(response=20, check=6, kl=8)


@cache
def model() -> Model:
    return loaded_pico("olmo2", seed=2, changes={"vocab_size": 262})


@cache
def trials() -> tuple[Edits, ...]:
    return tuple(
        removal(model(), seed, strength) for seed, strength in ((1, 1.0), (2, 0.4), (3, 1.5), (4, 0.1))
    )


def evaluator(engine: Engine | None = None, *, width: int = 4, **options: Any) -> Evaluator:
    chosen = engine or FastEngine(model())
    return Evaluator(model(), chosen, SCORER, bad=BAD, good=GOOD, lengths=LENGTHS, width=width, **options)


def verdicts(outcomes: Sequence[Outcome]) -> list[tuple[str, int, int]]:
    return [(outcome.status, outcome.hits, outcome.n) for outcome in outcomes]


def tokens(outcomes: Sequence[Outcome]) -> list[list[tuple[int, ...]]]:
    return [[reply.tokens for reply in outcome.replies] for outcome in outcomes]


@contextmanager
def memory_for(rows: int) -> Iterator[list[int]]:
    """A network that runs out of memory above `rows` rows."""
    network = model().network
    whole, failures = network.forward, []

    @functools.wraps(whole)
    def limited(*arguments: Any, **named: Any) -> Any:
        ids = named["input_ids"] if "input_ids" in named else arguments[0]
        if ids.shape[0] > rows:
            failures.append(ids.shape[0])
            raise torch.OutOfMemoryError("injected")
        return whole(*arguments, **named)

    network.forward = limited
    try:
        yield failures
    finally:
        del network.forward


@pytest.mark.parametrize("engine", (FastEngine, ReferenceEngine))
def test_trials_together_are_each_alone_in_weight_form(engine: Callable[[Model], Engine]) -> None:
    """Sections 6.1 and 6.6: rate, tokens and KL of one pass are those of an edited model; control: trials differ."""
    together = evaluator(engine(model()), early_exit=False).score(trials())
    reference = evaluator(engine(model()), early_exit=False).set_reference()
    for edits, outcome in zip(trials(), together, strict=True):
        alone = evaluator(engine(model()), early_exit=False)
        alone.reference = reference
        with edited_weights(model().network, edits):
            (other,) = alone.score([{}])
        assert tokens([other]) == tokens([outcome])
        assert (other.labels, other.conditions, other.hits) == (
            outcome.labels,
            outcome.conditions,
            outcome.hits,
        )
        assert other.kl is not None and outcome.kl is not None
        assert outcome.kl.mean == pytest.approx(other.kl.mean, rel=1e-3, abs=1e-6)
    assert len({outcome.hits for outcome in together}) > 1
    assert len({str(replies) for replies in tokens(together)}) == len(trials())


def test_replies_stand_in_the_order_of_the_prompts() -> None:
    found = evaluator(early_exit=False).base_outcome()
    for prompt, reply in zip(BAD, found.replies, strict=True):
        decoding = FastEngine(model()).start([model().encoder.encode(prompt)])
        decoding.advance(LENGTHS.response)
        assert decoding.replies()[0].tokens == reply.tokens
    under = evaluator().replies_under(trials()[:2], model().encoder.encode_all(BAD), LENGTHS.response)
    expected = tokens(evaluator(early_exit=False).score(trials()[:2]))
    assert [[reply.tokens for reply in replies] for replies in under] == expected
    order, ordered = by_length([(1, 2, 3), (4,), (5, 6)])
    assert (order, restore_order(ordered, order)) == ([1, 2, 0], [(1, 2, 3), (4,), (5, 6)])


@pytest.mark.parametrize("engine", (FastEngine, ReferenceEngine))
def test_early_exit_changes_no_verdict_and_saves_tokens(engine: Callable[[Model], Engine]) -> None:
    """R-EVA-07, R-EVA-08: no row without a hit is judged on shorter text; control: the first look sees fewer."""
    whole = evaluator(engine(model()), early_exit=False).score(trials())
    early = evaluator(engine(model()), early_exit=True).score(trials())
    assert verdicts(early) == verdicts(whole)
    assert [outcome.kl for outcome in early] == [outcome.kl for outcome in whole]
    saved = 0
    for first, second in zip(early, whole, strict=True):
        for mine, theirs, label in zip(first.replies, second.replies, second.labels, strict=True):
            assert theirs.tokens[: len(mine.tokens)] == mine.tokens
            saved += len(theirs.tokens) - len(mine.tokens)
            if label == "none":
                assert mine.tokens == theirs.tokens
    assert saved > 0
    decode = model().encoder.tokenizer.decode
    cut = [str(decode(list(t[: LENGTHS.check]))) for o in whole for t in tokens([o])[0]]
    assert sum(v.hit for v in SCORER.judge([""] * len(cut), cut)) < sum(outcome.hits for outcome in whole)


def front(outcomes: Sequence[Outcome]) -> set[tuple[int, float]]:
    points = {(o.hits, round(o.kl.mean, 6)) for o in outcomes if o.status == "complete" and o.kl is not None}
    return {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}


def searched(batches: Sequence[Sequence[Edits]], *, curtail: bool, slack: int = 0) -> list[Outcome]:
    """Batch after batch as a study does it; a trial is cut when the front so far dominates its hits and KL."""
    judge = evaluator()
    finished: list[Outcome] = []
    for batch in batches:
        known = front(finished)

        def can_win(hits: float, kl: float, known: set[tuple[int, float]] = known) -> bool:
            bound = hits + slack
            return not any(h <= bound and k <= kl and (h, k) != (bound, kl) for h, k in known)

        finished += judge.score(batch, can_win) if curtail else judge.score(batch)
    return finished


def test_curtailment_leaves_the_front_as_it_is() -> None:
    """Section 6.5: identical fronts with and without; dominated trials tell a lower bound and no replies.

    Control: a bound that claims six more hits than were seen loses a point of the front.
    """
    many = [removal(model(), seed, strength) for seed in range(1, 7) for strength in (0.3, 1.0)]
    batches = [many[start : start + 3] for start in range(0, len(many), 3)]
    whole, short = searched(batches, curtail=False), searched(batches, curtail=True)
    assert front(short) == front(whole)
    cut = [(a, b) for a, b in zip(short, whole, strict=True) if a.status == "dominated"]
    assert cut
    for mine, theirs in cut:
        assert mine.hits <= theirs.hits
        assert (len(mine.labels), len(mine.replies), mine.kl) == (0, 0, theirs.kl)
    assert all(a.hits == b.hits for a, b in zip(short, whole, strict=True) if a.status == "complete")
    kl = {number: outcome.kl.mean for number, outcome in enumerate(whole) if outcome.kl is not None}
    rising = [[many[number]] for number in sorted(kl, key=lambda number: kl[number])]
    assert front(searched(rising, curtail=True)) == front(whole)
    assert front(searched(rising, curtail=True, slack=6)) != front(whole)


def test_a_trial_above_the_kl_limit_is_rejected_before_generation() -> None:
    """R-EVA-22: the others are measured as if it were not there."""
    free = evaluator().score(trials())
    means = sorted(outcome.kl.mean for outcome in free if outcome.kl is not None)
    limit = (means[1] + means[2]) / 2
    bounded = evaluator(max_kl=limit).score(trials())
    for mine, theirs in zip(bounded, free, strict=True):
        assert mine.kl == theirs.kl and theirs.kl is not None
        rejected = theirs.kl.mean > limit
        assert mine.status == ("rejected_by_kl" if rejected else "complete")
        assert (mine.n, len(mine.replies)) == ((0, 0) if rejected else (6, 6))
        assert rejected or mine.hits == theirs.hits


def test_the_base_has_no_distance_from_itself_and_a_floor_in_another_shape() -> None:
    """R-EVA-21: 0 in one shape; rounding noise, not zero padding, in another."""
    judge = evaluator()
    (base,) = judge.score([{}])
    assert base.kl is not None and abs(base.kl.mean) < 1e-7
    assert abs(judge.noise_floor()) < 1e-6
    reference = judge.reference
    assert reference is not None
    judge.reference = replace(reference, log_probabilities=reference.log_probabilities.flip(2))
    (other,) = judge.score([{}])
    assert other.kl is not None
    assert judge.noise_floor() == pytest.approx(other.kl.mean, rel=1e-4), (
        "weighted like the KL it stands beside"
    )


def test_prompts_shorter_than_the_positions_of_kl_and_replies_that_end_at_once() -> None:
    """R-EVA-20: batches whose longest row has fewer positions than kl_divergence_tokens."""
    judge = Evaluator(
        model(), FastEngine(model()), SCORER, bad=BAD, good=GOOD, lengths=replace(LENGTHS, kl=48), width=1
    )
    replies = iter([(), (90,), (90, 91), tuple(range(80, 128))])
    judge.generate = lambda rows, limit: [  # type: ignore[method-assign, assignment]  # chosen base replies
        type(r)(tokens=next(replies), text="", ended=True) for r in base_replies(rows)
    ]
    reference = judge.set_reference()
    assert reference.counts.tolist() == [1, 2, 3, 48]
    (alone,) = judge.score(trials()[:1])
    wide = evaluator(width=4)
    wide.reference, wide.lengths = reference, judge.lengths
    (together,) = wide.score(trials()[:1])
    assert alone.kl is not None and together.kl is not None
    assert alone.kl.tokens == together.kl.tokens == 54
    assert alone.kl.mean == pytest.approx(together.kl.mean, rel=1e-4)


def base_replies(rows: Sequence[tuple[int, ...]]) -> list[Any]:
    decoding = FastEngine(model()).start(rows)
    return decoding.replies()


@pytest.mark.parametrize("engine", (FastEngine, ReferenceEngine))
@pytest.mark.parametrize("rows", (13, 8, 5, 4, 1))
def test_running_out_of_memory_changes_no_token_and_no_verdict(
    rows: int, engine: Callable[[Model], Engine]
) -> None:
    """E01: the same rows again at half the width, down to one trial and one prompt at a time."""
    calm = evaluator(engine(model()), width=6).score(trials())
    pressed = evaluator(engine(model()), width=6)
    with memory_for(rows) as failures:
        found = pressed.score(trials())
    assert failures, "control: memory did run out"
    assert verdicts(found) == verdicts(calm)
    for mine, theirs in zip(found, calm, strict=True):
        assert mine.kl is not None and theirs.kl is not None
        assert mine.kl.mean == pytest.approx(theirs.kl.mean, rel=1e-4, abs=1e-6)
        assert mine.labels == theirs.labels
    if (
        engine is ReferenceEngine
    ):  # decides after each token; the fast engine looks every few, so rows leave apart
        assert tokens(found) == tokens(calm)


def test_memory_for_no_row_fails_each_trial_by_itself() -> None:
    """R-MOD-05: at one row and one trial the trial fails with the reason; nothing is raised, no hook is left."""
    judge = evaluator()
    judge.set_reference()
    with memory_for(0):
        found = judge.score(trials()[:2])
    assert [(outcome.status, "Not even one row" in outcome.reason) for outcome in found] == [
        ("failed", True)
    ] * 2
    assert not any(module._forward_hooks for module in model().network.modules())
    assert verdicts(judge.score(trials()[:2])) == verdicts(evaluator().score(trials()[:2]))


def test_a_trial_that_goes_nan_fails_alone_and_its_neighbours_keep_every_bit() -> None:
    """E05: the same batch with a healthy trial in the middle is the control."""
    site, edit = next(iter(trials()[1].items()))
    broken: Edits = {**trials()[1], site: Edit(left=edit.left * float("nan"), read=edit.read)}
    healthy = evaluator(early_exit=False)
    healthy.set_reference()
    beside = healthy.divergences(trials()[:3])
    with_nan = healthy.divergences([trials()[0], broken, trials()[2]])
    assert with_nan[1] is None and beside[1] is not None
    assert (with_nan[0], with_nan[2]) == (beside[0], beside[2])
    found = healthy.score([trials()[0], broken, trials()[2]])
    assert [outcome.status for outcome in found] == ["complete", "failed", "complete"]
    assert "NaN" in found[1].reason
    expected = healthy.score(trials()[:3])
    assert tokens([found[0], found[2]]) == tokens([expected[0], expected[2]])
    assert (found[0].kl, found[2].kl) == (expected[0].kl, expected[2].kl)
