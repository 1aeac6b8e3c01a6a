# SPDX-License-Identifier: Apache-2.0
"""A loaded model as a chat needs it: an edit can be switched on and off and scaled, no weight changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from heretic.apps.streaming import Reader
from heretic.interventions.edit import Edit
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.model.model import Model
from heretic.phases.state import Run
from heretic.report import TrialReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def scaled(edit: Edit, strength: float) -> Edit:
    """`strength` times the change that an edit makes: 0 changes nothing, 1 is the edit itself.

    W + x (W' - W) for rank-k edits, row gains and biases, which are linear in their factors; a column gain is scaled
    about 1 in the same way, which is linear as long as the other factors do not read through it.
    """

    def gain(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else 1.0 + strength * (tensor - 1.0)

    return Edit(
        left=strength * edit.left,
        read=edit.read,
        right=edit.right,
        row_gain=gain(edit.row_gain),
        column_gain=gain(edit.column_gain),
        bias=None if edit.bias is None else strength * edit.bias,
    )


class PlainChatModel:
    """A model without an edit, or with one given as edits. direction: (block, unit vector [d]) to be read beside it."""

    def __init__(
        self, model: Model, edits: Edits | None = None, direction: tuple[int, torch.Tensor] | None = None
    ) -> None:
        self._model = model
        self._edits = edits or {}
        self._direction = direction

    @property
    def network(self) -> PreTrainedModel:
        """The network whose answers are streamed."""
        return self._model.network

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template in force."""
        return self._model.encoder.tokenizer

    @property
    def model(self) -> Model:
        """The loaded model itself."""
        return self._model

    @property
    def reply_prefix(self) -> str:
        """What closes the thought of a thinking model, so that it answers at once; else empty."""
        return self._model.encoder.response_prefix

    @property
    def has_edit(self) -> bool:
        """Whether there is an edit to switch and scale."""
        return bool(self._edits)

    @property
    def reader(self) -> Reader | None:
        """Reads the direction at its best block."""
        if self._direction is None:
            return None
        block, unit = self._direction
        return Reader(self._model.blocks()[block], unit)

    @contextmanager
    def edited(self, edit: bool) -> Iterator[None]:
        """While it lasts the network answers as the edited model (True) or as the base (False)."""
        with self.under((1.0 if edit else 0.0,)):
            yield

    @contextmanager
    def under(self, strengths: Sequence[float]) -> Iterator[None]:
        """While it lasts row i answers with `strengths[i]` times the edit; a row at 0 is the base bit for bit."""
        if not self._edits or not any(strengths):
            yield
            return
        wanted = sorted({strength for strength in strengths if strength})
        trials: list[Edits] = [
            self._edits
            if strength == 1.0
            else {site: scaled(edit, strength) for site, edit in self._edits.items()}
            for strength in wanted
        ]
        numbers = [wanted.index(strength) if strength else len(wanted) for strength in strengths]
        rows = Rows(torch.tensor(numbers, dtype=torch.int64, device=self._model.device))
        with applied(self._model.network, trials, rows):
            yield


class EditedChatModel(PlainChatModel):
    """The run's model with the edit of one trial."""

    def __init__(self, run: Run, trial: TrialReport) -> None:
        assert run.model is not None
        super().__init__(run.model, run.edits(trial.parameters))  # type: ignore[arg-type]  # JSON scalars
