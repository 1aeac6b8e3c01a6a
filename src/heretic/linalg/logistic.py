# SPDX-License-Identifier: Apache-2.0
"""Two-class logistic regression with an L2 penalty, solved exactly in the span of the samples.

    minimise  |w|^2 / 2 + sum_i c_i log(1 + exp(-y_i f_i)),      f = X w + b,      c_i = C N / (2 N_y)

The weights c make both classes count alike; with equal numbers they are C. At the optimum w = XT a with
a_i = c_i (t_i - p_i) and sum_i a_i = 0, so only K = X XT is needed, however many coordinates a sample has. Newton's
step, with S = diag(c p (1 - p)), g = S f + c (t - p) and M = (I + S K)^-1:

    b = 1T M g / 1T M S 1,     a = M (g - b S 1),     f = K a + b

(Rasmussen and Williams, Gaussian Processes for Machine Learning, algorithm 3.1, with a free intercept.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

ITERATIONS = 1000
SHORTEST_STEP = 1e-9
TOLERANCE = 1e-8
"""Largest error of a_i = c_i (t_i - p_i) at which the optimum is reached, as a share of the largest c."""


@dataclass(frozen=True, slots=True, eq=False)
class InnerProducts:
    """K = X XT of samples: the matrix [N, N] itself where they are fewer than their coordinates, else X [N, q]."""

    rows: Tensor
    is_gram: bool

    @classmethod
    def of(cls, samples: Tensor) -> InnerProducts:
        """From samples [N, d] float64."""
        if samples.shape[0] <= samples.shape[1]:
            return cls(samples @ samples.T, is_gram=True)
        return cls(samples, is_gram=False)

    def among(self, members: Tensor) -> InnerProducts:
        """The inner products of the samples chosen by the mask [N]."""
        rows = self.rows[members]
        return InnerProducts(rows[:, members], True) if self.is_gram else InnerProducts(rows, False)

    def between(self, others: Tensor, members: Tensor, dual: Tensor) -> Tensor:
        """X_others w with w = X_membersT dual; both masks [N]."""
        if self.is_gram:
            return self.rows[others][:, members] @ dual
        return self.rows[others] @ (self.rows[members].T @ dual)

    def apply(self, dual: Tensor) -> Tensor:
        """K dual."""
        return self.rows @ (dual if self.is_gram else self.rows.T @ dual)

    def newton_inverse(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """v [N, k] -> (I + S K)^-1 v with S = diag(weights), weights >= 0: nothing is divided by a weight.

        v - R B^-1 R K v with R = sqrt(S), B = I + R K R; or v - S X (I + XT S X)^-1 XT v, the same by push-through.
        """
        root = weights.sqrt()[:, None]
        scaled = self.rows * root
        inner = scaled * root.T if self.is_gram else scaled.T @ scaled
        inner.diagonal().add_(1.0)
        # Without a check: NaN passes through and is seen as an optimum that was not reached.
        factor = torch.linalg.cholesky_ex(inner)[0]

        def inverse(vectors: Tensor) -> Tensor:
            if self.is_gram:
                return vectors - root * torch.cholesky_solve(scaled @ vectors, factor)
            return vectors - root * (scaled @ torch.cholesky_solve(self.rows.T @ vectors, factor))

        return inverse


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """A regression. dual: [N], w = XT dual. intercept: b. error: of a_i = c_i (t_i - p_i), as a share of max c."""

    dual: Tensor
    intercept: float
    error: float

    @property
    def converged(self) -> bool:
        """False also where the samples hold NaN or infinity."""
        return self.error <= TOLERANCE


@dataclass(frozen=True, slots=True, eq=False)
class _Point:
    """Where the search stands: a, b, K a and f = K a + b."""

    dual: Tensor
    intercept: Tensor
    pull: Tensor

    @property
    def logits(self) -> Tensor:
        return self.pull + self.intercept

    def towards(self, other: _Point, share: float) -> _Point:
        return _Point(
            torch.lerp(self.dual, other.dual, share),
            torch.lerp(self.intercept, other.intercept, share),
            torch.lerp(self.pull, other.pull, share),
        )

    def loss(self, target: Tensor, costs: Tensor) -> float:
        penalty = self.dual @ self.pull / 2.0
        return float(penalty + (costs * (softplus(self.logits) - target * self.logits)).sum())


def fit_logistic(
    products: InnerProducts, positive: Tensor, *, strength: float = 1.0, iterations: int = ITERATIONS
) -> Logistic:
    """The optimum for labels positive [N] bool, both present; strength: C. At most `iterations` Newton steps."""
    target = positive.double()
    sizes = torch.where(positive, target.sum(), len(positive) - target.sum())
    costs = strength * len(positive) / (2.0 * sizes)
    point = _Point(torch.zeros_like(target), target.new_zeros(()), torch.zeros_like(target))
    error = _error(point, target, costs)
    for _ in range(iterations):
        if not error > TOLERANCE:
            break
        aim, before, share = _newton(products, point, target, costs), point.loss(target, costs), 1.0
        # The step may be too long where the chances are near 0 or 1; the loss is convex, so a shorter one does.
        while (
            point.towards(aim, share).loss(target, costs) > before + 1e-12 * abs(before)
            and share > SHORTEST_STEP
        ):
            share /= 2.0
        point = point.towards(aim, share)
        error = _error(point, target, costs)
    return Logistic(point.dual, float(point.intercept), error)


def cross_fitted_logits(
    products: InnerProducts, positive: Tensor, *, folds: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """(f [N] of each sample by the regression fitted on the other folds, largest error of a fit).

    Each fold holds its share of both classes; positive: [N] bool with at least `folds` >= 2 samples of each class.
    """
    owner = torch.empty(len(positive), dtype=torch.int64)
    for members in (positive, ~positive):
        order = torch.randperm(int(members.sum()), generator=generator)
        owner[members] = order % folds
    logits, error = torch.empty(len(positive), dtype=torch.float64), 0.0
    for fold in range(folds):
        held, others = owner == fold, owner != fold
        fitted = fit_logistic(products.among(others), positive[others])
        logits[held] = products.between(held, others, fitted.dual) + fitted.intercept
        error = max(error, fitted.error)
    return logits, error


def _error(point: _Point, target: Tensor, costs: Tensor) -> float:
    missed = point.dual - costs * (target - point.logits.sigmoid())
    return float(missed.abs().max() / costs.max())


def _newton(products: InnerProducts, point: _Point, target: Tensor, costs: Tensor) -> _Point:
    logits = point.logits
    chance = logits.sigmoid()
    weights = costs * chance * (1.0 - chance)
    wanted = weights * logits + costs * (target - chance)
    solved = products.newton_inverse(weights)(torch.stack([wanted, weights], dim=1))
    intercept = solved[:, 0].sum() / solved[:, 1].sum().clamp_min(torch.finfo(target.dtype).tiny)
    dual = solved[:, 0] - intercept * solved[:, 1]
    return _Point(dual, intercept, products.apply(dual))
