# SPDX-License-Identifier: Apache-2.0
"""The report before and after (R-VAL-01), its verdict (R-VAL-03), and its file (R-VAL-05). Plain data, no model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from heretic.exceptions import FileOperationError, ResourceError, ValidationFileError
from heretic.linalg.intervals import Interval
from heretic.publish import require_space, write_file
from heretic.report import Divergence, Rate
from heretic.validation.harness import Benchmark
from heretic.validation.log_odds import LogOdds
from heretic.validation.multiple_choice import MultipleChoiceResult, PairedAccuracy
from heretic.validation.panel import Panel
from heretic.validation.perplexity import PairedPerplexity, PerplexityResult
from heretic.validation.salad import Salad

REPORT_VERSION: Final = 1
LARGEST_KL: Final = 1.0
"""Nats per token from which on a model counts as degraded (requirements 13.3, R-VAL-03)."""

LARGEST_DROP: Final = 0.05
"""Loss of accuracy that a preserved model may not have had."""

FREE_BYTES: Final = 1_000_000
PRESERVED, DEGRADED, NOT_SEPARABLE, UNKNOWN = "preserved", "degraded", "not separable", "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `preserved`, `degraded`, `not separable`, `unknown`, and the figures that made it."""

    word: str
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One model: the behaviour's rate with its interval, mean accuracy over categories, perplexity; None = unknown."""

    rate: Rate
    accuracy: float | None
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class QuizReport:
    """Multiple choice before and after. informative: the base is above chance for certain, so a loss can be seen."""

    source: str
    seed: int
    content_hash: str
    chance: float
    informative: bool
    base: MultipleChoiceResult
    edited: MultipleChoiceResult
    paired: PairedAccuracy


@dataclass(frozen=True, slots=True)
class TextReport:
    """Plain texts before and after."""

    source: str
    base: PerplexityResult
    edited: PerplexityResult
    paired: PairedPerplexity


@dataclass(frozen=True, slots=True)
class ReplyReport:
    """Replies to harmless prompts before and after. guards: constraints, broken above 0. salad: None = unknown."""

    source: str
    panel: Panel
    guards: Mapping[str, float]
    salad: Salad | None


@dataclass(frozen=True, slots=True)
class OddsReport:
    """Log-odds of the behaviour at the first reply token before and after."""

    base: LogOdds
    edited: LogOdds


@dataclass(frozen=True, slots=True)
class Improvements:
    """reduction: of the behaviour's rate, absolute (before less after); reduction_percent: of the rate before, None
    where that is 0. kl: nats per token. accuracy_change: after less before on the same questions; None = unknown."""

    reduction: float
    reduction_percent: float | None
    kl: float | None
    accuracy_change: float | None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Everything measured of one saved model beside its base. unknown: what could not be measured, with the reason.

    trial: number in the study, None for a model from elsewhere. where: the prompts of the behaviour's rate.
    measured_at: UTC, ISO 8601. seconds: time of the measurement.
    """

    version: int
    model: str
    behaviour: str
    goal: str
    trial: int | None
    where: str
    measured_at: str
    seconds: float
    before: Snapshot
    after: Snapshot
    kl: Divergence | None
    noise_floor: float
    multiple_choice: QuizReport | None
    plain_text: TextReport | None
    replies: ReplyReport | None
    log_odds: OddsReport | None
    benchmarks: tuple[Benchmark, ...]
    improvements: Improvements
    verdict: str
    reason: str
    unknown: tuple[str, ...]

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def judge(kl: float | None, change: Interval | None, *, informative: bool = True) -> Verdict:
    """R-VAL-03. change: interval of the paired change of accuracy, edited less base.

    Preserved needs both: KL below 1.0 and the lower bound above -0.05. Where the base itself is not above chance no
    loss can be seen, so nothing is preserved for certain.
    """
    if kl is None or change is None or not isfinite(kl):
        missing = [n for n, value in (("the KL", kl), ("multiple choice", change)) if value is None]
        return Verdict(UNKNOWN, f"not measured: {', '.join(missing) or 'a finite KL'}")
    figures = f"KL {kl:.4f}, change of accuracy {change.low:+.3f} to {change.high:+.3f}"
    if kl >= LARGEST_KL:
        return Verdict(DEGRADED, f"{figures}: the KL is not below {LARGEST_KL:g}")
    if change.high < -LARGEST_DROP:
        return Verdict(DEGRADED, f"{figures}: accuracy fell by more than {LARGEST_DROP:g}")
    if not informative:
        return Verdict(UNKNOWN, f"{figures}: the base is not above chance, so no loss can be seen")
    if change.low > -LARGEST_DROP:
        return Verdict(PRESERVED, f"{figures}: a loss of {LARGEST_DROP:g} or more is ruled out")
    return Verdict(NOT_SEPARABLE, f"{figures}: a loss of {LARGEST_DROP:g} is neither shown nor ruled out")


def improvements(before: Rate, after: Rate, kl: Divergence | None, quiz: QuizReport | None) -> Improvements:
    """The differences of R-VAL-01."""
    reduction = before.value - after.value
    return Improvements(
        reduction=reduction,
        reduction_percent=100 * reduction / before.value if before.value else None,
        kl=None if kl is None else kl.mean,
        accuracy_change=None if quiz is None else quiz.paired.change,
    )


def report_path(chosen: Path | None, output: Path, model: str, unix_time: float) -> Path:
    """The file named by the user, else `validation_report_<model basename>_<unix time>.json` beside the output."""
    if chosen is not None:
        return chosen
    name = re.sub(r"[^\w.-]+", "_", re.split(r"[/\\]", model.rstrip("/\\"))[-1]).strip(".") or "model"
    return output.absolute().parent / f"validation_report_{name}_{int(unix_time)}.json"


def check_report_path(path: Path) -> None:
    """Raise `ValidationFileError` for a place that cannot be written or has less than 1 MB free; writes nothing."""
    if path.is_dir():
        raise ValidationFileError(
            f"The validation report {path} is a folder.", hint="Name a file with validation_report_path."
        )
    above = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if above is None or not above.is_dir():
        raise ValidationFileError(
            f"The validation report {path} cannot be written: {above} is no folder.",
            hint="Name another file with validation_report_path.",
        )
    if not os.access(above, os.W_OK):
        raise ValidationFileError(
            f"The validation report {path} cannot be written: {above} is not writable.",
            hint="Name another file with validation_report_path.",
        )
    _require_megabyte(path)


def _require_megabyte(path: Path) -> None:
    try:
        require_space(path, FREE_BYTES)
    except ResourceError as error:
        raise ValidationFileError(error.message, hint=error.hint, data=error.data) from error


def save_report(report: ValidationReport, path: Path) -> Path:
    """Write the report as JSON, all or nothing; folders are made. Raises `ValidationFileError`."""
    check_report_path(path)
    try:
        text = json.dumps(report.to_document(), indent=2, allow_nan=False)
    except ValueError as error:
        raise ValidationFileError(
            f"The validation report holds a figure that is no finite number: {error}",
            hint="The model is destroyed; choose another trial.",
        ) from error
    try:
        write_file(path, text.encode("ascii") + b"\n")
    except (FileOperationError, ResourceError) as error:
        raise ValidationFileError(
            f"The validation report was not written: {error.message}", hint=error.hint, data=error.data
        ) from error
    return path


def load_report(path: Path) -> ValidationReport:
    """Read what `save_report` wrote. Raises `ValidationFileError` for a file that is missing, not UTF-8, not JSON, of
    another version, or of other fields."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValidationFileError(
            f"The validation report {path} cannot be read: {error.strerror or error}.",
            hint="Check the path.",
        ) from error
    except UnicodeDecodeError as error:
        raise ValidationFileError(
            f"The validation report {path} is not UTF-8: byte {error.start}.", hint="The file is damaged."
        ) from error
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValidationFileError(
            f"The validation report {path} is not valid JSON: {error}", hint="The file is damaged."
        ) from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != REPORT_VERSION:
        raise ValidationFileError(
            f"{path} is no validation report of version {REPORT_VERSION}: it says version {version!r}.",
            hint="Read it with the version of the program that wrote it.",
        )
    try:
        found = _built(ValidationReport, document, "report")
    except _Misfit as misfit:
        raise ValidationFileError(
            f"The validation report {path} is damaged: {misfit}.", hint="Make it again."
        ) from misfit
    assert isinstance(found, ValidationReport)
    return found


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON number")


class _Misfit(Exception):
    """A value that is not of the type its field states; the text names the field."""


def _built(hint: Any, value: object, where: str) -> object:
    """`value` of a JSON document as an instance of the type `hint`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kept = [entry for entry in inner if entry is not NoneType]
        return None if value is None and len(kept) < len(inner) else _built(kept[0], value, where)
    if is_dataclass(hint):
        return _record(hint, value, where)
    if origin in (tuple, Sequence, Mapping):
        return _several(origin, inner, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise _Misfit(f"{where} is {value!r:.60}, not of type {hint.__name__}")


def _record(kind: Any, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise _Misfit(f"{where} is no object")
    hints, names = get_type_hints(kind), [field.name for field in fields(kind)]
    for name in names:
        if name not in value:
            raise _Misfit(f"{where} lacks {name!r}")
    for name in value:
        if name not in names:
            raise _Misfit(f"{where} holds the unknown {name!r}")
    return kind(**{name: _built(hints[name], value[name], f"{where}.{name}") for name in names})


def _several(origin: Any, inner: tuple[Any, ...], value: object, where: str) -> object:
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _Misfit(f"{where} is no object")
        return {name: _built(inner[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if not isinstance(value, list):
        raise _Misfit(f"{where} is no list")
    hints = [inner[0]] * len(value) if Ellipsis in inner or origin is Sequence else list(inner)
    if len(hints) != len(value):
        raise _Misfit(f"{where} has {len(value)} entries, not {len(hints)}")
    return tuple(
        _built(h, entry, f"{where}[{n}]") for n, (h, entry) in enumerate(zip(hints, value, strict=True))
    )
