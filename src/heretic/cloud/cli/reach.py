# SPDX-License-Identifier: Apache-2.0
"""From an ID, or none, to a machine that can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from heretic.cloud.cli.context import CloudContext
from heretic.cloud.errors import CloudError
from heretic.cloud.layout import Layout
from heretic.cloud.remote import Remote
from heretic.cloud.targets import choose_instance, parse_id
from heretic.cloud.types import Instance


def running_instance(context: CloudContext, identity: str | None, verb: str) -> Instance:
    """The running instance that is meant. Raises `CloudError` for one that does not run: loading means wait."""
    number = parse_id(identity)
    ledger = context.ledger()
    found = choose_instance(context.client().instances(), number, ledger, states=("running",), verb=verb)
    ledger.observed(found)
    if found.state != "running":
        raise CloudError(
            f"{found.title} does not run: the provider says {found.said!r}",
            hint="Loading means wait; a paused one is started with: heretic-vast start",
            data={"id": found.id, "state": found.state},
        )
    return found


@contextmanager
def reached(
    context: CloudContext, identity: str | None, verb: str
) -> Iterator[tuple[Instance, Remote, Layout]]:
    """The machine, connected for the length of a block."""
    instance = running_instance(context, identity, verb)
    remote = context.remote(instance)
    try:
        yield instance, remote, Layout(context.configuration().workspace)
    finally:
        remote.close()
