# SPDX-License-Identifier: Apache-2.0
"""KL(base || edited) from raw logits and its summary (algorithms 7.1, R-EVA-20)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from heretic.linalg.divergence import kl_per_position
from heretic.scorers.kl_divergence import divergence_summary


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 4.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_float32_equals_a_float64_reference() -> None:
    base, edited = logits(3, 5, 1000), logits(3, 5, 1000, seed=1)
    p, q = base.double().log_softmax(-1), edited.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(kl_per_position(base.log_softmax(-1), edited).double(), expected, rtol=1e-5)
    in_bf16 = kl_per_position(base.bfloat16().log_softmax(-1), edited.bfloat16())
    assert not torch.allclose(in_bf16.double(), expected, rtol=1e-3), "control: bf16 log-probabilities"


def test_closed_form_on_two_tokens_and_the_order_of_arguments() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2); control: KL(q || p) is another number."""
    p, q = torch.tensor([math.log(3.0), 0.0]), torch.zeros(2)
    assert float(kl_per_position(p.log_softmax(-1), q)) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    swapped = 0.5 * math.log(2 / 3) + 0.5 * math.log(2.0)
    assert float(kl_per_position(q.log_softmax(-1), p)) == pytest.approx(swapped)
    assert swapped != pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-2)


def test_a_constant_on_the_logits_changes_nothing_and_the_base_has_no_distance_from_itself() -> None:
    base = logits(4, 50)
    assert float(kl_per_position(base.log_softmax(-1), base).abs().max()) == 0.0
    assert float(kl_per_position(base.log_softmax(-1), base + 7.0).abs().max()) < 1e-5


def test_suppressed_tokens_give_no_nan() -> None:
    """R-EVA-20: -inf on both sides counts nothing; a token the edit forbids makes KL infinite."""
    base, edited = logits(2, 6), logits(2, 6, seed=1)
    base[:, 2] = edited[:, 2] = -torch.inf
    kept = [0, 1, 3, 4, 5]
    expected = kl_per_position(base[:, kept].log_softmax(-1), edited[:, kept])
    assert torch.allclose(kl_per_position(base.log_softmax(-1), edited), expected, rtol=1e-5)
    edited[0, 3] = -torch.inf
    assert torch.isinf(kl_per_position(base.log_softmax(-1), edited)[0])


def test_the_summary_of_ragged_rows_by_hand() -> None:
    """Rows are aligned at the end; a prompt without a reply is left out; prompts weigh alike, not tokens."""
    values = torch.tensor([[0.0, 0.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 4.0, 6.0]])
    found = divergence_summary(values, torch.tensor([1, 3, 0, 2]))
    assert found is not None
    assert (found.mean, found.median, found.maximum) == pytest.approx((10 / 3, 3.0, 5.0))
    assert found.standard_error == pytest.approx(torch.tensor([3.0, 2.0, 5.0]).std().item() / 3**0.5)
    assert found.first_token == pytest.approx((3.0 + 1.0 + 4.0) / 3)
    assert (found.n, found.tokens, found.worst_prompt) == (3, 6, 3)
    assert found.mean != pytest.approx(19 / 6), "control: the mean over tokens"
    assert not found.unstable
    heavy = divergence_summary(torch.tensor([[9.0], [0.1], [0.2]]), torch.ones(3, dtype=torch.int64))
    assert heavy is not None and heavy.unstable


def test_one_prompt_no_prompt_and_values_that_are_not_finite() -> None:
    """Section 7.1, N = 1; E05."""
    alone = divergence_summary(torch.tensor([[2.0, 4.0]]), torch.tensor([2]))
    assert alone is not None
    assert (alone.mean, alone.standard_error, alone.median, alone.unstable) == (3.0, 0.0, 3.0, False)
    assert divergence_summary(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)) is None
    assert divergence_summary(torch.tensor([[math.nan]]), torch.tensor([1])) is None
    assert divergence_summary(torch.tensor([[math.inf]]), torch.tensor([1])) is None
