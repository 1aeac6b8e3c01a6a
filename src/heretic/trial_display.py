# SPDX-License-Identifier: Apache-2.0
"""What a person watches during the search: trial n/N, best so far, front, speed, time left, memory
(R-SEA-14).

Four forms of the same figures: a live panel on a terminal, one plain line per batch, one JSON object per
batch, nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

ProgressMode = Literal["rich", "plain", "json", "none"]

BAR_WIDTH: Final = 40
PLOT_WIDTH: Final = 46
PLOT_HEIGHT: Final = 9
PLOT_MINIMUM_TRIALS: Final = 4
GIB: Final = 1e9
"""Sizes are decimal gigabytes everywhere (requirements, head of the page)."""


class ScoresLike(Protocol):
    """The part of `heretic.study.types.Scores` that is shown; a protocol, because ground imports nothing
    above it.
    """

    @property
    def objectives(self) -> tuple[float, float]: ...
    @property
    def feasible(self) -> bool: ...
    @property
    def measured(self) -> Mapping[str, object]: ...


class TrialLike(Protocol):
    """The part of `heretic.study.types.FinishedTrial` that is shown."""

    @property
    def index(self) -> int: ...
    @property
    def scores(self) -> ScoresLike: ...


class ProgressLike(Protocol):
    """The part of `heretic.study.types.Progress` that is shown."""

    @property
    def finished(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def best(self) -> TrialLike | None: ...
    @property
    def front_size(self) -> int: ...
    @property
    def hypervolume(self) -> float: ...
    @property
    def trials_per_second(self) -> float: ...
    @property
    def eta_s(self) -> float | None: ...
    @property
    def batch(self) -> Sequence[TrialLike]: ...


def duration(seconds: float) -> str:
    """A length of time for reading: `0.4 s`, `12 s`, `3m 05s`, `2h 05m`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def speed(trials_per_second: float) -> str:
    """Trials per second, or per minute or hour when there are fewer than one of them."""
    if trials_per_second >= 1:
        return f"{trials_per_second:.1f} trials/s"
    if trials_per_second * 60 >= 1:
        return f"{trials_per_second * 60:.1f} trials/min"
    return f"{trials_per_second * 3600:.1f} trials/h"


def memory_text() -> str:
    """Memory of this process and, when torch has started a device, what it reserved there of how much."""
    parts = []
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[1])
        size = pages * os.sysconf("SC_PAGE_SIZE") / GIB
        parts.append(f"{size:.1f} GB" if size >= 1 else f"{size * 1000:.0f} MB")
    # Looked up, not imported: the display must not be what loads torch.
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            reserved = torch.cuda.memory_reserved(device)
            if reserved:
                total = torch.cuda.get_device_properties(device).total_memory
                parts.append(f"gpu{device} {reserved / GIB:.1f}/{total / GIB:.0f} GB")
    return ", ".join(parts)


def rate_and_divergence(trial: TrialLike) -> tuple[float, float]:
    """(behaviour rate, KL) of a trial: the measured figures where the evaluator stored them, else the
    objectives.
    """
    found = []
    for name, fallback in zip(("rate", "kl"), trial.scores.objectives, strict=True):
        value = trial.scores.measured.get(name)
        if isinstance(value, Mapping):
            value = value.get("mean")
        elif value is None:
            value = trial.scores.measured.get(f"{name}_mean")
        found.append(float(value) if isinstance(value, (int, float)) else float(fallback))
    return found[0], found[1]


def figure_texts(trial: TrialLike) -> tuple[str, str]:
    """(behaviour rate, KL) for a table. A figure that was not measured is never shown as one: a bound has `>=`, a share
    of the prompts that were tried says of how many, and what was skipped is `-`.
    """
    measured = trial.scores.measured
    rate, divergence = rate_and_divergence(trial)
    texts = [f"{rate:.1%}", f"{divergence:.4f}"]
    if "rate" in measured and measured["rate"] is None:
        hits, seen, total = (measured.get(name) for name in ("hits_at_least", "prompts_seen", "n"))
        texts[0] = "-" if hits is None else f">= {hits}/{total}"
        if measured.get("status") == "estimated":
            texts[0] = f"{hits} of the first {seen}"
    if measured.get("kl_at_least") is not None:
        texts[1] = f">= {measured['kl_at_least']:.4f}"
    return texts[0], texts[1]


def best_text(best: TrialLike | None) -> str:
    """The best trial as `12.0 % (12/100) at KL 0.214, trial 31`."""
    if best is None:
        return "none within the limits yet"
    rate, divergence = rate_and_divergence(best)
    hits, count = best.scores.measured.get("hits"), best.scores.measured.get("n")
    counted = f" ({hits}/{count})" if hits is not None and count is not None else ""
    return f"{rate:.1%}{counted} at KL {divergence:.3f}, trial {best.index}"


def plain_line(progress: ProgressLike, memory: str) -> str:
    """All figures on one line, for logs and pipes."""
    left = "?" if progress.eta_s is None else duration(progress.eta_s)
    fields = [
        f"trial {progress.finished}/{progress.wanted}",
        f"best {best_text(progress.best)}",
        f"front {progress.front_size}",
        f"hypervolume {progress.hypervolume:.4f}",
        speed(progress.trials_per_second),
        f"left {left}",
    ]
    if progress.failed:
        fields.append(f"failed {progress.failed}")
    return " | ".join([*fields, memory] if memory else fields)


def json_line(progress: ProgressLike, memory: str) -> str:
    """All figures as one JSON object."""
    best = None
    if progress.best is not None:
        rate, divergence = rate_and_divergence(progress.best)
        best = {"trial": progress.best.index, "behaviour_rate": rate, "kl_mean": divergence}
    entry = {
        "event": "trials",
        "finished": progress.finished,
        "wanted": progress.wanted,
        "failed": progress.failed,
        "best": best,
        "front_size": progress.front_size,
        "hypervolume": progress.hypervolume,
        "trials_per_second": progress.trials_per_second,
        "eta_s": progress.eta_s,
        "memory": memory,
    }
    return json.dumps(entry)


def bar(done: int, total: int, width: int = BAR_WIDTH) -> Text:
    """A bar of ASCII characters."""
    filled = 0 if total <= 0 else min(width, width * done // total)
    return Text.assemble("[", ("#" * filled, "green"), ("-" * (width - filled), "dim"), "]")


def scatter(
    points: Sequence[tuple[float, float, bool]], width: int = PLOT_WIDTH, height: int = PLOT_HEIGHT
) -> list[str]:
    """Trials as characters: KL to the right, rate upwards; `o` is feasible, `.` is not. Shape: `height`
    lines.

    The KL axis is the square root, so that the small values, where the good trials are, get room.
    """
    widest = max(divergence for _, divergence, _ in points) ** 0.5 or 1.0
    highest = max(rate for rate, _, _ in points) or 1.0
    grid = [[" "] * width for _ in range(height)]
    for rate, divergence, feasible in points:
        column = round(max(0.0, divergence) ** 0.5 / widest * (width - 1))
        row = height - 1 - round(max(0.0, rate) / highest * (height - 1))
        if feasible or grid[row][column] == " ":
            grid[row][column] = "o" if feasible else "."
    return ["".join(row).rstrip() for row in grid]


class TrialDisplay:
    """Shows the search; `update` after every batch. Use as a context manager."""

    def __init__(
        self,
        out: RichConsole,
        write: Callable[[str], None],
        *,
        total: int,
        mode: ProgressMode,
        memory: Callable[[], str] = memory_text,
    ) -> None:
        self._write = write
        self._mode = mode
        self._memory = memory
        self._total = total
        self._started = time.monotonic()
        self._last: ProgressLike | None = None
        self._points: list[tuple[float, float, bool]] = []
        self._best_index: int | None = None
        self._live = (
            Live(
                console=out,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
            )
            if mode == "rich"
            else None
        )

    def __enter__(self) -> TrialDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            if self._last is not None:
                self._write(plain_line(self._last, self._memory()))

    def update(self, progress: ProgressLike) -> None:
        """Show the state after a batch."""
        self._last = progress
        if self._mode == "plain":
            self._write(plain_line(progress, self._memory()))
        elif self._mode == "json":
            self._write(json_line(progress, self._memory()))
        elif self._live is not None:
            self._points += [(*rate_and_divergence(trial), trial.scores.feasible) for trial in progress.batch]
            self._announce_best(progress)
            self._live.refresh()

    def _announce_best(self, progress: ProgressLike) -> None:
        """A line that stays above the panel whenever the best trial changes: the story of the search."""
        if progress.best is not None and progress.best.index != self._best_index:
            self._best_index = progress.best.index
            elapsed = duration(time.monotonic() - self._started)
            self._write(f"new best after {elapsed}: {best_text(progress.best)}")

    def _render(self) -> RenderableType:
        progress = self._last
        elapsed = time.monotonic() - self._started
        if progress is None:
            return Text(f"  trial 0/{self._total}, first batch running for {duration(elapsed)}", style="dim")
        share = progress.finished / progress.wanted if progress.wanted else 1.0
        left = "unknown" if progress.eta_s is None else duration(progress.eta_s)
        head = Text.assemble(
            ("  trial ", "dim"), (f"{progress.finished}/{progress.wanted} ", "bold"),
            bar(progress.finished, progress.wanted), f" {share:4.0%}  ", speed(progress.trials_per_second),
            ("  left ", "dim"), (left, "bold"),
        )  # fmt: skip
        grid = Table.grid(padding=(0, 2))
        grid.add_row(Text("  best", style="dim"), Text(best_text(progress.best), style="bold green"))
        search = (
            f"front {progress.front_size}   hypervolume {progress.hypervolume:.4f}   failed {progress.failed}"
        )
        grid.add_row(Text("  search", style="dim"), search)
        grid.add_row(Text("  used", style="dim"), f"{duration(elapsed)}   {self._memory()}")
        return Group(head, grid, *self._plot())

    def _plot(self) -> list[RenderableType]:
        if len(self._points) < PLOT_MINIMUM_TRIALS:
            return []
        highest = max(rate for rate, _, _ in self._points)
        lines: list[RenderableType] = [Text("")]
        for number, row in enumerate(scatter(self._points)):
            label = f"{highest:6.0%}" if number == 0 else "   0% " if number == PLOT_HEIGHT - 1 else ""
            lines.append(Text.assemble((f"  {label:>6} |", "dim"), row))
        widest = max(divergence for _, divergence, _ in self._points)
        lines.append(Text(f"         +{'-' * PLOT_WIDTH} KL {widest:.2f}", style="dim"))
        return lines
