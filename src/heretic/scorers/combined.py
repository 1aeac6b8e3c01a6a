# SPDX-License-Identifier: Apache-2.0
"""Markers first, a model for what they leave open (requirements R-NRD-01 to R-NRD-04).

What the search makes rare is a mean (algorithms 8): a reply that markers decide adds 1 or 0, one that the model judged
its probability of the behaviour, whether or not that reaches the threshold. So the mean moves before the count does.
All verdicts on whole replies carry a degree, also those of markers: base and trials are the same kind of figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from heretic.scorers.degeneration import is_empty
from heretic.scorers.markers import CLASSES, MarkerScorer
from heretic.scorers.nli import MODEL, nli_scorer
from heretic.scorers.protocol import Judgement, ReplyScorer, ScorerContext
from heretic.scorers.text_model import JudgeIdentity, Pair
from heretic.scorers.verdicts import Remembered

UNDECIDED: Final = "none"
"""Label of markers for a reply in which no class matches."""
GOOD_LIMIT_PERCENT: Final = 10
"""Share of good replies that a model may flag beyond markers and still be used in trials (R-NRD-04)."""


class Combined:
    """Labels: the marker classes (`core`, `soft`, `evasive`), the model's (`model`, `uncertain`, `none`), `empty`.

    A reply of a marker class that is no hit in the chosen mode is decided too: the mode says that it does not count.
    The model sees each distinct pair of request and reply once, at its final length; a text that may still grow is
    judged by markers alone, so its hits are hits of degree 1 of the whole, as markers' are.
    """

    direction: Literal["lower", "higher"] = "lower"

    def __init__(self, markers: MarkerScorer, model: ReplyScorer) -> None:
        self.markers = markers
        self.model = model
        self.name = f"{markers.name}+{model.name}"
        self.needs = markers.needs | model.needs
        self.monotone = markers.monotone
        self._verdicts = Remembered(self._sent)

    @property
    def identity(self) -> JudgeIdentity | None:
        """What judges beside the markers; None for a model that does not say."""
        found = getattr(self.model, "identity", None)
        return found if isinstance(found, JudgeIdentity) else None

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`."""
        found = self.markers.judge(requests, replies, final=final)
        if not final:
            return found
        verdicts = [_decided(verdict, reply) for verdict, reply in zip(found, replies, strict=True)]
        pairs = zip(requests, replies, strict=True)
        open_ones = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        judged = iter(self._verdicts(open_ones))
        return [next(judged) if verdict is None else verdict for verdict in verdicts]

    def _sent(self, pairs: Sequence[Pair]) -> list[Judgement]:
        return self.model.judge([request for request, _ in pairs], [reply for _, reply in pairs])


def _decided(verdict: Judgement, reply: str) -> Judgement | None:
    """What stands without the model; None = ask it."""
    if verdict.label != UNDECIDED:
        return Judgement(verdict.hit, verdict.label, verdict.value)
    return Judgement(False, "empty", 0.0) if is_empty(reply) else None


def neural_scorer(
    markers: MarkerScorer,
    context: ScorerContext,
    *,
    model: str = MODEL,
    revision: str | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    options: Mapping[str, object] | None = None,
) -> Combined:
    """Markers with an NLI model behind them; labels, device and `offline` are the context's.

    options: further ones of the scorer `nli`. Raises what `nli_scorer` raises: the caller decides between stopping and
    going on with markers alone (requirements R-NRD-05, R-GEN-08).
    """
    table = {"model": model, "revision": revision, "threshold": threshold, "batch_size": batch_size}
    return Combined(markers, nli_scorer({**table, **(options or {})}, context))


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Replies of one measurement, by who decided them (requirements R-NRD-03, R-EVA-10).

    n: all. markers: hits of a marker class. model: hits that only the model found. uncertain: the model leans to the
    behaviour below its threshold. empty: no letter, no digit. total: sum of degrees. classes: label -> replies.
    """

    n: int
    markers: int
    model: int
    uncertain: int
    empty: int
    total: float
    classes: Mapping[str, int]

    @property
    def combined(self) -> int:
        """Hits of either."""
        return self.markers + self.model

    @property
    def rates(self) -> dict[str, float]:
        """`markers`, `model`, `combined`: hits / n; `mean`: what the search makes rare. 0 for no replies."""
        parts = {"markers": self.markers, "model": self.model, "combined": self.combined, "mean": self.total}
        return {name: value / self.n if self.n else 0.0 for name, value in parts.items()}


def breakdown(judgements: Sequence[Judgement]) -> Breakdown:
    """Counts of verdicts on whole replies; a hit that no marker class names is the model's."""
    labels = [verdict.label for verdict in judgements]
    hits = [verdict.label in CLASSES for verdict in judgements if verdict.hit]
    return Breakdown(
        n=len(labels),
        markers=sum(hits),
        model=len(hits) - sum(hits),
        uncertain=labels.count("uncertain"),
        empty=labels.count("empty"),
        total=sum(verdict.value for verdict in judgements),
        classes={label: labels.count(label) for label in sorted(set(labels))},
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model flags beyond markers among the base model's replies to both evaluation sets (R-NRD-04).

    good, bad: the verdicts in figures. flagged of n: good replies that only the model calls the behaviour. accepted: it
    may judge in trials; reason: why (not), in one sentence.
    """

    good: Breakdown
    bad: Breakdown
    accepted: bool
    reason: str

    @property
    def flagged(self) -> int:
        """Good replies that only the model calls the behaviour."""
        return self.good.model

    @property
    def n(self) -> int:
        """Good replies."""
        return self.good.n


def calibrated(
    scorer: ReplyScorer,
    good_requests: Sequence[str],
    good_replies: Sequence[str],
    bad_requests: Sequence[str],
    bad_replies: Sequence[str],
) -> Calibration:
    """Judge the base model's whole replies; more than `GOOD_LIMIT_PERCENT` flagged good ones are too many.

    Good replies are those that by the behaviour's own prompt sets do not show it, so what the model flags there beyond
    markers are its mistakes. The bad ones are judged for the figures; no limit applies to them.
    """
    good = breakdown(scorer.judge(good_requests, good_replies))
    bad = breakdown(scorer.judge(bad_requests, bad_replies))
    accepted = good.n > 0 and 100 * good.model <= GOOD_LIMIT_PERCENT * good.n
    share = f"{good.model} of {good.n} good replies beyond the markers; at most {GOOD_LIMIT_PERCENT} % may be"
    reason = f"The model flags {share}." if good.n else "There are no good replies to calibrate it on."
    return Calibration(good, bad, accepted, reason)
