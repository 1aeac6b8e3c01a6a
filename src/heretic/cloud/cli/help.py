# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast --help`: the commands with their effects, the common flags, examples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

from cyclopts import App
from rich.console import Console as RichConsole

from heretic.cli.flags import HELP
from heretic.cloud.cli.context import EFFECTS, FLAG_HELP
from heretic.console import Console

EXAMPLES: Final = (
    ("heretic-vast plan Qwen/Qwen2.5-7B-Instruct", "what it needs and costs; rents nothing"),
    ("heretic-vast create RTX_4090 --model Qwen/Qwen2.5-7B-Instruct", "shows the offer, asks, rents, waits"),
    ("heretic-vast setup", "installs this version on the machine"),
    ("heretic-vast run Qwen/Qwen2.5-7B-Instruct", "starts the search there, detached"),
    ("heretic-vast watch", "looks at it; leaving changes nothing"),
    ("heretic-vast download", "fetches the saved model and verifies it"),
    ("heretic-vast terminate ID", "ends the machine, its disk, and the bill"),
)

MEANINGS: Final = {
    "read": "changes nothing",
    "write-local": "writes files here or on the machine",
    "destroy-local": "removes something here",
    "spend": "costs money after you confirm",
    "destroy-remote": "ends or interrupts something after you confirm",
}


def show_help(app: App, tokens: Sequence[str], console: Console) -> None:
    """Print the help of the command named first, else of the program."""
    names = [name for name in app if not name.startswith("-")]
    words = [tokens[0]] if tokens and tokens[0] in names else []
    stream = io.StringIO()
    app.help_print(words, console=RichConsole(file=stream, width=110, color_system=None))
    text = stream.getvalue().rstrip()
    console.result(text)
    if words:
        console.result(f"\nEffect: {MEANINGS[EFFECTS[words[0]].value]}.")
    console.result("\nCommon flags:")
    shared = [entry for entry in HELP if not entry[0].startswith("--config")]
    console.facts({f"  {flag}": meaning for flag, meaning in (*shared, *FLAG_HELP)}, result=True)
    if not words:
        console.result("\nExamples:")
        console.facts({f"  {line}": meaning for line, meaning in EXAMPLES}, result=True)
    console.document({"help": text})
