# SPDX-License-Identifier: Apache-2.0
"""The choice among offers: pure functions of what the market said (requirements R-VAS-22)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from heretic.cloud.errors import OfferNotFoundError
from heretic.cloud.tiers import Table
from heretic.cloud.types import Offer, Tier

RELAXED: Final = ("download", "reliability", "verified")
"""What `--relaxed` leaves out. Name, memory, disk, driver and price always count."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an offer must be. disk_gb: decimal GB; max_price: $ per hour and GPU, storage included."""

    tier: Tier
    num_gpus: int
    disk_gb: int
    max_price: float
    relaxed: bool = False
    offer: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Offers that pass, cheapest first, and how many each filter excluded (an offer counts at its first)."""

    offers: tuple[Offer, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def strictest(self) -> str:
        """The filter that excluded most; empty when nothing was excluded."""
        return max(self.excluded, key=lambda name: (self.excluded[name], name)) if self.excluded else ""


def canonical(name: str) -> str:
    """A card's name as it is compared: capitals, single spaces."""
    return " ".join(name.upper().replace("_", " ").replace("-", " ").split())


def filters(wanted: Wanted, table: Table) -> dict[str, Callable[[Offer], bool]]:
    """The filters by name, in the order in which they are applied."""
    names = {canonical(name) for name in wanted.tier.gpu_names}
    vram = wanted.tier.min_vram_gib * (1 - table.vram_tolerance)
    every: dict[str, Callable[[Offer], bool]] = {
        "name": lambda offer: canonical(offer.gpu_name) in names,
        "number of GPUs": lambda offer: offer.num_gpus == wanted.num_gpus,
        "VRAM": lambda offer: offer.vram_gib >= vram,
        "disk": lambda offer: offer.disk_gb >= wanted.disk_gb,
        "driver": lambda offer: offer.cuda >= table.min_cuda,
        "download": lambda offer: offer.download >= table.min_download,
        "reliability": lambda offer: offer.reliability >= table.min_reliability,
        "verified": lambda offer: offer.verified,
        "price": lambda offer: 0 < offer.per_gpu(wanted.disk_gb) <= wanted.max_price,
    }
    return {name: test for name, test in every.items() if not (wanted.relaxed and name in RELAXED)}


def choose(offers: Sequence[Offer], wanted: Wanted, table: Table) -> Found:
    """The offers that pass every filter, by total price with storage, then reliability, then id."""
    tests = filters(wanted, table)
    excluded: Counter[str] = Counter()
    passed: dict[int, Offer] = {}
    for offer in offers:
        failed = next((name for name, test in tests.items() if not test(offer)), None)
        if failed is not None:
            excluded[failed] += 1
        elif wanted.offer is not None and offer.id != wanted.offer:
            excluded["the offer asked for"] += 1
        else:
            # The market may list one offer twice; the dearer entry counts.
            known = passed.get(offer.id)
            if known is None or known.hourly(wanted.disk_gb) < offer.hourly(wanted.disk_gb):
                passed[offer.id] = offer
    ordered = sorted(
        passed.values(), key=lambda offer: (offer.hourly(wanted.disk_gb), -offer.reliability, offer.id)
    )
    return Found(tuple(ordered), dict(excluded))


def no_offer(found: Found, wanted: Wanted, seen: int, table: Table) -> OfferNotFoundError:
    """The error that names the filter which excluded most (exit code 3)."""
    what = f"{wanted.num_gpus} x {wanted.tier.card}"
    if not seen:
        return OfferNotFoundError(
            f"the provider has no offer of {what} now",
            hint="Try another tier ('heretic-vast tiers'), another number of GPUs, or later.",
        )
    cures = {
        "price": f"--max-price above {wanted.max_price:.2f} ($ per hour and GPU)",
        "disk": f"a disk below {wanted.disk_gb} GB, where the model allows it",
        "driver": f"waiting: the image needs a driver for CUDA {table.min_cuda:g}",
        "number of GPUs": "another number of GPUs",
        "the offer asked for": "an offer that 'heretic-vast gpus' lists",
        **dict.fromkeys(RELAXED, "--relaxed"),
    }
    cure = cures.get(found.strictest, "another tier")
    return OfferNotFoundError(
        f"none of {seen} offers of {what} passes; the filter that excluded most is {found.strictest!r}",
        details=tuple(
            f"{name}: {count} excluded"
            for name, count in sorted(found.excluded.items(), key=lambda entry: -entry[1])
        ),
        hint=f"Most would come back with {cure}.",
        data={"excluded": dict(found.excluded)},
    )
