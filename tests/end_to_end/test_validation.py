# SPDX-License-Identifier: Apache-2.0
"""The validation report on the bundled model: a destroyed model is called degraded, an untouched one preserved, and
what cannot be measured is unknown, or an error where it was asked for (R-VAL-01 to R-VAL-05, R-GEN-08)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from heretic.config import resolve_settings
from heretic.config.tables import DatasetSettings
from heretic.console import Console
from heretic.decoding import choose_engine
from heretic.demo import model_path
from heretic.exceptions import ConfigurationError, DatasetConfigError, NetworkError, ValidationFileError
from heretic.interventions.probe import edited_weights
from heretic.phases import steps
from heretic.phases.confirmation import Confirmation
from heretic.phases.optimization import create_study
from heretic.phases.state import Run
from heretic.phases.validation import (
    ValidationBase,
    check_validation,
    measure_validation_base,
    validate,
    validate_saved,
)
from heretic.stop import StopFlag
from heretic.study.types import Value
from heretic.validation.report import ValidationReport, load_report
from heretic.validation.view import validation_view

from .support import SMALL

QUIZ = DatasetSettings(dataset="heretic:knowledge", split="test", column="question")
VALIDATED: dict[str, Any] = {
    "enable_validation": True,
    "run_mmlu_validation": True,
    "mmlu_source": QUIZ,
    "mmlu_samples_per_category": 32,
    "mmlu_few_shot": 1,
    "save_validation_report": True,
}


def with_settings(run: Run, **changes: Any) -> Run:
    """The same run under changed settings."""
    run.resolved = replace(run.resolved, settings=run.settings.model_copy(update=changes))
    return run


def words(*tokens: str) -> Run:
    """A run of the bundled model that has read its settings and nothing else."""
    stated = [str(model_path()), *SMALL, "--storage=", "--no-use-covectors", "--max-strength=2", *tokens]
    resolved = resolve_settings(
        [*stated, "--no-enable-layer-profiles"], environ={}, cwd=Path(__file__).parent
    )
    return with_settings(Run(resolved, Console(quiet=True), StopFlag()), **VALIDATED)


@cache
def prepared() -> tuple[Run, Confirmation, ValidationBase]:
    """Everything up to the search, with the base of the report, and the base on the held-out prompts."""
    run = words()
    data = check_validation(run.settings)
    assert data is not None and data.questions is not None
    source = steps.preflight(run)
    run.bundle = steps.load_prompts(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    base = measure_validation_base(run, data)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
    run.context = steps.plan_context(run)
    confirmation = Confirmation(run)
    confirmation.measure_base()
    return run, confirmation, base


def even(run: Run, strength: float) -> dict[str, Value]:
    """The refusal direction of the last layer but one, from every writer with the same strength."""
    assert run.model is not None
    last = float(run.model.architecture.layers - 1)
    point: dict[str, Value] = {"direction_scope": "global", "direction_index": last - 1.0}
    for component in run.model.architecture.components:
        point[f"{component}.max_weight"] = strength
        point[f"{component}.max_weight_position"] = last / 2
        point[f"{component}.min_weight"] = 1.0
        point[f"{component}.min_weight_distance"] = last
    return point


@cache
def report_of(strength: float) -> ValidationReport:
    run, confirmation, base = prepared()
    edits = run.edits(even(run, strength))
    _, measured = confirmation.measure_trials([edits])[0]
    return validate(run, confirmation, base, measured, edits=edits, trial=1)


def test_a_destroyed_model_is_degraded_and_an_untouched_one_preserved() -> None:
    """R-VAL-01, R-VAL-03: the quiz is answered to 100 % before, and falls under an edit far too strong; control: the
    same edit of strength 0 changes no figure."""
    destroyed, untouched = report_of(2.0), report_of(0.0)
    for report in (destroyed, untouched):
        quiz = report.multiple_choice
        assert quiz is not None and quiz.base.overall.n == 256 and quiz.base.mean == 1.0
        assert report.unknown == () and report.before.rate.value == 1.0
        assert report.before.accuracy == 1.0 and len(quiz.base.categories) == 8
    assert (destroyed.verdict, untouched.verdict) == ("degraded", "preserved")
    hard, none = destroyed.multiple_choice, untouched.multiple_choice
    assert hard is not None and none is not None
    assert hard.paired.high < -0.3 and hard.paired.p_value < 1e-9
    assert (none.paired.lost, none.paired.gained, none.paired.change) == (0, 0, 0.0)
    assert none.edited.right == none.base.right
    assert destroyed.improvements.reduction_percent == pytest.approx(100.0)
    assert untouched.improvements.reduction == 0.0 and untouched.improvements.kl == pytest.approx(
        0.0, abs=1e-6
    )


def test_side_effects_are_seen_under_the_strong_edit_and_not_under_none() -> None:
    """Perplexity, replies to harmless prompts, log-odds; control: strength 0."""
    destroyed, untouched = report_of(2.0), report_of(0.0)
    for report, changed in ((destroyed, True), (untouched, False)):
        texts, replies, odds = report.plain_text, report.replies, report.log_odds
        assert texts is not None and replies is not None and odds is not None
        assert (texts.paired.low > max(0.05, 10 * texts.paired.floor)) is changed
        assert texts.paired.floor < 1e-4
        assert (replies.panel.figures["words"].change != 0.0) is changed
        assert (odds.edited.rate < 0.5 < odds.base.rate) is changed
        assert replies.salad is not None and replies.salad.base == 0
        assert set(replies.guards) == {"empty", "loop", "degenerate", "length_ratio", "behaviour", "salad"}
    assert untouched.replies is not None
    assert all(value <= 0 for value in untouched.replies.guards.values())


def test_weights_and_hooks_give_the_same_report() -> None:
    """Another model, here the same network with the edit written into its weights, against the same base figures."""
    run, confirmation, base = prepared()
    assert run.model is not None
    edits = run.edits(even(run, 2.0))
    hooked = report_of(2.0)
    engine, _ = choose_engine(run.model)
    with edited_weights(run.model.network, edits):
        _, measured = confirmation.measure_other(run.model, engine)
        found = validate(run, confirmation, base, measured, other=(run.model, engine))
    assert found.multiple_choice is not None and hooked.multiple_choice is not None
    assert found.multiple_choice.edited.right == hooked.multiple_choice.edited.right
    assert found.plain_text is not None and hooked.plain_text is not None
    assert found.plain_text.edited.values == pytest.approx(hooked.plain_text.edited.values, rel=1e-4)
    assert found.trial is None and found.verdict == hooked.verdict


def without_questions(base: ValidationBase) -> ValidationBase:
    data = replace(base.data, questions=None)
    return replace(base, data=data, quiz=None, unknown=["multiple choice: no data"])


def test_what_is_saved_is_read_back_and_shown(tmp_path: Path) -> None:
    """R-VAL-05, and the figures a reader sees are those of the file. Afterwards a report that cannot be written fails
    nothing: the model is saved."""
    run, confirmation, base = prepared()
    assert confirmation.base_measured is not None
    measured, quick = confirmation.base_measured, without_questions(base)
    saved = (run, confirmation, quick, run.edits(even(run, 0.0)), measured)
    report, path = validate_saved(*saved, tmp_path / "out" / "model", trial=7)
    assert path is not None and path.parent == tmp_path / "out"
    assert path.name.startswith("validation_report_model_") and load_report(path) == report
    assert report.trial == 7
    with_settings(run, save_validation_report=False)
    assert validate_saved(*saved, tmp_path / "x")[1] is None
    with_settings(run, save_validation_report=True, validation_report_path=tmp_path)  # a folder
    before = list(run.degradations)
    assert validate_saved(*saved, tmp_path / "x")[1] is None
    assert len(run.degradations) == len(before) + 1
    with_settings(run, validation_report_path=None)
    shown = console_text(report_of(2.0))
    for word in ("degraded", "geography", "perplexity", "hedging words", "256/256", "word salad"):
        assert word in shown, word


def console_text(report: ValidationReport) -> str:
    from rich.console import Console as RichConsole

    console = RichConsole(width=160, force_terminal=False)
    with console.capture() as capture:
        for part in validation_view(report):
            console.print(part)
    return capture.get()


def test_default_questions_out_of_reach_are_unknown_and_asked_for_ones_fail() -> None:
    """R-GEN-08: offline the default set is left out with its reason; the same set asked for is an error."""
    run = words()
    run = with_settings(run, mmlu_source=DatasetSettings(dataset="cais/mmlu", config="all", split="test"))
    data = check_validation(run.settings)
    assert data is not None and data.questions is None and "cais/mmlu" in data.unknown[0]
    for name in ("mmlu_source.dataset", "run_mmlu_validation", "mmlu_few_shot"):
        with pytest.raises(NetworkError, match="cais/mmlu"):
            check_validation(run.settings, frozenset({name}))


def test_a_report_without_questions_is_unknown() -> None:
    """R-VAL-03; control: `report_of`, where the verdict is known."""
    run, confirmation, base = prepared()
    none = without_questions(base)
    edits = run.edits(even(run, 0.0))
    _, measured = confirmation.measure_trials([edits])[0]
    found = validate(run, confirmation, none, measured, edits=edits)
    assert found.verdict == "unknown" and "multiple choice" in found.reason
    assert found.unknown == ("multiple choice: no data",) and found.before.accuracy is None
    assert found.plain_text is not None


def test_mistakes_are_found_before_the_search(tmp_path: Path) -> None:
    """Everything that can be known is known from the settings."""
    run = words()
    assert check_validation(run.settings.model_copy(update={"enable_validation": False})) is None
    off = check_validation(run.settings.model_copy(update={"run_mmlu_validation": False}))
    assert off is not None and off.unknown == () and "off" in off.off[0]
    for changes, error, match in (
        ({"validation_report_path": tmp_path}, ValidationFileError, "folder"),
        ({"mmlu_categories": ("geografy",)}, DatasetConfigError, "geografy"),
        ({"validation_benchmarks": ("arc_easy",)}, ConfigurationError, "lm-eval"),
    ):
        settings = run.settings.model_copy(update=changes)
        with pytest.raises(error, match=match):
            check_validation(settings, frozenset(changes))
    # Categories that nobody chose are those the set has, or all of them.
    default = check_validation(run.settings.model_copy(update={"mmlu_categories": ("philosophy",)}))
    assert default is not None and default.questions is not None
    assert len({question.subject for question in default.questions.questions}) == 8
