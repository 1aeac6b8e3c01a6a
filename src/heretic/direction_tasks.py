# SPDX-License-Identifier: Apache-2.0
"""What `heretic extract` and `heretic apply` do: the directions of a model as a file, and files as an edit that nobody
searched for (requirements R-CLI-05, R-CLI-06). Each is callable from a script."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from heretic.config import Resolved
from heretic.console import Console
from heretic.directions.file import TEXT_LIMIT, DirectionFile, require_free_name, save_directions
from heretic.evaluator import Outcome
from heretic.exceptions import AbliterationError, ConfigurationError, FileOperationError
from heretic.export.naming import public_model_id
from heretic.linalg.geometry import LayerGeometry, geometry_table
from heretic.phases import loading, steps
from heretic.phases.application import NOT_IN_FILES, Application, require_model, without_search
from heretic.phases.confirmation import Confirmation, examples
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.environment import versions
from heretic.phases.method import captures_of
from heretic.phases.model_saving import ChosenEdit, common_facts, plain_measurement
from heretic.phases.optimization import fingerprint
from heretic.phases.publication import measure_controls, save_edit, upload
from heretic.phases.reporting import Result, build_report
from heretic.phases.state import Run
from heretic.report import Measurement, RunReport
from heretic.report_view import divergence_text, rate_text
from heretic.stop import StopFlag
from heretic.study.runner import StudyOutcome

SOURCES: Final = ("difference", "probe", "ensemble")
"""All sources of a direction there are; which of them a model has is known after the extraction."""
DIRECTION_SETS: Final = ("bad", "good", "helpfulness", "unhelpfulness", "sacred", "sacred_baseline")
"""Prompt sets that decide the directions."""

# Extraction


@dataclass(frozen=True, slots=True, eq=False)
class Extracted:
    """A saved direction file. source: which of `sources` it holds; these are those that survived, the default first.
    geometry: one record a layer, of the residuals as they are."""

    path: Path
    file: DirectionFile
    source: str
    sources: tuple[str, ...]
    geometry: tuple[LayerGeometry, ...]
    warnings: tuple[str, ...]
    degradations: tuple[str, ...]


def require_extraction(
    resolved: Resolved,
    path: Path,
    *,
    name: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
) -> str:
    """What the directions will be called. Raises what `extract_directions` raises before anything is loaded."""
    require_free_name(path, overwrite=overwrite)
    parent = loading.existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        finding = "cannot be written" if parent.is_dir() else "is a file"
        raise FileOperationError(f"{path} cannot be made: {parent} {finding}.", hint="Name another place.")
    name = resolved.behaviour.name if name is None else name
    if not 0 < len(name) <= TEXT_LIMIT:
        raise ConfigurationError(
            f"--name has {len(name)} characters, 1 to {TEXT_LIMIT} are possible.", hint="Choose a short name."
        )
    if source not in (None, *SOURCES):
        raise ConfigurationError(f"--source is {source!r}.", hint=f"Use one of {', '.join(SOURCES)}.")
    return name


def extract_directions(
    resolved: Resolved,
    path: Path,
    *,
    name: str | None = None,
    source: str | None = None,
    overwrite: bool = False,
    console: Console,
) -> Extracted:
    """The first steps of a run, up to its directions, which are saved as `path` (see `directions.file`).

    name: what they are called, the behaviour unless given. source: which of the candidate sources is saved, the first
    unless given. Raises the errors of a run, and before anything is loaded those of `require_free_name`,
    `ConfigurationError` for a name or source that cannot be, `FileOperationError` for a place that cannot be written.
    """
    name = require_extraction(resolved, path, name=name, source=source, overwrite=overwrite)
    run = Run(without_search(resolved, auto_select=False, hf_upload=None), console, StopFlag())
    steps.announce(run)
    if run.settings.strategy in ("heads", "caa"):
        console.note(f"Only the directions are saved: {NOT_IN_FILES[run.settings.strategy]}.")
    steps.begin(run)
    captures = captures_of(run)
    captures.keep = True
    result = run.extraction = steps.extract_without_study(run, captures)
    source = next(iter(result.findings.sources)) if source is None else source
    file = direction_file(run, result, name, source)
    save_directions(path, file, overwrite=overwrite)
    assert run.bundle is not None
    with run.phase("geometry", "Measuring the two classes layer by layer"):
        target, control = (captures.residuals(entry.prompts) for entry in (run.bundle.bad, run.bundle.good))
        geometry = geometry_table(target, control, torch.Generator().manual_seed(run.settings.seed))
    return Extracted(
        path=path,
        file=file,
        source=source,
        sources=tuple(result.findings.sources),
        geometry=geometry,
        warnings=result.warnings,
        degradations=tuple(run.degradations),
    )


def direction_file(run: Run, result: DirectionExtractionResult, name: str, source: str) -> DirectionFile:
    """What was extracted from one source, as the record of a file.

    A file has one weight for each component, while those of a run differ from layer to layer: the weights are those of
    the layer that separates best among the layers that have all components. Raises `ConfigurationError` for a source
    that did not survive.
    """
    model, bundle, findings = run.model, run.bundle, result.findings
    assert model is not None and bundle is not None
    if source not in findings.sources:
        raise ConfigurationError(
            f"There are no directions from the source {source!r} here.",
            hint=f"Found: {', '.join(findings.sources)}. Whether others are tried is decided by "
            "--use-supervised-probing and --ensemble-probe-pca.",
        )
    bank = findings.sources[source]
    records = bundle.records()
    program = versions()["heretic-workbench"] or "of unknown version"
    return DirectionFile(
        bank=bank,
        name=name,
        behaviour=run.resolved.behaviour.name,
        goal=run.settings.goal,
        method=str(bank.provenance.get("method", source)),
        component_weights=_component_weights(result, bank.components),
        auroc=result.auroc,
        effect_size=result.effect_size,
        model=public_model_id(model.source.name),
        revision=model.source.commit,
        data={entry: str(records[entry]["content_hash"]) for entry in DIRECTION_SETS if entry in records},
        source=f"heretic-workbench {program}, extract, strategy {run.settings.strategy}, source {source}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _component_weights(result: DirectionExtractionResult, components: int) -> tuple[float, ...]:
    table, bank = result.findings.weights, result.bank
    if table is None or components != bank.components:
        return (1.0,) * components
    whole = [layer for layer in range(bank.layers) if bank.count_at(layer) == components]
    best = max(whole, key=lambda layer: result.effect_size[layer])
    return tuple(float(weight) for weight in table[best])


# Application


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """A saved model. measured: the edit before it was written. strengths: parameter path -> those really applied."""

    report: RunReport
    measured: Measurement
    strengths: Mapping[str, Sequence[float]]


def apply_directions(application: Application, *, console: Console) -> Applied:
    """Make the planned edit, measure it on the held-out prompts, save it, load it again and measure the saved files.

    Raises the errors of a run and of `phases.model_saving.save_model_local`; `AbliterationError` when the edited model
    gives no finite probabilities.
    """
    run = Run(application.resolved, console, StopFlag())
    steps.announce(run)
    for note in (*application.notes, *application.basis.dropped):
        console.warn(note)
        run.degradations.append(note)
    steps.begin(run)
    assert run.model is not None
    for part in application.parts:
        require_model(part.file, run.model.architecture, run.model.source.basename)
    run.context = steps.context_of(run.settings, run.model.architecture, application.findings)
    plan = run.plan(application.parameters)
    chosen = ChosenEdit(plan.edits(run.writers), plan.effective_strengths(), application.command)
    confirmation, outcome, measured = _measured(run, chosen)
    result = Result(StudyOutcome((), {}, "finished"), confirmation, edited=(outcome, measured))
    measure_controls(run, result, plan)
    reason = f"applied, not searched: {application.command}"
    facts = {
        **common_facts(run, confirmation),
        **_facts(run, application, chosen, measured),
        "selection": reason,
    }
    result.saved = save_edit(run, chosen, confirmation, facts)
    if run.settings.hf_upload is not None:
        upload(run, result, run.settings.hf_upload)
    assert confirmation.base is not None
    shown = examples([prompt.text for prompt in confirmation.bad], confirmation.base, outcome)
    report = replace(build_report(run, result, "complete"), reason=reason, examples=shown)
    return Applied(report, measured, chosen.strengths)


def _measured(run: Run, chosen: ChosenEdit) -> tuple[Confirmation, Outcome, Measurement]:
    confirmation = Confirmation(run)
    with run.phase("confirmation", "Measuring the edit on held-out prompts") as phase:
        base = confirmation.measure_base()
        outcome, measured = confirmation.measure_trials([chosen.edits])[0]
        if outcome.status != "complete":
            raise AbliterationError(
                f"The edited model cannot be measured: {outcome.reason}.", hint="Use a smaller --strength."
            )
        shown = rate_text(measured.behaviour)
        phase.result(f"base {rate_text(base.behaviour)}, edited {shown}, KL {divergence_text(measured.kl)}")
    if not confirmation.held_out:
        run.degradations.append("no held-out prompts: the figures are those of the evaluation prompts")
        run.console.warn("No held-out prompts could be loaded; the evaluation prompts stand in.")
    broken = [name for name, value in measured.guards.items() if value > 0]
    if broken:
        run.console.warn(
            f"The edit breaks the replies more often than the base does ({', '.join(broken)}).",
            "Use a smaller --strength, or leave out part of the depth with --half-width.",
        )
    return confirmation, outcome, measured


def _facts(
    run: Run, application: Application, chosen: ChosenEdit, measured: Measurement
) -> dict[str, object]:
    """Sections of the manifest on where the edit comes from."""
    files = [
        {
            "file": part.name,
            "sha256": part.sha256,
            "scale": part.scale,
            "name": part.file.name,
            "behaviour": part.file.behaviour,
            "model": part.file.model,
            "revision": part.file.revision,
        }
        for part in application.parts
    ]
    return {
        "fingerprint": fingerprint(run),
        "directions": {
            "method": "files",
            "files": files,
            "dropped": list(application.basis.dropped),
            "command": application.command,
        },
        "trial": {
            "index": None,
            "parameters": dict(application.parameters),
            "strengths": {path: list(values) for path, values in chosen.strengths.items()},
        },
        "scores": {"held_out": plain_measurement(measured)},
    }
