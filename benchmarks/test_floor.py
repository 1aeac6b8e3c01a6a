# SPDX-License-Identifier: Apache-2.0
"""The counted arithmetic is that of a real forward pass, and the floor is that arithmetic over a rate."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import floor
from benchmarks.floor import MeasuredTimer, Pass, Work, attended, floor_seconds, multiply_adds, passes
from benchmarks.grow import Shape
from heretic.decoding.library_cache import cache_argument, cache_of

SHAPE = Shape(vocabulary=50, hidden=32, intermediate=48, layers=3, heads=4, key_value_heads=2)
WORK = Work(
    prompts=[7, 9], replies=[4, 2], ended=[False, True], forced=[8, 6], kl_tokens=2, prefix=3, first_layer=1
)


def pico() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.key_value_heads,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    model.eval()
    return model


@torch.no_grad()
def counted_linear(model: Qwen2ForCausalLM, prompt: int, reply: int, *, ended: bool) -> int:
    """Multiply-adds of the linear products that generating a reply really performs: a prefill, then token by token."""
    with FlopCounterMode(display=False) as counter:
        seen = model(input_ids=torch.randint(0, 50, (1, prompt)), use_cache=True, logits_to_keep=1)
        for _ in range(reply - (not ended)):
            seen = model(
                input_ids=torch.ones(1, 1, dtype=torch.int64), **cache_argument(model, cache_of(seen))
            )
    operators = counter.get_flop_counts()["Global"]
    linear = [
        int(count)
        for name, count in operators.items()
        if str(name) in {"aten.mm", "aten.addmm", "aten.linear"}
    ]
    return sum(linear) // 2


@pytest.mark.parametrize("ended", [False, True])
def test_linear_products_are_those_of_a_real_generation(ended: bool) -> None:
    work = Work(prompts=[7], replies=[4], ended=[ended], forced=[], kl_tokens=2)
    mine = multiply_adds(SHAPE, passes(work, SHAPE.layers, shared=False))
    real = counted_linear(pico(), 7, 4, ended=ended)
    assert real > 0 and mine["linear"] + mine["head"] == real
    # Control: the pass that finds the end token counts.
    assert mine["linear"] + mine["head"] != counted_linear(pico(), 7, 4, ended=not ended)


def test_attention_sums_what_a_causal_mask_allows() -> None:
    for length, skipped in ((1, 0), (7, 0), (9, 3)):
        mask = torch.ones(length, length).tril()[skipped:]
        assert attended(length, skipped) == int(mask.sum())
    one = Pass("x", tokens=7, read=0, attended=attended(7), layers=3)
    assert floor.attention_products(SHAPE, one) == 2 * 32 * 28 * 3


def test_what_is_shared_is_counted_once() -> None:
    plain, shared = (passes(WORK, SHAPE.layers, shared=value) for value in (False, True))
    tokens = {
        name: sum(one.tokens for one in plain if one.name == name) for name in ("KL", "prompts", "replies")
    }
    assert tokens == {"KL": 14, "prompts": 16, "replies": 3 + 2}
    assert [one.tokens for one in plain if one.name == "replies"] == [2, 2, 1]
    assert [(one.name, one.tokens, one.layers) for one in shared[:3]] == [
        ("prefix", 3, 2),
        ("KL", 8, 2),
        ("prompts", 10, 2),
    ]
    # Reply tokens differ from trial to trial: nothing of them is shared.
    assert [one for one in shared if one.name == "replies"] == [one for one in plain if one.name == "replies"]
    assert sum(one.attended for one in shared) < sum(one.attended for one in plain)


@pytest.mark.parametrize("together", [1, 4])
def test_at_a_constant_rate_the_floor_is_work_over_rate(together: int) -> None:
    def seconds(rows: int, inside: int, outside: int) -> float:
        return rows * inside * outside / 1e9

    work = passes(WORK, SHAPE.layers, shared=False)
    total = sum(floor_seconds(SHAPE, work, together, seconds).values())
    assert total == pytest.approx(sum(multiply_adds(SHAPE, work).values()) / 1e9)


def test_a_fixed_cost_of_a_call_is_shared_by_the_trials_of_a_call() -> None:
    def seconds(rows: int, inside: int, outside: int) -> float:
        return 1e-3 + rows * inside * outside / 1e9

    work = passes(WORK, SHAPE.layers, shared=False)
    alone, four = (sum(floor_seconds(SHAPE, work, count, seconds).values()) for count in (1, 4))
    assert alone > 3 * four


def test_the_timer_interpolates_and_cuts_long_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "SECONDS_PER_SHAPE", 0.0)
    timer = MeasuredTimer()
    assert timer(100, 8, 8) > 0
    assert timer(8192, 8, 8) == pytest.approx(2 * timer(4096, 8, 8))
    timer.rates = {(96, 8, 8): 1.0, (104, 8, 8): 2.0}
    assert timer(100, 8, 8) == pytest.approx(1.5)
