# SPDX-License-Identifier: Apache-2.0
"""What extraction found is stored and read back, bit for bit; damage is told (reliability REL-R03, B05)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from heretic.directions.findings import Findings
from heretic.exceptions import StudyCorruptError
from heretic.phases.direction_extraction import DirectionExtractionResult
from heretic.phases.findings_store import packed, unpacked
from heretic.testing.strategy_cases import planted_findings
from heretic.testing.workbench import loaded_pico


def result(strategy: str) -> DirectionExtractionResult:
    """Planted findings with everything that a strategy may have found."""
    found = planted_findings(loaded_pico("llama"), strategy, "suppress")
    layers = found.layers
    found = replace(found, factors=tuple(0.5 + layer for layer in range(layers)), notes={"a": [1, 2.5, "b"]})
    figures = tuple(float(layer) / 3 for layer in range(layers))
    return DirectionExtractionResult(found, figures, figures, figures, ("be careful",), ("one thing is off",))


def same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first, second)


@pytest.mark.parametrize("strategy", ["subspace", "oblique", "heads", "caa"])
def test_a_result_comes_back_as_it_was(strategy: str) -> None:
    wanted = result(strategy)
    again = unpacked(packed(wanted))
    assert packed(again) == packed(wanted)
    for name in ("stability", "auroc", "effect_size", "warnings", "degradations"):
        assert getattr(again, name) == getattr(wanted, name)
    mine, theirs = wanted.findings, again.findings
    assert list(mine.sources) == list(theirs.sources)
    for name, bank in mine.sources.items():
        for part in ("directions", "spread", "covectors"):
            assert same(getattr(bank, part), getattr(theirs.sources[name], part)), (name, part)
    assert (mine.factors, mine.heads, mine.head_sites) == (theirs.factors, theirs.heads, theirs.head_sites)
    assert same(mine.weights, theirs.weights) and same(mine.protected, theirs.protected)
    assert list(mine.shifts) == list(theirs.shifts)
    for path, shift in mine.shifts.items():
        assert torch.equal(shift.unit, theirs.shifts[path].unit)
        assert same(shift.carrier, theirs.shifts[path].carrier) and shift.spread == theirs.shifts[path].spread
    assert isinstance(theirs, Findings) and dict(theirs.notes) == dict(mine.notes)


def test_damage_is_told_and_not_guessed_around() -> None:
    """Control: the undamaged bytes are read."""
    data = packed(result("subspace"))
    unpacked(data)
    for damaged in (data[:40], data[: len(data) // 2], b"", data.replace(b"sources", b"sauces_")):
        with pytest.raises(StudyCorruptError):
            unpacked(damaged)
