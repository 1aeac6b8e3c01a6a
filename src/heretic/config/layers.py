# SPDX-License-Identifier: Apache-2.0
"""A layer of the cascade: leaves with their source, and what is wrong in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from heretic.config import schema
from heretic.config.schema import KeyPath
from heretic.config.settings import Settings, has_note, redact
from heretic.config.tables import SOURCE_KEYS, ComponentRanges, DatasetSettings, SearchSpace

LayerKind: TypeAlias = Literal[
    "default", "behaviour", "file", ".env", "environment", "command line", "derived"
]
FindingKind: TypeAlias = Literal["unknown", "unused", "family", "value"]

RETIRED: Final = {
    "cache_weights": "the search changes no weight, so there is nothing to cache or restore; it is ignored"
}
SUGGESTIONS: Final = {
    "prune_trials": "racing",
    "eval_prompts": "bad_evaluation_prompts",
    "torch_dtype": "dtypes",
    "dtype": "dtypes",
}
"""Names from other tools or expectations, where the nearest spelling would mislead (requirements 3.7)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, as one line."""

    kind: FindingKind
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as the settings hold it, and where it was said: `--n-trials`, `config.toml:12`."""

    value: object
    source: str


@dataclass(slots=True)
class Layer:
    """What one source states. trusted: may name code of the user (reliability F05). shown: the file."""

    kind: LayerKind
    entries: dict[KeyPath, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    trusted: bool = True
    shown: str = ""

    def add_text(self, path: KeyPath, text: str, source: str) -> None:
        """State a value that was written as text."""
        annotation = schema.annotation_of(path)
        self.add(path, schema.parse_text(text, annotation) if annotation is not None else text, source)

    def add(self, path: KeyPath, value: object, source: str) -> None:
        """State a typed value; tables are taken apart, unknown keys and wrong values become findings."""
        path = (schema.ALIASES.get(path[0], path[0]), *path[1:])
        if path[0] in RETIRED:
            self.notices.append(f"{source}: {path[0]} is retired: {RETIRED[path[0]]}.")
            return
        annotation = schema.annotation_of(path)
        if annotation is None or _is_misspelt_range(path, value):
            self.findings.append(Finding("unknown", unknown_text(path, source)))
            return
        model = schema.table_model(annotation)
        is_records = schema.is_list(annotation)
        if isinstance(value, Mapping) and not is_records and (model or schema.is_free_table(annotation)):
            for key, item in _children(annotation, value):
                self.add((*path, *key), item, source)
        elif model is DatasetSettings and isinstance(value, str):
            self.add((*path, "dataset"), value, source)  # `--bad-prompts FILE` can mean nothing else
        elif model is not None and not is_records:
            self.findings.append(Finding("value", _table_text(path, value, source)))
        else:
            self._add_leaf(path, value, source)

    def _add_leaf(self, path: KeyPath, value: object, source: str) -> None:
        checked, problem = schema.check_value(path, value)
        if problem is None:
            problem = self._forbidden(path, checked)
        if problem is not None:
            shown = schema.shown(redact(path[0], value))
            kind: FindingKind = "family" if path == ("model_family",) else "value"
            self.findings.append(Finding(kind, f"{schema.dotted(path)} = {shown} ({source}): {problem}"))
            return
        self.entries[path] = Entry(checked, source)

    def _forbidden(self, path: KeyPath, value: object) -> str | None:
        if has_note(path[0], "consent") and self.kind != "command line" and value not in (False, None):
            return "this consent counts only on the command line"
        if path == ("scorers",) and not self.trusted and isinstance(value, tuple):
            names = [
                str(item["name"]) for item in value if isinstance(item, Mapping) and ":" in str(item["name"])
            ]
            if names:
                return f"own code ({names[0]}) counts only from the command line, --config or a named pack"
        return None


def _is_misspelt_range(path: KeyPath, value: object) -> bool:
    """Tables of the search space are named after components; a lone value of a foreign name is misspelt."""
    foreign = len(path) == 2 and path[0] == "search_space" and path[1] not in SearchSpace.model_fields
    return foreign and not isinstance(value, Mapping)


def _children(annotation: object, table: Mapping[str, object]) -> Iterator[tuple[KeyPath, object]]:
    """Keys of a table with dashes as underscores; a component is written with dots or nested."""
    model = schema.table_model(annotation)
    for key, value in table.items():
        name = str(key).replace("-", "_") if model else str(key)
        if model is SearchSpace and name not in model.model_fields and isinstance(value, Mapping):
            yield from _components(name, value)
        else:
            yield (name,), value


def _components(name: str, table: Mapping[str, object]) -> Iterator[tuple[KeyPath, object]]:
    for key, value in table.items():
        word = str(key).replace("-", "_")
        if isinstance(value, Mapping) and word not in ComponentRanges.model_fields:
            yield from _components(f"{name}.{word}", value)
        else:
            yield (name, word), value


def _table_text(path: KeyPath, value: object, source: str) -> str:
    model = schema.table_model(schema.annotation_of(path))
    first = next(iter(model.model_fields)) if model else "KEY"
    name = schema.dotted(path)
    return f"{name} = {schema.shown(value)} ({source}): is a table; name its key, as in {name}.{first}"


def near_name(path: KeyPath) -> str | None:
    """The nearest valid dotted name, or None."""
    if path[0] in SUGGESTIONS:
        return SUGGESTIONS[path[0]]
    name = schema.dotted(path)
    if len(path) > 1:
        model = schema.table_model(schema.annotation_of(path[:-1]))
        close = difflib.get_close_matches(path[-1], model.model_fields, n=1) if model else []
        if close:
            return schema.dotted((*path[:-1], close[0]))
    close = difflib.get_close_matches(name, schema.leaf_names(), n=1)
    return close[0] if close else None


def unknown_text(path: KeyPath, source: str, shown: str | None = None) -> str:
    """The line for a key that names no setting (R-CLI-40)."""
    line = f"{source}: there is no setting {shown or schema.dotted(path)!r}"
    if len(path) > 1 and path[-1] in Settings.model_fields:
        return f"{line}; {path[-1]} is a top-level setting: move it above the first [table]"
    near = near_name(path)
    return f"{line}; did you mean {near}?" if near else line


def merge(
    layers: Sequence[Layer],
) -> tuple[dict[KeyPath, Entry], dict[KeyPath, list[tuple[LayerKind, Entry]]]]:
    """Leaves of all layers, lowest first: the effective ones, and for each path every layer that stated it.

    A layer that names another data set first drops what belonged to the old one (R-CFG-05).
    """
    merged: dict[KeyPath, Entry] = {}
    stated: dict[KeyPath, list[tuple[LayerKind, Entry]]] = {}
    for layer in layers:
        for path, entry in layer.entries.items():
            if path[-1] == "dataset" and path in merged and merged[path].value != entry.value:
                _drop_identity(merged, path[:-1])
        for path, entry in layer.entries.items():
            _make_room(merged, path)
            merged[path] = entry
            stated.setdefault(path, []).append((layer.kind, entry))
    return merged, stated


def _drop_identity(merged: dict[KeyPath, Entry], table: KeyPath) -> None:
    for key in SOURCE_KEYS:
        merged.pop((*table, key), None)


def _make_room(merged: dict[KeyPath, Entry], path: KeyPath) -> None:
    """A table replaces a single value of the same name, and the other way round."""
    for length in range(1, len(path)):
        merged.pop(path[:length], None)
    if not schema.is_free_table(schema.annotation_of(path)):
        return
    for other in [other for other in merged if len(other) > len(path) and other[: len(path)] == path]:
        del merged[other]
