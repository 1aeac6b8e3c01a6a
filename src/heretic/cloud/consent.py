# SPDX-License-Identifier: Apache-2.0
"""Consent to what costs money or destroys something (requirements R-VAS-50, R-VAS-51, reliability R13).

Everything is printed first: what will happen, to which instance, what is lost, what goes on costing. Then the exact
word is asked for. `--yes` counts only where the object stands on the command line; no file and no variable counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from heretic.console import Console
from heretic.exceptions import ConfirmationRequiredError


@dataclass(frozen=True, slots=True)
class Act:
    """What is about to be done. lines: all that must be known; word: what has to be typed.

    object_flag: how the object is named on the command line, for scripts ("the instance ID", "--max-price").
    """

    title: str
    lines: tuple[str, ...]
    object_flag: str
    word: str = "yes"


def require_consent(console: Console, act: Act, *, explicit: bool) -> None:
    """Print the act and wait for exactly its word. Raises `ConfirmationRequiredError` (exit 2); nothing was done.

    explicit: the object was named on the command line; only then does `--yes` count.
    """
    if console.assume_yes and explicit:
        _announce(console, act)
        return
    if console.assume_yes:
        raise ConfirmationRequiredError(
            f"--yes needs the explicit object: {act.object_flag}",
            hint=f"Give {act.object_flag} on the command line, or leave out --yes and answer at a terminal.",
            details=act.lines,
        )
    if not console.interactive:
        raise ConfirmationRequiredError(
            f"a confirmation is needed and there is no terminal: {act.title}",
            hint=f"From a script give --yes together with {act.object_flag}.",
            details=act.lines,
        )
    _announce(console, act)
    try:
        answer = console.ask(f"Type {act.word!r} to go on, anything else leaves it:", flag="--yes")
    except EOFError:
        answer = ""
    if answer != act.word:
        raise ConfirmationRequiredError(
            f"the answer was {answer!r} and not {act.word!r}; nothing was done",
            hint=f"Type exactly {act.word!r}.",
        )


def _announce(console: Console, act: Act) -> None:
    """All lines, also with --quiet: nobody agrees to what was not shown."""
    console.log_line(act.title)
    for line in act.lines:
        console.log_line(f"  - {line}")
