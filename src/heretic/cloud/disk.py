# SPDX-License-Identifier: Apache-2.0
"""How much disk an instance needs (requirements R-VAS-12, R-VAS-13)."""

from __future__ import annotations

import math
from typing import Final

from heretic.cloud.types import DiskNeed, ModelSize, Tier
from heretic.exceptions import ConfigurationError

COPIES: Final = 2
"""The download and the export."""

EXTRA_GB: Final = 20
"""Image, packages, caches, logs."""

CLASSES: Final = ((9, 75), (20, 100), (40, 200))
"""(up to billions of parameters, GB at least); a model that its maker calls 9B may have 9.4."""

LARGEST_CLASS_GB: Final = 400
SEVERAL_GPUS_GB: Final = 400
LARGEST_DISK_GB: Final = 16_000


def formula_gb(weights_gb: float) -> float:
    """2 x weights + 20, in GB (R-VAS-12)."""
    return COPIES * weights_gb + EXTRA_GB


def class_minimum_gb(billions: float) -> int:
    """The least disk for a model of that many billions of parameters."""
    for limit, minimum in CLASSES:
        if round(billions) <= limit:
            return minimum
    return LARGEST_CLASS_GB


def disk_need(
    size: ModelSize | None,
    tier: Tier,
    num_gpus: int,
    *,
    asked: int | None = None,
    accept_small: bool = False,
) -> DiskNeed:
    """Disk to request. size: None when no model was named. asked: the user's `--disk`, GB.

    Raises `ConfigurationError` when less was asked for than is allowed; nothing is requested then.
    """
    need = _for_model(size, tier) if size is not None else _for_tier(tier, num_gpus)
    if asked is None:
        return need
    if asked > LARGEST_DISK_GB:
        raise ConfigurationError(f"--disk is {asked} GB", hint=f"Give at most {LARGEST_DISK_GB}.")
    lowest = need.floor if accept_small else need.minimum
    if asked < lowest:
        raise ConfigurationError(
            f"--disk {asked} is less than the {lowest} GB that are needed",
            details=need.arithmetic,
            hint=_way_out(need, size, accept_small),
        )
    return DiskNeed(asked, need.minimum, need.floor, (*need.arithmetic, f"{asked} GB by --disk"))


def _for_model(size: ModelSize, tier: Tier) -> DiskNeed:
    rule, least = formula_gb(size.weights_gb), class_minimum_gb(size.billions)
    # A thousandth of a GB is rounding of the size itself, not a GB more.
    floor = math.ceil(rule - 1e-3)
    minimum = max(floor, least)
    requested = max(minimum, tier.disk_gb)
    arithmetic = (
        f"{size.model}: {size.weights_gb:.1f} GB of weights ({size.source}), {size.billions:.1f} B parameters",
        f"rule: {COPIES} x {size.weights_gb:.1f} + {EXTRA_GB} = {rule:.0f} GB",
        f"minimum of its class: {least} GB; of the tier {tier.name}: {tier.disk_gb} GB",
        f"requested: {requested} GB, the largest of the three",
    )
    return DiskNeed(requested, minimum, floor, arithmetic)


def _for_tier(tier: Tier, num_gpus: int) -> DiskNeed:
    """Without a model the tier's value counts; several GPUs are for large models (R-VAS-13)."""
    value = max(tier.disk_gb, SEVERAL_GPUS_GB) if num_gpus > 1 else tier.disk_gb
    several = f", at least {SEVERAL_GPUS_GB} GB for more than one GPU" if num_gpus > 1 else ""
    line = f"tier {tier.name}: {tier.disk_gb} GB{several}; --model MODEL works it out from the weights"
    return DiskNeed(value, value, value, (line,))


def _way_out(need: DiskNeed, size: ModelSize | None, accept_small: bool) -> str:
    if size is None:
        return "Name the model with --model, so that its own need is known, or leave out --disk."
    if accept_small or need.floor == need.minimum:
        return f"Give --disk {need.floor} or more, or leave it out."
    return f"Leave out --disk, or accept as little as {need.floor} GB with --accept-small-disk."
