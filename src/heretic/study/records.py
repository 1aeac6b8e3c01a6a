# SPDX-License-Identifier: Apache-2.0
"""Trials as plain JSON: what goes into the storage and the ledger, and back (requirements R-FMT-08)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from heretic.exceptions import StudyCorruptError
from heretic.study.types import FinishedTrial, Json, Scores, TrialFailure


class NotPlainError(ValueError):
    """A value that JSON cannot hold exactly; the message names the key."""


def plain(value: object, where: str) -> Any:
    """The value after a round trip through strict JSON (no NaN, no infinity, no array scalars).

    Raises `NotPlainError`. Everything stored passes here first: a value that fails only when it is read back,
    or only in trial 40, costs the run (reliability A16).
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        if isinstance(value, Mapping):
            for key, item in value.items():
                plain(item, f"{where}.{key}")
        kind = type(value).__name__
        raise NotPlainError(f"{where} = {value!r} ({kind}) cannot be stored as JSON: {error}") from error


def checked(result: object, where: str) -> Scores | TrialFailure:
    """A result as it will be stored; anything not finite, missing or not storable becomes a failure (A09,
    A16).

    The storage would turn NaN into a failure without a word and keep infinity as a complete trial
    (reliability X18).
    """
    if isinstance(result, TrialFailure):
        return result
    if not isinstance(result, Scores):
        return TrialFailure(f"{where} gave no scores but {result!r}.")
    if len(result.objectives) != 2:
        return TrialFailure(f"{where} gave {len(result.objectives)} objectives instead of 2.")
    named: dict[str, object] = {
        f"objective {number}": value for number, value in enumerate(result.objectives)
    }
    named.update({f"constraint {name}": value for name, value in result.constraints.items()})
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return TrialFailure(f"{where}: {name} is {value!r}, not a finite number.")
    try:
        return scores_from(plain(scores_record(result), "scores"))
    except NotPlainError as error:
        return TrialFailure(f"{where}: {error}")


def scores_record(scores: Scores) -> dict[str, Json]:
    """Scores as a JSON object."""
    return {
        "objectives": list(scores.objectives),
        "constraints": dict(scores.constraints),
        "measured": dict(scores.measured),
    }


def scores_from(record: Mapping[str, Any]) -> Scores:
    """Scores from their JSON object; raises `StudyCorruptError` when it is not one."""
    try:
        behaviour, divergence = record["objectives"]
        constraints = {str(name): float(value) for name, value in record["constraints"].items()}
        return Scores((float(behaviour), float(divergence)), constraints, dict(record["measured"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyCorruptError(f"A stored trial has unreadable scores: {record!r}.") from error


def finished_from(attributes: Mapping[str, Any]) -> FinishedTrial:
    """A trial from the attributes of its row (`proposal` and `scores`); raises `StudyCorruptError`."""
    try:
        proposal, scores = attributes["proposal"], attributes["scores"]
        return FinishedTrial(int(proposal["index"]), dict(proposal["parameters"]), scores_from(scores))
    except (KeyError, TypeError, ValueError) as error:
        raise StudyCorruptError(
            f"A stored trial lacks its parameters or scores: {sorted(attributes)}.",
            hint="The study was changed by another program. Start a new one with --study-name.",
        ) from error


def differences(stored: Json, current: Json, prefix: str = "") -> list[str]:
    """One line per field that differs, with dotted names and both values (requirements R-SEA-22)."""
    if isinstance(stored, Mapping) and isinstance(current, Mapping):
        lines: list[str] = []
        for key in sorted({*stored, *current}):
            name = f"{prefix}.{key}" if prefix else str(key)
            if key not in stored:
                lines.append(f"{name}: not stored, now {_shown(current[key])}")
            elif key not in current:
                lines.append(f"{name}: stored {_shown(stored[key])}, now absent")
            else:
                lines.extend(differences(stored[key], current[key], name))
        return lines
    if stored == current and type(stored) is type(current):
        return []
    return [f"{prefix}: stored {_shown(stored)}, now {_shown(current)}"]


def _shown(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
