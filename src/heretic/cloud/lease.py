# SPDX-License-Identifier: Apache-2.0
"""The lease of a rental: how long it still is, and its renewal on the machine (reliability H06)."""

from __future__ import annotations

import shlex

from heretic.cloud.clock import Clock
from heretic.cloud.configuration import VastConfig
from heretic.cloud.guard import FOLDER
from heretic.cloud.ledger import Ledger
from heretic.cloud.remote import Remote
from heretic.cloud.types import Instance, Rental
from heretic.trial_display import duration


def lease_text(rental: Rental | None, now: float) -> str:
    """What is left of a lease, or by how much it is overrun."""
    if rental is None or not rental.lease_end:
        return "none"
    left = rental.lease_end - now
    return f"{duration(left)} left" if left >= 0 else f"OVERRUN by {duration(-left)}"


def renew_lease(
    remote: Remote, ledger: Ledger, configuration: VastConfig, instance: Instance, hours: float, clock: Clock
) -> float:
    """Let the lease end `hours` from now, on the machine first and then in the ledger; the end, seconds since the
    epoch. Raises `CloudError`; the old lease then stands.
    """
    folder = shlex.quote(f"{configuration.workspace}/{FOLDER}")
    # The machine's own clock: the guard compares with that one.
    command = (
        f"mkdir -p {folder} && cd {folder} && "
        f"echo $(($(date +%s) + {round(hours * 3600)})) > lease.new && mv lease.new lease && cat lease"
    )
    told = remote.run(command).checked("renewing the lease").strip()
    rental = ledger.of(instance)
    end = clock.now() + hours * 3600
    ledger.append(
        "lease",
        rental.label if rental else f"instance-{instance.id}",
        id=instance.id,
        lease_end=end,
        max_hours=hours,
        machine_says=told[:20],
    )
    return end
