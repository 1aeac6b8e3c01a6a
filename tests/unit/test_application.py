# SPDX-License-Identifier: Apache-2.0
"""Direction files against a model's configuration: whose directions, and how strong (R-CLI-06, algorithms 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heretic.cli.apply import split_files
from heretic.config import Resolved, resolve_settings
from heretic.demo import model_path
from heretic.directions.bank import DirectionBank
from heretic.directions.file import DirectionFile
from heretic.exceptions import AbliterationError, ConfigurationError, DirectionFileError
from heretic.phases.application import Application, Part, Strength, plan_application

L, D = 8, 128
RISING = tuple(float(layer) for layer in range(L))


def settings(tmp_path: Path, *words: str) -> Resolved:
    line = ["--model", str(model_path()), "--behaviour=demo", "--offline", *words]
    return resolve_settings(line, environ={}, cwd=tmp_path)


def axis(index: int) -> Tensor:
    return torch.eye(D)[index]


def part(name: str, *rows: Tensor, scale: float = 1.0, **changes: Any) -> Part:
    """The same orthonormal rows at every layer."""
    directions = torch.stack(rows).expand(L, -1, -1).contiguous()
    values: dict[str, Any] = {
        "bank": DirectionBank(directions, torch.ones(L, len(rows))),
        "name": name, "behaviour": "refusal", "goal": "suppress", "method": "difference",
        "component_weights": (1.0, 0.5, 0.25)[: len(rows)], "auroc": (1.0,) * L, "effect_size": RISING,
        "model": "model", "revision": None, "data": {}, "source": "test", "created": "2031-05-06T07:08:09+00:00",
    }  # fmt: skip
    return Part(f"{name}.direction.safetensors", DirectionFile(**{**values, **changes}), "0" * 64, scale)


def planned(
    tmp_path: Path,
    parts: Sequence[Part],
    strength: Strength | None = None,
    layer: Any = "best",
    words: Sequence[str] = (),
) -> Application:
    words = ("--no-enable-layer-profiles", *words)
    return plan_application(settings(tmp_path, *words), parts, strength or Strength(), layer)


def test_the_best_layer_is_the_one_with_the_largest_mean_effect(tmp_path: Path) -> None:
    """Unknown effects count for nothing; control: each file alone has another best layer."""
    first = part("first", axis(0), effect_size=(9.0, *RISING[1:]))
    second = part("second", axis(1), effect_size=(None, 8.0, *RISING[2:6], None, -5.0))
    found = [
        planned(tmp_path, parts).parameters["direction_index"]
        for parts in ([first], [second], [first, second])
    ]
    assert found == [0.0, 1.0, 0.0]
    falling = part("falling", axis(1), effect_size=(-9.0, *reversed(RISING[1:])))
    assert planned(tmp_path, [first, falling]).parameters["direction_index"] == 1.0
    unknown = part("sum", axis(2), effect_size=(None,) * L)
    with pytest.raises(ConfigurationError, match="None of the files says") as caught:
        planned(tmp_path, [unknown])
    assert "--direction-layer" in str(caught.value.hint)
    assert planned(tmp_path, [unknown], layer=2.5).parameters["direction_index"] == 2.5
    assert planned(tmp_path, [unknown], layer="own").parameters["direction_scope"] == "per_layer"


def test_a_file_that_adds_nothing_at_the_layer_that_is_used_is_an_error(tmp_path: Path) -> None:
    """It adds something elsewhere, so the joint basis has it; control: with another layer it works."""
    rows = axis(1).expand(L, 1, -1).clone()
    rows[4, 0] = -axis(0)
    mixed = part("mixed", axis(1))
    mixed = replace(mixed, file=replace(mixed.file, bank=DirectionBank(rows, torch.ones(L, 1))))
    parts = [part("first", axis(0), axis(2)), mixed]
    with pytest.raises(AbliterationError, match="'mixed' lie within .* at layer 4"):
        planned(tmp_path, parts, layer=4.0)
    assert planned(tmp_path, parts, layer=5.0).basis.dropped[0].endswith("at the layers 4.")
    assert len(planned(tmp_path, parts, layer=5.0).plan.rows) == 2 * L


def test_the_largest_weight_has_the_strength_and_the_cap_holds_for_it(tmp_path: Path) -> None:
    """Strength times scale times component weight, for each row of the basis in its order."""
    parts = [part("first", axis(0), axis(1)), part("second", axis(2), scale=2.0)]
    plan = planned(tmp_path, parts, Strength(0.5)).plan
    assert {tuple(values) for values in plan.effective_strengths().values()} == {(0.5, 0.25, 1.0)}
    with pytest.raises(ConfigurationError, match=r"The strength is 1\.6 .*times 2 by scale.* 0 to 1\.5"):
        planned(tmp_path, parts, Strength(0.8))
    assert planned(tmp_path, parts, Strength(0.8), words=("--max-strength=1.6",)).plan.rows
    one = planned(tmp_path, parts[:1], Strength(0.5), words=("--strategy=single",))
    assert {tuple(values) for values in one.plan.effective_strengths().values()} == {(0.5,)}
    assert any("uses the first of the 2 directions" in note for note in one.notes)


def test_strengths_over_depth_are_the_tent(tmp_path: Path) -> None:
    """Algorithms 5.1; the same at all depths unless stated."""
    flat = planned(tmp_path, [part("a", axis(0))], Strength(0.7)).plan.effective_strengths()
    assert set(map(tuple, flat.values())) == {(0.7,)}
    tent = planned(
        tmp_path, [part("a", axis(0))], Strength(1.0, position=1.0, edge=0.5, half_width=3 / 7)
    ).plan
    found = [float(row.strengths[0]) for row in tent.rows if row.site.component == "mlp.down_proj"]
    assert found == pytest.approx([0.5, 1 - 1 / 3, 1 - 1 / 6, 1.0]), "layers 4 to 7"


@pytest.mark.parametrize("weights", [(-1.0,), (0.0,)])
def test_weights_that_are_no_strengths_are_refused(weights: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(DirectionFileError, match="component weights"):
        planned(tmp_path, [part("a", axis(0), component_weights=weights)])


def test_notes_name_what_does_not_fit(tmp_path: Path) -> None:
    """Control: a file of this model and behaviour has no note."""
    assert planned(tmp_path, [part("a", axis(0), behaviour="hedging + refusal")]).notes == ()
    strange = part("b", axis(1), behaviour="hedging")
    (note,) = planned(tmp_path, [strange]).notes
    assert "those of hedging" in note and "refusal" in note
    words = ("--use-activation-calibration",)
    (note,) = planned(tmp_path, [part("a", axis(0))], words=words).notes
    assert "use_activation_calibration has no effect" in note
    tuned = part("c", axis(2), model="org/tuned")
    assert "extracted from org/tuned, not from model" in planned(tmp_path, [tuned]).notes[0]


@pytest.mark.parametrize(
    ("line", "files", "rest"),
    [
        ("a.direction.safetensors b --n-trials 3", ["a.direction.safetensors", "b"], ["--n-trials", "3"]),
        ("--behaviour demo a.direction.safetensors", ["a.direction.safetensors"], ["--behaviour", "demo"]),
        ("--behaviour demo", [], ["--behaviour", "demo"]),
        ("", [], []),
    ],
)
def test_files_are_told_from_settings(line: str, files: list[str], rest: list[str]) -> None:
    """Before the first flag every word is a file; behind it only those with the ending."""
    assert split_files(line.split()) == (files, rest)
