# SPDX-License-Identifier: Apache-2.0
"""Reports of studies that lack something, and the folder they are published as."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from heretic.apps.report_page.figures import draw
from heretic.apps.report_page.make import make_report
from heretic.apps.report_page.page import build_page
from heretic.apps.report_page.reading import mapping
from heretic.apps.report_page.record import gather
from heretic.apps.report_page.sections.limits import NEVER, not_measured
from heretic.exceptions import OutputExistsError, StudyNotFoundError
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.findings_store import store_extraction
from heretic.phases.report_store import REPORT
from heretic.study.state import open_study
from heretic.testing.strategy_cases import planted_findings
from heretic.testing.workbench import loaded_pico

from .support import FINGERPRINT, Whole, add_report, keep_residuals, report, searched, section, table, tree


def test_a_study_that_never_ended_says_what_is_missing(tmp_path: Path) -> None:
    """A page of what there is: front and importance from the trials, and a name for each missing part."""
    made = make_report(searched(tmp_path), "one", tmp_path / "report")
    page = made.page.read_text(encoding="utf-8")
    assert len(made.missing) == 2 and "has not ended" in made.missing[0] and "directions" in made.missing[1]
    assert set(made.files) == {"index.html", "front.png", "kernels.png", "importance.png"}
    missing = {
        e.attributes["id"]: e.text
        for e in tree(page).all("section")
        if "Missing:" in e.text and e.all("strong")
    }
    assert set(missing) == {
        "before-after",
        "separability",
        "projections",
        "replies",
        "certificate",
        "coverage",
    }
    front = table(page, "Trials of the front, finalists first")[1:]
    assert front and all(row[4] == "-" for row in front)
    assert "a chosen trial: none was chosen" in section(page, "limits").text
    commands = section(page, "commands").all("code")
    assert commands[0].text == "heretic tiny --study-name one --resume continue"


def test_directions_alone_give_figures_by_layer(tmp_path: Path) -> None:
    """A study from before residuals were kept: separability without interval, gaps in the table, no projections."""
    storage = searched(tmp_path)
    found = planted_findings(loaded_pico("llama"), "single", "suppress")
    figures = tuple(0.6 + 0.1 * layer for layer in range(found.layers))
    result = DirectionExtractionResult(found, figures, figures, figures, ("The direction is uncertain.",))
    with open_study(storage, "one", fingerprint=FINGERPRINT) as study:
        store_extraction(study, "tiny", result)
    record = gather(storage, "one")
    assert record.view is None and [row.auroc for row in record.layers] == list(figures)
    assert record.notes == ("The direction is uncertain.",)
    assert any("Residuals were not kept" in line for line in record.missing)
    drawn = draw(record)
    assert "separability" in drawn and "projections" not in drawn
    assert not {"95 % interval", "silhouette"} & set(
        re.findall(r">([^<>]+)</text>", drawn["separability"].svg)
    )
    rows = table(build_page(record, drawn), "Geometry of the two classes by layer")[1:]
    assert [row[1] for row in rows] == [f"{value:.3f}" for value in figures]
    assert {row[2] for row in rows} == {row[10] for row in rows} == {""}


def test_few_trials_have_no_importance_and_no_trials_no_front(tmp_path: Path) -> None:
    storage = searched(tmp_path, trials=8)
    page = make_report(storage, "one", tmp_path / "few").page.read_text(encoding="utf-8")
    assert "fewer than 20" in section(page, "importance").text
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    open_study(empty, "one", fingerprint=FINGERPRINT).close()
    made = make_report(empty, "one", tmp_path / "none")
    assert made.files == ("index.html",)
    assert "No trial has been measured" in section(made.page.read_text(encoding="utf-8"), "front").text


def test_a_damaged_report_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    storage = searched(tmp_path)
    with open_study(storage, "one", fingerprint=FINGERPRINT) as study:
        keep_residuals(study)
        study.set_attribute(REPORT, {"version": 9})
    record = gather(storage, "one")
    assert len(record.missing) == 1 and "version 9" in record.missing[0]
    assert record.view is not None and record.front and not record.document


def test_a_run_that_induces_shows_the_behaviour_and_not_the_objective(tmp_path: Path) -> None:
    """The rate of a stored trial counts replies without the behaviour; control: the goal `suppress` shows "
    "it as it is."""
    storage = searched(tmp_path)
    plain = gather(storage, "one")
    add_report(storage, report(goal="induce", front=()).to_document())
    turned = gather(storage, "one")
    assert turned.induces and not plain.induces
    for first, second in zip(plain.points, turned.points, strict=True):
        assert second.rate == pytest.approx(1 - first.rate)
    rates = [
        (a["behaviour_rate"], b["behaviour_rate"]) for a, b in zip(plain.front, turned.front, strict=True)
    ]
    assert rates and all(second == pytest.approx(1 - float(str(first))) for first, second in rates)


def test_what_nobody_measured_is_listed(whole: Whole) -> None:
    """R-GEN-06. Control: of a run that measured all of it, only what no run measures is listed."""
    assert tuple(not_measured(whole.record)) == NEVER
    document = dict(whole.record.document)
    chosen = {**whole.record.chosen, "held_out": None, "kl_mean": None, "over_rate": None}
    baseline = {**mapping(document["baseline"]), "over_rate": None}
    poor = {**document, "chosen": chosen, "baseline": baseline, "verified": None, "controls": {}}
    found = " ".join(not_measured(replace(whole.record, document=poor)))
    for words in (
        "on held-out prompts",
        "the damage",
        "the saved files",
        "should not show it",
        "random directions",
    ):
        assert words in found
    assert next(iter(not_measured(replace(whole.record, document={})))) == "a chosen trial: none was chosen"


def test_broken_guards_and_other_endings_are_told(whole: Whole) -> None:
    """Control: the run that ended well has no such note."""
    chosen = {**whole.record.chosen, "flags": ["loop", "over_behaviour"]}
    document = {**whole.record.document, "chosen": chosen, "status": "nothing_qualified"}
    text = section(build_page(replace(whole.record, document=document), {}), "summary").text
    assert "more replies run in a loop" in text and "should not show it rose" in text
    assert "No trial met the limits" in text
    calm = section(whole.page, "summary").text
    assert "Broken guards" not in calm and "No trial met" not in calm


# The folder


def test_an_unknown_study_names_near_ones(whole: Whole, tmp_path: Path) -> None:
    """Exit code 2, nothing is made, not even a database."""
    with pytest.raises(StudyNotFoundError) as error:
        make_report(whole.storage, "onee", tmp_path / "report")
    assert error.value.exit_code == 2 and "'one'" in str(error.value.hint)
    nowhere = tmp_path / "no.db"
    with pytest.raises(StudyNotFoundError):
        make_report(f"sqlite:///{nowhere}", "one", tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """R-CLI-47: ours only with the flag, a folder of somebody else never."""
    storage, out, foreign = searched(tmp_path, trials=8), tmp_path / "report", tmp_path / "mine"
    first = make_report(storage, "one", out).page.read_bytes()
    with pytest.raises(OutputExistsError, match="exists"):
        make_report(storage, "one", out)
    assert make_report(storage, "one", out, overwrite=True).page.read_bytes() == first
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear", encoding="ascii")
    with pytest.raises(OutputExistsError):
        make_report(storage, "one", foreign, overwrite=True)
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


def test_looking_at_a_study_changes_nothing(whole: Whole, tmp_path: Path) -> None:
    path = Path(whole.storage.removeprefix("sqlite:///"))
    before = path.read_bytes()
    gather(whole.storage, "one")
    assert path.read_bytes() == before
