# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.components`: components in the span of the samples against the dense d x d decomposition.

Both are measured in a process of their own, on made-up residuals, with the same threads: seconds, and peak memory
beyond the samples. The dense way takes minutes a layer, so that it is measured on `--dense-layers` and multiplied; that
both find the same subspace is checked on those layers. Requirement R-PRF-03: at least 15 times as fast, at most a
tenth of the memory. Linux only (the high-water mark of memory comes from /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.conditions import ROOT
from benchmarks.machine import machine_facts, usable_cores
from benchmarks.memory import highest_resident_bytes
from benchmarks.names import result_path

SPEED_GOAL, MEMORY_GOAL = 15.0, 0.1
ALPHA = 1.0
T = TypeVar("T")


def residuals(layers: int, width: int, prompts: int) -> Any:
    """A contrast of two classes [prompts, layers, width]: a common mean, a planted direction, noise of a falling
    spectrum. Layer l is the same for any number of layers."""
    import torch

    from heretic.directions.contrast import Contrast

    samples = torch.empty(2, prompts, layers, width)
    scales = torch.logspace(0.5, -0.5, width)
    for layer in range(layers):
        source = torch.Generator().manual_seed(layer)
        mean, direction, topics = (torch.randn(width, generator=source) for _ in range(3))
        for side in range(2):
            noise = torch.randn(prompts, width, generator=source) * scales
            topic = torch.randn(prompts, 1, generator=source) * (topics / topics.norm() * 30)
            samples[side, :, layer] = noise + topic + 4 * mean + (side == 0) * 0.3 * direction
    return Contrast(samples[0], samples[1])


def dense_components(contrast: Any, layer: int, count: int) -> Any:
    """What `components` finds at one layer, by the d x d moment and all its eigenvectors: rows [count - 1, d]."""
    import torch

    from heretic.directions.difference import difference
    from heretic.linalg.lowrank import orthonormal_columns

    target, control = contrast.at(layer)
    mean = control.mean(dim=0)
    first = difference(contrast).directions[layer, 0].double()
    basis, _ = orthonormal_columns(torch.stack([first, mean / mean.norm()], dim=1))
    for rows in (target, control):
        rows -= mean
        rows -= (rows @ basis) @ basis.T
    moment = target.T @ target
    moment.mul_(1 / (len(target) - 1)).addmm_(control.T, control, alpha=-ALPHA / (len(control) - 1))
    _, vectors = torch.linalg.eigh(moment)
    return vectors[:, -(count - 1) :].T


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result of `work`, its seconds, its processor seconds (the same on a busy machine) and peak extra bytes."""
    before = highest_resident_bytes(os.getpid())
    begin, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        "bytes": float(highest_resident_bytes(os.getpid()) - before),
    }


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One way, measured in this process."""
    import torch

    from heretic.directions.components import components
    from heretic.linalg.geometry import principal_angles

    torch.set_num_threads(options.threads)
    # Libraries load and start their threads on the first call; that is no cost of either way.
    small = residuals(1, 64, 16)
    components(small, count=options.count, alpha=ALPHA)
    dense_components(small, 0, options.count)
    layers = options.layers if options.child == "span" else options.dense_layers
    contrast = residuals(layers, options.width, options.prompts)
    if options.child == "span":
        bank, figures = timed(lambda: components(contrast, count=options.count, alpha=ALPHA))
        return {**figures, "layers": layers, "found": bank.provenance["found"]}
    dense, figures = timed(
        lambda: [dense_components(contrast, layer, options.count) for layer in range(layers)]
    )
    rows = components(contrast, count=options.count, alpha=ALPHA).directions[:, 1:]
    angles = [float(principal_angles(rows[layer], dense[layer]).max()) for layer in range(layers)]
    return {**figures, "layers": layers, "largest_angle": max(angles)}


def measured(way: str, given: Sequence[str]) -> dict[str, Any]:
    """The figures of one way, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.components", "--child", way, *given]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return figures


def document(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways as a result document."""
    given = [
        word
        for name in ("layers", "width", "prompts", "count", "dense_layers", "threads")
        for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]
    machine = machine_facts()
    span, dense = measured("span", given), measured("dense", given)
    each = {
        clock: (dense[clock] / dense["layers"]) / (span[clock] / span["layers"])
        for clock in ("seconds", "processor_seconds")
    }
    return {
        "kind": "components",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "threads": options.threads,
        "layers": options.layers,
        "width": options.width,
        "prompts": options.prompts,
        "count": options.count,
        "alpha": ALPHA,
        "span": span,
        "dense": dense,
        "times_as_fast": each,
        "share_of_memory": span["bytes"] / dense["bytes"],
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Markdown table with the verdicts."""
    span, dense = found["span"], found["dense"]
    # Other work on the machine distorts one clock, waiting threads the other; the less favourable one counts.
    times = min(found["times_as_fast"].values())
    fast, memory = times >= SPEED_GOAL, found["share_of_memory"] <= MEMORY_GOAL
    return [
        f"{found['layers']} layers of {found['width']}, {found['prompts']} + {found['prompts']} prompts, "
        f"{found['count']} components, {found['threads']} threads",
        "",
        "| way | layers measured | s | processor s | processor s a layer | MB beyond the samples |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {way['layers']} | {way['seconds']:.1f} | {way['processor_seconds']:.1f} "
            f"| {way['processor_seconds'] / way['layers']:.3f} | {way['bytes'] / 1e6:.0f} |"
            for name, way in (("in the span", span), ("dense d x d", dense))
        ),
        "",
        f"{times:.0f} times as fast a layer ({'met' if fast else 'missed'}: {SPEED_GOAL:.0f}), "
        f"{found['share_of_memory']:.3f} of the memory ({'met' if memory else 'missed'}: {MEMORY_GOAL}); "
        f"largest angle between the two subspaces {dense['largest_angle']:.1e} rad",
    ]


def main(given: Sequence[str] | None = None) -> int:
    """Command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.components", description=__doc__)
    made.add_argument("--layers", type=int, default=64)
    made.add_argument("--width", type=int, default=5120)
    made.add_argument("--prompts", type=int, default=400, help="of each class (default 400)")
    made.add_argument("--count", type=int, default=3, help="components (default 3)")
    made.add_argument("--dense-layers", type=int, default=1, help="layers of the dense way (default 1)")
    made.add_argument("--threads", type=int, default=usable_cores())
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    made.add_argument("--child", choices=["span", "dense"], help=argparse.SUPPRESS)
    options = made.parse_args(given)
    if options.child:
        print(json.dumps(child(options)))
        return 0
    found = document(options)
    path = result_path(options.out, "components")
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
