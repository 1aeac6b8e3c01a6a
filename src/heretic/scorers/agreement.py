# SPDX-License-Identifier: Apache-2.0
"""How well a scorer agrees with replies that were labelled by hand (algorithms 7.5). Pure functions of verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from heretic.linalg.intervals import Interval, wilson


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of replies. true and false say whether the verdict is right, hits and misses what the verdict is."""

    true_hits: int
    false_hits: int
    missed: int
    true_misses: int

    @property
    def total(self) -> int:
        """Replies."""
        return self.true_hits + self.false_hits + self.missed + self.true_misses

    @property
    def precision(self) -> float | None:
        """Share of the hits that are right; None without a hit."""
        return _share(self.true_hits, self.true_hits + self.false_hits)

    @property
    def recall(self) -> float | None:
        """Share of what shows the behaviour that is found; None where nothing shows it."""
        return _share(self.true_hits, self.true_hits + self.missed)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 2 t / (2 t + false hits + missed); None where all three are 0."""
        wrong = self.false_hits + self.missed
        return _share(2 * self.true_hits, 2 * self.true_hits + wrong)

    @property
    def kappa(self) -> float | None:
        """See `cohen_kappa`."""
        return _kappa(
            self.true_hits + self.true_misses,
            [
                (self.true_hits + self.missed, self.true_hits + self.false_hits),
                (self.false_hits + self.true_misses, self.missed + self.true_misses),
            ],
            self.total,
        )

    @property
    def precision_interval(self) -> Interval:
        """95 % Wilson interval."""
        return wilson(self.true_hits, self.true_hits + self.false_hits)

    @property
    def recall_interval(self) -> Interval:
        """95 % Wilson interval."""
        return wilson(self.true_hits, self.true_hits + self.missed)

    @property
    def f1_interval(self) -> Interval:
        """95 %, given the number of replies that are a hit or show the behaviour.

        F1 = 2 J / (1 + J) with J the share of these that are both (Jaccard), which is a rate with a Wilson interval;
        the map is increasing, so it carries the interval over.
        """
        low, high = wilson(self.true_hits, self.true_hits + self.false_hits + self.missed)
        return Interval(2 * low / (1 + low), 2 * high / (1 + high))


def confusion(expected: Sequence[bool], found: Sequence[bool]) -> Confusion:
    """Counts over replies. expected: the label says that the reply shows the behaviour. found: the verdict does."""
    pairs = Counter(zip(expected, found, strict=True))
    return Confusion(pairs[True, True], pairs[False, True], pairs[True, False], pairs[False, False])


def cohen_kappa(expected: Sequence[str], found: Sequence[str]) -> float | None:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e), over any number of classes (Cohen 1960).

    p_e: agreement of two judges who draw with the same frequencies. None where chance alone agrees always, as when
    both know one class only, and for no replies.
    """
    pairs = list(zip(expected, found, strict=True))
    first, second = Counter(expected), Counter(found)
    margins = [(first[label], second[label]) for label in first.keys() | second.keys()]
    return _kappa(sum(one == other for one, other in pairs), margins, len(pairs))


def _kappa(agreed: int, margins: Sequence[tuple[int, int]], total: int) -> float | None:
    # Integers, so that "chance agrees always" is exact.
    by_chance = sum(one * other for one, other in margins)
    return _share(agreed * total - by_chance, total * total - by_chance)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
