# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.run`: this project and heretic-llm side by side on one model and one machine."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import ours, theirs
from benchmarks.conditions import ROOT, SPLITS, Conditions, child_environment, prompt_texts, read_markers
from benchmarks.grow import ensure_model, kind_of
from benchmarks.install import ensure_heretic_llm, versions_in
from benchmarks.machine import machine_facts, usable_cores
from benchmarks.names import model_name, result_path
from benchmarks.page import render, write_section
from benchmarks.records import OURS, THEIRS, BenchmarkError, JudgedRecord, RunRecord
from benchmarks.sections import sections

SCHEMA = 1
DEMO = ROOT / "src" / "heretic" / "demo"
BENCH = ROOT / ".bench"
SIZES = {"grown": 120e6, "random": 107e6}
"""Parameters of the models that `--grown` and `--random` make."""
TRIALS = {"grown": 8, "random": 3}
JUDGED = {"random": 0}
"""What is run by default where it is not 200 trials and one judged point: those models take their time."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--model", type=Path, default=DEMO / "model", help="model folder (default: the demo model)"
    )
    which.add_argument(
        "--grown", action="store_true", help="the demo model grown to 120 million parameters, 8 trials"
    )
    which.add_argument(
        "--random", action="store_true", help="107 million random parameters: no reply ends early; 3 trials"
    )
    made.add_argument(
        "--prompts-dir", type=Path, default=DEMO / "prompts", help="folder that holds the prompt sets"
    )
    made.add_argument(
        "--good", default="refusal-good", help="prompt set (folder of train/validation/test .jsonl)"
    )
    made.add_argument("--bad", default="refusal-bad", help="prompt set that shows the behaviour")
    made.add_argument("--markers", type=Path, default=Path(__file__).with_name("markers.txt"))
    made.add_argument("--trials", type=int, help="trials of each run (default 200)")
    made.add_argument(
        "--startup-trials", type=int, help="random trials at the start (default: each program's own)"
    )
    made.add_argument(
        "--seed", type=int, default=0, help="seed of the first repetition; the next use seed + 1, ..."
    )
    made.add_argument("--repetitions", type=int, default=1, help="pairs of runs, interleaved (default 1)")
    made.add_argument("--only", choices=("ours", "theirs"), help="run one program only")
    made.add_argument("--max-tokens", type=int, default=100, help="reply length (default 100)")
    made.add_argument("--batch-size", type=int, default=0, help="0 = each program finds its own (default)")
    made.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16, the same for both")
    made.add_argument("--threads", type=int, default=usable_cores(), help="OMP_NUM_THREADS of both")
    made.add_argument("--timeout", type=float, default=6 * 3600.0, help="seconds one run may take")
    made.add_argument(
        "--default-limits", action="store_true", help="let ours skip measurements as it does by default"
    )
    made.add_argument(
        "--judge-points", type=int, help="front points saved and judged per run; 0 = none (default 1)"
    )
    made.add_argument(
        "--judge-limit", type=int, default=100, help="held-out prompts of each class for the judge"
    )
    made.add_argument(
        "--kl-reference", type=float, default=0.5, help="KL at the reference corner of the hypervolume"
    )
    made.add_argument("--kl-limit", type=float, default=0.5, help="KL limit of the chosen trial")
    made.add_argument(
        "--ours-arg", action="append", default=[], help="further argument for ours (--ours-arg=--x)"
    )
    made.add_argument("--theirs-arg", action="append", default=[], help="further argument for heretic-llm")
    _add_places(made)
    return made


def _add_places(made: argparse.ArgumentParser) -> None:
    """Where things are and go."""
    made.add_argument(
        "--environment", type=Path, default=BENCH / "heretic-llm", help="where heretic-llm is installed"
    )
    made.add_argument(
        "--work",
        type=Path,
        default=BENCH / "runs",
        help="working folder; its folders of the same seeds are replaced",
    )
    made.add_argument(
        "--models", type=Path, default=BENCH / "models", help="where grown and random models are kept"
    )
    made.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the result document"
    )
    made.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="page to write")
    made.add_argument("--no-page", action="store_true", help="leave the page alone")
    made.add_argument(
        "--render", action="store_true", help="measure nothing; write the page from the documents in --out"
    )


def settle(options: argparse.Namespace) -> None:
    """Fill in what the chosen model decides: its folder (written where it is missing), trials, judged points."""
    for kind, parameters in SIZES.items():
        if getattr(options, kind):
            options.model = ensure_model(options.models, parameters, random=kind == "random")
    kind = kind_of(options.model)
    if options.trials is None:
        options.trials = TRIALS.get(kind, 200)
    if options.judge_points is None:
        options.judge_points = JUDGED.get(kind, 1)
    if kind == "random":
        # A random model never shows the behaviour; its trials are measured for their cost.
        options.ours_arg = [*options.ours_arg, "--allow-zero-baseline"]


def conditions_from(options: argparse.Namespace) -> Conditions:
    """The conditions that the options describe, checked."""
    settle(options)
    made = Conditions(
        model=options.model.resolve(),
        good=(options.prompts_dir / options.good).resolve(),
        bad=(options.prompts_dir / options.bad).resolve(),
        trials=options.trials,
        markers=read_markers(options.markers),
        startup_trials=options.startup_trials,
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
        dtype=options.dtype,
        threads=options.threads,
        timeout_s=options.timeout,
        everything_measured=not options.default_limits,
        ours_extra=tuple(options.ours_arg),
        theirs_extra=tuple(options.theirs_arg),
    )
    made.check()
    return made


def judge(model: Path, conditions: Conditions, markers: Path, limit: int) -> dict[str, object]:
    """Run the judge on a saved model in a process of its own. Raises BenchmarkError with its last words."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.judge",
        "--base",
        str(conditions.model),
        "--edited",
        str(model),
    ]
    for kind in ("good", "bad"):
        command += [f"--{kind}", str(conditions.prompt_file(kind, "test"))]
        command += [f"--skip-{kind}", str(conditions.confirmed_rows(kind))]
    command += [
        "--markers",
        str(markers.resolve()),
        "--limit",
        str(limit),
        "--tokens",
        str(conditions.max_tokens),
    ]
    environment = child_environment(conditions.threads, {"PYTHONPATH": str(ROOT / "src")})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the judge failed on {model}:\n{done.stderr[-2000:]}")
    verdict: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return verdict


def describe(conditions: Conditions) -> dict[str, object]:
    """The conditions as the result document keeps them: figures and names, no folders."""
    sizes = {
        kind: [len(prompt_texts(conditions.prompt_file(kind, split))) for split in SPLITS[:2]]
        for kind in ("good", "bad")
    }
    (good_train, good_score), (bad_train, bad_score) = sizes["good"], sizes["bad"]
    return {
        "trials": conditions.trials,
        "startup_trials": conditions.startup_trials,
        "prompts": f"{good_train}+{bad_train} for directions, {good_score}+{bad_score} for scores",
        "max_tokens": conditions.max_tokens,
        "batch_size": conditions.batch_size,
        "dtype": conditions.dtype,
        "threads": conditions.threads,
        "markers": len(conditions.markers),
        "everything_measured": conditions.everything_measured,
        "ours_extra": list(conditions.ours_extra),
        "theirs_extra": list(conditions.theirs_extra),
    }


def report_line(run: RunRecord) -> str:
    """One line for the terminal."""
    best = run.chosen
    memory = "-" if run.peak_memory_bytes is None else f"{run.peak_memory_bytes / 1e6:.0f} MB"
    point = (
        "no trial within the limit" if best is None else f"{best.hits}/{best.n} at KL {best.kl or 0.0:.4f}"
    )
    return (
        f"{run.program:18} seed {run.seed}: {run.per_trial_s:.3f} s a trial over {run.trial_count}, first "
        f"after {run.first_trial_s:.1f} s, whole run {run.total_s:.1f} s, peak {memory}, "
        f"base {run.base_hits}/{run.base_n}, best {point}"
    )


def measure(options: argparse.Namespace, conditions: Conditions) -> dict[str, Any]:
    """All runs and verdicts of one invocation as the result document."""
    wanted = [program for program in ("theirs", "ours") if options.only in (None, program)]
    environment = ensure_heretic_llm(options.environment.resolve()) if "theirs" in wanted else None
    facts = machine_facts()
    versions = {OURS: versions_in(Path(sys.executable))} if "ours" in wanted else {}
    if environment is not None:
        versions[THEIRS] = versions_in(environment / "bin" / "python")
    runs: list[RunRecord] = []
    judged: list[JudgedRecord] = []
    for repetition in range(options.repetitions):
        seed = options.seed + repetition
        # The order changes so that a drift of the machine does not favour one side.
        for program in wanted if repetition % 2 == 0 else reversed(wanted):
            work = (options.work / f"{program}-{seed}").resolve()
            shutil.rmtree(work, ignore_errors=True)
            rest = (conditions, seed, work, options.judge_points, options.kl_limit)
            if program == "theirs":
                assert environment is not None
                found, saved = theirs.run(environment / "bin" / "heretic", *rest)
            else:
                found, saved = ours.run(*rest)
            runs.append(found)
            print(report_line(found), flush=True)
            for number, folder in saved.items():
                verdict = judge(folder, conditions, options.markers, options.judge_limit)
                judged.append(JudgedRecord(found.program, seed, number, verdict))
            partial = document(options, conditions, facts, versions, runs, judged)
            (options.work / "partial.json").write_text(json.dumps(partial, indent=1), encoding="utf-8")
    return document(options, conditions, facts, versions, runs, judged)


def document(
    options: argparse.Namespace,
    conditions: Conditions,
    facts: Mapping[str, object],
    versions: Mapping[str, Mapping[str, str]],
    runs: Sequence[RunRecord],
    judged: Sequence[JudgedRecord],
) -> dict[str, Any]:
    """The result document: JSON values only, no folder of this machine."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).date().isoformat(),
        "model": model_name(conditions.model),
        "kind": kind_of(conditions.model),
        "model_bytes": sum(path.stat().st_size for path in conditions.model.glob("*.safetensors")),
        "machine": dict(facts),
        "versions": {name: dict(found) for name, found in versions.items()},
        "conditions": describe(conditions),
        "kl_reference": options.kl_reference,
        "runs": [asdict(run) for run in runs],
        "judged": [asdict(verdict) for verdict in judged],
    }


def write_results(results: Mapping[str, Any], folder: Path) -> Path:
    """Write the document; a later one of the same model and programs replaces it."""
    programs = sorted({run["program"] for run in results["runs"]})
    path = result_path(folder, str(results["model"]), *programs)
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return path


def write_page(page: Path, folder: Path) -> None:
    """Write the generated part of the page from every document of the folder."""
    write_section(page, sections(folder, page.parent))


def main(given: Sequence[str] | None = None) -> int:
    """Entry point; 0 done, 1 a program could not be measured, 2 the conditions are wrong."""
    options = parser().parse_args(given)
    if options.render:
        write_page(options.page, options.out)
        return 0
    try:
        conditions = conditions_from(options)
    except (BenchmarkError, OSError) as error:
        print(f"benchmark not started: {error}", file=sys.stderr)
        return 2
    try:
        results = measure(options, conditions)
    except BenchmarkError as error:
        print(f"benchmark stopped: {error}", file=sys.stderr)
        return 1
    print(f"written: {write_results(results, options.out)}")
    print(render(results))
    if not options.no_page:
        write_page(options.page, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
