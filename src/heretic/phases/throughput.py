# SPDX-License-Identifier: Apache-2.0
"""How many trials are measured at a time: as many as throughput gains from and free memory holds (algorithms 6.2)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from heretic.decoding.lower import entry_bytes
from heretic.evaluator.copies import computing_threads, processes_for
from heretic.exceptions import ConfigurationError
from heretic.interventions.hooks import Rows
from heretic.phases.loading import device_memory
from heretic.phases.state import Run

logger = logging.getLogger("heretic.phases")

MOST_TRIALS: Final = 16
MOST_PER_PASS: Final = {"cpu": 4, "cuda": 16}
LEAST_GAIN: Final = 1.10
"""Doubling the trials of a pass has to gain a tenth: the more are asked at once, the less each knows of the others."""

MEMORY_SHARE: Final = 0.5
MEASURED_STEPS: Final = 3
MEASURED_TOKENS: Final = 8
"""Tokens of the prompts whose steps are timed: what is read before a step costs it little."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Time of one decode step of B rows, seconds: fixed + per_row * B."""

    fixed: float
    per_row: float

    def seconds(self, rows: int) -> float:
        """A step of so many rows."""
        return self.fixed + self.per_row * rows

    def gain(self, rows: int, trials: int) -> float:
        """Throughput of steps with `trials` trials of `rows` rows each, over one trial at a time."""
        return trials * self.seconds(rows) / self.seconds(rows * trials)


def require_fitting(run: Run) -> None:
    """Raise `ConfigurationError` for a setting `trials_per_batch` beyond what memory holds."""
    wanted, limit = run.settings.trials_per_batch, memory_limit(run)
    if limit is not None and wanted > limit:
        raise ConfigurationError(
            f"trials_per_batch is {wanted}, but memory holds the replies of {limit} at a time.",
            hint=f"Allowed here: 1 to {limit}, or 0 to have it chosen. A smaller --max-batch-size or "
            "--max-response-length needs less for each.",
        )


def trials_per_batch(run: Run) -> int:
    """The setting, or what the study was begun with, else what measured throughput gains from: so many in a pass of
    each process (`heretic.evaluator.copies`)."""
    if run.settings.trials_per_batch:
        return run.settings.trials_per_batch
    limit = memory_limit(run)
    stored = None if run.study is None else run.study.stored("trials_per_batch")
    if isinstance(stored, int):
        return stored
    assert run.model is not None and run.evaluator is not None
    device, rows = run.model.device, _rows_per_trial(run)
    most = MOST_TRIALS if limit is None else max(1, min(MOST_TRIALS, limit))
    processes = processes_for(device, most)
    most_per_pass = min(most // processes, MOST_PER_PASS.get(device.type, MOST_PER_PASS["cuda"]))
    if most_per_pass == 1:
        return processes
    with computing_threads(1 if processes > 1 else torch.get_num_threads()):
        timed = measured_step(run, rows)
    chosen = best_number(timed, rows, most_per_pass)
    run.console.detail(
        f"{processes} processes, {chosen} trials in a pass of each: a step of {rows} rows takes "
        f"{timed.seconds(rows):.4f} s, of {chosen * rows} rows {timed.seconds(chosen * rows):.4f} s; "
        f"gain {timed.gain(rows, chosen):.2f}"
    )
    return processes * chosen


def best_number(timed: StepTime, rows: int, most: int) -> int:
    """The number of trials at which doubling gains less than a tenth; a power of two, or `most`."""
    chosen = 1
    while chosen < most:
        doubled = min(2 * chosen, most)
        if timed.gain(rows, doubled) < LEAST_GAIN * timed.gain(rows, chosen):
            break
        chosen = doubled
    return chosen


def fitted(rows: Sequence[int], seconds: Sequence[float]) -> StepTime:
    """Least squares line through step times; neither part is below zero."""
    count = torch.tensor(rows, dtype=torch.float64)
    taken = torch.tensor(seconds, dtype=torch.float64)
    deviation = count - count.mean()
    slope = max(0.0, float((deviation * taken).sum() / deviation.square().sum()))
    return StepTime(max(0.0, float(taken.mean() - slope * count.mean())), slope)


def measured_step(run: Run, rows: int) -> StepTime:
    """Time steps of the unedited model at a quarter of a trial's rows and at one trial's."""
    sizes = sorted({max(1, rows // 4), rows})
    return fitted(sizes, [_step_seconds(run, size) for size in sizes])


def _step_seconds(run: Run, rows: int) -> float:
    """The fastest of a few decode steps with so many rows."""
    model, engine, evaluator = run.model, run.engine, run.evaluator
    assert model is not None and engine is not None and evaluator is not None
    count = min(rows, len(evaluator.bad))
    times = max(1, rows // count)
    heads = [sequence[:MEASURED_TOKENS] for sequence in evaluator.bad[:count]]
    prompts = engine.prepare(heads, reply=MEASURED_STEPS + 2, reuse=False)
    base = Rows(torch.zeros(count * times, dtype=torch.int64, device=model.device))
    decoding = engine.start(prompts, rows=base)
    found: list[float] = []
    for step in range(MEASURED_STEPS):
        begin = time.perf_counter()
        decoding.advance(step + 2)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found)


def _rows_per_trial(run: Run) -> int:
    assert run.evaluator is not None
    return min(len(run.evaluator.bad), run.evaluator.decoding_batches.width)


def memory_limit(run: Run) -> int | None:
    """How many trials' keys and values fit into half of the free memory; None where that is not known."""
    assert run.model is not None and run.evaluator is not None
    free = device_memory()
    if free is None:
        return None
    longest = max(len(sequence) for sequence in run.evaluator.bad) + run.lengths.response
    return int(MEMORY_SHARE * free) // max(1, _rows_per_trial(run) * longest * entry_bytes(run.model))
