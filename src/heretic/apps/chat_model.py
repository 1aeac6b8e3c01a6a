# SPDX-License-Identifier: Apache-2.0
"""A loaded model as a chat needs it: one trial's edit can be switched on and off, no weight changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from heretic.interventions.hooks import Edits, applied, every_row
from heretic.model.model import Model
from heretic.phases.state import Run
from heretic.report import TrialReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PlainChatModel:
    """A model without an edit, or with one given as edits. One conversation at a time: batches of one row."""

    def __init__(self, model: Model, edits: Edits | None = None) -> None:
        self._model = model
        self._edits = edits or {}

    @property
    def network(self) -> PreTrainedModel:
        """The network whose answers are streamed."""
        return self._model.network

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template in force."""
        return self._model.encoder.tokenizer

    @contextmanager
    def edited(self, edit: bool) -> Iterator[None]:
        """While it lasts the network answers as the edited model (True) or as the base (False)."""
        if not edit or not self._edits:
            yield
            return
        with applied(self._model.network, [self._edits], every_row(0, 1, self._model.device)):
            yield


class EditedChatModel(PlainChatModel):
    """The run's model with the edit of one trial."""

    def __init__(self, run: Run, trial: TrialReport) -> None:
        assert run.model is not None
        super().__init__(run.model, run.edits(trial.parameters))  # type: ignore[arg-type]  # JSON scalars
