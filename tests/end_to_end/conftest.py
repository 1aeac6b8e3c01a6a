# SPDX-License-Identifier: Apache-2.0
"""The small world of `world.py` as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from .support import TRIALS, Ended, heretic, run_flags
from .world import World, enter, make_world


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world as made once."""
    return make_world(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """One undisturbed run in a process of its own, and its folder; tests leave study and output as they are."""
    folder = tmp_path_factory.mktemp("run")
    return folder, heretic(*run_flags(folder, TRIALS), "--json", cwd=folder)


@pytest.fixture
def world(
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> World:
    """A private copy, entered."""
    return enter(template, tmp_path / "world", monkeypatch, capsys)
