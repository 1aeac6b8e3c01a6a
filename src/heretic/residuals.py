# SPDX-License-Identifier: Apache-2.0
"""Residual stream at the end of each prompt, by hooks on the decoder blocks (algorithms section 2).

Entry l is the output of block l, the last one before the final norm: `hidden_states[l + 1]` of transformers, except
that the library's last entry is taken after the final norm. With replies, each entry is the mean over the tokens of
the reply. What other modules are given or return is read in the same way (`captured`).
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

from heretic.decoding.passes import Passes
from heretic.decoding.prompts import Prompts
from heretic.exceptions import ExtractionError, NonFiniteError
from heretic.linalg.streaming import StreamingMean
from heretic.model.model import Model

logger = logging.getLogger("heretic.residuals")

Tokens = Sequence[int]


class Prepare(Protocol):
    """`Engine.prepare`, as far as it is needed here."""

    def __call__(self, sequences: Sequence[Tokens], /, *, keep: int = 1) -> Prompts: ...


class Run(Protocol):
    """Splits work into batches that fit and calls the function with each (see `batching.AdaptiveBatch`)."""

    def __call__(self, items: Sequence[int], function: Callable[[Sequence[int]], None], /) -> object: ...


@dataclass(frozen=True, slots=True, eq=False)
class ResidualStats:
    """Statistics of one class of prompts. mean: [L, d] float64. samples: [n, L, d] float32, in prompt order."""

    count: int
    mean: Tensor
    samples: Tensor


@dataclass(frozen=True, slots=True)
class Tap:
    """Where activations are read. module: path of a module. inputs: what it is given, not what it returns. name: what
    messages call the place."""

    module: str
    name: str
    inputs: bool = False


def block_taps(model: Model) -> list[Tap]:
    """The output of every decoder block."""
    return [Tap(path, f"layer {layer}") for layer, path in enumerate(model.architecture.blocks)]


@contextmanager
def collecting(model: Model, taps: Sequence[Tap], pool: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Collect, during each forward pass, what `pool` makes of [rows, positions, width] at each tap, in their order.

    pool: returns [rows, width] float32 on the CPU. A later pass replaces what an earlier one left.
    """
    collected = [torch.empty(0) for _ in taps]
    rows = 1

    def begin(module: nn.Module, arguments: tuple[object, ...], named: dict[str, Tensor]) -> None:
        nonlocal rows
        rows = len(named["input_ids"])

    def keep(number: int) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
            returned = output[0] if isinstance(output, tuple) else output
            found = arguments[0] if taps[number].inputs else returned
            assert isinstance(found, Tensor)
            # Some modules see all tokens in one line.
            collected[number] = pool(found.reshape(rows, -1, found.shape[-1]))

        return hook

    handles = [model.network.register_forward_pre_hook(begin, with_kwargs=True)]
    for number, tap in enumerate(taps):
        handles.append(model.network.get_submodule(tap.module).register_forward_hook(keep(number)))
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def last_positions(model: Model) -> Iterator[list[Tensor]]:
    """Collect the last position of each block's output, [rows, d] float32 on the CPU, during one forward pass."""
    with collecting(model, block_taps(model), lambda hidden: hidden[:, -1].float().cpu()) as collected:
        yield collected


def mean_of_last(hidden: Tensor, counts: Tensor) -> Tensor:
    """[rows, width] float32 on the CPU: the mean of the last counts[row] positions of hidden [rows, positions, width].

    Earlier positions are not even multiplied: padding may hold anything.
    """
    ends = hidden[:, -int(counts.max()) :].float()
    distance = torch.arange(ends.shape[1], 0, -1, device=hidden.device)
    divisor = counts.to(hidden.device)[:, None]
    inside = distance[None, :] <= divisor
    summed = torch.where(inside[:, :, None], ends, ends.new_zeros(())).sum(dim=1)
    return (summed / divisor).cpu()


def captured(
    model: Model,
    sequences: Sequence[Tokens],
    taps: Sequence[Tap],
    *,
    run: Run,
    prepare: Prepare | None = None,
    replies: Sequence[Tokens] | None = None,
) -> tuple[Tensor, list[int]]:
    """What the taps hold, side by side, [n, sum of widths] float32 on the CPU in the order given, and the widths.

    sequences: prompts as token ids. replies: one for each; then the mean over its tokens is taken, all seen after
    prompt and reply are run as one sequence. A reply without tokens counts as its prompt's last position, the one that
    chose to say nothing. `run` splits the work; `prepare` is an engine's, which computes a common start once.

    Raises `NonFiniteError` with place and prompt number, `ExtractionError` where there is nothing to read.
    """
    counts = _counts(sequences, replies)
    whole = [tuple(row) for row in sequences]
    if replies is not None:
        whole = [(*row, *reply) for row, reply in zip(whole, replies, strict=True)]
    return _read(
        model,
        whole,
        taps,
        counts,
        lambda hidden, rows: mean_of_last(hidden, counts[rows]),
        run=run,
        prepare=prepare,
    )


def _read(
    model: Model,
    whole: Sequence[Tokens],
    taps: Sequence[Tap],
    reach: Tensor,
    pool: Callable[[Tensor, list[int]], Tensor],
    *,
    run: Run,
    prepare: Prepare | None,
) -> tuple[Tensor, list[int]]:
    """See `captured`. reach: [n] positions at the end of each sequence that are read. pool: makes [rows, width] of
    hidden [rows, positions, width] and the numbers of the rows."""
    order = sorted(range(len(whole)), key=lambda row: len(whole[row]))
    samples, widths = torch.empty(0), [0]

    def forward(batch: Sequence[int]) -> None:
        nonlocal samples, widths
        rows = list(batch)
        keep = int(reach[rows].max())
        given = [whole[row] for row in rows]
        prompts = Prompts(model, given, keep=keep) if prepare is None else prepare(given, keep=keep)
        first = 0
        with collecting(model, taps, lambda hidden: pool(hidden, rows[first:][: len(hidden)])) as found:
            for passed in Passes(model, prompts, None).run():
                # A pass over the common start came first, and its rows were none of ours: it has been overwritten.
                assert passed.rows == list(range(first, first + len(passed.rows)))
                if not samples.numel():
                    widths = [part.shape[1] for part in found]
                    samples = torch.empty((len(whole), sum(widths)))
                samples[[rows[row] for row in passed.rows]] = torch.cat(found, dim=1)
                first += len(passed.rows)

    run(order, forward)
    _require_finite(model, samples, widths, taps)
    return samples, widths


def capture_at(
    model: Model,
    sequences: Sequence[Tokens],
    distances: Tensor,
    *,
    run: Run,
    prepare: Prepare | None = None,
) -> Tensor:
    """Residuals [n * each, L, d] float32 at several positions of each sequence, in one pass over it.

    distances: [n, each] from the end; 1 is the last position. Else as `capture`.
    """
    if not sequences:
        raise ExtractionError(
            "There is no text to capture residuals of.", hint="Check the prompt source's slice."
        )
    each = distances.shape[1]

    def pool(hidden: Tensor, rows: list[int]) -> Tensor:
        # The pass over a common start sees fewer positions than are wanted; what it leaves is overwritten.
        places = (hidden.shape[1] - distances[rows]).clamp_min(0).to(hidden.device)
        taken = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return taken.float().cpu().flatten(1)

    flat, _ = _read(
        model, sequences, block_taps(model), distances.amax(dim=1), pool, run=run, prepare=prepare
    )
    layers, width = model.architecture.layers, model.architecture.hidden_size
    return flat.view(len(sequences), layers, each, width).transpose(1, 2).reshape(-1, layers, width)


def capture(
    model: Model,
    sequences: Sequence[Tokens],
    *,
    run: Run,
    prepare: Prepare | None = None,
    replies: Sequence[Tokens] | None = None,
) -> ResidualStats:
    """Residuals of token sequences at their last position or, with replies, their mean over the reply's tokens.

    `run` splits the work into batches that fit (see `batching.AdaptiveBatch`); `prepare` is an engine's, which computes
    a common start once; without it nothing is shared. A reply without tokens: see `captured`.

    Raises `NonFiniteError` with layer and prompt number, `ExtractionError` for an empty list.
    """
    flat, _ = captured(model, sequences, block_taps(model), run=run, prepare=prepare, replies=replies)
    samples = flat.view(len(sequences), model.architecture.layers, model.architecture.hidden_size)
    mean = StreamingMean()
    mean.add(samples)
    return ResidualStats(count=int(samples.shape[0]), mean=mean.mean, samples=samples)


def _counts(sequences: Sequence[Tokens], replies: Sequence[Tokens] | None) -> Tensor:
    """[n] how many positions at the end of each sequence are averaged."""
    if not sequences:
        raise ExtractionError(
            "There is no prompt to capture residuals of.", hint="Check the prompt source's slice."
        )
    if replies is None:
        return torch.ones(len(sequences), dtype=torch.int64)
    assert len(replies) == len(sequences)
    empty = sum(not len(reply) for reply in replies)
    if empty == len(replies):
        raise ExtractionError(
            f"None of the {len(replies)} replies has a token, so there is nothing to average over.",
            hint="Check the chat template, or use --residual-position prompt_end.",
        )
    if empty:
        logger.warning("%d of %d replies are empty; their prompt's end is read instead", empty, len(replies))
    return torch.tensor([max(1, len(reply)) for reply in replies])


def _require_finite(model: Model, samples: Tensor, widths: Sequence[int], taps: Sequence[Tap]) -> None:
    finite = torch.isfinite(samples)
    if bool(finite.all()):
        return
    prompt, column = (int(value) for value in torch.nonzero(~finite)[0])
    place = taps[bisect_right(list(accumulate(widths)), column)].name
    raise NonFiniteError(
        f"The activation of prompt {prompt} is NaN or infinite at {place} (dtype {model.dtype}).",
        hint="Use a wider dtype: --dtypes bfloat16,float32.",
    )
