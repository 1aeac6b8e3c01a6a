# SPDX-License-Identifier: Apache-2.0
"""Install heretic-llm into an environment of its own, and read versions from package metadata only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import BenchmarkError

RELEASE = "1.4.0"
CONSTRAINTS = ("torch<2.14",)
REPORTED = (
    "heretic-llm",
    "heretic-workbench",
    "torch",
    "transformers",
    "optuna",
    "peft",
    "accelerate",
    "numpy",
)


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[:3])} failed with {done.returncode}:\n{done.stderr[-2000:]}")


def python_of(folder: Path) -> Path:
    """Interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure_heretic_llm(folder: Path) -> Path:
    """Return the folder of an environment with heretic-llm RELEASE, creating it with uv or with venv and pip.

    UV_FIND_LINKS (or PIP_FIND_LINKS) may name a folder with a CPU build of torch. Raises BenchmarkError with
    the installer's last words.
    """
    ready = folder / "READY"
    if ready.is_file() and ready.read_text(encoding="ascii") == RELEASE:
        return folder
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise BenchmarkError(f"{folder} exists and is no virtual environment; name another --environment")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    constraints = folder.parent / "constraints.txt"
    constraints.write_text("\n".join(CONSTRAINTS) + "\n", encoding="ascii")
    environment = dict(os.environ)
    links = environment.get("UV_FIND_LINKS") or environment.get("PIP_FIND_LINKS", "")
    if links:
        environment["UV_FIND_LINKS"] = environment["PIP_FIND_LINKS"] = links
    wanted = ["-c", str(constraints), f"heretic-llm=={RELEASE}"]
    uv = shutil.which("uv")
    if uv:
        _run([uv, "venv", "--python", "3.11", str(folder)], environment)
        _run(
            [uv, "pip", "install", "--compile-bytecode", "--python", str(python_of(folder)), *wanted],
            environment,
        )
    else:
        _run([sys.executable, "-m", "venv", str(folder)], environment)
        _run([str(python_of(folder)), "-m", "pip", "install", "--quiet", *wanted], environment)
    ready.write_text(RELEASE, encoding="ascii")
    return folder


def versions_in(python: Path) -> dict[str, str]:
    """Versions of the reported packages in an environment, from their metadata: nothing is imported."""
    script = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([str(python), "-c", script, *REPORTED], capture_output=True, text=True, check=True)
    return {str(name): str(version) for name, version in json.loads(done.stdout).items()}
