# SPDX-License-Identifier: Apache-2.0
"""Two different valid values for every leaf of the settings, made from the types, for the settings tests."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from heretic.config import Resolved, Settings, resolve_settings, schema
from heretic.config.schema import KeyPath

SPECIAL: dict[str, tuple[object, object]] = {
    "model": ("one", "two"),
    "behaviour": ("refusal", "demo"),
    "time_budget": ("90s", "45m"),
    "storage": ("sqlite:///one.db", "sqlite:///two.db"),
    "hf_upload": ("me/one", "me/two"),
    "scorers": ([{"name": "markers"}], [{"name": "kl_divergence"}]),
    "layer_range_profiles": (
        [{"start": 0.0, "end": 0.5, "multiplier": 1.0}],
        [{"start": 0.5, "end": 1.0, "multiplier": 0.5}],
    ),
    "max_memory": ({"cpu": "1GiB"}, {"cpu": "2GiB"}),
    "search_space.direction_scope": (["global"], ["per_layer"]),
}


def leaf_paths() -> list[KeyPath]:
    """Every leaf that has a fixed name."""
    paths: list[KeyPath] = []
    for name in schema.leaf_names():
        path = tuple(name.split("."))
        if schema.table_model(schema.annotation_of(path)) is None or name in SPECIAL:
            paths.append(path)
    return paths


@cache
def two_values(path: KeyPath) -> tuple[object, object]:
    """Two values a TOML file may state for a leaf."""
    name = schema.dotted(path)
    if name in SPECIAL:
        return SPECIAL[name]
    member = next(iter(schema.members(schema.annotation_of(path))))
    kind = schema.bare(member)
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        return words[0], words[-1]
    if typing.get_origin(kind) is tuple:
        return _two_lists(kind)
    if kind is int:
        return _numbers(member, (11, 13, 3, 4, 1, 2), int)
    if kind is float:
        return _numbers(member, (0.55, 0.65), float)
    return {bool: (True, False), str: ("one", "two"), Path: ("one", "two")}[kind]


def _two_lists(kind: Any) -> tuple[object, object]:
    item = typing.get_args(kind)[0]
    if typing.get_args(kind)[-1] is not Ellipsis:
        return ([1, 2], [2, 3]) if schema.bare(item) is int else ([0.1, 0.2], [0.2, 0.3])
    if typing.get_origin(schema.bare(item)) is Literal:
        words = typing.get_args(schema.bare(item))
        return [words[0]], [words[-1]]
    return {bool: ([True], [False]), float: ([1.0, 1.0, 1.0], [2.0, 1.0, 1.0])}.get(
        schema.bare(item), (["one"], ["two", "three"])
    )


def _numbers(member: Any, candidates: Sequence[float], kind: type) -> tuple[object, object]:
    adapter_fits = [value for value in candidates if _fits(member, kind(value))]
    return kind(adapter_fits[0]), kind(adapter_fits[1])


def _fits(member: Any, value: object) -> bool:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter[Any](member).validate_python(value)
    except ValidationError:
        return False
    return True


def resolve(
    *tokens: str, cwd: Path, environ: dict[str, str] | None = None, files: Sequence[Path] = ()
) -> Resolved:
    """The settings of a command line in a folder, with nothing else around."""
    return resolve_settings(tokens, environ=environ or {}, cwd=cwd, config_files=files)


def value_at(settings: Settings, path: KeyPath) -> object:
    """The value of a leaf, as JSON knows it."""
    value: Any = settings
    for key in path:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return schema.plain(value)
