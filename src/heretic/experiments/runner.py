# SPDX-License-Identifier: Apache-2.0
"""One experiment from beginning to end: prepare, the main flow with its pack, measure, write (R-XPT-03)."""

from __future__ import annotations

import gc
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heretic import main
from heretic.config import Resolved
from heretic.console import Console
from heretic.constants import HIDDEN_MANIFEST
from heretic.demo import model_path
from heretic.exceptions import ConfigurationError
from heretic.experiments import evaluation, prepare, report
from heretic.experiments.catalogue import bound
from heretic.experiments.evaluation import Measured, Scene
from heretic.experiments.figures import Figure, figures
from heretic.experiments.prepare import Row
from heretic.experiments.results import BASE, EDITED, ModelName, Results, judge, write_results
from heretic.experiments.workspace import Workspace
from heretic.export.manifest import read_manifest
from heretic.export.naming import public_model_id
from heretic.interventions.placement import Parameters
from heretic.model.model import Model
from heretic.phases.environment import versions
from heretic.publish import write_file
from heretic.report import RunReport
from heretic.stop import StopFlag


@dataclass(frozen=True, slots=True)
class Trial:
    """The chosen trial: number, parameters, and the saved folder, None where nothing was saved."""

    index: int
    parameters: Parameters
    folder: Path | None

    def record(self) -> dict[str, object]:
        """As results keep it."""
        return {"index": self.index, "parameters": dict(self.parameters)}


def require_suppress(resolved: Resolved) -> None:
    """Raise `ConfigurationError` for the goal `induce`: the targets are about less of a behaviour."""
    if resolved.settings.goal != "suppress":
        raise ConfigurationError(
            f"goal is {resolved.settings.goal!r}, and the targets of experiments are about less of a behaviour.",
            hint="Use 'heretic MODEL --goal induce' with the pack.",
        )


def run(
    workspace: Workspace, resolved: Resolved, *, console: Console, stop: StopFlag
) -> tuple[RunReport, Results | None]:
    """The main flow, then the measurement of its trial; None where no trial was chosen or time is short.

    The workspace has been prepared and `resolved` names its pack. Raises what `heretic.main.run` raises.
    """
    require_suppress(resolved)
    found = main.run(resolved, console=console, stop=stop)
    if found.chosen is None or stop:
        return found, None
    gc.collect()  # the run's model has to be gone before the next is loaded
    folder = None if found.output is None else Path(found.output)
    trial = Trial(found.chosen.trial, dict(found.chosen.parameters), folder)  # type: ignore[arg-type]  # scalars
    return found, evaluate_trial(workspace, resolved, trial, console=console, stop=stop)


def evaluate_trial(
    workspace: Workspace, resolved: Resolved, trial: Trial, *, console: Console, stop: StopFlag
) -> Results:
    """Base and trial from one load, measured and written to the workspace."""
    scene = evaluation.open_scene(resolved, console=console, stop=stop)
    plan = evaluation.plan_of(scene, trial.parameters)
    scene = evaluation.with_length(scene, workspace.experiment.tokens)
    measured = evaluation.measure_edit(scene, plan, _instruction(resolved))
    results = _results(workspace, scene, measured, trial=trial, manifest=_manifest(trial.folder))
    return _written(workspace, results)


def evaluate_pair(
    workspace: Workspace, first: Resolved, second: Resolved, *, console: Console, stop: StopFlag
) -> Results:
    """Two models, one after the other, on the held-out prompts (`evaluate --original A --modified B`)."""
    require_suppress(first)
    scene = evaluation.open_scene(first, console=console, stop=stop)
    tokens = workspace.experiment.tokens
    scene = evaluation.with_length(scene, tokens)
    limited = replace(second, settings=second.settings.model_copy(update={"max_response_length": tokens}))
    measured, other = evaluation.measure_other(scene, limited, _instruction(first))
    folder = Path(second.settings.model)
    trial = _stored_trial(folder)
    results = _results(workspace, scene, measured, trial=trial, manifest=_manifest(folder), modified=other)
    return _written(workspace, results)


def write_report(workspace: Workspace, results: Results) -> str:
    """The tables; also put between the marks of the workspace's page, where it has one."""
    tables = report.render(workspace.experiment, results)
    if workspace.readme.is_file():
        page = workspace.readme.read_text(encoding="utf-8")
        write_file(workspace.readme, report.replaced(page, tables).encode("utf-8"))
    return tables


def report_command(workspace: Workspace) -> str:
    """The next useful command."""
    words = [
        "heretic",
        "experiment",
        "report",
        workspace.experiment.name,
        "--out",
        workspace.folder.as_posix(),
    ]
    return shlex.join(words)


def _instruction(resolved: Resolved) -> str:
    return resolved.behaviour.header.instructions.get("suppress", "")


def _manifest(folder: Path | None) -> str | None:
    """SHA-256 of a saved folder's manifest."""
    file = None if folder is None else folder / HIDDEN_MANIFEST
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None


def _stored_trial(folder: Path) -> Trial | None:
    """The trial that a saved folder says it is; None for any other model."""
    if not (folder / HIDDEN_MANIFEST).is_file():
        return None
    found = read_manifest(folder).get("trial")
    if not isinstance(found, Mapping) or not isinstance(found.get("index"), int):
        return None
    parameters = found.get("parameters")
    return Trial(found["index"], dict(parameters) if isinstance(parameters, Mapping) else {}, folder)


def _rows(scene_prompts: Sequence[str], known: Sequence[Row], label: str) -> list[Row]:
    """The rows of the held-out prompts, found by their text; a prompt of the user's own has a bare row."""
    by_text = {row.prompt: row for row in known if row.label == label}
    return [
        by_text.get(text, Row(f"{label}-{place:03d}", f"{label}-{place:03d}", label, "test", text))
        for place, text in enumerate(scene_prompts, 1)
    ]


def _known_rows(workspace: Workspace) -> list[Row]:
    quick = workspace.folder / "data" / "quick.jsonl"
    return [*workspace.plan().rows, *(workspace.quick_rows() if quick.is_file() else [])]


def _results(
    workspace: Workspace,
    scene: Scene,
    measured: Measured,
    *,
    trial: Trial | None,
    manifest: str | None,
    modified: Model | None = None,
) -> Results:
    experiment, run = workspace.experiment, scene.run
    known = _known_rows(workspace)
    rows = {
        "bad": _rows([prompt.text for prompt in scene.bad], known, "bad"),
        "good": _rows([prompt.text for prompt in scene.good], known, "good"),
    }
    found: list[Figure] = []
    for prompts, replies in (("bad", measured.bad), ("good", measured.good)):
        sides = {side: own for side, own in replies.items() if side != BASE}
        found += figures(
            experiment.metrics, rows[prompts], replies[BASE], sides,
            prompts=prompts, groups=experiment.groups, seed=run.settings.seed,
        )  # fmt: skip
    kl = measured.kl.get(EDITED)
    assert run.scorer is not None
    return Results(
        experiment=experiment.name,
        planted=workspace.planted,
        model=_named(scene.model),
        modified=None if modified is None else _named(modified),
        n={name: len(own) for name, own in rows.items()},
        tokens=scene.limit,
        seed=run.settings.seed,
        data=prepare.digest([*rows["bad"], *rows["good"]]),
        pack=run.resolved.behaviour.sha256,
        scorer=run.scorer.name,
        objective=dict(measured.objective),
        figures=found,
        kl=measured.kl,
        noise_floor=measured.floor,
        conditions=measured.conditions,
        target=judge(found, experiment.target, bound=bound(experiment), kl=None if kl is None else kl["mean"]),
        trial=None if trial is None else trial.record(),
        manifest=manifest,
        replies=_replies(rows, measured),
        versions=versions(),
        notes=[*measured.notes, *run.degradations],
    )  # fmt: skip


def _named(model: Model) -> ModelName:
    bundled = model.source.path.resolve() == model_path().resolve()
    name = "the demo model" if bundled else public_model_id(model.source.name)
    return ModelName(name, model.source.commit, model.dtype)


def _replies(rows: Mapping[str, Sequence[Row]], measured: Measured) -> list[dict[str, str]]:
    sides = {"bad": measured.bad, "good": measured.good}
    return [
        {"id": row.id, "prompt": row.prompt, **evaluation.by_prompt(sides[label], place)}
        for label, own in rows.items()
        for place, row in enumerate(own)
    ]


def _written(workspace: Workspace, results: Results) -> Results:
    write_results(workspace.results, results)
    write_report(workspace, results)
    return results
