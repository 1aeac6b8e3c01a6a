# SPDX-License-Identifier: Apache-2.0
"""`--help`: the command tree, the common flags, and every setting by group (requirements R-CLI-18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cyclopts import App

from heretic.cli.effects import TAKES_SETTINGS
from heretic.cli.flags import HELP
from heretic.console import Console
from heretic.sanitise import single_line

EXAMPLES: Final = (
    ("heretic demo", "the whole method in a minute, offline, on the bundled model"),
    ("heretic Qwen/Qwen3-0.6B", "search, choose from a menu, save"),
    ("heretic MODEL --auto-select --n-trials 20 --json", "headless, one JSON document"),
    ("heretic MODEL --dry-run", "what would be downloaded, needed and done"),
    ("heretic show-config MODEL", "every setting with its source"),
)

DEFAULT_LIMIT: Final = 60
"""Characters of a default in the help; the lists of markers are long."""


def show_help(app: App, tokens: Sequence[str], console: Console) -> None:
    """Print the help of the command named at the front of `tokens`; of the program when there is none."""
    words: list[str] = []
    for token in tokens:
        if token.startswith("-") or (*words, token) not in _command_paths(app):
            break
        words.append(token)
    text = app.format_help(words) if hasattr(app, "format_help") else _captured(app, words)
    console.result(text.rstrip())
    console.result("\nCommon flags:")
    console.facts({f"  {flag}": meaning for flag, meaning in HELP}, result=True)
    if not words or words == ["run"]:
        console.result("\nExamples:")
        console.facts({f"  {line}": meaning for line, meaning in EXAMPLES}, result=True)
        show_settings(console)
    elif " ".join(words) in TAKES_SETTINGS:
        console.result("\nSettings: any setting of 'heretic --help' may be given as a flag.")
    console.document({"help": text})


def show_settings(console: Console) -> None:
    """All settings by group: flag, meaning, type with range, default, environment name (R-CLI-18)."""
    from heretic.config import help_table

    console.result(
        "\nSettings, as flags; as a variable HERETIC_N_TRIALS, in a table HERETIC_BAD_PROMPTS__SPLIT:"
    )
    group = ""
    for row in help_table():
        if row.group != group:
            group = row.group
            console.result(f"\n{group}:")
        shown = single_line(row.default, DEFAULT_LIMIT)
        console.result(f"  {row.flag}: {row.meaning} [{row.type}; default {shown}; {row.environment}]")


def _command_paths(app: App, front: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every command and group as the words that name it."""
    paths: set[tuple[str, ...]] = set()
    for name in app:
        if name.startswith("-"):
            continue
        path = (*front, name)
        paths.add(path)
        paths |= _command_paths(app[name], path)
    return paths


def _captured(app: App, words: Sequence[str]) -> str:
    """The help text of a command, without the program's own console."""
    import io

    from rich.console import Console as RichConsole

    stream = io.StringIO()
    app.help_print(list(words), console=RichConsole(file=stream, width=110, color_system=None))
    return stream.getvalue()
