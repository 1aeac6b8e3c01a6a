# SPDX-License-Identifier: Apache-2.0
"""Tasks of the library lm-eval on a model in memory, base and edited from one load (R-VAL-04); extra `bench`.

The edit is put on by hooks, so the library sees an ordinary network. It is imported when the first task is asked for.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

from heretic.exceptions import ConfigurationError, DatasetError
from heretic.interventions.hooks import Edits, applied, every_row
from heretic.linalg.intervals import paired_rates
from heretic.model.model import Model

INSTALL: Final = "pip install 'heretic-workbench[bench]'"
LIBRARY: Final = "lm_eval"
LOADING: Final = (OSError, ValueError, LookupError, ImportError, TypeError, AttributeError)
"""What the library raises for a task whose data or code cannot be had."""


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """Tasks that are loaded, with their data. loaded: what the library's task manager returned."""

    names: tuple[str, ...]
    loaded: Any
    manager: Any


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task. values: per document, where the metric is a mean over documents; n: documents."""

    value: float
    values: Mapping[int, float]
    n: int


Scores = Mapping[tuple[str, str], Score]
"""(task, metric) -> score; a metric is named with its filter: `acc,none`."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One metric before and after. low, high: 95 % interval of the paired change; None where the documents have no
    values of their own."""

    task: str
    metric: str
    n: int
    base: float
    edited: float
    change: float
    low: float | None
    high: float | None


def require_harness() -> None:
    """Raise `ConfigurationError` with the install command where lm-eval is missing; imports nothing."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ConfigurationError(
            "validation_benchmarks needs the package lm-eval, which is not installed.",
            hint=f"Install it: {INSTALL}",
        )


def load_tasks(names: Sequence[str], *, include: Path | None = None) -> Tasks:
    """The named tasks, groups or tags with their data. include: a folder with further task files.

    Raises `ConfigurationError` (library missing, unknown task with near ones), `DatasetError` (data out of reach).
    """
    require_harness()
    manager_type = importlib.import_module("lm_eval.tasks").TaskManager
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)
    manager = manager_type(include_path=None if include is None else str(include))
    known = list(manager.all_tasks)
    unknown = [name for name in names if name not in known]
    if unknown:
        near = {name: difflib.get_close_matches(name, known, n=3, cutoff=0.5) for name in unknown}
        raise ConfigurationError(
            f"lm-eval knows no task {', '.join(map(repr, unknown))}.",
            hint="Set validation_benchmarks to names of its task list.",
            details=tuple(
                f"{name}: did you mean {', '.join(found)}?" for name, found in near.items() if found
            ),
            data={"unknown": unknown, "near": near},
        )
    try:
        loaded = manager.load(list(names))
    except LOADING as error:
        raise DatasetError(
            f"The lm-eval tasks {', '.join(names)} cannot be loaded: {type(error).__name__}: {error}",
            hint="Load their data once with a network, or leave them out of validation_benchmarks.",
        ) from error
    return Tasks(tuple(names), loaded, manager)


def run_tasks(
    model: Model,
    tasks: Tasks,
    edits: Edits | None = None,
    *,
    width: int = 8,
    limit: int | None = None,
    seed: int = 0,
) -> Scores:
    """Scores of the model under `edits` (None = as it is). width: sequences in one pass. limit: documents per task.

    Prompts are plain, as the tasks have them by default; seeds of other random numbers are left as they are. Raises
    `DatasetError` where the library fails on a task.
    """
    harness = importlib.import_module("lm_eval.models.huggingface").HFLM
    evaluate = importlib.import_module("lm_eval.evaluator").simple_evaluate
    # The library sets padding of its own on the tokenizer it is given.
    wrapped = harness(
        pretrained=model.network, tokenizer=copy.deepcopy(model.encoder.tokenizer), batch_size=width
    )
    with applied(model.network, [edits or {}], every_row(0, 1, model.device)):
        try:
            found = evaluate(
                model=wrapped,
                tasks=[*tasks.names],
                task_manager=tasks.manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=seed,
            )
        except LOADING as error:
            raise DatasetError(
                f"lm-eval failed on {', '.join(tasks.names)}: {type(error).__name__}: {error}",
                hint="Leave the task out of validation_benchmarks.",
            ) from error
    return _scores(found)


def _scores(found: Mapping[str, Any]) -> Scores:
    scores: dict[tuple[str, str], Score] = {}
    for task, results in found["results"].items():
        samples = found.get("samples", {}).get(task, [])
        for key, value in results.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not _is_number(value):
                continue
            values = {
                int(sample["doc_id"]): float(sample[metric])
                for sample in samples
                if sample.get("filter", kind) == kind and _is_number(sample.get(metric))
            }
            number = found.get("n-samples", {}).get(task, {}).get("effective", len(values))
            scores[task, key] = Score(float(value), values, int(number))
    return scores


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def compare_tasks(base: Scores, edited: Scores) -> tuple[Benchmark, ...]:
    """Every metric that both have, paired by document where it can be."""
    rows = []
    for (task, metric), before in base.items():
        after = edited.get((task, metric))
        if after is None:
            continue
        shared = sorted(before.values.keys() & after.values.keys())
        low = high = None
        if len(shared) > 1:
            low, high = paired_rates([after.values[n] for n in shared], [before.values[n] for n in shared])
        change = after.value - before.value
        rows.append(Benchmark(task, metric, after.n, before.value, after.value, change, low, high))
    return tuple(rows)
