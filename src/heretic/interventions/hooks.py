# SPDX-License-Identifier: Apache-2.0
"""Activation form of edits: many trials share one forward pass, each row under its own trial's edits.

No weight is written, so there is nothing to restore; leaving the context removes the hooks, also after an exception
(architecture rule 3). The result equals the weight form (algorithms sections 0 and 6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heretic.architectures.site import Site
from heretic.exceptions import ConfigurationError, NonFiniteError
from heretic.interventions.edit import Edit

Edits = Mapping[Site, Edit]
NO_BLOCK = 10**6
"""A block number beyond all blocks."""


class Rows:
    """Which trial each row of the running batch belongs to; the engine updates it when rows come and go.

    trial: [rows] int64 on the model's device; the value `len(trials)` means the unedited base.
    lowest: per trial the first decoder block that it edits, -1 where the embedding is; set by `applied`. Blocks below
    do for its rows what they do for the base (algorithms 6.3).
    """

    def __init__(self, trial: Tensor) -> None:
        self.lowest: tuple[int, ...] = ()
        self.assign(trial)

    def assign(self, trial: Tensor) -> None:
        """Replace the assignment; tables gathered for the old one are dropped."""
        self.trial = trial
        self._mixing: tuple[tuple[int, ...], Tensor | None] | None = None

    def mixing(self, trials: int) -> tuple[tuple[int, ...], Tensor | None]:
        """The edited trials among the rows, and [rows, present] True at each row's own; None where there is one."""
        if self._mixing is None:
            found = self.trial.unique().tolist()
            present = tuple(trial for trial in found if trial < trials)
            if len(found) == len(present) == 1:
                self._mixing = present, None
            else:
                columns = torch.tensor(present, device=self.trial.device)
                self._mixing = present, self.trial[:, None] == columns[None, :]
        return self._mixing


@dataclass(frozen=True, slots=True, eq=False)
class HookTable:
    """Per-trial factors of one hooked module; the last entry of each is the identity for base rows.

    left, read: [K+1, d, k]. right: [K+1, k, m] or None. row_gain: [K+1, d] or None. column_gain: [K+1, m] or None.
    bias: [K+1, d] or None. module_bias: [d] the writer's own bias, needed wherever v = y - b is.
    """

    left: Tensor
    read: Tensor | None
    right: Tensor | None
    row_gain: Tensor | None
    column_gain: Tensor | None
    bias: Tensor | None
    module_bias: Tensor | None


def build_tables(network: nn.Module, trials: Sequence[Edits], device: torch.device) -> dict[str, HookTable]:
    """Hook path -> table over all trials. Sites that share a hook (experts of one block) must share their edit."""
    grouped: dict[str, list[tuple[Site, Edit] | None]] = {}
    for number, edits in enumerate(trials):
        for site, edit in edits.items():
            if edit.is_identity:
                continue
            rows = grouped.setdefault(site.hook, [None] * (len(trials) + 1))
            other = rows[number]
            if other is not None and not other[1].equals(edit):
                raise ConfigurationError(
                    f"{other[0].path} and {site.path} are added up in {site.hook}, but their edits differ.",
                    hint="Edit all experts of a block alike, or export in weight form.",
                )
            rows[number] = (site, edit)
    return {path: _stack(network, rows, device) for path, rows in grouped.items()}


def _require_hookable(site: Site, edits: Sequence[Edit]) -> None:
    """What the activation form cannot do is refused by name (algorithms 6.1)."""
    inside = any(
        tensor is not None
        for edit in edits
        for tensor in (edit.row_gain, edit.column_gain, edit.right, edit.bias)
    )
    summed = site.experts is not None or site.hook != site.path.rpartition(".")[0]
    if summed and inside:
        raise ConfigurationError(
            f"The experts of {site.hook} can only be edited by reading what they write.",
            hint="Gains, biases and head edits of routed experts exist in weight form only.",
        )
    given = any(edit.column_gain is not None or edit.right is not None for edit in edits)
    if site.component == "embedding" and given:
        raise ConfigurationError(
            f"{site.path} is given token numbers, which can be neither scaled nor read.",
            hint="Column gains and input-side edits of the embedding exist in weight form only.",
        )


def _stack(network: nn.Module, rows: Sequence[tuple[Site, Edit] | None], device: torch.device) -> HookTable:
    present = [row for row in rows if row is not None]
    site, sample = present[0]
    if not all(edit.is_finite for _, edit in present):
        raise NonFiniteError(f"The edit of {site.path} holds NaN or infinity.", hint="Leave this trial out.")
    _require_hookable(site, [edit for _, edit in present])
    double = any(edit.left.dtype == torch.float64 for _, edit in present)  # proofs compute in float64
    dtype = torch.float64 if double else torch.float32
    edits = [None if row is None else row[1].to(device, dtype) for row in rows]
    rank = max(edit.rank for _, edit in present)
    module_bias = None
    if site.bias is not None and site.experts is None:
        module_bias = network.get_parameter(site.bias).detach().to(device, dtype)

    def stacked(name: str, identity: Callable[[Tensor], Tensor], axis: int | None = None) -> Tensor | None:
        values: list[Tensor | None] = [None if edit is None else getattr(edit, name) for edit in edits]
        known = [value if value is None or axis is None else _padded(value, axis, rank) for value in values]
        like = next((value for value in known if value is not None), None)
        if like is None:
            return None
        return torch.stack([identity(like) if value is None else value for value in known])

    left = stacked("left", torch.zeros_like, 1)
    assert left is not None and left.shape[1:] == (sample.left.shape[0], rank)
    return HookTable(
        left=left,
        read=stacked("read", torch.zeros_like, 1),
        right=stacked("right", torch.zeros_like, 0),
        row_gain=stacked("row_gain", torch.ones_like),
        column_gain=stacked("column_gain", torch.ones_like),
        bias=stacked("bias", torch.zeros_like),
        module_bias=module_bias,
    )


def _padded(tensor: Tensor, axis: int, rank: int) -> Tensor:
    """Zeros up to `rank` along `axis`, so that trials of different rank share a table."""
    shape = list(tensor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)


class _Hook:
    """The operation on one module's output, without a Python loop over rows.

    The vectors of all trials in the batch are read in one product and each row keeps its own coordinates, so nothing
    is gathered per row but gains and biases (algorithms 6.1).
    """

    def __init__(self, table: HookTable, rows: Rows) -> None:
        self.table = table
        self.rows = rows
        self._seen: Tensor | None = None
        self._gathered: dict[str, Tensor] = {}
        self._inputs: Tensor | None = None

    def _refresh(self) -> None:
        if self._seen is not self.rows.trial:
            self._gathered.clear()
            self._seen = self.rows.trial

    def _rows_of(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """The table's entries for the current rows, gathered once per assignment, where the module runs."""
        if name not in self._gathered:
            self._gathered[name] = tensor[self.rows.trial].to(device)
        return self._gathered[name]

    def _columns(self, name: str, tensor: Tensor, device: torch.device) -> Tensor:
        """[present * k, width] the vectors of all trials in the batch, `tensor` being [K+1, k, width]."""
        if name not in self._gathered:
            present, _ = self.rows.mixing(tensor.shape[0] - 1)
            self._gathered[name] = tensor[list(present)].flatten(0, 1).to(device)
        return self._gathered[name]

    def _own(self, rank: int, like: Tensor) -> Tensor | None:
        """[rows, 1, present * k] True at the row's own coordinates; None where all rows belong to one trial."""
        _, mixing = self.rows.mixing(self.table.left.shape[0] - 1)
        if mixing is None:
            return None
        if "own" not in self._gathered:
            self._gathered["own"] = mixing.repeat_interleave(rank, dim=1)[:, None, :].to(like.device)
        return self._gathered["own"]

    def scale_input(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """z <- s * z; a reading of the input (`right`) means z itself, so it is kept."""
        assert self.table.column_gain is not None
        self._refresh()
        gain = self._rows_of("column_gain", self.table.column_gain, arguments[0].device)
        self._inputs = arguments[0]
        inputs, shape = _by_row(arguments[0], len(self.rows.trial))
        return ((inputs * gain[:, None, :]).to(arguments[0].dtype).reshape(shape), *arguments[1:])

    def __call__(
        self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...]:
        """y' = g * v + left . c + b + db (algorithms section 0), on the first element where a tuple is returned."""
        if isinstance(output, tuple):
            return (self._edited(arguments, output[0]), *output[1:])
        return self._edited(arguments, output)

    def _edited(self, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._refresh()
        table = self.table
        values, shape = _by_row(output, len(self.rows.trial))
        result = values = values.to(table.left.dtype)
        device = output.device
        if table.row_gain is not None:
            own = 0.0 if table.module_bias is None else table.module_bias.to(device)
            # Less 1, so that a gain of 1 changes no bit.
            change = self._rows_of("row_gain", table.row_gain, device) - 1.0
            result = values + change[:, None, :] * (values - own)
        if table.read is not None:
            result = self._added("read", result, values, table.read.transpose(1, 2))
        if table.right is not None:
            given = arguments[0] if self._inputs is None else self._inputs
            inputs, _ = _by_row(given.to(table.left.dtype), len(self.rows.trial))
            result = self._added("right", result, inputs, table.right)
        self._inputs = None
        if table.bias is not None:
            result = result + self._rows_of("bias", table.bias, device)[:, None, :]
        return result.to(output.dtype).reshape(shape)

    def _added(self, name: str, result: Tensor, source: Tensor, reading: Tensor) -> Tensor:
        """result + left . (reading . source); reading: [K+1, k, width of source], zero for trials that read the other
        side of the writer."""
        vectors = self._columns(name, reading, source.device)
        if not vectors.shape[0]:
            return result
        coordinates = source @ vectors.T
        own = self._own(reading.shape[1], coordinates)
        if own is not None:
            coordinates = torch.where(own, coordinates, coordinates.new_zeros(()))
        left = self._columns("left", self.table.left.transpose(1, 2), source.device)
        width = result.shape[-1]
        summed = torch.addmm(result.reshape(-1, width), coordinates.flatten(0, 1), left)
        return summed.reshape(result.shape)


def _by_row(tensor: Tensor, rows: int) -> tuple[Tensor, torch.Size]:
    """[rows, positions, width] view of a module's input or output, which may be flattened [rows * positions, width]."""
    return tensor.reshape(rows, -1, tensor.shape[-1]), tensor.shape


def lowest_block(edits: Edits) -> int:
    """The first decoder block that is edited, -1 for the embedding, a number beyond all blocks where nothing is."""
    return min((site.layer for site, edit in edits.items() if not edit.is_identity), default=NO_BLOCK)


@contextmanager
def applied(network: nn.Module, trials: Sequence[Edits], rows: Rows) -> Iterator[None]:
    """Hooks of all trials for the length of the `with`; `rows` says which trial each row belongs to."""
    tables = build_tables(network, trials, rows.trial.device)
    rows.lowest = tuple(lowest_block(edits) for edits in trials)
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for path, table in tables.items():
            module = network.get_submodule(path)
            hook = _Hook(table, rows)
            if table.column_gain is not None:
                handles.append(module.register_forward_pre_hook(hook.scale_input))
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def every_row(trial: int, rows: int, device: torch.device) -> Rows:
    """The assignment in which all rows belong to one trial."""
    return Rows(torch.full((rows,), trial, dtype=torch.int64, device=device))
