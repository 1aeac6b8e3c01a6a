# SPDX-License-Identifier: Apache-2.0
"""KL divergence between token distributions, safe for suppressed tokens (algorithms 7.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_per_position(base_log: Tensor, edited_logits: Tensor) -> Tensor:
    """KL(p || q) per position in nats; base_log [..., V]: log-probabilities of p, edited_logits [..., V]: logits of q.

    A token with p = 0 contributes nothing, also where q = 0, so that suppressed tokens (-inf) give no NaN.
    Both float32; returns [...].
    """
    log_q = edited_logits.log_softmax(dim=-1)
    probability = base_log.exp()
    terms = torch.where(probability > 0, probability * (base_log - log_q), torch.zeros_like(probability))
    return terms.sum(dim=-1)
