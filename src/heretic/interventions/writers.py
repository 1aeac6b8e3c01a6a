# SPDX-License-Identifier: Apache-2.0
"""The stored factors of a network's writers, for edits that depend on them (norms, heads, constants)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from heretic.architectures.resolve import gain_vector
from heretic.architectures.site import Site
from heretic.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True, eq=False)
class Writers:
    """Read access to the writers of one network. Nothing is written or kept."""

    network: nn.Module
    dtype: torch.dtype = torch.float32

    def gain(self, site: Site) -> Tensor | None:
        """gamma [d] of the norm that follows a writer, on the CPU; None where there is none (algorithms 1.4)."""
        gamma = gain_vector(self.network, site)
        return None if gamma is None else gamma.to(device="cpu", dtype=self.dtype)

    def weight(self, site: Site) -> Tensor:
        """The matrix of a plain writer, [d, m] or [m, d] as `site.residual_axis` says, on its own device.

        Raises `ConfigurationError` for routed experts, which are no single matrix, and for quantised weights, whose
        numbers are not those that an export would change.
        """
        if site.experts is not None:
            raise ConfigurationError(
                f"{site.path} holds {site.experts} routed experts; this edit needs one matrix.",
                hint="Use --strategy single, subspace, cones or oblique, which edit all experts of a block alike.",
            )
        weight = self._read(site.path)
        if weight.ndim != 2 or not weight.is_floating_point():
            raise ConfigurationError(
                f"{site.path} is stored as {weight.dtype} of shape {tuple(weight.shape)}, not as a plain matrix.",
                hint="Use --quantization none, or a strategy that does not need the weights: single, subspace, cones.",
            )
        return weight.to(self.dtype)

    def bias(self, site: Site) -> Tensor | None:
        """The bias [d] of a plain writer, on its own device; None where there is none."""
        if site.bias is None or site.experts is not None:
            return None
        return self._read(site.bias).to(self.dtype)

    def _read(self, path: str) -> Tensor:
        owner, _, name = path.rpartition(".")
        module = self.network.get_submodule(owner)
        with align_module_device(module):  # offloaded weights are fetched for the time of the context
            return module.get_parameter(name).detach()
