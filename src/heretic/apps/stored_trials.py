# SPDX-License-Identifier: Apache-2.0
"""A trial of a stored study as edits of a loaded model, without owning or changing the study (requirements R-UI-01).

Directions, settings and parameters are read from the study; nothing is measured again. The same edit as
`heretic export`, which goes through a whole run, makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heretic.exceptions import FingerprintMismatchError, ModelNotFoundError, StudyNotFoundError
from heretic.export.digest import weight_digest
from heretic.interventions.hooks import Edits
from heretic.interventions.placement import PlanContext
from heretic.interventions.planners import STRATEGIES
from heretic.interventions.schedule import LayerProfile
from heretic.interventions.writers import Writers
from heretic.model.model import Model
from heretic.phases.choice import named_trial
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.findings_store import stored_extraction
from heretic.study.sharing import visit_study
from heretic.study.types import FinishedTrial


@dataclass(frozen=True, slots=True, eq=False)
class StoredTrial:
    """What a study says of one trial. model: as the user of the run wrote it; settings: of the fingerprint."""

    study: str
    trial: FinishedTrial
    model: str
    weights: str
    dtype: str
    settings: Mapping[str, Any]
    response_prefix: str
    extraction: DirectionExtractionResult


def read_trial(storage: str | None, word: str) -> StoredTrial:
    """The trial STUDY:N. Raises `StudyNotFoundError`, `ConfigurationError` for an unknown number,
    `StudyCorruptError`, `StorageError`."""
    name, _, number = word.rpartition(":")
    with visit_study(storage, name) as study:
        header = study.stored("heretic") or {}
        fingerprint: Mapping[str, Any] = header.get("fingerprint", {})
        trial = named_trial(study.finished_trials(), int(number))
        extraction = stored_extraction(study)
        model = study.attribute("model")
    if extraction is None or model is None:
        raise StudyNotFoundError(
            f"the directions of the study {name!r} are not stored with it",
            hint="Continue the study once with the command that made it; then they are found again.",
        )
    return StoredTrial(
        study=name,
        trial=trial,
        model=str(model),
        weights=str(fingerprint.get("weights", "")),
        dtype=str(fingerprint.get("dtype", "auto")),
        settings=fingerprint.get("settings", {}),
        response_prefix=str(fingerprint.get("response_prefix") or ""),
        extraction=extraction,
    )


def model_of(stored: StoredTrial, base: Path) -> str:
    """The folder or Hub id of the study's model; relative paths are looked up from `base`.

    Raises `ModelNotFoundError` for a folder that is gone.
    """
    path = base / Path(stored.model).expanduser()
    if path.is_dir():
        return str(path)
    if stored.model.count("/") == 1 and not stored.model.startswith((".", "/", "~")):
        return stored.model
    raise ModelNotFoundError(
        f"the study {stored.study!r} was made with {stored.model!r}, which is not here",
        hint="Start the program in the folder where the study was made.",
    )


def require_same_weights(stored: StoredTrial, folder: Path) -> None:
    """Raise `FingerprintMismatchError` when the model is not the one whose trial this is."""
    if stored.weights and weight_digest(folder) != stored.weights:
        raise FingerprintMismatchError(
            f"the weights of {folder.name!r} are not those the study {stored.study!r} was made with",
            hint="Put the original model back, or search again.",
        )


def edits_of(stored: StoredTrial, model: Model) -> Edits:
    """The edits of the trial for a loaded model."""
    settings = stored.settings
    strategy = str(settings.get("strategy", "single"))
    ranges: list[tuple[float, float, float]] = []
    if settings.get("enable_layer_profiles") and strategy != "heads":
        stated = settings.get("layer_range_profiles") or ()
        ranges = sorted((entry["start"], entry["end"], entry["multiplier"]) for entry in stated)
    context = PlanContext(
        architecture=model.architecture,
        findings=stored.extraction.findings,
        profile=LayerProfile(tuple(ranges)),
        cap=float(settings.get("max_strength", 2.0)),
        goal=settings.get("goal", "suppress"),
    )
    plan = STRATEGIES[strategy](dict(stored.trial.parameters), context)
    return plan.edits(Writers(model.network))


def direction_of(extraction: DirectionExtractionResult) -> tuple[int, torch.Tensor]:
    """The block whose direction separates best, and that direction as a unit vector [d]."""
    best = extraction.best_layer
    unit = extraction.bank.directions[best, 0]
    return best, unit / unit.norm().clamp_min(1e-8)
