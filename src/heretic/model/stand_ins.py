# SPDX-License-Identifier: Apache-2.0
"""A stand-in for torch's compiler, `torch._dynamo`, where nothing is compiled.

Its import takes 0.7 s (torch 2.13). But while transformers is imported, decorators only tell the compiler to leave
functions alone, and so does torch itself while a model is made on the meta device; a process that compiles later must
not use it, because these functions are not known to the compiler then. Any other question brings the real module, for
good, and so does everybody's import after the context.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

logger = logging.getLogger("heretic.model")

COMPILER: Final = "torch._dynamo"
PART: Final = "torch._dynamo._trace_wrapped_higher_order_op"
"""The one part of it that transformers imports."""


@contextmanager
def compiler_stand_in() -> Iterator[None]:
    """Within the context the stand-in is found in place of the compiler; torch has to be imported."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in, part = StandIn(COMPILER), ModuleType(PART)
    vars(part)["TransformGetItemToIndex"] = TransformGetItemToIndex
    sys.modules[COMPILER], sys.modules[PART] = stand_in, part
    # Elsewhere torch imports it when this name of it is first asked for.
    vars(sys.modules["torch"])["_dynamo"] = stand_in
    try:
        yield
    finally:
        leave()


def leave() -> None:
    """Take the stand-in away, so that the next import brings the real module."""
    if isinstance(sys.modules.get(COMPILER), StandIn):
        del sys.modules[COMPILER], sys.modules[PART]
        del vars(sys.modules["torch"])["_dynamo"]


class StandIn(ModuleType):
    """What can be said to the compiler of functions without it."""

    @staticmethod
    def allow_in_graph(function: Any) -> Any:
        """The function itself, as in the real module."""
        return function

    @staticmethod
    def assume_constant_result(function: Any) -> Any:
        """The function itself with the mark that the real module gives it."""
        function._dynamo_marked_constant = True
        return function

    @staticmethod
    def disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """The function itself: there is no compiler to keep away from it."""
        return (lambda decorated: decorated) if function is None else function

    def __getattr__(self, name: str) -> Any:
        # The path is asked for when somebody imports another part.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        logger.debug("torch._dynamo.%s is needed", name)
        leave()
        return getattr(importlib.import_module(COMPILER), name)


class TransformGetItemToIndex:
    """Makes an instance of the real class, which the attention masks of some models need when they are built."""

    def __new__(cls) -> Any:
        """The real object."""
        leave()
        return importlib.import_module(PART).TransformGetItemToIndex()
