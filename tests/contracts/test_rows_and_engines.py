# SPDX-License-Identifier: Apache-2.0
"""Every family: many trials in one pass, decoded by either engine, are each trial alone in weight form
(algorithms 6.1, 6.4, 6.6; R-EVA-08, reliability E02, E06, E08)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch

from heretic.decoding import FastEngine, ReferenceEngine, choose_engine
from heretic.decoding.fast import selectable
from heretic.decoding.library_cache import cache_of
from heretic.decoding.protocol import Engine, Stopper
from heretic.exceptions import GenerationError
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.probe import edited_weights
from heretic.model.model import Model
from heretic.testing.pico import PICO_FAMILIES
from heretic.testing.workbench import loaded_pico, removal

NO_CACHE = ("mamba", "mamba2", "falcon_mamba", "recurrent_gemma")
"""State-space families that keep their state elsewhere: reference engine only."""

NOT_SELECTABLE = (
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "granitemoehybrid",
    "lfm2",
    "lfm2_moe",
    "falcon_h1",
    "jamba",
    "nemotron_h",
    "bamba",
)
"""Hybrids whose recurrent state cannot drop rows exactly."""

BATCH_SENSITIVE = ("recurrent_gemma",)
"""The library's own convolution reads the padding: batch against batch (algorithms 6.6)."""

CACHED = tuple(name for name in PICO_FAMILIES if name not in NO_CACHE)
LIMIT = 12


@cache
def model_of(name: str) -> Model:
    return loaded_pico(name)


@cache
def trials_of(name: str) -> tuple[Edits, ...]:
    model = model_of(name)
    return removal(model, 1, 1.0), removal(model, 2, 0.7, rank=2), removal(model, 3, 1.4)


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(80, 160, (size,), generator=generator).tolist()) for size in (5, 9, 3, 7)]


def logits(model: Model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return model.logits(model.batch(rows), 3)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))


def decoded(
    model: Model,
    engine: Engine,
    trials: Sequence[Edits],
    assignment: Sequence[int],
    rows: Sequence[tuple[int, ...]],
    stop: Stopper | None = None,
) -> list[tuple[int, ...]]:
    state = Rows(torch.tensor(list(assignment)))
    with applied(model.network, trials, state):
        decoding = engine.start(rows, stop=stop, rows=state)
        decoding.advance(LIMIT // 2)
        decoding.advance(LIMIT)
    return [reply.tokens for reply in decoding.replies()]


@pytest.mark.parametrize("name", PICO_FAMILIES)
def test_a_pass_of_several_trials_is_each_trial_in_weight_form_and_changes_no_weight(name: str) -> None:
    """Algorithms 6.1, architecture rule 3, E06: permuted rows, a base row and a strength-0 row beside the others."""
    model, trials = model_of(name), (*trials_of(name), removal(model_of(name), 4, 0.0))
    before = {path: parameter.clone() for path, parameter in model.network.named_parameters()}
    texts = prompts() + prompts()[:2]
    assignment = [1, 0, 2, 4, 3, 0]
    base = logits(model, texts)
    with applied(model.network, trials, Rows(torch.tensor(assignment))):
        together = logits(model, texts)
    with applied(model.network, trials[3:], Rows(torch.tensor([0, 1, 0, 1, 0, 1]))):
        assert torch.equal(logits(model, texts), base), "strength 0 and base rows change no bit"
    assert close(together[3:5], base[3:5]), "the base row and the strength-0 row"
    for row, trial in enumerate(assignment):
        part = slice(row, row + 1)
        with edited_weights(model.network, trials[trial] if trial < len(trials) else {}):
            alone = logits(model, texts)[part] if name in BATCH_SENSITIVE else logits(model, texts[part])
        assert close(together[part], alone), f"row {row}"
    swapped = [0, 1, *assignment[2:]]
    with applied(model.network, trials, Rows(torch.tensor(swapped))):
        wrong = logits(model, texts)
    assert not close(wrong[:2], together[:2]), "control: two rows' trial indices swapped"
    assert all(torch.equal(before[path], value) for path, value in model.network.named_parameters())


@pytest.mark.parametrize("name", CACHED)
def test_the_fast_engine_writes_the_tokens_of_the_reference_engine(name: str) -> None:
    """Algorithms 6.6: left-padded unequal prompts, three trials, early exit, compaction, one prompt at a time."""
    model, trials, texts = model_of(name), trials_of(name), prompts()
    assignment = [trial for trial in range(3) for _ in texts]
    rows = texts * 3

    def leave(rows: Sequence[int], texts: Sequence[str]) -> list[bool]:
        return [row % 2 == 1 for row in rows]

    reference = decoded(model, ReferenceEngine(model), trials, assignment, rows)
    assert decoded(model, FastEngine(model), trials, assignment, rows) == reference
    shorter = decoded(model, FastEngine(model), trials, assignment, rows, leave)
    assert shorter[::2] == reference[::2]
    assert all(part == whole[: len(part)] for part, whole in zip(shorter, reference, strict=True))
    assert all(len(part) <= LIMIT // 2 for part in shorter[1::2])
    for row in (1, 6, 8):
        with edited_weights(model.network, trials[assignment[row]]):
            alone = decoded(model, ReferenceEngine(model), [{}], [0], rows[row : row + 1])
        assert alone == [reference[row]], "batch = single, hooks = weights"
    assert len(set(reference)) > 4, "control: replies depend on prompt and trial"


@pytest.mark.parametrize("name", NO_CACHE)
def test_a_model_without_a_cache_gets_an_engine_that_is_right(name: str) -> None:
    """Algorithms 6.4: where the library shows no cache the fast engine refuses with a typed error and `auto` says what
    it does; from 5.24 on the library shows the state of some, and then the start-up probe decides."""
    model, trials = model_of(name), trials_of(name)
    batch = model.batch([prompts()[2]])
    with torch.inference_mode():
        output = model.network(input_ids=batch.ids, attention_mask=batch.mask, use_cache=True)
    engine, note = choose_engine(model)
    if cache_of(output) is None:
        with pytest.raises(GenerationError, match="no key-value cache"):
            FastEngine(model).start(prompts())
        assert engine.name == "reference"
    assert (engine.name == "reference") == ("reference engine" in note)
    same = [prompts()[1]] * 3
    together = decoded(model, engine, trials, [0, 1, 2], same)
    alone = [decoded(model, ReferenceEngine(model), trials, [trial], same[:1])[0] for trial in range(3)]
    assert together == alone


@pytest.mark.parametrize("name", ("llama", "gemma3", "gpt2", "mixtral", "lfm2", "qwen3_next"))
def test_auto_is_the_fast_engine_where_its_probe_holds(name: str) -> None:
    engine, note = choose_engine(model_of(name))
    assert (engine.name, note) == ("fast", "")
    assert choose_engine(model_of(name), "reference")[0].name == "reference"


class _NoShift(Model):
    """Positions as if padding were text: what a decode loop without the shift would compute."""

    def batch(self, sequences):  # type: ignore[no-untyped-def]  # test double of one method
        batch = super().batch(sequences)
        positions = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        return type(batch)(ids=batch.ids, mask=batch.mask, positions=positions)


def _shiftless(model: Model) -> Model:
    return _NoShift(
        network=model.network,
        encoder=model.encoder,
        architecture=model.architecture,
        source=model.source,
        dtype=model.dtype,
    )


@pytest.mark.parametrize("name", ("gpt2", "llama"))
def test_control_wrong_positions_are_seen(name: str) -> None:
    """Control of the engine contract and of the start-up probe: the prefill's positions without the padding shift."""
    model, trials, texts = model_of(name), trials_of(name), prompts()
    broken = decoded(_shiftless(model), FastEngine(_shiftless(model)), trials, [0, 1, 2, 0], texts)
    assert broken != decoded(model, ReferenceEngine(model), trials, [0, 1, 2, 0], texts)


def test_the_probe_turns_a_broken_loop_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithms 6.4: a loop with wrong positions makes `auto` take the reference engine (control: unbroken, above)."""
    from heretic.decoding import fast

    step = fast.FastDecoding._step

    def frozen(self: fast.FastDecoding, limit: int) -> None:
        self._position = self._position - 1
        step(self, limit)

    monkeypatch.setattr(fast.FastDecoding, "_step", frozen)
    engine, note = choose_engine(model_of("gpt2"))
    assert engine.name == "reference"
    assert "tokens differ" in note


@pytest.mark.parametrize("name", CACHED)
def test_only_plain_key_value_caches_count_as_selectable(name: str) -> None:
    model = model_of(name)
    batch = model.batch([prompts()[2]])
    with torch.inference_mode():
        output = model.network(input_ids=batch.ids, attention_mask=batch.mask, use_cache=True)
    assert selectable(cache_of(output)) == (name not in NOT_SELECTABLE)


def test_an_exception_inside_leaves_no_hook_and_no_changed_bit() -> None:
    """E02, E08, architecture rule 3."""
    model, texts = model_of("gemma3"), prompts()
    before = {path: parameter.clone() for path, parameter in model.network.named_parameters()}
    clean = logits(model, texts)
    with (
        pytest.raises(torch.OutOfMemoryError),
        applied(model.network, trials_of("gemma3"), Rows(torch.tensor([0, 1, 2, 0]))),
    ):
        assert not torch.equal(logits(model, texts), clean), "control: inside, the hooks act"
        raise torch.OutOfMemoryError("injected")
    assert torch.equal(logits(model, texts), clean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    assert all(torch.equal(before[path], value) for path, value in model.network.named_parameters())


@pytest.mark.parametrize("name", ("olmo2", "gpt2", "lfm2"))
def test_end_tokens_and_suppressed_tokens_are_honoured_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Algorithms 6.4: replies end at any end token, which is no part of them; the model's own suppression holds."""
    model, texts = model_of(name), prompts()
    free = decoded(model, FastEngine(model), [], [0] * 4, texts)
    common = max(
        {token for reply in free for token in reply}, key=lambda token: sum(token in r for r in free)
    )
    configured = model.network.generation_config
    assert configured is not None
    monkeypatch.setattr(configured, "eos_token_id", [2, common])
    replies = []
    for engine in (FastEngine(model), ReferenceEngine(model)):
        decoding = engine.start(texts)
        decoding.advance(LIMIT)
        replies.append(decoding.replies())
    assert replies[0] == replies[1]
    assert [reply.ended for reply in replies[0]] == [common in tokens for tokens in free]
    assert all(common not in reply.tokens for reply in replies[0])
    monkeypatch.setattr(configured, "eos_token_id", 2)
    monkeypatch.setattr(configured, "suppress_tokens", [common])
    suppressed = decoded(model, FastEngine(model), [], [0] * 4, texts)
    assert suppressed == decoded(model, ReferenceEngine(model), [], [0] * 4, texts)
    assert all(common not in tokens for tokens in suppressed) and suppressed != free
