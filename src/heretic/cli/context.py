# SPDX-License-Identifier: Apache-2.0
"""What every command is given: the console, the common flags, the way to the settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from cyclopts import Parameter

from heretic.cli.flags import CommonFlags
from heretic.console import Console
from heretic.logs import configure_logging
from heretic.stop import StopFlag

if TYPE_CHECKING:
    from heretic.config import Resolved


@dataclass(slots=True)
class Context:
    """One invocation. log_path: the log file in use, if any."""

    console: Console
    flags: CommonFlags
    stop: StopFlag = field(default_factory=StopFlag)
    log_path: Path | None = None

    def configure_logs(
        self, level: str | None = None, file: str | Path | None = None, structured: bool = False
    ) -> None:
        """Set up logging from the flags, or from the settings once they are known."""
        self.log_path = configure_logging(
            self.console.log_line,
            level=level or self.flags.log_level or "info",
            file=file or self.flags.log_file,
            structured=structured,
            verbose=self.flags.verbose,
        )

    def resolve(self, tokens: Sequence[str], *, notices: bool = True) -> Resolved:
        """The settings of this command line, checked; says what was noticed, sets log and progress.

        notices: False for a run, which begins by saying them itself (R-FLOW-13) and warns of what is off.
        """
        resolved = self.peek(tokens, purpose="run")
        settings = resolved.settings
        self.console.set_progress(settings.progress)
        self.configure_logs(settings.log_level, settings.log_file, settings.structured_logging)
        if settings.offline:
            # Read when the Hub's library is first imported, which is later than this.
            os.environ["HF_HUB_OFFLINE"] = "1"
        if notices:
            for notice in resolved.notices:
                self.console.note(f"note: {notice}")
        elif resolved.degradations:  # of a search; looking at a model or a study misses nothing by them
            for degradation in resolved.degradations:
                self.console.note(f"Off: {degradation}")
        return resolved

    def peek(self, tokens: Sequence[str], *, purpose: Literal["run", "show"] = "show") -> Resolved:
        """The settings of these tokens, saying and changing nothing; `show` accepts a missing model."""
        from heretic.config import resolve_settings

        return resolve_settings(
            [*tokens, *self.flags.as_settings()],
            environ=os.environ,
            cwd=Path.cwd(),
            config_files=tuple(self.flags.config),
            purpose=purpose,
        )


Tokens: TypeAlias = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
"""A token that goes to the settings unchanged; commands take `*tokens: Tokens`."""

Injected: TypeAlias = Annotated[Context, Parameter(parse=False)]
"""The context, passed by the program and not by the command line."""
