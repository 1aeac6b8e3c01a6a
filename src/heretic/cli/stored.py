# SPDX-License-Identifier: Apache-2.0
"""Settings of a stored study, so that a later command need not repeat them (requirements R-CLI-10)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from heretic.cli.context import Context
from heretic.cli.study import find_study
from heretic.exceptions import ConfigurationError


def with_stored_settings(tokens: Sequence[str], name: str, context: Context) -> list[str]:
    """`tokens` and, for everything that decides a score, what the study `name` was made with.

    What the command line says itself is left alone: if it differs, opening the study names the difference.
    Raises `StudyNotFoundError`, and `ConfigurationError` when nobody names the model.
    """
    from heretic.config import setting_names, settings_for_fingerprint

    given = context.peek(tokens)
    study = find_study(given.settings.storage, name)
    if not given.settings.model:
        made_with = study.fingerprint.get("model", "an unknown one")
        raise ConfigurationError(
            f"the model of the study {name!r} is not given",
            hint=f"Add --model MODEL; the study was made with {made_with}.",
        )
    stored = study.fingerprint.get("settings")
    effective = settings_for_fingerprint(given.settings)
    said = {path.split(".")[0] for path, origin in given.origins.items() if origin.layer == "command line"}
    added = [
        f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in study.given.items()
        if name.split(".")[0] not in said and value is not None
    ]
    said |= {name.split(".")[0] for name in study.given}
    for key, value in (stored if isinstance(stored, Mapping) else {}).items():
        if key == "behaviour" and isinstance(value, Mapping):
            value = value.get("name")  # the hash beside it is compared when the study is opened
        if key in setting_names() and key not in said:
            added += _differing((str(key),), value, effective.get(key))
    return [*tokens, *added]


def _differing(path: tuple[str, ...], stored: object, effective: object) -> Iterator[str]:
    """One flag per leaf whose stored value is not the effective one."""
    if isinstance(stored, Mapping):
        inside = effective if isinstance(effective, Mapping) else {}
        for key, value in stored.items():
            yield from _differing((*path, str(key)), value, inside.get(key))
    elif stored != effective:
        text = stored if isinstance(stored, str) else json.dumps(stored)
        yield f"--{'.'.join(path).replace('_', '-')}={text}"
