# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast guard`: the second guard of a lease, on this side (reliability H06)."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, command
from heretic.cloud.clock import utc
from heretic.cloud.consent import Act, require_consent
from heretic.cloud.errors import CloudError, ProviderError
from heretic.cloud.observing import billing_line, wait_stopped
from heretic.cloud.targets import choose_instance, parse_id
from heretic.cloud.types import Instance
from heretic.cloud.vast import VastClient, state_request
from heretic.exceptions import ConfigurationError, ConfirmationRequiredError

POLL_S: Final = 60.0


def register(app: App) -> None:
    """Add the command to `app`."""
    command(app, "guard", Effect.DESTROY_REMOTE)(guard)


def guard(instance: str | None = None, *, context: Injected) -> int:
    """Wait here until the lease ends, then pause the machine if its own guard has not; asks first.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    """
    identity = parse_id(instance)
    if context.flags.yes and identity is None:
        raise ConfirmationRequiredError("--yes guards only an instance that is named", hint="Give its ID.")
    client, ledger = context.client(), context.ledger()
    found = choose_instance(client.instances(), identity, ledger, states=("running", "loading"), verb="guard")
    ledger.observed(found)
    end = _lease_end(context, found)
    if context.flags.dry_run:
        return context.show_requests([state_request(found.id, "stopped")])
    lines = (
        f"it waits here until {utc(end)}, or until a lease that was extended meanwhile ends",
        "then the machine is paused: a run is killed without a save; the disk stays and is billed on",
        "it works only while this computer runs and has a network",
    )
    act = Act(f"Guard the lease of {found.title}", lines, "the instance ID")
    require_consent(context.console, act, explicit=identity is not None)
    context.standing = (f"Nobody guards {found.title} from here any more; {billing_line(found)}",)
    return _keep_watch(context, client, found)


def _lease_end(context: CloudContext, instance: Instance) -> float:
    rental = context.ledger().of(instance)
    if rental is None or not rental.lease_end:
        raise ConfigurationError(
            f"{instance.title} has no lease that could end", hint="Give it one: heretic-vast extend HOURS ID"
        )
    return rental.lease_end


def _keep_watch(context: CloudContext, client: VastClient, found: Instance) -> int:
    """The state is read again before every request; a fault of the provider is no reason to give up."""
    clock, console = context.world.clock, context.console
    while True:
        left = _lease_end(context, found) - clock.now()
        if left > 0:
            clock.sleep(min(left, POLL_S))
            continue
        try:
            now = client.find(found.id)
            if now is None or now.state == "stopped":
                break
            console.warn(f"the lease of {now.title} is over; asking to pause it")
            client.set_state(found.id, "stopped")
        except (ProviderError, CloudError) as error:
            console.warn(f"{error.message}; {billing_line(found)}")
        try:
            seen = wait_stopped(client, clock, found.id)
        except ProviderError as error:
            console.warn(error.message)
            continue
        if seen.reached:
            now = seen.instance if not seen.missing else None
            break
        console.warn(f"not paused yet; {billing_line(seen.instance or found)}")
    state = "gone" if now is None else "stopped"
    if now is not None:
        context.ledger().observed(now)
    console.document({"id": found.id, "state": state})
    console.result(f"{found.title} is {'not in the list any more' if now is None else 'paused'}")
    console.next_command(f"heretic-vast terminate {found.id}" if now is not None else "heretic-vast list")
    return 0
