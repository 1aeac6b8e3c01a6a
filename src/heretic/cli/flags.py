# SPDX-License-Identifier: Apache-2.0
"""The flags every command takes (requirements R-CLI-20), split off before the command sees its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from heretic.exceptions import ConfigurationError

TRUE_WORDS: Final = ("true", "yes", "on", "1")
FALSE_WORDS: Final = ("false", "no", "off", "0")

SWITCHES: Final = {
    "--json": "json",
    "--quiet": "quiet",
    "-q": "quiet",
    "--verbose": "verbose",
    "-v": "verbose",
    "--dry-run": "dry_run",
    "--yes": "yes",
    "--offline": "offline",
}
VALUES: Final = {"--log-level": "log_level", "--log-file": "log_file", "--config": "config"}

HELP: Final = (
    ("--config PATH", "settings file in place of ./config.toml; may repeat, later files win"),
    ("--json", "stdout is exactly one JSON document, also on failure"),
    ("--quiet, -q", "results, warnings and errors only"),
    ("--verbose, -v", "details and tracebacks"),
    ("--log-level LEVEL", "debug, info, warning, error"),
    ("--log-file PATH", "rotating log file"),
    ("--no-color", "no colour (also NO_COLOR)"),
    ("--dry-run", "print the plan and do nothing"),
    ("--yes", "confirm a destructive step whose object is named on the command line"),
    ("--offline", "no network"),
)


@dataclass(slots=True)
class CommonFlags:
    """What the common flags say. `log_level` and `log_file` are None, and `offline` is None, when not
    given.
    """

    config: list[Path] = field(default_factory=list)
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True
    dry_run: bool = False
    yes: bool = False
    offline: bool | None = None
    log_level: str | None = None
    log_file: str | None = None

    def as_settings(self) -> list[str]:
        """The flags that are settings as well, as tokens: they take part in the cascade like any other
        setting.
        """
        tokens = []
        if self.offline is not None:
            tokens.append(f"--offline={str(self.offline).lower()}")
        if self.log_level is not None:
            tokens.append(f"--log-level={self.log_level}")
        if self.log_file is not None:
            tokens.append(f"--log-file={self.log_file}")
        return tokens


def split_flags(tokens: Sequence[str]) -> tuple[CommonFlags, list[str]]:
    """The common flags and what remains, in order; everything after `--` remains.

    Dashes and underscores mean the same, `--flag true|false` and `--no-flag` work (R-CLI-21, R-CLI-22).
    Raises `ConfigurationError` for a flag without its value.
    """
    flags = CommonFlags()
    rest: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token == "--":
            return flags, [*rest, *tokens[position - 1 :]]
        name, equals, value = token.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        following = tokens[position] if position < len(tokens) else None
        if name in VALUES:
            if not equals:
                value, position = _needed(name, following), position + 1
            _set_value(flags, name, value)
        elif (switch := _switch(name)) is not None:
            word = value if equals else following
            joined = word is not None and word.lower() in (*TRUE_WORDS, *FALSE_WORDS)
            if equals and not joined:
                raise ConfigurationError(f"{name} is {value!r}", hint="Give true or false.")
            position += int(joined and not equals)
            target, positive = switch
            said = word is None or not joined or word.lower() in TRUE_WORDS
            setattr(flags, target, positive == said)
        else:
            rest.append(token)
    return flags, rest


def _switch(name: str) -> tuple[str, bool] | None:
    """(field, value when the flag stands alone) of a switch; `--no-` in front turns it round."""
    if name in ("--color", "--no-color"):
        return "color", name == "--color"
    if name in SWITCHES:
        return SWITCHES[name], True
    positive = f"--{name.removeprefix('--no-')}"
    if name.startswith("--no-") and positive in SWITCHES:
        return SWITCHES[positive], False
    return None


def _needed(name: str, value: str | None) -> str:
    if value is None or value.startswith("--"):
        raise ConfigurationError(f"{name} has no value", hint=f"Write {name} VALUE.")
    return value


def _set_value(flags: CommonFlags, name: str, value: str) -> None:
    if name == "--config":
        flags.config.append(Path(value).expanduser())
    else:
        setattr(flags, VALUES[name], value)
