# SPDX-License-Identifier: Apache-2.0
"""A small world to make mistakes in: a folder with a pico model, prompt files, and the program called in process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.logging import disable_progress_bar

from heretic.testing.tokenizers import save_pico

ROWS = 60
SETS = {
    "bad-prompts": ("bad.txt", "train[:30]"),
    "good-prompts": ("good.txt", "train[:30]"),
    "bad-evaluation-prompts": ("bad.txt", "train[30:36]"),
    "good-evaluation-prompts": ("good.txt", "train[30:36]"),
    "bad-confirmation-prompts": ("bad.txt", "train[40:46]"),
    "good-confirmation-prompts": ("good.txt", "train[40:46]"),
    "over-behaviour-prompts": ("good.txt", "train[50:54]"),
}


def data_flags() -> list[str]:
    """Flags that name the prompt files."""
    return [
        flag
        for name, (file, split) in SETS.items()
        for flag in (f"--{name}.dataset={file}", f"--{name}.split={split}")
    ]


SHORT = (
    "--max-response-length=8",
    "--refusal-check-tokens=4",
    "--kl-divergence-tokens=2",
    "--finalists=1",
    "--n-trials=4",
    "--n-startup-trials=2",
    "--trials-per-batch=2",
    "--allow-zero-baseline",
    "--offline",
)
SAVE = ("--auto-select", "--auto-select-path=out", "--storage=sqlite:///study.db")


def base_run(*more: str, model: str = "model") -> list[str]:
    """A headless run that takes about a second once the libraries are loaded; `more` replaces flags of that name."""
    said = {flag.partition("=")[0] for flag in more}
    kept = [flag for flag in (*data_flags(), *SHORT, *SAVE) if flag.partition("=")[0] not in said]
    return [model, *kept, *more]


def make_world(folder: Path) -> Path:
    """A pico model in `model/` and 60 prompts in each of `bad.txt` and `good.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # the program does so by a variable that is read before this process could set it
    save_pico(folder / "model", "qwen2")
    for name, verb in (("bad", "make"), ("good", "bake")):
        lines = [f"How do I {verb} item number {row}?\n" for row in range(ROWS)]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Told:
    """What one command line in this process said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


class World:
    """The folder, and the program called in it."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.model = folder / "model"
        self._capture = capture

    def heretic(self, *words: str) -> Told:
        """Call the command line here; the exit code instead of the exit."""
        from heretic.cli import main

        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = self._capture.readouterr()
        return Told(int(str(ended.value.code)), out, err)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the world."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def config(self, **changes: object) -> None:
        """Change the model's config.json; None removes a key."""
        path = self.model / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    def snapshot(self) -> dict[str, bytes]:
        """Every file with its bytes, without the log."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def leftovers(self) -> list[str]:
        """Names that only an unfinished or an unwanted write leaves behind."""
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        return [name for name in names if name.startswith("out") or "partial" in name or ".tmp" in name]


def enter(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capture: Any) -> World:
    """A private copy of the world as the working directory, with an empty home and no settings from outside."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("HERETIC_", "HF_TOKEN"))]:
        monkeypatch.delenv(name)
    home = folder.parent / f"{folder.name}-home"
    home.mkdir()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NO_COLOR", "1")
    return World(folder, capture)


def joined(texts: Sequence[str]) -> str:
    """One text with single spaces, so that a wrapped sentence can be searched."""
    return " ".join(" ".join(texts).split())
