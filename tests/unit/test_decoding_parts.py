# SPDX-License-Identifier: Apache-2.0
"""The parts of the decode loop against plain forms of themselves (algorithms 6.2 to 6.4; R-EVA-07, R-PRF-06)."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from heretic.decoding.attention import LONGEST, inference, short_attention
from heretic.decoding.buffer import KeyValueBuffer
from heretic.decoding.prompts import KNOWN_REPLIES, LEAST_PREFIX, Prompts, best_slices, common_start
from heretic.decoding.reading import Transcripts, read_texts
from heretic.decoding.steps import LONGEST_DRAFT, Pace
from heretic.model.tokens import PromptEncoder
from heretic.phases.throughput import LEAST_GAIN, StepTime, best_number, fitted
from heretic.testing.tokenizers import byte_tokenizer
from heretic.testing.workbench import loaded_pico


def cost(lengths: list[int], cuts: tuple[int, ...], overhead: int) -> int:
    bounds = [0, *cuts, len(lengths)]
    parts = [lengths[a:b] for a, b in itertools.pairwise(bounds)]
    return sum(len(part) * max(part) + overhead for part in parts)


@pytest.mark.parametrize("overhead", (0, 3, 20, 1000))
def test_slices_are_the_cheapest_of_all_splits(overhead: int) -> None:
    draw = random.Random(overhead)
    for _ in range(12):
        lengths = [draw.randint(1, 9) for _ in range(7)]
        found = best_slices(lengths, overhead)
        assert [part.start for part in found] == [0, *[part.stop for part in found[:-1]]]
        assert found[-1].stop == len(lengths)
        assert all(part.width == max(lengths[part.start : part.stop]) for part in found)
        every = [cuts for size in range(7) for cuts in itertools.combinations(range(1, 7), size)]
        best = min(cost(lengths, cuts, overhead) for cuts in every)
        assert cost(lengths, tuple(part.stop for part in found[:-1]), overhead) == best


def test_a_common_start_leaves_each_prompt_what_it_needs() -> None:
    rows = [(1, 2, 3, 4, 5, 6, number) for number in range(5)]
    assert common_start(rows, 1) == (1, 2, 3, 4, 5, 6)
    assert common_start(rows, 3) == (1, 2, 3, 4)
    assert common_start([*rows, (1, 2, 3, 4, 5)], 1) == (1, 2, 3, 4), (
        "one row is all start: its last token stays"
    )
    assert common_start(rows, 7 - LEAST_PREFIX + 1) == (), "too short to be worth a pass"
    assert common_start(rows[:3], 1) == (), "too few rows"
    assert common_start([*rows, (9, 2, 3, 4, 5, 6, 7)], 1) == ()


def test_known_replies_are_bounded_and_hold_no_beginning_of_another() -> None:
    prompts = Prompts(loaded_pico("llama"), [(1, 2)])
    prompts.learn(0, (5, 6))
    prompts.learn(0, (5, 6, 7))
    prompts.learn(0, (5, 8))
    assert list(prompts.known[0]) == [(5, 6, 7), (5, 8)]
    prompts.learn(0, (5, 6, 7))
    assert list(prompts.known[0]) == [(5, 8), (5, 6, 7)], "the latest last"
    for number in range(50):
        prompts.learn(0, (number, 1))
    assert len(prompts.known[0]) == KNOWN_REPLIES


TEXTS = ("I cannot help with that.", "Gr\u00fc\u00dfe \u2014 \u4f60\u597d \U0001f642 ok", "a  b\n\n c", "")


@pytest.mark.parametrize("seed", range(4))
def test_a_growing_text_is_what_decoding_all_of_it_gives(seed: int) -> None:
    """Characters of several bytes arrive in pieces; control: a reading of the new tokens alone differs."""
    encoder = PromptEncoder(byte_tokenizer(), system_prompt="")
    tokens = [encoder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    transcripts, draw = Transcripts(encoder, len(TEXTS)), random.Random(seed)
    lengths = [0] * len(TEXTS)
    alone = [""] * len(TEXTS)
    while any(length < len(row) for length, row in zip(lengths, tokens, strict=True)):
        rows = [row for row in range(len(TEXTS)) if lengths[row] < len(tokens[row]) and draw.random() < 0.7]
        for row in rows:
            more = draw.randint(1, 3)
            alone[row] += read_texts(encoder, [tokens[row][lengths[row] : lengths[row] + more]])[0]
            lengths[row] = min(len(tokens[row]), lengths[row] + more)
        seen = [tokens[row][: lengths[row]] for row in rows]
        if rows:
            assert transcripts.read(rows, seen) == read_texts(encoder, seen)
    assert alone[0] == TEXTS[0] and alone[1] != TEXTS[1]


@pytest.mark.parametrize(("heads", "groups"), ((4, 4), (4, 2), (6, 1)))
def test_short_attention_is_the_librarys(heads: int, groups: int) -> None:
    """Grouped queries, holes in the mask, keys wider than values; control: another mask gives another result."""
    torch.manual_seed(heads)
    query, key = torch.randn(3, heads, 5, 8), torch.randn(3, groups, 11, 8)
    value = torch.randn(3, groups, 11, 6)
    seen = torch.ones(5, 11, dtype=torch.bool).tril(6).expand(3, 1, 5, 11).clone()
    seen[1, :, :, 2:4] = False
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    module = torch.nn.Module()
    setattr(module, "num_key_value_groups", heads // groups)  # noqa: B010  # typed as a tensor or module
    found, _ = short_attention(module, query, key, value, mask, scaling=0.3)
    keys, values = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    wanted = scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    other, _ = short_attention(module, query, key, value, torch.zeros_like(mask), scaling=0.3)
    assert not torch.allclose(other, wanted, atol=1e-2)
    longer = (
        torch.nn.functional.pad(key, (0, 0, 0, LONGEST)),
        torch.nn.functional.pad(value, (0, 0, 0, LONGEST)),
    )
    padded = torch.nn.functional.pad(mask, (0, LONGEST), value=torch.finfo(torch.float32).min)
    fallback, _ = short_attention(module, query, *longer, padded, scaling=0.3)
    torch.testing.assert_close(fallback, wanted, rtol=1e-5, atol=1e-6)


def test_the_librarys_attention_comes_back_after_the_context() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError, match="inside"), inference(torch.device("cpu")):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is short_attention
        raise RuntimeError("inside")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with inference(torch.device("cpu"), short=False):
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_buffers_hold_what_concatenation_would() -> None:
    """Written in windows of rows, grown and compacted."""
    buffer = KeyValueBuffer(1, 3, 4)
    parts = [torch.randn(3, 2, width, 5) for width in (4, 1, 3, 9)]
    window, layer = buffer.window, buffer.buffers[0]
    for first_row, rows in ((0, 2), (2, 1)):  # the first part comes in two passes
        window.first_row, window.rows = first_row, rows
        part = parts[0][first_row : first_row + rows]
        layer.update(part, part * 2)
    window.first_row, window.rows, window.length = 0, 3, 4
    kept = torch.arange(3)
    for number, part in enumerate(parts[1:], 1):
        buffer.reserve(part.shape[2])
        keys, values = layer.update(part[kept], part[kept] * 2)
        window.length += part.shape[2]
        wanted = torch.cat(parts[: number + 1], dim=2)[kept]
        assert torch.equal(keys, wanted) and torch.equal(values, wanted * 2)
        if number == 2:
            kept = torch.tensor([2, 0])
            buffer.select(kept)
    assert buffer.get_seq_length() == 17 and window.capacity >= 17


def test_drafts_pay_where_passes_are_dear_and_not_where_tokens_are() -> None:
    """Algorithms 6.2. The length grows with trust and with what a pass costs beside its tokens."""
    dear, cheap = Pace(1000, 0.0, 100), Pace(0, 0.0, 100)
    assert dear.draft_length(10, 0.8) > 0 and cheap.draft_length(10, 0.8) == 0
    lengths = [dear.draft_length(10, trust) for trust in (0.3, 0.6, 0.9, 0.995)]
    assert lengths == sorted(set(lengths)) and lengths[-1] == LONGEST_DRAFT
    assert Pace(0, 1.0, 100).draft_length(10, 0.9) == 6, "rows that read much share it: 0.9^6 > 1/2 > 0.9^7"
    assert dear.draft_length(1000, 0.9) < dear.draft_length(10, 0.9)
    assert Pace(0, 0.0, 2**25).rows_per_step(4) == 1, "logits of a wide step are bounded"


def test_the_number_of_trials_follows_the_step_time() -> None:
    """Algorithms 6.2: doubled while that gains a tenth; control: a step that costs only by the row gains nothing."""
    assert best_number(StepTime(1.0, 0.0), 100, 8) == 8
    assert best_number(StepTime(0.0, 1.0), 100, 8) == 1
    timed = StepTime(0.010, 0.0001)
    chosen = best_number(timed, 100, 64)
    assert timed.gain(100, chosen) >= LEAST_GAIN * timed.gain(100, chosen // 2)
    assert timed.gain(100, 2 * chosen) < LEAST_GAIN * timed.gain(100, chosen)
    assert best_number(StepTime(1.0, 0.0), 100, 3) == 3
    line = fitted([25, 100, 200], [0.0125, 0.02, 0.03])
    assert (line.fixed, line.per_row) == pytest.approx((0.01, 0.0001))
    assert fitted([25, 100, 200], [0.03, 0.02, 0.01]).per_row == 0.0, "noise makes no negative cost"
