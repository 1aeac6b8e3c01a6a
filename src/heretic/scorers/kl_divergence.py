# SPDX-License-Identifier: Apache-2.0
"""From KL at positions to the figures that are reported (algorithms 7.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from heretic.report import Divergence


def divergence_summary(per_position: Tensor, counts: Tensor) -> Divergence | None:
    """Mean over prompts of the per-prompt mean, with standard error, median, p95, maximum and the first token.

    per_position: [n, T], aligned at the end, masked positions 0. counts: [n] positions used; prompts with 0 are left
    out. None when a value is not finite or no prompt remains.
    """
    used = counts > 0
    if not bool(used.any()) or not bool(torch.isfinite(per_position).all()):
        return None
    rows, number = per_position[used].double(), counts[used]
    means = rows.sum(dim=1) / number
    first = rows.gather(1, (rows.shape[1] - number)[:, None]).squeeze(1)
    total = float(means.sum())
    deviation = float(means.std(correction=1)) if len(means) > 1 else 0.0
    return Divergence(
        mean=float(means.mean()),
        standard_error=deviation / len(means) ** 0.5,
        median=float(means.quantile(0.5)),
        p95=float(means.quantile(0.95)),
        maximum=float(means.max()),
        first_token=float(first.mean()),
        n=len(means),
        tokens=int(number.sum()),
        worst_prompt=int(torch.nonzero(used).flatten()[means.argmax()]),
        unstable=total > 0 and len(means) > 1 and float(means.max()) > 0.5 * total,
    )
