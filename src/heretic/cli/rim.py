# SPDX-License-Identifier: Apache-2.0
"""The rim: the one place where errors are caught, shown and turned into an exit code (requirements
R-CLI-28, REL-R07).

Everything below raises. A typed error becomes a sentence, its findings, its remedy and the command that
continues; an unknown exception is a mistake of ours: one line and where the traceback is.
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cyclopts import CycloptsError

from heretic.exceptions import (
    ConfigurationError,
    CUDAOutOfMemoryError,
    DiskSpaceError,
    HereticError,
    HostMemoryError,
    InterruptedRunError,
)
from heretic.logs import write_crash_file
from heretic.stop import TerminatedError

if TYPE_CHECKING:
    from heretic.cli.context import Context

LOGGER: Final = logging.getLogger("heretic.cli")


class UnexpectedError(HereticError):
    """A mistake of ours: no typed error, so nobody wrote a remedy for it."""


class StoppedError(HereticError):
    """The system asked the program to leave (SIGTERM, SIGHUP); finished trials are kept."""


def guarded(action: Callable[[], int], context: Context) -> int:
    """Run `action`, show what goes wrong, write the JSON document, and return the exit code."""
    error: HereticError | None = None
    try:
        code = action()
    except BrokenPipeError:
        return _closed_pipe()
    except (KeyboardInterrupt, TerminatedError) as signalled:
        error = _interrupted(signalled)
        code = getattr(signalled, "exit_code", error.exit_code)
    except Exception as raised:  # noqa: BLE001  the rim is the one place that catches everything
        error = translate(raised, context)
        code = error.exit_code
        _log_traceback(raised, context)
    if isinstance(error, InterruptedRunError) and context.stop:
        code = context.stop.exit_code  # the run was interrupted by SIGTERM or SIGHUP, not by Ctrl-C
    if error is not None:
        context.console.error(error)
    try:
        context.console.finish(code, error)
    except BrokenPipeError:
        return _closed_pipe()
    return code


def translate(error: Exception, context: Context) -> HereticError:
    """The typed form of an error that reached the rim; by type and error number, never by the text of its
    message.
    """
    if isinstance(error, HereticError):
        return error
    if isinstance(error, CycloptsError):
        return ConfigurationError(
            str(error).strip() or "the command line cannot be read",
            hint="See heretic --help, or heretic COMMAND --help; names stand before settings.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(
            f"no space left on the device while writing {error.filename or 'a file'}",
            hint="Free some space and start the same command again; finished trials are kept.",
        )
    # Looked up, not imported: most commands never load torch.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return CUDAOutOfMemoryError(
            "the accelerator has too little memory",
            hint="Lower --max-batch-size or use --quantization bnb_4bit.",
        )
    if isinstance(error, MemoryError):
        return HostMemoryError(
            "the host has too little memory", hint="Lower --max-batch-size or close programs."
        )
    where = context.log_path or write_crash_file("".join(traceback.format_exception(error)))
    first = str(error).strip().partition("\n")[0]
    return UnexpectedError(
        f"unexpected {type(error).__name__}{f': {first}' if first else ''}",
        hint=f"This is a mistake of the program and not of yours; the traceback is in {where}.",
        data={"log": str(where)},
    )


def _interrupted(signalled: BaseException) -> HereticError:
    resume = shlex.join(["heretic", *sys.argv[1:]])
    if isinstance(signalled, TerminatedError):
        return StoppedError("stopped by a signal; what was finished is kept", resume=resume)
    return InterruptedRunError("interrupted; what was finished is kept", resume=resume)


def _log_traceback(error: Exception, context: Context) -> None:
    """The traceback goes to the log, and to the terminal with --verbose only."""
    text = "".join(traceback.format_exception(error)).rstrip()
    if context.log_path is not None:
        LOGGER.info("traceback of the error that ended the command", exc_info=error)
    if context.flags.verbose:
        context.console.log_line(text)


def _closed_pipe() -> int:
    """The reader of stdout went away (`| head`): end quietly, and keep Python's own flush at exit from
    complaining.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return HereticError.exit_code
