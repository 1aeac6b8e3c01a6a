# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.experiments --models demo,llama --variants base,gp --seeds 0,1,2 --trials 40`: search settings.

Each (model, variant, seed) is one search in this process by the product's own `run_study` and `scored_with`. What
is recorded is the area under its front over the number of trials, scaled as the program scales it (algorithms 8: KL up
to 0.1, rate over the base rate). The same trial of a model is measured once, whatever variant asks for it (`--afresh`
measures each again, which is what times need). Runs that are in the file already are not repeated.

Every variant differs from `base` in what its name says; `program` is what the program does, both with two trials in a
batch. What `base` does, the program did at first, but one dimension always moves, and parents are chosen as they are
now (decision 0013; the records in search.json are older than that). Where something is no setting (how the best trials
are refined, which points are tried first) a constant of the program is changed while the variant runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import RECIPES, build
from benchmarks.prepared import demo_run
from heretic.config.groups_run import SearchSettings
from heretic.linalg.pareto import hypervolume, pareto_front
from heretic.phases import optimization
from heretic.phases.optimization import (
    enqueue_warm_start_trials,
    front_reference,
    reachable_space,
    scored_with,
)
from heretic.phases.state import Run
from heretic.study import refinement, sampler
from heretic.study.progress import has_stalled, scaled_points
from heretic.study.runner import run_study
from heretic.study.space import canonical_key
from heretic.study.state import open_study
from heretic.study.types import Evaluate, FinishedTrial, Proposal, Scores, TrialFailure

FOLDER = Path(__file__).resolve().parent / "results" / "experiments"
STEP = 4
"""The area is kept after every so many trials."""
RESAMPLES = 10_000


LARGE = (0.1, 0.2, 0.4)
FLAT = (0.7, 0.6)
FLATS = tuple(
    (scope, index, peak, FLAT)
    for scope, index, peak in (
        ("global", 0.8, 1.0),
        ("per_layer", None, 1.5),
        ("global", 0.65, 1.5),
        ("per_layer", None, 1.0),
    )
)
MIDDLES = (
    *FLATS[:2],
    ("global", 0.8, 1.5, optimization.MIDDLE),
    ("per_layer", None, 1.5, optimization.MIDDLE),
)
MORE = (*FLATS, *MIDDLES[2:])
NARROW = {"direction_index": (0.4, 0.9), "max_weight_position": (0.6, 1.0)}
"""The ranges of requirements 7.2."""

WIDE_TENTS = {**NARROW, "max_weight_position": (0.3, 1.0), "min_weight_distance": (0.3, 1.0)}


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to search. ranges: settings of `[search_space]` that differ. refine_every: 0 = never; refine_startup: the
    same during the start-up, None = as after it.

    folded: steps beyond the edge of a range come back. changed, widths: as in `heretic.study.refinement`.
    """

    sampler: str = "tpe"
    startup: int = 30
    together: int = 2
    anchors: Sequence[optimization.Anchor] = FLATS
    refine_every: int = 2
    refine_startup: int | None = None
    folded: bool = False
    changed: float = 0.5
    widths: tuple[float, ...] = (0.04, 0.1, 0.2)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(NARROW))


PROGRAM = Variant(
    startup=int(SearchSettings.model_fields["n_startup_trials"].default),
    anchors=optimization.ANCHORS,
    refine_every=refinement.REFINE_EVERY,
    refine_startup=refinement.STARTUP_EVERY,
    changed=refinement.CHANGED,
    widths=refinement.WIDTHS,
    ranges={},
)
EIGHT = replace(PROGRAM, together=8)

VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "program": PROGRAM,
    "eight": EIGHT,
    "eight-changed-less": replace(EIGHT, changed=0.3),
    "eight-small": replace(EIGHT, widths=(0.05, 0.1, 0.2)),
    "eight-old-anchors-and-space": replace(EIGHT, anchors=MORE, ranges=NARROW),
    "gp": Variant(sampler="gp"),
    "random": Variant(sampler="random"),
    "qmc": Variant(sampler="qmc"),
    "no-refinement": Variant(refine_every=0),
    "refine-2": Variant(refine_every=2),
    "refine-3": Variant(refine_every=3),
    "refine-all": Variant(refine_every=1),
    "steps-small": Variant(widths=(0.02, 0.05, 0.1)),
    "steps-large": Variant(widths=(0.1, 0.2, 0.4)),
    "folded-steps": Variant(folded=True),
    "startup-8": Variant(startup=8),
    "startup-20": Variant(startup=20),
    "gp-startup-8": Variant(sampler="gp", startup=8),
    "no-anchors": Variant(anchors=()),
    "no-anchors-no-refinement": Variant(anchors=(), refine_every=0),
    "together-1": Variant(together=1),
    "together-4": Variant(together=4),
    "together-8": Variant(together=8),
    "peaks-to-1": Variant(ranges={**NARROW, "max_weight": (-0.25, 1.0)}),
    "peaks-from-0": Variant(ranges={**NARROW, "max_weight": (0.0, 1.5)}),
    "wide-tents": Variant(ranges=WIDE_TENTS),
    "anchors-more": Variant(anchors=MORE),
    "anchors-middle": Variant(anchors=MIDDLES),
    "startup-8-steps-large": Variant(startup=8, widths=LARGE),
    "startup-8-steps-large-anchors-more": Variant(startup=8, widths=LARGE, anchors=MORE),
    "startup-8-steps-large-anchors-middle": Variant(startup=8, widths=LARGE, anchors=MIDDLES),
    "steps-mixed": Variant(widths=(0.04, 0.1, 0.2, 0.4)),
    "steps-larger": Variant(widths=(0.2, 0.4, 0.8)),
    "steps-large-refine-all": Variant(widths=LARGE, refine_every=1),
    "steps-large-refine-all-anchors-more": Variant(widths=LARGE, refine_every=1, anchors=MORE),
    "steps-large-wide-tents": Variant(widths=LARGE, ranges=WIDE_TENTS),
    "old-anchors-and-space": Variant(anchors=MORE, refine_startup=1, widths=LARGE),
    "old-anchors": Variant(anchors=MORE, refine_startup=1, widths=LARGE, ranges={}),
    "old-space": Variant(anchors=optimization.ANCHORS, refine_startup=1, widths=LARGE),
    "widths-small": replace(PROGRAM, widths=(0.05, 0.1, 0.2, 0.4)),
}


class Memory:
    """Measures each edit of a model once."""

    def __init__(self, run: Run, *, afresh: bool) -> None:
        assert run.evaluator is not None
        self._evaluate = scored_with(run, run.evaluator.score)
        self._known: dict[str, Scores | TrialFailure] = {}
        self._afresh = afresh
        self.measured = 0

    def __call__(
        self, proposals: Sequence[Proposal], finished: Sequence[FinishedTrial], /
    ) -> list[Scores | TrialFailure]:
        """Results in order. `finished` is not handed on, so that no result depends on the search it came from."""
        keys = [canonical_key(proposal.parameters) for proposal in proposals]
        new = [proposal for proposal, key in zip(proposals, keys, strict=True) if key not in self._known]
        if new:
            self.measured += len(new)
            for proposal, result in zip(new, self._evaluate(new, ()), strict=True):
                self._known[canonical_key(proposal.parameters)] = result
        results = [self._known[key] for key in keys]
        if self._afresh:
            self._known.clear()
        return results


@contextmanager
def as_variant(variant: Variant) -> Iterator[None]:
    """The constants of the program as the variant wants them."""
    spaces = (vars(sampler), vars(refinement), vars(optimization))
    kept = [dict(space) for space in spaces]
    startup = variant.refine_every if variant.refine_startup is None else variant.refine_startup
    spaces[0].update(REFINE_EVERY=variant.refine_every, STARTUP_EVERY=startup)
    spaces[1].update(CHANGED=variant.changed, WIDTHS=variant.widths)
    spaces[2]["ANCHORS"] = variant.anchors
    if variant.folded:
        spaces[1]["clipped"] = refinement.reflected
    try:
        yield
    finally:
        for space, values in zip(spaces, kept, strict=True):
            space.update(values)


def searched(run: Run, variant: Variant, seed: int, trials: int, evaluate: Evaluate) -> list[FinishedTrial]:
    """The complete trials of one search, in order."""
    assert run.model is not None
    ranges = run.settings.search_space.model_copy(update=dict(variant.ranges))
    with as_variant(variant):
        outcome = run_study(
            open_study(None, fingerprint={}),
            evaluate,
            space=reachable_space(run.model.architecture, ranges),
            seed=seed,
            n_trials=trials,
            batch_size=variant.together,
            sampler=variant.sampler,
            n_startup_trials=variant.startup,
            warm_start=enqueue_warm_start_trials(run),
            reference=front_reference(run),
        )
    return list(outcome.finished)


def areas(trials: Sequence[FinishedTrial], reference: tuple[float, float]) -> list[float]:
    """Area under the front after STEP, 2 STEP, ... trials."""
    counts = range(STEP, len(trials) + 1, STEP)
    return [round(hypervolume(scaled_points(trials[:count], reference)), 5) for count in counts]


def stalled_at(trials: Sequence[FinishedTrial], reference: tuple[float, float]) -> int | None:
    """The number of trials after which `stop_on_stall` would have ended the search."""
    return next((n for n in range(1, len(trials)) if has_stalled(trials[:n], reference)), None)


def record(run: Run, name: str, seed: int, trials: int, memory: Memory) -> dict[str, Any]:
    """One search, as it goes into the file."""
    measured, begin = memory.measured, time.monotonic()
    found = searched(run, VARIANTS[name], seed, trials, memory)
    reference = front_reference(run)
    objectives = [trial.scores.objectives[::-1] for trial in found if trial.scores.feasible]
    return {
        "variant": name,
        "seed": seed,
        "trials": trials,
        "areas": areas(found, reference),
        "stalled_at": stalled_at(found, reference),
        "front": [[round(value, 5) for value in objectives[i]] for i in pareto_front(objectives)],
        "measured": memory.measured - measured,
        "seconds": round(time.monotonic() - begin, 2),
    }


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences and the limits of its 95 % bootstrap interval (10,000 resamples, fixed seed)."""
    values = np.asarray(differences)
    draws = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def table(runs: Sequence[Mapping[str, Any]], against: str, trials: int) -> str:
    """Mean area of each variant and its paired difference to `against`, over all models and seeds; times 1000."""
    final = {
        (run["model"], run["seed"], run["variant"]): run["areas"] for run in runs if run["trials"] == trials
    }
    names = list(dict.fromkeys(name for _, _, name in final))
    models = list(dict.fromkeys(model for model, _, _ in final))
    lines = [
        f"Area under the front after {trials} trials, times 1000; differences to {against!r}, pairs by seed"
    ]
    lines.append(
        f"{'variant':<26} runs   area  at half  difference [95 % interval]   at half        by model"
    )
    for name in names:
        pairs = [(m, s) for m, s, v in final if v == name and (m, s, against) in final]
        if not pairs:
            continue
        mine = [final[m, s, name] for m, s in pairs]
        other = [final[m, s, against] for m, s in pairs]
        half = len(mine[0]) // 2 - 1
        ends = [1000 * (a[-1] - b[-1]) for a, b in zip(mine, other, strict=True)]
        halves = [1000 * (a[half] - b[half]) for a, b in zip(mine, other, strict=True)]
        means = {
            m: np.mean([e for e, (k, _) in zip(ends, pairs, strict=True) if k == m])
            for m in models
            if any(k == m for k, _ in pairs)
        }
        shown = " ".join(f"{model} {value:+.1f}" for model, value in means.items())
        lines.append(
            f"{name:<26} {len(pairs):>4} {1000 * np.mean([a[-1] for a in mine]):>6.1f} "
            f"{1000 * np.mean([a[half] for a in mine]):>8.1f}  "
            "{:+6.1f} [{:+.1f}, {:+.1f}]   ".format(*interval(ends))
            + "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(halves))
            + f"   {shown}"
        )
    return "\n".join(lines) + "\n"


def load(path: Path) -> list[dict[str, Any]]:
    """Runs recorded so far."""
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else []


def store(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """One run a line, so that a difference between two versions of the file can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run) for run in runs)
    path.write_text(f'{{"step": {STEP}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def parsed(
    arguments: Sequence[str],
    variants: Mapping[str, object],
    *,
    program: str = "benchmarks.experiments",
    name: str = "search",
    base: str = "base",
) -> argparse.Namespace:
    """The command line of a comparison of `variants`. name: of the file of results; base: the variant to beat."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--models", default="demo", help=f"of demo, {', '.join(RECIPES)}")
    parser.add_argument("--variants", default=base, help=f"of {', '.join(variants)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--name", default=name, help="of the file in benchmarks/results/experiments")
    parser.add_argument("--against", default=base, help="variant that the others are compared with")
    parser.add_argument("--afresh", action="store_true", help="measure every trial again")
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    options = parser.parse_args(arguments)
    for known, given in ((variants, options.variants), ({"demo": 0, **RECIPES}, options.models)):
        unknown = [entry for entry in given.split(",") if entry not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, print the table."""
    options = parsed(arguments, VARIANTS)
    path = FOLDER / f"{options.name}.json"
    runs = load(path)
    torch.set_num_threads(1)
    done = {(run["model"], run["variant"], run["seed"], run["trials"]) for run in runs}
    for model in [] if options.table else options.models.split(","):
        wanted = [
            (variant, int(seed))
            for seed in options.seeds.split(",")
            for variant in options.variants.split(",")
            if (model, variant, int(seed), options.trials) not in done
        ]
        if not wanted:
            continue
        prepared = demo_run(build(model), threads=1)
        memory = Memory(prepared, afresh=options.afresh)
        for variant, seed in wanted:
            entry = record(prepared, variant, seed, options.trials, memory)
            runs.append({"model": model, **entry})
            store(path, runs)
            sys.stderr.write(f"{model} {variant} {seed}: {entry['areas'][-1]} in {entry['seconds']} s\n")
    sys.stdout.write(table(runs, options.against, options.trials))


if __name__ == "__main__":
    main(sys.argv[1:])
