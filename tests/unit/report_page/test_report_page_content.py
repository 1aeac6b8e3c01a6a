# SPDX-License-Identifier: Apache-2.0
"""What stands on the page: all sections, the numbers of the record, words beside figures; nothing from outside."""

from __future__ import annotations

import re

from heretic.linalg.intervals import wilson
from heretic.publish import verify_checksums

from .support import KEYS, Whole, section, table, tree


def test_all_sections_are_there_and_named(whole: Whole) -> None:
    made, page = whole.made, whole.page
    root = tree(page)
    assert [entry.attributes["id"] for entry in root.all("section")] == list(KEYS)
    linked = [link.attributes["href"] for link in root.all("nav")[0].all("a")]
    assert linked == [f"#{key}" for key in KEYS]
    identities = re.findall(r'\bid="([^"]*)"', page)
    assert len(identities) == len(set(identities))
    assert made.missing == () and "Missing:" not in root.text
    assert len(root.all("h1")) == 1 and root.all("html")[0].attributes["lang"] == "en"


def test_figures_have_words_numbers_and_a_file(whole: Whole) -> None:
    """Each says in words what it shows and how it was made, and has a picture beside the page."""
    made, page = whole.made, whole.page
    figures = tree(page).all("figure")
    names = [figure.attributes["aria-labelledby"].removeprefix("figure-") for figure in figures]
    assert names == ["front", "kernels", "separability", "projections", "importance"]
    for name, figure in zip(names, figures, strict=True):
        assert len(figure.all("svg")) == 1
        assert len(figure.all("div")[0].attributes["aria-label"]) > 30
        assert len(figure.all("figcaption")[0].all("p")) >= 3 and f"{name}.png" in figure.text
        assert (made.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(made.files) == {"index.html", *(f"{name}.png" for name in names)}
    assert not verify_checksums(made.folder)


def test_tables_are_accessible(whole: Whole) -> None:
    found = tree(whole.page).all("table")
    assert len(found) > 10
    for entry in found:
        assert entry.all("caption")[0].text
        width = len(entry.all("thead")[0].all("th"))
        assert all(cell.attributes["scope"] == "col" for cell in entry.all("thead")[0].all("th"))
        for row in entry.all("tbody")[0].all("tr"):
            assert len(row.children) == width and row.children[0].attributes["scope"] == "row"


def test_the_numbers_before_and_after_are_those_of_the_document(
    whole: Whole,
) -> None:
    rows = table(whole.page, "The behaviour and the damage, before and after")[1:]
    low, high = wilson(5, 40)
    assert rows[3] == [
        "trial 7", "held-out", "12.5 % (5/40)", f"{100 * low:.1f} to {100 * high:.1f} %", "0.0417 +- 0.0100",
        "0.0625", "5.0 % (1/20)",
    ]  # fmt: skip
    assert [row[:3] for row in rows] == [
        ["unedited model", "search", "97.5 % (39/40)"],
        ["unedited model", "held-out", "95.0 % (38/40)"],
        ["trial 7", "search", "7.5 % (3/40)"],
        ["trial 7", "held-out", "12.5 % (5/40)"],
        ["saved files, loaded again", "held-out", "15.0 % (6/40)"],
        ["control: random directions", "held-out", "92.5 % (37/40)"],
    ]
    assert rows[0][4] == "0, by definition"
    assert table(whole.page, "The behaviour rate by category of prompt")[1][:2] == ["locks", "90.0 % (9/10)"]


def test_the_other_tables_hold_what_is_stored(whole: Whole) -> None:
    record, page = whole.record, whole.page
    front = table(page, "Trials of the front, finalists first")[1:]
    assert [row[0] for row in front] == ["7 (chosen)", "2"]
    assert front[0][3] == "0.0311 +- 0.0100" and front[0][6] == "0.0417 +- 0.0100"
    assert front[1][4] == "-" and front[1][7] == "loop"
    kernels = table(page, "Kernels of trial 7")[1:]
    assert kernels[0] == ["attn.o_proj", "0.75", "3.10", "1.50", "0.25", "3 to 4 (2)", "0.731 at layer 3"]
    assert kernels[1][1] == "off" and kernels[1][6] == "1.250 at layer 4"
    assert "Reversed: at 1 matrices" in section(page, "kernels").text
    strengths = table(page, "Strengths applied by trial 7")
    assert strengths == [
        ["layer", "attn.o_proj", "mlp.down_proj"], ["3", "0.731", "0"], ["4", "0.456 (0.412 to 0.500)", "1.250"],
    ]  # fmt: skip
    geometry = table(page, "Geometry of the two classes by layer")[1:]
    assert [row[1] for row in geometry] == ["0.810", "0.820", "0.830", "0.840", "0.850", "0.800"]
    assert [row[3] for row in geometry] == ["1.00", "2.00", "3.00", "3.75", "2.50", "2.00"]
    assert [row[10] for row in geometry] == [f"{row.silhouette:.3f}" for row in record.layers]
    certificate = table(page, "Each changed matrix")
    assert certificate[1][4:] == ["0.731", "0.7309", "0.2691", "0.0666", "0.9999"]
    assert "protected moved" not in certificate[0]
    assert table(page, "Matrices left out")[1] == ["model.embed_tokens.weight", "excluded: tied"]
    assert table(page, "Prompt sets")[1] == ["bad", "heretic:refusal-bad", "64", "3", "abcdef012345"]
    for entry in record.importance:
        rows = table(page, f"Importance for a small {entry.objective}, {entry.trials} trials")[1:]
        assert [(row[0], row[1]) for row in rows] == [
            (r.parameter, f"{100 * r.share:.1f} %") for r in entry.rows
        ]


def test_the_page_says_how_and_what_not(whole: Whole) -> None:
    """Sizes, intervals and floor beside the figures; what was limited, what nobody measured, what comes next."""
    record, page = whole.record, whole.page
    text = section(page, "front").text
    assert "40 prompts of the search and 40 held-out ones" in text and "30 prompts and 150 tokens" in text
    assert (
        "2.5e-06" in text and f"{record.cut_short} trials were ended early" in text and record.cut_short == 8
    )
    limits = section(page, "limits").text
    assert "cones are off: too few prompts" in limits and "knowledge and reasoning benchmarks" in limits
    assert "30 prompts with and 25 without" in section(page, "separability").text
    commands = [code.text for code in section(page, "commands").all("code")]
    assert "heretic export one --trial 7 --model tiny" in commands
    assert "heretic verify tiny-heretic --base tiny" in commands
    assert "I cannot." in section(page, "replies").text and "Like this." in section(page, "replies").text
    summary = section(page, "summary").text
    assert "95.0 % (38/40) of the replies before the edit and in 12.5 % (5/40) after it" in summary
    assert "separable from trial 2" in summary and "/home/anna" not in page


def test_nothing_is_fetched_and_nothing_runs(whole: Whole) -> None:
    """No address, no script, no handler; a policy forbids them besides."""
    page = whole.page
    root = tree(page)
    assert not re.findall(r"(?:https?:)?//[a-z]", page.replace("sqlite:///", ""))
    assert not root.all("script") and not root.all("iframe") and not root.all("img")
    for element in (
        entry for name in {m.lower() for m in re.findall(r"<([a-zA-Z]+)", page)} for entry in root.all(name)
    ):
        assert not [name for name in element.attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert element.attributes.get(name, "#").startswith(("#", "data:,"))
    policy = [meta.attributes for meta in root.all("meta") if "http-equiv" in meta.attributes]
    assert policy[0]["content"].startswith("default-src 'none'")
    assert "@import" not in page and "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
