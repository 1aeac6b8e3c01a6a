# SPDX-License-Identifier: Apache-2.0
"""Solving with a shrunk covariance, without a d x d matrix where the samples are fewer (algorithms 3.6).

    S_n = XT X / n,   t1 = tr S_n,   t2 = tr(S_n^2)
    rho = min(1, ((1 - 2/d) t2 + t1^2) / ((n + 1 - 2/d)(t2 - t1^2/d)))        Sigma = (1 - rho) S_n + rho (t1/d) I

rho is the oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero (2010). n counts degrees of freedom: the
samples less the means that were subtracted from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

ISOTROPIC = 1e-12
"""Below this share of t2 the eigenvalues of S_n do not differ: rho is 1."""


SINGULAR = 1e-13
"""A pivot below this share of the largest is what rounding left of zero."""


class SingularCovarianceError(ArithmeticError):
    """Without shrinkage, samples that do not vary in every dimension have no inverse covariance."""


def oas_intensity(first: float, second: float, degrees: int, width: int) -> float:
    """rho from first = t1 = tr S_n, second = t2 = tr(S_n^2), the degrees of freedom n and the width d."""
    excess = second - first * first / width
    if excess <= ISOTROPIC * second:
        return 1.0
    rho = ((1.0 - 2.0 / width) * second + first * first) / ((degrees + 1.0 - 2.0 / width) * excess)
    return min(1.0, rho)


def solve(
    samples: Tensor, right_hand_sides: Tensor, rho: float | None = None, *, degrees: int | None = None
) -> tuple[Tensor, float]:
    """(Sigma^-1 r for each row r, rho).

    samples: [N, d] float64, centred. right_hand_sides: [k, d] float64. rho: between 0 and 1, None = automatic.
    degrees: degrees of freedom, None = N - 1. Samples that do not vary at all have Sigma = I. Raises
    `SingularCovarianceError` where Sigma has no inverse, which needs rho = 0.
    """
    method = solve_in_space if samples.shape[0] >= samples.shape[1] else solve_in_span
    return method(samples, right_hand_sides, rho, degrees=degrees)


def solve_in_space(
    samples: Tensor, right_hand_sides: Tensor, rho: float | None = None, *, degrees: int | None = None
) -> tuple[Tensor, float]:
    """`solve` by one Cholesky factor of Sigma [d, d]: for N >= d."""
    degrees = degrees or max(1, len(samples) - 1)
    covariance = samples.T @ samples / degrees
    scale, rho = _shrinkage(covariance, samples.shape[1], degrees, rho)
    if scale == 0.0:
        return right_hand_sides.clone(), rho
    covariance *= 1.0 - rho
    covariance.diagonal().add_(rho * scale)
    return torch.cholesky_solve(right_hand_sides.T, _root(covariance)).T, rho


def solve_in_span(
    samples: Tensor, right_hand_sides: Tensor, rho: float | None = None, *, degrees: int | None = None
) -> tuple[Tensor, float]:
    """`solve` by Woodbury, with Y = sqrt((1 - rho)/n) X and e = rho t1/d: (r - YT (e I + Y YT)^-1 Y r) / e.

    The Gram matrix [N, N] gives t1 and t2 as well: for N < d.
    """
    degrees = degrees or max(1, len(samples) - 1)
    gram = samples @ samples.T / degrees
    scale, rho = _shrinkage(gram, samples.shape[1], degrees, rho)
    if scale == 0.0:
        return right_hand_sides.clone(), rho
    ridge = rho * scale
    if ridge == 0.0:
        raise SingularCovarianceError(f"{len(samples)} samples in {samples.shape[1]} dimensions")
    share = (1.0 - rho) / degrees
    gram *= 1.0 - rho
    gram.diagonal().add_(ridge)
    inner = torch.cholesky_solve(samples @ right_hand_sides.T, _root(gram))
    return (right_hand_sides - share * (inner.T @ samples)) / ridge, rho


def _root(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise SingularCovarianceError(f"the leading minor of order {int(failed)} is not positive")
    pivots = factor.diagonal().square()
    if float(pivots.min()) < SINGULAR * float(pivots.max()):
        raise SingularCovarianceError(
            f"its pivots fall to {float(pivots.min() / pivots.max()):.1e} of the largest"
        )
    return factor


def _shrinkage(matrix: Tensor, width: int, degrees: int, rho: float | None) -> tuple[float, float]:
    """(t1/d, rho); matrix is S_n or the Gram matrix over n, which have the same traces."""
    first, second = float(matrix.trace()), float(matrix.square().sum())
    if first == 0.0:
        return 0.0, 1.0
    return first / width, oas_intensity(first, second, degrees, width) if rho is None else rho
