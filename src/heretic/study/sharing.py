# SPDX-License-Identifier: Apache-2.0
"""Studies that several workers search at once: making one so, and joining it (requirements R-SEA-15, R-CLI-13).

A study is searched by its single owner (`heretic.study.runner`) until it is shared; from then on, in this and
in later runs, only by `heretic.study.workers`. On PostgreSQL every study is shared from its birth.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial, TrialState

from heretic.exceptions import ConfigurationError, FingerprintMismatchError, StudyError, StudyLockedError
from heretic.lease import acquire
from heretic.publish import write_file
from heretic.study.asker import stored_constraints
from heretic.study.catalogue import HEADER, not_found
from heretic.study.claims import COMPLETE, FAILED, NOBODY, OPEN, Claims, NewClaim
from heretic.study.records import differences, plain, scores_from
from heretic.study.space import canonical_key
from heretic.study.state import Study
from heretic.study.storage import PATIENCE_S, locate, open_backend, opening, translated
from heretic.study.types import Json, Value

_logger = logging.getLogger("heretic.study")

_TERMS: Final = "shared"


@dataclass(frozen=True, slots=True)
class Terms:
    """What all workers of a study go by, stored with it. lease_seconds: silence after which a row is handed on."""

    n_trials: int
    lease_seconds: float = 180.0
    max_trial_retries: int = 2


def terms_of(study: Study) -> Terms | None:
    """The terms of a shared study; None for one that a single owner searches."""
    stored = study.stored(_TERMS)
    return None if stored is None else Terms(**stored)


def claims_of(study: Study, owner: str, *, patience_s: float = PATIENCE_S) -> Claims:
    """The claims of the study in the name of `owner`."""
    backend = study._backend
    if not isinstance(backend, optuna.storages.RDBStorage):
        raise ConfigurationError(
            "A study in memory cannot be searched by several workers.",
            hint="Give --storage sqlite:///FILE, or leave out --workers.",
        )
    study_id = str(study.inner.user_attrs[HEADER]["study_id"])
    return Claims(backend.engine, study.location, study_id, owner, patience_s=patience_s)


def point_of(parameters: Mapping[str, Value]) -> str:
    """A short key of the point: equal for parameters that make the same edit (algorithms 5.2)."""
    return hashlib.sha256(canonical_key(parameters).encode("utf-8")).hexdigest()[:32]


def share(study: Study, terms: Terms) -> None:
    """Makes a study that this process owns a shared one, or changes the terms of a shared one.

    Rows that an earlier process left open may be taken at once; results that only the ledger holds are told.
    """
    claims = claims_of(study, NOBODY)
    with opening(study.location), translated(study.location):
        claims.prepare()
        if terms_of(study) is None:
            _take_stock(study, claims)
        # Last, so that a kill in between leaves a study of one owner that is taken stock of again.
        study.store(_TERMS, {name: getattr(terms, name) for name in Terms.__dataclass_fields__})


def _take_stock(study: Study, claims: Claims) -> None:
    """One claim per index that the single owner has given out."""
    known = claims.all()
    points = {claim.point for claim in known.values()}
    for trial in study.inner.get_trials(deepcopy=False):
        proposal = trial.user_attrs.get("proposal")
        if proposal is None or int(proposal["index"]) in known:
            if trial.state == TrialState.RUNNING and proposal is None:
                discard(study, trial._trial_id)
            continue
        index, parameters = int(proposal["index"]), dict(proposal["parameters"])
        point: str | None = point_of(parameters)
        point = None if point in points else point
        points.add(point)
        state = {TrialState.COMPLETE: COMPLETE, TrialState.FAIL: FAILED}.get(trial.state, OPEN)
        adopted = int(trial.user_attrs.get("adopted", 0))
        claims.add([NewClaim(index, point, parameters, trial._trial_id, state, adopted, NOBODY)])
        if state == OPEN:
            _tell_from_ledger(study, claims, index, trial)


def _tell_from_ledger(study: Study, claims: Claims, index: int, trial: FrozenTrial) -> None:
    entry = study.ledger.entry(index)
    if entry is not None and entry["parameters"] == trial.user_attrs["proposal"]["parameters"]:
        state = FAILED if "failure" in entry else COMPLETE
        if claims.tell(index, state, entry):
            project(study, claims, index, trial._trial_id, entry)


def project(study: Study, claims: Claims, index: int, storage_id: int, record: Mapping[str, Any]) -> None:
    """Writes an accepted result into the storage's own row, where every reader looks; may be repeated."""
    rows = study.rows
    try:
        if not rows.get_trial(storage_id).state.is_finished():
            attributes = {"proposal": {"index": index, "parameters": record["parameters"]}}
            attributes |= {
                name: record[name] for name in ("duplicate_of", "failure", "scores") if name in record
            }
            for name, value in attributes.items():
                rows.set_trial_user_attr(storage_id, name, value)
            if "failure" in record:
                rows.set_trial_state_values(storage_id, TrialState.FAIL)
            else:
                scores = scores_from(record["scores"])
                for name, values in stored_constraints(scores).items():
                    rows.set_trial_system_attr(storage_id, name, values)
                rows.set_trial_state_values(storage_id, TrialState.COMPLETE, list(scores.objectives))
    except optuna.exceptions.UpdateFinishedTrialError:
        _logger.debug("Trial %d was stored by another worker at the same time.", index)
    claims.stored(index)


def discard(study: Study, storage_id: int) -> None:
    """Closes a row of the storage that stands for no trial."""
    try:
        study.rows.set_trial_user_attr(storage_id, "discarded", "no trial of the study uses this row")
        study.rows.set_trial_state_values(storage_id, TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        _logger.debug("Row %d was closed already.", storage_id)


def join_study(
    storage: str | None, name: str, *, fingerprint: Mapping[str, Json], terms: Terms, timeout_s: float = 60.0
) -> Study:
    """Opens a stored study to help with it, without owning it (requirements R-CLI-13).

    terms: used when this worker is the first one to share it. Raises `StudyNotFoundError`,
    `FingerprintMismatchError` listing the differing fields, `StudyLockedError` when a run that shares it with
    nobody is searching it, `ConfigurationError` for a study in memory.
    """
    location = locate(storage)
    if location.url is None:
        raise ConfigurationError(
            "A worker needs a storage that other processes can reach.",
            hint="Give --storage sqlite:///FILE of the run, or a PostgreSQL address.",
        )
    study = visit_study(storage, name, timeout_s=timeout_s)
    with ExitStack() as on_error:
        on_error.callback(study.close)
        with translated(location):
            _require_fingerprint(study, name, plain(dict(fingerprint), "fingerprint"))
            if terms_of(study) is None:
                _share_unowned(study, name, terms)
        on_error.pop_all()
    return study


def visit_study(storage: str | None, name: str, *, timeout_s: float = 60.0) -> Study:
    """Opens a stored study without owning it, whatever it was made with; raises `StudyNotFoundError`."""
    location = locate(storage)
    with opening(location), translated(location):
        study = Study(location, open_backend(location, timeout_s=timeout_s), name, None)
        if study.has(name):
            study._attach(name)
            if study._header() is not None:
                return study
        names = optuna.get_all_study_names(study._backend)
    study.close()
    raise not_found(location, name, names)


def _require_fingerprint(study: Study, name: str, fingerprint: Mapping[str, Json]) -> None:
    header = study._header() or {}
    lines = differences(header["fingerprint"], fingerprint)
    if lines:
        raise FingerprintMismatchError(
            f"The study {name!r} in {study.location.shown()} was made with other inputs than this worker has "
            f"({len(lines)} differ).",
            hint="Give this worker the same model, data and settings as the run.",
            details=tuple(lines),
            data={"differences": list(lines)},
        )
    study.fingerprint = header["fingerprint"]


def _share_unowned(study: Study, name: str, terms: Terms) -> None:
    """Shares a SQLite study that nobody searches at the moment."""
    if study.location.file is None:
        share(study, terms)
        return
    try:
        lease = acquire(study.location.beside(name, "lock"), f"the study {name!r}")
    except StudyLockedError as error:
        error.hint = (
            "Start that run with --workers 2 or more (it continues where it was); then workers can join."
        )
        raise
    try:
        study._settle(study._header() or {})
        share(study, terms)
    finally:
        lease.release()


def kept_file(study: Study, name: str) -> bytes | None:
    """A file that belongs to the study: beside a SQLite database, inside a server's (for other machines)."""
    if study.location.file is not None:
        path = study.location.beside(study.name, name)
        return path.read_bytes() if path.is_file() else None
    return None if study.location.url is None else claims_of(study, NOBODY).file(name)


def keep_file(study: Study, name: str, data: bytes) -> None:
    """Stores a file with the study; a study in memory keeps none."""
    if study.location.file is not None:
        write_file(study.location.beside(study.name, name), data)
    elif study.location.url is not None:
        claims_of(study, NOBODY).keep_file(name, data)


def require_terms(study: Study) -> Terms:
    """The terms of a study that must be shared."""
    terms = terms_of(study)
    if terms is None:
        raise StudyError(
            f"The study {study.name!r} is not shared.", hint="Start the run with --workers 2 or more."
        )
    return terms
