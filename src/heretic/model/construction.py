# SPDX-License-Identifier: Apache-2.0
"""Making a model without storage, quickly (requirements R-PRF-02).

transformers first makes a model on the meta device. For a few operations torch has only its Python references there,
and to find the type of a result they import sympy and the compiler, 0.9 s (torch 2.13). Models make their rotary
frequencies and fill their embeddings with these operations; the same shape and type is found by doing the first on
zeros, and there is nothing to be filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META: Final = torch.device("meta")
MOST_ELEMENTS: Final = 2**16
"""More are not worth doing for their shape alone."""

ARITHMETIC: Final[frozenset[Callable[..., Any]]] = frozenset(
    getattr(Tensor, name)
    for name in (
        *("div", "__truediv__", "__rtruediv__", "__div__", "__rdiv__", "reciprocal"),
        *("pow", "__pow__", "__rpow__", "mul", "__mul__", "__rmul__"),
    )
    if hasattr(Tensor, name)
)
"""Operations whose result is a new tensor, by shapes and types alone."""


class WithoutReferences(TorchFunctionMode):
    """Within the context these operations give the same tensors without storage as ever, by a shorter way."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What the operation gives, done on zeros in storage where all it is given has none."""
        options = dict(kwargs or {})
        if func is torch.nn.init.normal_:
            tensor = args[0] if args else options["tensor"]
            return tensor if tensor.is_meta else func(*args, **options)
        if func is torch.arange and _is_meta(options.get("device")) and options.get("out") is None:
            return func(*args, **{**options, "device": "cpu"}).to(META)
        if func is torch.empty_like and options.keys() == {"device"} and _is_plain(args[0]):
            return torch.empty(tuple(args[0].shape), dtype=args[0].dtype, **options)
        if func in ARITHMETIC and not options and all(map(_is_small, args)):
            return func(*map(_filled, args)).to(META)
        return func(*args, **options)


def _is_meta(device: Any) -> bool:
    return device is not None and str(device) == "meta"


def _is_small(argument: Any) -> bool:
    """True for a number, and for a small tensor without storage."""
    if isinstance(argument, Tensor):
        return _is_plain(argument) and argument.numel() <= MOST_ELEMENTS
    return type(argument) in (int, float)


def _is_plain(tensor: Tensor) -> bool:
    """True for a tensor without storage that its shape and type describe."""
    return type(tensor) is Tensor and tensor.is_meta and tensor.is_contiguous()


def _filled(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return torch.zeros(tuple(argument.shape), dtype=argument.dtype, device="cpu")
