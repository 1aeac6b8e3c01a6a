# SPDX-License-Identifier: Apache-2.0
"""Solving with a shrunk covariance (algorithms 3.6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heretic.linalg.shrinkage import (
    SingularCovarianceError,
    oas_intensity,
    solve,
    solve_in_space,
    solve_in_span,
)


def samples(count: int, width: int, seed: int = 0) -> Tensor:
    """Centred rows whose variances fall as 1 / index along random axes."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=source, dtype=torch.float64)
    rows = rows * torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    axes, _ = torch.linalg.qr(torch.randn(width, width, generator=source, dtype=torch.float64))
    rows = rows @ axes
    return torch.as_tensor(rows - rows.mean(dim=0))


def sides(width: int, count: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def shrunk(rows: Tensor, rho: float, degrees: int) -> Tensor:
    """Sigma as the formula has it, dense."""
    covariance = rows.T @ rows / degrees
    width = rows.shape[1]
    identity = torch.eye(width, dtype=torch.float64)
    return (1 - rho) * covariance + rho * covariance.trace() / width * identity


@pytest.mark.parametrize(("count", "width"), [(20, 50), (50, 50), (300, 50)])
@pytest.mark.parametrize("rho", [None, 0.3, 1.0])
def test_both_forms_solve_the_same_system(count: int, width: int, rho: float | None) -> None:
    """Cholesky and Woodbury agree to 1e-10 and Sigma x = r; control: with other degrees of freedom they do not."""
    rows, right = samples(count, width), sides(width)
    in_space, first = solve_in_space(rows, right, rho)
    in_span, second = solve_in_span(rows, right, rho)
    assert first == pytest.approx(second, abs=1e-12)
    assert float((in_space - in_span).norm() / in_space.norm()) < 1e-10
    picked, _ = solve(rows, right, rho)
    assert torch.equal(picked, in_space if count >= width else in_span)
    sigma = shrunk(rows, first, count - 1)
    assert float((picked @ sigma - right).norm() / right.norm()) < 1e-10
    assert float((picked @ shrunk(rows, first, count // 2) - right).norm() / right.norm()) > 1e-2


def test_the_intensity_is_the_published_one_and_brings_the_covariance_nearer_to_the_truth() -> None:
    """rho from t1 and t2 of a dense covariance; the error falls at n = d / 2; control: at n = 100 d it hardly does."""
    width = 40
    axes, _ = torch.linalg.qr(sides(width, width))
    truth = axes.T * torch.arange(1, width + 1, dtype=torch.float64).reciprocal() @ axes
    root = axes.T * torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    gains = []
    for count in (width // 2, 100 * width):
        source = torch.Generator().manual_seed(1)
        rows = torch.randn(count, width, generator=source, dtype=torch.float64) @ root.T
        rows = rows - rows.mean(dim=0)
        covariance = rows.T @ rows / (count - 1)
        first, second = float(covariance.trace()), float((covariance @ covariance).trace())
        n, d = count - 1, width
        expected = ((1 - 2 / d) * second + first**2) / ((n + 1 - 2 / d) * (second - first**2 / d))
        _, rho = solve(rows, sides(width))
        assert rho == pytest.approx(min(1.0, expected), rel=1e-12)
        gains.append(float((covariance - truth).norm() / (shrunk(rows, rho, n) - truth).norm()))
    assert gains[0] > 1.2
    assert gains[1] < 1.05


def test_equal_eigenvalues_and_samples_that_do_not_vary_are_no_division_by_zero() -> None:
    assert oas_intensity(3.0, 3.0, 10, 3) == 1.0
    assert oas_intensity(3.0, 5.0, 10, 3) < 1.0, "control: unequal eigenvalues"
    assert oas_intensity(2.0, 4.0, 10, 1) == 1.0
    still = torch.zeros(5, 8, dtype=torch.float64)
    for method in (solve_in_space, solve_in_span):
        solution, rho = method(still, sides(8))
        assert torch.equal(solution, sides(8)) and rho == 1.0


def test_without_shrinkage_fewer_samples_than_dimensions_have_no_solution() -> None:
    for method in (solve, solve_in_space, solve_in_span):
        with pytest.raises(SingularCovarianceError):
            method(samples(20, 50), sides(50), 0.0)
    flat = samples(200, 50)
    flat[:, 0] = 0.0
    with pytest.raises(SingularCovarianceError, match="minor of order 1"):
        solve(flat, sides(50), 0.0)
    with pytest.raises(SingularCovarianceError):  # centred, so of rank 49
        solve(samples(50, 50), sides(50), 0.0)
    exact, _ = solve(samples(200, 50), sides(50), 0.0)
    rows = samples(200, 50)
    assert torch.allclose(exact, torch.linalg.solve(rows.T @ rows / 199, sides(50).T).T), "control: enough"
