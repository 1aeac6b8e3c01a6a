# SPDX-License-Identifier: Apache-2.0
"""All that a study knows about itself, read without a model into one record of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace

from heretic.apps.report_page.importance import ObjectiveImportance, importances
from heretic.apps.report_page.reading import mapping, number, sequence, text
from heretic.exceptions import StudyCorruptError
from heretic.phases.choice import search_measurement, strengths_of
from heretic.phases.findings_store import stored_extraction
from heretic.phases.report_store import ResidualView, StoredReport, stored_report, stored_residual_view
from heretic.report import TrialReport, flat_trial
from heretic.study.catalogue import StudySummary, list_studies, load_finished
from heretic.study.selection import front_of
from heretic.study.sharing import visit_study
from heretic.study.state import Study
from heretic.study.types import FinishedTrial

NO_REPORT = "The run that made this study has not ended, or was made before reports were kept"


@dataclass(frozen=True, slots=True)
class Point:
    """A trial whose rate and KL were both measured in full, on the prompts of the search. kept: no guard is broken."""

    trial: int
    rate: float
    kl: float
    kept: bool


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer; what was not kept is None. The fields are those of `LayerFigures`."""

    layer: int
    auroc: float
    effect_size: float
    stability: float
    target_norm: float | None = None
    control_norm: float | None = None
    difference_norm: float | None = None
    mean_cosine: float | None = None
    previous_cosine: float | None = None
    silhouette: float | None = None


@dataclass(frozen=True, slots=True)
class PageRecord:
    """One study.

    document: of the last run that ended; empty where none was kept. front, chosen: trials in the form of the document,
    from the trials themselves where there is none. notes: what the extraction warned of. missing: what the page lacks,
    one sentence each.
    """

    name: str
    summary: StudySummary
    points: tuple[Point, ...] = ()
    cut_short: int = 0
    failures: Mapping[int, str] = field(default_factory=dict)
    document: Mapping[str, object] = field(default_factory=dict)
    certificate: tuple[Mapping[str, object], ...] = ()
    front: tuple[Mapping[str, object], ...] = ()
    layers: tuple[LayerRow, ...] = ()
    view: ResidualView | None = None
    importance: tuple[ObjectiveImportance, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def chosen(self) -> Mapping[str, object]:
        """The chosen trial; empty where none was chosen."""
        return mapping(self.document.get("chosen"))

    @property
    def made_with(self) -> Mapping[str, object]:
        """The settings that decide a score, from the fingerprint."""
        return mapping(mapping(self.summary.fingerprint).get("settings"))

    def fact(self, key: str) -> str:
        """`model`, `behaviour`, `goal` or `strategy`, from the document, else from the fingerprint."""
        fingerprint = mapping(self.summary.fingerprint)
        value = self.document.get(key) or fingerprint.get(key) or self.made_with.get(key)
        return text(mapping(value).get("name") if isinstance(value, Mapping) else value)

    @property
    def induces(self) -> bool:
        """The goal is more of the behaviour."""
        return self.fact("goal") == "induce"

    @property
    def best_layer(self) -> int | None:
        """The layer with the largest effect size."""
        return max(self.layers, key=lambda row: row.effect_size).layer if self.layers else None


def gather(storage: str | None, name: str) -> PageRecord:
    """The record of a stored study; changes nothing. Raises `StudyNotFoundError` naming near ones, `StorageError`."""
    summary = next((study for study in list_studies(storage) if study.name == name), None)
    trials = load_finished(storage, name)
    assert summary is not None
    missing: list[str] = []
    with closing(visit_study(storage, name)) as study:
        report = _report(study, missing)
        view, rows, notes = _residuals(study, missing)
        plan = mapping(study.stored("plan"))
        failures = study.failed_trials()
    document = report.document
    goal = document.get("goal") or mapping(mapping(summary.fingerprint).get("settings")).get("goal")
    induces = goal == "induce"
    points = tuple(point for trial in trials if (point := _point(trial, induces)) is not None)
    return PageRecord(
        name=name,
        summary=summary,
        points=points,
        cut_short=len(trials) - len(points),
        failures=failures,
        document=document,
        certificate=report.certificate,
        front=_front(document, trials, induces),
        layers=rows,
        view=view,
        importance=importances(trials, mapping(plan.get("search")).get("space")),
        notes=notes,
        missing=tuple(missing),
    )


def _report(study: Study, missing: list[str]) -> StoredReport:
    try:
        found = stored_report(study)
    except StudyCorruptError as error:
        missing.append(f"{error.message} So there is no choice, no example and no certificate.")
        return StoredReport({}, ())
    if found is None:
        missing.append(f"{NO_REPORT}: no choice, no held-out figures, no examples, no certificate.")
    return found or StoredReport({}, ())


def _residuals(
    study: Study, missing: list[str]
) -> tuple[ResidualView | None, tuple[LayerRow, ...], tuple[str, ...]]:
    """The kept view of the residuals; figures of the stored directions where there is none."""
    view: ResidualView | None = None
    rows: tuple[LayerRow, ...] = ()
    notes: tuple[str, ...] = ()
    try:
        view = stored_residual_view(study)
    except StudyCorruptError as error:
        missing.append(error.message)
    try:
        found = stored_extraction(study)
    except StudyCorruptError as error:
        missing.append(error.message)
        found = None
    except (KeyError, TypeError) as error:
        missing.append(f"The note about the stored directions is damaged ({type(error).__name__}).")
        found = None
    if found is not None:
        notes = (*found.warnings, *found.degradations)
        figures = zip(found.auroc, found.effect_size, found.stability, strict=False)
        rows = tuple(LayerRow(layer, *values) for layer, values in enumerate(figures))
    if view is not None:
        rows = tuple(LayerRow(**asdict(figures)) for figures in view.layers)
    elif rows:
        missing.append("Residuals were not kept: no projections, and the geometry table has gaps.")
    else:
        missing.append("No directions were kept: no figures by layer.")
    return view, rows, notes


def _point(trial: FinishedTrial, induces: bool) -> Point | None:
    measured = trial.scores.measured
    rate, kl = number(measured.get("rate")), number(measured.get("kl_mean"))
    if rate is None or kl is None:
        return None
    return Point(trial.index, 1.0 - rate if induces else rate, kl, trial.scores.feasible)


def _front(
    document: Mapping[str, object], trials: Sequence[FinishedTrial], induces: bool
) -> tuple[Mapping[str, object], ...]:
    """The front of the document, or that of the trials with their figures of the search."""
    stored = tuple(mapping(entry) for entry in sequence(document.get("front")) if mapping(entry))
    if stored:
        return stored
    return tuple(flat for trial in front_of(trials) if (flat := _flat(trial, induces)))


def _flat(trial: FinishedTrial, induces: bool) -> Mapping[str, object]:
    """A trial in the form of the document; empty where what it measured is of another form than ours."""
    try:
        search = replace(search_measurement(trial), inverted=induces)
        strengths = strengths_of(trial)
    except (ValueError, TypeError, OverflowError):
        return {}
    report = TrialReport(trial.index, dict(trial.parameters), search, strengths=strengths)
    return flat_trial(report)
