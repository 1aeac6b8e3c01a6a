# SPDX-License-Identifier: Apache-2.0
"""A study from elsewhere may hold anything; its page is a page all the same, and nothing of it runs (G04)."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import matplotlib
import pytest

from heretic.apps.report_page.drawing import STYLE, rendered
from heretic.apps.report_page.figures import draw, front, kernel
from heretic.apps.report_page.page import build_page
from heretic.apps.report_page.record import PageRecord, Point
from heretic.apps.report_page.sections import sections

from .support import KEYS, Tree, Whole, report, site, tree

FIGURES: Final = ("front", "kernels", "separability", "projections", "importance")
ATTACK: Final = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\"'><a href='//evil.example'>"
)


def hostile(value: object) -> object:
    """The document with every text behind a name replaced by an attack."""
    if isinstance(value, dict):
        return {key: hostile(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [hostile(entry) for entry in value]
    return ATTACK if isinstance(value, str) else value


def test_markup_from_a_study_stays_text(whole: Whole) -> None:
    """Replies, prompts, names of models, settings, parameters, matrices: all shown, none is markup. Control: without
    escaping the same text makes elements."""
    record, clean = whole.record, whole.page
    document = hostile(json.loads(json.dumps(report().to_document())))
    assert isinstance(document, dict)
    document["chosen"]["parameters"][f"{ATTACK}.max_weight"] = 1.0
    document["chosen"]["strengths"][f"{ATTACK}.3.{ATTACK}"] = [0.5]
    document["settings"][ATTACK] = {"value": ATTACK, "source": ATTACK}
    attacked = replace(
        record, name=ATTACK, document=document, front=tuple(document["front"]), certificate=(site(ATTACK),),
        failures={3: ATTACK}, notes=(ATTACK,), missing=(ATTACK,),
        importance=tuple(
            replace(entry, rows=tuple(replace(row, parameter=ATTACK) for row in entry.rows))
            for entry in record.importance
        ),
    )  # fmt: skip
    page = build_page(attacked, draw(attacked))
    root = tree(page)
    assert page.count(html.escape("<script>alert(1)</script>")) > 40
    assert (
        not root.all("script")
        and not root.all("img")
        and "{{ 7 * 7 }}" in root.text
        and " 49 " not in root.text
    )
    assert all(link.attributes["href"].startswith("#") for link in root.all("a"))
    assert {e.attributes["id"] for e in root.all("section")} == set(KEYS)
    assert Tree(f"<p>{ATTACK.removeprefix('</script>')}</a></p>").root.all("script")
    assert len(tree(clean).all("svg")) == len(root.all("svg"))


def each_place(node: dict[str, Any], depth: int = 0) -> Iterator[tuple[dict[str, Any], str]]:
    """Every value of a document, as its place."""
    for key, value in list(node.items()):
        yield node, key
        if isinstance(value, dict) and depth < 3:
            yield from each_place(value, depth + 1)


@pytest.mark.parametrize(
    "wild",
    [None, float("nan"), 1e300, -1e300, "x" * 100_000, [[[]]], {"a": {"b": 1}}, True, "\ud800"],
    ids=lambda value: str(value)[:9].encode("ascii", "replace").decode(),
)
def test_foreign_values_anywhere_make_a_page(whole: Whole, wild: object) -> None:
    """Each value of the document in turn is replaced; the page keeps its sections and its size."""
    document = json.loads(json.dumps(report().to_document()))

    def damaged() -> PageRecord:
        entries = document["front"] if isinstance(document["front"], list) else []
        return replace(
            whole.record, document=document, front=tuple(e for e in entries if isinstance(e, dict))
        )

    for node, key in each_place(document):
        kept, node[key] = node[key], wild
        assert [entry.key for entry in sections(damaged(), FIGURES)] == list(KEYS)
        node[key] = kept
    for name in ("baseline", "chosen", "coverage", "examples", "front", "environment", "verification"):
        document[name] = wild
    worst = replace(damaged(), certificate=({"path": wild, "layer": wild, "wanted": wild},))
    with matplotlib.rc_context(STYLE):
        front(worst)
        kernel(worst)
    page = build_page(worst, {}).encode("utf-8", "replace").decode("utf-8")
    assert [e.attributes["id"] for e in tree(page).all("section")] == list(KEYS)
    assert len(page) < len(whole.page) + 100_000


def test_wild_figures_are_drawn(whole: Whole) -> None:
    """NaN, infinity and huge numbers in trials and bars give a picture, not an error or a warning."""
    record = whole.record
    entry = {
        "trial": "x",
        "search": {"behaviour_rate": 1e300, "n": 3, "hits": 1, "kl_mean": 1e300, "interval": [-1e300, 1e300]},
        "held_out": {"behaviour_rate": -5, "n": 3, "kl_mean": -1, "kl": {"standard_error": 1e200}},
        "strengths": {"a.3.b": [1e300, float("nan")], "a.9999999999999999.b": [1.0]},
    }  # fmt: skip
    points = (Point(0, 0.5, 0.0, True), Point(1, 0.5, 1e-300, False), Point(2, 0.1, 1e250, True))
    damaged = replace(record, front=(entry,), points=points, document={**record.document, "chosen": entry})
    with matplotlib.rc_context(STYLE):
        for figure in (front(damaged), kernel(damaged)):
            assert figure is not None and rendered("wild", figure).png
