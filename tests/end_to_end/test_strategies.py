# SPDX-License-Identifier: Apache-2.0
"""Every strategy and the goal `induce` on the bundled model, from the command line to the saved folder; each switch
changes what is measured, and what cannot work ends in a typed, visible outcome (requirements 5, R-GEN-08, R-GEN-09)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.exceptions import (
    CAAExtractionError,
    CircuitAblationError,
    ConceptConeError,
    ExtractionError,
    SacredDirectionError,
    SupervisedProbeError,
)
from heretic.phases import steps
from heretic.phases.optimization import create_study, enqueue_warm_start_trials, search_space
from heretic.phases.state import Run
from heretic.stop import StopFlag
from heretic.study.types import Value

from .support import SMALL, here, run_flags

TRIALS = 10
STRATEGIES = ("single", "subspace", "cones", "oblique", "norm_preserving", "heads", "caa")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_removes_the_behaviour_and_what_is_saved_does_it(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search prompts of the anchors decide; the saved files are loaded and measured again (REL-08)."""
    ended = here("run", *run_flags(tmp_path, TRIALS, f"--strategy={strategy}", "--json"), capture=capsys)
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["baseline"]["hits"] == 24
    assert document["verified"]["hits"] <= 2, document["chosen"]["parameters"]
    assert document["verified"]["hits"] == document["chosen"]["hits"]
    assert document["verified"]["kl_mean"] == pytest.approx(document["chosen"]["kl_mean"], rel=0.02, abs=1e-5)
    checked = here("verify", str(tmp_path / "out"), "--base", str(model_path()), "--json", capture=capsys)
    assert checked.code == 0, checked.err
    assert checked.document["measured_again"] is not None


def test_induce_adds_the_behaviour_where_it_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-DIR-09: counted on the good prompts; the report gives the rate of the behaviour, not of its absence."""
    ended = here("run", *run_flags(tmp_path, TRIALS, "--goal=induce", "--json"), capture=capsys)
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["baseline"]["hits"] == 0 and document["baseline"]["n"] == 24
    assert document["verified"]["hits"] >= 18
    checked = here("verify", str(tmp_path / "out"), "--base", str(model_path()), "--json", capture=capsys)
    assert checked.code == 0, checked.err


def run_with(*tokens: str) -> Run:
    """A run of the demo model up to its plan context, with few prompts and the study in memory."""
    stated = {word.split("=")[0] for word in tokens}
    small = [word for word in SMALL if word.split("=")[0] not in stated]
    words = [str(model_path()), *small, "--storage=", *tokens]
    run = Run(resolve_settings(words, environ={}, cwd=Path(__file__).parent), Console(quiet=True), StopFlag())
    source = steps.preflight(run)
    run.bundle = steps.load_prompts(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
    run.context = steps.plan_context(run)
    return run


prepared = cache(run_with)

PLAIN = ("--no-use-covectors",)
SUBSPACE = ("--strategy=subspace",)


def objectives(run: Run, **changes: Value) -> tuple[Any, ...]:
    """KL and hits of two even edits, with one direction for all and with each layer's own, some parameters changed."""
    assert run.evaluator is not None
    points = enqueue_warm_start_trials(run)
    outcomes = run.evaluator.score([run.edits({**points[number], **changes}) for number in (1, 6)])
    return tuple(
        (None if outcome.kl is None else outcome.kl.mean, outcome.hits, outcome.status)
        for outcome in outcomes
    )


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (PLAIN, "--use-activation-calibration"),
        (PLAIN, "--orthogonalize-directions"),
        (PLAIN, "--no-project-direction"),
        (PLAIN, "--winsorization-quantile=0.9"),
        (PLAIN, "--no-enable-layer-profiles"),
        (PLAIN, "--max-strength=0.8"),
        (PLAIN, "--use-sacred-directions"),
        (PLAIN, "--residual-position=response_mean"),
        (SUBSPACE, "--n-refusal-directions=2"),
        (SUBSPACE, "--no-use-pca-extraction"),
        (SUBSPACE, "--pca-alpha=0"),
        (SUBSPACE, "--eigenvalue-weight-method=proportional"),
        (SUBSPACE, "--eigenvalue-weight-temperature=3"),
        (SUBSPACE, "--no-use-eigenvalue-weights"),
        (SUBSPACE, "--iterative-rounds=2"),
        (("--strategy=oblique",), "--search-space.shrinkage=0.9"),
        (("--strategy=cones",), "--min-cone-size=20"),
    ],
)
def test_a_switch_changes_what_is_measured(base: tuple[str, ...], change: str) -> None:
    """R-GEN-09; control: the same settings twice measure the same."""
    words = [word for word in base if word.split("=")[0].removeprefix("--no-") != change[2:]]
    before, after = prepared(*base), run_with(*words, change)
    assert objectives(before) == objectives(before)
    assert objectives(before) != objectives(after)


def test_parameters_of_the_strategies_change_what_is_measured() -> None:
    """Nothing shadows anything: the search sees a difference in each dimension that a strategy adds."""
    for tokens, name, values in (
        (SUBSPACE, "n_components", (1, 3)),
        (("--strategy=norm_preserving",), "norm_mode", ("column", "row")),
        (("--strategy=heads", *PLAIN), "n_heads", (1, 6)),
        (("--strategy=caa", *PLAIN), "addition_strength", (0.0, 1.0)),
        (("--goal=induce",), "addition_strength", (0.2, 1.0)),
        (("--goal=induce",), "amplification", (0.0, 1.0)),
        (("--strategy=oblique",), "center", ("no", "yes")),
    ):
        run = prepared(*tokens)
        assert name in [dimension.name for dimension in search_space(run)], name
        first, second = (objectives(run, **{name: value}) for value in values)
        assert first != second, name


def test_sources_are_searched_and_labelled_by_class_where_every_reply_shows_the_behaviour() -> None:
    """R-PRB-02, R-DIR-04: the run goes on, and the report says what the labels were."""
    run = prepared("--ensemble-probe-pca", "--use-supervised-probing")
    assert run.extraction is not None
    assert list(run.extraction.findings.sources) == ["difference", "covector", "probe", "ensemble"]
    assert any("labelled by the class of the prompt" in line for line in run.degradations)
    names = [dimension.name for dimension in search_space(run)]
    assert "direction_source" in names
    found = {objectives(run, direction_source=name) for name in run.extraction.findings.sources}
    assert len(found) == 4


ALIKE = (
    "--bad-prompts.dataset=heretic:refusal-good",
    "--bad-prompts.split=train[64:128]",
    "--bad-evaluation-prompts.dataset=heretic:refusal-good",
    "--bad-evaluation-prompts.split=validation[16:32]",
)
"""Two classes that differ in nothing but chance."""


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (("--strategy=cones", "--min-cone-size=60"), ConceptConeError, "60"),
        (("--strategy=caa", "--no-project-direction"), CAAExtractionError, "left to add"),
        (("--strategy=heads", *ALIKE), CircuitAblationError, "carries the behaviour"),
        (("--use-supervised-probing", *ALIKE), SupervisedProbeError, "accuracy"),
        (
            ("--use-sacred-directions", "--sacred-prompts.dataset=heretic:refusal-bad"),
            SacredDirectionError,
            "capability",
        ),
    ],
)
def test_what_cannot_work_fails_with_a_typed_error_when_it_was_asked_for(
    tokens: tuple[str, ...], error: type[Exception], words: str
) -> None:
    """R-DIR-10, R-GEN-08."""
    with pytest.raises(error, match=words):
        run_with("--allow-zero-baseline", *tokens)


def test_a_default_that_cannot_work_is_switched_off_with_its_reason() -> None:
    """R-GEN-08: the same features, not asked for."""
    run = run_with("--good-prompts.split=train[:9]", "--search-space.shrinkage=0")
    assert any(line.startswith("use_covectors is off") for line in run.degradations)
    assert run.extraction is not None and list(run.extraction.findings.sources) == ["difference"]
    with pytest.raises(ExtractionError):
        run_with("--good-prompts.split=train[:9]", "--search-space.shrinkage=0", "--use-covectors")
