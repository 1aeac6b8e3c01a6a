# SPDX-License-Identifier: Apache-2.0
"""Layers read from files and the environment: TOML, `.env`, `HERETIC_*` variables."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from heretic.config.layers import Finding, Layer, LayerKind
from heretic.config.schema import KeyPath

PREFIX: Final = "HERETIC_"
_HEADER = re.compile(r"\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""\s*(?P<name>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
_DOTENV = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)$")
_FORBIDDEN_IN_DOTENV = re.compile(r"HF_ENDPOINT|VAST_API_URL|LD_.*|DYLD_.*|PYTHON.*|.*_PROXY", re.IGNORECASE)


def _decode(path: Path, shown: str) -> tuple[str, Finding | None]:
    """UTF-8 text of a file, byte-order mark removed; anything else is a finding with the cure."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return "", Finding("value", f"{shown}: cannot be read ({error.strerror})")
    if b"\0" not in raw:
        try:
            return raw.decode("utf-8-sig").replace("\r\n", "\n"), None
        except UnicodeDecodeError:
            pass
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw else "latin-1"
    code = (
        f"from pathlib import Path; p = Path({path.name!r}); p.write_text(p.read_text({encoding!r}), 'utf-8')"
    )
    return "", Finding("value", f'{shown}: is not UTF-8; convert it with: python -c "{code}"')


def _parts(name: str) -> KeyPath:
    return tuple(part.strip("\"'").replace("-", "_") for part in _PART.findall(name))


def key_lines(text: str) -> dict[KeyPath, int]:
    """Line (from 1) of each key and table header. Lines inside multi-line strings are not looked at."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    inside = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if (header := _HEADER.match(line)) and "=" not in header["name"]:
            table = _parts(header["name"])
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key["name"])), number)
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2:
                inside = quotes
    return lines


def _toml_problem(text: str, shown: str, error: tomllib.TOMLDecodeError) -> Finding:
    """file:line:column of the first error; tomlkit knows the place as numbers, tomllib only as words."""
    from tomlkit import parse
    from tomlkit.exceptions import ParseError

    try:
        parse(text)
    except ParseError as found:
        # tomlkit counts columns from 0, people and editors from 1.
        return Finding("value", f"{shown}:{found.line}:{found.col + 1}: is not valid TOML: {error}")
    return Finding("value", f"{shown}: is not valid TOML: {error}")


def load_toml(path: Path, shown: str) -> tuple[dict[str, object], str, Finding | None]:
    """The table in a TOML file and its text, or what is wrong with it."""
    text, problem = _decode(path, shown)
    if problem is not None:
        return {}, "", problem
    try:
        return tomllib.loads(text), text, None
    except tomllib.TOMLDecodeError as error:
        return {}, text, _toml_problem(text, shown, error)


def table_layer(
    kind: LayerKind, values: Mapping[str, object], text: str, shown: str, *, trusted: bool = True
) -> Layer:
    """A layer from a parsed TOML table; every leaf knows its line."""
    layer = Layer(kind, trusted=trusted)
    lines = key_lines(text)

    def visit(path: KeyPath, value: object, line: int | None) -> None:
        line = lines.get(path, line)
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                visit((*path, str(key).replace("-", "_")), item, line)
        elif path:
            source = f"{shown}:{line}" if line else shown
            nested: object = value
            for key in reversed(path[1:]):
                nested = {key: nested}
            layer.add(path[:1], nested, source)

    visit((), values, None)
    return layer


def toml_layer(path: Path, shown: str, *, trusted: bool) -> Layer:
    """A layer from a configuration file."""
    values, text, problem = load_toml(path, shown)
    layer = table_layer("file", values, text, shown, trusted=trusted)
    layer.shown = shown
    if problem is not None:
        layer.findings.append(problem)
    return layer


def user_config_file(environ: Mapping[str, str]) -> Path | None:
    """`heretic/config.toml` in the user's configuration folder, by the custom of the platform."""
    home = environ.get("HOME") or environ.get("USERPROFILE")
    if sys.platform == "win32":
        base = environ.get("APPDATA")
    elif sys.platform == "darwin":
        base = f"{home}/Library/Application Support" if home else None
    else:
        base = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    return Path(base) / "heretic" / "config.toml" if base else None


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """`HERETIC_N_TRIALS`, `HERETIC_BAD_PROMPTS__SPLIT`, or JSON in `HERETIC_BAD_PROMPTS` (R-CFG-03)."""
    layer = Layer("environment", trusted=False)
    for name in sorted(environ):
        if name.upper().startswith(PREFIX):
            _add_variable(layer, name, environ[name], name)
    return layer


def _add_variable(layer: Layer, name: str, value: str, source: str) -> None:
    """Sorted names put a JSON table before the single keys that refine it."""
    parts = [part for part in name[len(PREFIX) :].lower().split("__") if part]
    path = tuple(parts) if parts else ("",)
    if path[0] == "search_space" and len(path) > 2:
        path = (path[0], ".".join(path[1:-1]), path[-1])
    layer.add_text(path, value, source)


def dotenv_layer(folder: Path) -> Layer | None:
    """The `.env` of a folder: only `HERETIC_*` counts; endpoints are ignored aloud (F06)."""
    path = folder / ".env"
    if not path.is_file():
        return None
    layer = Layer(".env", trusted=False, shown=".env")
    text, problem = _decode(path, ".env")
    if problem is not None:
        layer.findings.append(problem)
        return layer
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _DOTENV.match(line.strip())
        if match is None:
            layer.findings.append(Finding("value", f".env:{number}: should be NAME=VALUE"))
        elif match["name"].upper().startswith(PREFIX):
            _add_variable(layer, match["name"], _unquote(match["value"]), f".env:{number} {match['name']}")
        elif _FORBIDDEN_IN_DOTENV.fullmatch(match["name"]):
            layer.notices.append(
                f".env:{number}: {match['name']} is ignored; set it in the real environment."
            )
    if os.name == "posix" and path.stat().st_mode & 0o044:
        layer.notices.append(".env can be read by other users; close it with: chmod 600 .env")
    return layer


def _unquote(value: str) -> str:
    value = value.strip()
    for quote in "\"'":
        if value.startswith(quote):
            end = value.find(quote, 1)
            if end > 0:
                return value[1:end]
    return re.split(r"\s+#", value, maxsplit=1)[0]
