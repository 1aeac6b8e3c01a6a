# SPDX-License-Identifier: Apache-2.0
"""Names of models and of result files, without the folders of this machine."""

from __future__ import annotations

from pathlib import Path

from benchmarks.conditions import ROOT

DEMO_MODEL = ROOT / "src" / "heretic" / "demo" / "model"


def model_name(folder: Path | None) -> str:
    """`demo model` for the packaged one (or None), else the name of the folder."""
    if folder is None or folder.resolve() == DEMO_MODEL.resolve():
        return "demo model"
    return folder.resolve().name


def result_path(folder: Path, *parts: str) -> Path:
    """The JSON file of a result; the same parts give the same file, so a later measurement replaces it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{'-'.join(part.replace(' ', '-') for part in parts)}.json"
