# SPDX-License-Identifier: Apache-2.0
"""Renting one machine, at most one, and never losing sight of it (reliability H01, H02).

Order: a unique label goes to the ledger and to the disk; one request is sent; its answer is written down. When the
answer is lost, the label is looked for. The request itself is never sent a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from heretic.cloud.clock import Clock
from heretic.cloud.errors import CloudError, InstanceStateUnknownError, OfferNotFoundError, ProviderError
from heretic.cloud.guard import onstart_script
from heretic.cloud.http import DoubtfulError, RefusedError, UnsentError
from heretic.cloud.ledger import Ledger
from heretic.cloud.observing import Say
from heretic.cloud.types import Instance, Offer, Rental, Tier
from heretic.cloud.vast import Request, VastClient, create_request

LOOKS_S: Final = (1.0, 3.0, 8.0, 15.0, 30.0)
"""Pauses before each look for a label whose rental is in doubt."""

SETTLE_AFTER_S: Final = 900.0
"""An intent whose label is in no complete listing after this long was never rented."""

PRICE_SLACK: Final = 1.005
"""A price may differ by rounding; more than this is a change."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the user agreed to. hourly: $ for all GPUs with the disk; max_price: $ per hour and GPU."""

    tier: Tier
    offer: Offer
    disk_gb: int
    max_price: float
    max_hours: float
    image: str
    api_url: str
    workspace: str

    @property
    def hourly(self) -> float:
        """$ per hour for everything."""
        return self.offer.hourly(self.disk_gb)

    @property
    def storage_hourly(self) -> float:
        """$ per hour for the disk, which goes on when the machine is paused."""
        return self.offer.storage_hourly(self.disk_gb)

    def request(self, label: str, version: str | None = None) -> Request:
        """The one request that rents it."""
        script = onstart_script(self.max_hours, api_url=self.api_url, workspace=self.workspace)
        return create_request(
            self.offer.id,
            image=self.image,
            disk_gb=self.disk_gb,
            label=label,
            onstart=script,
            version=version or "v0",
        )


def settle(listed: Sequence[Instance], ledger: Ledger, clock: Clock) -> list[tuple[Rental, Instance | None]]:
    """Look for every open rental of the ledger by id and label in a complete listing, and write down what was found.

    Returns the open ones with what the provider says of them; None where a fresh intent is not to be seen (yet).
    """
    found: list[tuple[Rental, Instance | None]] = []
    for rental in ledger.open_rentals():
        match = next(
            (entry for entry in listed if entry.id == rental.id or entry.label == rental.label), None
        )
        if match is not None:
            ledger.observed(match)
            found.append((ledger.of(match) or rental, match))
        elif clock.now() - rental.started > SETTLE_AFTER_S:
            ledger.append("gone" if rental.id is not None else "absent", rental.label)
        else:
            found.append((rental, None))
    return found


def confirm_price(client: VastClient, agreement: Agreement) -> None:
    """Raise `OfferNotFoundError` when the offer is gone or dearer than what was agreed to; nothing is rented then."""
    offers = client.search(agreement.tier, agreement.offer.num_gpus, agreement.disk_gb)
    same = [offer for offer in offers if offer.id == agreement.offer.id]
    if not same:
        raise OfferNotFoundError(
            f"offer {agreement.offer.id} is gone; nothing was rented",
            hint="Give the command again for the next cheapest.",
        )
    now = max(offer.hourly(agreement.disk_gb) for offer in same)
    if now > agreement.hourly * PRICE_SLACK:
        raise OfferNotFoundError(
            f"the price of offer {agreement.offer.id} went from ${agreement.hourly:.3f} to ${now:.3f} per hour; "
            "nothing was rented",
            hint="Give the command again to see the present prices.",
        )


def rent(
    client: VastClient, ledger: Ledger, clock: Clock, agreement: Agreement, say: Say, version: str | None
) -> int:
    """Rent what was agreed to; the id of the instance.

    Raises `RefusedError` or `UnsentError` when nothing was rented, `InstanceStateUnknownError` when that is not known.
    """
    label = ledger.new_label(agreement.tier.name)
    ledger.append(
        "intended",
        label,
        tier=agreement.tier.name,
        offer=agreement.offer.id,
        hourly=agreement.hourly,
        storage_hourly=agreement.storage_hourly,
        max_hours=agreement.max_hours,
        disk_gb=agreement.disk_gb,
    )
    say(f"label {label}")
    try:
        identity = client.create(agreement.request(label, version))
    except (RefusedError, UnsentError) as error:
        ledger.append("refused", label, reason=error.message)
        raise
    except DoubtfulError as error:
        say(f"{error.message}; looking for the label")
        identity = recover(client, clock, label, agreement, error)
    ledger.append("created", label, id=identity)
    return identity


def recover(client: VastClient, clock: Clock, label: str, agreement: Agreement, cause: ProviderError) -> int:
    """The id of the one instance with the label. Raises `InstanceStateUnknownError` when none or several are seen."""
    problem = ""
    for pause in LOOKS_S:
        clock.sleep(pause)
        try:
            found = client.with_label(label)
        except ProviderError as error:
            problem = error.message
            continue
        if len(found) == 1:
            return found[0].id
        if found:
            raise _several(found)
    raise InstanceStateUnknownError(
        "whether a machine was rented is not known: the answer was lost and its label is not in the list",
        details=tuple(
            line
            for line in (
                cause.message,
                problem,
                f"label: {label}",
                f"If it was rented, it is BILLING ${agreement.hourly:.3f}/h.",
            )
            if line
        ),
        hint="Look with 'heretic-vast list' in a minute; it finds the label. Nothing is rented twice.",
        data={"label": label},
    ) from cause


def _several(found: Sequence[Instance]) -> CloudError:
    return InstanceStateUnknownError(
        f"the provider shows {len(found)} instances for one rental",
        details=tuple(f"STILL BILLING {entry.title}: ${entry.hourly or 0:.3f}/h" for entry in found),
        hint="Keep one; end the others with: heretic-vast terminate ID",
        data={"ids": [entry.id for entry in found]},
    )


def overcharged(instance: Instance, agreement: Agreement) -> str:
    """A sentence when the instance costs more than was agreed to; empty otherwise."""
    if instance.hourly is None or instance.hourly <= agreement.hourly * PRICE_SLACK:
        return ""
    return (
        f"{instance.title} costs ${instance.hourly:.3f} per hour and not the ${agreement.hourly:.3f} agreed to; "
        f"end it with: heretic-vast terminate {instance.id}"
    )
