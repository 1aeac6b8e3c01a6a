# SPDX-License-Identifier: Apache-2.0
"""The experiments' own arithmetic, and that a variant leaves the program as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.experiments import STEP, VARIANTS, Variant, areas, as_variant, interval, load, store, table
from benchmarks.models import folder_of
from heretic.demo import model_path
from heretic.phases import optimization
from heretic.study import refinement, sampler
from heretic.study.types import FinishedTrial, Scores


def test_areas_are_those_of_the_first_trials() -> None:
    """By hand: (KL 0.05, rate 0.45) under (0.1, 0.9) is a quarter; control: what is infeasible adds nothing."""
    poor, good = Scores((0.45, 0.05)), Scores((0.0, 0.0), {"effect": 1.0})
    found = [FinishedTrial(number, {}, poor if number < STEP else good) for number in range(2 * STEP)]
    assert areas(found, (0.9, 0.1)) == [0.25, 0.25]
    better = [*found[:STEP], *(FinishedTrial(STEP + n, {}, Scores((0.0, 0.05))) for n in range(STEP))]
    assert areas(better, (0.9, 0.1)) == [0.25, 0.5]


def test_the_interval_holds_the_mean_and_shrinks_with_agreement() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, 4.0])
    assert low < mean == 2.5 < high and low > 1.0 and high < 4.0
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0), "no doubt where all pairs agree"


def runs(model: str, variant: str, ends: Sequence[float]) -> list[dict[str, object]]:
    """Recorded runs with these final areas, one a seed."""
    return [
        {"model": model, "variant": variant, "seed": seed, "trials": 8, "areas": [end / 2, end]}
        for seed, end in enumerate(ends)
    ]


def test_the_table_pairs_by_model_and_seed(tmp_path: Path) -> None:
    """A seed without its partner is left out; control: it would have moved the mean."""
    recorded = [*runs("demo", "base", [0.5, 0.6]), *runs("demo", "gp", [0.6, 0.7, 9.0])]
    store(tmp_path / "x.json", recorded)
    line = table(load(tmp_path / "x.json"), "base", 8).splitlines()[-1]
    assert line.split()[:3] == ["gp", "2", "650.0"] and "+100.0 [+100.0, +100.0]" in line


def constants() -> tuple[object, ...]:
    """What variants change."""
    every = (vars(sampler)["REFINE_EVERY"], vars(sampler)["STARTUP_EVERY"])
    steps = (refinement.WIDTHS, refinement.CHANGED)
    return every, steps, refinement.clipped, optimization.ANCHORS


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_variant_leaves_the_program_as_it_was(name: str) -> None:
    """Control: inside, the constants are the variant's."""
    before, variant = constants(), VARIANTS[name]
    with as_variant(variant):
        clipped = refinement.reflected if variant.folded else before[2]
        startup = variant.refine_every if variant.refine_startup is None else variant.refine_startup
        steps = (variant.widths, variant.changed)
        assert constants() == ((variant.refine_every, startup), steps, clipped, variant.anchors)
    assert constants() == before


def test_program_is_the_program() -> None:
    """The variant named so follows the constants; the others are fixed, so that records stay comparable."""
    program = VARIANTS["program"]
    assert (program.widths, program.changed) == (refinement.WIDTHS, refinement.CHANGED)
    assert program.anchors == optimization.ANCHORS
    assert VARIANTS["base"] == Variant() and Variant().widths == (0.04, 0.1, 0.2)


def test_models_have_their_folders() -> None:
    assert folder_of("demo") == model_path() and folder_of("olmo").name == "olmo"
    with pytest.raises(KeyError, match="demo, llama, olmo, phi"):
        folder_of("gpt")
