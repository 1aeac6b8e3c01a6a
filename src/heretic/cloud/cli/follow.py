# SPDX-License-Identifier: Apache-2.0
"""Following the log of a run, whose end is told by its process and not by silence."""

from __future__ import annotations

import shlex
from typing import Final

from heretic.cloud.cli.context import CloudContext
from heretic.cloud.dashboard import readable
from heretic.cloud.errors import CloudError
from heretic.cloud.layout import Layout
from heretic.cloud.remote import Remote
from heretic.cloud.snapshot import look

POLL_S: Final = 2.0
PIECE: Final = 256_000


class Tail:
    """What was added to the log since the last look."""

    def __init__(self, remote: Remote, layout: Layout) -> None:
        self._remote = remote
        self._path = shlex.quote(layout.log)
        self.offset = int(self._remote.run(f"wc -c < {self._path} 2>/dev/null || echo 0").out.strip() or 0)
        self._open = ""

    def new_lines(self) -> list[str]:
        """Whole lines that came since the last call."""
        told = self._remote.run(f"tail -c +{self.offset + 1} {self._path} 2>/dev/null | head -c {PIECE}").out
        self.offset += len(told.encode("utf-8"))
        *lines, self._open = (self._open + told).split("\n")
        return lines


def follow_until_ended(context: CloudContext, remote: Remote, layout: Layout, tail: Tail) -> int:
    """Show the log until the run's process is gone; its exit status. Raises `CloudError` when none was recorded."""
    while True:
        now = look(remote, layout, log_lines=1)
        for line in readable(tail.new_lines()):
            context.console.log_line(line)
        if not now.alive:
            for line in readable(tail.new_lines()):
                context.console.log_line(line)
            if now.job is None or now.job.code is None:
                raise CloudError(
                    "the run is gone and left no exit status: it was killed, or the machine restarted",
                    hint="Give the same command again: finished trials are kept.",
                )
            return now.job.code
        context.world.clock.sleep(POLL_S)
