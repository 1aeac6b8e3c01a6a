# SPDX-License-Identifier: Apache-2.0
"""What the tabs share: one way to call handlers, so that every error becomes words on the page."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from heretic.apps.devices import memory_lines
from heretic.apps.workbench.desk import Desk, Visitor
from heretic.apps.workbench.markup import escape, problem
from heretic.exceptions import ConfigurationError, HereticError

LOGGER: Final = logging.getLogger("heretic_chat")


@dataclass(frozen=True, slots=True)
class Quiet:
    """Arguments of every event: not offered to other programs, nothing spinning over the page."""

    show_progress: str = "hidden"

    def __call__(self, **more: Any) -> dict[str, Any]:
        return {
            "show_progress": self.show_progress,
            "api_visibility": "private",
            "queue": True,
            **more,
        }


QUIET: Final = Quiet()


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A handler that looks its lists up anew when a page is opened: what was listed at the start is old by then."""

    look: Callable[..., Any]
    inputs: list[Any]
    outputs: list[Any]


REPLIES_AT_ONCE: Final = 8
"""Handlers that may write or wait at a time; the replies themselves queue at the model."""


def status_line(desk: Desk) -> str:
    """The model and the memory, as they are now."""
    state = desk.manager.state
    memory = "; ".join(memory_lines())
    return (
        f'<p class="status" role="status" aria-live="polite"><strong>Model:</strong> {escape(state.text)}<br>'
        f"<strong>Memory:</strong> {escape(memory)}</p>"
    )


def present(visitor: Visitor | None) -> Visitor:
    """The visitor of a page; raises `ConfigurationError` while the page is not ready, and after a restart."""
    if visitor is None:
        raise ConfigurationError("the page is not connected to a conversation", hint="Load the page again.")
    return visitor


def in_words(error: BaseException) -> str:
    """Any error for the page; one that nobody expected is in the log with its traceback."""
    if isinstance(error, HereticError):
        return problem(error)
    # Without its message, which may hold what somebody wrote (requirements R-LOG-04).
    trace = "".join(traceback.format_tb(error.__traceback__))
    LOGGER.error("unexpected %s on the page\n%s", type(error).__name__, trace)
    return problem(
        HereticError(
            f"unexpected {type(error).__name__}", hint="This is a mistake of the program; see its log."
        )
    )


def told(act: Callable[..., Any], otherwise: Callable[[str], Any]) -> Callable[..., Any]:
    """`act`, with `otherwise(words)` in place of what it raises."""

    @functools.wraps(act)
    def handled(*arguments: Any) -> Any:
        try:
            return act(*arguments)
        except Exception as error:  # noqa: BLE001  # the rim of the page: nothing may end without words
            return otherwise(in_words(error))

    return handled


def told_stream(act: Callable[..., Any], otherwise: Callable[[str], Any]) -> Callable[..., Any]:
    """The same for a generator."""

    @functools.wraps(act)
    def handled(*arguments: Any) -> Any:
        try:
            yield from act(*arguments)
        except Exception as error:  # noqa: BLE001  # the rim of the page: nothing may end without words
            yield otherwise(in_words(error))

    return handled


def chosen_of(values: Sequence[tuple[str, str]], wanted: object) -> str | None:
    """`wanted` where it is among the values of a list, else the first of them."""
    words = [word for _, word in values]
    if wanted in words:
        return str(wanted)
    return words[0] if words else None


def connect_stop(button: Any, visitor: Any) -> None:
    """A button that ends the reply of the page; it never waits for anything."""

    def stop(who: Visitor | None) -> None:
        if who is not None:
            who.stop()

    button.click(stop, [visitor], None, **QUIET(concurrency_limit=None))
