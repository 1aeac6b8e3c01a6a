# SPDX-License-Identifier: Apache-2.0
"""Logging, set up once at the door (requirements R-LOG-01..04).

Loggers are `heretic.<room>` and `heretic_chat`. The rotating file takes everything from the chosen level
up, the terminal takes warnings (with `--verbose`: the chosen level). Every line passes `redact`, so a log
can be pasted into a public issue. Prompts and replies may be logged at DEBUG only.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from heretic.exceptions import ConfigurationError, FileOperationError
from heretic.sanitise import printable, redact

OUR_LOGGERS: Final = ("heretic", "heretic_chat")
LEVELS: Final = ("debug", "info", "warning", "error")
FILE_BYTES: Final = 10_000_000
FILE_COUNT: Final = 5

NOISY_LIBRARIES: Final = (
    "accelerate",
    "alembic",
    "asyncio",
    "bitsandbytes",
    "datasets",
    "filelock",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "optuna",
    "py.warnings",
    "sqlalchemy",
    "torch",
    "transformers",
    "urllib3",
)

_STANDARD_FIELDS: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", None, None)), "message", "asctime", "taskName")
)


class TextFormatter(logging.Formatter):
    """One readable line per record, UTC time in ISO 8601, credentials removed."""

    @staticmethod
    def converter(moment: float | None) -> time.struct_time:
        """Times in a log are UTC, whatever the machine is set to."""
        return time.gmtime(moment)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the traceback below it if there is one."""
        return redact(printable(super().format(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, fields (what was passed as `extra`),
    traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "fields": fields,
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(entry, default=str, ensure_ascii=False))


class WriterHandler(logging.Handler):
    """Gives finished lines to a function: the console's, so that a line never tears a live display."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a broken terminal must not end a run, so failures go to logging's own handler."""
        try:
            self._write(self.format(record))
        except (OSError, ValueError):
            self.handleError(record)


def configure_logging(
    write: Callable[[str], None],
    *,
    level: str = "info",
    file: str | Path | None = None,
    structured: bool = False,
    verbose: bool = False,
) -> Path | None:
    """Set up all handlers anew and return the absolute path of the log file, if there is one.

    write: receives each line meant for the terminal. Raises `ConfigurationError` for an unknown level and
    `FileOperationError` when the file cannot be opened.
    """
    if level.lower() not in LEVELS:
        raise ConfigurationError(
            f"log level {level!r} is unknown", hint=f"Choose one of: {', '.join(LEVELS)}."
        )
    number = logging.getLevelNamesMapping()[level.upper()]
    formatter: logging.Formatter = JsonFormatter() if structured else TextFormatter()
    terminal = WriterHandler(write)
    terminal.setFormatter(formatter)
    # Information is already on the screen as phases and notes; the terminal shows log lines only when asked.
    # What the console says is logged under this name, so that the file has it; the terminal has it already.
    terminal.addFilter(lambda record: record.name != "heretic.console")
    terminal.setLevel(number if verbose or number <= logging.DEBUG else max(number, logging.WARNING))
    handlers: list[logging.Handler] = [terminal]
    path = None if file is None else Path(file).expanduser().absolute()
    if path is not None:
        handlers.append(_file_handler(path, number, formatter))
    for name in (*OUR_LOGGERS, "py.warnings"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(number)
        logger.propagate = False
    logging.captureWarnings(True)
    quiet_libraries(verbose=verbose)
    return path


def _file_handler(path: Path, level: int, formatter: logging.Formatter) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILE_COUNT - 1, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FileOperationError(
            f"cannot write the log file {path}: {reason}", hint="Choose another path with --log-file."
        ) from error
    handler.setLevel(level)
    handler.setFormatter(formatter)
    return handler


def quiet_libraries(*, verbose: bool = False) -> None:
    """Lower the chatter of libraries; their errors still appear.

    Some libraries set their level when they are imported, so a room that imports one late may call this
    again.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if verbose else "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING if verbose else logging.ERROR)


def tame_progress_bars(*, terminal: bool) -> None:
    """Set how libraries draw their own bars, before one of them is imported (they read this once).

    On a terminal: ASCII, and only for what lasts longer than a second, so that downloads show and trifles
    do not. Elsewhere: none at all (R-CLI-24).
    """
    if terminal:
        os.environ.setdefault("TQDM_ASCII", " 123456789#")
        os.environ.setdefault("TQDM_DELAY", "1")
    else:
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def write_crash_file(text: str) -> Path:
    """Store a traceback where no log file is kept; a new file in the temporary folder, readable by its
    owner only.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    descriptor, name = tempfile.mkstemp(prefix=f"heretic-crash-{stamp}-", suffix=".log")
    header = f"command: {' '.join(sys.argv)}\n"
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(redact(printable(header + text)))
    return Path(name)
