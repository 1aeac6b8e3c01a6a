# SPDX-License-Identifier: Apache-2.0
"""Memory a model needs, the tiers that hold it, and the GPUs of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

from heretic.cloud.types import ModelSize, Tier

OVERHEAD: Final = 1.15
"""Activations, key-value cache and the accelerator's own context; a planning figure, not a measurement."""

FIXED_GB: Final = 1.5
QUANTISED: Final = {8: 1.05, 4: 1.12}
"""Scales and the layers that stay at 16 bit."""

GB_PER_GIB: Final = 1.073741824


def memory_needs(size: ModelSize) -> dict[int, float]:
    """GB of accelerator memory at 16, 8 and 4 bits."""
    base = 2.0 * size.billions
    weights = {16: base, **{bits: base * bits / 16 * extra for bits, extra in QUANTISED.items()}}
    return {bits: value * OVERHEAD + FIXED_GB for bits, value in weights.items()}


def fitting_tiers(size: ModelSize, tiers: Mapping[str, Tier], num_gpus: int) -> list[tuple[Tier, str]]:
    """Tiers that hold the model on that many GPUs, with the widest precision; cheapest cap first."""
    needs = memory_needs(size)
    found: list[tuple[Tier, str]] = []
    for tier in tiers.values():
        room = tier.min_vram_gib * GB_PER_GIB * num_gpus
        bits = next((bits for bits in (16, 8, 4) if needs[bits] <= room), None)
        if bits is not None:
            found.append((tier, f"{bits} bit"))
    return sorted(found, key=lambda entry: (entry[0].max_price, entry[0].name))


def local_gpus() -> list[float]:
    """GiB of each NVIDIA GPU here; empty when none is found. Never runs a program of the working folder (F06)."""
    program = shutil.which("nvidia-smi", path=_trusted_path())
    if program is None:
        return []
    try:
        told = subprocess.run(
            [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    values = [line.strip() for line in told.stdout.splitlines()] if told.returncode == 0 else []
    return [int(value) / 1024 for value in values if value.isdigit()]


def _trusted_path() -> str:
    """The search path without relative parts."""
    return os.pathsep.join(
        part for part in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(part)
    )
