# SPDX-License-Identifier: Apache-2.0
"""`heretic reproduce`: the model of a `heretic_run.json` built again without a search, and compared with the record
(requirements R-CLI-12, reliability F05)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from heretic.config import Resolved, settings_from_run_file
from heretic.console import Console
from heretic.constants import HIDDEN_MANIFEST, SCHEMA_VERSION
from heretic.exceptions import ConfigurationError, FileOperationError, NetworkError, UntrustedContentError
from heretic.export.certificate import certificate_differences
from heretic.export.digest import weight_digest
from heretic.export.manifest import SECTIONS, read_manifest
from heretic.interventions.placement import Parameters
from heretic.phases import steps
from heretic.phases.confirmation import Confirmation
from heretic.phases.evaluation import measurement
from heretic.phases.model_saving import manifest_facts, save_model_local, trial_edit
from heretic.phases.optimization import create_study, search_space
from heretic.phases.state import Run
from heretic.report import Measurement, TrialReport, flat_measurement
from heretic.stop import StopFlag

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger("heretic.reproduction")

SIZE_LIMIT = 20_000_000
"""Bytes of a run file; a real one has a few hundred kilobytes."""

TIMEOUT_S = 30.0
RESOLUTION = 1e-6
"""KL below this is arithmetic, whatever floor was measured (nats per token)."""

Grade = Literal["bit-equal", "within noise floor", "different"]


@dataclass(slots=True)
class Comparison:
    """differences: what makes the result another one; notes: what may explain it or did not matter."""

    grade: Grade = "bit-equal"
    differences: list[str] = field(default_factory=list)
    environment: list[dict[str, object]] = field(default_factory=list)


def read_run_file(where: str) -> dict[str, object]:
    """A run file by path or https address: at most 20 MB of JSON, of this schema version, known sections only.

    A folder means the run file in it. Raises `ConfigurationError` (no such file), `NetworkError`,
    `FileOperationError`, `UntrustedContentError` (too large, no JSON table, unknown sections).
    """
    if where.lower().startswith("https://"):
        data = _fetched(where)
    elif "://" in where:
        raise UntrustedContentError(f"{where!r} is no https address.", hint="Use https:// or a local file.")
    else:
        data = _read(Path(where).expanduser())
    document = parse_run_file(data)
    logger.info("run file with %d bytes read", len(data))
    return document


def parse_run_file(data: bytes) -> dict[str, object]:
    """The JSON table of a run file; see `read_run_file`."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no number of JSON")

    try:
        document = json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UntrustedContentError(f"The run file is not JSON ({error}).", hint="Fetch it again.") from error
    if not isinstance(document, dict):
        raise UntrustedContentError("The run file holds no JSON table.", hint="Use a heretic_run.json.")
    if document.get("version") != SCHEMA_VERSION:
        raise ConfigurationError(
            f"The run file has the version {document.get('version')!r}; this program reads {SCHEMA_VERSION}.",
            hint="Use the program version that wrote it.",
        )
    unknown = sorted(set(document) - {*SECTIONS, "version", "files"})
    if unknown:
        raise UntrustedContentError(
            f"The run file has sections that no run writes: {', '.join(unknown)[:80]}.",
            hint="Use a heretic_run.json as it was written.",
        )
    return document


def _read(path: Path) -> bytes:
    if path.is_dir():
        path = path / HIDDEN_MANIFEST
    if not path.is_file():
        raise ConfigurationError(
            f"There is no run file {str(path)!r}.", hint="Name a heretic_run.json or its https address."
        )
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise _too_large(path.name)
        return path.read_bytes()
    except OSError as error:
        raise FileOperationError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from error


def _fetched(address: str, transport: httpx2.BaseTransport | None = None) -> bytes:
    """The bytes behind an https address; no login is sent, and a redirect may not leave https."""
    import httpx2

    received = bytearray()
    try:
        with (
            httpx2.Client(follow_redirects=True, timeout=TIMEOUT_S, transport=transport) as client,
            client.stream("GET", address) as response,
        ):
            if any(step.url.scheme != "https" for step in (*response.history, response)):
                raise UntrustedContentError(
                    f"{address} leads away from https.", hint="Fetch the file yourself."
                )
            if response.status_code != 200:
                raise NetworkError(
                    f"{address} answered with status {response.status_code}.",
                    hint="Check the address in a browser.",
                )
            for part in response.iter_bytes():
                received += part
                if len(received) > SIZE_LIMIT:
                    raise _too_large(address)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NetworkError(
            f"{address} cannot be fetched ({type(error).__name__}).", hint="Check address and network."
        ) from error
    return bytes(received)


def _too_large(name: str) -> UntrustedContentError:
    return UntrustedContentError(
        f"{name} has more than {SIZE_LIMIT:,} bytes, so it is no run file.", hint="Use a heretic_run.json."
    )


def reproduce(
    document: Mapping[str, object], tokens: Sequence[str], *, console: Console, stop: StopFlag | None = None
) -> dict[str, object]:
    """Build the model of a run file again, save it, measure the saved files, and compare them with the record.

    tokens: settings of the user, which override the file's. The result holds `grade` (`bit-equal`, `within noise
    floor`, `different`), `differences`, `environment_differences` and the figures of both. Raises the errors of
    `settings_from_run_file` and of a run.
    """
    _require_search(document)
    stored = _stored_trial(document)
    resolved = settings_from_run_file(document, tokens)
    run = Run(_quiet(resolved), console, stop or StopFlag())
    source = steps.preflight(run)
    comparison = Comparison(environment=_environment(document))
    run.bundle = steps.load_prompts(run)
    _compare_inputs(document, run, weight_digest(source.path), comparison)
    run.model = steps.load_network(run, source)
    run.evaluator, run.baseline = steps.measure_base(run)
    with create_study(run) as run.study:
        run.extraction = steps.extract(run)
        run.context = steps.plan_context(run)
        trial, confirmation = _measured_trial(run, stored)
        facts = manifest_facts(
            run, trial, f"built again from the record of trial {trial.trial}", confirmation
        )
        with run.phase("saving", "Saving, loading again and measuring the saved files") as phase:
            saved = save_model_local(run, trial_edit(run, trial), confirmation, facts)
            phase.result(str(saved.folder))
    _compare_files(document, read_manifest(saved.folder), saved.verified, confirmation.floor, comparison)
    return {
        "status": "complete",
        "model": source.basename,
        "grade": comparison.grade,
        "passed": comparison.grade != "different",
        "differences": comparison.differences,
        "environment_differences": comparison.environment,
        "output": str(saved.folder),
        "measured": flat_measurement(saved.verified),
        "recorded": _recorded_figures(document),
        "noise_floor": confirmation.floor,
        "degradations": list(run.degradations),
    }


def _quiet(resolved: Resolved) -> Resolved:
    """The same settings with a study in memory: nothing is searched, so nothing is kept."""
    changes = {"storage": None, "resume": "auto", "auto_select": True}
    return replace(resolved, settings=resolved.settings.model_copy(update=changes))


def _require_search(document: Mapping[str, object]) -> None:
    """Raise `ConfigurationError` for the record of an edit that was made from direction files, which are not in it."""
    directions = document.get("directions")
    files = directions.get("files") if isinstance(directions, Mapping) else None
    if not isinstance(directions, Mapping) or not isinstance(files, list):
        return
    names = ", ".join(str(entry.get("file")) for entry in files if isinstance(entry, Mapping))
    raise ConfigurationError(
        f"This model was not found by a search: it was made from {names[:200]}.",
        hint=f"Make it again where those files are: {str(directions.get('command'))[:500]}",
    )


def _stored_trial(document: Mapping[str, object]) -> tuple[int, dict[str, float | int | str | None]]:
    """Number and parameters of the recorded trial; scalars only."""
    trial = document.get("trial")
    parameters = trial.get("parameters") if isinstance(trial, Mapping) else None
    if not isinstance(trial, Mapping) or not isinstance(parameters, Mapping) or not parameters:
        raise ConfigurationError(
            "The run file holds no trial to build again.", hint="Use the file of a saved model."
        )
    found: dict[str, float | int | str | None] = {}
    for name, value in parameters.items():
        if isinstance(value, bool) or not (value is None or isinstance(value, int | float | str)):
            raise UntrustedContentError(
                f"The run file's parameter {str(name)[:60]!r} is no plain value.",
                hint="Use a file as it was written.",
            )
        found[str(name)] = value
    index = trial.get("index")
    return (index if isinstance(index, int) else 0), found


def _measured_trial(run: Run, stored: tuple[int, Parameters]) -> tuple[TrialReport, Confirmation]:
    """The stored trial on the search prompts and on the held-out ones, as in the run that found it."""
    index, parameters = stored
    known = {dimension.name for dimension in search_space(run)}
    foreign = sorted(set(parameters) - known)
    if foreign:
        raise UntrustedContentError(
            f"The run file holds parameters that this model and strategy do not have: {', '.join(foreign)[:80]}.",
            hint="Name the base model the run was made with.",
        )
    assert run.evaluator is not None and run.baseline is not None
    plan = run.plan(parameters)
    edits = run.edits(parameters)
    with run.phase("confirmation", "Measuring the rebuilt edit"):
        run.evaluator.max_kl = float("inf")
        outcome = run.evaluator.score([edits])[0]
        confirmation = Confirmation(run)
        confirmation.measure_base()
        held_out = confirmation.measure_trials([edits])[0][1]
    report = TrialReport(
        trial=index,
        parameters=dict(parameters),
        search=measurement("search", outcome, outcome.kl, run.baseline.outcome),
        held_out=held_out,
        strengths={path: list(values) for path, values in plan.effective_strengths().items()},
    )
    return report, confirmation


def _environment(document: Mapping[str, object]) -> list[dict[str, object]]:
    """What is different from the machine of the record: versions, device, threads."""
    from heretic.phases.environment import versions

    recorded = document.get("versions")
    then: Mapping[str, object] = recorded if isinstance(recorded, Mapping) else {}
    return [
        {"what": name, "then": then.get(name), "now": value}
        for name, value in versions().items()
        if name in then and then[name] != value
    ]


def _compare_inputs(document: Mapping[str, object], run: Run, digest: str, comparison: Comparison) -> None:
    """Weights and prompts that are not those of the record explain a different result; they are listed."""
    fingerprint = document.get("fingerprint")
    known = fingerprint.get("weights") if isinstance(fingerprint, Mapping) else None
    if isinstance(known, str) and known != digest:
        comparison.environment.append({"what": "weights of the base", "then": known[:12], "now": digest[:12]})
    data = document.get("data")
    records: Mapping[str, object] = data if isinstance(data, Mapping) else {}
    assert run.bundle is not None
    now = run.bundle.records()
    for name in sorted({*records, *now}):
        entry = records.get(name)
        then = entry.get("content_hash") if isinstance(entry, Mapping) else None
        found = now[name]["content_hash"] if name in now else None
        if then != found:
            what = f"prompts of {name}"
            comparison.environment.append({"what": what, "then": str(then)[:12], "now": str(found)[:12]})


def _compare_files(
    document: Mapping[str, object],
    manifest: Mapping[str, object],
    verified: Measurement,
    floor: float,
    comparison: Comparison,
) -> None:
    """Grade by bytes first, by certificate and figures where the bytes differ."""
    then, now = _weight_files(document), _weight_files(manifest)
    changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if then and not changed:
        return
    comparison.grade = "within noise floor"
    differences = certificate_differences(document.get("certificate"), manifest.get("certificate"))
    differences += _figure_differences(document, verified, floor)
    if differences:
        comparison.grade = "different"
        comparison.differences += differences
        comparison.differences += [f"{name} has other bytes" for name in changed]


def _weight_files(document: Mapping[str, object]) -> dict[str, str]:
    """Checksum of each weight file; the folder of our own records is left out."""
    files = document.get("files")
    found = files.items() if isinstance(files, Mapping) else ()
    return {
        str(n): str(s)
        for n, s in found
        if str(n).endswith(".safetensors") and not str(n).startswith("heretic/")
    }


def _recorded_figures(document: Mapping[str, object]) -> dict[str, object]:
    """What the record says about the saved files."""
    export = document.get("export")
    verified = export.get("verified") if isinstance(export, Mapping) else None
    return dict(verified) if isinstance(verified, Mapping) else {}


def _figure_differences(document: Mapping[str, object], verified: Measurement, floor: float) -> list[str]:
    """Behaviour counts and KL beyond the noise floor of either machine."""
    recorded = _recorded_figures(document)
    rate, kl = recorded.get("rate"), recorded.get("kl")
    if not isinstance(rate, Mapping) or not isinstance(kl, Mapping) or verified.kl is None:
        return ["the run file holds no figures to compare with"]
    differences = []
    hits, n = rate.get("hits"), rate.get("n")
    if (hits, n) != (verified.rate.hits, verified.rate.n):
        differences.append(f"behaviour {hits}/{n} became {verified.rate.hits}/{verified.rate.n}")
    mean, known_floor = kl.get("mean"), document.get("noise_floor")
    allowed = max(floor, float(known_floor) if isinstance(known_floor, int | float) else 0.0, RESOLUTION)
    if not isinstance(mean, int | float) or abs(float(mean) - verified.kl.mean) > allowed:
        differences.append(f"KL {mean} became {verified.kl.mean:.6g}; {allowed:.2g} nats per token are noise")
    return differences
