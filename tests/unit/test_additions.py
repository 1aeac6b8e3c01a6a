# SPDX-License-Identifier: Apache-2.0
"""Edits that add a constant: set-points, steering, and their carrier (algorithms 3.8, 4.7; R-CAA-03 to 05)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from heretic.architectures.site import Gain, Site
from heretic.exceptions import AbliterationError, ConfigurationError
from heretic.interventions.additions import (
    carried,
    carrier_spread,
    input_carrier,
    require_constant,
    set_point,
    steering,
)
from heretic.interventions.edit import Edit, ablation
from heretic.interventions.heads import restricted
from heretic.interventions.hooks import applied, every_row
from heretic.interventions.norms import preserved
from heretic.interventions.weights import edited_bias, edited_matrix

D, M, K, N = 20, 30, 2, 400
GENERATOR = torch.Generator().manual_seed(8)
SITE = Site("writer.weight", 0, "mlp.down_proj", 0, "writer", bias="writer.bias")
BARE = replace(SITE, bias=None)
DOUBLE = torch.float64


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=DOUBLE)


DIRECTIONS, CENTRE = normal(K, D), 3.0 * normal(D)
WEIGHT, BIAS = normal(D, M), 5.0 * normal(D)
VECTOR = nn.functional.normalize(normal(D), dim=0)
INPUTS = normal(M) + normal(N, 6) @ normal(6, M) + 0.1 * normal(N, M)
"""Inputs with a mean and a few strong directions, as activations have."""


def ablated(strength: float) -> Edit:
    return ablation(DIRECTIONS, torch.full((K,), strength, dtype=DOUBLE))


def oblique(strength: float) -> Edit:
    removed, read = DIRECTIONS.T, DIRECTIONS.T + 0.5 * COVECTORS
    return Edit(left=-strength * removed @ torch.linalg.inv(read.T @ removed), read=read)


COVECTORS = normal(D, K)
KINDS: dict[str, Callable[[float], Edit]] = {"ablation": ablated, "oblique": oblique}


class Network(nn.Module):
    """One writer with a large bias or none, in either layout."""

    def __init__(self, axis: Literal[0, 1] = 0, *, bias: bool = True) -> None:
        super().__init__()
        writer: nn.Module = nn.Linear(M, D) if axis == 0 else Conv1D(D, M)
        self.writer = writer.to(DOUBLE)
        self.writer.get_parameter("weight").data = (WEIGHT if axis == 0 else WEIGHT.T).clone()
        self.writer.get_parameter("bias").data = BIAS.clone() if bias else torch.zeros(D, dtype=DOUBLE)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.writer(inputs)
        return output


def hooked(network: Network, edit: Edit, site: Site = SITE) -> Tensor:
    """What the writer makes of INPUTS under the edit, by hooks."""
    with torch.no_grad(), applied(network, [{site: edit}], every_row(0, 1, torch.device("cpu"))):
        output: Tensor = network(INPUTS[None])[0]
    return output


def written(edit: Edit, bias: Tensor = BIAS, axis: Literal[0, 1] = 0) -> Tensor:
    """The same by weights."""
    weight = WEIGHT if axis == 0 else WEIGHT.T
    matrix = edited_matrix(weight, edit, replace(SITE, residual_axis=axis))
    return INPUTS @ (matrix.T if axis == 0 else matrix) + edited_bias(bias, edit)


@pytest.mark.parametrize("kind", KINDS)
def test_at_strength_1_a_set_point_gives_every_input_the_target_coordinate(kind: str) -> None:
    """Section 4.7. Control: the constant for a record that does not read the bias is wrong here."""
    edit = set_point(KINDS[kind](1.0), CENTRE, SITE)
    assert edit.read is not None
    wanted = CENTRE @ edit.read
    for output in (hooked(Network(), edit), written(edit)):
        assert float((output @ edit.read - wanted).abs().max()) < 1e-10
    wrong = replace(edit, bias=-edit.left @ (edit.read.T @ (CENTRE - BIAS)))
    assert float((hooked(Network(), wrong) @ edit.read - wanted).abs().max()) > 0.1


@pytest.mark.parametrize("strength", (-0.5, 0.0, 0.4, 1.5))
def test_a_set_point_moves_each_coordinate_by_its_share(strength: float) -> None:
    """Section 4.7: (1 - a) own + a target; the rest of the output stays."""
    edit = set_point(ablated(strength), CENTRE, SITE)
    assert edit.read is not None
    before = INPUTS @ WEIGHT.T + BIAS
    after = hooked(Network(), edit)
    expected = (1.0 - strength) * before @ edit.read + strength * CENTRE @ edit.read
    assert torch.allclose(after @ edit.read, expected, atol=1e-10)
    rest = (after - before) - (after - before) @ edit.read @ edit.read.T
    assert float(rest.abs().max()) < 1e-10
    assert torch.allclose(after, before) == (strength == 0.0)


def test_a_set_point_keeps_what_the_edit_added_before() -> None:
    earlier = replace(ablated(1.0), bias=VECTOR)
    once, twice = set_point(ablated(1.0), CENTRE, SITE), set_point(earlier, CENTRE, SITE)
    assert once.bias is not None and twice.bias is not None
    assert torch.allclose(twice.bias, once.bias + VECTOR, atol=1e-12)


def test_steering_has_the_stated_size_and_sign_and_amount_0_is_the_identity() -> None:
    """R-CAA-05. Control: the even form W (I + s v vT) does not move the mean and cannot tell v from -v."""
    before = INPUTS @ WEIGHT.T + BIAS
    for amount in (0.7, -0.7):
        edit = steering(VECTOR, amount, SITE)
        for output in (hooked(Network(), edit), written(edit)):
            assert float(((output - before).mean(dim=0) - amount * VECTOR).abs().max()) < 1e-6
    flipped = steering(-VECTOR, 0.7, SITE).bias
    assert flipped is not None and torch.allclose(flipped, -0.7 * VECTOR)
    assert steering(VECTOR, 0.0, SITE).is_identity and not steering(VECTOR, 1e-3, SITE).is_identity

    mean = INPUTS.mean(dim=0) @ WEIGHT.T
    sideways = nn.functional.normalize(VECTOR - mean * (mean @ VECTOR) / (mean @ mean), dim=0)
    moved = [INPUTS @ (0.7 * torch.outer(v, v) @ WEIGHT).T for v in (sideways, -sideways)]
    assert float(moved[0].mean(dim=0).norm()) < 1e-10 < float(moved[0].norm())
    assert torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("axis", (0, 1))
def test_inputs_carry_a_constant_with_the_exact_mean_and_a_printed_spread(axis: Literal[0, 1]) -> None:
    """Section 4.7: mean shift t to 1e-6 without a bias. Control: the plain p = mu / |mu|^2 spreads far more."""
    none = torch.zeros(D, dtype=DOUBLE)
    stored, site = (WEIGHT if axis == 0 else WEIGHT.T), replace(BARE, residual_axis=axis)
    carrier = input_carrier(INPUTS)
    edit = carried(steering(VECTOR, 0.7, site), stored, axis, carrier)
    assert edit.bias is None and edit.read is None and edit.rank == 1
    mean = INPUTS.mean(dim=0)
    spreads = []
    for vector in (carrier, mean / (mean @ mean)):
        lifted = carried(steering(VECTOR, 0.7, site), stored, axis, vector)
        shift = hooked(Network(axis, bias=False), lifted, site) - INPUTS @ WEIGHT.T
        assert float((shift.mean(dim=0) - 0.7 * VECTOR).abs().max()) < 1e-6
        spreads.append(carrier_spread(vector, INPUTS))
        along = shift @ VECTOR
        assert spreads[-1] == pytest.approx(float(along.std(correction=0) / along.mean()), rel=1e-6)
        assert torch.allclose(written(lifted, none, axis), INPUTS @ WEIGHT.T + shift, atol=1e-12)
    assert spreads[0] < 0.1 and spreads[1] > 5 * spreads[0]
    half = input_carrier(INPUTS[::2])
    assert carrier_spread(half, INPUTS[1::2]) > carrier_spread(half, INPUTS[::2]), "in-sample flatters"


@pytest.mark.parametrize("kind", ("set-point", "head", "column", "row"))
def test_any_edit_keeps_what_it_does_when_its_constant_is_carried(kind: str) -> None:
    """On inputs whose product with p is 1 the carried edit is the one with a bias. Control: elsewhere it is not."""
    none = torch.zeros(D, dtype=DOUBLE)
    plain = set_point(ablated(0.8), CENTRE, BARE)
    if kind == "head":
        plain = restricted(plain, WEIGHT, torch.arange(6, 12), 0)
    if kind in ("column", "row"):
        plain = preserved(plain, WEIGHT, None, 0, "column" if kind == "column" else "row")
    carrier = input_carrier(INPUTS)
    edit = carried(plain, WEIGHT, 0, carrier)
    share = INPUTS @ carrier
    expected = written(plain, none)
    scaled = INPUTS / share[:, None]
    for rows, same in ((scaled, True), (INPUTS, False)):
        matrices = [edited_matrix(WEIGHT, each, BARE) for each in (edit, plain)]
        outputs = rows @ matrices[0].T, rows @ matrices[1].T + edited_bias(none, plain)
        assert torch.allclose(outputs[0], outputs[1], atol=1e-10) == same
    assert torch.allclose(hooked(Network(bias=False), edit, BARE), written(edit, none), atol=1e-10)
    assert torch.allclose(written(edit, none).mean(dim=0), expected.mean(dim=0), atol=1e-9)
    assert carried(ablated(0.8), WEIGHT, 0, carrier).equals(ablated(0.8)), "nothing to carry"


def test_inputs_without_a_mean_carry_nothing() -> None:
    centred = INPUTS - INPUTS.mean(dim=0)
    with pytest.raises(AbliterationError, match="mean input of a writer has length"):
        input_carrier(centred)
    assert input_carrier(centred + 0.1).isfinite().all(), "control"


@pytest.mark.parametrize(
    ("site", "reason"),
    (
        (
            replace(SITE, gain=Gain("post_norm", "weight")),
            r"writer\.weight is followed by the norm post_norm",
        ),
        (replace(SITE, experts=4), r"writer\.weight is one of several"),
        (replace(SITE, hook="block"), r"writer\.weight is one of several"),
    ),
    ids=("norm", "experts", "shared"),
)
def test_where_no_bias_is_a_constant_the_site_is_named(site: Site, reason: str) -> None:
    """R-CAA-04, section 4.7."""
    for attempt in (
        lambda: set_point(ablated(1.0), CENTRE, site),
        lambda: steering(VECTOR, 1.0, site),
        lambda: require_constant(site),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            attempt()
    require_constant(SITE)
