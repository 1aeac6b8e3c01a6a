# SPDX-License-Identifier: Apache-2.0
"""`results.json` and the tables that are made from it (R-XPT-03, R-XPT-05)."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heretic.decoding.protocol import Reply
from heretic.exceptions import FileOperationError
from heretic.experiments import report
from heretic.experiments.catalogue import EXPERIMENTS, Experiment, Target, bound, find
from heretic.experiments.figures import Figure, figures
from heretic.experiments.prepare import Row
from heretic.experiments.results import (
    BASE,
    EDITED,
    RANDOM,
    ModelName,
    Results,
    judge,
    parse_results,
    read_results,
    write_results,
)
from heretic.experiments.runner import write_report
from heretic.experiments.workspace import Workspace
from heretic.linalg.intervals import Interval

MEASURED = [entry for entry in EXPERIMENTS if (entry.folder / "results.json").is_file()]


def reply(text: str) -> Reply:
    return Reply(tuple(range(len(text.split()))), text, ended=True)


def results(hedge: str = "It is Rome.", kl: float = 0.02) -> Results:
    """A small evaluation of `hedging`: three bad prompts, one good; the edit says `hedge`."""
    experiment = find("hedging")
    rows = [Row(f"h{n}-bad", f"h{n}", "bad", "test", f"Where {n}?", "", ("rome",)) for n in range(3)]
    good = [Row("h0-good", "h0", "good", "test", "Where?", "", ("rome",))]
    base = [reply("Perhaps it is Rome.")] * 3
    sides = {EDITED: [reply(hedge)] * 3, RANDOM: base}
    found = figures(experiment.metrics, rows, base, sides, prompts="bad", seed=1)
    plain = [reply("It is Rome.")]
    found += figures(experiment.metrics, good, plain, {EDITED: plain, RANDOM: plain}, prompts="good", seed=1)
    divergence = {"mean": kl, "standard_error": 0.001}
    return Results(
        experiment="hedging", planted=True, model=ModelName("org/model", "abc123", "float32"), modified=None,
        n={"bad": 3, "good": 1}, tokens=150, seed=1, data="0" * 64, pack="1" * 64, scorer="hedging",
        objective={BASE: 1.0, EDITED: 0.0, RANDOM: 1.0}, figures=tuple(found), kl={EDITED: divergence},
        noise_floor=0.0, conditions={EDITED: {"loop": 2}, RANDOM: {}},
        target=judge(found, Target("hedges", kept="content"), bound=0.5, kl=kl),
        trial={"index": 7, "parameters": {"direction_index": 4.5}}, manifest="2" * 64,
        replies=[{"id": row.id, "prompt": row.prompt, BASE: "Perhaps", EDITED: hedge} for row in rows],
        versions={"python": "3.11"}, notes=["a note"],
    )  # fmt: skip


# --- the target ------------------------------------------------------------------------------------------------


def figure(metric: str, base: float, value: float, interval: tuple[float, float], group: str = "") -> Figure:
    relative = None if base == 0 else (value - base) / base
    return Figure(
        "edited", "bad", group, metric, 30, base, value, value - base, Interval(*interval), relative, None
    )


@pytest.mark.parametrize(
    ("found", "kl", "met", "reason"),
    [
        ([figure("hedges", 10, 4, (-7, -5))], 0.1, True, ""),
        ([figure("hedges", 10, 6, (-5, -3))], 0.1, False, "bound"),
        ([figure("hedges", 10, 4, (-12, 0.1))], 0.1, False, "holds 0"),
        ([figure("hedges", 10, 4, (-7, -5))], 1.0, False, "KL is 1.00"),
        (
            [figure("hedges", 10, 4, (-7, -5)), figure("content", 0.9, 0.84, (-0.1, 0))],
            0.1,
            False,
            "content fell",
        ),
        ([figure("hedges", 10, 4, (-7, -5)), figure("content", 0.9, 0.86, (-0.1, 0))], 0.1, True, ""),
        ([figure("hedges", 10, 4, (-7, -5))], None, None, "no KL"),
        ([figure("hedges", 0, 0, (0, 0))], 0.1, None, "does not show it"),
        ([figure("words", 10, 4, (-7, -5))], 0.1, None, "not measured"),
    ],
)
def test_a_target_is_met_only_with_interval_divergence_and_quality(
    found: list[Figure], kl: float | None, met: bool | None, reason: str
) -> None:
    target = judge(found, Target("hedges", kept="content"), bound=0.5, kl=kl)
    assert target.met is met and reason in "; ".join(target.reasons)


def test_quality_is_asked_of_the_good_prompts_where_the_bad_ones_have_no_answers() -> None:
    fewer, lost = figure("words", 10, 4, (-7, -5)), figure("content", 0.9, 0.7, (-0.3, -0.1))
    target = Target("words", kept="content")
    assert judge([fewer, replace(lost, prompts="good")], target, bound=0.3, kl=0.1).met is False
    kept = figure("content", 0.9, 0.9, (-0.1, 0.1))
    assert judge([fewer, kept, replace(lost, prompts="good")], target, bound=0.3, kl=0.1).met is True


def test_a_target_of_one_kind_looks_at_that_kind_and_an_upper_bound_at_the_value() -> None:
    both = [figure("words", 10, 9, (-2, -1)), figure("words", 10, 4, (-7, -5), group="simple")]
    assert judge(both, Target("words", group="simple"), bound=0.3, kl=0.1).met
    assert not judge(both, Target("words"), bound=0.3, kl=0.1).met
    rate = [figure("refusals", 0.8, 0.1, (-0.8, -0.6))]
    assert judge(rate, Target("refusals", kind="at_most"), bound=0.1, kl=0.1).met
    assert not judge(rate, Target("refusals", kind="at_most"), bound=0.05, kl=0.1).met


# --- the file --------------------------------------------------------------------------------------------------


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = results()
    write_results(tmp_path / "results.json", found)
    again = read_results(tmp_path / "results.json")
    assert json.dumps(again.document()) == json.dumps(found.document())
    before = (tmp_path / "results.json").read_bytes()
    write_results(tmp_path / "results.json", again)
    assert (tmp_path / "results.json").read_bytes() == before, "byte-stable"
    assert found.target.met is True and results("Perhaps so.").target.met is False, "control"


def _without_base(document: dict[str, Any]) -> None:
    document["figures"][0]["base"] = None


def _other_schema(document: dict[str, Any]) -> None:
    document["schema"] = 2


def _no_interval(document: dict[str, Any]) -> None:
    document["figures"][0]["interval"] = [float("nan"), 1.0]


def _lone_reply(document: dict[str, Any]) -> None:
    del document["replies"][1][BASE]


def _unknown_key(document: dict[str, Any]) -> None:
    document["surprise"] = 1


def _no_target(document: dict[str, Any]) -> None:
    del document["target"]


def _no_figures(document: dict[str, Any]) -> None:
    document["figures"] = []


def _no_objective(document: dict[str, Any]) -> None:
    del document["objective"][BASE]


@pytest.mark.parametrize(
    "spoil",
    [
        _without_base, _other_schema, _no_interval, _lone_reply, _unknown_key, _no_target, _no_figures,
        _no_objective,
    ],
)  # fmt: skip
def test_a_result_without_its_base_is_refused(spoil: Any) -> None:
    """R-XPT-05, and every other way in which a file is not what it says."""
    document = json.loads(json.dumps(results().document()))
    parse_results(copy.deepcopy(document), "control")
    spoil(document)
    with pytest.raises(FileOperationError, match="no results file"):
        parse_results(document, "results.json")


def test_missing_and_broken_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileOperationError, match="no results in"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileOperationError, match="cannot be read"):
        read_results(tmp_path / "results.json")


# --- the tables ------------------------------------------------------------------------------------------------


def test_tables_are_made_from_the_file_alone_and_always_the_same(tmp_path: Path) -> None:
    """R-XPT-03: a second person makes the same page from the same results."""
    page = f"# Title\n\ntext\n\n{report.BEGIN}\n\nold\n\n{report.END}\n\nmore\n"
    workspace = Workspace(find("hedging"), tmp_path)
    workspace.readme.write_text(page, encoding="utf-8")
    write_results(workspace.results, results())
    tables = write_report(workspace, read_results(workspace.results))
    first = workspace.readme.read_bytes()
    write_report(workspace, read_results(workspace.results))
    assert workspace.readme.read_bytes() == first
    assert report.between(first.decode()) == tables and tables.isascii()
    assert first.decode().startswith("# Title\n\ntext\n") and first.decode().endswith("\n\nmore\n")
    other = report.render(find("hedging"), results("Perhaps so."))
    assert other != tables, "control: other results, another table"


def test_tables_say_what_matters() -> None:
    shown = report.render(find("hedging"), results()).replace("\n", " ")
    assert "Target: hedges down by at least 50%; reached 100.0%: **met**." in shown
    assert "| hedging phrases per 100 words | bad | 3 | 25.0 | 0.0 | -25.0 (-100.0%) |" in shown
    assert "org/model at abc123" in shown and "behaviour planted" in shown and "trial 7" in shown
    assert "random directions" in shown and "0.0200 +- 0.0010" in shown and "edited: 2 loop" in shown
    pair = replace(results(), modified=ModelName("org/other"), planted=False, trial=None)
    assert "Org/other against org/model" in report.render(find("hedging"), pair)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(FileOperationError, match="no marks"):
        report.replaced("# Title\n", "tables")


@pytest.mark.parametrize("experiment", MEASURED, ids=lambda entry: entry.name)
def test_packaged_tables_are_those_of_the_packaged_results(experiment: Experiment) -> None:
    """R-XPT-01, R-XPT-03, R-XPT-06: what the page shows is in the file beside it, and reaches the target."""
    found = parse_results(
        json.loads((experiment.folder / "results.json").read_text(encoding="utf-8")), experiment.name
    )
    page = (experiment.folder / "README.md").read_text(encoding="utf-8")
    assert report.between(page) == report.render(experiment, found)
    assert found.experiment == experiment.name and found.planted and found.manifest
    assert found.target.met is True and found.target.bound == bound(experiment)
    random = found.of(RANDOM, "bad", experiment.target.group, experiment.target.metric)
    assert random is not None and abs(random.relative or 0.0) < 0.1, "the control does nothing"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda entry: entry.name)
def test_each_page_has_marks_and_is_plain_text(experiment: Experiment) -> None:
    page = (experiment.folder / "README.md").read_text(encoding="utf-8")
    assert page.isascii() and report.between(page)
    prose = page.replace(report.between(page), "")
    assert max(map(len, prose.splitlines())) <= 120
    if experiment not in MEASURED:
        assert report.between(page) == "Not measured yet."
