# SPDX-License-Identifier: Apache-2.0
"""`heretic-vast list`, `start`, `stop`, `terminate` (R-VAS-24, R-VAS-34 to 36, 50 to 52, reliability H03 to H07)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cyclopts import App

from heretic.cli.effects import Effect
from heretic.cloud.cli.context import CloudContext, Injected, Switch, command
from heretic.cloud.clock import utc
from heretic.cloud.consent import Act, require_consent
from heretic.cloud.errors import CloudError, InstanceNotFoundError, ProviderError
from heretic.cloud.http import DoubtfulError
from heretic.cloud.inspection import inspect_unsaved
from heretic.cloud.layout import Layout
from heretic.cloud.lease import lease_text, renew_lease
from heretic.cloud.observing import Seen, billing_line, still_billing, wait_gone, wait_ready, wait_stopped
from heretic.cloud.records import fetch_records
from heretic.cloud.renting import settle
from heretic.cloud.targets import choose_instance, parse_id
from heretic.cloud.types import ALIVE, Instance
from heretic.cloud.unsaved import Unsaved
from heretic.cloud.vast import VastClient, destroy_request, state_request
from heretic.exceptions import ConfigurationError, ConfirmationRequiredError
from heretic.trial_display import duration

COLUMNS: Final = ("id", "label", "GPU", "state", "SSH", "$/h", "disk, GB", "lease", "seen")


def register(app: App) -> None:
    """Add the commands to `app`."""
    command(app, "list", Effect.READ)(list_all)
    command(app, "start", Effect.SPEND)(start)
    command(app, "stop", Effect.DESTROY_REMOTE)(stop)
    command(app, "terminate", Effect.DESTROY_REMOTE)(terminate)


def list_all(*, context: Injected) -> int:
    """List every instance of the account: its state as the provider says it, price, lease, age of the data."""
    client, ledger, clock = context.client(), context.ledger(), context.world.clock
    try:
        listed = client.instances()
        open_rentals = settle(listed, ledger, clock)
    except ProviderError:
        _show_last_known(context)
        raise
    rows, documents = [], []
    now = clock.now()
    for entry in sorted(listed, key=lambda found: found.id):
        rental = ledger.of(entry)
        lease = lease_text(rental, now)
        address = entry.address
        ssh = f"{address.host}:{address.port}" if address else "-"
        price = "?" if entry.hourly is None else f"{entry.hourly:.3f}"
        cards = f"{entry.num_gpus} x {entry.gpu_name}"
        age = f"{duration(now - entry.observed)} ago"
        rows.append(
            (entry.id, entry.label or "-", cards, entry.said, ssh, price, f"{entry.disk_gb:.0f}", lease, age)
        )
        documents.append(
            {
                "id": entry.id,
                "label": entry.label,
                "gpu": cards,
                "state": entry.state,
                "provider_says": entry.said,
                "ssh": ssh,
                "hourly": entry.hourly,
                "disk_gb": entry.disk_gb,
                "lease": lease,
                "ours": ledger.owns(entry),
                "observed": entry.observed,
            }
        )
    doubtful = [rental.label for rental, seen in open_rentals if seen is None]
    context.console.document({"instances": documents, "in_doubt": doubtful})
    for label in doubtful:
        context.console.warn(
            f"a rental is in doubt: label {label} is not in the list (yet)", "Look again in a minute."
        )
    if not rows:
        context.console.result("no instances")
        context.console.next_command("heretic-vast plan MODEL")
        return 0
    context.console.table(COLUMNS, rows, right=(0, 5, 6), result=True)
    for entry in listed:
        if entry.state == "exited":
            context.console.warn(f"{entry.title}: the container ended by itself. {billing_line(entry)}")
    context.console.next_command(
        f"heretic-vast watch {rows[0][0]}" if len(rows) == 1 else "heretic-vast watch ID"
    )
    return 0


def _show_last_known(context: CloudContext) -> None:
    """What the ledger knows when the provider does not answer; never a state of now (H05)."""
    rentals = context.ledger().open_rentals()
    context.console.document(
        {
            "instances": [
                {"id": rental.id, "label": rental.label, "state": "unknown", "last_state": rental.state,
                 "last_seen": rental.observed, "hourly": rental.hourly}
                for rental in rentals
            ]
        }
    )  # fmt: skip
    for rental in rentals:
        seen = f"last seen {rental.state} {utc(rental.observed)}" if rental.observed else "never seen"
        context.console.warn(
            f"instance {rental.id or '(no ID yet)'} ({rental.label}): UNKNOWN, {seen}; "
            f"it may cost ${rental.hourly:.3f}/h"
        )


def start(
    instance: str | None = None, *, max_hours: float = 0.0, wait: float = 15.0, context: Injected
) -> int:
    """Start a paused instance: shows the price, asks, starts, waits until it can be entered.

    Parameters
    ----------
    instance
        ID; without it the only paused instance.
    max_hours
        Length of the new lease; 0 takes that of `create`.
    wait
        Minutes to wait.
    """
    identity = parse_id(instance)
    _check_start(context, identity, max_hours, wait)
    client, ledger, clock = context.client(), context.ledger(), context.world.clock
    found = choose_instance(client.instances(), identity, ledger, states=("stopped",), verb="start")
    if found.state != "stopped":
        raise ConfigurationError(
            f"{found.title} is not paused: the provider says {found.said!r}",
            hint="Loading means wait; see: heretic-vast list",
        )
    rental = ledger.of(found)
    hours = max_hours or (rental.max_hours if rental else 0.0)
    if context.flags.dry_run:
        return context.show_requests([state_request(found.id, "running")])
    price = found.hourly if found.hourly is not None else (rental.hourly if rental else None)
    title = f"Start {found.title}, {found.num_gpus} x {found.gpu_name}"
    act = Act(title, tuple(_start_terms(price, hours)), "the instance ID")
    require_consent(context.console, act, explicit=identity is not None)
    context.standing = (
        f"Instance {found.id} was asked to start and costs money when it runs: heretic-vast list",
    )
    client.set_state(found.id, "running")
    ready = wait_ready(
        client, clock, found.id, answers=context.world.answers, say=context.console.note, wait_s=wait * 60
    )
    ledger.observed(ready)
    if hours:
        _renew(context, ready, hours)
    context.console.document({"id": ready.id, "state": ready.state, "hourly": ready.hourly})
    context.console.result(f"{ready.title} is running and answers; {billing_line(ready)}")
    context.console.next_command(f"heretic-vast progress {ready.id}")
    return 0


def _check_start(context: CloudContext, identity: int | None, max_hours: float, wait: float) -> None:
    if not 0 <= max_hours <= 24 or not 0 <= wait <= 120:
        raise ConfigurationError(
            f"--max-hours is {max_hours:g}, --wait is {wait:g}", hint="Hours are 0 to 24, minutes 0 to 120."
        )
    if context.flags.yes and identity is None:
        raise ConfirmationRequiredError("--yes starts only an instance that is named", hint="Give its ID.")


def _start_terms(price: float | None, hours: float) -> list[str]:
    money = (
        "the provider does not state the price"
        if price is None
        else f"price: ${price:.3f} per hour, ${price * 24:.2f} per day"
    )
    lines = [money, "it starts only when its GPU is free; until then it waits, and its disk is billed"]
    if hours and price is not None:
        lines.append(f"lease: {hours:g} h, so at most ${price * hours:.2f} until it is paused again")
    return lines


def _renew(context: CloudContext, instance: Instance, hours: float) -> None:
    try:
        renew_lease(
            context.remote(instance),
            context.ledger(),
            context.configuration(),
            instance,
            hours,
            context.world.clock,
        )
    except CloudError as error:
        context.console.warn(
            f"the lease on the machine was not renewed ({error.message}); its guard pauses it within 30 minutes",
            f"Run: heretic-vast extend {hours:g} {instance.id}",
        )


def stop(instance: str | None = None, *, discard_unsaved: Switch = False, context: Injected) -> int:
    """Pause an instance: kills what runs there, keeps its disk, which is billed on; says the state that was seen.

    Parameters
    ----------
    instance
        ID; without it the only running instance that this program rented.
    discard_unsaved
        With --yes: also when a run is alive or a model was not downloaded.
    """
    identity = parse_id(instance)
    if context.flags.yes and identity is None:
        raise ConfirmationRequiredError("--yes stops only an instance that is named", hint="Give its ID.")
    client, ledger = context.client(), context.ledger()
    found = choose_instance(client.instances(), identity, ledger, states=("running", "loading"), verb="stop")
    if found.state == "stopped":
        context.console.document({"id": found.id, "state": "stopped"})
        context.console.result(f"{found.title} is paused already. {billing_line(found)}")
        context.console.next_command(f"heretic-vast terminate {found.id}")
        return 0
    if context.flags.dry_run:
        return context.show_requests([state_request(found.id, "stopped")])
    unsaved = _ask_about_losses(context, found, discard_unsaved, destroy=False)
    disk = (
        f"${found.storage_hourly * 24:.2f} a day"
        if found.storage_hourly is not None
        else "a price that is not stated"
    )
    lines = (
        *unsaved.lines(destroy=False),
        "the machine is paused: processes are killed without a save",
        f"its disk of {found.disk_gb:.0f} GB stays and is billed on, at {disk}, until you terminate it",
        "somebody else may rent its GPU meanwhile; then it cannot start again until that ends",
    )
    require_consent(
        context.console, Act(f"Stop {found.title}", lines, "the instance ID"), explicit=identity is not None
    )
    _bring_records(context, found, unsaved)
    context.standing = (
        f"Instance {found.id} was asked to stop; whether it did is not known: heretic-vast list",
    )
    seen = _asked(client, found, "stop", lambda: client.set_state(found.id, "stopped"), context)
    if not seen.reached:
        raise still_billing(found.id, "stop", seen, found.hourly)
    if seen.instance is None or seen.missing:
        raise still_billing(found.id, "stop", seen, found.hourly, "it vanished from the provider's list")
    ledger.observed(seen.instance)
    rental = ledger.of(found)
    if unsaved.alive is False and rental is not None:
        ledger.append("paused", rental.label, id=found.id, models=[*unsaved.unfetched, *unsaved.partial])
    context.console.document(
        {"id": found.id, "state": seen.instance.state, "provider_says": seen.instance.said}
    )
    context.console.result(f"{found.title} was seen {seen.instance.said}. {billing_line(seen.instance)}")
    context.console.next_command(f"heretic-vast terminate {found.id}")
    return 0


def terminate(instance: str, *, discard_unsaved: Switch = False, context: Injected) -> int:
    """Destroy an instance and its disk for good; says so only when it is gone from the provider's list.

    Parameters
    ----------
    instance
        ID; it is never guessed.
    discard_unsaved
        With --yes: also when a run is alive or a model was not downloaded.
    """
    identity = parse_id(instance)
    assert identity is not None
    client, ledger = context.client(), context.ledger()
    found = choose_instance(client.instances(), identity, ledger, states=ALIVE, verb="terminate")
    if context.flags.dry_run:
        return context.show_requests([destroy_request(found.id)])
    unsaved = _ask_about_losses(context, found, discard_unsaved, destroy=True)
    owner = () if ledger.owns(found) else ("this program did not rent it",)
    lines = (
        *owner,
        *unsaved.lines(destroy=True),
        f"everything on its disk of {found.disk_gb:.0f} GB is gone for good; this cannot be undone",
        "billing ends",
    )
    act = Act(
        f"Terminate {found.title}, {found.num_gpus} x {found.gpu_name}",
        lines,
        "the instance ID",
        word=str(found.id),
    )
    require_consent(context.console, act, explicit=True)
    _bring_records(context, found, unsaved)
    context.standing = (
        f"Instance {found.id} was asked to end; whether it did is not known: heretic-vast list",
    )
    seen = _asked(client, found, "terminate", lambda: client.destroy(found.id), context)
    if not seen.reached:
        raise still_billing(found.id, "terminate", seen, found.hourly)
    if (rental := ledger.of(found)) is not None:
        ledger.append("gone", rental.label, id=found.id)
    context.console.document({"id": found.id, "state": "gone"})
    context.console.result(f"{found.title} is gone from the provider's list. Nothing is billed any more.")
    context.console.next_command("heretic-vast list")
    return 0


def _ask_about_losses(context: CloudContext, instance: Instance, discard: bool, *, destroy: bool) -> Unsaved:
    """What is at risk. With --yes and something at risk, `--discard-unsaved` has to be said too (H07)."""
    unsaved = inspect_unsaved(context.remote, instance, context.ledger(), context.configuration())
    if context.flags.yes and unsaved.at_risk and not discard:
        raise ConfirmationRequiredError(
            f"{instance.title} holds what would be lost, or could not be asked",
            details=unsaved.lines(destroy=destroy),
            hint=f"Fetch it first: heretic-vast download {instance.id}; or add --discard-unsaved.",
        )
    return unsaved


def _bring_records(context: CloudContext, instance: Instance, unsaved: Unsaved) -> None:
    """Study and log come home first (H07). A machine that could not be asked is not waited for a second time."""
    if unsaved.alive is None or instance.state != "running":
        return
    configuration = context.configuration()
    try:
        remote = context.remote(instance)
        try:
            layout = Layout(configuration.workspace)
            folder = fetch_records(remote, layout, instance, configuration, context.world.environ)
        finally:
            remote.close()
    except CloudError as error:
        context.console.warn(f"study and log were not copied: {error.message}")
        return
    if folder is not None:
        context.console.document({"records": str(folder)})
        context.console.note(f"study and log are in {folder}")


def _asked(
    client: VastClient, found: Instance, verb: str, ask: Callable[[], None], context: CloudContext
) -> Seen:
    """Send one request and look what comes of it; a lost answer is looked at like a given one."""
    wait = wait_stopped if verb == "stop" else wait_gone
    try:
        ask()
    except InstanceNotFoundError:
        if verb == "stop":
            raise
    except DoubtfulError as error:
        context.console.note(f"{error.message}; looking at the state")
    except ProviderError as error:
        raise still_billing(found.id, verb, Seen(found, False), found.hourly, error.message) from error
    context.console.note(f"asked to {verb}; waiting until it is seen")
    return wait(client, context.world.clock, found.id)
