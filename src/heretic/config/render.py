# SPDX-License-Identifier: Apache-2.0
"""`heretic show-config`: effective settings with their sources, as a table, as a file, as JSON (R-CLI-03)."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel

from heretic.config import schema
from heretic.config.describe import public_settings, toml_value
from heretic.config.resolve import Resolved
from heretic.config.settings import GROUPS, has_note, redact


def render_show_config(
    resolved: Resolved, fmt: Literal["text", "toml", "json"] = "text", *, unused: bool = False
) -> str:
    """The effective settings. unused: only the explicit ones that nothing reads, with the reason.

    `toml` is a file that can be loaded again and gives the same settings; asked for a behaviour and nothing
    else, it is that behaviour's pack, as a starting point for an own one (R-CFG-10). Secrets are hidden.
    """
    if unused:
        return _unused(resolved, fmt)
    if fmt == "json":
        return json.dumps(_document(resolved), indent=2) + "\n"
    if fmt == "toml":
        return resolved.behaviour.text if resolved.explicit == {"behaviour"} else _toml(resolved)
    return _text(resolved)


def _document(resolved: Resolved) -> dict[str, object]:
    settings = {
        name: {
            **entry,
            "overridden": [
                {"source": source, "value": redact(name, value)}
                for source, value in resolved.origins[name].overridden
            ],
        }
        for name, entry in public_settings(resolved).items()
    }
    return {
        "behaviour": {"name": resolved.behaviour.name, "sha256": resolved.behaviour.sha256},
        "settings": settings,
        "unused": dict(resolved.unused),
        "degradations": list(resolved.degradations),
        "notices": list(resolved.notices),
        "files": list(resolved.files),
    }


def _unused(resolved: Resolved, fmt: str) -> str:
    if fmt == "json":
        return json.dumps({"unused": dict(resolved.unused)}, indent=2) + "\n"
    lines = [
        f"{name} ({resolved.origins[name].source}): {reason}"
        for name, reason in sorted(resolved.unused.items())
    ]
    prefix = "# " if fmt == "toml" else ""
    return "".join(f"{prefix}{line}\n" for line in lines or ["Every setting you gave is read."])


def _text(resolved: Resolved) -> str:
    public = public_settings(resolved)
    width = max(len(name) for name in public)
    lines: list[str] = []
    for group in GROUPS:
        lines += ["", group.title] if lines else [group.title]
        for name, entry in public.items():
            if name.split(".")[0] in group.model_fields and (entry["value"] is not None or "." not in name):
                lines.append(f"  {name:<{width}}  {schema.shown(entry['value'])}  [{_story(resolved, name)}]")
    for title, items in (("Degradations", resolved.degradations), ("Notices", resolved.notices)):
        lines += ["", title, *(f"  {item}" for item in items)] if items else []
    return "\n".join(lines) + "\n"


def _story(resolved: Resolved, name: str) -> str:
    origin = resolved.origins[name]
    below = [
        f"{source} {schema.shown(redact(name, value))}"
        for source, value in origin.overridden
        if source != "default"
    ]
    return origin.source + (f"; overrides {', '.join(below)}" if below else "")


def _toml(resolved: Resolved) -> str:
    """Values that differ from the packaged defaults are stated, the others stand behind a `#`."""
    top: list[str] = []
    tables: list[str] = []
    for group in GROUPS:
        top += ["", f"# {group.title}"]
        for name in group.model_fields:
            value = getattr(resolved.settings, name)
            if isinstance(value, BaseModel):
                tables += _toml_table(resolved, name, schema.plain(value))
            else:
                top.append(_toml_line(resolved, name, value))
    return "\n".join([*top[1:], *tables]) + "\n"


def _toml_line(resolved: Resolved, name: str, value: object) -> str:
    origin = next(
        (item for key, item in resolved.origins.items() if key == name or key.startswith(f"{name}.")), None
    )
    hidden = has_note(name, "secret") or redact(name, value) != value
    only_by_hand = hidden or (has_note(name, "consent") and value not in (False, None))
    stated = origin is not None and origin.layer not in ("default", "derived")
    mark = "" if stated and not only_by_hand and not _is_unwritable(name, value) else "#"
    return f"{mark}{name} = {toml_value(name, redact(name, value))}"


def _is_unwritable(name: str, value: object) -> bool:
    """No model was given, or null where an empty text, TOML's way to write null, is a value of its own."""
    return (name == "model" and not value) or (
        value is None and schema.accepts_empty(schema.annotation_of((name,)))
    )


def _toml_table(resolved: Resolved, name: str, table: object) -> list[str]:
    given = resolved.origins
    leaves = {
        path: value
        for path, value in schema.flatten(table, (name,))
        if value is not None or given[schema.dotted(path)].layer != "default"
    }
    lines: list[str] = []
    header = None
    for path, value in leaves.items():
        origin = given[schema.dotted(path)]
        lost = value is None and schema.accepts_empty(schema.annotation_of(path))
        replaces = any(item is not None for _, item in origin.overridden)
        mark = "#" if origin.layer == "default" or (lost and not replaces) else ""
        if path[:-1] != header:
            header = path[:-1]
            keys = ".".join(f'"{key}"' if "." in key else key for key in header)
            lines += ["", f"[{keys}]"]
        lines.append(f"{mark}{path[-1]} = {toml_value(path[-1], value)}")
    return lines
