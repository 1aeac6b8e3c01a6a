# SPDX-License-Identifier: Apache-2.0
"""Step 10 of the flow: write the chosen edit, load it again, measure it, and only then call it saved."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heretic.config import recorded_settings
from heretic.decoding import choose_engine
from heretic.exceptions import SaveVerificationError
from heretic.export.card import CardFacts, CardRow, Measured, build_card
from heretic.export.certificate import SiteRecord
from heretic.export.edits_file import save_edits
from heretic.export.folder import ModelFiles, inspect_folder
from heretic.export.manifest import build_manifest, manifest_bytes
from heretic.export.naming import output_folder, output_name
from heretic.export.shards import PatchReport, patch_model
from heretic.export.trace import trace_sites
from heretic.export.upload import upload_model
from heretic.export.verify import verify_folder
from heretic.interventions.hooks import Edits, Rows, applied
from heretic.interventions.probe import probe
from heretic.model.loading import load_model
from heretic.model.model import Model
from heretic.model.source import ModelSource
from heretic.phases.confirmation import Confirmation
from heretic.phases.environment import versions
from heretic.phases.loading import load_options
from heretic.phases.state import Run
from heretic.publish import StagedFolder, staged_folder
from heretic.report import Measurement, Rate, TrialReport

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIT_TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2.5e-1}
"""Largest logit difference between hook form and reloaded weights, by dtype of the files: one cast lies between."""

NOT_MEASURED = (
    "Knowledge and reasoning benchmarks.",
    "Behaviour in languages and formats other than those of the prompts.",
    "Long conversations and tool use.",
)


@dataclass(frozen=True, slots=True)
class Saved:
    """A published model folder. verified: measured from the reloaded files; checks: what was compared, with values."""

    folder: Path
    verified: Measurement
    checks: Mapping[str, object]
    sites: tuple[SiteRecord, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ChosenEdit:
    """What is saved. strengths: parameter path -> strengths really applied; command: what makes it again."""

    edits: Edits
    strengths: Mapping[str, Sequence[float]]
    command: str


def trial_edit(run: Run, trial: TrialReport) -> ChosenEdit:
    """The edit of a trial."""
    settings, model = run.settings, run.model
    assert model is not None
    return ChosenEdit(
        edits=run.edits(trial.parameters),  # type: ignore[arg-type]  # parameters are JSON scalars
        strengths=trial.strengths,
        command=f"heretic {model.source.basename} --seed {settings.seed} --n-trials {settings.n_trials}",
    )


def chosen_folder(run: Run) -> Path:
    """Where the output goes (requirements R-OUT-01, R-OUT-02)."""
    settings = run.settings
    name = output_name(settings.model, run.resolved.behaviour.name, settings.goal)
    path = settings.auto_select_path
    # A trailing slash says "the parent"; a path object has lost it, so the words of the user are asked.
    stated = None if path is None else str(path)
    return output_folder(stated, name)


def save_model_local(
    run: Run,
    chosen: ChosenEdit,
    confirmation: Confirmation,
    facts: Mapping[str, object],
    folder: Path | None = None,
) -> Saved:
    """Patch the source's shards with the edits, reload, re-measure, publish.

    facts: sections of the manifest that only the caller knows. Raises `SaveVerificationError` when the reloaded model
    is not the evaluated one; then nothing is published. Also `OutputExistsError`, `DiskSpaceError`, `ExportError`.
    """
    model = run.model
    assert model is not None
    edits = chosen.edits
    files = inspect_folder(model.source.path)
    targets = trace_sites(model.network, list(edits), files, compare_values=model.quantization == "none")
    target = folder or chosen_folder(run)
    with staged_folder(target, overwrite=run.settings.overwrite, needed_bytes=files.total_bytes) as staging:
        protected = protected_directions(run)
        report = patch_model(files, staging.path, edits, targets, protected=protected)
        reloaded = reload(run, staging.path)
        checks = compare(model, reloaded, edits, confirmation)
        outcome, verified = confirmation.measure_other(
            reloaded, choose_engine(reloaded, run.settings.engine)[0]
        )
        del reloaded
        save_edits(staging.path, edits, targets, protected)
        _write_card(run, chosen, confirmation, verified, staging, files)
        sections = {
            **facts,
            "certificate": [asdict(site) for site in report.sites],
            "export": {"verified": plain_measurement(verified), "checks": checks, "tensors": report.tensors},
        }
        _write_manifest(staging, sections)
        published = staging.commit()
    checks |= _verified_folder(published, model.source.path)
    return Saved(published, verified, checks, report.sites, _warnings(report))


def protected_directions(run: Run) -> dict[int, torch.Tensor]:
    """Layer -> [d, p] orthonormal directions whose change the certificate states; empty where nothing is protected."""
    found = None if run.extraction is None else run.extraction.findings.protected
    if found is None:
        return {}
    return {
        layer: rows[rows.any(dim=1)].T.contiguous() for layer, rows in enumerate(found) if bool(rows.any())
    }


def reload(run: Run, folder: Path) -> Model:
    """The written files as a model, through the same loader as any other model."""
    options = load_options(run.settings)
    assert run.model is not None
    reloaded = load_model(ModelSource(name=str(folder), path=folder, commit=None), options, prove=probe)
    reloaded.encoder.response_prefix = run.model.encoder.response_prefix
    return reloaded


def compare(
    model: Model, reloaded: Model, edits: Edits, confirmation: Confirmation, count: int = 32
) -> dict[str, object]:
    """Largest difference between the logits of the evaluated edit and of the reloaded files on up to 32 prompts.

    A quantised search is compared by its scores alone, because its weights are not those of the files.
    """
    sequences = confirmation.evaluator.good[:count]
    rows = Rows(torch.zeros(len(sequences), dtype=torch.int64, device=model.device))
    with applied(model.network, [edits], rows):
        wanted = model.logits(model.batch(sequences), 1).cpu()
    found = reloaded.logits(reloaded.batch(sequences), 1).cpu()
    difference = float((wanted - found).abs().max())
    scale = float(wanted.abs().max())
    checks: dict[str, object] = {
        "logit_difference": difference,
        "logit_scale": scale,
        "prompts": len(sequences),
    }
    tolerance = LOGIT_TOLERANCE.get(model.dtype, 1e-3) * max(1.0, scale)
    if model.quantization == "none" and not difference <= tolerance:
        raise SaveVerificationError(
            f"The reloaded model differs from the evaluated one: its logits are up to {difference:.3g} apart "
            f"(allowed {tolerance:.3g} at {model.dtype}). Nothing was published.",
            hint="Please report this with the model's name; --strategy and --engine reference may help meanwhile.",
        )
    return checks


def _verified_folder(folder: Path, base: Path) -> dict[str, object]:
    report = verify_folder(folder, base)
    if report.problems:
        raise SaveVerificationError(
            f"{folder.name} does not verify: {report.problems[0]}", details=tuple(report.problems[1:])
        )
    return {"checksums": "match", "changed_tensors": len(report.changed), "grade": str(report.grade)}


def _warnings(report: PatchReport) -> tuple[str, ...]:
    return tuple(report.warnings())


def plain_measurement(measurement: Measurement) -> dict[str, object]:
    """A measurement as the manifest holds it: without the texts of replies."""
    plain = {
        name: value for name, value in asdict(measurement).items() if name not in ("replies", "thinking")
    }
    if measurement.thinking is not None:
        plain["thinking"] = plain_measurement(measurement.thinking)
    return plain


def _write_manifest(staging: StagedFolder, sections: Mapping[str, object]) -> None:
    from heretic.constants import HIDDEN_MANIFEST

    manifest = build_manifest(sections, staging.checksums())
    (staging.path / HIDDEN_MANIFEST).write_bytes(manifest_bytes(manifest))


def manifest_facts(
    run: Run, trial: TrialReport, reason: str, confirmation: Confirmation
) -> dict[str, object]:
    """The sections of `heretic_run.json` that describe the run (requirements R-FMT-01)."""
    extraction, study = run.extraction, run.study
    assert extraction is not None
    return {
        **common_facts(run, confirmation),
        "fingerprint": {} if study is None else dict(study.fingerprint),
        "directions": {**extraction.bank.provenance, "found": dict(extraction.findings.notes)},
        "trial": {
            "index": trial.trial,
            "parameters": dict(trial.parameters),
            "strengths": {path: list(values) for path, values in trial.strengths.items()},
        },
        "scores": {
            "search": plain_measurement(trial.search),
            "held_out": None if trial.held_out is None else plain_measurement(trial.held_out),
        },
        "selection": reason,
    }


def common_facts(run: Run, confirmation: Confirmation) -> dict[str, object]:
    """Those sections that do not depend on how the edit was found."""
    model, bundle = run.model, run.bundle
    assert model is not None and bundle is not None
    architecture = model.architecture
    shown = _base_behaviour(confirmation)
    return {
        "versions": versions(),
        "seed": run.settings.seed,
        "command_line": sys.argv,
        "settings": recorded_settings(run.resolved),
        "model": {"id": model.source.name, "commit": model.source.commit, "dtype": model.dtype},
        "data": bundle.records(),
        "baseline": None if shown is None else {"hits": shown.hits, "n": shown.n},
        "noise_floor": confirmation.floor,
        "degradations": list(run.degradations),
        "coverage": {"share": architecture.covered_share(), "family": architecture.family},
        "timings": {name: round(value, 3) for name, value in run.seconds.items()},
    }


def _write_card(
    run: Run,
    chosen: ChosenEdit,
    confirmation: Confirmation,
    verified: Measurement,
    staging: StagedFolder,
    files: ModelFiles,
) -> None:
    settings, model = run.settings, run.model
    assert model is not None
    source = files.folder / "README.md"
    facts = CardFacts(
        name=staging.target.name,
        model=settings.model,
        behaviour=run.resolved.behaviour.name,
        goal=settings.goal,
        strategy=settings.strategy,
        rows=_card_rows(confirmation, verified),
        noise_floor=f"{confirmation.floor:.2e} nats per token",
        conditions=(
            f"greedy, {settings.max_response_length} tokens, {_mode_text(run, verified)}, "
            f"{confirmation.where} prompts, {model.dtype}"
        ),
        reproduce=chosen.command,
        strengths=_peak_strengths(chosen.strengths),
        guards={name: "passed" if value <= 0 else "broken" for name, value in verified.guards.items()},
        degradations=run.degradations,
        not_measured=NOT_MEASURED,
        revision=model.source.commit,
    )
    text = build_card(facts, source.read_text(encoding="utf-8") if source.is_file() else None)
    (staging.path / "README.md").write_text(text, encoding="utf-8")


def _card_rows(confirmation: Confirmation, verified: Measurement) -> list[CardRow]:
    rate, before = verified.behaviour, _base_behaviour(confirmation)
    thinking = ", thinking on" if verified.mode == "on" else ""
    rows = [
        CardRow(
            metric=f"behaviour rate{thinking}",
            dataset=f"{confirmation.where} prompts",
            before=None if before is None else _measured(before.hits, before.n),
            after=Measured(rate.value, rate.n, rate.low, rate.high),
        )
    ]
    if verified.kl is not None:
        error = 1.96 * verified.kl.standard_error
        value = verified.kl.mean
        rows.append(
            CardRow(
                metric=f"KL to the base, nats per token{thinking}",
                dataset="benign prompts",
                before=None,
                after=Measured(value, verified.kl.n, max(0.0, value - error), value + error),
                share=False,
            )
        )
    if confirmation.second is not None and verified.thinking is not None:
        rows += _card_rows(confirmation.second, verified.thinking)
    return rows


def _base_behaviour(confirmation: Confirmation) -> Rate | None:
    found = confirmation.base_measured
    return None if found is None else found.behaviour


def _mode_text(run: Run, verified: Measurement) -> str:
    """In which mode the numbers were measured (requirements R-MOD-53)."""
    budget = f"thinking on with {run.settings.thinking_tokens} tokens for the thought"
    if verified.thinking is not None:
        return f"thinking off, and {budget} where a row says so"
    return budget if verified.mode == "on" else "thinking off"


def _measured(hits: int, n: int) -> Measured:
    from heretic.phases.evaluation import rate_of

    rate: Rate = rate_of(hits, n)
    return Measured(rate.value, rate.n, rate.low, rate.high)


def _peak_strengths(strengths: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Largest effective strength per kind of site, as text."""
    peaks: dict[str, list[float]] = {}
    for path, values in strengths.items():
        component = ".".join(part for part in path.split(".")[-3:] if part not in ("weight", "layers"))
        peaks.setdefault(component, []).append(max(values, key=abs))
    return {
        name: f"up to {max(values, key=abs):.2f} in {len(values)} layers" for name, values in peaks.items()
    }


def upload_model_huggingface(
    run: Run, folder: Path, repository: str, *, private: bool | None = None, api: HfApi | None = None
) -> str:
    """Upload a saved folder; the local one stays whatever happens (requirements R-OUT-20, R-OUT-21)."""
    settings = run.settings
    return str(
        upload_model(
            folder,
            repository,
            private=settings.hf_private if private is None else private,
            include_manifest=settings.hf_upload_manifest,
            api=api,
        )
    )
