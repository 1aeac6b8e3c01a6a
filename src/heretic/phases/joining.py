# SPDX-License-Identifier: Apache-2.0
"""`heretic worker`: the steps of a run that only helps to search (requirements R-CLI-13)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from heretic.config import Resolved
from heretic.console import Console
from heretic.exceptions import StudyError
from heretic.phases import loading, steps
from heretic.phases.findings_store import stored_extraction
from heretic.phases.optimization import fingerprint, search_together
from heretic.phases.state import Run
from heretic.stop import StopFlag
from heretic.study.runner import StudyOutcome
from heretic.study.sharing import Terms, join_study
from heretic.study.types import Scores, TrialFailure

DIRECTIONS_WAIT_S: Final = 900.0
"""A worker that starts together with the run may load its model faster than the run finds directions."""

POLL_S: Final = 2.0


def work(
    resolved: Resolved,
    *,
    console: Console,
    stop: StopFlag,
    on_told: Callable[[int, Scores | TrialFailure], None],
    parent: int | None = None,
) -> StudyOutcome:
    """Load what the run loaded, check that it is the same, and search with it until the study is complete.

    on_told: called with each result of this worker that was accepted. parent: process id of the run that
    started this worker; when that has ended this one ends after its batch. Raises `FingerprintMismatchError`
    listing what differs, `StudyNotFoundError`, and what a run raises.
    """
    # Whether to search at all was decided by the run.
    settings = resolved.settings.model_copy(update={"allow_zero_baseline": True})
    run = Run(replace(resolved, settings=settings), console, stop)
    with run.phase("preflight", "Checking model files and memory"):
        source = loading.find_model(settings)
        loading.check_memory(settings, source)
    run.bundle = steps.load_prompts(run)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    terms = Terms(settings.n_trials, settings.lease_seconds, settings.max_trial_retries)
    with join_study(
        settings.storage, settings.study_name, fingerprint=fingerprint(run), terms=terms
    ) as run.study:
        _follow_plan(run)

        def ended() -> bool:
            return bool(stop) or (parent is not None and os.getppid() != parent)

        _await_directions(run, ended)
        run.context = steps.plan_context(run)
        return search_together(run, run.study, stop=ended, on_told=on_told)


def _follow_plan(run: Run) -> None:
    """The sampler and its start-up are the study's; their defaults depend on settings that only the run knows."""
    assert run.study is not None
    stored: Mapping[str, Any] | None = run.study.stored("plan")
    if stored is not None:
        plan = {name: stored["search"][name] for name in ("sampler", "n_startup_trials")}
        run.resolved = replace(run.resolved, settings=run.settings.model_copy(update=plan))


def _await_directions(run: Run, ended: Callable[[], bool]) -> None:
    assert run.study is not None
    deadline = time.monotonic() + DIRECTIONS_WAIT_S
    while (found := stored_extraction(run.study)) is None:
        if ended() or time.monotonic() >= deadline:
            raise StudyError(
                f"The study {run.study.name!r} has no directions yet, so there is nothing to search with.",
                hint="Start the run that makes it first (heretic MODEL); workers join it.",
            )
        time.sleep(POLL_S)
    run.extraction = found
