# SPDX-License-Identifier: Apache-2.0
"""Where nothing causal is found, the program says so before the search and after it (R-DIR-08, R-GEN-06)."""

from __future__ import annotations

from heretic.demo import model_path

from .world import World

RUN = (
    str(model_path()), "--behaviour=demo", "--offline", "--n-trials=2", "--n-startup-trials=2", "--storage=",
    "--bad-prompts.split=train[:100]", "--auto-select=true", "--auto-select-path=out", "--finalists=1", "--json",
    "--bad-confirmation-prompts.split=test[:30]", "--bad-evaluation-prompts.split=validation[:30]",
    "--good-evaluation-prompts.split=validation[:20]", "--good-confirmation-prompts.split=test[:20]",
    "--over-behaviour-prompts.split=test[:10]", "--no-use-covectors",
)  # fmt: skip
SAME = ("--good-prompts.dataset=heretic:refusal-bad", "--good-prompts.split=train[100:200]")
"""Both classes refuse, so what sets them apart has nothing to do with it."""


def test_a_direction_without_effect_is_named_before_the_search(world: World) -> None:
    told = world.heretic(*RUN, *SAME)
    assert "Not worth editing" in told.err, told.err
    assert told.document["verdict"]["word"] in ("not separable", "not specific", "unknown")
    refused = world.heretic(*RUN, *SAME, "--strict")
    assert refused.code == 1 and "Not worth editing" in refused.err


def test_a_direction_with_effect_is_not(world: World) -> None:
    """Control: the same run with benign prompts in their place."""
    told = world.heretic(*RUN)
    assert told.code in (0, 3), told.err
    assert "Not worth editing" not in told.err
    assert told.document["verdict"]["word"] == "changed"
