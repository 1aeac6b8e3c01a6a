# SPDX-License-Identifier: Apache-2.0
"""Local refinement: which trial is varied, how far, and that nothing random lives in the process."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from heretic.study.refinement import WIDTHS, LocalSampler, best_within, reflected
from heretic.study.types import Dimension

SPACE = (
    Dimension("scope", "categorical", choices=("global", "per_layer")),
    Dimension("weight", "float", -0.25, 1.5, clamp=0.0),
    Dimension("depth", "float", 0.0, 10.0),
)


def trial(rate: float, cost: float, *, broken: float = -1.0, weight: float = 1.0) -> FrozenTrial:
    """A finished trial with one constraint."""
    return create_trial(
        values=[rate, cost],
        params={"scope": "global", "weight": weight, "depth": 5.0},
        distributions={
            "scope": CategoricalDistribution(("global", "per_layer")),
            "weight": FloatDistribution(-0.25, 1.5),
            "depth": FloatDistribution(0.0, 10.0),
        },
        system_attrs={"constraints:kl": broken},
    )


def study_of(*trials: FrozenTrial) -> optuna.Study:
    """A study in memory with these trials."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials(trials)
    return study


def point(study: optuna.Study, seed: int) -> dict[str, object]:
    """What the sampler proposes for every dimension."""
    sampler = LocalSampler(SPACE, seed, {"scope": "per_layer", "weight": 0.3, "depth": 1.0})
    row = study._storage.get_trial(study.ask()._trial_id)
    return {d.name: sampler.sample_independent(study, row, d.name, FloatDistribution(0, 1)) for d in SPACE}


def test_parent_is_the_cheapest_near_the_lowest_rate_and_feasible() -> None:
    """Control: without the feasibility rule the broken trial, cheaper and lower, would be taken."""
    trials = [trial(0.5, 0.001), trial(0.02, 0.004), trial(0.05, 0.002), trial(0.0, 0.0001, broken=0.1)]
    assert best_within(trials, 0.0) is trials[1]
    assert best_within(trials, 0.05) is trials[2]
    assert best_within(trials[3:], 0.1) is None


def test_variations_stay_in_range_and_near_the_parent() -> None:
    """Every coordinate is legal; most stay within three of the widest steps; control: not all are the parent's own."""
    study = study_of(trial(0.0, 0.002, weight=1.45))
    seen = [point(study, seed) for seed in range(60)]
    weights = [float(str(entry["weight"])) for entry in seen]
    assert all(-0.25 <= weight <= 1.5 for weight in weights)
    near = sum(abs(weight - 1.45) <= 3 * max(WIDTHS) * 1.75 for weight in weights)
    assert near >= 58
    assert len(set(weights)) > 10


@pytest.mark.parametrize("seed", [0, 7])
def test_same_seed_same_point(seed: int) -> None:
    """Control: another seed gives another point."""
    study = study_of(trial(0.0, 0.002), trial(0.1, 0.001))
    assert point(study, seed) == point(study, seed)
    assert point(study, seed) != point(study, seed + 1)


def test_without_a_feasible_trial_the_fallback_speaks() -> None:
    """Nothing to refine: the point is the exploring one."""
    assert point(study_of(trial(0.1, 0.1, broken=1.0)), 3) == {
        "scope": "per_layer",
        "weight": 0.3,
        "depth": 1.0,
    }


def test_steps_beyond_an_edge_come_back() -> None:
    """Folded, however far; control: clipping would give the edge itself."""
    assert reflected(1.2, 0.0, 1.0) == pytest.approx(0.8)
    assert reflected(-0.3, 0.0, 1.0) == pytest.approx(0.3)
    assert reflected(2.25, 0.0, 1.0) == pytest.approx(0.25)
    assert reflected(0.4, 0.0, 1.0) == pytest.approx(0.4)
    assert all(-2.0 <= reflected(value / 7, -2.0, 3.0) <= 3.0 for value in range(-100, 100))


def test_a_refinement_is_never_its_parent_and_may_stay_at_the_edge() -> None:
    """A parent in a corner of its ranges, as the anchors are. Control: without the one dimension that moves in any
    case, nothing would in a quarter of all; and the edge is found again, which folding every step would forbid."""
    study = study_of(trial(0.0, 0.002, weight=1.5))
    parent = {"scope": "global", "weight": 1.5, "depth": 5.0}
    seen = [point(study, seed) for seed in range(200)]
    assert parent not in [{**entry, "scope": "global"} for entry in seen]
    still = sum(entry["weight"] == 1.5 for entry in seen)
    assert 50 <= still <= 110, "half of the time depth moves alone or weight steps out of its range"
