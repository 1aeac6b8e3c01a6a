# SPDX-License-Identifier: Apache-2.0
"""The report page in a real browser: it asks for nothing, says nothing on the console, follows the theme, fits a
telephone."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from heretic.apps.report_page.figures import draw
from heretic.apps.report_page.importance import Importance, ObjectiveImportance
from heretic.apps.report_page.page import build_page
from heretic.apps.report_page.record import LayerRow, PageRecord, Point
from heretic.phases.report_store import residual_view
from heretic.report import Divergence, Example, Measurement, Rate, TrialReport, flat_measurement, flat_trial
from heretic.study.catalogue import StudySummary

CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LONG: Final = "a" * 400
ATTACK: Final = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="playwright is not installed (pip install playwright)",
    ),
]


def record() -> PageRecord:
    """A study with every figure, long words and an attack in the replies."""
    kl = Divergence(0.03, 0.01, 0.02, 0.05, 0.08, 0.04, 30, 150)
    strengths = {f"model.layers.{layer}.self_attn.o_proj.weight": [0.2 * layer] for layer in range(5)}
    parameters: dict[str, object] = {"attn.o_proj.max_weight": 1.0, "direction_scope": "global", LONG: 1}
    trial = TrialReport(
        3, parameters, Measurement("search", Rate(2, 40, 0.01, 0.17), kl),
        Measurement("held_out", Rate(3, 40, 0.03, 0.2), kl), (), strengths,
    )  # fmt: skip
    sides = [torch.randn(20, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    shares = [0.8] * 5
    view = residual_view(
        sides[0],
        sides[1],
        torch.eye(5, 6),
        auroc=shares,
        effect_size=[1.0, 2.0, 3.0, 2.0, 1.0],
        stability=shares,
    )
    example = Example(ATTACK, LONG, ATTACK)
    document = {
        "status": "complete", "model": f"org/{LONG}", "behaviour": "refusal", "goal": "suppress", "strategy": "single",
        "chosen": flat_trial(trial),
        "baseline": flat_measurement(Measurement("held_out", Rate(39, 40, 0.87, 1.0), None)),
        "noise_floor": 1e-6, "coverage": {"family": LONG, "share": 1.0, "skipped": [f"{LONG}: {LONG}"]},
        "examples": [{"prompt": example.prompt, "base": example.base, "edited": example.edited}],
        "settings": {LONG: {"value": LONG, "source": "command line"}}, "degradations": [LONG],
        "output": f"out/{LONG}",
    }  # fmt: skip
    rows = (Importance(LONG, 0.6, 0.4, 0.7), Importance("short", 0.4, 0.3, 0.5))
    return PageRecord(
        name="browser", summary=StudySummary("browser", 40, 0, 0, 1, {}),
        points=tuple(Point(index, index / 40, 0.01 * (41 - index), index % 3 > 0) for index in range(40)),
        document=document, front=(flat_trial(trial),), certificate=({"path": LONG, "layer": 1, "wanted": [0.5]},),
        layers=tuple(LayerRow(layer, 0.8, 1.0, 0.9) for layer in range(5)), view=view,
        importance=(ObjectiveImportance("KL", 40, rows),), failures={1: LONG},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    made = record()
    path.write_text(build_page(made, draw(made)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as program:
        opened = program.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


def visit(
    browser: Any, path: Path, *, width: int = 1280, scheme: str = "light"
) -> tuple[Any, list[str], list[str]]:
    """(page, addresses that were asked for, lines of the console)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, asked, said


def test_it_asks_for_nothing_and_says_nothing(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Control: a page that asks for a picture is seen to do so, and one with an error says it."""
    page, asked, said = visit(browser, page_file)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.mouse.wheel(0, 20_000)
    page.wait_for_timeout(100)
    assert [address for address in asked if not address.startswith("data:")] == [page_file.as_uri()]
    assert said == [] and page.title() == "Study browser"
    other = tmp_path / "other.html"
    other.write_text("<img src='beside.png'><script>console.log('here')</script>", encoding="ascii")
    _, asked, said = visit(browser, other)
    assert len(asked) == 2 and "here" in said


def test_what_a_reply_holds_does_not_run(browser: Any, page_file: Path) -> None:
    """Not even a script that is put into the open page: its policy forbids it."""
    page, _, _ = visit(browser, page_file)
    assert "document.title='taken'" in page.inner_text(".reply")
    assert page.query_selector("script, .reply img") is None
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.wait_for_timeout(100)
    assert page.title() == "Study browser"


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window(browser: Any, page_file: Path, width: int) -> None:
    """No scrolling to the side, with everything opened; wide tables scroll in a frame of their own."""
    page, _, _ = visit(browser, page_file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    )
    assert wide > 0 or width > 390
    edges = page.evaluate(
        "[...document.querySelectorAll('svg.drawing')].map(e => e.getBoundingClientRect().right)"
    )
    assert len(edges) == 5 and max(edges) <= width


def test_dark_and_light_differ_down_to_the_drawings(browser: Any, page_file: Path) -> None:
    """And text stands out from its ground in both: at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    found = {}
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, page_file, scheme=scheme)
        found[scheme] = page.evaluate(
            """() => ({ paper: getComputedStyle(document.body).backgroundColor,
                ink: getComputedStyle(document.body).color,
                soft: getComputedStyle(document.querySelector('.note')).color,
                link: getComputedStyle(document.querySelector('nav a')).color,
                text: getComputedStyle(document.querySelector('svg.drawing text')).fill,
                shown: [...document.querySelectorAll('svg.drawing')]
                    .every(e => e.getBoundingClientRect().height > 100) })"""
        )
        for name in ("ink", "soft", "link", "text"):
            assert contrast(found[scheme][name], found[scheme]["paper"]) >= 4.5, (scheme, name)
        assert found[scheme]["shown"]
    assert all(
        found["light"][name] != found["dark"][name] for name in ("paper", "ink", "soft", "link", "text")
    )


def test_it_reads_the_same_without_scripts(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    folded = page.locator("details table").first
    assert not folded.is_visible()
    page.locator("summary").first.click()
    assert folded.is_visible()


def contrast(first: str, second: str) -> float:
    """Contrast of two colours as a browser writes them (WCAG 2.2)."""
    lights = sorted(luminance(colour) for colour in (first, second))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_contrast_is_measured_rightly() -> None:
    """Control: black on white is 21, grey #777 is just too weak."""
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") < 4.5


def test_a_page_without_figures_fits_too(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    empty = replace(
        record(), document={}, front=(), points=(), layers=(), view=None, importance=(), missing=(LONG,)
    )
    path.write_text(build_page(empty, {}), encoding="utf-8")
    page, _, said = visit(browser, path, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and said == []
