# SPDX-License-Identifier: Apache-2.0
"""What would be lost or interrupted by stopping or destroying an instance (requirements R-VAS-52, reliability H07)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unsaved:
    """alive: a run lives; None when the machine could not be asked. unfetched: complete models that were not
    downloaded; partial: folders that are not complete. reason: why the machine could not be asked.
    """

    alive: bool | None
    unfetched: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    run: str = ""
    reason: str = ""

    @property
    def at_risk(self) -> bool:
        """True unless it is known that nothing is at risk."""
        return self.alive is not False or bool(self.unfetched) or bool(self.partial)

    def lines(self, *, destroy: bool) -> tuple[str, ...]:
        """What the question says. destroy: the disk goes too."""
        if self.alive is None:
            return (
                f"the machine could not be asked what runs and what is saved ({self.reason or 'no answer'}): "
                "a run may be killed, and models may be " + ("lost" if destroy else "left on its disk"),
            )
        found = []
        if self.alive:
            found.append(
                f"a run is ALIVE ({self.run}) and is killed; trials that are finished are in its study"
            )
        if self.unfetched:
            names = ", ".join(self.unfetched)
            fate = "LOST" if destroy else "left on the disk; the machine may not start again"
            found.append(f"saved and not downloaded: {names}; {fate}")
        if self.partial:
            found.append(f"not complete: {', '.join(self.partial)}" + ("; LOST" if destroy else ""))
        return tuple(found) or ("no run is alive, and every saved model was downloaded and verified",)
