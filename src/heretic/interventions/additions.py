# SPDX-License-Identifier: Apache-2.0
"""Edits that add: set-points, steering, and constants carried by a writer without a bias (algorithms 3.8, 4.7).

A bias of the writer is the exact form. Where the architecture has none, a matrix can emulate it on the inputs it
really gets: W' = W + t pT with pT mean(z) = 1 shifts the mean output by t exactly, and each output by t (pT z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from heretic.architectures.site import Site
from heretic.constants import NEAR_ZERO
from heretic.exceptions import AbliterationError, ConfigurationError
from heretic.interventions.edit import Edit
from heretic.linalg.lowrank import read_rows
from heretic.linalg.shrinkage import solve

Whiten = Callable[[Tensor, Tensor], Tensor]
"""(samples [n, m], vector [m]) -> Sigma^-1 vector, with the covariance of the samples, shrunk (algorithms 3.6)."""


def require_constant(site: Site) -> None:
    """Raise `ConfigurationError`, naming the site, where no addition to the writer adds a constant to the stream."""
    if site.gain is not None:
        raise ConfigurationError(
            f"{site.path} is followed by the norm {site.gain.path}, which rescales whatever is added to it: no bias "
            "there represents a constant.",
            hint="Export a control vector, or choose a strategy that adds nothing.",
        )
    if site.experts is not None or site.hook != site.path.rpartition(".")[0]:
        raise ConfigurationError(
            f"{site.path} is one of several writers that a router adds up: a constant there reaches the stream as "
            "often as the router chooses it.",
            hint="Add to the attention output of the same layer.",
        )


def set_point(edit: Edit, centre: Tensor, site: Site) -> Edit:
    """`edit` turned about `centre`: y' = y - M DT (y - c) (algorithms 4.7). Coordinates become (1 - a) own + a target.

    edit: residual-side, left = -M, read = D. centre: c [d], mean of what the writer makes of a class, bias included.
    As `read` reads the bias too, y' = y - M DT y + db, so db = M DT c = -left readT c (on a record that read only W z
    it would be M DT (c - b)). At strength 1 DT y' = DT c for every input. Raises as `require_constant`.
    """
    require_constant(site)
    assert edit.read is not None
    shift = -edit.left @ (edit.read.T @ centre.to(edit.left))
    return replace(edit, bias=shift if edit.bias is None else edit.bias + shift)


def steering(vector: Tensor, amount: float, site: Site) -> Edit:
    """The same push for every token: y' = y + amount * vector (algorithms 3.8, 4.7); amount 0 is the identity.

    vector: [d]. amount: in the vector's units, s * sigma of the layer for a unit vector. Raises as `require_constant`.
    """
    require_constant(site)
    nothing = vector.new_zeros((len(vector), 0))
    return Edit(left=nothing, bias=None if amount == 0.0 else amount * vector)


def shrunk_whitening(samples: Tensor, vector: Tensor) -> Tensor:
    """Sigma^-1 vector with the shrunk covariance of the samples (algorithms 3.6)."""
    return solve(samples - samples.mean(dim=0), vector[None])[0][0]


def input_carrier(samples: Tensor, whiten: Whiten = shrunk_whitening) -> Tensor:
    """p [m] with pT mean(z) = 1 whose product with single inputs varies least: Sigma^-1 mu / (muT Sigma^-1 mu).

    samples: inputs of the writer [n, m]. Raises `AbliterationError` when their mean is near zero beside them: no
    product with such inputs is the same for most of them.
    """
    rows = samples.double()
    mean = rows.mean(dim=0)
    scale = float(rows.square().sum(dim=1).mean().sqrt())
    if not float(mean.norm()) > NEAR_ZERO * scale:
        raise AbliterationError(
            f"The mean input of a writer has length {float(mean.norm()):.1e} (inputs: {scale:.1e}), so nothing in "
            "its matrix can stand for a constant.",
            hint="Leave this layer out, or export a control vector.",
        )
    weighted = whiten(rows, mean).double()
    return (weighted / (mean @ weighted)).to(samples.dtype)


def carrier_spread(carrier: Tensor, samples: Tensor) -> float:
    """Standard deviation of pT z over inputs [n, m]: how much the shift differs from input to input, as a share of it.

    Honest only on inputs that `carrier` was not made of.
    """
    return float((samples.double() @ carrier.double()).std(correction=0))


def carried(edit: Edit, weight: Tensor, axis: Literal[0, 1], carrier: Tensor) -> Edit:
    """`edit` with its bias t carried by the inputs: left = [left, t], right = [right; pT], no bias (algorithms 4.7).

    For a writer without a bias. weight: [d, m] for axis 0, [m, d] for axis 1, needed where the edit reads the output:
    right = readT W diag(s). carrier: p [m]. An edit without a bias comes back as it is.
    """
    if edit.bias is None:
        return edit
    assert weight.ndim == 2
    right = edit.right
    if edit.read is not None:
        right = read_rows(weight.to(edit.left), edit.read, axis)
        right = right if edit.column_gain is None else right * edit.column_gain
    last = carrier.to(edit.left)[None]
    return replace(
        edit,
        left=torch.cat([edit.left, edit.bias[:, None]], dim=1),
        read=None,
        right=last if right is None else torch.cat([right, last]),
        bias=None,
    )
