# SPDX-License-Identifier: Apache-2.0
"""The table of cards, read from `data/tiers.toml` (requirements R-VAS-10, R-VAS-11)."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from heretic.cloud.types import HOURS_PER_MONTH, Tier
from heretic.exceptions import ConfigurationError

DEFAULT_TIER: Final = "RTX_4090"
MAX_GPUS: Final = 8
STORAGE_EXAMPLE: Final = 0.15
"""$ per GB and month in the table of costs; what a stopped instance goes on paying for."""


@dataclass(frozen=True, slots=True)
class Table:
    """The whole data file. min_download: Mb/s; vram_tolerance: fraction; min_cuda: version the image needs."""

    tiers: Mapping[str, Tier]
    recommendations: tuple[tuple[str, str], ...]
    image: str
    min_cuda: float
    min_download: float
    min_reliability: float
    vram_tolerance: float


@lru_cache(maxsize=1)
def table() -> Table:
    """The packaged table."""
    raw = tomllib.loads((files("heretic.cloud") / "data" / "tiers.toml").read_text(encoding="utf-8"))
    tiers = [
        Tier(
            name=row["name"],
            card=row["card"],
            gpu_names=tuple(row["gpu_names"]),
            max_price=float(row["max_price"]),
            min_vram_gib=float(row["min_vram_gib"]),
            disk_gb=int(row["disk_gb"]),
            meant_for=row["meant_for"],
        )
        for row in raw["tier"]
    ]
    return Table(
        tiers=MappingProxyType({tier.name: tier for tier in tiers}),
        recommendations=tuple((row["models"], row["machines"]) for row in raw["recommendation"]),
        image=raw["image"]["name"],
        min_cuda=float(raw["image"]["min_cuda"]),
        min_download=float(raw["offer"]["min_download"]),
        min_reliability=float(raw["offer"]["min_reliability"]),
        vram_tolerance=float(raw["offer"]["vram_tolerance"]),
    )


GPU_TIERS: Final[Mapping[str, Tier]] = table().tiers
"""The packaged tiers by name."""


def find_tier(name: str, tiers: Mapping[str, Tier]) -> Tier:
    """The tier of that name; case, dashes and spaces do not matter. Raises `ConfigurationError` naming near ones."""
    wanted = name.strip().upper().replace("-", "_").replace(" ", "_")
    if wanted in tiers:
        return tiers[wanted]
    near = difflib.get_close_matches(wanted, tiers, n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]}? " if near else ""
    raise ConfigurationError(f"there is no tier {name!r}", hint=f"{guess}The tiers are: {', '.join(tiers)}.")


def check_gpus(count: int) -> int:
    """`count`, which must be 1 to 8. Raises `ConfigurationError`."""
    if not 1 <= count <= MAX_GPUS:
        raise ConfigurationError(
            f"the number of GPUs is {count}", hint=f"Give a number from 1 to {MAX_GPUS}."
        )
    return count


def cost_table() -> str:
    """Markdown of what each tier costs at most, worked out from the data file; part of docs/cloud.md.

    Columns: cap per GPU and hour, an hour and a day of one GPU, eight hours, and the disk of a stopped instance per day
    at `STORAGE_EXAMPLE`.
    """
    lines = [
        "| tier | card | VRAM | disk | cap, $/h per GPU | $ for 8 h | $ a day | stopped, $ a day | meant for |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for tier in table().tiers.values():
        stopped = STORAGE_EXAMPLE * tier.disk_gb / HOURS_PER_MONTH * 24
        lines.append(
            f"| {tier.name} | {tier.card} | {tier.min_vram_gib:.0f} GiB | {tier.disk_gb} GB | {tier.max_price:.2f} "
            f"| {tier.max_price * 8:.2f} | {tier.max_price * 24:.2f} | {stopped:.2f} | {tier.meant_for} |"
        )
    return "\n".join(lines)
