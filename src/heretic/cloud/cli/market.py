# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast plan`, `tiers`, `gpus`: look before paying. Nothing here rents (requirements R-VAS-20 to 22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, Switch, command
from heretic.cloud.disk import disk_need
from heretic.cloud.models import model_size
from heretic.cloud.needs import fitting_tiers, local_gpus, memory_needs
from heretic.cloud.offers import Found, Wanted, choose, no_offer
from heretic.cloud.tiers import DEFAULT_TIER, check_gpus, find_tier, table
from heretic.cloud.types import DiskNeed, ModelSize, Offer, Tier
from heretic.cloud.vast import search_request
from heretic.exceptions import ConfigurationError

TIER_COLUMNS: Final = ("tier", "card", "VRAM, GiB", "disk, GB", "cap, $/h per GPU", "meant for")
OFFER_COLUMNS: Final = (
    "offer", "card", "VRAM, GiB", "$/h", "$/day", "disk $/h", "Mb/s", "CUDA", "driver", "reliable", "place",
)  # fmt: skip
WeightsGb = Annotated[float | None, Parameter(name="--weights-gb")]


def register(app: App) -> None:
    """Add the commands to `app`."""
    command(app, "plan", Effect.READ)(plan)
    command(app, "tiers", Effect.READ)(tiers)
    command(app, "gpus", Effect.READ)(gpus)


def plan(
    model: str, *, gpus: int = 1, trials_per_hour: float | None = None, trials: int = 200,
    weights_gb: WeightsGb = None, context: Injected,
) -> int:  # fmt: skip
    """Show what MODEL needs and costs; rents nothing and asks the provider nothing.

    Parameters
    ----------
    model
        Hub id or local folder.
    gpus
        GPUs of one machine, 1 to 8.
    trials_per_hour
        A speed you measured, for an expected total.
    trials
        Trials the total is worked out for.
    weights_gb
        Size of the weights in GB, where it cannot be looked up.
    """
    check_gpus(gpus)
    if trials_per_hour is not None and trials_per_hour <= 0:
        raise ConfigurationError(f"--trials-per-hour is {trials_per_hour:g}", hint="Give a number above 0.")
    configuration = context.configuration()
    size = measured_size(context, model, weights_gb)
    needs = memory_needs(size)
    here = local_gpus()
    hours = trials / trials_per_hour if trials_per_hour else None
    rows, documents = _fitting(size, configuration.tiers, gpus, hours)
    local = _local_sentence(needs, here)
    context.console.document(
        {
            "size": asdict(size),
            "memory_gb": needs,
            "local_gpus_gib": here,
            "local": local,
            "tiers": documents,
        }
    )
    context.console.result(local)
    context.console.facts(
        {
            "weights": f"{size.weights_gb:.1f} GB ({size.source}), {size.billions:.1f} B parameters",
            "memory": ", ".join(f"{value:.0f} GB at {bits} bit" for bits, value in needs.items()),
        },
        result=True,
    )
    if not rows:
        context.console.result(
            f"no tier holds it on {gpus} GPU(s), not even at 4 bit; try --gpus {min(8, gpus * 2)}"
        )
        return 0
    for line in disk_need(size, configuration.tiers[str(rows[0][0])], gpus).arithmetic:
        context.console.detail(line)
    context.console.table(
        ("tier", "precision", "disk, GB", "at most $/h", "at most $/day", "expected $"), rows,
        right=(2, 3, 4, 5), result=True,
    )  # fmt: skip
    context.console.next_command(f"heretic-vast gpus {rows[0][0]} --model {model}")
    return 0


def _fitting(
    size: ModelSize, tiers: Mapping[str, Tier], gpus: int, hours: float | None
) -> tuple[list[tuple[object, ...]], list[dict[str, object]]]:
    """Rows and documents of the tiers that hold the model, with what they cost."""
    rows: list[tuple[object, ...]] = []
    documents: list[dict[str, object]] = []
    for tier, precision in fitting_tiers(size, tiers, gpus):
        need = disk_need(size, tier, gpus)
        hourly = tier.max_price * gpus
        total = f"{hourly * hours:.2f}" if hours else "-"
        rows.append((tier.name, precision, need.requested, f"{hourly:.2f}", f"{hourly * 24:.2f}", total))
        documents.append(
            {
                "tier": tier.name,
                "precision": precision,
                "disk_gb": need.requested,
                "most_per_hour": hourly,
                "expected_total": hourly * hours if hours else None,
            }
        )
    return rows, documents


def _local_sentence(needs: dict[int, float], here: list[float]) -> str:
    """Whether the GPU of this machine would do, said first: what needs no rent costs nothing."""
    if not here:
        return "This machine: no GPU was found (nvidia-smi), so nothing can be said for it."
    largest = max(here) * 1.073741824
    for bits in (16, 8, 4):
        if needs[bits] <= largest:
            how = "as it is" if bits == 16 else f"at {bits} bit"
            return f"This machine: its GPU ({max(here):.0f} GiB) holds the model {how}; nothing needs to be rented."
    return f"This machine: its GPU ({max(here):.0f} GiB) is too small, even at 4 bit."


def tiers(*, context: Injected) -> int:
    """Show the tiers of cards with their caps, and which model goes on which."""
    known = context.configuration().tiers
    context.console.document(
        {
            "tiers": [asdict(tier) for tier in known.values()],
            "recommendations": dict(table().recommendations),
            "image": table().image,
        }
    )
    rows = [
        (t.name, t.card, f"{t.min_vram_gib:.0f}", t.disk_gb, f"{t.max_price:.2f}", t.meant_for)
        for t in known.values()
    ]
    context.console.table(TIER_COLUMNS, rows, right=(2, 3, 4), result=True)
    context.console.facts(dict(table().recommendations), title="\nmodels and machines", result=True)
    context.console.next_command(f"heretic-vast gpus {DEFAULT_TIER}")
    return 0


def gpus(
    tier: str = DEFAULT_TIER, *, gpus: int = 1, disk: int | None = None, model: str | None = None,
    max_price: float | None = None, relaxed: Switch = False, limit: int = 20, accept_small_disk: Switch = False,
    weights_gb: WeightsGb = None, context: Injected,
) -> int:  # fmt: skip
    """List offers of TIER that fit, cheapest first, storage included.

    Parameters
    ----------
    tier
        Name of a tier; see `heretic-vast tiers`.
    gpus
        GPUs of one machine, 1 to 8.
    disk
        Disk in GB in place of the one that is worked out.
    model
        Works the disk out from this model's weights.
    max_price
        Cap in $ per hour and GPU, storage included, in place of the tier's.
    relaxed
        Also slow, unverified and less reliable machines.
    limit
        Offers shown.
    accept_small_disk
        Allow --disk down to twice the weights + 20 GB.
    weights_gb
        Size of the weights in GB, where it cannot be looked up.
    """
    if not 1 <= limit <= 500:
        raise ConfigurationError(f"--limit is {limit}", hint="Give a number from 1 to 500.")
    wanted, need = wanted_machine(
        context, tier, gpus, model, disk, max_price, relaxed, accept_small_disk, weights_gb
    )
    if context.flags.dry_run:
        context.configuration().need_key()
        return context.show_requests([search_request(wanted.tier, gpus, need.requested)])
    found = market_offers(context, wanted)
    listed = found.offers[:limit]
    context.console.document(
        {
            "tier": wanted.tier.name,
            "disk_gb": need.requested,
            "arithmetic": list(need.arithmetic),
            "cap": wanted.max_price,
            "excluded": dict(found.excluded),
            "offers": [offer_document(offer, need.requested) for offer in listed],
        }
    )
    for line in need.arithmetic:
        context.console.note(line)
    rows = [offer_row(offer, need.requested) for offer in listed]
    context.console.table(OFFER_COLUMNS, rows, right=(0, 2, 3, 4, 5, 6), result=True)
    if len(found.offers) > limit:
        context.console.note(f"{len(found.offers) - limit} more; --limit shows them")
    named = f" --model {model}" if model else ""
    context.console.next_command(f"heretic-vast create {wanted.tier.name} {gpus}{named}")
    return 0


def measured_size(context: CloudContext, model: str, weights_gb: float | None) -> ModelSize:
    """The size of a model as this command line allows it to be looked up."""
    token = context.configuration().hf_token
    return model_size(
        model,
        offline=bool(context.flags.offline),
        weights_gb=weights_gb,
        token=token.reveal() if token else None,
    )


def wanted_machine(
    context: CloudContext,
    tier: str,
    num_gpus: int,
    model: str | None,
    disk: int | None,
    max_price: float | None,
    relaxed: bool,
    accept_small: bool,
    weights_gb: float | None,
) -> tuple[Wanted, DiskNeed]:
    """What is looked for, checked before anything is sent."""
    chosen: Tier = find_tier(tier, context.configuration().tiers)
    check_gpus(num_gpus)
    if max_price is not None and not 0 < max_price < 1000:
        raise ConfigurationError(f"--max-price is {max_price:g}", hint="Give $ per hour and GPU, above 0.")
    if accept_small and model is None and weights_gb is None:
        raise ConfigurationError(
            "--accept-small-disk needs --model", hint="The least disk comes from the weights."
        )
    size = None
    if model is not None or weights_gb is not None:
        size = measured_size(context, model or "the model", weights_gb)
    need = disk_need(size, chosen, num_gpus, asked=disk, accept_small=accept_small)
    cap = chosen.max_price if max_price is None else max_price
    return Wanted(chosen, num_gpus, need.requested, cap, relaxed), need


def market_offers(context: CloudContext, wanted: Wanted) -> Found:
    """Offers that pass; raises `OfferNotFoundError` naming the filter that excluded most."""
    offers = context.client().search(wanted.tier, wanted.num_gpus, wanted.disk_gb)
    found = choose(offers, wanted, table())
    if not found.offers:
        raise no_offer(found, wanted, len(offers), table())
    return found


def offer_row(offer: Offer, disk_gb: int) -> tuple[object, ...]:
    """One offer under `OFFER_COLUMNS`."""
    hourly = offer.hourly(disk_gb)
    return (
        offer.id, f"{offer.num_gpus} x {offer.gpu_name}", f"{offer.vram_gib:.0f}", f"{hourly:.3f}",
        f"{hourly * 24:.2f}", f"{offer.storage_hourly(disk_gb):.4f}", f"{offer.download:.0f}", f"{offer.cuda:g}",
        offer.driver, f"{offer.reliability:.1%}", offer.place,
    )  # fmt: skip


def offer_document(offer: Offer, disk_gb: int) -> dict[str, object]:
    """One offer for --json, with the figures that are worked out."""
    return {
        **asdict(offer),
        "hourly": offer.hourly(disk_gb),
        "per_gpu": offer.per_gpu(disk_gb),
        "storage_hourly": offer.storage_hourly(disk_gb),
    }
