# SPDX-License-Identifier: Apache-2.0
"""The scrambled Sobol sequence, point by point (algorithms section 8).

The numbers are those of `scipy.stats.qmc.Sobol` bit for bit (a test compares them), without importing
`scipy.stats`: that takes half a second, a good part of what stands between the start and the first trial.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

BITS: Final = 30
"""Binary digits of a coordinate."""

_Words: TypeAlias = npt.NDArray[np.uint32]


def sobol_units(dimensions: int, seed: int, start: int, count: int) -> npt.NDArray[np.float64]:
    """Points `start` ... `start + count - 1` of the sequence in [0, 1): [count, dimensions].

    In Gray code order point k is the shift, XOR the direction numbers at the ones of k ^ (k >> 1) (Antonov and
    Saleev 1979), so that no earlier point has to be drawn.
    """
    shift, numbers = _scrambled(dimensions, seed)
    index = np.arange(start, start + count, dtype=np.uint32)
    gray = index ^ (index >> 1)
    chosen = (gray[:, None] >> np.arange(BITS, dtype=np.uint32)) & 1
    terms = np.where(chosen[:, None, :] == 1, numbers[None], np.uint32(0))
    points: npt.NDArray[np.float64] = (np.bitwise_xor.reduce(terms, axis=2) ^ shift) * 2.0**-BITS
    return points


@lru_cache(maxsize=8)
def _scrambled(dimensions: int, seed: int) -> tuple[_Words, _Words]:
    """Shift [dimensions] and direction numbers [dimensions, BITS] after linear matrix scrambling (Matousek 1998).

    The numbers of Joe and Kuo come from torch. With digits counted from the most significant one, a scrambled
    number is L times the number modulo 2, where L is a random lower triangular matrix with a unit diagonal.
    """
    import torch  # here and not above: a list of studies needs no torch

    # scipy draws from a child of the generator it is given.
    generator = np.random.default_rng(seed).spawn(1)[0]
    bits = np.arange(BITS, dtype=np.uint32)
    shift = generator.integers(2, size=(dimensions, BITS), dtype=np.uint32) @ (np.uint32(1) << bits)
    lower = np.tril(generator.integers(2, size=(dimensions, BITS, BITS), dtype=np.uint32))
    lower[:, bits, bits] = 1
    plain = torch.quasirandom.SobolEngine(dimensions).sobolstate.numpy().astype(np.uint32)
    places = bits[::-1]
    digits = (plain[:, :, None] >> places) & 1
    mixed = np.einsum("dpi,dji->djp", lower, digits) & 1
    numbers: _Words = (mixed << places).sum(axis=2, dtype=np.uint32)
    return shift.astype(np.uint32), numbers
