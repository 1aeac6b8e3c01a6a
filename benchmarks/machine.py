# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on: hardware and system, without host, user or folder names."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def _first_value(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line)
    return next(values, "")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts() -> dict[str, object]:
    """Processor, usable cores, memory in decimal GB, system, and the load of the machine before the start."""
    memory = _first_value("/proc/meminfo", "MemTotal").split()
    return {
        "processor": _first_value("/proc/cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "cores": usable_cores(),
        "memory_gb": round(int(memory[0]) * 1024 / 1e9, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
