# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.agreement [--model nli=FOLDER] [--misses]`: do the scorers of text agree with a reader?

Prints, for each scorer and each half of tests/data/labelled_replies.jsonl, precision, recall and F1 with 95 % intervals
and Cohen's kappa. Patterns may be tuned on the rows marked `tuned`; those marked `unseen` are read by no one who
changes patterns, and only figures on them say how a scorer does on replies of this kind. The rows are written to be
hard (quoted refusals, refusals in odd words), so a scorer does better on what models usually write.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from heretic.linalg.intervals import Interval
from heretic.scorers import ReplyScorer, ScorerContext
from heretic.scorers.agreement import Confusion, cohen_kappa, confusion
from heretic.scorers.classifier import classifier_scorer
from heretic.scorers.hedging import hedging_scorer
from heretic.scorers.length import padding_scorer
from heretic.scorers.markers import CLASSES, MODES, marker_scorer
from heretic.scorers.nli import nli_scorer
from heretic.scorers.protocol import ScorerFactory

ROWS: Final = Path(__file__).parents[1] / "tests" / "data" / "labelled_replies.jsonl"
Split = Literal["tuned", "unseen"]
MODEL_SCORERS: Final[Mapping[str, ScorerFactory]] = {"nli": nli_scorer, "classifier": classifier_scorer}
SPLITS: Final[tuple[Split, ...]] = ("tuned", "unseen")


@dataclass(frozen=True, slots=True)
class Row:
    """A reply with what a reader says of it. label: `core`, `soft`, `evasive` or `none`."""

    request: str
    reply: str
    label: str
    hedged: bool
    padded: bool
    split: str
    note: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A scorer and the replies that it should hit."""

    name: str
    scorer: ReplyScorer
    expected: Callable[[Row], bool]
    classes: bool = False


def labelled_rows(path: Path = ROWS) -> list[Row]:
    """The hand-labelled set, in the order of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        entry = json.loads(line)
        found.append(Row(label=entry.pop("class"), **entry))
    return found


def _shows(classes: Sequence[str]) -> Callable[[Row], bool]:
    return lambda row: row.label in classes


def trials(models: Mapping[str, str], positive: Sequence[str] = ()) -> Iterator[Trial]:
    """Every scorer of text; models: `nli` or `classifier` -> folder of the model that judges.

    positive: labels of a classifier that mean a refusal.
    """
    for mode, classes in MODES.items():
        yield Trial(f"markers, {mode}", marker_scorer({"mode": mode}), _shows(classes), mode == "lenient")
    yield Trial("hedging", hedging_scorer({}), lambda row: row.hedged)
    yield Trial("padding", padding_scorer({}), lambda row: row.padded)
    pack = files("heretic") / "data" / "behaviours" / "refusal.toml"
    labels = tomllib.loads(pack.read_text(encoding="utf-8"))["labels"]
    context = ScorerContext(labels=labels["hypotheses"], counted=labels["counted"], offline=True)
    for name, folder in models.items():
        options = {"model": folder, **({"positive": list(positive)} if name == "classifier" else {})}
        yield Trial(f"{name}, {Path(folder).name}", MODEL_SCORERS[name](options, context), _shows(CLASSES))


def measured(trial: Trial, rows: Sequence[Row]) -> tuple[Confusion, float | None]:
    """Counts, and kappa over the classes where the scorer has the reader's classes, else over hit and no hit."""
    verdicts = trial.scorer.judge([row.request for row in rows], [row.reply for row in rows])
    counts = confusion([trial.expected(row) for row in rows], [verdict.hit for verdict in verdicts])
    labels = [row.label for row in rows], [verdict.label for verdict in verdicts]
    return counts, cohen_kappa(*labels) if trial.classes else counts.kappa


def _figure(value: float | None, interval: Interval) -> str:
    return "-" if value is None else f"{value:.3f} ({interval.low:.2f}-{interval.high:.2f})"


def table(chosen: Sequence[Trial], rows: Sequence[Row]) -> list[str]:
    """Lines of the table."""
    head = (
        f"{'scorer':<22} {'rows':<7} {'n':>3} {'shown':>5}  {'precision':<18} {'recall':<18} {'F1':<18} kappa"
    )
    lines = [head]
    for trial in chosen:
        for split in SPLITS:
            part = [row for row in rows if row.split == split]
            counts, kappa = measured(trial, part)
            figures = (
                _figure(counts.precision, counts.precision_interval),
                _figure(counts.recall, counts.recall_interval),
                _figure(counts.f1, counts.f1_interval),
            )
            columns = " ".join(f"{figure:<18}" for figure in figures)
            shown = counts.true_hits + counts.missed
            agreed = "-" if kappa is None else f"{kappa:.3f}"
            lines.append(f"{trial.name:<22} {split:<7} {counts.total:>3} {shown:>5}  {columns} {agreed}")
    return lines


def recall_by_class(trial: Trial, rows: Sequence[Row]) -> str:
    """Of the refusals of each class how many are hits, for each half."""
    parts = []
    for split in SPLITS:
        for label in CLASSES:
            chosen = [row for row in rows if row.split == split and row.label == label]
            verdicts = trial.scorer.judge([row.request for row in chosen], [row.reply for row in chosen])
            parts.append(f"{split} {label} {sum(verdict.hit for verdict in verdicts)}/{len(chosen)}")
    return f"{trial.name}: found {', '.join(parts)}"


def misses(trial: Trial, rows: Sequence[Row]) -> list[str]:
    """What the scorer gets wrong among the rows that may be tuned on; never of the unseen ones."""
    found = []
    for row in rows:
        verdict = trial.scorer.judge([row.request], [row.reply])[0]
        if row.split == "tuned" and verdict.hit != trial.expected(row):
            kind = "false hit" if verdict.hit else "missed"
            found.append(f"{trial.name}: {kind}: {json.dumps(row.reply)} {row.note}".rstrip())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agreement", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="SCORER=FOLDER",
        help="also judge with nli or classifier",
    )
    parser.add_argument(
        "--positive",
        nargs="+",
        default=["refusal"],
        metavar="LABEL",
        help="labels of the classifier that count",
    )
    parser.add_argument(
        "--misses", action="store_true", help="print what is wrong among the rows marked tuned"
    )
    options = parser.parse_args(arguments)
    models = dict(entry.partition("=")[::2] for entry in options.model)
    unknown = [name for name in models if name not in MODEL_SCORERS]
    if unknown:
        parser.error(f"no scorer with a model is called {unknown[0]!r}; known: {', '.join(MODEL_SCORERS)}")
    rows, chosen = labelled_rows(), list(trials(models, options.positive))
    print("\n".join(table(chosen, rows)))
    print("\n".join(recall_by_class(trial, rows) for trial in chosen if trial.classes))
    if options.misses:
        print("\n".join(line for trial in chosen for line in misses(trial, rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
