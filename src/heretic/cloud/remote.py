# SPDX-License-Identifier: Apache-2.0
"""What the room needs of a machine, whoever reaches it: run a text in a shell there, and say what came back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from heretic.cloud.errors import RemoteCommandError
from heretic.sanitise import single_line

COMMAND_S: Final = 60.0
"""Time limit of a command unless it is given another (R-VAS-05)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind. code: its exit status."""

    code: int
    out: str
    err: str

    def checked(self, what: str) -> str:
        """The output. Raises `RemoteCommandError` when the status is not 0; what: the step, for the message."""
        if self.code == 0:
            return self.out
        last = [line for line in (self.err or self.out).splitlines() if line.strip()][-3:]
        raise RemoteCommandError(
            f"{what} ended with status {self.code} on the machine",
            details=tuple(single_line(line, 300) for line in last),
            hint="Look at the machine with: heretic-vast connect",
        )


class Remote(Protocol):
    """A machine that can be asked. Raises `SSHError` when it cannot be reached, `HostKeyError` when it may not be."""

    def run(
        self,
        command: str,
        *,
        timeout_s: float = COMMAND_S,
        stdin: str | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Answer:
        """Run a shell text. stdin: what it reads, then the end. on_output: receives output as it comes."""
        ...

    def send(self, path: Path, target: str) -> None:
        """Copy a local file to the machine."""
        ...

    def close(self) -> None:
        """End the connection; what was started there lives on."""
        ...


def quoted(words: Sequence[str]) -> str:
    """A command line in which every word is one word (H10)."""
    return shlex.join(words)


def login_shell(command: str) -> str:
    """`command` unchanged inside a remote login shell; nothing of it is expanded before."""
    return f"bash -lc {shlex.quote(command)}"


IMAGE_PATHS: Final = "/opt/conda/bin:/venv/main/bin"
"""Where images keep the Python that has torch; a session over SSH does not inherit the image's search path."""


def python_program(program: str) -> str:
    """A Python program as a command for the machine; what it reads comes by stdin. Standard library alone (`-I -S`)."""
    return f'PATH="{IMAGE_PATHS}:$PATH" {quoted(["python3", "-I", "-S", "-c", program])}'
