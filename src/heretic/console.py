# SPDX-License-Identifier: Apache-2.0
"""The only module that prints (requirements R-CLI-23, R-LOG-02).

stdout carries results and nothing else; with `json` it is exactly one JSON document, also after a failure.
Everything else goes to stderr: as a live display on a terminal, as plain lines elsewhere. All text from
users and models loses its control characters and is never read as markup; all text loses credentials
(reliability D10, I02).
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from heretic.exceptions import HereticError
from heretic.questions import Questions
from heretic.report import RunReport
from heretic.report_view import report_view
from heretic.sanitise import printable, redact, single_line
from heretic.trial_display import ProgressMode, TrialDisplay, duration, memory_text

LOGGER: Final = logging.getLogger("heretic.console")
LOGGER.addHandler(logging.NullHandler())  # without a log, a warning must not appear a second time
PIPE_WIDTH: Final = 120
"""Columns of a table where nobody tells the width of a line."""


class AsciiConsole(RichConsole):
    """A rich console that draws bars, boxes and rules with ASCII characters whatever the terminal can."""

    @property
    def encoding(self) -> str:
        """Makes rich choose its ASCII forms; text itself is written as the stream encodes it."""
        return "ascii"


class Phase:
    """One step of a run while it lasts; `result` sets the line that is shown when it ends."""

    def __init__(self, console: Console, title: str) -> None:
        self.title = title
        self._console = console
        self._started = time.monotonic()
        self._result = ""
        self._live: Live | None = None

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started

    def result(self, text: str) -> None:
        """What came out of the phase, in one line."""
        self._result = single_line(text)

    def update(self, text: str) -> None:
        """What is happening now; shown on a terminal only, and replaced by the next call."""
        self._live = self._console.status(f"{single_line(text)}  {duration(self.seconds)}", self._live)

    def close(self, outcome: str) -> str:
        """End the live line and return the closing line."""
        if self._live is not None:
            self._live.stop()
        return ", ".join(part for part in (f"{outcome} {duration(self.seconds)}", self._result) if part)


class Console(Questions):
    """Everything the program says and asks. See the module's text for what goes where.

    progress: `auto` is `rich` on a terminal and `plain` elsewhere. interactive: None = stdin and stderr are
    terminals.
    """

    def __init__(
        self,
        *,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        color: bool | None = None,
        progress: str = "auto",
        interactive: bool | None = None,
        assume_yes: bool = False,
    ) -> None:
        self._stdout = _tolerant(sys.stdout if stdout is None else stdout)
        self._stderr = _tolerant(sys.stderr if stderr is None else stderr)
        if interactive is None:
            interactive = sys.stdin is not None and sys.stdin.isatty() and self._stderr.isatty()
        super().__init__(
            stream=self._stderr, interactive=interactive, assume_yes=assume_yes, color=color is not False
        )
        self.started = time.monotonic()
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._out = _rich_console(self._stdout, color)
        self._err = _rich_console(self._stderr, color)
        self._depth = 0
        self._document: dict[str, object] | None = None
        self._finished = False
        self._reported: RunReport | None = None
        self.progress: ProgressMode = "plain"
        self.set_progress(progress)

    def set_progress(self, progress: str) -> None:
        """Choose how progress is shown: auto, rich, plain, json or none (setting `progress`)."""
        assert progress in ("auto", "rich", "plain", "json", "none"), progress
        if progress == "json":
            self.progress = "json"
        elif progress == "none" or self.quiet:
            self.progress = "none"
        elif progress == "plain" or not self._stderr.isatty():
            self.progress = "plain"
        else:
            self.progress = "rich"

    # Messages: stderr

    def note(self, text: str) -> None:
        """A fact worth knowing; silent with --quiet."""
        LOGGER.info("%s", text)
        if not self.quiet:
            self._say(Text(_clean(text)))

    def detail(self, text: str) -> None:
        """A fact for --verbose."""
        LOGGER.debug("%s", text)
        if self.verbose and not self.quiet:
            self._say(Text(_clean(text), style="dim"))

    def warn(self, text: str, hint: str | None = None, *, details: Sequence[str] = ()) -> None:
        """Something the user should look at, with its findings and its cure; shown with --quiet too."""
        LOGGER.warning("%s%s", " ".join((text, *details)), f" ({hint})" if hint else "")
        self._say(Text.assemble(("warning: ", "bold yellow"), _clean(text)))
        for line in details:
            self._say(Text(f"  - {_clean(line)}"))
        if hint:
            self._say(Text.assemble(("  -> ", "yellow"), _clean(hint)))

    def error(self, error: HereticError) -> None:
        """The one place where an error is shown: what happened, the findings, the remedy, how to go on."""
        LOGGER.error("%s: %s", type(error).__name__, error.message)
        self._say(Text.assemble(("error: ", "bold red"), _clean(error.message)))
        for line in error.details:
            self._say(Text(f"  - {_clean(line)}"))
        if error.hint:
            self._say(Text.assemble(("  -> ", "yellow"), _clean(error.hint)))
        if error.resume:
            self._say(Text.assemble(("  continue with: ", "dim"), (_clean(error.resume), "bold")))

    def urgent(self, text: str) -> None:
        """A line from inside a signal handler: written past all buffers, which the signal may have caught
        half-way.
        """
        try:
            os.write(self._stderr.fileno(), f"\n{text}\n".encode("ascii", "replace"))
        except (OSError, ValueError):
            LOGGER.debug("stderr has no file descriptor")

    def next_command(self, command: str) -> None:
        """The next useful command (R-CLI-27)."""
        if command and not self.quiet:
            self._say(Text.assemble(("next: ", "dim"), (_clean(command), "bold")))

    def log_line(self, line: str) -> None:
        """A finished line of the log, meant for the terminal."""
        self._say(Text(_clean(line), style="dim"))

    @contextmanager
    def phase(self, title: str) -> Iterator[Phase]:
        """A step of the run: says when it starts, and when it ends how long it took and what came out
        (R-FLOW-12).
        """
        phase = Phase(self, title)
        LOGGER.info("%s: started", title)
        if not self.quiet:
            self._say(Text.assemble(("> ", "bold cyan"), (_clean(title), "bold")))
        self._depth += 1
        outcome, style = "interrupted after", "yellow"
        try:
            yield phase
            outcome, style = "done in", "green"
        except Exception:
            outcome, style = "failed after", "red"
            raise
        finally:
            closing = phase.close(outcome)
            LOGGER.info("%s: %s", title, closing)
            if not self.quiet:
                self._say(Text(_clean(closing), style=style))
            self._depth -= 1

    def status(self, text: str, live: Live | None) -> Live | None:
        """Show `text` beside a turning bar; returns the display to pass in again, None where nothing may
        move.
        """
        if self.progress != "rich":
            return None
        line = Padding(
            Spinner("line", Text(_clean(text), style="dim"), style="cyan"), (0, 0, 0, 2 * self._depth)
        )
        if live is None:
            live = Live(line, console=self._err, transient=True, refresh_per_second=8, redirect_stdout=False)
            live.start()
        else:
            live.update(line)
        return live

    def trials(self, total: int, *, memory: Callable[[], str] = memory_text) -> TrialDisplay:
        """The display of the search, a context manager with `update(progress)`."""
        return TrialDisplay(self._err, self._plain, total=total, mode=self.progress, memory=memory)

    # Results: stdout

    def result(self, text: str) -> None:
        """A line of the result; with --json the document carries it instead."""
        if not self.json:
            self._out.print(Text(_clean(text)), soft_wrap=True)

    def stream(self, piece: str) -> None:
        """A piece of a reply as it comes, without a line end."""
        if not self.json:
            self._stdout.write(_clean(piece))
            self._stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str | None = None,
        right: Sequence[int] = (),
        result: bool = False,
    ) -> None:
        """Rows under headings; `right` are the indexes of columns of figures. result: to stdout, else to
        stderr.
        """
        table = Table(
            title=title, title_justify="left", box=box.ASCII2, header_style="bold", title_style="bold"
        )
        for number, name in enumerate(columns):
            table.add_column(
                Text(_clean(name)), justify="right" if number in right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text(_clean("" if cell is None else str(cell))) for cell in row))
        self._show(table, result=result)

    def facts(self, pairs: Mapping[str, object], *, title: str | None = None, result: bool = False) -> None:
        """Names with values below each other, the values aligned."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in pairs.items():
            grid.add_row(Text(_clean(name)), Text(_clean(str(value))))
        if title:
            self._show(Text(_clean(title), style="bold"), result=result)
        self._show(grid, result=result)

    def report(self, report: RunReport) -> None:
        """The readable report at the end of a run and its document; a second call with the same report is
        silent.
        """
        if self._reported is report:
            return
        self._reported = report
        self.document(report.to_document())
        if not self.json:
            for part in report_view(report):
                self._out.print(part)

    # The document

    def document(self, document: Mapping[str, object]) -> None:
        """Keep the result for --json; it is written once, by `finish`. Later keys replace earlier ones."""
        self._document = {**(self._document or {}), **document}

    def finish(self, exit_code: int, error: HereticError | None = None) -> None:
        """Write the one document of --json (R-FMT-03). The rim calls it at the very end; a second call does
        nothing.
        """
        if self._finished or not self.json:
            return
        self._finished = True
        document = dict(self._document or {})
        document.setdefault("status", "done")
        if error is not None:
            document["status"] = "failed"
            document["error"] = {
                "type": type(error).__name__,
                "message": error.message,
                "remedy": error.hint,
                "details": list(error.details),
                "resume": error.resume,
                **({"data": error.data} if error.data else {}),
            }
        else:
            document.setdefault("error", None)
        document["exit_code"] = exit_code
        self._stdout.write(redact(json.dumps(_jsonable(document), indent=2)) + "\n")
        self._stdout.flush()

    # Inside

    def _show(self, renderable: RenderableType, *, result: bool) -> None:
        if result and not self.json:
            self._out.print(renderable)
        elif not result and not self.quiet:
            self._say(renderable)

    def _say(self, renderable: RenderableType) -> None:
        indented = (
            Padding(renderable, (0, 0, 0, 2 * self._depth), expand=False) if self._depth else renderable
        )
        self._err.print(indented, soft_wrap=not self._err.is_terminal and not self._depth)

    def _plain(self, line: str) -> None:
        # Markup-free, unwrapped: one batch is one line, whatever its length (R-CLI-24).
        LOGGER.info("%s", line)
        prefix = "" if self.progress == "json" else "  " * self._depth
        self._err.print(Text(prefix + _clean(line)), soft_wrap=True)


def _rich_console(stream: TextIO, color: bool | None) -> RichConsole:
    """A console in which strings are never markup, with colour only on a terminal that wants it."""
    terminal = stream.isatty()
    plain = color is False or not terminal
    console = AsciiConsole(
        file=stream,
        force_terminal=terminal,
        color_system=None if plain else "auto",
        markup=False,
        emoji=False,
        highlight=False,
        width=None if terminal else PIPE_WIDTH,
    )
    if console.no_color:  # NO_COLOR in the environment means no escape sequences for style at all
        return _rich_console(stream, False) if not plain else console
    return console


def _tolerant(stream: TextIO) -> TextIO:
    """The stream, set so that a character its encoding lacks is written as an escape instead of raising."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return stream


def _clean(text: str) -> str:
    return redact(printable(text))


def _jsonable(value: object) -> object:
    """`value` with everything JSON cannot hold turned into something it can: NaN and infinity into null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(entry) for entry in value]
    return str(value)
