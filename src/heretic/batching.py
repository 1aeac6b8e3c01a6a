# SPDX-License-Identifier: Apache-2.0
"""One controller per operation: try a width, halve it when memory runs out, retry the same rows (algorithms 6.7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from heretic.exceptions import BatchSizeError

logger = logging.getLogger("heretic.batching")
Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_ALLOCATOR = "DefaultCPUAllocator"
"""torch raises a plain RuntimeError on the CPU; the allocator's name is the only mark it carries (reliability X05)."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for every form in which torch reports exhausted memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return type(error) is RuntimeError and CPU_ALLOCATOR in str(error)


class AdaptiveBatch:
    """Splits items into batches of at most `width`, which shrinks on memory errors and grows after 8 clean calls."""

    def __init__(self, operation: str, width: int) -> None:
        self.operation = operation
        self.width = width
        self._failed_at: int | None = None
        self._clean = 0

    def __call__(self, items: Sequence[Item], function: Callable[[Sequence[Item]], Result]) -> list[Result]:
        """Results of `function` over consecutive batches; raises `BatchSizeError` when one row does not fit."""
        results: list[Result] = []
        position = 0
        while position < len(items):
            batch = items[position : position + self.width]
            failed = False
            try:
                results.append(function(batch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(batch), error)
                failed = True
            if failed:
                # Only here: the error's traceback kept the tensors of the failed pass alive.
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            position += len(batch)
            self._grow()
        return results

    def _shrink(self, rows: int, error: BaseException) -> None:
        if rows <= 1:
            raise BatchSizeError(
                f"Not even one row fits in memory for {self.operation}.",
                hint="Use --quantization bnb_4bit, shorter prompts (--max-prompt-tokens) or a larger machine.",
            ) from error
        self._failed_at = rows
        self._clean = 0
        self.width = max(1, rows // 2)
        logger.warning("out of memory at %d rows in %s; going on with %d", rows, self.operation, self.width)

    def _grow(self) -> None:
        if self._failed_at is None:
            return
        self._clean += 1
        if self._clean >= 8:
            self._clean = 0
            wider = max(
                self.width + 1, int(self.width * 1.25)
            )  # from 1 to 3 rows a quarter is less than one row
            self.width = max(self.width, min(wider, int(self._failed_at * 0.9)))
