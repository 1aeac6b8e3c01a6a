# SPDX-License-Identifier: Apache-2.0
"""What the settings look like as data: paths, types in words, text into values, one value against its type.

A path is a tuple of keys from the top, `("bad_prompts", "split")`; a leaf is a path that holds one value.
Layers are merged leaf by leaf, so that a partial table never throws away what a lower layer said (R-CFG-02).
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, Union

from pydantic import BaseModel, TypeAdapter, ValidationError

from heretic.config.settings import Settings
from heretic.config.tables import ComponentRanges, SearchSpace
from heretic.config.types import STRICT

KeyPath: TypeAlias = tuple[str, ...]
BOOLEAN_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
NULL_WORDS: Final = ("null", "none")
ALIASES: Final = {"behavior": "behaviour"}
_LIST_COMMA = re.compile(r"(?<!\\),(?![^\[({]*[\])}])")


def dotted(path: KeyPath) -> str:
    """`bad_prompts.split`."""
    return ".".join(path)


@cache
def hints(model: type[BaseModel]) -> Mapping[str, Any]:
    """Field name to its annotation with constraints."""
    found = typing.get_type_hints(model, include_extras=True)
    return {name: found[name] for name in model.model_fields}


def members(annotation: object) -> tuple[Any, ...]:
    """The alternatives of a type, constraints kept on each, `None` left out."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return tuple(item for item in typing.get_args(annotation) if item is not type(None))
    return (annotation,)


def bare(annotation: object) -> Any:
    """The type without its constraints."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def is_optional(annotation: object) -> bool:
    """Whether null is a value of the type."""
    return type(None) in typing.get_args(annotation) and typing.get_origin(annotation) in (
        Union,
        types.UnionType,
    )


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def table_model(annotation: object) -> type[BaseModel] | None:
    """The record a table of this type is checked against, if it is one."""
    return next((bare(item) for item in members(annotation) if _is_model(bare(item))), None)


@cache
def is_free_table(annotation: object) -> bool:
    """Whether the keys are the user's own."""
    return any(typing.get_origin(bare(item)) is dict for item in members(annotation))


def is_list(annotation: object) -> bool:
    """Whether the value is a list of any length."""
    return any(typing.get_origin(bare(item)) is tuple for item in members(annotation))


def is_boolean(annotation: object) -> bool:
    """Whether the value is a switch (true, false, perhaps null)."""
    return [bare(item) for item in members(annotation)] == [bool]


@cache
def annotation_of(path: KeyPath) -> Any:
    """The type at a path, or None where the schema has no such key."""
    annotation: Any = Settings
    for position, key in enumerate(path):
        model = table_model(annotation)
        if model is None:
            kinds = [bare(item) for item in members(annotation) if typing.get_origin(bare(item)) is dict]
            return typing.get_args(kinds[0])[1] if kinds and position == len(path) - 1 else None
        if key in hints(model):
            annotation = hints(model)[key]
        elif model is SearchSpace:
            annotation = ComponentRanges
        else:
            return None
    return annotation


@cache
def leaf_names() -> tuple[str, ...]:
    """Every dotted name that can be written, tables included: for near names and completion."""
    names: list[str] = []
    for name, annotation in hints(Settings).items():
        names.append(name)
        model = table_model(annotation)
        if model is not None:
            names += [f"{name}.{key}" for key in model.model_fields]
    return tuple(names)


def flatten(value: object, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Leaves of nested tables; a list is one leaf."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, (*prefix, str(key)))
    else:
        yield prefix, value


def nest(leaves: Mapping[KeyPath, object]) -> dict[str, Any]:
    """Nested tables of leaves."""
    root: dict[str, Any] = {}
    for path, value in leaves.items():
        table = root
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = value
    return root


def plain(value: object) -> object:
    """A value as JSON and TOML know it: tuples become lists, records tables, paths text."""
    if isinstance(value, BaseModel):
        return {key: plain(item) for key, item in value}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.as_posix() if isinstance(value, Path) else value


def shown(value: object) -> str:
    """A value as messages and tables show it: JSON, ASCII only."""
    return json.dumps(plain(value), default=str)


def _is_not_table(kind: object) -> bool:
    return typing.get_origin(kind) is not dict


def parse_text(text: str, annotation: object) -> object:
    """Text from the command line or the environment as a value of a type; unfit text is returned as it is."""
    if is_optional(annotation) and text.lower() in NULL_WORDS:
        return None
    # A table is tried first: text accepts everything.
    kinds = sorted((bare(item) for item in members(annotation)), key=_is_not_table)
    for kind in kinds:
        value = _parse_member(text, kind)
        if value is not None:
            return value
    return text


def _parse_member(text: str, kind: Any) -> object:
    origin = typing.get_origin(kind)
    if kind is bool:
        return BOOLEAN_WORDS.get(text.lower())
    if kind in (int, float):
        try:
            return int(text, 10) if kind is int else float(text)
        except ValueError:
            return None
    if origin is tuple:
        return parse_list(text, typing.get_args(kind)[0])
    if origin is dict or _is_model(kind):
        value = _json(text)
        return value if isinstance(value, dict) else None
    return text if origin is not Literal or text in typing.get_args(kind) else None


def parse_list(text: str, item: object) -> list[object]:
    """A JSON array, or words separated by commas that stand outside brackets, without a backslash."""
    array = _json(text)
    if isinstance(array, list):
        return array
    if not text.strip():
        return []
    words = (word.strip().replace("\\,", ",") for word in _LIST_COMMA.split(text))
    return [{"name": word} if _is_scorer(item) else parse_text(word, item) for word in words]


def _is_scorer(item: object) -> bool:
    return _is_model(item) and "name" in hints(bare(item))


def _json(text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError:
        return None
    return value


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation) if _is_model(annotation) else TypeAdapter(annotation, config=STRICT)


def check_value(path: KeyPath, value: object) -> tuple[object, str | None]:
    """The value as the settings hold it, and what is wrong with it (None when nothing is).

    "" stands for null where null is allowed, because TOML has no null.
    """
    annotation = annotation_of(path)
    if value == "" and is_optional(annotation) and not accepts_empty(annotation):
        return None, None
    value = deep_tuples(value)
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        own = [
            item["msg"].removeprefix("Value error, ")
            for item in error.errors()
            if item["type"] == "value_error"
        ]
        return value, own[0] if own else f"should be {type_text(annotation)}"
    return value, None


def accepts_empty(annotation: object) -> bool:
    """Whether "" is itself a value: free text without a least length."""
    return any(item is str for item in members(annotation))


def deep_tuples(value: object) -> object:
    """Lists become tuples at every depth, as frozen records want them."""
    if isinstance(value, Mapping):
        return {str(key): deep_tuples(item) for key, item in value.items()}
    return tuple(deep_tuples(item) for item in value) if isinstance(value, tuple | list) else value


def type_text(annotation: object) -> str:
    """A type in words, with its range: `integer > 0`, `one of off, on, auto`, `list of text`."""
    words = [_member_text(item) for item in members(annotation)]
    if is_optional(annotation):
        words.append("null")
    return " or ".join(words)


def _member_text(item: Any) -> str:
    kind = bare(item)
    origin = typing.get_origin(kind)
    limits = _limits(item)
    if origin is Literal:
        choices = [str(word) or '""' for word in typing.get_args(kind)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin is tuple:
        inner = typing.get_args(kind)
        if inner[-1] is Ellipsis:
            return f"list of {_member_text(inner[0])}"
        return f"[low, high] of {_member_text(inner[0])}"
    if origin is dict or _is_model(kind):
        return "table"
    words = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    return words.get(kind, "value") + (f" {limits}" if limits else "")


def _limits(item: object) -> str:
    if typing.get_origin(item) is not Annotated:
        return ""
    found: dict[str, Any] = {}
    for extra in typing.get_args(item)[1:]:
        for constraint in getattr(extra, "metadata", [extra]):
            for name in ("gt", "ge", "lt", "le"):
                if hasattr(constraint, name):
                    found[name] = getattr(constraint, name)
    if "ge" in found and "le" in found:
        return f"{found['ge']:g}..{found['le']:g}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " and ".join(f"{signs[name]} {limit:g}" for name, limit in found.items())
