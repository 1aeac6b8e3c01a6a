# SPDX-License-Identifier: Apache-2.0
"""A real browser for the tests of pages: Debian's chromium, driven by playwright; skipped with a message elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES: Final = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    if CHROMIUM is None:
        pytest.skip(
            "chromium is not installed (Debian: apt-get install chromium; else set CHROMIUM to its path)"
        )
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (pip install playwright)")
    return CHROMIUM


@pytest.fixture(scope="session")
def driven(chromium: str) -> Iterator[Any]:
    """The running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page, what it asked for and what it complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(f"page: {error}"))
        page.on("console", self._console)
        page.on("dialog", self._dialog)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def foreign(self) -> list[str]:
        """What was asked of other machines."""
        return [url for url in self.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]


def opened(browser: Any, size: str = "wide", scheme: str = "light") -> Watched:
    """A new page in a context of its own, as another person's browser."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    return Watched(context.new_page())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: the documentation when they are made anew on purpose, else a folder of the test."""
    wanted = os.environ.get("PICTURES_FOLDER")
    folder = Path(wanted) if wanted else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder
