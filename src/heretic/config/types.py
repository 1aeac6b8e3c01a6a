# SPDX-License-Identifier: Apache-2.0
"""Words in which settings are written: bounded numbers, durations, paths, and the note each one carries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")

STRICT: Final = ConfigDict(strict=True, allow_inf_nan=False)
"""1 is not true, "5" is not 5, and nan is no number (reliability D08)."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_UNITS = (86400, 3600, 60, 1)
_STORAGE = re.compile(r"(sqlite:///|postgresql(\+[a-z0-9]+)?://)\S+")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def parse_duration(value: object) -> object:
    """`90s`, `45m`, `8h`, `1h30m` in seconds; other values pass through to the number check."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise ValueError("should be a duration such as 90s, 45m or 8h")
    return float(sum(int(count or 0) * unit for count, unit in zip(match.groups(), _UNITS, strict=True)))


def format_duration(seconds: float) -> str:
    """The shortest form that `parse_duration` reads back; fractions of a second are dropped."""
    rest = int(seconds)
    words = ""
    for unit, letter in zip(_UNITS, "dhms", strict=True):
        count, rest = divmod(rest, unit)
        words += f"{count}{letter}" if count else ""
    return words or "0s"


def _as_path(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) else value


def _as_storage(value: object) -> object:
    if isinstance(value, str) and not _STORAGE.fullmatch(value):
        raise ValueError("should be sqlite:///FILE, postgresql://HOST/NAME, or empty for memory")
    return value


def _as_repository(value: object) -> object:
    if isinstance(value, str) and not _REPOSITORY.fullmatch(value):
        raise ValueError("should be a repository id such as user/name")
    return value


def _as_pattern(value: object) -> object:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"should be a valid pattern ({error})") from error
    return value


def _as_model(value: object) -> object:
    if isinstance(value, str) and (value.startswith("-") or not value.isprintable()):
        raise ValueError("should be a Hub id or a folder")
    return value


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, Field(min_length=1), BeforeValidator(_as_pattern)]
StorageUrl = Annotated[str, BeforeValidator(_as_storage)]
Repository = Annotated[str, BeforeValidator(_as_repository)]
ModelName = Annotated[str, BeforeValidator(_as_model)]


class Frozen(BaseModel):
    """Base of every settings record: immutable, strict, and closed against unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", **STRICT)


class Group(Frozen):
    """Settings that stand together in the help, the settings page and the default file."""

    title: ClassVar[str] = ""


def setting(
    default: T, meaning: str, *, score: bool = True, consent: bool = False, secret: bool = False
) -> T:
    """A setting with its default and one line of meaning.

    score: part of the study's fingerprint, because it can change what a trial measures (R-SEA-20).
    consent: only the command line may grant it (reliability REL-R11).
    secret: left out of everything that is written or shown.
    """
    note = {"score": score, "consent": consent, "secret": secret}
    return Field(default=default, description=meaning, json_schema_extra=dict(note))
