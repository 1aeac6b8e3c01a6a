# SPDX-License-Identifier: Apache-2.0
"""The `.env` of a folder as plain values (requirements R-VAS-02, reliability I04)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from heretic.config import files
from heretic.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class Dotenv:
    """Name -> (value, place as `.env:3`), and what should be said about the file."""

    values: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read_dotenv(folder: Path) -> Dotenv:
    """The values of `folder/.env`; empty without one. No name is judged here. No value appears in a message.

    Raises `ConfigurationError` for a file that is not UTF-8 or has a line that is no NAME=VALUE.
    """
    path = folder / ".env"
    if not path.is_file():
        return Dotenv()
    # The settings read the same file by the same rules.
    text, problem = files._decode(path, ".env")
    if problem is not None:
        raise ConfigurationError(problem.text)
    values: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = files._DOTENV.match(line.strip())
        if match is None:
            raise ConfigurationError(
                f".env:{number}: is not NAME=VALUE", hint="Put a # in front of what is no setting."
            )
        values[match["name"]] = (files._unquote(match["value"]), f".env:{number}")
    notices: tuple[str, ...] = ()
    if os.name == "posix" and path.stat().st_mode & 0o044:
        notices = (".env can be read by other users; close it with: chmod 600 .env",)
    return Dotenv(values, notices)
