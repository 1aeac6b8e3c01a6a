# SPDX-License-Identifier: Apache-2.0
"""Memory of accelerators and of this process, in words (requirements R-UI-22)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from heretic.phases.loading import host_memory

GB = 1e9


def memory_lines() -> tuple[str, ...]:
    """One sentence a device: name, reserved (not only allocated) and total memory; "CPU mode" without one."""
    if not torch.cuda.is_available():
        free = host_memory()
        shown = "" if free is None else f", {free / GB:.1f} GB free"
        return (f"CPU mode: this program uses {resident_bytes() / GB:.2f} GB{shown}",)
    lines = []
    for number in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(number).total_memory
        reserved = torch.cuda.memory_reserved(number)
        name = torch.cuda.get_device_name(number)
        lines.append(
            f"GPU {number}, {name}: {reserved / GB:.1f} of {total / GB:.1f} GB reserved ({reserved / total:.0%})"
        )
    return tuple(lines)


def resident_bytes() -> int:
    """Memory of this process that is in use; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
