# SPDX-License-Identifier: Apache-2.0
"""Log-odds of behaving at the first reply token: a smooth companion of the rate (algorithms 7.3).

lo = logsumexp over v in O of z_v - logsumexp over v not in O of z_v, in float32, where O holds the first tokens of the
base model's own behaving replies less those that also open its control replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Final

import torch
from torch import Tensor

from heretic.exceptions import DatasetError
from heretic.linalg.intervals import mean_interval
from heretic.validation.subject import Subject

LEAST_SHARE: Final = 0.02
"""Share of replies that a token has to open to count as an opener."""

LEAST_CORRELATION: Final = 0.6
"""Rank correlation with the full rate below which log-odds neither promote nor reject a trial."""


@dataclass(frozen=True, slots=True)
class LogOdds:
    """One model on prompts that draw the behaviour. values: lo per prompt, in nats. rate: mean sigmoid(lo), with the
    95 % interval of the mean. openers: size of O."""

    values: tuple[float, ...]
    rate: float
    low: float
    high: float
    openers: int


def openers(replies: Sequence[Sequence[int]], least: float = LEAST_SHARE) -> frozenset[int]:
    """First tokens of at least that share of all replies that have one."""
    counts = Counter(reply[0] for reply in replies if reply)
    total = sum(counts.values())
    return frozenset(token for token, count in counts.items() if count >= least * total)


def behaving_openers(
    behaving: Sequence[Sequence[int]], control: Sequence[Sequence[int]], least: float = LEAST_SHARE
) -> frozenset[int]:
    """The set O from token ids of the base's behaving replies and of its replies to control prompts.

    Raises `DatasetError` where nothing is left: then the first token does not tell the two apart.
    """
    found = openers(behaving, least) - openers(control, least)
    if not found:
        raise DatasetError(
            f"No token opens {least:.0%} of {len(behaving)} replies with the behaviour and not as many of "
            f"{len(control)} without it.",
            hint="Log-odds of the first token say nothing here; judge whole replies.",
        )
    return found


def log_odds(logits: Tensor, tokens: Collection[int]) -> Tensor:
    """[n] float32 log-odds of the tokens against all others, from raw logits [n, V]."""
    inside = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    inside[list(tokens)] = True
    values = logits.float()
    return torch.logsumexp(values[:, inside], dim=-1) - torch.logsumexp(values[:, ~inside], dim=-1)


def measure_log_odds(
    subject: Subject, prompts: Sequence[tuple[int, ...]], tokens: Collection[int]
) -> LogOdds:
    """Log-odds at the first reply token of each prompt (token ids with the generation prompt)."""
    assert tokens and prompts
    values = subject.read(
        prompts, [1] * len(prompts), lambda number, logits: float(log_odds(logits, tokens)[0])
    )
    shares = torch.tensor(values, dtype=torch.float64).sigmoid().tolist()
    low, high = mean_interval(shares)
    return LogOdds(tuple(values), fsum(shares) / len(shares), low, high, len(tokens))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation with midranks for ties; None for fewer than three pairs or where one side is constant."""
    assert len(first) == len(second)
    if len(first) < 3:
        return None
    a, b = _midranks(first), _midranks(second)
    middle = (len(first) + 1) / 2
    shared = fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spreads = [fsum((x - middle) ** 2 for x in ranks) for ranks in (a, b)]
    if not all(spreads):
        return None
    return max(-1.0, min(1.0, shared / sqrt(spreads[0] * spreads[1])))


def _midranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    places: dict[float, list[int]] = {}
    for rank, value in enumerate(order, 1):
        places.setdefault(value, []).append(rank)
    return [sum(places[value]) / len(places[value]) for value in values]


def correlation_text(correlation: float | None) -> str:
    """In words: how far log-odds follow the full rate over finished trials, and whether they are used."""
    if correlation is None:
        return "not used: too few trials to compare with the full rate"
    words = "not used" if correlation < LEAST_CORRELATION else "used"
    return f"{words}: rank correlation {correlation:.2f} with the full rate"
