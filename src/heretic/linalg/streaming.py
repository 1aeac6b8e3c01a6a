# SPDX-License-Identifier: Apache-2.0
"""Streaming means in float64: merging batches gives the same result in any split (algorithms section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


class StreamingMean:
    """Running mean [..., d] and count of batches of rows; float64 throughout.

    delta = mean_batch - mean; mean += delta * n_batch / n (algorithms section 2, streaming moments).
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Merge rows [n, ...]."""
        batch = rows.to(torch.float64)
        size = int(batch.shape[0])
        if size == 0:
            return
        mean = batch.mean(dim=0)
        self.count += size
        self._mean = mean if self._mean is None else self._mean + (mean - self._mean) * (size / self.count)

    @property
    def mean(self) -> Tensor:
        """The mean so far, float64; at least one row must have been added."""
        assert self._mean is not None, "no rows were added"
        return self._mean
