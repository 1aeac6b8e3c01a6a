# SPDX-License-Identifier: Apache-2.0
"""A model made without torch's Python references is the same model (R-PRF-02)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heretic.model.construction import MOST_ELEMENTS, WithoutReferences
from heretic.testing.pico import PICO_FAMILIES, PICO_WRAPPERS, pico_model

META = torch.device("meta")
OPERATIONS: dict[str, Callable[[], Tensor]] = {
    "arange": lambda: torch.arange(0, 64, 2, dtype=torch.int64),
    "arange of floats": lambda: torch.arange(0, 1, 0.3),
    "frequencies": lambda: 1.0 / (10000.0 ** (torch.arange(0, 64, 2, dtype=torch.float) / 64)),
    "two tensors": lambda: torch.ones(3, 1) * torch.ones(1, 4, dtype=torch.float64),
    "integers divided": lambda: torch.ones(5, dtype=torch.int32) / 2,
    "half precision": lambda: torch.ones(5, dtype=torch.bfloat16) ** 2,
    "a transposed one": lambda: torch.ones(3, 4).T / 2,
    "a large one": lambda: torch.ones(MOST_ELEMENTS + 1) / 2,
    "filled": lambda: nn.init.normal_(torch.empty(7, 3)),
    "like another": lambda: torch.empty_like(torch.ones(3, 4), device="cpu"),
    "like a transposed one": lambda: torch.empty_like(torch.ones(3, 4).T, device="cpu"),
    "an embedding": lambda: nn.Embedding(11, 5, padding_idx=0).weight,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_result_has_the_same_shape_type_layout_and_place(name: str) -> None:
    with META:
        expected = OPERATIONS[name]()
    with WithoutReferences(), META:
        found = OPERATIONS[name]()
    for of in (torch.Tensor.size, torch.Tensor.stride, lambda t: (t.dtype, t.device, t.requires_grad)):
        assert of(found) == of(expected), name


def test_with_storage_everything_is_computed() -> None:
    """Control: the context does nothing to tensors that have values."""
    torch.manual_seed(0)
    expected = [make() for name, make in OPERATIONS.items() if "like" not in name]
    torch.manual_seed(0)
    with WithoutReferences():
        found = [make() for name, make in OPERATIONS.items() if "like" not in name]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Reached(TorchFunctionMode):
    """Counts what is asked for without storage."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if any(isinstance(value, Tensor) and value.is_meta for value in (*args, *options.values())):
            self.names.append(func.__name__)
        return func(*args, **options)


@pytest.mark.parametrize("inside", [True, False])
def test_the_references_are_not_reached(inside: bool) -> None:
    """Control: without the context they are."""
    with ExitStack() as stack:
        reached = stack.enter_context(Reached())
        if inside:
            stack.enter_context(WithoutReferences())
        stack.enter_context(META)
        OPERATIONS["frequencies"]()
        OPERATIONS["filled"]()
    assert bool({"div", "__rpow__", "__rtruediv__", "normal_"} & set(reached.names)) is not inside


@pytest.mark.parametrize("family", [*PICO_FAMILIES, *PICO_WRAPPERS])
def test_a_loaded_model_is_the_same_bit_for_bit(family: str, tmp_path: Path) -> None:
    """Parameters and buffers with their types and layouts."""
    model = pico_model(family)
    model.save_pretrained(tmp_path)
    states = []
    for inside in (False, True):
        with ExitStack() as stack:
            if inside:
                stack.enter_context(WithoutReferences())
            network = type(model).from_pretrained(tmp_path, dtype="auto")
        states.append(dict(network.named_parameters()) | dict(network.named_buffers()))
    plain, short = states
    assert plain.keys() == short.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, short[name]), name
        assert (tensor.dtype, tensor.device, tensor.stride()) == (
            short[name].dtype,
            short[name].device,
            short[name].stride(),
        ), name
