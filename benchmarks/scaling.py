# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.scaling`: how the time of a trial grows with prompts, layers, trials in one call and trials.

One quantity changes at a time, the others stay at their base value. The layers come from `benchmarks.grow`: models of
the demo model's width that behave as it does and are deeper, so that replies keep their length. Writes a JSON document
and, where matplotlib is installed, a plot; prints a straight line fitted by least squares with its R^2.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.conditions import ROOT
from benchmarks.grow import shape_of, write_model
from benchmarks.machine import machine_facts, usable_cores
from benchmarks.names import DEMO_MODEL, model_name, result_path
from benchmarks.plot import Series, draw_scaling
from benchmarks.records import Line, fit

AXES: Mapping[str, tuple[str, str]] = {
    "prompts": ("prompts of each kind", "s a trial"),
    "layers": ("layers", "s a trial"),
    "together": ("trials in one call", "s a trial"),
    "trials": ("first trials of a run", "s in all"),
}
"""Quantity -> (what x counts, what y measures)."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measuring point. run: the prepared run; together: trials in one call of the evaluator."""

    series: str
    x: int
    run: Any
    together: int


def total_seconds(run: Any, trials: int, together: int) -> list[float]:
    """Seconds since the start after each call, until `trials` trials are measured."""
    from benchmarks.prepared import timed_score, trial_edits

    edits = trial_edits(run, trials)
    ends: list[float] = []
    for start in range(0, trials, together):
        seconds, _ = timed_score(run, edits[start : start + together], together)
        ends.append(seconds + (ends[-1] if ends else 0.0))
    return ends


@contextmanager
def deeper_models(source: Path, layers: Sequence[int]) -> Iterator[dict[int, Path]]:
    """Models of the source's width with so many layers, written to a folder that goes away."""
    shape = shape_of(json.loads((source / "config.json").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        found = {shape.layers: source}
        for count in layers:
            if count not in found:
                found[count] = Path(folder) / f"layers-{count}"
                write_model(source, found[count], 0.0, hidden=shape.hidden, layers=count)
        yield {count: found[count] for count in layers}


def measured_series(
    points: Sequence[Point], options: argparse.Namespace
) -> dict[str, dict[int, list[float]]]:
    """Seconds of every repeat at every point; the repeats go round all points, so that a slow minute hits them all."""
    series: dict[str, dict[int, list[float]]] = {name: {} for name in AXES}
    for point in points:
        # The first round fills what the engine keeps between trials and is not counted.
        total_seconds(point.run, options.count, point.together)
    base = next(point.run for point in points if point.series == "together")
    for _ in range(options.repeats):
        for point in points:
            seconds = total_seconds(point.run, options.count, point.together)[-1] / options.count
            series[point.series].setdefault(point.x, []).append(seconds)
        # One search gives all points of this series: how long the first n trials took.
        ends = total_seconds(base, max(options.trials), options.base_together)
        for trials in options.trials:
            calls = -(-trials // options.base_together)
            series["trials"].setdefault(trials, []).append(ends[calls - 1])
    return series


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All series as a result document."""
    from benchmarks.prepared import demo_run

    most, machine = max(options.prompts), machine_facts()
    source = options.model or DEMO_MODEL
    own = shape_of(json.loads((source / "config.json").read_text(encoding="utf-8"))).layers
    base = demo_run(source, prompts=most, threads=options.threads)
    points = [Point("together", together, base, together) for together in options.together]
    for prompts in options.prompts:
        run = base if prompts == most else demo_run(source, prompts=prompts, threads=options.threads)
        points.append(Point("prompts", prompts, run, options.base_together))
    with deeper_models(source, options.layers) as models:
        for layers, folder in models.items():
            run = base if layers == own else demo_run(folder, prompts=most, threads=options.threads)
            points.append(Point("layers", layers, run, options.base_together))
        series = measured_series(points, options)
    return {
        "kind": "scaling",
        "date": datetime.now(UTC).date().isoformat(),
        "model": model_name(options.model),
        "machine": machine,
        "threads": options.threads,
        "prompts": most,
        "together": options.base_together,
        "trials": options.count,
        "repeats": options.repeats,
        "series": {
            name: [[x, values] for x, values in sorted(found.items())] for name, found in series.items()
        },
    }


def points_of(document: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    """(x, median seconds) of one series."""
    return [(float(x), median(values)) for x, values in document["series"][name]]


def fits(document: Mapping[str, Any]) -> dict[str, Line]:
    """A line for every series of three points or more (two always fit), but trials in one call: none is expected."""
    found = {name: points_of(document, name) for name in AXES if name != "together"}
    return {name: fit(points) for name, points in found.items() if len(points) >= 3}


def lines(document: Mapping[str, Any]) -> list[str]:
    """Markdown table: every series with its line."""
    known = fits(document)
    made = ["| against | x: median seconds | line, s | R^2 |", "|---|---|---|---|"]
    for name, (counted, measured) in AXES.items():
        values = ", ".join(f"{x:g}: {y:.3f}" for x, y in points_of(document, name)) or "-"
        line = known.get(name)
        formula = f"{line.slope:.4g} x {line.intercept:+.3f}" if line else "-"
        squared = f"{line.r_squared:.4f}" if line else "-"
        made.append(f"| {counted} ({measured}) | {values} | {formula} | {squared} |")
    return made


def plot(document: Mapping[str, Any], path: Path) -> bool:
    """Draw all series with their lines; False where matplotlib is not installed."""
    known = fits(document)
    panels: list[Series] = []
    for name, (counted, measured) in AXES.items():
        found = [(float(x), [float(value) for value in values]) for x, values in document["series"][name]]
        line = known.get(name)
        words = f"R^2 = {line.r_squared:.4f}" if line else ""
        panels.append(Series(counted, measured, found, (line.slope, line.intercept) if line else None, words))
    told = f"{document['model']}, {document['threads']} thread(s), {document['machine']['processor']}"
    return draw_scaling(panels, f"Cost of a trial: {told}", path)


def _numbers(text: str) -> list[int]:
    values = sorted({int(word) for word in text.split(",") if word})
    if not values or values[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers of 1 or more")
    return values


def main(given: Sequence[str] | None = None) -> int:
    """Command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    made.add_argument("--model", type=Path, help="model folder (default: the demo model)")
    made.add_argument("--prompts", type=_numbers, default=[25, 50, 75, 100], help="default 25,50,75,100")
    made.add_argument("--layers", type=_numbers, default=[8, 16, 24, 32], help="default 8,16,24,32")
    made.add_argument("--together", type=_numbers, default=[1, 2, 4, 8], help="trials in one call; 1,2,4,8")
    made.add_argument("--trials", type=_numbers, default=[4, 8, 16, 32], help="trials in all; 4,8,16,32")
    made.add_argument("--base-together", type=int, default=2, help="trials in one call elsewhere (default 2)")
    made.add_argument("--count", type=int, default=8, help="trials of a point where they do not vary")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=usable_cores())
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    made.add_argument("--redraw", action="store_true", help="measure nothing; draw the document in --out")
    options = made.parse_args(given)
    path = result_path(options.out, "scaling", model_name(options.model))
    if options.redraw:
        document = json.loads(path.read_text(encoding="utf-8"))
    else:
        document = measure(options)
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(lines(document)))
    if plot(document, path.with_suffix(".png")):
        print(f"plot: {path.with_suffix('.png')}")
    else:
        print("no plot: matplotlib is not installed (python -m benchmarks.scaling --redraw draws it later)")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
