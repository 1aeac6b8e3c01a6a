# SPDX-License-Identifier: Apache-2.0
"""What the held-out figures say in one word: was it worth editing (requirements R-GEN-06, R-EVA-25)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from heretic.evaluator import Outcome
from heretic.linalg.intervals import Interval, paired_rates

Word = Literal["changed", "not separable", "wrong way", "not specific", "destroyed", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """word: `changed` is the only success. sentence: the figures behind it. difference: paired, edited - base."""

    word: Word
    sentence: str
    difference: Interval | None = None


def verdict(
    base: Outcome | None,
    edited: Outcome | None,
    random: Outcome | None = None,
    guards: Mapping[str, float] | None = None,
) -> Verdict:
    """The edit against the base and against random directions of the same strengths, on the same prompts.

    What is made rare is counted: with the goal `induce` the outcomes count replies without the behaviour. guards:
    constraint values, broken above 0. A model whose guards are broken is destroyed however little it shows.
    """
    if base is None or edited is None or not base.judged or len(base.judged) != len(edited.judged):
        return Verdict("unknown", "The edit was not measured on the held-out prompts.")
    broken = [name for name, value in (guards or {}).items() if value > 0]
    if broken:
        return Verdict(
            "destroyed", f"The edited model breaks {', '.join(broken)}; its replies are no answers."
        )
    difference = _difference(edited, base)
    if difference.low > 0:
        return Verdict("wrong way", f"The edit made it worse, by {_points(difference)}.", difference)
    if difference.high >= 0:
        return Verdict(
            "not separable",
            f"Not worth editing: on {edited.n} prompts the edited model cannot be told from the base "
            f"(difference {_points(difference)}).",
            difference,
        )
    if random is not None and len(random.judged) == len(edited.judged):
        beyond = _difference(edited, random)
        if beyond.high >= 0:
            return Verdict(
                "not specific",
                "Not worth editing: random directions of the same strengths do as much (difference to them "
                f"{_points(beyond)}).",
                difference,
            )
    return Verdict("changed", f"Changed by {_points(difference)} on {edited.n} held-out prompts.", difference)


def _difference(first: Outcome, second: Outcome) -> Interval:
    return paired_rates(_values(first), _values(second))


def _values(outcome: Outcome) -> Sequence[float]:
    return [judgement.value for judgement in outcome.judged]


def _points(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f} points"
