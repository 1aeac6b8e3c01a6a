# SPDX-License-Identifier: Apache-2.0
"""`heretic_run.json`: what explains and repeats a result (R-FMT-01). Never a secret, a user name or a local
path.

Serialisation is by allow-list: only the named sections, only plain values. Text is cleaned as a second line
of defence, for values that carry a token or a path inside (reliability I03, R-OUT-30).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from heretic.constants import HIDDEN_MANIFEST, SCHEMA_VERSION
from heretic.exceptions import ModelValidationError
from heretic.export.folder import read_json_table

SECTIONS = (
    "program",
    "created",
    "versions",
    "seed",
    "command_line",
    "settings",
    "model",
    "data",
    "fingerprint",
    "directions",
    "trial",
    "scores",
    "baseline",
    "noise_floor",
    "guards",
    "degradations",
    "coverage",
    "timings",
    "selection",
    "certificate",
    "statements",
    "export",
)
"""The sections of R-FMT-01 a caller may fill, in the order they are written; `version` and `files` are
added here."""

REMOVED = "[removed]"
_SECRET_NAME = re.compile(r"(token|secret|password|passwd|api[_-]?key|credential)s?$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bAKIA[A-Z0-9]{16}"
    r"|(?i:bearer\s+)[A-Za-z0-9._~+/-]{12,}=*"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_SQLITE = re.compile(r"(sqlite:///)(?:[^\s?]*/)?([^/\s?]+)")
_LOCAL_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^/\\\n]+[/\\])+[^/\\\n]*")


def build_manifest(sections: Mapping[str, object], files: Mapping[str, str]) -> dict[str, object]:
    """The content of `heretic_run.json`.

    sections: any of `SECTIONS`, plain values; a section of another name is a mistake of ours. files: name
    -> SHA-256 of every file already written (`StagedFolder.checksums`).
    """
    unknown = set(sections) - set(SECTIONS)
    assert not unknown, f"sections outside the allow-list: {sorted(unknown)}"
    manifest: dict[str, object] = {"version": SCHEMA_VERSION}
    for name in SECTIONS:
        if name == "command_line" and name in sections:
            manifest[name] = clean_command_line(_words(sections[name]))
        elif name in sections:
            manifest[name] = clean(sections[name])
    manifest["files"] = {name: files[name] for name in sorted(files) if name != HIDDEN_MANIFEST}
    return manifest


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    """The file: UTF-8, indented, keys in the order given, no NaN."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, object]:
    """The manifest of a folder; raises `ModelValidationError` when it is missing, broken or of a newer
    version."""
    manifest = read_json_table(folder / HIDDEN_MANIFEST)
    version = manifest.get("version")
    if version != SCHEMA_VERSION:
        raise ModelValidationError(
            f"{HIDDEN_MANIFEST} has the version {version!r}; this program reads {SCHEMA_VERSION}.",
            hint="Use the program version that wrote it.",
        )
    return manifest


def clean(value: object) -> object:
    """A plain value for JSON: known types only, secrets removed by name and by pattern, paths reduced to
    names.

    A number that is NaN or infinite becomes null ("unknown"), because JSON has no word for it. Raises
    `TypeError` for any other type: an object's text could hold anything.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {
            clean_text(str(name)): REMOVED if _is_secret(str(name), item) else clean(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    raise TypeError(f"{type(value).__name__} is outside the manifest's allow-list")


def clean_text(text: str) -> str:
    """Text without tokens, URL logins, home folder and local paths."""
    text = _URL_LOGIN.sub("", _SECRET_VALUE.sub(REMOVED, text))
    text = _SQLITE.sub(r"\1\2", text)
    if _LOCAL_PATH.fullmatch(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def clean_command_line(words: Iterable[str]) -> list[str]:
    """The command line with the values of secret flags removed and paths reduced to names."""
    result: list[str] = []
    hide_next = False
    for word in words:
        name, separator, value = word.partition("=")
        is_flag = name.startswith("-")
        if hide_next and not is_flag:
            result.append(REMOVED)
            hide_next = False
            continue
        secret = is_flag and _SECRET_NAME.search(name) is not None
        hide_next = secret and not separator
        if separator and is_flag:
            result.append(f"{name}={REMOVED if secret else clean_text(value)}")
        else:
            result.append(clean_text(word))
    return result


def _is_secret(name: str, value: object) -> bool:
    """A field called like a secret that holds text; counts such as `max_tokens: 100` are not secrets."""
    return isinstance(value, str) and bool(value) and _SECRET_NAME.search(name) is not None


def _words(value: object) -> list[str]:
    assert isinstance(value, list | tuple), "the command line is a list of words"
    return [str(word) for word in value]
