# SPDX-License-Identifier: Apache-2.0
"""The cascade: command line > environment > .env > config files > behaviour pack > defaults (R-CFG-01)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ValidationError

from heretic.config import schema
from heretic.config.behaviour import Behaviour, load_behaviour
from heretic.config.command_line import command_line_layer
from heretic.config.files import dotenv_layer, environment_layer, toml_layer, user_config_file
from heretic.config.layers import Entry, Finding, Layer, LayerKind, merge
from heretic.config.relevance import why_unread
from heretic.config.rules import EXPLICIT, Effective, apply_availability, apply_derivations, contradictions
from heretic.config.schema import KeyPath
from heretic.config.settings import Settings, setting_names
from heretic.config.tables import DatasetSettings
from heretic.exceptions import (
    ConfigurationError,
    UnknownSettingError,
    UnusedSettingError,
    WarmStartError,
)

_CONFIG_NAME: Final = "config.toml"
_ERRORS: Final[dict[str, type[ConfigurationError]]] = {
    "unknown": UnknownSettingError,
    "unused": UnusedSettingError,
    "family": WarmStartError,
    "value": ConfigurationError,
}
_HINTS: Final = {
    "unknown": "`heretic --help` lists all settings; `heretic show-config` shows where each comes from.",
    "unused": "Leave it out, or switch on what reads it; `heretic show-config --unused` lists such settings.",
    "family": "Leave model_family out to have it detected.",
    "value": "Correct these and start again; nothing was changed.",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an effective value comes from. overridden: (source, value) of lower layers, highest first."""

    layer: LayerKind
    source: str
    overridden: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """The effective settings and their story.

    origins: one per leaf, by dotted name (`n_trials`, `bad_prompts.split`). explicit: dotted names the user
    gave, and the table that holds each. unused: explicit settings that nothing reads, with the reason.
    files: what was read. degradations and notices are sentences for the user.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    degradations: tuple[str, ...]
    notices: tuple[str, ...]
    explicit: frozenset[str]
    behaviour: Behaviour
    unused: Mapping[str, str]
    files: tuple[str, ...]


def resolve_settings(
    tokens: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    config_files: Sequence[Path] = (),
    purpose: Literal["run", "show"] = "run",
) -> Resolved:
    """All layers merged and checked as a whole, before anything is loaded (R-FLOW-01).

    tokens: the command line without the command and its own flags. purpose `show` accepts a missing model.
    Raises `UnknownSettingError`, `UnusedSettingError` or
    `WarmStartError` when all findings are of that kind, else `ConfigurationError`. Several findings are its
    `details`, one a line; a single one is its message; `data["findings"]` holds them always.
    """
    layers = _user_layers(tokens, environ, cwd, config_files)
    behaviour, pack = load_behaviour(_behaviour_key(layers), cwd)
    layers = [default_layer(), pack, *layers]
    findings = [finding for layer in layers for finding in layer.findings]
    merged, stated = merge(layers)
    effective = Effective(merged, {path: stated[path][-1][0] for path in merged})
    apply_derivations(effective)
    missing = apply_availability(effective)
    notices = [notice for layer in layers for notice in layer.notices]
    findings += missing
    findings += _missing_model(effective, findings, purpose)
    settings, wrong = _build(effective)
    findings += wrong if not findings else []
    unused: dict[str, str] = {}
    if settings is not None:
        findings += contradictions(settings, effective)
        unused = _unused(settings, effective)
        unused_findings, unused_notices = _judge_unused(unused, effective)
        findings += unused_findings
        notices += unused_notices
    if settings is None or findings:
        raise _error(findings)
    return Resolved(
        settings=settings,
        origins=_origins(settings, effective, stated),
        degradations=tuple(effective.degradations),
        notices=tuple(dict.fromkeys(notices)),
        explicit=_explicit(effective),
        behaviour=behaviour,
        unused=unused,
        files=_files(layers),
    )


@cache
def _default_entries() -> Mapping[KeyPath, Entry]:
    entries: dict[KeyPath, Entry] = {}
    for name, field in Settings.model_fields.items():
        if field.is_required():
            continue
        default: object = field.get_default()
        if isinstance(default, BaseModel):
            entries.update(
                {(name, key): Entry(value, "default") for key, value in default if value is not None}
            )
        else:
            entries[(name,)] = Entry(default, "default")
    return entries


def default_layer() -> Layer:
    """The packaged defaults: the code is their only source, `config.default.toml` is generated from it."""
    return Layer("default", entries=dict(_default_entries()))


def _user_layers(
    tokens: Sequence[str], environ: Mapping[str, str], cwd: Path, config_files: Sequence[Path]
) -> list[Layer]:
    """Config files, .env, environment and command line, lowest first."""
    dotenv = dotenv_layer(cwd)
    layers = [*_file_layers(cwd, environ, config_files), *([dotenv] if dotenv else [])]
    return [*layers, environment_layer(environ), command_line_layer(tokens)]


def _file_layers(cwd: Path, environ: Mapping[str, str], config_files: Sequence[Path]) -> list[Layer]:
    if config_files:
        return [toml_layer(cwd / path, str(path), trusted=True) for path in config_files]
    found = cwd / _CONFIG_NAME
    if found.is_file():
        layer = toml_layer(found, _CONFIG_NAME, trusted=False)
        # A file that was merely found may be somebody else's, so it is announced (reliability F06).
        layer.notices.insert(0, "Read config.toml, found in the working directory.")
        return [layer]
    user_file = user_config_file(environ)
    if user_file is not None and user_file.is_file():
        layer = toml_layer(user_file, str(user_file), trusted=False)
        layer.notices.insert(0, f"Read {user_file}.")
        return [layer]
    return []


def _files(layers: Iterable[Layer]) -> tuple[str, ...]:
    return tuple(layer.shown for layer in layers if layer.kind in ("file", ".env"))


def _behaviour_key(layers: Iterable[Layer]) -> str:
    keys = [layer.entries[("behaviour",)].value for layer in layers if ("behaviour",) in layer.entries]
    return str(keys[-1]) if keys else str(Settings.model_fields["behaviour"].get_default())


def _missing_model(effective: Effective, findings: Sequence[Finding], purpose: str) -> list[Finding]:
    """A wrong flag may have taken the model's place: its absence is reported only when all else is right."""
    if effective.value("model"):
        return []
    effective.entries[("model",)] = Entry("", "not given")
    effective.kinds[("model",)] = "default"
    if purpose == "show" or findings:
        return []
    return [Finding("value", "no model is given; write it after the command, or use --model")]


def _build(effective: Effective) -> tuple[Settings | None, list[Finding]]:
    leaves = {path: entry.value for path, entry in effective.entries.items()}
    try:
        return Settings.model_validate(schema.nest(leaves)), []
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        return None, [Finding("value", line) for line in lines]


def _unused(settings: Settings, effective: Effective) -> dict[str, str]:
    unused = {}
    for path, kind in effective.kinds.items():
        if kind not in EXPLICIT:
            continue
        reason = why_unread(settings, path[0]) or why_unread(settings, schema.dotted(path))
        if reason is not None:
            unused[schema.dotted(path)] = reason
    return unused


def _judge_unused(unused: Mapping[str, str], effective: Effective) -> tuple[list[Finding], list[str]]:
    """An unread parameter is an error on the command line; switches and prompt sets give a notice."""
    findings, notices = [], []
    for path, kind in effective.kinds.items():
        name = schema.dotted(path)
        if name not in unused:
            continue
        annotation = schema.annotation_of(path)
        is_prompt_set = schema.table_model(schema.annotation_of(path[:1])) is DatasetSettings
        exempt = schema.is_boolean(annotation) or is_prompt_set
        source = effective.entries[path].source
        line = f"{name} ({source}) has no effect here: {unused[name]}"
        asks_for_off = schema.is_boolean(annotation) and not effective.entries[path].value
        if kind == "command line" and not exempt:
            findings.append(Finding("unused", line))
        elif not asks_for_off:
            notices.append(f"{line}.")
    return findings, notices


def _origins(
    settings: Settings, effective: Effective, stated: Mapping[KeyPath, Sequence[tuple[LayerKind, Entry]]]
) -> dict[str, Origin]:
    leaves = dict(schema.flatten({name: _table(settings, name) for name in setting_names()}))
    origins = {}
    for path in leaves:
        entry = effective.entries.get(path)
        if entry is None:
            origins[schema.dotted(path)] = Origin("default", "default")
            continue
        lower = [
            (item.source, schema.plain(item.value)) for _, item in stated.get(path, ()) if item is not entry
        ]
        kind = effective.kinds.get(path, "default")
        origins[schema.dotted(path)] = Origin(kind, entry.source, tuple(reversed(lower)))
    return origins


def _table(settings: Settings, name: str) -> object:
    """A setting as nested tables down to its leaves; lists stay one leaf."""
    value = getattr(settings, name)
    return schema.plain(value) if isinstance(value, BaseModel) else value


def _explicit(effective: Effective) -> frozenset[str]:
    paths = [path for path, kind in effective.kinds.items() if kind in EXPLICIT]
    return frozenset(schema.dotted(path[:length]) for path in paths for length in range(1, len(path) + 1))


def _error(findings: Sequence[Finding]) -> ConfigurationError:
    kinds = {finding.kind for finding in findings}
    kind = kinds.pop() if len(kinds) == 1 else "value"
    lines = tuple(dict.fromkeys(finding.text for finding in findings))
    if len(lines) == 1:
        sentence = lines[0] if lines[0].endswith("?") else f"{lines[0]}."
        return _ERRORS[kind](sentence, hint=_HINTS[kind], data={"findings": list(lines)})
    message = f"The settings have {len(lines)} errors."
    return _ERRORS[kind](message, hint=_HINTS[kind], details=lines, data={"findings": list(lines)})
