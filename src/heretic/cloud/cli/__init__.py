# SPDX-License-Identifier: Apache-2.0
"""The command line `heretic-vast` (requirements section 10). Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and leave with its exit code (requirements R-CLI-28, R-CLI-29)."""
    from heretic.cloud.cli.application import run_command_line

    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))
