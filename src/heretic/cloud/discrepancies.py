# SPDX-License-Identifier: Apache-2.0
"""Where provider, SSH, process, GPUs, log and guard do not agree (requirements R-VAS-44). Pure: nothing is asked here.

Each finding names all values with source and time. Nothing is summarised as fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from heretic.cloud.clock import utc
from heretic.cloud.snapshot import Snapshot
from heretic.cloud.types import Instance
from heretic.trial_display import duration

IDLE_PERCENT: Final = 5.0
BUSY_PERCENT: Final = 30.0
SILENT_S: Final = 900.0
BEAT_LATE_S: Final = 60.0
GUARD_LATE_S: Final = 180.0
DISK_WARNING: Final = 0.85
"""R-VAS-43."""


@dataclass(frozen=True, slots=True)
class Look:
    """What two sources said. instance, snapshot: None when that source did not answer (then `*_error` says why);
    the moments are those of the last answer, on this machine's clock.
    """

    now: float
    instance: Instance | None
    snapshot: Snapshot | None
    provider_error: str = ""
    machine_error: str = ""
    provider_time: float = 0.0
    machine_time: float = 0.0
    lease_agreed: bool = False


def discrepancies(look: Look) -> list[str]:
    """One line for each disagreement and each warning."""
    found = _sources(look)
    if look.snapshot is not None and not look.machine_error:
        found += _process(look.snapshot)
        found += guard_findings(look.snapshot, look.lease_agreed)
        found += _disk(look.snapshot)
    return found


def stale(moment: float, now: float, interval: float) -> bool:
    """Older than two refreshes."""
    return moment > 0 and now - moment > 2 * interval


def _sources(look: Look) -> list[str]:
    found = []
    provider = (
        f"provider: {look.instance.said} ({utc(look.provider_time)})"
        if look.instance
        else "provider: no answer"
    )
    if look.provider_error:
        last = f", last seen {look.instance.said} {utc(look.provider_time)}" if look.instance else ""
        found.append(f"provider: UNKNOWN ({look.provider_error}){last}")
    if look.machine_error:
        last = f", last seen {utc(look.machine_time)}" if look.machine_time else ""
        found.append(f"machine: UNKNOWN ({look.machine_error}){last}; {provider}")
    running = look.instance is not None and look.instance.state == "running"
    if not look.machine_error and look.snapshot and look.instance and not running and not look.provider_error:
        found.append(f"{provider}; ssh: answers ({utc(look.machine_time)})")
    return found


def _process(snapshot: Snapshot) -> list[str]:
    job = snapshot.job
    if job is None:
        return []
    found = []
    loads = [gpu.load for gpu in snapshot.gpus or () if gpu.load is not None]
    load = f"GPU load: {'/'.join(f'{value:.0f} %' for value in loads)}" if loads else "GPU load: not known"
    silence = snapshot.now - snapshot.log_written if snapshot.log_written else 0.0
    said = f"log: last written {duration(max(0.0, silence))} ago" if snapshot.log_written else "log: none"
    process = f"process {job.pid}: {'alive' if job.alive else 'not alive'} ({utc(snapshot.now)})"
    if job.alive and loads and max(loads) < IDLE_PERCENT and silence > SILENT_S:
        found.append(f"{process}; {load}; {said}: it may hang")
    if job.alive and job.beat and snapshot.now - job.beat > BEAT_LATE_S:
        found.append(f"{process}; supervisor: last beat {utc(job.beat)}")
    if not job.alive and job.code is None:
        found.append(f"{process}; exit status: none recorded (killed, or the machine restarted); {said}")
    if not job.alive and loads and max(loads) > BUSY_PERCENT:
        found.append(f"{process}; {load}: something else computes")
    if job.code == 0 and not any(model.complete for model in snapshot.models):
        found.append(f"{process}; exit status: 0; models saved: none complete")
    return found


def guard_findings(snapshot: Snapshot, agreed: bool) -> list[str]:
    """What is wrong with the guard of a lease that was agreed to."""
    if not agreed:
        return []
    if not snapshot.guard:
        return ["lease guard: never reported; the machine will not pause itself"]
    when = utc(snapshot.guard_time)
    if snapshot.guard != "armed":
        end = f"end of lease {utc(snapshot.lease_end)}"
        return [f"lease guard: {snapshot.guard} ({when}); the machine may not pause itself, {end}"]
    if snapshot.now - snapshot.guard_time > GUARD_LATE_S:
        return [f"lease guard: armed, but last seen {when}"]
    return []


def _disk(snapshot: Snapshot) -> list[str]:
    if snapshot.disk is None or not snapshot.disk[1]:
        return []
    used = 1 - snapshot.disk[2] / snapshot.disk[1]
    if used < DISK_WARNING:
        return []
    return [f"disk: {used:.0%} used, {snapshot.disk[2] / 1e9:.1f} GB free"]
