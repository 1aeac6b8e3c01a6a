# SPDX-License-Identifier: Apache-2.0
"""`results.json`: written, read and checked (R-XPT-05). A result without its base is not reported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from heretic.exceptions import FileOperationError
from heretic.experiments.catalogue import Target
from heretic.experiments.figures import Figure, Spread
from heretic.linalg.intervals import Interval
from heretic.publish import write_file

SCHEMA: Final = 1
EDITED: Final = "edited"
BASE: Final = "base"
RANDOM: Final = "random directions"
INSTRUCTION: Final = "instruction"
SIDES: Final = (EDITED, RANDOM, INSTRUCTION)
KL_LIMIT: Final = 1.0
KEPT_MARGIN: Final = 0.05
"""A quality figure is kept while it falls by no more than this."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """name: Hub id, or the last part of a path. revision: the resolved commit, None for a folder."""

    name: str
    revision: str | None = None
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The target and whether it was met: the bound reached, the interval without 0, KL below 1, quality kept.

    met is None where nothing can be said: no KL (another tokenizer), or no such figure.
    """

    metric: str
    group: str
    kind: str
    bound: float
    reached: float | None
    met: bool | None
    reasons: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one evaluation measured.

    modified: the second model of `evaluate`; None where the edited side is the base under an edit. n: prompts by class.
    tokens: length of scored replies. scorer: the pack's objective; its mean value stands in `objective` by side. kl:
    side -> figures in nats per token over `kl.n` good prompts. conditions: side -> defect -> replies. manifest: SHA-256
    of the saved folder's `heretic_run.json`. replies: one entry per prompt, side -> text.
    """

    experiment: str
    planted: bool
    model: ModelName
    modified: ModelName | None
    n: Mapping[str, int]
    tokens: int
    seed: int
    data: str
    pack: str
    scorer: str
    objective: Mapping[str, float]
    figures: Sequence[Figure]
    kl: Mapping[str, Mapping[str, float]]
    noise_floor: float
    conditions: Mapping[str, Mapping[str, int]]
    target: Outcome
    trial: Mapping[str, Any] | None
    manifest: str | None
    replies: Sequence[Mapping[str, Any]]
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def of(self, side: str, prompts: str, group: str, metric: str) -> Figure | None:
        """The figure, if it was measured."""
        wanted = (side, prompts, group, metric)
        return next((f for f in self.figures if (f.side, f.prompts, f.group, f.metric) == wanted), None)

    def document(self) -> dict[str, Any]:
        """As it is stored: plain JSON values, named intervals as pairs."""
        return {"schema": SCHEMA, **asdict(self)}


def judge(figures: Sequence[Figure], target: Target, *, bound: float, kl: float | None) -> Outcome:
    """Whether the edited side reaches the target on the prompts that draw the behaviour."""
    metric, group, kind = target.metric, target.group, target.kind
    own = [figure for figure in figures if figure.side == EDITED]
    by_name = {(figure.group, figure.metric): figure for figure in own if figure.prompts == "bad"}
    where_good = {(figure.group, figure.metric): figure for figure in own if figure.prompts == "good"}
    main = by_name.get((group, metric))
    if main is None:
        return Outcome(metric, group, kind, bound, None, None, ("not measured",))
    reached = main.value if kind == "at_most" else None if main.relative is None else -main.relative
    if reached is None:
        return Outcome(metric, group, kind, bound, None, None, ("the base does not show it",))
    short = reached > bound if kind == "at_most" else reached < bound
    reasons = ["the bound is not reached"] if short else []
    if main.interval.low <= 0.0 <= main.interval.high:
        reasons.append("the interval of the difference holds 0")
    if kl is not None and kl >= KL_LIMIT:
        reasons.append(f"the KL is {kl:.2f}")
    wanted = (target.kept_group, target.kept)
    quality = by_name.get(wanted) or where_good.get(wanted)  # open questions may have no expected answer
    if quality is not None and quality.difference < -KEPT_MARGIN:
        reasons.append(f"{target.kept} fell by {-100 * quality.difference:.1f} points")
    if kl is None and not reasons:
        return Outcome(metric, group, kind, bound, reached, None, ("there is no KL",))
    return Outcome(metric, group, kind, bound, reached, not reasons, tuple(reasons))


def write_results(path: Path, results: Results) -> None:
    """Write the file whole or not at all; the same results give the same bytes."""
    text = json.dumps(results.document(), indent=1, ensure_ascii=True, allow_nan=False)
    write_file(path, (text + "\n").encode("ascii"))


def read_results(path: Path) -> Results:
    """The stored results, checked. Raises `FileOperationError` saying what is missing or wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileOperationError(
            f"There are no results in {path.parent}.",
            hint="Run the experiment first, or name its folder with --out.",
        ) from error
    except (OSError, ValueError) as error:
        raise FileOperationError(
            f"{path} cannot be read: {error}.", hint="Run the experiment again."
        ) from error
    return parse_results(document, str(path))


def parse_results(document: object, label: str) -> Results:
    """Results from their JSON form; raises `FileOperationError` naming the first fault."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise _damaged(label, f"its schema is {found!r}, not {SCHEMA}")
    values = {name: value for name, value in document.items() if name != "schema"}
    try:
        values["model"] = ModelName(**values["model"])
        values["modified"] = None if values["modified"] is None else ModelName(**values["modified"])
        values["target"] = Outcome(**{**values["target"], "reasons": tuple(values["target"]["reasons"])})
        values["figures"] = tuple(_figure(entry) for entry in values["figures"])
        results = Results(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(label, f"a key is missing or unknown ({error})") from error
    _require_base(results, label)
    return results


def _figure(entry: Mapping[str, Any]) -> Figure:
    values = dict(entry)
    for name in ("interval", "relative_interval"):
        values[name] = None if values[name] is None else Interval(*values[name])
    for name in ("base_spread", "spread"):
        values[name] = None if values[name] is None else Spread(**values[name])
    return Figure(**values)


def _require_base(results: Results, label: str) -> None:
    """Every figure and every reply beside that of the base (R-XPT-05)."""
    for figure in results.figures:
        numbers = (figure.base, figure.value, figure.difference, *figure.interval)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise _damaged(label, f"{figure.metric} of {figure.side} has no base or no interval")
        if figure.n < 1:
            raise _damaged(label, f"{figure.metric} of {figure.side} was measured on no prompt")
    if not results.figures:
        raise _damaged(label, "it holds no figures")
    sides = {BASE, *(figure.side for figure in results.figures)}
    if not sides <= set(results.objective):
        raise _damaged(
            label, f"the objective is missing of {', '.join(sorted(sides - set(results.objective)))}"
        )
    if any(BASE not in entry for entry in results.replies):
        raise _damaged(label, "a reply stands without that of the base")


def _damaged(label: str, what: str) -> FileOperationError:
    return FileOperationError(f"{label} is no results file: {what}.", hint="Run the experiment again.")
