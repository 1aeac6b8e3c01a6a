# SPDX-License-Identifier: Apache-2.0
"""What the run ran on: versions, device, memory; everything a result may depend on (reliability section 6)."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = ("heretic-workbench", "torch", "transformers", "safetensors", "optuna", "tokenizers", "numpy")


def versions() -> dict[str, object]:
    """Versions of program, libraries, interpreter and driver, the device, threads and processor capability."""
    found: dict[str, object] = {"python": platform.python_version(), "system": platform.system()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["device"] = accelerator()
    found["cuda"] = torch.version.cuda
    found["threads"] = torch.get_num_threads()
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return found


def accelerator() -> str:
    """The accelerator in words, with its memory; the processor where there is none."""
    if torch.cuda.is_available():
        names = []
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            names.append(f"{properties.name} ({properties.total_memory / 1e9:.0f} GB)")
        return ", ".join(names)
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return f"CPU, {torch.get_num_threads()} threads"
