# SPDX-License-Identifier: Apache-2.0
"""`Settings`: every value a run can be told, in one frozen record."""

from __future__ import annotations

from functools import cache
from typing import Final

from heretic.config.groups_data import AppSettings, DataSettings, ValidationSettings
from heretic.config.groups_method import DetectionSettings, DirectionSettings, InterventionSettings
from heretic.config.groups_run import (
    BatchSettings,
    LoadingSettings,
    OutputSettings,
    SearchSettings,
    TaskSettings,
)
from heretic.config.types import Group

GROUPS: Final[tuple[type[Group], ...]] = (
    TaskSettings,
    LoadingSettings,
    BatchSettings,
    SearchSettings,
    OutputSettings,
    DetectionSettings,
    DirectionSettings,
    InterventionSettings,
    DataSettings,
    ValidationSettings,
    AppSettings,
)


class Settings(
    AppSettings,
    ValidationSettings,
    DataSettings,
    InterventionSettings,
    DirectionSettings,
    DetectionSettings,
    OutputSettings,
    SearchSettings,
    BatchSettings,
    LoadingSettings,
    TaskSettings,
):
    """The settings of requirements 3.2 to 3.6.

    Each value is checked on its own here; rules between settings are checked by `heretic.config.rules`, which
    knows who gave them. Use `resolve_settings` to make one from the layers of the cascade.
    """


@cache
def group_of(name: str) -> type[Group]:
    """The group that declares a setting."""
    return next(group for group in GROUPS if name in group.model_fields)


@cache
def setting_names() -> tuple[str, ...]:
    """All names in the order of the documentation."""
    return tuple(name for group in GROUPS for name in group.model_fields)


def has_note(name: str, note: str) -> bool:
    """Whether a setting carries a note: `score`, `consent` or `secret` (see `types.setting`)."""
    extra = Settings.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra[note] is True


def redact(name: str, value: object) -> object:
    """A value without its secrets: hidden settings, and the password inside a storage address."""
    if value is not None and has_note(name.split(".")[0], "secret"):
        return "***"
    if name == "storage" and isinstance(value, str) and "@" in value:
        scheme, _, rest = value.partition("://")
        user, _, host = rest.rpartition("@")
        return f"{scheme}://{user.partition(':')[0]}:***@{host}"
    return value
