# SPDX-License-Identifier: Apache-2.0
"""What is generated from the settings: default file, settings page, rows of the help, fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from heretic.config import schema
from heretic.config.availability import UNAVAILABLE
from heretic.config.behaviour import Behaviour
from heretic.config.command_line import flag_of
from heretic.config.relevance import why_unread
from heretic.config.resolve import Resolved
from heretic.config.settings import GROUPS, Settings, group_of, has_note, redact, setting_names
from heretic.config.types import format_duration


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """Everything the program knows about one setting; default as JSON text, `required` where there is none.

    implemented: every value can be honoured by this version; otherwise unavailable_reason says which cannot.
    """

    name: str
    group: str
    flag: str
    environment: str
    type: str
    default: str
    meaning: str
    affects_score: bool
    consent: bool
    secret: bool
    implemented: bool
    unavailable_reason: str | None


def describe(name: str) -> SettingInfo:
    """The description of one setting, by its top-level name."""
    field = Settings.model_fields[name]
    reason = next((row.feature for row in UNAVAILABLE if row.setting == name), None)
    return SettingInfo(
        name=name,
        group=group_of(name).title,
        flag=flag_of((name,)),
        environment=f"HERETIC_{name.upper()}",
        type=schema.type_text(schema.hints(Settings)[name]),
        default="required" if field.is_required() else _default_text(field.get_default()),
        meaning=field.description or "",
        affects_score=has_note(name, "score"),
        consent=has_note(name, "consent"),
        secret=has_note(name, "secret"),
        implemented=reason is None,
        unavailable_reason=f"{reason} is not available in this version" if reason else None,
    )


def help_table() -> tuple[SettingInfo, ...]:
    """One row per setting, in the order of the documentation."""
    return tuple(describe(name) for name in setting_names())


def _default_text(value: object) -> str:
    if isinstance(value, BaseModel):
        stated = {key: item for key, item in value if key in value.model_fields_set}
        return ", ".join(f"{key} = {schema.shown(item)}" for key, item in stated.items()) or "built-in"
    return schema.shown(value)


def settings_page() -> str:
    """Markdown for `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "This page is generated from the code. Order of precedence: command line, environment, `.env` in the",
        "working directory, config files, behaviour pack, packaged defaults. Every setting is a flag",
        "(`--n-trials 20`), a key of `config.toml` (`n_trials = 20`) and a variable (`HERETIC_N_TRIALS=20`);",
        "keys of tables are written `--bad-prompts.split`, `[bad_prompts]` and `HERETIC_BAD_PROMPTS__SPLIT`.",
        "Lists accept a repeated flag, words separated by commas, or a JSON array; commas inside brackets",
        'or after a backslash separate nothing. Null is written `null` on the command line and `""` in TOML.',
        "",
    ]
    for group in GROUPS:
        lines += [
            f"## {group.title}",
            "",
            "| name | type | default | environment | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [_page_row(describe(name)) for name in group.model_fields]
        lines.append("")
    lines += _table_section("Keys of a prompt set", "bad_prompts")
    lines += _table_section("Keys of the search space", "search_space")
    return "\n".join(lines)


def _page_row(info: SettingInfo) -> str:
    meaning = info.meaning
    if info.consent:
        meaning += "; command line only"
    if info.unavailable_reason:
        meaning += f" ({info.unavailable_reason})"
    cells = (f"`{info.name}`", info.type, f"`{info.default}`", f"`{info.environment}`", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table_section(title: str, name: str) -> list[str]:
    model = schema.table_model(schema.hints(Settings)[name])
    assert model is not None, f"{name} is a table"
    lines = [f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        default = "required" if field.is_required() else schema.shown(field.get_default())
        lines.append(
            f"| `{key}` | {schema.type_text(schema.hints(model)[key])} | `{default}` | {field.description} |"
        )
    return [*lines, ""]


def toml_value(name: str, value: object) -> str:
    """A value as TOML writes it; null is an empty string (see `schema.check_value`)."""
    if name == "time_budget" and isinstance(value, float):
        value = format_duration(value) if value.is_integer() else value
    return _inline(schema.plain(value))


def _inline(value: Any) -> str:
    """One line: tables and lists of tables too, so that a line can be commented out."""
    import tomlkit

    if isinstance(value, Mapping):
        pairs = [f"{_key(key)} = {_inline(item)}" for key, item in value.items() if item is not None]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return str(tomlkit.item("" if value is None else value).as_string())


def _key(key: str) -> str:
    import tomlkit

    return str(tomlkit.key(key).as_string())


def default_toml() -> str:
    """The commented default file: every default stands behind a `#`, so that a copy states nothing by itself.

    Prose lines start with `# `; removing the `#` from the other lines gives a file of all defaults.
    """
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Defaults of every setting, generated. Copy it to config.toml and uncomment what you change.",
        "# Keys above the first [table] are top-level settings; keep them there.",
    ]
    tables: list[str] = []
    for group in GROUPS:
        heading = ["", f"# {group.title}"]
        for name in group.model_fields:
            value = getattr(_defaults(), name)
            target = tables if isinstance(value, BaseModel) else heading
            target += _toml_lines(name, value)
        lines += heading if len(heading) > 2 else []
    return "\n".join([*lines, "", "# Tables", *tables]) + "\n"


def _defaults() -> Settings:
    return Settings(model="")


def _toml_lines(name: str, value: object) -> list[str]:
    info = describe(name)
    lines = [f"# {info.meaning} ({info.type})".replace("\n", " ")]
    if isinstance(value, BaseModel):
        stated = [f"#{key} = {toml_value(key, item)}" for key, item in value if key in value.model_fields_set]
        return ["", *lines, f"#[{name}]", *stated]
    if name == "model":
        return [*lines, '#model = "HUB_ID_OR_FOLDER"']
    if value is None and schema.accepts_empty(schema.hints(Settings)[name]):
        return [*lines, f"# {name} has no default; an empty text is a value of its own"]
    return [*lines, f"#{name} = {toml_value(name, value)}"]


def settings_for_fingerprint(settings: Settings, behaviour: Behaviour | None = None) -> dict[str, object]:
    """What can change a trial's scores, as JSON (R-SEA-20): marked settings that this configuration reads.

    With `behaviour`, its name and hash replace the path it was loaded from (R-CFG-12).
    """
    chosen: dict[str, object] = {
        name: schema.plain(getattr(settings, name))
        for name in setting_names()
        if has_note(name, "score") and why_unread(settings, name) is None
    }
    if behaviour is not None:
        chosen["behaviour"] = {"name": behaviour.name, "sha256": behaviour.sha256}
    return chosen


def public_settings(resolved: Resolved) -> dict[str, Mapping[str, object]]:
    """Effective value and source of every leaf, secrets hidden, for study, report and manifest (R-CFG-07)."""
    table = {name: schema.plain(getattr(resolved.settings, name)) for name in setting_names()}
    leaves = {schema.dotted(path): value for path, value in schema.flatten(table)}
    return {
        name: {"value": redact(name, value), "source": resolved.origins[name].source}
        for name, value in leaves.items()
    }
