# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast create`: rent one machine (requirements R-VAS-23, reliability H01, H02)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

from cyclopts import App, Parameter

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, Switch, command
from heretic.cloud.cli.market import market_offers, offer_document, wanted_machine
from heretic.cloud.consent import Act, require_consent
from heretic.cloud.errors import CloudError, ProviderError
from heretic.cloud.guard import DEFAULT_LEASE_H, check_hours
from heretic.cloud.keys import LocalKeys, local_keys
from heretic.cloud.observing import billing_line, wait_ready
from heretic.cloud.renting import Agreement, confirm_price, overcharged, rent, settle
from heretic.cloud.tiers import DEFAULT_TIER
from heretic.cloud.types import ALIVE, DiskNeed, Instance, Rental
from heretic.cloud.vast import VastClient
from heretic.exceptions import ConfigurationError, ConfirmationRequiredError

LONGEST_WAIT_MIN: Final = 120.0


@dataclass(frozen=True, slots=True)
class Choices:
    """The flags of `create` that are no part of what is looked for."""

    max_price_given: bool
    max_hours: float
    another: bool
    wait_s: float
    offer: int | None


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "create", Effect.SPEND)(create)


def create(
    tier: str = DEFAULT_TIER, num_gpus: int = 1, *, model: str | None = None, disk: int | None = None,
    max_price: float | None = None, max_hours: float = DEFAULT_LEASE_H, offer: int | None = None,
    relaxed: Switch = False, accept_small_disk: Switch = False, another: Switch = False, wait: float = 15.0,
    image: str | None = None, weights_gb: Annotated[float | None, Parameter(name="--weights-gb")] = None,
    context: Injected,
) -> int:  # fmt: skip
    """Rent one machine: shows the offer and its price, asks, rents, waits until it can be entered.

    Parameters
    ----------
    tier
        Name of a tier; see `heretic-vast tiers`.
    num_gpus
        GPUs of the machine, 1 to 8.
    model
        Works the disk out from this model's weights.
    disk
        Disk in GB in place of the one that is worked out; it cannot be changed later.
    max_price
        Cap in $ per hour and GPU, storage included, in place of the tier's. With --yes it must be given.
    max_hours
        Length of the lease, at most 24; at its end a guard on the machine pauses it.
    offer
        The offer with this ID and no other; see `heretic-vast gpus`.
    relaxed
        Also slow, unverified and less reliable machines.
    accept_small_disk
        Allow --disk down to twice the weights + 20 GB.
    another
        Rent although a machine of yours runs already; needed with --yes in that case.
    wait
        Minutes to wait until the machine can be entered.
    image
        Container image with a fixed tag, in place of the packaged one.
    weights_gb
        Size of the weights in GB, where it cannot be looked up.
    """
    chosen = _checked(context, max_price, max_hours, another, wait, offer)
    configuration = context.configuration(image=image)
    wanted, need = wanted_machine(
        context, tier, num_gpus, model, disk, max_price, relaxed, accept_small_disk, weights_gb
    )
    keys = local_keys(configuration, context.world.environ)
    client = context.client()
    listed = client.instances()
    _refuse_doubt(settle(listed, context.ledger(), context.world.clock), another)
    found = market_offers(context, replace(wanted, offer=offer))
    agreement = Agreement(
        wanted.tier, found.offers[0], need.requested, wanted.max_price, chosen.max_hours, configuration.image,
        configuration.api_url, configuration.workspace,
    )  # fmt: skip
    running = [entry for entry in listed if entry.state in ALIVE]
    if context.flags.dry_run:
        context.console.document({"offer": offer_document(agreement.offer, need.requested)})
        return context.show_requests([agreement.request("heretic-LABEL", configuration.api_version)])
    _consent(context, agreement, need, running, chosen)
    confirm_price(client, agreement)
    return _rent_and_wait(context, client, agreement, keys, chosen)


def _checked(
    context: CloudContext,
    max_price: float | None,
    max_hours: float,
    another: bool,
    wait: float,
    offer: int | None,
) -> Choices:
    """What can be refused before anything is read or sent."""
    if context.flags.yes and max_price is None:
        raise ConfirmationRequiredError(
            "--yes rents only with an explicit price cap", hint="Add --max-price DOLLARS (per hour and GPU)."
        )
    if not 0 <= wait <= LONGEST_WAIT_MIN:
        raise ConfigurationError(
            f"--wait is {wait:g}", hint=f"Give minutes from 0 to {LONGEST_WAIT_MIN:.0f}."
        )
    if offer is not None and not 0 < offer < 10**12:
        raise ConfigurationError(f"--offer is {offer}", hint="Give an ID that 'heretic-vast gpus' lists.")
    return Choices(max_price is not None, check_hours(max_hours), another, wait * 60, offer)


def _refuse_doubt(existing: Sequence[tuple[Rental, Instance | None]], another: bool) -> None:
    """A rental whose answer was lost a moment ago may still appear: renting again could pay twice."""
    for rental, seen in existing:
        if seen is None and not another:
            raise CloudError(
                f"an earlier rental is in doubt: label {rental.label} is not in the provider's list yet",
                hint="Wait a few minutes and look with 'heretic-vast list', or rent another with --another.",
            )


def _consent(
    context: CloudContext, agreement: Agreement, need: DiskNeed, running: Sequence[Instance], chosen: Choices
) -> None:
    ours = [entry for entry in running if context.ledger().owns(entry)]
    if ours and context.flags.yes and not chosen.another:
        raise ConfirmationRequiredError(
            f"{ours[0].title} exists already and costs money; --yes does not rent a second one",
            hint=f"Use it ('heretic-vast setup {ours[0].id}'), or add --another.",
            details=tuple(f"{seen.title}: {billing_line(seen)}" for seen in ours),
        )
    title = f"Rent {agreement.offer.num_gpus} x {agreement.offer.gpu_name}, offer {agreement.offer.id}"
    act = Act(title, tuple(_terms(context, agreement, need, running)), "--max-price DOLLARS")
    require_consent(context.console, act, explicit=chosen.max_price_given)


def _terms(
    context: CloudContext, agreement: Agreement, need: DiskNeed, running: Sequence[Instance]
) -> list[str]:
    """Everything that is agreed to, one line each (R-VAS-50, H01)."""
    offer, hourly, configuration = agreement.offer, agreement.hourly, context.configuration()
    most = hourly * agreement.max_hours
    lines = [
        f"you have already: {seen.title}, {seen.num_gpus} x {seen.gpu_name}, {seen.said}" for seen in running
    ]
    lines += [
        f"machine: {offer.vram_gib:.0f} GiB per GPU, {offer.download:.0f} Mb/s, driver {offer.driver or 'unknown'} "
        f"(CUDA {offer.cuda:g}), reliability {offer.reliability:.1%}, {offer.place or 'place unknown'}",
        f"price: ${hourly:.3f} per hour, ${hourly * 24:.2f} per day, disk included "
        f"(${offer.per_gpu(agreement.disk_gb):.3f} per GPU; cap ${agreement.max_price:.2f})",
        f"disk: {need.requested} GB, fixed for good; alone it costs ${agreement.storage_hourly:.4f} per hour, "
        "also while the machine is paused",
        *need.arithmetic,
        f"lease: {agreement.max_hours:g} h, so at most ${most:.2f} until a guard on the machine pauses it; then the "
        f"disk costs ${agreement.storage_hourly * 24:.2f} per day until you terminate it",
        f"image: {agreement.image} ({configuration.image_source})",
        "billing starts now, and ends with: heretic-vast terminate ID",
    ]
    return lines


def _rent_and_wait(
    context: CloudContext, client: VastClient, agreement: Agreement, keys: LocalKeys, chosen: Choices
) -> int:
    console, clock, ledger = context.console, context.world.clock, context.ledger()
    context.standing = (
        f"A rental may be under way and cost ${agreement.hourly:.3f} per hour; 'heretic-vast list' finds it.",
    )
    identity = rent(client, ledger, clock, agreement, console.note, context.configuration().api_version)
    costs = f"Instance {identity} exists and costs ${agreement.hourly:.3f} per hour"
    context.standing = (f"{costs} until: heretic-vast terminate {identity}",)
    console.document({"id": identity, "hourly": agreement.hourly, "max_hours": agreement.max_hours})
    console.note(
        f"rented instance {identity} at ${agreement.hourly:.3f} per hour; waiting until it can be entered"
    )
    _attach(context, client, identity, keys)
    try:
        ready = wait_ready(
            client, clock, identity, answers=context.world.answers, say=console.note, wait_s=chosen.wait_s
        )
    except CloudError as error:
        console.document({"state": str(error.data.get("state", "unknown"))})
        raise
    ledger.observed(ready)
    if (sentence := overcharged(ready, agreement)) != "":
        raise CloudError(
            sentence, details=(billing_line(ready),), hint="Nothing was stopped by this program."
        )
    address = ready.address
    console.document({"state": ready.state, "ssh": f"{address.host}:{address.port}" if address else None})
    console.result(f"instance {identity} is running and answers; {billing_line(ready)}")
    console.next_command(f"heretic-vast setup {identity}")
    return 0


def _attach(context: CloudContext, client: VastClient, identity: int, keys: LocalKeys) -> None:
    """Give the machine the public key, for an account that does not know it yet. No ground for failing: it may know."""
    if not keys.public:
        return
    try:
        client.attach_key(identity, keys.public)
    except (ProviderError, CloudError) as error:
        context.console.detail(f"the SSH key was not added to the instance: {error.message}")
