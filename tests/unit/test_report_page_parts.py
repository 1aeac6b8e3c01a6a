# SPDX-License-Identifier: Apache-2.0
"""The pieces of a report page: reading values that may be anything, intervals, importance, drawings."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from collections.abc import Mapping

import matplotlib
import pytest

from heretic.apps.report_page import drawing
from heretic.apps.report_page.auroc import auroc_interval
from heretic.apps.report_page.drawing import STYLE, VARIABLES, label, rendered, require_matplotlib, sheet
from heretic.apps.report_page.importance import MINIMUM, importances
from heretic.apps.report_page.make import default_folder
from heretic.apps.report_page.reading import (
    count,
    divergence,
    number,
    pair,
    public,
    rate,
    rate_interval,
    text,
)
from heretic.exceptions import ConfigurationError
from heretic.linalg.separation import auroc
from heretic.study.space import describe_space
from heretic.study.types import Dimension, FinishedTrial, Scores

SPACE = (
    Dimension("matters", "float", 0.0, 1.0),
    Dimension("idle", "float", 0.0, 1.0),
    Dimension("kind", "categorical", choices=("a", "b")),
    Dimension("sometimes", "int", 1, 9),
    Dimension("fixed", "float", 2.0, 2.0),
)


def trials(amount: int, seed: int = 0, **measured: float | None) -> list[FinishedTrial]:
    """Trials whose rate is what `matters` is, and whose KL is decided by `sometimes`, active in kind a alone."""
    drawer = random.Random(seed)
    found = []
    for index in range(amount):
        kind = drawer.choice("ab")
        sometimes = drawer.randint(1, 9) if kind == "a" else None
        parameters: dict[str, float | int | str | None] = {
            "matters": drawer.random(),
            "idle": drawer.random(),
            "kind": kind,
            "sometimes": sometimes,
            "fixed": 2.0,
        }
        kl = 0.1 * (sometimes or 5)
        figures: Mapping[str, float | None] = {
            "rate": float(str(parameters["matters"])),
            "kl_mean": kl,
            **measured,
        }
        scores = Scores((float(str(parameters["matters"])), kl), {}, dict(figures))
        found.append(FinishedTrial(index, parameters, scores))
    return found


# Values


@pytest.mark.parametrize(
    "value",
    [None, True, "1", float("nan"), float("inf"), 10**400, [1.0], {"a": 1}],
    ids=lambda value: str(value)[:9],
)
def test_what_is_no_finite_number_is_none(value: object) -> None:
    """Control: numbers are read."""
    assert number(value) is None
    assert (number(0), number(2.5), count(3.0), count(-1), count(2.5)) == (0.0, 2.5, 3, None, None)


def test_intervals_are_read_in_their_order_only() -> None:
    assert pair([0.1, 0.2]) == (0.1, 0.2) and pair((0.1, 0.1)) == (0.1, 0.1)
    for wrong in ([0.2, 0.1], [0.1], [0.1, None], None, "ab", [0.1, 0.2, 0.3], [float("nan"), 1.0]):
        assert pair(wrong) is None


def test_absence_of_data_is_no_figure() -> None:
    """R-GEN-06: neither zero prompts nor a missing KL is shown as a number."""
    some = {"behaviour_rate": 0.12, "hits": 12, "n": 100, "interval": [0.07, 0.198], "kl_mean": 0.25}
    assert rate(some) == "12.0 % (12/100)" and rate_interval(some) == (0.07, 0.198)
    assert divergence({**some, "kl": {"standard_error": 0.01}}) == "0.2500 +- 0.0100"
    assert divergence({**some, "kl": {"standard_error": 0.01, "unstable": True}}).endswith(" *")
    for nothing in ({}, {**some, "n": 0}, {**some, "behaviour_rate": None}, {**some, "n": "many"}):
        assert rate(nothing) == "not measured" and rate_interval(nothing) is None
    assert divergence({}) == "not measured"
    assert rate({**some, "graded": True}) == "12.0 % (12/100 hits)"


def test_texts_lose_control_characters_secrets_and_length() -> None:
    token = "hf_" + "a1B2" * 8
    assert text(f"a\x1b[31mb\u202ec {token}") == "abc [redacted]"
    assert len(text("x" * 10**6)) == 300 and text("x" * 300) == "x" * 300
    assert text({"a": [1, 2.5, None], "b": True}) == "a: 1, 2.5, , b: yes"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/anna/models/qwen", "qwen"),
        ("sqlite:////home/anna/study.db", "sqlite:///study.db"),
        ("C:\\Users\\anna\\qwen", "qwen"),
        ("heretic chat /srv/x/out --trial 3", "heretic chat out --trial 3"),
        ("org/model", "org/model"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("./here/model", "./here/model"),
        ("1/2", "1/2"),
    ],
)
def test_folders_of_a_machine_are_left_out(given: str, shown: str) -> None:
    assert public(given) == shown


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("demo-1", "report_demo-1"),
        ("../../etc", "report__.._etc"),
        ("a b;rm", "report_a_b_rm"),
        ("...", "report_study"),
    ],
)
def test_the_default_folder_lies_here(name: str, folder: str) -> None:
    found = default_folder(name)
    assert str(found) == folder and found.parent.name == ""


# Intervals


def test_the_interval_of_an_area_holds_it_and_is_never_a_point() -> None:
    for area in (0.0, 0.3, 0.5, 0.9, 0.999, 1.0):
        for sizes in ((5, 5), (40, 100), (400, 400)):
            low, high = auroc_interval(area, *sizes)
            assert 0.0 <= low <= area <= high <= 1.0
            assert high - low > 0.0005
            flipped = auroc_interval(1 - area, *sizes)
            assert flipped == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert auroc_interval(0.8, 0, 5) == (0.0, 1.0)
    small, large = auroc_interval(0.8, 20, 20), auroc_interval(0.8, 200, 200)
    assert small[0] < large[0] < large[1] < small[1]


def test_the_interval_holds_the_true_area_as_often_as_it_says() -> None:
    """Two normal classes one standard deviation apart have the area 0.7602; control: a third of the width "
    "does not."""
    import torch

    generator = torch.Generator().manual_seed(0)
    held = narrow = 0
    draws = 400
    for _ in range(draws):
        positive = torch.randn(30, generator=generator) + 1.0
        area = auroc(positive, torch.randn(40, generator=generator))
        low, high = auroc_interval(area, 30, 40)
        held += low <= 0.7602 <= high
        narrow += area - (area - low) / 3 <= 0.7602 <= area + (high - area) / 3
    assert 0.92 <= held / draws <= 0.985
    assert narrow / draws < 0.7


# Importance


def test_the_parameter_that_decides_comes_first() -> None:
    """And the spread over resamples holds the share. Control: where the figure is noise, no parameter has most."""
    first, second = importances(trials(120), describe_space(SPACE))
    assert (first.rows[0].parameter, first.trials) == ("matters", 120)
    assert first.rows[0].share > 0.6 and first.rows[0].low > 0.5
    assert second.rows[0].parameter == "sometimes"
    assert sum(row.share for row in first.rows) == pytest.approx(1.0)
    assert all(row.low <= row.share <= row.high for row in (*first.rows, *second.rows))
    assert {row.parameter for row in first.rows} == {"matters", "idle", "kind", "sometimes"}
    drawer = random.Random(1)
    noise = [
        FinishedTrial(t.index, t.parameters, Scores((drawer.random(), 1.0), {}, t.scores.measured))
        for t in trials(120)
    ]
    assert importances(noise, describe_space(SPACE))[0].rows[0].share < 0.8


def test_importance_is_the_same_each_time() -> None:
    assert importances(trials(40), describe_space(SPACE)) == importances(trials(40), describe_space(SPACE))


def test_too_few_trials_say_so_and_unmeasured_ones_do_not_count() -> None:
    """Control: one trial more is enough."""
    few, _ = importances(trials(MINIMUM - 1), describe_space(SPACE))
    assert not few.rows and str(MINIMUM) in few.missing
    enough, _ = importances(trials(MINIMUM), describe_space(SPACE))
    assert enough.rows and not enough.missing
    rates, divergences = importances(trials(50, rate=None), describe_space(SPACE))
    assert rates.trials == 0 and not rates.rows and divergences.trials == 50


@pytest.mark.parametrize(
    "space", [None, {}, [], {"matters": 3}, {"fixed": {"kind": "float", "low": 1, "high": 1}}]
)
def test_without_a_space_there_is_no_importance(space: object) -> None:
    assert all(entry.missing for entry in importances(trials(40), space))


def test_a_space_from_elsewhere_is_no_error() -> None:
    wild = {
        "matters": {"kind": "float", "low": -1e308, "high": 1e308},
        "kind": {"kind": "categorical", "choices": ["a", "b", float("nan")]},
        "idle": {"kind": "float", "low": float("nan"), "high": 2},
    }
    for entry in importances(trials(40), wild):
        assert entry.rows or entry.missing


# Drawings


def test_a_drawing_is_one_element_that_follows_the_theme() -> None:
    """No name space, no prologue, no address, no two equal identities with another figure; text stays text."""
    drawn = []
    for name in ("one", "two"):
        with matplotlib.rc_context(STYLE):
            figure, (panel,) = sheet(2.0)
            panel.plot([0, 1], [0, 1], color=drawing.SERIES[0], label="$x$ <b>&")
            panel.set_title("a title")
            figure.legend()
            drawn.append(rendered(name, figure))
    first, second = drawn
    assert first.svg.startswith("<svg ") and first.svg.endswith("</svg>")
    assert "http" not in first.svg and "<?xml" not in first.svg and "metadata" not in first.svg
    identities = [set(re.findall(r'\bid="([^"]+)"', found.svg)) for found in drawn]
    assert identities[0] and not identities[0] & identities[1]
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', first.svg))
    assert targets and targets <= identities[0]
    assert "var(--series-1)" in first.svg and drawing.SERIES[0] not in first.svg
    assert ">a title</text>" in first.svg and "$x$ &lt;b&gt;&amp;" in first.svg
    assert first.png.startswith(b"\x89PNG") and b"http" not in first.png
    assert first.svg.count("<svg") == 1 and second.svg != first.svg


def test_the_same_figure_gives_the_same_bytes() -> None:
    found = []
    for _ in range(2):
        with matplotlib.rc_context(STYLE):
            figure, (panel,) = sheet(1.5)
            panel.plot([0, 1], [0, 1])
            found.append(rendered("same", figure))
    assert found[0] == found[1]


def test_every_colour_has_a_variable_in_both_themes() -> None:
    from heretic.apps.report_page.page import _template

    style = _template("style.css")
    light, dark = style.split("prefers-color-scheme: dark", 1)
    for colour, variable in VARIABLES.items():
        assert f"{variable}: {colour}" in light and f"{variable}:" in dark
    assert len(set(VARIABLES.values())) == len(VARIABLES)


def test_labels_are_short_and_ascii() -> None:
    """What matplotlib would warn of or leave out of the legend does not reach it."""
    assert label("mlp.down_proj") == "mlp.down_proj"
    assert label("_hidden").strip() == "_hidden" and not label("_hidden").startswith("_")
    assert label("\u4e2d\n\x1b[1m") == "?" and len(label("x" * 1000)) <= 34 and label("") == "?"


def test_without_matplotlib_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-PKG-02. Control: here it is installed."""
    require_matplotlib()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="matplotlib") as error:
        require_matplotlib()
    assert error.value.hint == "pip install 'heretic-workbench[plot]'"


def test_the_command_is_loaded_without_heavy_libraries() -> None:
    """R-PKG-05: `heretic --help` loads neither matplotlib nor torch."""
    code = (
        "import sys, heretic.cli.report; "
        "sys.exit(bool({'torch', 'matplotlib', 'optuna', 'jinja2', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
