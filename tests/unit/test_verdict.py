# SPDX-License-Identifier: Apache-2.0
"""The word for a result: only a specific, separable change of a living model is one (R-GEN-06, R-EVA-25)."""

from __future__ import annotations

import pytest

from heretic.evaluator import Outcome
from heretic.phases.verdict import verdict
from heretic.scorers.protocol import Judgement


def outcome(hits: int, n: int = 100) -> Outcome:
    judged = [Judgement(number < hits, "core" if number < hits else "none") for number in range(n)]
    return Outcome("complete", None, hits=hits, total=float(hits), n=n, judged=judged)


@pytest.mark.parametrize(
    ("base", "edited", "random", "word"),
    [
        (90, 5, 88, "changed"),
        (90, 5, None, "changed"),
        (90, 88, 90, "not separable"),
        (90, 90, None, "not separable"),
        (20, 60, None, "wrong way"),
        (90, 40, 42, "not specific"),
        (90, 40, 10, "not specific"),
    ],
)
def test_the_word_follows_the_paired_intervals(base: int, edited: int, random: int | None, word: str) -> None:
    control = None if random is None else outcome(random)
    found = verdict(outcome(base), outcome(edited), control)
    assert found.word == word, found.sentence
    assert found.difference is not None
    assert ("Not worth editing" in found.sentence) == (word in ("not separable", "not specific"))


def test_a_destroyed_model_is_no_success_whatever_it_shows() -> None:
    found = verdict(outcome(90), outcome(0), outcome(90), {"empty": 0.3, "loop": -0.05})
    assert found.word == "destroyed" and "empty" in found.sentence and "loop" not in found.sentence
    assert verdict(outcome(90), outcome(0), outcome(90), {"empty": -0.05}).word == "changed", "control"


def test_what_was_not_measured_is_unknown() -> None:
    assert verdict(None, outcome(0)).word == verdict(outcome(9), None).word == "unknown"
    assert verdict(outcome(9, 50), outcome(0)).word == "unknown", "other prompts"
    assert verdict(Outcome("failed", None), outcome(0)).word == "unknown"


def test_degrees_are_compared_by_their_means() -> None:
    def graded(*degrees: float) -> Outcome:
        judged = [Judgement(degree >= 0.5, "long", degree) for degree in degrees * 20]
        return Outcome("complete", None, n=len(judged), total=sum(j.value for j in judged), judged=judged)

    assert verdict(graded(0.9, 0.8, 0.7), graded(0.6, 0.5, 0.55)).word == "changed"
    assert verdict(graded(0.9, 0.8, 0.7), graded(0.9, 0.7, 0.8)).word == "not separable", "control"
