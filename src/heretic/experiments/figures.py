# SPDX-License-Identifier: Apache-2.0
"""From replies to figures: each metric of each side beside the base, on the same prompts (R-XPT-04)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, stdev
from typing import Final

import torch

from heretic.decoding.protocol import Reply
from heretic.experiments.metrics import METRICS, Counted, Metric
from heretic.experiments.prepare import Row
from heretic.linalg.bootstrap import paired_change
from heretic.linalg.intervals import Interval

BOOTSTRAP_STREAM: Final = 4_201
"""Added to the seed, so that resampling shares no stream with anything else (reliability section 6)."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and standard deviation of single replies; None for one reply."""

    median: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one side against the base.

    side: `edited`, or a control. prompts: `bad` (they draw the behaviour) or `good`. group: kind of prompt, or empty.
    n: prompts on which both were measured. relative: change as a share of the base. Intervals: 95 %, paired bootstrap.
    """

    side: str
    prompts: str
    group: str
    metric: str
    n: int
    base: float
    value: float
    difference: float
    interval: Interval
    relative: float | None
    relative_interval: Interval | None
    base_spread: Spread | None = None
    spread: Spread | None = None


def figures(
    names: Sequence[str],
    rows: Sequence[Row],
    base: Sequence[Reply],
    sides: Mapping[str, Sequence[Reply]],
    *,
    prompts: str,
    groups: Sequence[str] = (),
    seed: int = 0,
) -> list[Figure]:
    """All figures of one set of prompts; replies stand in the order of the rows.

    A metric that says nothing about any of the prompts is left out. The same seed gives the same bounds.
    """
    found: list[Figure] = []
    for side, replies in sides.items():
        assert len(rows) == len(base) == len(replies)
        for group in ("", *groups):
            chosen = [place for place, row in enumerate(rows) if group in ("", row.kind)]
            for name in names:
                figure = _figure(
                    METRICS[name],
                    [rows[place] for place in chosen],
                    [base[place] for place in chosen],
                    [replies[place] for place in chosen],
                    seed,
                )
                if figure is not None:
                    found.append(_labelled(figure, side, prompts, group))
    return found


def _labelled(figure: Figure, side: str, prompts: str, group: str) -> Figure:
    return replace(figure, side=side, prompts=prompts, group=group)


def _figure(
    metric: Metric, rows: Sequence[Row], base: Sequence[Reply], other: Sequence[Reply], seed: int
) -> Figure | None:
    before, after = [], []
    for row, first, second in zip(rows, base, other, strict=True):
        one, two = metric.measure(row, first), metric.measure(row, second)
        if one is not None and two is not None:  # a pair, or nothing: one side alone is no comparison
            before.append(one)
            after.append(two)
    if not before:
        return None
    change = paired_change(torch.tensor(before), torch.tensor(after), seed=seed + BOOTSTRAP_STREAM)
    return Figure(
        side="",
        prompts="",
        group="",
        metric=metric.name,
        n=len(before),
        base=change.first,
        value=change.second,
        difference=change.difference,
        interval=change.difference_interval,
        relative=change.relative,
        relative_interval=change.relative_interval,
        base_spread=spread(before) if metric.spread else None,
        spread=spread(after) if metric.spread else None,
    )


def spread(counted: Sequence[Counted]) -> Spread:
    """Median and deviation of the single replies' ratios."""
    values = [numerator / denominator for numerator, denominator in counted if denominator]
    return Spread(median(values), stdev(values) if len(values) > 1 else None)
