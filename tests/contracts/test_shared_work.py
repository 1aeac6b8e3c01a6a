# SPDX-License-Identifier: Apache-2.0
"""Every family: what trials share with the base and with one another changes no token and no logit
(algorithms 6.3, 6.4, 6.6; R-EVA-07, R-EVA-08, R-PRF-07)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

from heretic.decoding import Engine, FastEngine, ReferenceEngine, Reply, choose_engine
from heretic.decoding.buffer import BufferedLayer
from heretic.decoding.fast import FULL, FastDecoding
from heretic.decoding.prompts import Prompts, Slice
from heretic.decoding.steps import Pace, Steps
from heretic.exceptions import AbliterationError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.probe import edited_weights
from heretic.model.model import Model
from heretic.testing.pico import PICO_FAMILIES
from heretic.testing.workbench import loaded_pico, removal

OTHER_CACHE = (
    "mpt",
    "granitemoehybrid",
    "qwen3_next",
    "qwen3_5",
    "qwen3_5_moe",
    "lfm2",
    "lfm2_moe",
    "falcon_h1",
    "jamba",
    "nemotron_h",
    "bamba",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "recurrent_gemma",
)
"""Their cache is not one of plain key-value layers, so nothing is shared."""

SHARING = tuple(name for name in PICO_FAMILIES if name not in OTHER_CACHE)
LIMIT = 10
KEEP = 4
BUDGET = 2**24


@pytest.fixture(autouse=True)
def nothing_unwritten_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """New room in the buffers holds NaN, not what happens to lie in memory: one read would reach every logit."""
    made, grown = BufferedLayer.lazy_initialization, BufferedLayer.select

    def make(layer: BufferedLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
        made(layer, keys, values)
        poison(layer, layer.window.gap)

    def grow(layer: BufferedLayer, rows: torch.Tensor, columns: int, capacity: int) -> None:
        grown(layer, rows, columns, capacity)
        poison(layer, columns)

    def poison(layer: BufferedLayer, first: int) -> None:
        for buffer in (layer._keys, layer._values):
            if buffer is not None:
                buffer[:, :, first:] = torch.nan

    monkeypatch.setattr(BufferedLayer, "lazy_initialization", make)
    monkeypatch.setattr(BufferedLayer, "select", grow)


@cache
def model_of(name: str) -> Model:
    return loaded_pico(name)


def sequences() -> list[tuple[int, ...]]:
    """Six prompts with a common start of seven tokens and rests of 2 to 9."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(80, 160, (7,), generator=generator).tolist()
    rests = [torch.randint(80, 160, (size,), generator=generator).tolist() for size in (2, 4, 4, 7, 8, 9)]
    return [tuple(start + [160 + number] + rest) for number, rest in enumerate(rests)]


def trials_of(model: Model) -> list[Edits]:
    """Everywhere; from the second block on; in the last block only; nowhere."""
    last = model.architecture.layers - 1
    whole = [removal(model, seed, strength) for seed, strength in ((1, 1.0), (2, 1.3), (3, 0.8))]
    upper = {site: edit for site, edit in whole[1].items() if site.layer >= 1}
    top = {site: edit for site, edit in whole[2].items() if site.layer >= last}
    return [whole[0], upper, top, {}]


def decoded(
    model: Model, engine: Engine, prompts: Prompts, trials: Sequence[Edits], limit: int = LIMIT
) -> list[Reply]:
    count = len(prompts)
    rows = Rows(torch.arange(len(trials)).repeat_interleave(count))
    with applied(model.network, trials, rows):
        decoding = engine.start(prompts, rows=rows)
        decoding.advance(3)
        decoding.advance(limit)
    return decoding.replies()


def base(engine: Engine, prompts: Prompts, limit: int = LIMIT) -> list[Reply]:
    decoding = engine.start(prompts)
    decoding.advance(limit)
    return decoding.replies()


def logits(model: Model, engine: Engine, prompts: Prompts, trials: Sequence[Edits] | None) -> torch.Tensor:
    """[rows, KEEP, V] in the order of the rows; trials None = the base without hooks."""
    if trials is None:
        parts = list(engine.logits(prompts))
    else:
        rows = Rows(torch.arange(len(trials)).repeat_interleave(len(prompts)))
        with applied(model.network, trials, rows):
            parts = list(engine.logits(prompts, rows=rows))
    order = torch.tensor([row for part in parts for row in part.rows])
    assert sorted(order.tolist()) == list(range(len(order)))
    return torch.cat([part.logits for part in parts])[order.argsort()]


@contextmanager
def counted(model: Model) -> Iterator[list[tuple[int, int]]]:
    """(block, tokens) of every call of a block's own forward."""
    calls: list[tuple[int, int]] = []
    handles = []
    for number, block in enumerate(model.blocks()):
        mixer = next(
            child for name, child in block.named_children() if "norm" in name.lower() or "ln" in name
        )

        def hook(
            module: object, arguments: tuple[torch.Tensor, ...], output: object, number: int = number
        ) -> None:
            calls.append((number, arguments[0].shape[0] * arguments[0].shape[1]))

        handles.append(mixer.register_forward_hook(hook))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", SHARING[::6])
def test_drafts_of_different_lengths_are_fed_in_runs_and_change_no_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that costs nothing by itself: every length of draft gets a pass of its own, over trials and columns that
    the other passes of the step leave alone. Control: such steps do occur."""
    model, reference = model_of(name), ReferenceEngine(model_of(name))
    engine = FastEngine(model, reuse_bytes=BUDGET)
    trials = trials_of(model)
    engine.pace = replace(engine.pace, overhead_tokens=0, row_tokens=0.0)
    prompts = engine.prepare(sequences(), reply=LIMIT, reuse=True)
    assert len(prompts.slices) == 5, (
        "prompts of different lengths too, which leaves a gap before the shorter ones"
    )
    base(engine, prompts)
    wanted = [reply.tokens for reply in decoded(model, reference, reference.prepare(sequences()), trials)]
    steps: list[set[int]] = []
    found, runs = Steps.offered, FastDecoding._runs

    def uneven(self: Steps, slots: Sequence[int], limit: int) -> list[tuple[int, ...]]:
        return [draft[: row % 4] for row, draft in zip(slots, found(self, slots, limit), strict=True)]

    def watched(self: FastDecoding, widths: Sequence[int]) -> list[Slice]:
        made = runs(self, widths)
        steps.append({run.width for run in made})
        return made

    monkeypatch.setattr(Steps, "offered", uneven)
    monkeypatch.setattr(Pace, "draft_length", lambda pace, rows, trust: 8)
    monkeypatch.setattr(FastDecoding, "_runs", watched)
    for _ in range(2):
        assert [reply.tokens for reply in decoded(model, engine, prompts, trials)] == wanted
    assert max(len(widths) for widths in steps) >= 3


@pytest.mark.parametrize("name", SHARING)
def test_shared_starts_lower_blocks_and_drafts_change_no_token_and_no_logit(name: str) -> None:
    """Trials edited from block 0, 1 and the last, and one that edits nothing, in one batch."""
    model, reference = model_of(name), ReferenceEngine(model_of(name))
    engine = FastEngine(model, reuse_bytes=BUDGET)
    trials = trials_of(model)
    prompts = engine.prepare(sequences(), reply=LIMIT, reuse=True)
    assert engine.mode == FULL and prompts.shared and len(prompts.prefix) == 7
    plain = reference.prepare(sequences())
    assert [reply.tokens for reply in base(engine, prompts)] == [r.tokens for r in base(reference, plain)]
    wanted = [reply.tokens for reply in decoded(model, reference, plain, trials)]
    for _ in range(2):  # the second time their own replies are known and tried as drafts
        assert [reply.tokens for reply in decoded(model, engine, prompts, trials)] == wanted
    assert len({*wanted}) > len(sequences()), "control: trials write different replies"
    scored, slow = (
        engine.prepare(sequences(), keep=KEEP, reuse=True),
        reference.prepare(sequences(), keep=KEEP),
    )
    whole = logits(model, reference, slow, None)
    near = 1e-5 * float(whole.abs().max())
    torch.testing.assert_close(logits(model, engine, scored, None), whole, rtol=1e-5, atol=near)
    found = logits(model, engine, scored, trials)
    torch.testing.assert_close(found, logits(model, reference, slow, trials), rtol=1e-5, atol=near)
    for number, edits in enumerate(trials[:2]):
        with edited_weights(model.network, edits):
            alone = logits(model, reference, slow, None)
        part = found[number * len(prompts) : (number + 1) * len(prompts)]
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("name", SHARING)
def test_auto_gives_every_such_family_the_whole_loop(name: str) -> None:
    engine, note = choose_engine(model_of(name), reuse_bytes=BUDGET)
    assert isinstance(engine, FastEngine) and (engine.mode, note) == (FULL, "")


@pytest.mark.parametrize("name", OTHER_CACHE)
def test_another_cache_shares_nothing(name: str) -> None:
    """Algorithms 6.4: such a family keeps the loop over its own cache, or the reference engine."""
    engine, _ = choose_engine(model_of(name), reuse_bytes=BUDGET)
    prompts = engine.prepare(sequences(), reply=LIMIT, reuse=True)
    assert not prompts.shared and not prompts.prefix and prompts.lower is None
    replies = [reply.tokens for reply in base(engine, prompts)]
    assert replies == [reply.tokens for reply in base(ReferenceEngine(model_of(name)), prompts)]


def test_blocks_below_an_edit_are_not_computed_again_and_a_shared_start_once_per_trial() -> None:
    """R-PRF-07. Control: without the budget every block computes, without a common start every token."""
    model = model_of("llama")
    trials = trials_of(model)[2:3] * 2
    last = model.architecture.layers - 1
    rests = sum(len(sequence) - 7 for sequence in sequences())

    def work(engine: FastEngine, prompts: Prompts) -> dict[int, int]:
        logits(model, engine, prompts, None)
        with counted(model) as calls:
            logits(model, engine, prompts, trials)
        return {
            block: sum(tokens for number, tokens in calls if number == block) for block in range(last + 1)
        }

    kept = FastEngine(model, reuse_bytes=BUDGET)
    found = work(kept, kept.prepare(sequences(), keep=1, reuse=True))
    assert all(found[block] == 0 for block in range(last))
    assert 2 * rests + 7 <= found[last] <= 2 * (rests + 4 * len(sequences()) + 7)
    every = work(FastEngine(model), FastEngine(model).prepare(sequences(), keep=1))
    assert len(set(every.values())) == 1 and every[0] == found[last]
    alone = [(number, *sequence) for number, sequence in enumerate(sequences())]
    assert work(kept, kept.prepare(alone, keep=1, reuse=True))[last] > found[last] + 5 * 7


def test_too_small_a_budget_keeps_fewer_checkpoints_or_none() -> None:
    model = loaded_pico("llama", changes={"num_hidden_layers": 8})
    found = []
    for budget in (BUDGET, 40_000, 20_000, 100):
        engine = FastEngine(model, reuse_bytes=budget)
        prompts = engine.prepare(sequences(), keep=2, reuse=True)
        logits(model, engine, prompts, None)
        assert prompts.lower is not None and prompts.lower.bytes <= budget
        found.append(len(prompts.lower.checkpoints))
        trials = [{site: edit for site, edit in removal(model, 4).items() if site.layer >= 5}]
        slow = ReferenceEngine(model).prepare(sequences(), keep=2)
        torch.testing.assert_close(
            logits(model, engine, prompts, trials), logits(model, ReferenceEngine(model), slow, trials)
        )
    assert found == sorted(found, reverse=True) and found[0] == 7 and found[-1] == 0 and found[1] > found[2]


def test_an_edit_below_what_was_kept_is_refused_and_an_edited_embedding_uses_nothing() -> None:
    """Algorithms 6.3, control: an embedding edit with a stale store raises."""
    model = model_of("gemma2")
    engine = FastEngine(model, reuse_bytes=BUDGET)
    prompts = engine.prepare(sequences(), keep=KEEP, reuse=True)
    logits(model, engine, prompts, None)
    assert prompts.lower is not None
    assert [prompts.lower.entry_block(lowest) for lowest in (-1, 0)] == [0, 0]
    trials = trials_of(model)[:1]
    rows = Rows(torch.zeros(len(prompts), dtype=torch.int64))
    with applied(model.network, trials, rows), pytest.raises(AbliterationError, match="begin at block"):
        assert rows.lowest == (0,)
        prompts.lower.entry_block = lambda lowest: 1  # type: ignore[method-assign]  # a store that is wrong
        list(engine.logits(prompts, rows=rows))
    assert all("forward" not in vars(block) for block in model.blocks()), "nothing is left patched"


def test_beyond_a_sliding_window_nothing_is_shared() -> None:
    """A window of 12 tokens: prompts with their replies are longer, so the library's own cache is used."""
    model = loaded_pico("mistral", changes={"sliding_window": 12})
    engine, slow = FastEngine(model, reuse_bytes=BUDGET), ReferenceEngine(model)
    assert engine.longest == 12
    assert not engine.prepare(sequences(), reply=LIMIT, reuse=True).shared
    assert engine.prepare([sequence[:8] for sequence in sequences()], reply=4).shared
    trials = trials_of(model)
    fast = decoded(model, engine, engine.prepare(sequences(), reply=LIMIT, reuse=True), trials)
    assert [r.tokens for r in fast] == [
        r.tokens for r in decoded(model, slow, slow.prepare(sequences()), trials)
    ]


def test_known_replies_save_steps_and_wrong_ones_cost_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts from earlier replies: fewer passes for the same tokens, also when every draft is wrong somewhere."""
    model = model_of("llama")
    engine = FastEngine(model, reuse_bytes=BUDGET)
    prompts = engine.prepare(sequences(), reply=24, reuse=True)
    passes = []
    step = FastDecoding._step

    def counting(self: FastDecoding, limit: int) -> None:
        passes.append(limit)
        step(self, limit)

    monkeypatch.setattr(FastDecoding, "_step", counting)
    trials = trials_of(model)[:1]
    first = decoded(model, engine, prompts, trials, 24)
    without = len(passes)
    passes.clear()
    assert decoded(model, engine, prompts, trials, 24) == first
    assert len(passes) <= without // 3
    trusted = prompts.trust
    for number, reply in enumerate(first):
        prompts.known[number].clear()
        prompts.learn(number, (*reply.tokens[:9], 80, *reply.tokens[10:]))
    assert decoded(model, engine, prompts, trials, 24) == first
    assert prompts.trust < trusted, "control: drafts were tried and found wrong"


def test_a_row_ends_at_the_token_that_decided_it_also_inside_a_draft() -> None:
    """Replies of a trial do not depend on what was drafted. Control: a row was cut in the middle of a draft."""
    model = model_of("llama")
    engine, slow = FastEngine(model, reuse_bytes=BUDGET), ReferenceEngine(model)
    prompts = engine.prepare(sequences(), reply=24, reuse=True)
    whole = base(engine, prompts, 24)
    words = [reply.text[: len(reply.text) // 2 + 1] for reply in whole]

    def stop(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
        return [text.startswith(words[row]) for row, text in zip(rows, texts, strict=True)]

    found = []
    for mine, given in ((slow, slow.prepare(sequences())), (engine, prompts)):
        decoding = mine.start(given, stop=stop)
        decoding.advance(24)
        found.append([(reply.tokens, reply.ended) for reply in decoding.replies()])
    assert found[0] == found[1]
    lengths = [len(tokens) for tokens, _ in found[1]]
    assert all(0 < cut < len(reply.tokens) for cut, reply in zip(lengths, whole, strict=True))
