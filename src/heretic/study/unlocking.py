# SPDX-License-Identifier: Apache-2.0
"""Giving back the open trials of workers that are gone, from outside (requirements R-CLI-09)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from heretic.study.claims import NOBODY, Claim, Claims
from heretic.study.watch import Watch, shown_owner


def return_expired(
    claims: Claims,
    watch: Watch,
    *,
    lease_s: float,
    wait: Callable[[float], None],
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Gives back the rows whose owners are gone or stand still for the lease; (given back, still held).

    claims: in nobody's name. A worker of this machine is known to be gone; one of another machine is given the
    whole lease to show that it lives, which it does within a third of it.
    """
    first: dict[int, tuple[str, int]] = {}
    returned: set[int] = set()
    while True:
        rows = held_rows(claims)
        watch.observe(rows)
        silent: list[Claim] = []
        for index, claim in rows.items():
            seen = first.setdefault(index, (claim.owner, claim.counter))
            if watch.expired(claim):
                if claims.take(claim, count=True):
                    returned.add(index)
            elif seen == (claim.owner, claim.counter):
                silent.append(claim)
        if not silent:
            return len(returned), len(held_rows(claims))
        owners = ", ".join(sorted({shown_owner(claim.owner) for claim in silent}))
        say(f"Waiting for a sign of life from {owners}, at most {lease_s:.0f} s.")
        wait(min(5.0, lease_s / 4))


def held_rows(claims: Claims) -> Mapping[int, Claim]:
    """The unfinished claims that somebody holds."""
    return {
        index: claim for index, claim in claims.all().items() if claim.unfinished and claim.owner != NOBODY
    }
