# SPDX-License-Identifier: Apache-2.0
"""Everything the run measured, put into one `RunReport`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from heretic.config import public_settings
from heretic.config.settings import redact as hide_secret
from heretic.evaluator import Outcome
from heretic.exceptions import StorageError
from heretic.phases.choice import Confirmed, separability, trial_reports
from heretic.phases.confirmation import Confirmation, examples
from heretic.phases.environment import versions
from heretic.phases.evaluation import measurement, rate_from
from heretic.phases.model_saving import Saved
from heretic.phases.report_store import store_report
from heretic.phases.scoring import identities
from heretic.phases.state import Run
from heretic.phases.verdict import Verdict, verdict
from heretic.report import CategoryRate, Example, Measurement, Rate, RunReport, TrialReport
from heretic.scorers.protocol import Judgement
from heretic.study.runner import StudyOutcome
from heretic.study.selection import Selection
from heretic.validation.report import ValidationReport
from heretic.validation.view import figure_rows


@dataclass(slots=True, eq=False)
class Result:
    """What the last steps made; each may be missing when the run ended early.

    random: the control of random directions. edited: what was measured on the held-out prompts where there was no
    search, and so no finalist.
    """

    outcome: StudyOutcome
    confirmation: Confirmation
    confirmed: Sequence[Confirmed] = ()
    selection: Selection | None = None
    saved: Saved | None = None
    uploaded: str | None = None
    controls: Mapping[str, Measurement] = field(default_factory=dict)
    random: Outcome | None = None
    validation: ValidationReport | None = None
    edited: tuple[Outcome, Measurement] | None = None
    chosen: TrialReport | None = None
    front: Sequence[TrialReport] = field(default_factory=list)


def fill_front(run: Run, result: Result) -> None:
    """Turn the trials into reports and mark the chosen one."""
    result.front = trial_reports(run, result.confirmation, result.outcome.finished, result.confirmed)
    winner = None if result.selection is None else result.selection.winner
    if winner is not None:
        result.chosen = next(trial for trial in result.front if trial.trial == winner.index)


def build_report(run: Run, result: Result, status: str) -> RunReport:
    """The report of a run in its present state."""
    model, bundle, baseline = run.model, run.bundle, run.baseline
    assert model is not None and bundle is not None and baseline is not None
    selection, saved = result.selection, result.saved
    total, search = time.monotonic() - run.started, run.seconds.get("search", 0.0)
    measured_here = max(1, run.trials_here)
    timings = {
        "total_s": round(total, 3),
        "search_s": round(search, 3),
        "trials": len(result.outcome.finished),
        "trials_here": run.trials_here,
        "per_trial_s": round(search / measured_here, 4),
        "first_trial_s": round(run.first_trial_s, 3),
    }
    return RunReport(
        status=status,
        model=model.source.name,
        behaviour=run.resolved.behaviour.name,
        goal=run.settings.goal,
        strategy=run.settings.strategy,
        study=_study(run, result),
        settings=public_settings(run.resolved),
        baseline=baseline_of(run, result),
        search_baseline=measurement("search", baseline.outcome, None, None, inverted=run.induces),
        noise_floor=result.confirmation.floor,
        front=list(result.front),
        chosen=result.chosen,
        reason="" if selection is None else selection.reason,
        separable="" if selection is None else separability(selection),
        verified=None if saved is None else saved.verified,
        verification={} if saved is None else dict(saved.checks),
        output=None if saved is None else str(saved.folder),
        uploaded=result.uploaded,
        timings=timings,
        phases={name: round(value, 3) for name, value in run.seconds.items()},
        degradations=list(run.degradations),
        coverage=coverage(run),
        data=bundle.records(),
        environment=versions(),
        examples=example_replies(result),
        categories=category_rates(run, result),
        controls=dict(result.controls),
        scorers=identities(run),
        validation=validation_document(result),
        verdict=asdict(chosen_verdict(result)),
        next_command=next_command(run, result),
    )


def _study(run: Run, result: Result) -> Mapping[str, object]:
    """The study in figures; empty where nothing was searched."""
    if run.study is None:
        return {}
    return {
        "name": run.study.name,
        "storage": hide_secret("storage", run.settings.storage),
        "trials": len(result.outcome.finished),
        "failed": len(result.outcome.failed),
        "ended": result.outcome.reason,
    }


def baseline_of(run: Run, result: Result) -> Measurement:
    """The base on the prompts on which the chosen trial was judged."""
    confirmation = result.confirmation
    if confirmation.base_measured is not None:
        return confirmation.base_measured
    assert run.baseline is not None
    return measurement("search", run.baseline.outcome, None, None, inverted=run.induces)


def coverage(run: Run) -> Mapping[str, object]:
    """The coverage report's totals and its rows that are not plainly reachable (requirements R-MOD-30)."""
    assert run.model is not None
    architecture = run.model.architecture
    return {
        "family": architecture.family,
        "share": architecture.covered_share(),
        "writers": len(architecture.sites),
        "components": list(architecture.components),
        "skipped": [
            f"{row.path}: {row.status}" for row in architecture.coverage if row.status != "reachable"
        ],
    }


def keep_report(run: Run, result: Result, report: RunReport) -> None:
    """The report into the study, for its page; a report that cannot be kept is no failure of the run."""
    if run.study is None:
        return
    sites = () if result.saved is None else [site.as_dict() for site in result.saved.sites]
    try:
        note = store_report(run.study, report.to_document(), sites)
    except StorageError as error:
        note = f"The report is not kept in the study: {error.message}"
    if note:
        run.console.warn(note)


def validation_document(result: Result) -> dict[str, object]:
    """The validation report with its figures as they are shown; empty where none was made."""
    found = result.validation
    return {} if found is None else {**found.to_document(), "figures": figure_rows(found)}


def chosen_verdict(result: Result) -> Verdict:
    """Whether the chosen trial was worth editing, by its held-out figures."""
    entry, edited = chosen_entry(result), result.edited
    if entry is not None:
        edited = entry.outcome, entry.measurement
    if edited is None:
        return verdict(None, None)
    return verdict(result.confirmation.base, edited[0], result.random, edited[1].guards)


def chosen_entry(result: Result) -> Confirmed | None:
    """The chosen trial among the finalists."""
    chosen = result.chosen
    return next((e for e in result.confirmed if chosen is not None and e.trial.index == chosen.trial), None)


def example_replies(result: Result) -> list[Example]:
    """Three prompts with both replies."""
    confirmation, entry = result.confirmation, chosen_entry(result)
    if entry is None or confirmation.base is None:
        return []
    return examples([prompt.text for prompt in confirmation.bad], confirmation.base, entry.outcome)


def category_rates(run: Run, result: Result) -> list[CategoryRate]:
    """The behaviour by category of prompt, base and chosen trial; empty without categories or held-out figures."""
    confirmation, entry = result.confirmation, chosen_entry(result)
    names = [prompt.category for prompt in confirmation.bad]
    if entry is None or confirmation.base is None or None in names or len(set(names)) < 2:
        return []

    def rate(name: str | None, judged: Sequence[Judgement]) -> Rate:
        found = rate_from([own for own, of in zip(judged, names, strict=True) if of == name])
        return found.complement if run.induces else found

    before, after = confirmation.base.judged, entry.outcome.judged
    return [CategoryRate(str(name), rate(name, before), rate(name, after)) for name in dict.fromkeys(names)]


def next_command(run: Run, result: Result) -> str:
    """The next useful command (requirements R-CLI-27)."""
    if result.saved is not None:
        return shlex.join(["heretic", "chat", str(result.saved.folder)])
    name = run.settings.study_name if run.study is None else run.study.name
    words = ["heretic", "export", name, "--trial", "auto", "--model", run.settings.model]
    if "storage" in run.resolved.explicit:
        words += ["--storage", str(run.settings.storage)]
    return (
        shlex.join(words)
        if run.settings.storage
        else shlex.join(["heretic", run.settings.model, "--auto-select"])
    )
