# SPDX-License-Identifier: Apache-2.0
"""One model in memory for everybody who talks to it (requirements R-UI-02, R-UI-03, R-UI-26).

A model is loaded when it is first needed and let go completely when another one is; two are kept only where both fit.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from heretic.apps.chat_model import PlainChatModel
from heretic.apps.discovery import Choice, Places, choices, chosen
from heretic.apps.main_thread import Runner, directly
from heretic.apps.stored_trials import (
    StoredTrial,
    direction_of,
    edits_of,
    model_of,
    read_trial,
    require_same_weights,
)
from heretic.exceptions import CUDAOutOfMemoryError, GenerationError, HereticError, HostMemoryError
from heretic.export.folder import inspect_folder
from heretic.export.verify import require_intact
from heretic.interventions.probe import probe
from heretic.model.loading import LoadOptions, load_config, load_model, require_tokenizer
from heretic.model.model import Model
from heretic.model.source import ModelSource, locate
from heretic.phases.loading import BYTES_SHARE, device_memory, host_memory, weight_bytes

LOGGER: Final = logging.getLogger("heretic_chat")
ROOM_FACTOR: Final = 1.2
"""Memory of a loaded model beside its weights: caches of a few thousand tokens and what a forward pass needs."""
IDLE: Final = "no model is loaded"
WAIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class State:
    """What the manager is doing, for showing. ready: a model can answer at once; choice: its word."""

    text: str = IDLE
    ready: bool = False
    choice: str | None = None


class ModelManager:
    """Loads, keeps and releases models. lock: hold it for the length of a reply, see `ChatSession`; `open` needs it to
    be held. run: where models are loaded, see `main_thread`. options: how."""

    def __init__(
        self,
        places: Places,
        options: LoadOptions | None = None,
        *,
        offline: bool = False,
        run: Runner = directly,
    ) -> None:
        self.places = places
        self.lock = threading.Lock()
        self.run = run
        self._options = options or LoadOptions()
        self._offline = offline
        self._models: dict[str, PlainChatModel] = {}
        self._sources: dict[str, str] = {}
        self._state = State()

    @property
    def state(self) -> State:
        """What is loaded or being loaded; may be asked for from any thread."""
        return self._state

    def choices(self) -> tuple[Choice, ...]:
        """What can be opened, looked up anew."""
        return choices(self.places)

    def label(self, word: str) -> str:
        """A chosen word for reading."""
        return next((entry.label for entry in self.choices() if entry.name == word), word)

    @contextmanager
    def alone(self, wait_s: float = WAIT_S) -> Iterator[None]:
        """While it lasts nobody else answers or loads; raises `GenerationError` when it takes too long."""
        if not self.lock.acquire(timeout=wait_s):
            raise GenerationError(
                "another reply is still being written", hint="Stop it, or wait for its end."
            )
        try:
            yield
        finally:
            self.lock.release()

    def open(self, word: str, beside: str | None = None) -> PlainChatModel:
        """The model of a chosen word; the caller holds the lock. beside: another loaded one that stays if both fit.

        Raises what `discovery.chosen` and `load_model` raise, `CUDAOutOfMemoryError` and `HostMemoryError` with need
        and free, `StudyNotFoundError` and others for a trial; the model before is gone then.
        """
        assert self.lock.locked(), "the caller holds the lock"
        known = self._models.get(word)
        if known is not None:
            return known
        return self.run(lambda: self._opened(word, beside))

    def _opened(self, word: str, beside: str | None) -> PlainChatModel:
        choice = chosen(self.places, word)
        self._state = State(f"loading {choice.label}")
        try:
            stored = read_trial(self.places.storage, choice.where) if choice.kind == "trial" else None
            where = choice.where if stored is None else self._model_of(stored)
            source = locate(where, offline=self._offline)
            _require_loadable(source)
            model = self._reused(where, stored) or self._loaded(source, choice, beside, stored)
            opened = _as_chat_model(model, stored, source)
        except (HereticError, KeyboardInterrupt):
            self._state = _settled(self._models)
            raise
        self._models[word] = opened
        self._sources[word] = where
        self._state = State(f"{choice.label} is ready ({_described(model)})", True, word)
        LOGGER.info("%s was opened", choice.label)
        return opened

    def _model_of(self, stored: StoredTrial) -> str:
        return self.places.trial_model or model_of(stored, self.places.base)

    def _reused(self, where: str, stored: StoredTrial | None) -> Model | None:
        """The network that is loaded already, for another trial of the same model; its old chat model is forgotten."""
        if stored is None:
            return None
        for word, source in list(self._sources.items()):
            if source == where and self._options_for(stored) == self._options:
                del self._sources[word]
                return self._models.pop(word).model
        return None

    def _options_for(self, stored: StoredTrial | None) -> LoadOptions:
        if stored is None or not stored.response_prefix:
            return self._options
        return replace(self._options, response_prefix=stored.response_prefix)

    def _loaded(
        self, source: ModelSource, choice: Choice, beside: str | None, stored: StoredTrial | None
    ) -> Model:
        kept = self._models.get(beside) if beside is not None else None
        self._forget([word for word, model in self._models.items() if model is not kept])
        if kept is not None and not self._fits(source):
            self._forget(list(self._models))
        self._require_room(source, choice)
        if stored is not None:
            return load_model(source, self._options_for(stored), prove=probe)
        # Nothing will be edited, so a part that could not be is no reason to refuse the model.
        return load_model(source, replace(self._options, allow_partial=True))

    def _need(self, source: ModelSource) -> int:
        return int(weight_bytes(source) * BYTES_SHARE[self._options.quantization])

    def _fits(self, source: ModelSource) -> bool:
        free = device_memory()
        return free is not None and self._need(source) * ROOM_FACTOR < free

    def _require_room(self, source: ModelSource, choice: Choice) -> None:
        need, free = self._need(source), device_memory()
        if free is None:
            return
        on_gpu = torch.cuda.is_available()
        total = free + (host_memory() or 0) if on_gpu else free
        if need <= total:
            return
        kind = CUDAOutOfMemoryError if on_gpu else HostMemoryError
        raise kind(
            f"{choice.label} needs {need / 1e9:.1f} GB for its weights; {total / 1e9:.1f} GB are free",
            hint="Choose a smaller model, close programs, or load with --quantization bnb_4bit.",
            data={"need": need, "free": total},
        )

    def release(self) -> None:
        """Let every model go; the caller holds the lock."""
        assert self.lock.locked(), "the caller holds the lock"
        self._forget(list(self._models))
        self._state = State()

    def _forget(self, words: Sequence[str]) -> None:
        gone = [self._models.pop(word) for word in words]
        for word in words:
            self._sources.pop(word, None)
        kept = {id(model.network) for model in self._models.values()}
        for model in gone:
            if id(model.network) not in kept:
                # Whoever still holds it holds no weights.
                torch.nn.Module.to(model.network, "meta")
        if gone:
            gone.clear()
            give_back_memory()


def _require_loadable(source: ModelSource) -> None:
    """What can be known without loading a weight."""
    load_config(source)
    require_tokenizer(source)
    inspect_folder(source.path)
    require_intact(source.path)


def _as_chat_model(model: Model, stored: StoredTrial | None, source: ModelSource) -> PlainChatModel:
    if stored is None:
        return PlainChatModel(model)
    require_same_weights(stored, Path(source.path))
    return PlainChatModel(model, edits_of(stored, model), direction_of(stored.extraction))


def _settled(models: dict[str, PlainChatModel]) -> State:
    if not models:
        return State()
    word, model = next(reversed(models.items()))
    return State(f"{word} is ready ({_described(model.model)})", True, word)


def _described(model: Model) -> str:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    kind = model.dtype if model.quantization == "none" else model.quantization
    return f"{parameters / 1e6:,.0f} M parameters, {kind}, {model.device}"


def give_back_memory() -> None:
    """Return what was freed to the system and to the accelerator, as far as they take it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
