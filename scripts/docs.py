# SPDX-License-Identifier: Apache-2.0
"""Write the generated pages (`make docs`), or with `--check` fail when one of them is stale (`make check`).

Generated: docs/settings.md, docs/cli.md, docs/architectures.md and src/heretic/data/config.default.toml.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cyclopts import App
from rich.console import Console

from heretic.architectures.families_table import families_page
from heretic.cli.application import SUMMARY, USAGE, build_application
from heretic.cli.effects import EFFECTS, TAKES_SETTINGS
from heretic.cli.flags import HELP
from heretic.cli.help import EXAMPLES
from heretic.config import default_toml, settings_page

ROOT: Final = Path(__file__).resolve().parent.parent

EXIT_CODES: Final = (
    ("0", "done"),
    ("1", "failed: one message with cause and remedy"),
    ("2", "usage or configuration error, or a confirmation refused; nothing was changed"),
    ("3", "finished, but no trial met the limits"),
    ("129, 130, 143", "ended by hang-up, Ctrl-C, or SIGTERM; finished trials are kept"),
)

MEANING_OF_EFFECTS: Final = {
    "read": "changes nothing",
    "write-local": "writes files on this machine",
    "destroy-local": "removes something on this machine after you type its name",
    "spend": "costs money after you confirm",
    "destroy-remote": "removes something on another machine after you confirm",
}


def command_paths(app: App, front: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, groups left out: ("study", "front")."""
    for name in sorted(name for name in app if not name.startswith("-")):
        path = (*front, name)
        inner = list(command_paths(app[name], path))
        yield from inner or [path]


def help_text(app: App, path: tuple[str, ...]) -> str:
    """What `heretic COMMAND --help` says of the command itself, lines not wrapped."""
    stream = io.StringIO()
    app.help_print(list(path), console=Console(file=stream, width=240, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().strip().splitlines())


def cli_page() -> str:
    """Markdown for docs/cli.md: the tree, the common flags, the exit codes, every command."""
    app = build_application()
    lines = [
        "# Command line",
        "",
        "This page is generated from the code.",
        "",
        SUMMARY,
        "",
        "```text",
        USAGE,
        "```",
        "",
    ]
    lines += ["## Examples", "", "| command line | what it does |", "|---|---|"]
    lines += [f"| `{line}` | {meaning} |" for line, meaning in EXAMPLES]
    lines += ["", "## Common flags", "", "Every command takes these.", "", "| flag | meaning |", "|---|---|"]
    lines += [f"| `{flag}` | {meaning} |" for flag, meaning in HELP]
    lines += ["", "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES]
    lines += ["", "## Commands", ""]
    for path in command_paths(app):
        lines += command_section(app, path)
    return "\n".join(lines).rstrip() + "\n"


def command_section(app: App, path: tuple[str, ...]) -> list[str]:
    """One command: its help, what it may do to the world, whether settings are accepted."""
    full = " ".join(path)
    lines = [f"### heretic {full}", "", "```text", help_text(app, path), "```", ""]
    lines.append(f"Effect: {MEANING_OF_EFFECTS[EFFECTS[full].value]}.")
    if full in TAKES_SETTINGS:
        lines.append("Every [setting](settings.md) may be given as a flag.")
    return [*lines, ""]


PAGES: Final[dict[str, Callable[[], str]]] = {
    "docs/settings.md": settings_page,
    "docs/cli.md": cli_page,
    "docs/architectures.md": families_page,
    "src/heretic/data/config.default.toml": default_toml,
}


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/docs.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for name, render in PAGES.items():
        path, text = ROOT / name, render().rstrip("\n") + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {name}")
    if check and stale:
        print(f"stale: {', '.join(stale)}. Run 'make docs' and commit what it writes.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
