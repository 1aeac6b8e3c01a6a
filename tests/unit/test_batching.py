# SPDX-License-Identifier: Apache-2.0
"""Memory errors cost a retry, never a result (algorithms 6.7, reliability E01, R-MOD-05)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from heretic.batching import AdaptiveBatch, is_out_of_memory
from heretic.exceptions import BatchSizeError

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: 8 bytes"


def limited(limit: int, error: BaseException) -> Callable[[Sequence[int]], list[int]]:
    def work(rows: Sequence[int]) -> list[int]:
        if len(rows) > limit:
            raise error
        return [row * row for row in rows]

    return work


def flat(parts: Sequence[list[int]]) -> list[int]:
    return [value for part in parts for value in part]


@pytest.mark.parametrize("limit", (64, 33, 32, 8, 3, 2, 1))
@pytest.mark.parametrize(
    "error", (torch.OutOfMemoryError("injected"), RuntimeError(CPU_MESSAGE), MemoryError())
)
def test_the_same_rows_are_retried_at_every_width(limit: int, error: BaseException) -> None:
    items = list(range(150))
    assert flat(AdaptiveBatch("test", 64)(items, limited(limit, error))) == [item * item for item in items]
    assert flat(AdaptiveBatch("test", 64)(range(150), limited(limit, error))) == [
        item * item for item in items
    ]


def test_control_without_the_retry_rows_are_lost() -> None:
    """Control: a controller that goes on behind the failed batch."""

    class Skipping(AdaptiveBatch):
        def __call__(self, items, function):  # type: ignore[no-untyped-def]  # a broken copy of the loop
            results, position = [], 0
            while position < len(items):
                batch = items[position : position + self.width]
                try:
                    results.append(function(batch))
                except RuntimeError:
                    self.width //= 2
                position += len(batch)
            return results

    assert len(flat(Skipping("test", 64)(range(150), limited(8, torch.OutOfMemoryError())))) < 150


def test_the_width_is_remembered_and_grows_after_eight_clean_calls() -> None:
    """Section 6.7: by a quarter, up to nine tenths of what failed; from 1 to 3 rows by one row."""
    controller = AdaptiveBatch("test", 40)
    seen: list[int] = []

    def work(rows: Sequence[int]) -> int:
        seen.append(len(rows))
        if len(rows) > 30:
            raise torch.OutOfMemoryError
        return len(rows)

    controller(range(40 + 20 * 20), work)
    assert seen[:10] == [40, *[20] * 8, 25]
    assert max(seen[1:]) <= 36
    small = AdaptiveBatch("test", 4)
    small([1, 2, 3, 4] * 10, limited(2, torch.OutOfMemoryError()))
    assert small.width == 2 or small.width == 3
    assert AdaptiveBatch("test", 4)([], work) == []


def test_one_row_that_does_not_fit_is_a_typed_error() -> None:
    with pytest.raises(BatchSizeError, match="one row .* for generation") as caught:
        AdaptiveBatch("generation", 16)(range(16), limited(0, torch.OutOfMemoryError("injected")))
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    "error", (RuntimeError("shapes do not match"), ValueError("no"), NotImplementedError(CPU_MESSAGE))
)
def test_other_errors_pass(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        AdaptiveBatch("test", 16)(range(20), limited(3, error))
