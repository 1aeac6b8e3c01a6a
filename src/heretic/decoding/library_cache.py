# SPDX-License-Identifier: Apache-2.0
"""The name under which a network of the library takes and returns its key-value cache.

transformers 5.24 renamed `past_key_values` to `cache`; networks of other makes and earlier versions keep the old name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")


@lru_cache(maxsize=64)
def _name(forward: Callable[..., object]) -> str:
    known = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in known), NAMES[-1])


def cache_argument(network: nn.Module, cache: object) -> dict[str, object]:
    """The keyword argument of `forward` that hands over a cache."""
    return {_name(type(network).forward): cache}


def cache_of(output: object) -> Any:
    """The cache that a forward pass returned; None where there is none."""
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)
