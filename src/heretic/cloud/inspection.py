# SPDX-License-Identifier: Apache-2.0
"""Asking a machine what would be lost (requirements R-VAS-52)."""

from __future__ import annotations

from collections.abc import Callable

from heretic.cloud.configuration import VastConfig
from heretic.cloud.errors import CloudError
from heretic.cloud.layout import Layout
from heretic.cloud.ledger import Ledger
from heretic.cloud.remote import Remote
from heretic.cloud.snapshot import Snapshot, look
from heretic.cloud.types import Instance, Rental
from heretic.cloud.unsaved import Unsaved


def inspect_unsaved(
    connect: Callable[[Instance], Remote], instance: Instance, ledger: Ledger, configuration: VastConfig
) -> Unsaved:
    """What is at risk on the instance; a machine that cannot be asked is a risk of its own."""
    rental = ledger.of(instance)
    if instance.state == "stopped" and rental is not None and rental.paused_with is not None:
        # Nothing changes on a paused disk: what was seen when it was paused still holds.
        left = tuple(model for model in rental.paused_with if model not in rental.fetched)
        return Unsaved(alive=False, unfetched=left)
    if instance.state in ("stopped", "loading"):
        return Unsaved(None, reason=f"its state is {instance.said}")
    try:
        remote = connect(instance)
    except CloudError as error:
        return Unsaved(None, reason=error.message)
    try:
        return unsaved_of(look(remote, Layout(configuration.workspace)), ledger.of(instance))
    except CloudError as error:
        return Unsaved(None, reason=error.message)
    finally:
        remote.close()


def unsaved_of(snapshot: Snapshot, rental: Rental | None) -> Unsaved:
    """What is at risk by one look and by what the ledger says was fetched."""
    fetched = set(rental.fetched) if rental is not None else set()
    job = snapshot.job
    return Unsaved(
        alive=snapshot.alive,
        unfetched=tuple(
            model.name for model in snapshot.models if model.complete and model.name not in fetched
        ),
        partial=tuple(model.name for model in snapshot.models if not model.complete),
        run=f"{job.model}, process {job.pid}" if job is not None else "",
    )
