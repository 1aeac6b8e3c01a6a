# SPDX-License-Identifier: Apache-2.0
"""What the other commands do: plan, inspect, export, evaluate, verify, chat, doctor. Each is callable from a script."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from heretic.apps.chat_model import PlainChatModel
from heretic.apps.ending import finish
from heretic.config import Resolved, built_in_behaviours, resolve_settings
from heretic.console import Console
from heretic.decoding import choose_engine
from heretic.demo import model_path
from heretic.exceptions import ConfigurationError, DatasetError, HereticError, StudyNotFoundError
from heretic.export.folder import inspect_folder
from heretic.export.manifest import read_manifest
from heretic.export.verify import verify_folder
from heretic.model.loading import LoadOptions, load_config, load_model, load_tokenizer
from heretic.model.source import ModelSource, locate
from heretic.phases import loading, steps
from heretic.phases.choice import named_trial
from heretic.phases.confirmation import Confirmation
from heretic.phases.environment import accelerator, versions
from heretic.phases.optimization import create_study
from heretic.phases.reporting import Result, build_report, keep_report
from heretic.phases.state import Run
from heretic.phases.validation import measure_validation_base, validate
from heretic.report import Measurement, RunReport, flat_measurement
from heretic.stop import StopFlag
from heretic.study.catalogue import load_finished
from heretic.study.runner import StudyOutcome
from heretic.validation.report import ValidationReport
from heretic.validation.view import figure_rows

MEASURING = (
    "behaviour",
    "goal",
    "bad_prompts",
    "good_prompts",
    "bad_evaluation_prompts",
    "good_evaluation_prompts",
    "bad_confirmation_prompts",
    "good_confirmation_prompts",
    "over_behaviour_prompts",
    "system_prompt",
    "response_prefix",
    "max_response_length",
    "max_prompt_tokens",
    "kl_divergence_tokens",
    "refusal_detection_mode",
    "dtypes",
    "thinking",
    "thinking_tokens",
)
"""Settings that decide what a saved model's figures mean; nothing else is taken from a file of a stranger."""


def dry_run(resolved: Resolved, *, console: Console) -> dict[str, object]:
    """The plan of a run: sizes, memory, disk, data sets, features, trials (requirements R-CLI-25). Loads no weights."""
    settings = resolved.settings
    run = Run(resolved, console, StopFlag())
    source = steps.preflight(run)
    bundle = steps.load_prompts(run)
    size = loading.weight_bytes(source)
    return {
        "model": settings.model,
        "commit": source.commit,
        "weights_gb": round(size / 1e9, 3),
        "memory_needed_gb": round(size * loading.BYTES_SHARE[settings.quantization] / 1e9, 3),
        "memory_free_gb": round((loading.device_memory() or 0) / 1e9, 3),
        "disk_needed_gb": round(inspect_folder(source.path).total_bytes / 1e9, 3),
        "device": accelerator(),
        "prompts": {name: record["rows"] for name, record in bundle.records().items()},
        "strategy": settings.strategy,
        "trials": settings.n_trials,
        "off": list(run.degradations),
    }


def inspect(resolved: Resolved, *, console: Console, probe: bool) -> dict[str, object]:
    """What a model is made of: writers, coverage, template, sizes (R-CLI-04). `probe` loads the weights."""
    from heretic.architectures.resolve import resolve_config_only

    settings = resolved.settings
    source = locate(settings.model, revision=settings.model_revision, offline=settings.offline)
    config = load_config(source, trust_remote_code=settings.trust_remote_code)
    model = loading.load(settings, source) if probe else None
    if model is not None:
        architecture = model.architecture
    else:
        architecture = resolve_config_only(config, allow_partial=settings.allow_partial)
    text = config.get_text_config(decoder=True)
    heads, shared = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    size = loading.weight_bytes(source)
    tokenizer = load_tokenizer(source)
    return {
        "model": settings.model,
        "commit": source.commit,
        "family": architecture.family,
        "layers": architecture.layers,
        "hidden_size": architecture.hidden_size,
        "attention_heads": heads,
        "key_value_heads": shared,
        "experts": max((site.experts or 0 for site in architecture.sites), default=0),
        "tied_embeddings": architecture.tied,
        "components": {
            name: sum(site.component == name for site in architecture.sites)
            for name in architecture.components
        },
        "coverage": architecture.covered_share(),
        "not_covered": [
            f"{row.path}: {row.status}" for row in architecture.coverage if row.status != "reachable"
        ],
        "weights_gb": round(size / 1e9, 3),
        "memory_4bit_gb": round(size * loading.BYTES_SHARE["bnb_4bit"] / 1e9, 3),
        "chat_template": tokenizer.chat_template is not None,
        "dtype": str(getattr(config, "dtype", None)).removeprefix("torch."),
        "loaded": None if model is None else model.dtype,
    }


def export_trial(resolved: Resolved, *, console: Console, trial: int | None) -> RunReport:
    """Save a stored trial without searching (requirements R-CLI-10); None chooses by the rule.

    Raises `StudyNotFoundError` for a study without trials, `FingerprintMismatchError` when model or data changed.
    """
    settings = resolved.settings.model_copy(update={"trial": trial, "resume": "continue"})
    require_stored_trial(settings.storage, settings.study_name, trial)
    run = Run(replace(resolved, settings=settings), console, StopFlag())
    steps.prepare_validation(run)
    steps.begin(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
        run.context = steps.plan_context(run)
        outcome = StudyOutcome(run.study.finished_trials(), run.study.failed_trials(), "finished")
        confirmation, confirmed = steps.confirm_finalists(run, outcome)
        result = Result(outcome, confirmation, confirmed)
        status = finish(run, result)
        report = build_report(run, result, status)
        keep_report(run, result, report)
    return report


def require_stored_trial(storage: str | None, name: str, trial: int | None) -> None:
    """Raise `StudyNotFoundError` or `ConfigurationError` when there is no such trial, before anything is loaded."""
    finished = load_finished(storage, name)
    if not finished:
        raise StudyNotFoundError(f"The study {name!r} has no finished trial.", hint="Run it first.")
    if trial is not None:
        named_trial(finished, trial)


def evaluate_pair(resolved: Resolved, *, console: Console) -> dict[str, object]:
    """Score `evaluate_model` against `model` on the held-out prompts; both are really loaded (R-CLI-08)."""
    run = Run(resolved, console, StopFlag())
    name = run.settings.evaluate_model
    assert name is not None
    source, other = loading.find_model(run.settings), loading.find_model(run.settings, name)
    run.bundle = steps.load_prompts(run)
    steps.prepare_validation(run)
    run.model = steps.load_network(run, source)
    with run.phase("baseline", f"Measuring {source.basename}"):
        confirmation = Confirmation(run)
        base = confirmation.measure_base()
    if run.questions is not None:
        run.validation = measure_validation_base(run, run.questions)
    with run.phase("other", f"Measuring {other.basename}"):
        edited, found = _measure_path(run, confirmation, other)
    return {
        "status": "complete",
        "base": {"model": source.basename, **flat_measurement(base)},
        "model": {"model": other.basename, **flat_measurement(edited)},
        "noise_floor": confirmation.floor,
        "validation": None if found is None else {**found.to_document(), "figures": figure_rows(found)},
        "degradations": run.degradations,
    }


def _measure_path(
    run: Run, confirmation: Confirmation, source: ModelSource
) -> tuple[Measurement, ValidationReport | None]:
    """Another model against the base's replies, and its capabilities where the base's are known. The base leaves memory
    first where both do not fit."""
    assert run.model is not None
    free = loading.device_memory()
    if free is not None and loading.weight_bytes(source) * 1.2 > free:
        torch.nn.Module.to(run.model.network, "meta")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    other = loading.load(run.settings, source)
    engine, _ = choose_engine(other, run.settings.engine)
    _, measured = confirmation.measure_other(other, engine)
    known = run.validation
    return measured, None if known is None else validate(
        run, confirmation, known, measured, other=(other, engine)
    )


def verify(path: str, base: str | None, *, console: Console) -> dict[str, object]:
    """Check a saved folder (requirements R-CLI-11): checksums; with `base` every tensor against base plus stored edits
    and the figures of the manifest measured again."""
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigurationError(f"There is no folder {path!r}.", hint="Name a folder that heretic saved.")
    source = None if base is None else locate(base)
    with console.phase("Verifying files") as phase:
        report = verify_folder(folder, None if source is None else source.path)
        phase.result("no problem found" if not report.problems else f"{len(report.problems)} problems")
    problems, notes = list(report.problems), list(report.notes)
    measured: dict[str, object] | None = None
    if source is None:
        notes.append("No --base was given: tensors were not compared and nothing was measured again.")
    elif not problems:
        measured = _measured_again(folder, source, console, problems, notes)
    return {
        "path": folder.name,
        "passed": not problems,
        "problems": problems,
        "notes": notes,
        "compared_with_base": source is not None,
        "grade": str(report.grade),
        "changed_tensors": len(report.changed),
        "measured_again": measured,
    }


def _measured_again(
    folder: Path, base: ModelSource, console: Console, problems: list[str], notes: list[str]
) -> dict[str, object] | None:
    """Rate and KL of the folder against the base on the prompts named in its manifest; differences are problems."""
    manifest = read_manifest(folder)
    export, stored = manifest.get("export"), manifest.get("settings")
    wanted = export.get("verified") if isinstance(export, dict) else None
    if not isinstance(wanted, dict) or not isinstance(stored, dict):
        notes.append("The manifest holds no measured figures to compare with.")
        return None
    try:
        # Nothing counts as explicit: an auxiliary set that was out of reach in the run may be so again.
        resolved = replace(settings_from_manifest(stored, base, folder), explicit=frozenset())
        run = Run(resolved, console, StopFlag())
        run.bundle = steps.load_prompts(run)
        _require_same_prompts(manifest.get("data"), run.bundle.records())
    except HereticError as error:
        notes.append(f"Not measured again, because the prompts of the run are not here: {error.message}")
        return None
    run.model = steps.load_network(run, base)
    with run.phase("measure", "Measuring again"):
        confirmation = Confirmation(run)
        confirmation.measure_base()
        found, _ = _measure_path(run, confirmation, locate(str(folder)))
    same = found.rate.hits == wanted["rate"]["hits"] and found.rate.n == wanted["rate"]["n"]
    if not same:
        problems.append(
            f"The behaviour was recorded as {wanted['rate']['hits']}/{wanted['rate']['n']} and is now "
            f"{found.rate.hits}/{found.rate.n}."
        )
    return flat_measurement(found)


def _require_same_prompts(recorded: object, loaded: Mapping[str, Mapping[str, object]]) -> None:
    """Figures can only be compared on the prompts of the run."""
    for name in ("bad_confirmation", "good_confirmation", "bad_evaluation", "good_evaluation"):
        then = recorded.get(name) if isinstance(recorded, Mapping) else None
        known = then.get("content_hash") if isinstance(then, Mapping) else None
        if known != loaded.get(name, {}).get("content_hash"):
            raise DatasetError(
                f"{name}_prompts are not those of the run.", hint="Verify where the run was made."
            )


def settings_from_manifest(stored: Mapping[str, object], base: ModelSource, folder: Path) -> Resolved:
    """The settings of a saved run that decide its figures, as if given on the command line, offline."""
    tokens = ["--model", base.name, "--offline", "--auto-select-path", str(folder)]
    values = {
        name: entry.get("value") if isinstance(entry, Mapping) else entry for name, entry in stored.items()
    }
    if values.get("thinking") in (None, "off"):
        values.pop("thinking_tokens", None)  # nothing would read it, which is an error on a command line
    for name, value in values.items():
        if name == "behaviour" and value not in built_in_behaviours():
            continue
        if name.split(".")[0] in MEASURING and value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            tokens.append(f"--{name.replace('_', '-')}={text}")
    with tempfile.TemporaryDirectory() as empty:  # a config.toml beside the saved model must not speak
        return resolve_settings(tokens, environ={}, cwd=Path(empty))


def chat_model(resolved: Resolved, *, console: Console, trial: str | None = None) -> PlainChatModel:
    """A model to talk to; `trial` is STUDY:N, whose edit is then switched on and off by hooks."""
    settings = resolved.settings
    if trial is None:
        with console.phase("Loading the model"):
            source = loading.find_model(settings)
            return PlainChatModel(loading.load(settings, source))
    name, _, number = trial.rpartition(":")
    if not name or not number.isdecimal():
        raise ConfigurationError(f"{trial!r} is no trial.", hint="Give STUDY:N, such as heretic_study:12.")
    chosen = settings.model_copy(update={"study_name": name, "resume": "continue"})
    require_stored_trial(settings.storage, name, int(number))
    run = Run(replace(resolved, settings=chosen), console, StopFlag())
    steps.begin(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
        run.context = steps.plan_context(run)
        found = named_trial(run.study.finished_trials(), int(number))
        assert run.model is not None
        return PlainChatModel(run.model, run.edits(found.parameters))


def doctor(console: Console) -> dict[str, object]:
    """Environment, packages, memory, disk, Hub login, and one real load of the bundled model (R-CLI-17)."""
    import heretic

    checks: list[dict[str, str]] = []

    def check(name: str, status: str, finding: str) -> None:
        checks.append({"check": name, "status": status, "finding": finding})

    found = versions()
    check(
        "package",
        "pass",
        f"heretic-workbench {found['heretic-workbench']} at {Path(heretic.__file__).parent}",
    )
    check("torch", "pass", f"{found['torch']}, {accelerator()}")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        check(
            "accelerator",
            "fail",
            "A GPU driver is installed, but torch is a CPU build: reinstall torch for your driver.",
        )
    free = shutil.disk_usage(Path.cwd()).free
    check("disk", "pass" if free > 20e9 else "warn", f"{free / 1e9:.0f} GB free here")
    memory = loading.device_memory()
    check("memory", "pass", "unknown" if memory is None else f"{memory / 1e9:.1f} GB free")
    check("hub login", *_login())
    try:
        check("edit and reload", "pass", _edit_and_reload())
    except HereticError as error:
        check("edit and reload", "fail", error.message)
    return {"checks": checks, "passed": all(entry["status"] != "fail" for entry in checks)}


def _login() -> tuple[str, str]:
    from huggingface_hub import get_token

    return ("pass", "yes") if get_token() else ("warn", "no; needed for gated models and uploads only")


def _edit_and_reload() -> str:
    """One full-strength edit of the bundled model, written, loaded again and compared."""
    from heretic.export.shards import patch_model
    from heretic.export.trace import trace_sites
    from heretic.interventions.edit import ablation
    from heretic.publish import staged_folder

    source = ModelSource("demo", model_path(), None)
    model = load_model(source, LoadOptions())
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(1, model.architecture.hidden_size, generator=generator)
    edits = {site: ablation(direction, torch.ones(1)) for site in model.architecture.sites}
    files = inspect_folder(source.path)
    with tempfile.TemporaryDirectory() as folder, staged_folder(Path(folder) / "edited") as staging:
        report = patch_model(files, staging.path, edits, trace_sites(model.network, list(edits), files))
        load_model(ModelSource("edited", staging.path, None), LoadOptions())
    return f"{len(report.changed)} tensors edited and loaded again"
