# SPDX-License-Identifier: Apache-2.0
"""Key-value buffers of a batch: allocated once, written in place, so that no step copies what is already there.

A window of rows and columns takes part in a pass. All layers share it, so a layer whose keys and values were put in
from elsewhere (a shared prefix, blocks below the first edit) is no different from one that computed them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SPARE_COLUMNS = 32
"""Room for new tokens when a buffer is made or has to grow; it grows by half at least."""

Entry = tuple[Tensor, Tensor]
"""Keys and values of one layer, [rows, heads, columns, head size] each."""


def plain_layers(config: PreTrainedConfig) -> int | None:
    """The longest sequence for which every layer of the model is a plain growing key-value layer: the smallest sliding
    window, a very large number without one; None for a cache of another kind."""
    layers = DynamicCache(config=config).layers
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=10**9)


class Window:
    """What of the buffers takes part: rows first_row ... + rows, columns from `first`, `length` of them filled.

    gap: columns at the start that stay unwritten in some rows.
    """

    def __init__(self, rows: int, columns: int, gap: int) -> None:
        self.gap = gap
        self.total_rows = rows
        self.capacity = columns
        self.first_row, self.rows = 0, rows
        self.first, self.length = 0, 0


class BufferedLayer(DynamicLayer):
    """One layer's buffers; `keys` and `values` are the views that the last pass attended to."""

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library's
        self.window = window
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers. What is never written but lies before other columns has to be finite, so it is zero."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, columns = self.window.total_rows, self.window.capacity
        self._keys = key_states.new_empty((rows, key_states.shape[1], columns, key_states.shape[3]))
        self._values = value_states.new_empty((rows, value_states.shape[1], columns, value_states.shape[3]))
        self._keys[:, :, : self.window.gap] = 0
        self._values[:, :, : self.window.gap] = 0
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new columns and return all of the window."""
        window = self.window
        self.put(key_states, value_states, window.first_row, window.first + window.length)
        assert self._keys is not None and self._values is not None
        rows = slice(window.first_row, window.first_row + window.rows)
        columns = slice(window.first, window.first + window.length + key_states.shape[2])
        self.keys, self.values = self._keys[rows, :, columns], self._values[rows, :, columns]
        return self.keys, self.values

    def put(self, keys: Tensor, values: Tensor, row: int, column: int) -> None:
        """Write keys and values at a place; one row given stands for all rows of the window."""
        if self._keys is None or self._values is None:
            self.lazy_initialization(keys, values)
        assert self._keys is not None and self._values is not None
        count = self.window.rows if keys.shape[0] == 1 else keys.shape[0]
        self._keys[row : row + count, :, column : column + keys.shape[2]] = keys
        self._values[row : row + count, :, column : column + values.shape[2]] = values

    def part(self, rows: slice, columns: slice) -> Entry:
        """A view of the buffers."""
        assert self._keys is not None and self._values is not None
        return self._keys[rows, :, columns], self._values[rows, :, columns]

    def select(self, rows: Tensor, columns: int, capacity: int) -> None:
        """Keep these rows, and room for `capacity` columns, of which the first `columns` are in use."""
        if self._keys is None or self._values is None:
            return
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            index = rows.to(old.device)
            if capacity == old.shape[2]:
                new = old.index_select(0, index)  # unused columns too: one copy in place of two
            else:
                new = old.new_empty((len(rows), old.shape[1], capacity, old.shape[3]))
                new[:, :, :columns] = old[index, :, :columns]
            setattr(self, name, new)
        self.keys = self.values = None

    def get_seq_length(self) -> int:
        """Columns filled before the running pass."""
        return self.window.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a pass attends to."""
        return self.window.length + query_length, 0


class KeyValueBuffer(DynamicCache):
    """The cache of a batch, as a network takes it."""

    def __init__(self, layers: int, rows: int, columns: int, *, gap: int = 0) -> None:
        super().__init__()
        self.window = Window(rows, columns, gap)
        self.buffers = [BufferedLayer(self.window) for _ in range(layers)]
        self.layers = list(self.buffers)
        self.layer_class_to_replicate = None

    def reserve(self, columns: int) -> None:
        """Make room for that many more columns after the window."""
        needed = self.window.first + self.window.length + columns
        if needed <= self.window.capacity:
            return
        every = torch.arange(self.window.total_rows)
        self._resize(every, max(needed + SPARE_COLUMNS, self.window.capacity * 3 // 2))

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self.window.total_rows = self.window.rows = len(rows)
        self._resize(rows, self.window.capacity)

    def blank(self, rows: slice, columns: slice) -> None:
        """Make columns finite that nothing was written to."""
        for buffer in self.buffers:
            for part in () if not buffer.is_initialized else buffer.part(rows, columns):
                part.zero_()

    def _resize(self, rows: Tensor, capacity: int) -> None:
        used = self.window.first + self.window.length
        self.window.capacity = capacity
        for buffer in self.buffers:
            buffer.select(rows, used, capacity)
