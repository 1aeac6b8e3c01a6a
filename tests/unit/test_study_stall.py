# SPDX-License-Identifier: Apache-2.0
"""When a search has stopped paying: less than 0.5 % of growth in 40 trials or a fifth of them (algorithms 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from heretic.study import progress
from heretic.study.progress import STALL_TRIALS, has_stalled
from heretic.study.sharing import Terms, share
from heretic.study.space import default_space
from heretic.study.state import open_study
from heretic.study.types import FinishedTrial, Json, Proposal, Scores
from heretic.study.workers import search_shared

REFERENCE = (0.9, 0.1)
FINGERPRINT: dict[str, Json] = {"seed": 1}


def trials(*objectives: tuple[float, float], **constraints: float) -> list[FinishedTrial]:
    """Finished trials with these objectives, rate first."""
    return [FinishedTrial(i, {}, Scores(pair, constraints)) for i, pair in enumerate(objectives)]


def test_a_front_that_stands_still_for_forty_trials_has_stalled() -> None:
    """Controls: one trial fewer, and a last trial that adds a hundredth to the area."""
    start = (0.09, 0.01)
    assert has_stalled(trials(*[start] * (STALL_TRIALS + 1)), REFERENCE)
    assert not has_stalled(trials(*[start] * STALL_TRIALS), REFERENCE)
    assert not has_stalled(trials(*[start] * STALL_TRIALS, (0.08, 0.009)), REFERENCE)


def test_a_long_search_is_given_a_fifth_of_its_trials() -> None:
    """Of 400 trials the last 80 count: growth 60 trials ago is recent. Control: growth 90 trials ago is not."""
    poor, good = (0.4, 0.05), (0.1, 0.01)
    assert not has_stalled(trials(*[poor] * 340, *[good] * 60), REFERENCE)
    assert has_stalled(trials(*[poor] * 310, *[good] * 90), REFERENCE)


def test_without_a_usable_trial_nothing_has_stalled() -> None:
    """Beyond the reference KL, or infeasible: the search has not begun to pay. Control: the same inside."""
    count = STALL_TRIALS + 20
    assert not has_stalled(trials(*[(0.1, 0.2)] * count), REFERENCE)
    assert not has_stalled(trials(*[(0.1, 0.02)] * count, effect=0.1), REFERENCE)
    assert has_stalled(trials(*[(0.1, 0.02)] * count, effect=-0.1), REFERENCE)


def test_growth_counts_in_units_of_the_reference() -> None:
    """From KL 0.01 to 0.005 is a twentieth of the area up to KL 0.1, and nothing beside a KL of 10."""
    found = trials(*[(0.0, 0.01)] * 20, *[(0.0, 0.005)] * STALL_TRIALS)
    assert not has_stalled(found, (0.9, 0.1))
    assert has_stalled(found, (0.9, 10.0))


@pytest.mark.parametrize("stops", [True, False])
def test_workers_of_a_shared_study_stop_too(
    stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-SEA-15; control: without the switch the study is completed."""
    monkeypatch.setattr(progress, "STALL_TRIALS", 6)

    def flat(proposals: Sequence[Proposal], finished: Sequence[FinishedTrial]) -> list[Scores]:
        return [Scores((0.09, 0.01)) for _ in proposals]

    with open_study(f"sqlite:///{tmp_path}/s.db", "s", fingerprint=FINGERPRINT) as study:
        share(study, Terms(12))
        outcome = search_shared(
            study,
            flat,
            space=default_space(("attn.o_proj",), 4),
            seed=1,
            batch_size=2,
            sampler="qmc",
            reference=REFERENCE,
            stop_on_stall=stops,
            poll_s=0.01,
        )
    assert outcome.reason == ("stalled" if stops else "finished")
    assert len(outcome.finished) == (8 if stops else 12)
