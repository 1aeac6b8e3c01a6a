# SPDX-License-Identifier: Apache-2.0
"""Residual stream at the end of each prompt, by hooks on the decoder blocks (algorithms section 2).

Entry l is the output of block l, the last one before the final norm: `hidden_states[l + 1]` of transformers, except
that the library's last entry is taken after the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from heretic.decoding.passes import Passes
from heretic.decoding.prompts import Prompts
from heretic.exceptions import ExtractionError, NonFiniteError
from heretic.linalg.streaming import StreamingMean
from heretic.model.model import Model


class Prepare(Protocol):
    """`Engine.prepare`, as far as it is needed here."""

    def __call__(self, sequences: Sequence[Sequence[int]], /) -> Prompts: ...


@dataclass(frozen=True, slots=True, eq=False)
class ResidualStats:
    """Statistics of one class of prompts. mean: [L, d] float64. samples: [n, L, d] float32, in prompt order."""

    count: int
    mean: Tensor
    samples: Tensor


@contextmanager
def last_positions(model: Model) -> Iterator[list[Tensor]]:
    """Collect the last position of each block's output, [rows, d] float32 on the CPU, during one forward pass."""
    collected: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        assert isinstance(hidden, Tensor)
        collected.append(hidden[:, -1, :].float().cpu())

    handles = [block.register_forward_hook(keep) for block in model.blocks()]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def capture(
    model: Model,
    sequences: Sequence[Sequence[int]],
    *,
    run: Callable[[Sequence[Sequence[int]], Callable[[Sequence[Sequence[int]]], Tensor]], list[Tensor]],
    prepare: Prepare | None = None,
) -> ResidualStats:
    """Residuals of token sequences. `run` splits the work into batches that fit (see `batching.AdaptiveBatch`);
    `prepare` is an engine's, which computes a common start once; without it nothing is shared.

    Raises `NonFiniteError` with layer and prompt number, `ExtractionError` for an empty list.
    """
    if not sequences:
        raise ExtractionError(
            "There is no prompt to capture residuals of.", hint="Check the prompt source's slice."
        )

    def forward(rows: Sequence[Sequence[int]]) -> Tensor:
        prompts = Prompts(model, rows) if prepare is None else prepare(rows)
        samples = torch.empty((len(rows), model.architecture.layers, model.architecture.hidden_size))
        with last_positions(model) as collected:
            for passed in Passes(model, prompts, None).run():
                # The pass over a common start was the first to be collected; the last one is the rows'.
                samples[passed.rows] = torch.stack(collected[-model.architecture.layers :], dim=1)
                collected.clear()
        return samples

    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    sorted_samples = torch.cat(run([sequences[row] for row in order], forward))
    samples = torch.empty_like(sorted_samples)
    samples[torch.tensor(order)] = sorted_samples
    finite = torch.isfinite(samples).all(dim=2)
    if not bool(finite.all()):
        prompt, layer = (int(value) for value in torch.nonzero(~finite)[0])
        raise NonFiniteError(
            f"The residual of prompt {prompt} is NaN or infinite at layer {layer} (dtype {model.dtype}).",
            hint="Use a wider dtype: --dtypes bfloat16,float32.",
        )
    mean = StreamingMean()
    mean.add(samples)
    return ResidualStats(count=int(samples.shape[0]), mean=mean.mean, samples=samples)
