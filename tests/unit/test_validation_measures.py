# SPDX-License-Identifier: Apache-2.0
"""Perplexity, word salad, log-odds and the panel of side effects against plain computations (algorithms 7.3, 7.6, 7.7;
R-EVA-24)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from math import comb

import pytest
import torch

from heretic.decoding import FastEngine, ReferenceEngine, Reply, Thought
from heretic.exceptions import DatasetError, NonFiniteError
from heretic.linalg.intervals import bonett_price, mean_interval, paired_interval
from heretic.model.model import Model
from heretic.testing.tokenizers import byte_tokenizer
from heretic.testing.workbench import loaded_pico, removal
from heretic.validation.log_odds import (
    LogOdds,
    behaving_openers,
    correlation_text,
    log_odds,
    measure_log_odds,
    openers,
    spearman,
)
from heretic.validation.panel import (
    Panel,
    behaviour_guard,
    compare_replies,
    median_interval,
    panel_guards,
)
from heretic.validation.perplexity import (
    LONGEST,
    PerplexityResult,
    compare_perplexity,
    measure_perplexity,
    noise_floor,
)
from heretic.validation.salad import (
    compare_salad,
    is_salad,
    reply_likelihoods,
    salad_guard,
    salad_threshold,
)
from heretic.validation.subject import Subject, plain_tokens

TEXTS = ("A short text.", "Another one, a little longer than the first.", "b", "It rains. " * 6)


@cache
def pico(start: bool = False) -> Model:
    return loaded_pico("llama", seed=5, tokenizer=byte_tokenizer(start="tokenizer" if start else "template"))


def subject(*, edits: bool = False, start: bool = False) -> Subject:
    model = pico(start)
    return Subject(model, FastEngine(model), removal(model, 4, 1.5, rank=8) if edits else None)


def plain(model: Model, tokens: Sequence[int]) -> list[float]:
    """Log-likelihood of each token after the first by the library's own forward pass."""
    with torch.inference_mode():
        logs = model.network(torch.tensor([list(tokens)])).logits[0].log_softmax(dim=-1)
    return [float(logs[place - 1, tokens[place]]) for place in range(1, len(tokens))]


# -- perplexity


@pytest.mark.parametrize("start", (False, True))
def test_perplexity_is_that_of_the_library(start: bool) -> None:
    """One text of one token is left out without a start token, and predicted with one."""
    found = measure_perplexity(subject(start=start), TEXTS)
    rows = plain_tokens(pico(start).encoder, TEXTS)
    wanted = [plain(pico(start), row) for row in rows if len(row) > 1]
    assert len(wanted) == (4 if start else 3) and found.tokens == tuple(map(len, wanted))
    for value, values in zip(found.values, wanted, strict=True):
        assert value == pytest.approx(-sum(values) / len(values), abs=1e-5)
    every = [value for values in wanted for value in values]
    assert found.mean == pytest.approx(-sum(every) / len(every), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.mean))


def test_long_texts_are_cut_and_short_ones_say_so() -> None:
    found = measure_perplexity(subject(), ["ab" * 100], longest=7)
    assert found.tokens == (7,) and LONGEST > 7
    with pytest.raises(DatasetError, match="two tokens"):
        measure_perplexity(subject(), ["x", ""])


def test_an_edit_is_beyond_the_noise_and_no_edit_within_it() -> None:
    base = subject()
    before = measure_perplexity(base, TEXTS)
    floor = noise_floor(base, TEXTS, before)
    assert 0.0 <= floor < 1e-5
    edited = compare_perplexity(before, measure_perplexity(subject(edits=True), TEXTS), floor=floor)
    assert abs(edited.change) > 100 * (floor + 1e-6) and edited.low < edited.change < edited.high
    same = compare_perplexity(before, measure_perplexity(Subject(base.model, base.engine, {}), TEXTS))
    assert (same.change, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_paired_difference_is_over_texts() -> None:
    base, edited = (
        PerplexityResult((1.0, 2.0, 3.0), (5, 5, 5), 2.0),
        PerplexityResult((1.5, 2.0, 5.0), (5, 5, 5), 3.0),
    )
    found = compare_perplexity(base, edited)
    assert found.change == pytest.approx(2.5 / 3)
    assert (found.low, found.high) == paired_interval((1.5, 2.0, 5.0), (1.0, 2.0, 3.0))
    one = compare_perplexity(PerplexityResult((1.0,), (2,), 1.0), PerplexityResult((4.0,), (2,), 4.0))
    assert (one.low, one.high) == (3.0, 3.0)
    assert math.isfinite(PerplexityResult((1e9,), (2,), 1e9).perplexity)


def test_a_model_without_numbers_is_an_error() -> None:
    model = loaded_pico("llama", seed=5)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="3 of 3"):
        measure_perplexity(Subject(model, FastEngine(model)), TEXTS)


# -- word salad


def test_likelihoods_of_replies_are_those_of_the_library() -> None:
    prompts, replies = [(3, 10, 40), (7,), (9, 9)], [(50, 60, 70), (), (80,)]
    for engine in (FastEngine, ReferenceEngine):
        found = reply_likelihoods(Subject(pico(), engine(pico()), width=2), prompts, replies)
        assert found[1] is None
        for number in (0, 2):
            whole = prompts[number] + replies[number]
            wanted = plain(pico(), whole)[-len(replies[number]) :]
            assert found[number] == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_random_tokens_are_salad_and_own_replies_are_not() -> None:
    """A model whose replies are likely under itself: random tokens fall below, its own do not."""
    model = loaded_pico("llama", seed=5)
    with torch.no_grad():
        model.network.get_output_embeddings().weight.mul_(40)  # a decided model
    decided = Subject(model, FastEngine(model))
    prompts = [(5, number) for number in range(20, 50)]
    decoding = decided.engine.start(prompts)
    decoding.advance(12)
    own = reply_likelihoods(decided, prompts, [reply.tokens for reply in decoding.replies()])
    generator = random.Random(0)
    noise = [[generator.randrange(3, 250) for _ in range(12)] for _ in prompts]
    found = compare_salad(own, reply_likelihoods(decided, prompts, noise))
    assert found.base == 0 and found.edited == found.n == 30
    assert salad_guard(found) > 0 and found.median_edited < found.threshold < found.median_base
    control = compare_salad(own, own)
    assert (control.base, control.edited) == (0, 0) and salad_guard(control) <= 0


def test_the_threshold_is_three_nats_below_the_median_of_own_replies() -> None:
    own = [-1.0, -2.0, None, -9.0]
    assert salad_threshold(own) == -5.0
    assert [is_salad(value, -5.0) for value in (-4.9, -5.0, -5.1, None)] == [False, False, True, False]
    found = compare_salad(own, [-6.0, -6.0, None, -1.0])
    assert (found.base, found.edited, found.n) == (1, 2, 4)
    assert (found.low, found.high) == bonett_price(2, 1, 4)
    with pytest.raises(DatasetError):
        salad_threshold([None])
    assert math.isfinite(compare_salad(own, [float("-inf"), None, None, None]).median_edited)


# -- log-odds


def test_openers_are_frequent_and_not_shared_with_control_replies() -> None:
    behaving = [(1, 5)] * 60 + [(2, 5)] * 38 + [(3, 5)] * 2 + [()]
    control = [(2,)] * 3 + [(1,)] + [(4,)] * 96
    assert openers(behaving) == {1, 2, 3}  # 2 % exactly counts
    assert behaving_openers(behaving, control) == {1, 3}  # 2 opens 3 % of the control replies, 1 only 1 %
    assert openers([(1,)] * 99 + [(2,)]) == {1}
    with pytest.raises(DatasetError, match="No token opens"):
        behaving_openers([(4,)] * 5, control)


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)) * 5
    share = logits.double().softmax(dim=-1)[:, [3, 7, 20]].sum(dim=-1)
    found = log_odds(logits, {3, 7, 20})
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx((share / (1 - share)).log().tolist(), abs=1e-4)
    suppressed = logits.clone()
    suppressed[:, 3] = -torch.inf  # a suppressed token gives no NaN
    assert bool(torch.isfinite(log_odds(suppressed, {3, 7})).all())
    assert not torch.equal(log_odds(logits, {3}), log_odds(logits, {7}))


def test_the_rate_is_the_mean_share_of_the_openers_at_the_first_token() -> None:
    prompts = [(5, number, 9) for number in range(20, 30)] + [(4,)]
    found = measure_log_odds(subject(), prompts, {60, 61, 62})
    shares = []
    for prompt in prompts:
        with torch.inference_mode():
            logits = pico().network(torch.tensor([prompt])).logits[0, -1].double()
        shares.append(float(logits.softmax(dim=-1)[[60, 61, 62]].sum()))
    assert found.rate == pytest.approx(sum(shares) / len(shares), rel=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(mean_interval(shares)), rel=1e-3)
    assert isinstance(found, LogOdds) and found.openers == 3 and len(found.values) == 11
    assert measure_log_odds(subject(edits=True), prompts, {60, 61, 62}).rate != pytest.approx(
        found.rate, rel=1e-3
    )


def test_rank_correlation_has_its_known_values() -> None:
    """Against scipy on data with ties; a monotone relation is 1, whatever its form."""
    from scipy.stats import spearmanr

    generator = random.Random(3)
    first = [generator.randrange(6) for _ in range(40)]
    second = [value + generator.randrange(5) for value in first]
    found = spearman(first, second)
    assert found == pytest.approx(float(spearmanr(first, second).statistic))
    assert found is not None and 0.2 < found < 0.95
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1e9]) == 1.0
    assert spearman([1, 2, 3], [9, 5, 1]) == -1.0
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None


@pytest.mark.parametrize(
    ("value", "used"), [(0.59, False), (0.6, True), (0.95, True), (-0.9, False), (None, False)]
)
def test_a_weak_correlation_is_not_used(value: float | None, used: bool) -> None:
    assert correlation_text(value).startswith("used" if used else "not used")


# -- panel


def reply(
    words: int, *, ended: bool = True, text: str | None = None, thought: Thought | None = None
) -> Reply:
    made = text if text is not None else " ".join(f"w{number}" for number in range(words))
    return Reply(tuple(range(100, 100 + words)), made, ended, thought)


def test_the_panel_counts_what_it_says() -> None:
    base = [reply(10), reply(20), reply(30), reply(10, text="maybe so, maybe not")]
    edited = [reply(20), reply(20), reply(15, ended=False), reply(0, text="...")]
    found = compare_replies(base, edited, lambda text: 100 * text.count("maybe") / max(1, len(text.split())))
    words = found.figures["words"]
    assert (words.base, words.edited, words.change) == (16.0, 14.0, -2.0)
    assert (words.low, words.high) == paired_interval([20, 20, 15, 1], [10, 20, 30, 4])
    assert found.medians == {"words": (15.0, 17.5), "tokens": (15.0, 17.5)}
    assert (found.figures["hedging"].base, found.figures["hedging"].edited) == (12.5, 0.0)
    assert (found.figures["empty"].base, found.figures["empty"].edited) == (0.0, 0.25)
    assert (found.figures["cut"].base, found.figures["cut"].edited) == (0.0, 0.25)
    assert (found.figures["cut"].low, found.figures["cut"].high) == bonett_price(1, 0, 4)
    assert found.length_ratio is not None and found.length_ratio.edited == 0.75  # of 2, 1, 0.5, 0
    assert "hedging" not in compare_replies(base, edited).figures
    assert "thinking_loop" not in found.figures


def test_a_thought_is_no_part_of_the_answer() -> None:
    thought = Thought(length=6, state="closed", exhausted=False)
    thinking = [reply(16, thought=thought)] * 3
    found = compare_replies([reply(10)] * 3, thinking)
    assert found.length_ratio is not None and found.length_ratio.edited == 1.0
    assert "thinking_exhausted" in found.figures


def test_the_interval_of_a_median_covers_by_order_statistics() -> None:
    """Known: of 10 values the second and ninth, of 20 the sixth and fifteenth; below six there is none."""
    assert median_interval(list(range(1, 11))) == (2, 9)
    assert median_interval(list(range(1, 21))) == (6, 15)
    assert median_interval([1, 2, 3]) == (1, 3)
    for count in (6, 11, 37):
        low, high = median_interval(list(range(count)))
        outside = 2 * sum(comb(count, k) for k in range(int(low) + 1)) / 2**count
        assert outside <= 0.05 and high == count - 1 - low
        assert 2 * sum(comb(count, k) for k in range(int(low) + 2)) / 2**count > 0.05  # none narrower


@pytest.mark.parametrize(
    ("edited", "broken"), [(4, True), (5, False), (10, False), (20, False), (21, True), (0, True)]
)
def test_the_length_ratio_has_to_lie_in_half_to_double(edited: int, broken: bool) -> None:
    panel = compare_replies([reply(10)] * 8, [reply(edited, text="word")] * 8)
    assert (panel_guards(panel)["length_ratio"] > 0) is broken
    assert math.isfinite(panel_guards(panel)["length_ratio"])
    assert "length_ratio" not in panel_guards(panel, length_behaviour=True)


def test_defects_break_their_guard_only_where_they_rise_for_certain() -> None:
    def guards(defects: int) -> dict[str, float]:
        return panel_guards(panel_of(defects))

    def panel_of(defects: int) -> Panel:
        base = [reply(10)] * 40
        return compare_replies(base, [reply(10, text="!")] * defects + [reply(10)] * (40 - defects))

    assert guards(0)["empty"] <= 0 and guards(1)["empty"] <= 0 < guards(12)["empty"]
    assert guards(4)["empty"] <= 0  # a rise of 10 points in the sample, but not for certain of 5
    assert guards(12)["loop"] <= 0
    loops = [Reply((7,) * 60, "la " * 60, False)] * 20
    assert panel_guards(compare_replies([reply(10)] * 20, loops))["loop"] > 0
    assert panel_guards(compare_replies(loops, loops))["loop"] <= 0  # the base does it too


def test_the_behaviour_on_harmless_prompts_may_rise_by_three_points() -> None:
    assert behaviour_guard(0.10, 0.12) <= 0 < behaviour_guard(0.10, 0.14)
