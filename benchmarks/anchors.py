# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.anchors --models demo,llama,olmo,phi`: which even edits should be tried first?

Measures a grid of them (where the direction comes from, tent, peak; all components alike) on each model and prints the
area under the front, scaled as the program scales it: of the whole grid, of the program's anchors, of those before
decision 0013, and of the best set of each size, chosen greedily by its mean share of the grid's area on the models
named by `--choose`. Results stay in benchmarks/results/experiments/anchors.json and are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.experiments import FLAT, FOLDER, MORE
from benchmarks.models import RECIPES, build
from benchmarks.prepared import demo_run
from heretic.linalg.pareto import hypervolume
from heretic.phases import optimization
from heretic.phases.optimization import Anchor, anchor_points, front_reference, scored_with
from heretic.study.types import Proposal, Scores

TENTS = (FLAT, optimization.MIDDLE, (0.45, 0.4), optimization.WIDE)
SOURCES = (*(("global", index) for index in (0.5, 0.65, 0.8, 0.9, 0.95)), ("per_layer", None))
GRID: tuple[Anchor, ...] = tuple(
    (scope, index, peak, tent) for scope, index in SOURCES for tent in TENTS for peak in (1.0, 1.25, 1.5)
)
TOGETHER = 4
SETS = 8


def measured(name: str) -> list[list[float]]:
    """(KL, rate) of each edit of the grid over the reference of the hypervolume."""
    run = demo_run(build(name), threads=1)
    assert run.evaluator is not None
    evaluate, (worst_rate, worst_kl) = scored_with(run, run.evaluator.score), front_reference(run)
    points = anchor_points(run, GRID)
    found: list[list[float]] = []
    for first in range(0, len(points), TOGETHER):
        batch = [Proposal(first + k, point) for k, point in enumerate(points[first : first + TOGETHER])]
        for result in evaluate(batch, ()):
            assert isinstance(result, Scores), result
            rate, kl = result.objectives
            found.append([round(kl / worst_kl, 6), round(rate / worst_rate, 6)])
    return found


def area(points: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    """Hypervolume of some of the points."""
    return hypervolume([(points[number][0], points[number][1]) for number in chosen])


def greedy(grids: Mapping[str, Sequence[Sequence[float]]], size: int) -> list[int]:
    """The edits of the grid that add most to the mean share of the grid's area, one after the other."""
    whole = {name: area(points, range(len(points))) for name, points in grids.items()}
    chosen: list[int] = []
    for _ in range(size):

        def share(number: int) -> float:
            return sum(area(points, [*chosen, number]) / whole[name] for name, points in grids.items())

        chosen.append(max((n for n in range(len(GRID)) if n not in chosen), key=share))
    return chosen


def report(grids: Mapping[str, Sequence[Sequence[float]]], choose: Sequence[str]) -> str:
    """The table: sets of edits against models, areas times 1000."""
    found = greedy({name: grids[name] for name in choose}, SETS)
    sets: dict[str, Sequence[int]] = {
        f"whole grid ({len(GRID)})": range(len(GRID)),
        "the program's": [GRID.index(anchor) for anchor in optimization.ANCHORS],
        "before decision 0013": [GRID.index(anchor) for anchor in MORE],
        **{f"best {n} of {'+'.join(choose)}": found[:n] for n in (1, 2, 4, 6, 8)},
    }
    lines = [f"{'edits':<28}" + "".join(f"{name:>8}" for name in grids)]
    for title, chosen in sets.items():
        areas = [1000 * area(points, chosen) for points in grids.values()]
        lines.append(f"{title:<28}" + "".join(f"{value:>8.0f}" for value in areas))
    lines += [f"best {place}: {GRID[number]}" for place, number in enumerate(found, 1)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchors")
    parser.add_argument("--models", default="demo,llama,olmo,phi", help=f"of demo, {', '.join(RECIPES)}")
    parser.add_argument("--choose", default="demo,llama,olmo", help="models on which the best are chosen")
    options = parser.parse_args(arguments)
    path = FOLDER / "anchors.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    torch.set_num_threads(1)
    for name in options.models.split(","):
        if name not in known:
            known[name] = measured(name)
            lines = ",\n".join(f'"{model}": {json.dumps(points)}' for model, points in known.items())
            path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    grids = {name: known[name] for name in options.models.split(",")}
    sys.stdout.write(report(grids, options.choose.split(",")))


if __name__ == "__main__":
    main(sys.argv[1:])
