# SPDX-License-Identifier: Apache-2.0
"""The dashboard of `watch`: what was observed, from whom, and when (requirements R-VAS-40 to 45)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from heretic.cloud.clock import utc
from heretic.cloud.discrepancies import DISK_WARNING, Look, discrepancies, stale
from heretic.cloud.snapshot import Gpu, Job, Snapshot, progress_of
from heretic.cloud.types import Instance
from heretic.sanitise import printable, redact
from heretic.trial_display import bar, duration, speed

SHOWN_LOG: int = 4
HOT_LOAD, WARM_LOAD = 80.0, 30.0
"""Percent above which a load is coloured (R-VAS-42)."""


@dataclass(frozen=True, slots=True)
class View:
    """One refresh. started: when watching began, seconds since the epoch; interval: seconds between looks."""

    look: Look
    title: str
    started: float
    interval: float
    hourly: float | None

    @property
    def watched(self) -> float:
        """Seconds since watching began."""
        return self.look.now - self.started


def dashboard(view: View) -> RenderableType:
    """Everything on one screen; all text from outside is cleaned."""
    parts: list[RenderableType] = [Text(_header(view), style="bold"), _facts(view)]
    snapshot = view.look.snapshot
    if snapshot is not None:
        if snapshot.gpus:
            parts.append(gpu_table(snapshot.gpus))
        parts += [Text(f"  {clean(line)[:160]}", style="dim") for line in readable(snapshot.log)[-SHOWN_LOG:]]
    for line in discrepancies(view.look):
        parts.append(Text(f"! {clean(line)}", style="yellow"))
    parts.append(Text(_footer(view), style="dim"))
    return Group(*parts)


def _header(view: View) -> str:
    price = "price unknown"
    if view.hourly is not None:
        price = f"${view.hourly:.3f}/h, ${view.hourly * view.watched / 3600:.3f} since watching began"
    return clean(f"{view.title}  {utc(view.look.now)}  watched {duration(view.watched)}  {price}")


def _footer(view: View) -> str:
    return f"every {view.interval:g} s; Ctrl-C leaves, and the run goes on"


def _facts(view: View) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts(view).items():
        grid.add_row(Text(name), Text(clean(value)))
    progress = view.look.snapshot.progress if view.look.snapshot else None
    if progress is not None:
        grid.add_row(Text(""), bar(progress.finished, progress.wanted))
    return grid


def facts(view: View) -> dict[str, str]:
    """The figures by name, each with its age where it is old."""
    look = view.look
    said = look.instance.said if look.instance is not None else "no answer yet"
    found = {"provider says": said + _age(look.provider_time, view)}
    snapshot = look.snapshot
    if snapshot is None:
        return {**found, "machine": "no answer yet"}
    mark = _age(look.machine_time, view)
    found["process"] = job_text(snapshot) + mark
    found["trials"] = trials_text(snapshot) + mark
    found["models saved"] = models_text(snapshot) + mark
    found["disk"] = disk_text(snapshot) + mark
    if snapshot.lease_end:
        left = snapshot.lease_end - snapshot.now
        found["lease"] = f"{duration(left)} left" if left >= 0 else f"OVER for {duration(-left)}"
    if not snapshot.gpus:
        found["GPUs"] = "nvidia-smi gives no answer" if snapshot.gpus is None else "none"
    return found


def _age(moment: float, view: View) -> str:
    if not stale(moment, view.look.now, view.interval):
        return ""
    return f"  [STALE: {duration(view.look.now - moment)} old]"


def job_text(snapshot: Snapshot) -> str:
    """The run, by process check."""
    job = snapshot.job
    if job is None:
        return "no run was started by this program"
    if job.alive:
        return f"{job.pid} ALIVE, {job.model}, {_cpu(job, snapshot.now)}"
    if job.code is None:
        return f"{job.pid} not alive, {job.model}, no exit status was recorded"
    meaning = {0: "done", 3: "done, no trial met the limits", 130: "interrupted"}.get(job.code, "failed")
    return f"{job.pid} ended {utc(job.ended)} with status {job.code} ({meaning}), {job.model}"


def _cpu(job: Job, now: float) -> str:
    elapsed = max(1.0, now - job.started)
    return f"CPU {duration(job.cpu_s)} ({100 * job.cpu_s / elapsed:.0f} %), running for {duration(elapsed)}"


def trials_text(snapshot: Snapshot) -> str:
    """Trials, speed, time left, best so far, as the log tells."""
    progress = snapshot.progress
    if progress is None:
        return "the log tells of none yet"
    left = "?" if progress.eta_s is None else duration(progress.eta_s)
    return (
        f"{progress.finished}/{progress.wanted}, {speed(progress.speed)}, left {left}, best {progress.best}"
    )


def models_text(snapshot: Snapshot) -> str:
    """Saved models with their sizes."""
    if not snapshot.models:
        return "none"
    return ", ".join(
        f"{model.name} ({model.bytes / 1e9:.2f} GB, {'complete' if model.complete else 'PARTIAL'})"
        for model in snapshot.models
    )


def disk_text(snapshot: Snapshot) -> str:
    """Used of total, with a warning above 85 %."""
    if snapshot.disk is None or not snapshot.disk[1]:
        return "not known"
    used, total = snapshot.disk[1] - snapshot.disk[2], snapshot.disk[1]
    warning = "  WARNING: nearly full" if used / total >= DISK_WARNING else ""
    return f"{used / 1e9:.1f} of {total / 1e9:.1f} GB ({used / total:.0%}){warning}"


def gpu_rows(gpus: Sequence[Gpu]) -> list[tuple[str, ...]]:
    """One card a row."""
    rows: list[tuple[str, ...]] = []
    for number, gpu in enumerate(gpus):
        share = "" if not gpu.total or gpu.used is None else f" ({100 * gpu.used / gpu.total:.0f} %)"
        memory = f"{figure(gpu.used, 1024)}/{figure(gpu.total, 1024)} GiB{share}"
        rows.append(
            (
                str(number),
                gpu.name,
                f"{figure(gpu.load)} %",
                memory,
                f"{figure(gpu.temperature)} C",
                f"{figure(gpu.power)} W",
            )
        )
    return rows


GPU_COLUMNS = ("GPU", "name", "load", "memory", "temperature", "power")


def gpu_table(gpus: Sequence[Gpu]) -> Table:
    """The cards, loads coloured above 80 and above 30 %."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in GPU_COLUMNS:
        table.add_column(name)
    for gpu, row in zip(gpus, gpu_rows(gpus), strict=True):
        load = gpu.load or 0.0
        style = "green" if load > HOT_LOAD else "yellow" if load > WARM_LOAD else ""
        table.add_row(
            *(Text(clean(cell), style=style if place == 2 else "") for place, cell in enumerate(row))
        )
    return table


def figure(value: float | None, divisor: float = 1.0) -> str:
    """A number for a table; a question mark for what the driver does not say."""
    return "?" if value is None else f"{value / divisor:.0f}"


def readable(log: Sequence[str]) -> list[str]:
    """The log for people: batch lines of the machine-readable kind are put into words."""
    lines = []
    for line in log:
        progress = progress_of([line])
        if progress is None:
            lines.append(line)
        else:
            lines.append(
                f"trial {progress.finished}/{progress.wanted} | best {progress.best} | {speed(progress.speed)}"
            )
    return lines


def plain_line(view: View) -> str:
    """One refresh on one line, for pipes."""
    parts = [f"{name}: {value}" for name, value in facts(view).items()]
    return clean(" | ".join([*parts, *(f"! {line}" for line in discrepancies(view.look))]))


def view_document(view: View) -> dict[str, object]:
    """One refresh as JSON."""
    look = view.look
    return {
        "instance": None if look.instance is None else instance_document(look.instance),
        "snapshot": None if look.snapshot is None else snapshot_document(look.snapshot),
        "provider_error": look.provider_error,
        "machine_error": look.machine_error,
        "discrepancies": discrepancies(look),
    }


def instance_document(instance: Instance) -> dict[str, object]:
    """What is known of an instance, for --json."""
    return {
        "id": instance.id,
        "label": instance.label,
        "state": instance.state,
        "provider_says": instance.said,
        "hourly": instance.hourly,
        "observed": instance.observed,
    }


def snapshot_document(snapshot: Snapshot) -> dict[str, object]:
    """A look at the machine, for --json."""
    return asdict(snapshot)


def clean(text: str) -> str:
    """Text from a machine or provider as it may be shown."""
    return redact(printable(text))
