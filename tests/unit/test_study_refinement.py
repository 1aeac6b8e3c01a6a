# SPDX-License-Identifier: Apache-2.0
"""Local refinement: which trial is varied, how far, and that nothing random lives in the process."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from heretic.linalg.pareto import hypervolume
from heretic.study.refinement import WIDTHS, LocalSampler, best_at, reflected
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
    sampler = LocalSampler(SPACE, seed, {"scope": "per_layer", "weight": 0.3, "depth": 1.0}, (1.0, 0.1))
    row = study._storage.get_trial(study.ask()._trial_id)
    return {d.name: sampler.sample_independent(study, row, d.name, FloatDistribution(0, 1)) for d in SPACE}


def test_parent_is_feasible_and_the_best_of_the_drawn_balance() -> None:
    """Control: without the feasibility rule the broken trial, cheaper and lower, would be taken at every angle."""
    trials = [trial(0.9, 0.001), trial(0.02, 0.04), trial(0.15, 0.008), trial(0.0, 0.0001, broken=0.1)]
    chosen = [best_at(trials, angle, (1.0, 0.1)) for angle in (0.0, math.pi / 4, math.pi / 2)]
    assert chosen == [trials[1], trials[2], trials[0]]
    assert best_at(trials[3:], 0.1, (1.0, 0.1)) is None
    beyond = [trial(0.5, 0.4), trial(0.3, 0.5), trial(1.0, 0.01)]
    assert best_at(beyond, 0.3, (1.0, 0.1)) is beyond[1], "nobody beats the reference: the lowest rate"


def test_the_mean_squared_reach_is_the_hypervolume() -> None:
    """What makes the rule more than a taste: its mean over the angles is the area under the front.

    Closed form (Zhang and Golovin 2020, two objectives): area = pi/4 * mean of reach^2. Control: without the best
    trial it is another area.
    """
    values = [(0.02, 0.04), (0.15, 0.008), (0.6, 0.001), (0.5, 0.05)]
    trials = [trial(rate, cost) for rate, cost in values]
    angles = (np.arange(20_000) + 0.5) / 20_000 * math.pi / 2
    for taken in (trials, trials[1:]):
        squares = []
        for angle in angles:
            best = best_at(taken, float(angle), (1.0, 0.1))
            assert best is not None and best.values is not None
            gains = ((1.0 - best.values[0]) / math.cos(angle), (1 - best.values[1] / 0.1) / math.sin(angle))
            squares.append(min(gains) ** 2)
        points = [(row.values[1] / 0.1, row.values[0]) for row in taken if row.values is not None]
        assert math.pi / 4 * float(np.mean(squares)) == pytest.approx(hypervolume(points), rel=1e-3)


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
