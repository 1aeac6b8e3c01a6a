# SPDX-License-Identifier: Apache-2.0
"""How well plain texts are predicted: mean negative log-likelihood per token, in nats, from float32 logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, isfinite
from typing import Final

from heretic.exceptions import DatasetError, NonFiniteError
from heretic.linalg.intervals import paired_interval
from heretic.validation.subject import Subject, plain_tokens

LONGEST: Final = 512
"""Tokens of a text that are read; the rest is left out."""

LARGEST: Final = 700.0
"""Nats beyond which a perplexity is no float any more."""


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """One model on plain texts.

    values: mean negative log-likelihood per token of each text. tokens: how many were predicted in each; the first is
    only predicted where the tokenizer writes a start token. mean: over all tokens.
    """

    values: tuple[float, ...]
    tokens: tuple[int, ...]
    mean: float

    @property
    def perplexity(self) -> float:
        """exp(mean)."""
        return exp(min(self.mean, LARGEST))


@dataclass(frozen=True, slots=True)
class PairedPerplexity:
    """Edited less base, in nats per token: mean over texts of the difference, with its 95 % interval.

    floor: mean size of the difference of the base to itself in another batch shape.
    """

    change: float
    low: float
    high: float
    floor: float


def measure_perplexity(subject: Subject, texts: Sequence[str], *, longest: int = LONGEST) -> PerplexityResult:
    """Every text as it stands, without chat template; those with no token to predict are left out.

    Raises `DatasetError` where no text is left, `NonFiniteError` for a model that gives no numbers.
    """
    rows = [row[: longest + 1] for row in plain_tokens(subject.model.encoder, texts)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise DatasetError(
            "No text has two tokens, so nothing can be predicted.", hint="Give longer plain texts."
        )
    found = subject.log_likelihoods(rows, [len(row) - 1 for row in rows])
    sums = [-fsum(values) if all(map(isfinite, values)) else float("nan") for values in found]
    if not all(map(isfinite, sums)):
        raise NonFiniteError(
            f"{sum(not isfinite(value) for value in sums)} of {len(sums)} texts have no finite likelihood.",
            hint="The model is destroyed; choose another trial.",
        )
    counts = tuple(len(values) for values in found)
    means = tuple(total / count for total, count in zip(sums, counts, strict=True))
    return PerplexityResult(means, counts, fsum(sums) / sum(counts))


def noise_floor(subject: Subject, texts: Sequence[str], found: PerplexityResult) -> float:
    """Mean size of the difference per text between `found` and the same model read in batches of another shape."""
    width = max(1, min(subject.batches.width, len(found.values)) // 3)
    other = measure_perplexity(Subject(subject.model, subject.engine, subject.edits, width=width), texts)
    gaps = [abs(a - b) for a, b in zip(found.values, other.values, strict=True)]
    return fsum(gaps) / len(gaps)


def compare_perplexity(
    base: PerplexityResult, edited: PerplexityResult, *, floor: float = 0.0
) -> PairedPerplexity:
    """The paired difference over the same texts; of a single text there is no interval, and it is a point."""
    low, high = paired_interval(edited.values, base.values)
    change = fsum(e - b for e, b in zip(edited.values, base.values, strict=True)) / len(base.values)
    if len(base.values) < 2:
        low = high = change
    return PairedPerplexity(change, low, high, floor)
