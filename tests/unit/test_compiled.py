# SPDX-License-Identifier: Apache-2.0
"""`--compile` is kept only where it proves right and faster (requirements R-PRF-10, R-GEN-08)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from heretic.decoding import FastEngine, ReferenceEngine, compiled_engine
from heretic.decoding.choice import mild_edits
from heretic.decoding.compiled import _decoded, proved
from heretic.model.model import Model
from heretic.testing.workbench import loaded_pico


@pytest.fixture(autouse=True)
def clean_compiler() -> Iterator[None]:
    """Graphs of one test must not serve another; the compiler's switches are put back."""
    guards = torch._dynamo.config.skip_nnmodule_hook_guards
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = guards


def negated(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """A compiler with a fault: every number has the wrong sign."""

    def run(*arguments: Any) -> Any:
        return tuple(
            -value if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for value in module(*arguments)
        )

    return run


def failing(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    raise ValueError("this compiler knows no graph")


@pytest.fixture(scope="module")
def model() -> Model:
    return loaded_pico("qwen2")


def test_without_cuda_it_switches_itself_off_and_says_so(model: Model) -> None:
    engine = FastEngine(model)
    found, note = compiled_engine(model, engine)
    assert found is engine and "needs a CUDA accelerator" in note and "cpu" in note
    other = ReferenceEngine(model)
    assert compiled_engine(model, other)[0] is other


@pytest.mark.slow  # the compiler's own imports take as long as a hundred other tests
def test_a_compiled_engine_decodes_the_same_tokens_under_changing_edits(model: Model) -> None:
    engine = FastEngine(model)
    found, note = proved(model, engine, backend="eager", least_gain=0.0)
    assert note == "" and found is not engine
    sequences = [(4, 90, 91, 5), (4, 120, 121, 122, 5)]
    plain = [
        _decoded(model, engine, sequences, edits)[0]
        for edits in ({}, mild_edits(model, 7), mild_edits(model, 8))
    ]
    assert plain[0] != plain[1] != plain[2], "control: the edits change what is said"
    for edits, wanted in zip(({}, mild_edits(model, 7), mild_edits(model, 8)), plain, strict=True):
        assert _decoded(model, found, sequences, edits)[0] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "gain", "said"),
    [
        (negated, 0.0, "decodes other tokens"),
        (failing, 0.0, "torch.compile failed (BackendCompilerFailed)"),
        ("eager", 1e9, "does not pay"),
    ],
)
def test_a_wrong_a_failing_and_a_slow_compiler_are_given_up(
    backend: Any, gain: float, said: str, model: Model
) -> None:
    engine = FastEngine(model)
    found, note = proved(model, engine, backend=backend, least_gain=gain)
    assert found is engine and said in note
