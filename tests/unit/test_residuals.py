# SPDX-License-Identifier: Apache-2.0
"""Residuals at the last prompt token of every block (algorithms section 2, reliability E02, E08)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heretic.batching import AdaptiveBatch
from heretic.decoding import FastEngine
from heretic.exceptions import ExtractionError, NonFiniteError
from heretic.linalg.streaming import StreamingMean
from heretic.model.model import Model
from heretic.residuals import ResidualStats, capture, capture_at, last_positions
from heretic.testing.workbench import loaded_pico

FAMILIES = ("llama", "gemma3", "gpt2", "mixtral", "gpt_oss", "lfm2")


def prompts(count: int = 7) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(4)
    sizes = [6, 3, 11, 4, 9, 3, 7][:count]
    return [tuple(torch.randint(80, 160, (size,), generator=generator).tolist()) for size in sizes]


def captured(model: Model, rows: Sequence[Sequence[int]], width: int = 3) -> ResidualStats:
    return capture(model, rows, run=AdaptiveBatch("residuals", width))


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_mixed_lengths_is_one_by_one(name: str) -> None:
    """R-MOD-40; rows stand in the order of the prompts whatever the batches were."""
    model, rows = loaded_pico(name), prompts()
    together = captured(model, rows)
    alone = torch.cat([captured(model, [row]).samples for row in rows])
    assert together.count == 7
    assert together.samples.shape == (7, model.architecture.layers, model.architecture.hidden_size)
    assert close(together.samples, alone)
    assert torch.allclose(together.mean, together.samples.double().mean(dim=0), atol=1e-12)
    assert not close(alone[:1], alone[1:2]), "control: prompts differ"


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_of_a_text_are_the_ends_of_its_prefixes(name: str) -> None:
    """One pass over each text, with and without a common start, against a pass over every prefix."""
    model = loaded_pico(name)
    texts = [tuple(range(80, 86)) + row for row in prompts()]
    distances = torch.tensor([[1, 3, 2 + len(text) // 3] for text in texts])
    prefixes = [
        text[: len(text) - int(back) + 1] for text, row in zip(texts, distances, strict=True) for back in row
    ]
    wanted = captured(model, prefixes).samples
    run = AdaptiveBatch("residuals", 3)
    assert close(capture_at(model, texts, distances, run=run), wanted)
    assert close(capture_at(model, texts, distances, run=run, prepare=FastEngine(model).prepare), wanted)
    assert not close(capture_at(model, texts, distances + 1, run=run), wanted), "control: other positions"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_common_start_that_is_computed_once_changes_no_residual(name: str) -> None:
    """The engine's own preparation, two prompts of one length and others. Control: the start is shared where it can."""
    model, start = loaded_pico(name), tuple(range(80, 90))
    rows = [start + row for row in prompts()]
    engine = FastEngine(model)
    assert (len(engine.prepare(rows).prefix) == len(start)) == (engine.longest is not None)
    shared = capture(model, rows, run=AdaptiveBatch("residuals", len(rows)), prepare=engine.prepare)
    assert close(shared.samples, captured(model, rows).samples)


def test_control_right_padding_reads_padding() -> None:
    """Section 2 test 1, control: padded on the right, the last position is not the last token."""
    model, rows = loaded_pico("llama"), prompts(2)
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    with last_positions(model) as collected, torch.inference_mode():
        model.network(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False)
    right = torch.stack(collected, dim=1)
    assert not close(right, captured(model, rows).samples)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_entry_is_the_block_output_before_the_final_norm(name: str) -> None:
    """Section 2 test 2, bit for bit; control: the library's last hidden state stands behind the norm."""
    model, row = loaded_pico(name), prompts(1)
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0][:, -1].clone())

    handle = model.network.get_submodule(model.architecture.final_norm).register_forward_pre_hook(keep)
    with torch.inference_mode():
        samples = captured(model, row).samples
        batch = model.batch(row)
        library = model.network(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
        ).hidden_states
    handle.remove()
    assert torch.equal(samples[:, -1], seen[0])
    assert torch.equal(samples[:, 0], library[1][:, -1]), "entry l is hidden_states[l + 1]"
    assert not close(samples[:, -1], library[-1][:, -1])


def test_hooks_are_removed_after_an_exception() -> None:
    model = loaded_pico("llama")
    with pytest.raises(KeyError), last_positions(model):
        assert all(block._forward_hooks for block in model.blocks()), "control: inside, they are there"
        raise KeyError
    assert not any(module._forward_hooks for module in model.network.modules())


def test_a_value_that_is_not_finite_is_named() -> None:
    """C05, R-ERR: layer, number of the prompt in the caller's order, dtype."""
    model, rows = loaded_pico("llama"), [*prompts(3), (200, 90, 91)]
    captured(model, rows)
    with torch.no_grad():
        model.network.get_parameter("model.embed_tokens.weight")[200] = float("nan")
    with pytest.raises(NonFiniteError, match=r"prompt 3 .* layer 0 .*float32"):
        captured(model, rows)


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(ExtractionError, match="no prompt"):
        captured(loaded_pico("llama"), [])


@pytest.mark.parametrize("split", ((10,), (1, 9), (3, 3, 4), (0, 10)))
def test_the_streaming_mean_is_the_mean_in_any_split(split: tuple[int, ...]) -> None:
    """Section 2 test 3, on data with a large offset; control: a float32 sum is off by more."""
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    mean = StreamingMean()
    for part in rows.split(list(split)):
        mean.add(part)
    assert mean.count == 10
    truth = np.mean(rows.numpy(), axis=0)
    assert np.abs(mean.mean.numpy() - truth).max() < 1e-9
    assert np.abs(rows.float().sum(dim=0).numpy() / 10 - truth).max() > 1e-4
