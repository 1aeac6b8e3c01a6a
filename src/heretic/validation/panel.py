# SPDX-License-Identifier: Apache-2.0
"""Side effects on replies to harmless prompts: length, hedging, text that is no reply, replies cut at the limit.

Base and edited model reply to the same prompts, so every figure is a paired difference with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, fsum, log2
from statistics import median
from typing import Final

from heretic.decoding.protocol import Reply
from heretic.linalg.intervals import paired_interval, paired_rates
from heretic.scorers.degeneration import reply_condition

DEFECTS: Final = ("empty", "loop", "degenerate", "thinking_loop", "thinking_exhausted")
SHARES: Final = (*DEFECTS, "cut")
DEFECT_MARGIN: Final = 0.05
"""Lower bound of a rise that breaks a guard (algorithms 7.6)."""

BEHAVIOUR_MARGIN: Final = 0.03
"""The behaviour on harmless prompts may exceed the base's by at most this (requirements R-EVA-24)."""

LEAST_RATIO: Final = 2.0**-10
"""A shorter median reply counts as this: the guard stays a finite number."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over replies. change: edited less base, with its 95 % interval over prompts."""

    base: float
    edited: float
    change: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """n prompts answered by both.

    figures: `words`, `tokens`, `hedging` (words per 100) as means, and the shares `empty`, `loop`, `degenerate`,
    `thinking_loop`, `thinking_exhausted`, `cut` (no end before the limit). medians: of words and tokens, (base,
    edited). length_ratio: median over prompts of edited / base in tokens, with a 95 % interval; None where every base
    reply is empty.
    """

    n: int
    figures: Mapping[str, Figure]
    medians: Mapping[str, tuple[float, float]]
    length_ratio: Figure | None


def compare_replies(
    base: Sequence[Reply], edited: Sequence[Reply], hedging: Callable[[str], float] | None = None
) -> Panel:
    """Both models' replies to the same prompts; hedging: hedging words per 100 words of a text, None = not counted."""
    assert len(base) == len(edited) and base
    figures = {
        "words": _figure([_words(reply) for reply in base], [_words(reply) for reply in edited]),
        "tokens": _figure([_tokens(reply) for reply in base], [_tokens(reply) for reply in edited]),
    }
    medians = {
        name: (float(median(map(count, base))), float(median(map(count, edited))))
        for name, count in (("words", _words), ("tokens", _tokens))
    }
    if hedging is not None:
        found = [[hedging(reply.text) for reply in replies] for replies in (base, edited)]
        figures["hedging"] = _figure(*found)
    thinks = any(reply.thought is not None for reply in (*base, *edited))
    for name in SHARES:
        if thinks or not name.startswith("thinking"):
            figures[name] = _share(name, base, edited)
    return Panel(len(base), figures, medians, _ratio(base, edited))


def _words(reply: Reply) -> int:
    return len(reply.text.split())


def _tokens(reply: Reply) -> int:
    """Tokens of the answer, without a thought before it."""
    return len(reply.tokens) - (0 if reply.thought is None else reply.thought.length)


def _figure(base: Sequence[float], edited: Sequence[float]) -> Figure:
    means = fsum(base) / len(base), fsum(edited) / len(edited)
    change = means[1] - means[0]
    low, high = paired_interval(edited, base) if len(base) > 1 else (change, change)
    return Figure(*means, change, low, high)


def _share(name: str, base: Sequence[Reply], edited: Sequence[Reply]) -> Figure:
    def shown(reply: Reply) -> float:
        return float(not reply.ended if name == "cut" else reply_condition(reply) == name)

    before, after = [shown(reply) for reply in base], [shown(reply) for reply in edited]
    low, high = paired_rates(after, before)
    means = fsum(before) / len(before), fsum(after) / len(after)
    return Figure(*means, means[1] - means[0], low, high)


def _ratio(base: Sequence[Reply], edited: Sequence[Reply]) -> Figure | None:
    pairs = [(_tokens(b), _tokens(e)) for b, e in zip(base, edited, strict=True) if _tokens(b) > 0]
    if not pairs:
        return None
    ratios = sorted(after / before for before, after in pairs)
    low, high = median_interval(ratios)
    middle = float(median(ratios))
    return Figure(1.0, middle, middle - 1.0, low, high)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """Distribution-free interval of at least 95 % for the median of sorted values, by order statistics: the k-th from
    each end with P[Bin(n, 1/2) < k] <= 2.5 %; the extremes below six values, where there is none."""
    count, mass, rank = len(ordered), 0.0, 0
    while rank < count:
        mass += comb(count, rank) / 2**count
        if mass > 0.025:
            break
        rank += 1
    place = max(0, rank - 1)
    return ordered[place], ordered[count - 1 - place]


def panel_guards(panel: Panel, *, length_behaviour: bool = False) -> dict[str, float]:
    """Constraints, broken above 0: for each defect the lower bound of its rise less 0.05 (algorithms 7.6), and for the
    median length ratio r in 0.5 ... 2 the value |log2 r| - 1. length_behaviour: length is what was to change."""
    guards = {name: panel.figures[name].low - DEFECT_MARGIN for name in DEFECTS if name in panel.figures}
    if panel.length_ratio is not None and not length_behaviour:
        guards["length_ratio"] = abs(log2(max(panel.length_ratio.edited, LEAST_RATIO))) - 1.0
    return guards


def behaviour_guard(base: float, edited: float) -> float:
    """Constraint, broken above 0: the behaviour's rate on harmless prompts against the base's (goal `suppress`)."""
    return edited - base - BEHAVIOUR_MARGIN
