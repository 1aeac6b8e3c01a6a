# SPDX-License-Identifier: Apache-2.0
"""The part of `heretic study unlock` that concerns studies with several workers (requirements R-CLI-09)."""

from __future__ import annotations

import time

from heretic.cli.context import Context


def return_leases(storage: str | None, name: str, context: Context) -> int | None:
    """Give back expired leases of a shared study; None for a study that a single owner searches."""
    from heretic.study.claims import NOBODY
    from heretic.study.sharing import claims_of, terms_of, visit_study
    from heretic.study.storage import translated
    from heretic.study.unlocking import return_expired
    from heretic.study.watch import Watch

    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            context.console.note(text)

    with visit_study(storage, name) as study, translated(study.location):
        terms = terms_of(study)
        if terms is None:
            return None
        returned, held = return_expired(
            claims_of(study, NOBODY),
            Watch(terms.lease_seconds),
            lease_s=terms.lease_seconds,
            wait=time.sleep,
            say=say,
        )
    context.console.document({"study": name, "locked": held > 0, "returned": returned, "held": held})
    context.console.result(
        f"{name}: {returned} open trials were given back; {held} are held by workers that live"
    )
    context.console.next_command(f"heretic study show {name}")
    return 0
