# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.floor --model DIR`: the arithmetic a trial cannot do without, beside the time it takes.

Counted is what any exact evaluation of one trial must multiply, given its prompts and the replies it really made:

    prompts     every token of the scoring prompts once, teacher-forced base tokens included (KL)
    replies     every reply token but the last once, for as long as its row runs
    head        only where a distribution is read: T positions of each good prompt, one a reply token of each bad one

Two floors: `plain` (each prompt on its own, all layers) and `shared` (the tokens that all prompts begin with once per
trial, and the layers below the trial's first edit not at all for prompt tokens: they are the same in every trial).
A matrix product is charged the time that torch needs for it on this machine at its real shape: rows of all trials of
one call times width. Attention is charged at the best rate measured, softmax, norms, caches, sampling and Python at
nothing: a floor, not a forecast. Use it with a random-weight model (`benchmarks.grow --random`), where every reply
runs to its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.conditions import ROOT
from benchmarks.grow import Shape, shape_of
from benchmarks.machine import machine_facts, usable_cores
from benchmarks.names import DEMO_MODEL, model_name, result_path

SECONDS_PER_SHAPE = 0.4
"""How long one matrix shape is timed; the fastest call counts."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a trial. tokens: rows of every matrix product. read: rows of the head's product.

    attended: sum over tokens of the positions each attends to, itself included. layers: blocks passed through.
    """

    name: str
    tokens: int
    read: int
    attended: int
    layers: int


@dataclass(frozen=True, slots=True)
class Work:
    """What a trial has to do.

    prompts: token counts of the bad prompts; replies: tokens made for each; ended: whether an end token closed it (one
    pass more). forced: token counts of good prompts with their teacher-forced tokens; kl_tokens: T. prefix: tokens that
    all prompts begin with. first_layer: first edited block.
    """

    prompts: Sequence[int]
    replies: Sequence[int]
    ended: Sequence[bool]
    forced: Sequence[int]
    kl_tokens: int
    prefix: int = 0
    first_layer: int = 0


def attended(length: int, skipped: int = 0) -> int:
    """Sum over the tokens skipped..length-1 of a row of the positions each attends to (causal)."""
    return length * (length + 1) // 2 - skipped * (skipped + 1) // 2


def passes(work: Work, layers: int, *, shared: bool) -> list[Pass]:
    """The forward passes of one trial: KL, prompts, then one a reply position for the rows that still run."""
    skipped = work.prefix if shared else 0
    below = work.first_layer if shared else 0
    found: list[Pass] = []
    if skipped:
        found.append(Pass("prefix", skipped, 0, attended(skipped), layers - below))
    for name, rows, read in (
        ("KL", work.forced, work.kl_tokens * len(work.forced)),
        ("prompts", work.prompts, len(work.prompts)),
    ):
        tokens = sum(length - skipped for length in rows)
        seen = sum(attended(length, skipped) for length in rows)
        found.append(Pass(name, tokens, read, seen, layers - below))
    # The first token of a reply comes from the prompt's pass; each later one, and an end token, costs a pass.
    further = [reply - (not ended) for reply, ended in zip(work.replies, work.ended, strict=True)]
    for step in range(max(further, default=0)):
        running = [length for length, count in zip(work.prompts, further, strict=True) if count > step]
        seen = sum(length + step + 1 for length in running)
        found.append(Pass("replies", len(running), len(running), seen, layers))
    return found


def products(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(input, output) sizes of one block's matrix products; products of one input count as one wide product."""
    head = shape.head
    query, key = shape.heads * head, shape.key_value_heads * head
    return (
        (shape.hidden, query + 2 * key),
        (query, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    )


def attention_products(shape: Shape, one: Pass) -> int:
    """Multiply-adds of scores and weighted values over all layers of a pass."""
    return 2 * shape.heads * shape.head * one.attended * one.layers


def multiply_adds(shape: Shape, work: Sequence[Pass]) -> dict[str, int]:
    """Multiply-adds of a trial: `linear`, `head`, `attention`."""
    block = sum(inside * outside for inside, outside in products(shape))
    return {
        "linear": sum(one.tokens * one.layers * block for one in work),
        "head": sum(one.read * shape.hidden * shape.vocabulary for one in work),
        "attention": sum(attention_products(shape, one) for one in work),
    }


Timer = Callable[[int, int, int], float]
"""(rows, input, output) -> seconds of one product."""


def floor_seconds(shape: Shape, work: Sequence[Pass], together: int, seconds: Timer) -> dict[str, float]:
    """Floor of one trial by pass name; `together` trials share each pass, so its rows are that many times more."""
    timed: dict[tuple[int, int, int], float] = {}
    best = 0.0

    def of(rows: int, inside: int, outside: int) -> float:
        nonlocal best
        key = (rows, inside, outside)
        if rows and key not in timed:
            timed[key] = seconds(*key)
            best = max(best, rows * inside * outside / timed[key])
        return timed.get(key, 0.0)

    found: dict[str, float] = {}
    for one in work:
        block = sum(of(one.tokens * together, *size) for size in products(shape))
        head = of(one.read * together, shape.hidden, shape.vocabulary)
        found[one.name] = found.get(one.name, 0.0) + (one.layers * block + head) / together
    found["attention"] = sum(attention_products(shape, one) for one in work) / best if best else 0.0
    return found


class MeasuredTimer:
    """Times torch's product of float32 matrices. Few row counts are measured; others between two are interpolated."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.rates: dict[tuple[int, int, int], float] = {}

    def __call__(self, rows: int, inside: int, outside: int) -> float:
        """Seconds of one product; large row counts are cut into chunks of 4096, which no longer changes the rate."""
        chunk = min(rows, 4096)
        step = max(1, 2 ** (chunk.bit_length() - 4))
        low = chunk // step * step
        high = low if low == chunk else low + step
        below, above = self._timed(low, inside, outside), self._timed(high, inside, outside)
        one = below if low == high else below + (above - below) * (chunk - low) / (high - low)
        return one * rows / chunk

    @torch.no_grad()
    def _timed(self, rows: int, inside: int, outside: int) -> float:
        key = (rows, inside, outside)
        if key not in self.rates:
            values = torch.randn(rows, inside).to(self.dtype)
            weight = torch.randn(outside, inside).to(self.dtype)
            best, end = float("inf"), time.perf_counter() + SECONDS_PER_SHAPE
            while best == float("inf") or time.perf_counter() < end:
                begin = time.perf_counter()
                torch.nn.functional.linear(values, weight)
                best = min(best, time.perf_counter() - begin)
            self.rates[key] = best
        return self.rates[key]


def works_of(run: Any, edits: Sequence[Any], outcomes: Sequence[Any]) -> list[Work]:
    """What each measured trial had to do."""
    model, bundle, lengths = run.model, run.bundle, run.lengths
    bad = [tuple(ids) for ids in model.encoder.encode_all(bundle.bad_evaluation.prompts)]
    good = [tuple(ids) for ids in model.encoder.encode_all(bundle.good_evaluation.prompts)]
    prefix = len(os.path.commonprefix([*bad, *good]))
    found: list[Work] = []
    for edit, outcome in zip(edits, outcomes, strict=True):
        found.append(
            Work(
                prompts=[len(ids) for ids in bad],
                replies=[len(reply.tokens) for reply in outcome.replies],
                ended=[bool(reply.ended) for reply in outcome.replies],
                # The last of T forced tokens is predicted, not read.
                forced=[len(ids) + lengths.kl - 1 for ids in good],
                kl_tokens=lengths.kl,
                prefix=prefix,
                first_layer=min((max(0, site.layer) for site in edit), default=0),
            )
        )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Trials of our engine and their floors as a result document."""
    from benchmarks.prepared import demo_run, own_peak_bytes, timed_score, trial_edits

    machine = machine_facts()
    torch.set_num_threads(options.threads)
    model = options.model or DEMO_MODEL
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    run = demo_run(options.model, prompts=options.prompts, threads=options.threads)
    edits = trial_edits(run, options.trials)
    # What the engine keeps between trials is there after one batch, as in a search.
    timed_score(run, edits[: options.together], options.together)
    seconds, outcomes = timed_score(run, edits, options.together)
    peak = own_peak_bytes()
    shape, timer = shape_of(config), MeasuredTimer()
    works = works_of(run, edits, outcomes)
    floors: dict[str, Any] = {}
    for name in ("plain", "shared"):
        each = [passes(work, shape.layers, shared=name == "shared") for work in works]
        parts = [floor_seconds(shape, one, options.together, timer) for one in each]
        floors[name] = {
            "seconds": mean(sum(part.values()) for part in parts),
            "parts": {key: mean(part.get(key, 0.0) for part in parts) for key in parts[0]},
            "multiply_adds": {
                key: mean(multiply_adds(shape, one)[key] for one in each)
                for key in ("linear", "head", "attention")
            },
        }
    rates = {key: 2 * key[0] * key[1] * key[2] / value / 1e9 for key, value in timer.rates.items()}
    return {
        "kind": "floor",
        "date": datetime.now(UTC).date().isoformat(),
        "model": model_name(options.model),
        "parameters": shape.parameters,
        "machine": machine,
        "threads": options.threads,
        "prompts": options.prompts,
        "together": options.together,
        "trials": options.trials,
        "reply_tokens": mean(mean(work.replies) for work in works),
        "prompt_tokens": mean(works[0].prompts),
        "prefix_tokens": works[0].prefix,
        "measured_per_trial_s": seconds / options.trials,
        "peak_memory_bytes": peak,
        "floors": floors,
        "best_gflops": max(rates.values()),
        "decode_gflops": _rate_at(rates, options.together * options.prompts),
    }


def _rate_at(rates: Mapping[tuple[int, int, int], float], rows: int) -> float:
    """Mean rate of the shapes whose row count lies nearest to `rows`."""
    nearest = min((abs(key[0] - rows) for key in rates), default=0)
    return mean(rate for key, rate in rates.items() if abs(key[0] - rows) == nearest)


def lines(document: Mapping[str, Any]) -> list[str]:
    """Markdown table: both floors beside the measured time."""
    measured = float(document["measured_per_trial_s"])
    made = [
        "| floor of one trial | multiply-adds | floor, s | measured, s | measured / floor |",
        "|---|---|---|---|---|",
    ]
    for name, words in (
        ("plain", "every prompt, every layer"),
        ("shared", "common beginning and lower layers once"),
    ):
        floor = document["floors"][name]
        work, seconds = sum(floor["multiply_adds"].values()), float(floor["seconds"])
        made.append(
            f"| {words} | {work / 1e9:.1f} G | {seconds:.2f} | {measured:.2f} | {measured / seconds:.2f} x |"
        )
    return made


def main(given: Sequence[str] | None = None) -> int:
    """Command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.floor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", type=Path, help="model folder (default: the demo model)")
    made.add_argument("--trials", type=int, default=2)
    made.add_argument("--together", type=int, default=1, help="trials in one call (default 1)")
    made.add_argument("--prompts", type=int, default=100, help="prompts of each kind (default 100)")
    made.add_argument("--threads", type=int, default=usable_cores())
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = made.parse_args(given)
    document = measure(options)
    path = result_path(options.out, "floor", str(document["model"]))
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(lines(document)))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in document["floors"]["plain"]["parts"].items())
    print(
        f"plain floor by part, s: {parts}; {document['reply_tokens']:.1f} tokens a reply; products at "
        f"{document['decode_gflops']:.0f} GF/s in replies, {document['best_gflops']:.0f} at best"
    )
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
