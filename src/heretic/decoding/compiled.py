# SPDX-License-Identifier: Apache-2.0
"""`--compile`: the decode step through torch.compile, kept where it proves right and faster (requirements R-PRF-10).

Every batch of trials brings hooks of its own, and a compiled graph has to be made again for hooks it does not know.
So the proof decodes under changing edits, as the search does, and a compiled step that does not pay is given up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from heretic.decoding.choice import PROBE, mild_edits
from heretic.decoding.fast import FastEngine
from heretic.decoding.protocol import Engine
from heretic.exceptions import GenerationError
from heretic.interventions.hooks import Edits, applied, every_row
from heretic.model.model import Model

logger = logging.getLogger("heretic.decoding")

PROOF_TOKENS = 16
PROOFS = 3
"""Decodings under edits of their own: the first ones compile, the last one is timed."""

LEAST_GAIN = 1.1
"""A compiled step has to be faster by this factor, or it is not worth its compilation."""

Forward = Callable[..., Any]


def compiled_engine(model: Model, engine: Engine) -> tuple[Engine, str]:
    """The engine with a compiled step, or the same engine and a sentence that says why it is not compiled."""
    if model.device.type != "cuda":
        return (
            engine,
            f"compile is off: it needs a CUDA accelerator, and this model runs on {model.device.type}",
        )
    if not isinstance(engine, FastEngine):
        return engine, "compile is off: only the fast engine can be compiled, and it does not fit this model"
    return proved(model, engine)


def proved(
    model: Model, engine: FastEngine, *, backend: str | Forward = "inductor", least_gain: float = LEAST_GAIN
) -> tuple[Engine, str]:
    """The compiled engine when it decodes the same tokens as the plain one and is faster by `least_gain`."""
    errors = _compiler_errors()
    candidate = FastEngine(
        model,
        mode=engine.mode,
        reuse_bytes=engine.reuse_bytes,
        forward=_compiled(model, backend, errors),
    )
    sequences = [model.encoder.encode(text) for text in PROBE]
    plain_s = compiled_s = 0.0
    for number in range(PROOFS):
        edits = mild_edits(model, number)
        wanted, plain_s = _decoded(model, engine, sequences, edits)
        try:
            found, compiled_s = _decoded(model, candidate, sequences, edits)
        except GenerationError as error:
            return engine, f"compile is off: {error.message}"
        if found != wanted:
            return engine, "compile is off: the compiled model decodes other tokens than the plain one"
    gain = plain_s / max(compiled_s, 1e-9)
    if gain < least_gain:
        return engine, f"compile is off: a compiled step is {gain:.2f} times as fast here, which does not pay"
    logger.info("compiled decoding is %.2f times as fast", gain)
    return candidate, ""


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return (TorchDynamoException, InductorError)


def _compiled(model: Model, backend: str | Forward, errors: tuple[type[Exception], ...]) -> Forward:
    """The network's forward, compiled for any number of rows and positions, with the compiler's errors typed."""
    # By default a graph does not look at hooks it was not made with, and would leave an edit out silently.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    network: Forward = torch.compile(model.network, dynamic=True, backend=backend)

    def forward(**arguments: Any) -> Any:
        try:
            return network(**arguments)
        except errors as error:
            raise GenerationError(
                f"torch.compile failed ({type(error).__name__})", hint="Leave out --compile."
            ) from error

    return forward


def _decoded(
    model: Model, engine: Engine, sequences: Sequence[tuple[int, ...]], edits: Edits
) -> tuple[list[tuple[int, ...]], float]:
    """Tokens of each row under the edits, and the seconds it took."""
    rows = every_row(0, len(sequences), model.device)
    begin = time.perf_counter()
    with applied(model.network, [edits], rows):
        decoding = engine.start(sequences, rows=rows)
        decoding.advance(PROOF_TOKENS)
        tokens = [reply.tokens for reply in decoding.replies()]
    return tokens, time.perf_counter() - begin
