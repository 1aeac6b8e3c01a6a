# SPDX-License-Identifier: Apache-2.0
"""Waiting until the provider shows what was asked for. Nothing is believed that was not seen (R-VAS-38, H03, H05)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from heretic.cloud.clock import Clock, utc
from heretic.cloud.errors import CloudError, InstanceStateUnknownError, ProviderError
from heretic.cloud.types import Address, Instance
from heretic.cloud.vast import VastClient

STOP_WAIT_S: Final = 180.0
GONE_WAIT_S: Final = 180.0
READY_WAIT_S: Final = 900.0
SETTLE_S: Final = 60.0
"""Just after a request the provider may still show the state from before it."""

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 15.0
LISTINGS_WITHOUT: Final = 2
"""Complete listings in a row that lack an instance before it counts as gone."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """The last thing seen of an instance. reached: what was waited for was observed. missing: listings in a row
    without it. error: why the last look failed, empty when it did not.
    """

    instance: Instance | None
    reached: bool
    missing: int = 0
    error: str = ""


def delays(clock: Clock, wait_s: float) -> Iterator[float]:
    """Moments to look: at once, then with growing pauses until the time is over."""
    end = clock.now() + wait_s
    delay = FIRST_DELAY_S
    yield clock.now()
    while clock.now() < end:
        clock.sleep(min(delay, max(0.0, end - clock.now())))
        delay = min(delay * 1.5, LONGEST_DELAY_S)
        yield clock.now()


def look_until(
    client: VastClient,
    clock: Clock,
    identity: int,
    wanted: Callable[[Instance | None, int], bool],
    wait_s: float,
) -> Seen:
    """Look until `wanted(instance or None, listings without it in a row)` or the time is over.

    A failed look is no finding: it neither ends the wait nor counts as "gone".
    """
    last: Instance | None = None
    missing, error = 0, ""
    for _ in delays(clock, wait_s):
        try:
            found = client.find(identity)
        except ProviderError as failed:
            error = failed.message
            continue
        error = ""
        missing = 0 if found is not None else missing + 1
        last = found if found is not None else last
        if wanted(found, missing):
            return Seen(last, True, missing)
    return Seen(last, False, missing, error)


def wait_stopped(client: VastClient, clock: Clock, identity: int, wait_s: float = STOP_WAIT_S) -> Seen:
    """Until the container and the contract are seen stopped, or the instance is gone."""
    return look_until(
        client,
        clock,
        identity,
        lambda found, missing: missing >= LISTINGS_WITHOUT if found is None else found.state == "stopped",
        wait_s,
    )


def wait_gone(client: VastClient, clock: Clock, identity: int, wait_s: float = GONE_WAIT_S) -> Seen:
    """Until complete listings lack the instance."""
    return look_until(
        client, clock, identity, lambda found, missing: found is None and missing >= LISTINGS_WITHOUT, wait_s
    )


def wait_ready(
    client: VastClient,
    clock: Clock,
    identity: int,
    *,
    answers: Callable[[Address], bool],
    say: Say,
    wait_s: float = READY_WAIT_S,
    settle_s: float = SETTLE_S,
) -> Instance:
    """Until the instance runs and its SSH server answers (`answers`). Loading means wait (R-VAS-55).

    Raises `CloudError` when it still loads after the wait, when its container ended, or when it went away; the message
    says what is billed.
    """
    said = ""
    begun = clock.now()
    ended = ("exited", "stopped")

    def ready(found: Instance | None, missing: int) -> bool:
        nonlocal said
        if found is None:
            return False
        line = f"{found.title}: {found.said}{f' - {found.message}' if found.message else ''}"
        if line != said:
            said = line
            say(line)
        if found.state in ended:
            return clock.now() - begun > settle_s
        return found.state == "running" and any(answers(address) for address in found.addresses)

    seen = look_until(client, clock, identity, ready, wait_s)
    if seen.reached and seen.instance is not None and seen.instance.state not in ended:
        return seen.instance
    raise not_ready(identity, seen, wait_s)


def not_ready(identity: int, seen: Seen, wait_s: float) -> CloudError:
    """The error of an instance that cannot be used yet, with what it costs."""
    found = seen.instance
    if found is None:
        return InstanceStateUnknownError(
            f"instance {identity} was rented and is not in the provider's list {seen.error}".strip(),
            details=("It may be billed.",),
            hint="Look with 'heretic-vast list', or at cloud.vast.ai/instances.",
        )
    word = "has ended" if found.state in ("exited", "stopped") else f"is not ready after {wait_s:.0f} s"
    return CloudError(
        f"{found.title} {word}: the provider says {found.said!r} {found.message}".strip(),
        details=(billing_line(found),),
        hint=f"Wait and look with 'heretic-vast list', or end it with: heretic-vast terminate {identity}",
        data={"id": identity, "state": found.state},
    )


def billing_line(instance: Instance | None, hourly: float | None = None) -> str:
    """What an instance costs now, in one sentence."""
    price = instance.hourly if instance is not None and instance.hourly is not None else hourly
    money = "an unknown price" if price is None else f"${price:.3f} per hour"
    if instance is None:
        return f"STILL BILLING as far as is known: {money}."
    if instance.state == "stopped":
        disk = instance.storage_hourly
        paid = f"${disk:.4f} per hour (${disk * 24:.2f} a day)" if disk is not None else "a price not stated"
        return f"Paused: the GPUs are not billed; its disk of {instance.disk_gb:.0f} GB is, at {paid}."
    if instance.state == "gone":
        return "Nothing is billed any more."
    return f"STILL BILLING {money} (state: {instance.said}, seen {utc(instance.observed)})."


def still_billing(identity: int, verb: str, seen: Seen, hourly: float | None, reason: str = "") -> CloudError:
    """The error of a stop or a termination that was not seen to happen; its last line is the loud one (H03)."""
    found = seen.instance
    state = found.state if found is not None else "unknown"
    when = f", last seen {utc(found.observed)}" if found is not None else ""
    why = reason or seen.error
    price = found.hourly if found is not None and found.hourly is not None else hourly
    money = f"${price:.3f}/h" if price is not None else "an unknown price per hour"
    return InstanceStateUnknownError(
        f"instance {identity} was not seen to {verb}; its state is {state.upper()}{when}",
        details=tuple(
            line for line in (why, f"STILL BILLING {money}, run: heretic-vast {verb} {identity}") if line
        ),
        hint="If it stays so, use the provider's page: cloud.vast.ai/instances",
        data={"id": identity, "state": state, "hourly": price},
    )
