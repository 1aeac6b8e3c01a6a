# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.methods --models demo,llama,olmo --variants plain,calibrated --seeds 0,1,2`: ways to find and
apply a direction, front against front.

Each (model, variant, seed) is one search with the program's own space, sampler and warm starts; a variant is a list of
settings. What is recorded is the area under the front over the number of trials (KL up to 0.1, rate over the base
rate, algorithms 8) and how the best trial fares on prompts the search has not seen. Differences are paired by model and
seed. Runs that are in the file already are not repeated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.experiments import FOLDER, Memory, areas, load, parsed, store, table
from benchmarks.models import build
from benchmarks.prepared import demo_run
from heretic.linalg.pareto import pareto_front
from heretic.phases.choice import choose, confirm
from heretic.phases.confirmation import Confirmation
from heretic.phases.optimization import enqueue_warm_start_trials, front_reference, search_space
from heretic.phases.state import Run
from heretic.study.runner import StudyOutcome, run_study
from heretic.study.state import open_study

NO_COVECTOR = "--no-use-covectors"
OFF = (
    "--no-use-activation-calibration",
    "--no-orthogonalize-directions",
    "--no-use-warm-start-params",
    NO_COVECTOR,
)

VARIANTS: dict[str, tuple[str, ...]] = {
    # Every feature that requirements 3.5 has on by default, off.
    "plain": OFF,
    # One of them on.
    "calibrated": OFF[1:],
    "helpful": ("--orthogonalize-directions", OFF[0], *OFF[2:]),
    "warm": (*OFF[:2], NO_COVECTOR),
    "ensemble": (*OFF, "--ensemble-probe-pca"),
    "covector": OFF[:3],
    "probe": (*OFF, "--use-supervised-probing"),
    "no-profile": (*OFF, "--no-enable-layer-profiles"),
    # All of them on, as the requirements have it.
    "stated": ("--use-activation-calibration", "--orthogonalize-directions", "--ensemble-probe-pca"),
    # What the program does by default.
    "program": (),
    # Other strategies with those features off.
    "subspace": (*OFF[:3], "--strategy=subspace"),
    "subspace-unweighted": (
        *OFF[:3],
        "--strategy=subspace",
        "--no-use-eigenvalue-weights",
        "--direction-weights=1,1,1",
    ),
    "rounds": (*OFF[:3], "--strategy=subspace", "--n-refusal-directions=1", "--iterative-rounds=3"),
    "cones": (*OFF[:3], "--strategy=cones"),
    "oblique": (*OFF[:3], "--strategy=oblique"),
    "norms": (*OFF[:3], "--strategy=norm_preserving"),
    "heads": (*OFF, "--strategy=heads"),
    "caa": (*OFF, "--strategy=caa"),
    "sacred": (*OFF, "--use-sacred-directions"),
    "unprojected": (*OFF, "--no-project-direction"),
    "induce": (*OFF[:3], "--goal=induce"),
}


def record(run: Run, name: str, seed: int, trials: int, *, afresh: bool) -> dict[str, Any]:
    """One search and the confirmation of its best trials, as it goes into the file."""
    begin = time.monotonic()
    with open_study(None, fingerprint={}) as run.study:
        outcome = run_study(
            run.study,
            Memory(run, afresh=afresh),
            space=search_space(run),
            seed=seed,
            n_trials=trials,
            batch_size=2,
            sampler="tpe",
            n_startup_trials=run.settings.n_startup_trials,
            warm_start=enqueue_warm_start_trials(run),
            reference=front_reference(run),
        )
    found = list(outcome.finished)
    objectives = [trial.scores.objectives[::-1] for trial in found if trial.scores.feasible]
    return {
        "variant": name,
        "seed": seed,
        "trials": trials,
        "areas": areas(found, front_reference(run)),
        "front": [[round(value, 5) for value in objectives[i]] for i in pareto_front(objectives)],
        "held_out": held_out(run, outcome),
        "seconds": round(time.monotonic() - begin, 2),
    }


def held_out(run: Run, outcome: StudyOutcome) -> dict[str, Any] | None:
    """Hits and KL of the trial that the program would choose, on prompts the search has not seen."""
    confirmation = Confirmation(run)
    confirmation.measure_base()
    confirmed = confirm(run, confirmation, outcome.finished)
    chosen = choose(run, confirmation, confirmed).winner
    entry = next((one for one in confirmed if chosen is not None and one.trial.index == chosen.index), None)
    if entry is None or entry.measurement.kl is None:
        return None
    return {
        "hits": entry.measurement.rate.hits,
        "n": entry.measurement.rate.n,
        "kl": round(entry.measurement.kl.mean, 5),
    }


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, print the table."""
    options = parsed(arguments, VARIANTS, program="benchmarks.methods", name="methods", base="plain")
    path = FOLDER / f"{options.name}.json"
    runs: list[Mapping[str, Any]] = list(load(path))
    torch.set_num_threads(1)
    done = {(run["model"], run["variant"], run["seed"], run["trials"]) for run in runs}
    for model in [] if options.table else options.models.split(","):
        for variant in options.variants.split(","):
            seeds = [int(seed) for seed in options.seeds.split(",")]
            missing = [seed for seed in seeds if (model, variant, seed, options.trials) not in done]
            if not missing:
                continue
            run = demo_run(build(model), threads=1, extra=VARIANTS[variant])
            for seed in missing:
                entry = record(run, variant, seed, options.trials, afresh=options.afresh)
                runs.append({"model": model, **entry})
                store(path, runs)
                best = entry["held_out"]
                sys.stderr.write(f"{model} {variant} {seed}: {entry['areas'][-1]}, held out {best}\n")
    sys.stdout.write(table(runs, options.against, options.trials))


if __name__ == "__main__":
    main(sys.argv[1:])
