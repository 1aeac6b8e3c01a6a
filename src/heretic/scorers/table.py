# SPDX-License-Identifier: Apache-2.0
"""The settings table of a scorer, read strictly: a mistyped option would measure something else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from heretic.exceptions import ConfigurationError

Option = str | bool | int | float | Sequence[str] | Mapping[str, str] | None


def read_table(
    scorer: str,
    table: Mapping[str, object],
    defaults: Mapping[str, Option],
    required: Mapping[str, type] | None = None,
) -> dict[str, object]:
    """The options with their defaults; a value must be of the kind of its default (int counts as float).

    defaults: option -> default. required: option -> type, without a default. Raises `ConfigurationError` naming an
    unknown option with the nearest known one, a missing one, and a value of another kind.
    """
    required = dict(required or {})
    known = {*defaults, *required}
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"Did you mean {near[0]}?"
                if near
                else f"Known options: {', '.join(sorted(known)) or 'none'}."
            )
            raise ConfigurationError(f"The scorer {scorer!r} has no option {name!r}.", hint=hint)
    missing = [name for name in required if name not in table]
    if missing:
        raise ConfigurationError(
            f"The scorer {scorer!r} needs the option {missing[0]!r}.",
            hint=f'Write it into its table: options = {{ {missing[0]} = "..." }}.',
        )
    found: dict[str, object] = dict(defaults)
    for name, value in table.items():
        wanted = required.get(name) or _kind(defaults[name])
        if not _fits(value, wanted):
            raise ConfigurationError(
                f"The option {name!r} of the scorer {scorer!r} is {value!r}, not {_words(wanted)}."
            )
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _kind(default: Option) -> type:
    if default is None or isinstance(default, str):
        return str
    if isinstance(default, Mapping):
        return dict
    return type(default) if isinstance(default, bool | int | float) else list


def _fits(value: object, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is list:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if wanted is dict:
        return isinstance(value, Mapping)
    return isinstance(value, wanted)


def _words(wanted: type) -> str:
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(wanted, "a list of texts" if wanted is list else "a table")
