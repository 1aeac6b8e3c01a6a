# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.profile --label NAME`: where the time of a trial goes, by kind of operator.

Runs the trials of `benchmarks.prepared.trial_edits` twice: once plain for the true time, once under torch's profiler
for the shares. `batched products` are edits of several trials, and attention where it is written out. The profiler
charges every operator a few microseconds, so shares of small operators and of Python are upper bounds; the plain time
stands beside them. CPU only: an accelerator's kernels run behind Python's back.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.conditions import ROOT
from benchmarks.machine import machine_facts, usable_cores
from benchmarks.names import model_name, result_path

KINDS: Mapping[str, tuple[str, ...]] = {
    "linear": ("linear", "mm", "addmm", "mkldnn_linear", "mv", "addmv", "matmul"),
    "attention": ("attention", "_softmax", "softmax"),
    "batched products": ("bmm", "baddbmm", "einsum"),
    "cat and copy": (
        "cat", "copy_", "clone", "contiguous", "index", "index_select", "gather", "repeat", "repeat_interleave",
        "index_put_", "_index_put_impl_", "scatter", "_to_copy", "to", "constant_pad_nd", "pad", "stack", "embedding",
        "masked_select", "nonzero", "index_copy_", "_pin_memory", "resize_", "item", "_local_scalar_dense",
    ),
    "elementwise": (
        "add", "sub", "mul", "div", "neg", "pow", "rsqrt", "sqrt", "exp", "log", "silu", "gelu", "tanh", "sigmoid",
        "cos", "sin", "where", "clamp", "eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "logical_and",
        "logical_or", "bitwise_not", "logical_not", "fill_", "zero_", "masked_fill", "maximum", "minimum", "abs",
        "addcmul", "square", "reciprocal", "rsub", "tril", "triu",
    ),
    "reductions": (
        "mean", "sum", "argmax", "max", "min", "amax", "amin", "any", "all", "cumsum", "topk", "sort", "_log_softmax",
        "log_softmax", "isin", "isfinite", "norm", "linalg_vector_norm", "logsumexp", "rms_norm", "_fused_rms_norm",
    ),
    "views and memory": (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "t", "permute", "expand", "slice", "select",
        "unsqueeze", "squeeze", "narrow", "split", "chunk", "as_strided", "empty", "empty_like", "empty_strided",
        "zeros", "ones", "full", "arange", "detach", "alias", "unbind", "result_type", "lift_fresh", "zeros_like",
        "ones_like", "full_like", "new_empty", "new_zeros", "new_full", "expand_as", "flatten", "unflatten",
        "scalar_tensor",
    ),
}  # fmt: skip
PYTHON = "python and the rest"
OTHER = "other operators"


def kind_of(operator: str) -> str:
    """The kind of one operator as the profiler names it, such as `aten::addmm`."""
    name = operator.removeprefix("aten::")
    if "attention" in name:
        return "attention"
    for kind, names in KINDS.items():
        if name in names or name.removesuffix("_") in names:
            return kind
    return OTHER


def shares(operators: Iterable[tuple[str, float]], wall_s: float) -> dict[str, float]:
    """Seconds by kind from (operator, own seconds on the calling thread); Python is what no operator accounts for."""
    found = dict.fromkeys([*KINDS, OTHER], 0.0)
    for name, seconds in operators:
        found[kind_of(name)] += seconds
    # A clock of its own resolution: the difference must not come out below nothing.
    return {**found, PYTHON: max(0.0, wall_s - sum(found.values()))}


def profiled(run: Any, edits: Sequence[Any], together: int) -> tuple[float, list[tuple[str, float, int]]]:
    """Wall seconds under the profiler, and own seconds and calls of each operator on the calling thread."""
    from benchmarks.prepared import timed_score

    with profile(activities=[ProfilerActivity.CPU]) as recorder:
        begin = time.perf_counter()
        timed_score(run, edits, together)
        seconds = time.perf_counter() - begin
    rows = [
        (str(event.key), float(event.self_cpu_time_total) / 1e6, int(event.count))
        for event in recorder.key_averages()
    ]
    return seconds, rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The profile as a result document."""
    from benchmarks.prepared import demo_run, timed_score, trial_edits

    machine = machine_facts()
    run = demo_run(options.model, prompts=options.prompts, threads=options.threads)
    edits = trial_edits(run, options.trials)
    # A search fills what the engine keeps between trials within its first batches; so does this round.
    timed_score(run, edits, options.together)
    plain, _ = timed_score(run, edits, options.together)
    wall, rows = profiled(run, edits, options.together)
    by_kind = shares([(name, seconds) for name, seconds, _ in rows], wall)
    largest = sorted(rows, key=lambda row: -row[1])[:12]
    return {
        "kind": "profile",
        "label": options.label,
        "date": datetime.now(UTC).date().isoformat(),
        "model": model_name(options.model),
        "machine": machine,
        "threads": torch.get_num_threads(),
        "prompts": options.prompts,
        "together": options.together,
        "trials": options.trials,
        "plain_per_trial_s": plain / options.trials,
        "profiled_per_trial_s": wall / options.trials,
        "operators_per_trial": sum(count for _, _, count in rows) / options.trials,
        "share": {kind: seconds / wall for kind, seconds in by_kind.items()},
        "largest": [[name, seconds / wall, count / options.trials] for name, seconds, count in largest],
    }


def table(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: one column for each profile, shares of the profiled time."""
    labels = [str(document["label"]) for document in documents]
    lines = [f"| share of a trial's time | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}"]
    for kind in [*KINDS, OTHER, PYTHON]:
        cells = [f"{100 * float(document['share'].get(kind, 0.0)):.1f} %" for document in documents]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for name, key, digits in (
        ("operator calls a trial", "operators_per_trial", 0),
        ("s a trial, profiled", "profiled_per_trial_s", 3),
        ("s a trial, plain", "plain_per_trial_s", 3),
    ):
        cells = [f"{float(document[key]):.{digits}f}" for document in documents]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(given: Sequence[str] | None = None) -> int:
    """Command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    made.add_argument("--label", required=True, help="column of the table, such as before or after")
    made.add_argument("--model", type=Path, help="model folder (default: the demo model)")
    made.add_argument("--trials", type=int, default=8)
    made.add_argument("--together", type=int, default=2, help="trials in one call (default 2)")
    made.add_argument("--prompts", type=int, default=100, help="prompts of each kind (default 100)")
    made.add_argument("--threads", type=int, default=usable_cores())
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = made.parse_args(given)
    document = measure(options)
    path = result_path(options.out, "profile", str(document["model"]), options.label)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(table([document])))
    for name, share, count in document["largest"]:
        print(f"  {name:55} {100 * share:5.1f} %  {count:9.1f} calls a trial")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
