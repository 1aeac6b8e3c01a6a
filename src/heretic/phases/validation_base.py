# SPDX-License-Identifier: Apache-2.0
"""What the validation report needs before the search: data checked, the unedited model measured once (R-FLOW-05).

A part that is on by default and cannot be had is left out and called unknown; one the user asked for fails the run
(requirements R-GEN-08).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from heretic.config import Settings
from heretic.decoding.protocol import Reply
from heretic.evaluator import Evaluator
from heretic.exceptions import (
    ConfigurationError,
    DatasetError,
    ModelError,
    NetworkError,
    ResourceError,
)
from heretic.interventions.hooks import Edits
from heretic.phases.dataset_loading import specification
from heretic.phases.evaluation import make_evaluator, sides
from heretic.phases.state import Run
from heretic.prompts import DatasetSpecification, Prompt, PromptSet, load_prompts
from heretic.validation.harness import Scores, Tasks, load_tasks, run_tasks
from heretic.validation.log_odds import LogOdds, behaving_openers, measure_log_odds
from heretic.validation.multiple_choice import MultipleChoiceResult, ask
from heretic.validation.perplexity import (
    PerplexityResult,
    measure_perplexity,
    noise_floor,
)
from heretic.validation.questions import QuestionSet, load_questions
from heretic.validation.report import (
    check_report_path,
    report_path,
)
from heretic.validation.salad import reply_likelihoods
from heretic.validation.subject import Subject

TEXTS: Final = 64
"""Plain texts whose perplexity is measured."""

HARMLESS: Final = 100
"""Prompts of the panel of side effects."""

NEUTRAL: Final = DatasetSpecification("heretic:plain-text", split="test")
MMLU_SETTINGS: Final = (
    "run_mmlu_validation",
    "mmlu_source",
    "mmlu_categories",
    "mmlu_samples_per_category",
    "mmlu_few_shot",
)
CANNOT: Final = (DatasetError, NetworkError, ModelError, ResourceError, ConfigurationError)
"""What makes a part unknown where it was nobody's wish."""

LOG_ODDS: Final = "log-odds"
"""The part that many behaviours do without: its absence is said in the report and limits nothing."""

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, eq=False)
class ValidationData:
    """What is asked, loaded before the weights. unknown: parts that cannot be had, with the reason; off: parts that are
    not wanted. required: names of parts the user asked for."""

    questions: QuestionSet | None
    tasks: Tasks | None
    unknown: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class ValidationBase:
    """The unedited model, measured once. Fields are None where the part is unknown.

    harmless, drawing: prompts of the panel and of the behaviour. replies: to the harmless ones. shown: the behaviour's
    rate among them. own: their likelihoods under the model itself. texts: plain ones, with their source.
    """

    data: ValidationData
    evaluator: Evaluator
    subject: Subject
    harmless: Sequence[Prompt]
    drawing: Sequence[Prompt]
    texts: PromptSet
    unknown: list[str] = field(default_factory=list)
    quiz: MultipleChoiceResult | None = None
    perplexity: PerplexityResult | None = None
    floor: float = 0.0
    replies: Sequence[Reply] | None = None
    shown: float = 0.0
    own: Sequence[float | None] | None = None
    openers: frozenset[int] = frozenset()
    odds: LogOdds | None = None
    scores: Scores = field(default_factory=dict)


def check_validation(
    settings: Settings, explicit: frozenset[str] = frozenset(), *, output: Path | None = None
) -> ValidationData | None:
    """Load and check all that the report needs; None where it is off. output: where the model will be saved.

    Raises `ValidationFileError` (the report could not be written), `ConfigurationError` (lm-eval is missing, unknown
    task), and for questions the user asked for `DatasetError`, `NetworkError` and their kin.
    """
    if not settings.enable_validation:
        return None
    if settings.save_validation_report:
        check_report_path(chosen_path(settings, output or Path("model")))
    tasks = load_tasks(settings.validation_benchmarks) if settings.validation_benchmarks else None
    required = frozenset({"benchmarks"} if tasks else ())
    if not settings.run_mmlu_validation:
        off = ("multiple choice: run_mmlu_validation is off",)
        return ValidationData(None, tasks, off=off, required=required)
    stated = any(entry.split(".")[0] in MMLU_SETTINGS for entry in explicit)
    try:
        questions = _questions(settings, explicit)
    except (DatasetError, NetworkError) as error:
        if stated:
            raise
        return ValidationData(None, tasks, (f"multiple choice: {error.message}",), required=required)
    return ValidationData(questions, tasks, required=required | ({"multiple choice"} if stated else set()))


def _questions(settings: Settings, explicit: frozenset[str]) -> QuestionSet:
    return load_questions(
        specification(settings.mmlu_source),
        categories=settings.mmlu_categories,
        per_category=settings.mmlu_samples_per_category,
        few_shot=settings.mmlu_few_shot,
        seed=settings.seed,
        offline=settings.offline,
        any_category="mmlu_categories" not in explicit,
    )


def chosen_path(settings: Settings, output: Path) -> Path:
    """The report's file for a model saved to `output` now."""
    return report_path(settings.validation_report_path, output, settings.model, time.time())


def measure_validation_base(run: Run, data: ValidationData) -> ValidationBase:
    """Every figure of the unedited model, before the search. Needs model and prompts.

    What fails becomes unknown and a degradation, or an error where the user asked for it.
    """
    assert run.bundle is not None and run.model is not None
    bundle = run.bundle
    bad, good = bundle.bad_confirmation, bundle.good_confirmation
    if bad is None or good is None:
        bad, good = bundle.bad_evaluation, bundle.good_evaluation
    drawing, harmless = (entry.prompts[:HARMLESS] for entry in sides(run, bad, good))
    evaluator = make_evaluator(run, drawing, harmless, early_exit=False, final=True)
    assert run.engine is not None
    base = ValidationBase(
        data=data,
        evaluator=evaluator,
        subject=Subject(run.model, run.engine),
        harmless=harmless,
        drawing=drawing,
        texts=_plain_texts(run),
        unknown=[*data.off, *data.unknown],
    )
    with run.phase("validation", "Measuring the capabilities of the unedited model") as phase:
        _measure_base(run, base)
        phase.result(_base_text(base))
    silent = {*data.off, *(line for line in base.unknown if line.startswith(f"{LOG_ODDS}:"))}
    run.degradations += [f"validation: {line}" for line in base.unknown if line not in silent]
    if data.questions is not None:
        for note in data.questions.notes:
            run.console.note(f"Multiple choice: {note}.")
    return base


def _measure_base(run: Run, base: ValidationBase) -> None:
    subject, data = base.subject, base.data
    known = Known(base.unknown, data.required)
    texts = base.texts.texts[:TEXTS]
    questions, tasks = data.questions, data.tasks
    if questions is not None:
        base.quiz = known.part("multiple choice", lambda: ask(subject, questions))
    base.perplexity = known.part("perplexity", lambda: measure_perplexity(subject, texts))
    found = base.perplexity
    if found is not None:
        base.floor = noise_floor(subject, texts, found)
    base.replies = known.part(
        "replies to harmless prompts", lambda: harmless_replies(base.evaluator, base.harmless, {})
    )
    replies = base.replies
    if replies is not None:
        base.shown = behaviour_rate(run, base, replies)
        base.own = known.part("word salad", lambda: read_by_base(base, replies))
        base.odds = known.part(LOG_ODDS, lambda: _base_odds(run, base, replies))
    if tasks is not None:
        model = subject.model
        base.scores = known.part("benchmarks", lambda: run_tasks(model, tasks, seed=run.settings.seed)) or {}


@dataclass(frozen=True, slots=True)
class Known:
    """Runs parts; what fails is noted as unknown unless it was asked for."""

    unknown: list[str]
    required: frozenset[str] = frozenset()

    def part(self, name: str, measure: Callable[[], Part]) -> Part | None:
        """What `measure` returns; None and a note where it fails."""
        try:
            return measure()
        except CANNOT as error:
            if name in self.required:
                raise
            self.unknown.append(f"{name}: {error.message}")
            return None


def _base_text(base: ValidationBase) -> str:
    quiz = "multiple choice unknown"
    if base.quiz is not None:
        quiz = f"{base.quiz.overall.correct}/{base.quiz.overall.n} questions right"
    found = base.perplexity
    return quiz if found is None else f"{quiz}, perplexity {found.perplexity:.2f}"


def _plain_texts(run: Run) -> PromptSet:
    """Plain texts that are loaded already, else the packaged neutral ones: nothing is fetched for them alone."""
    assert run.bundle is not None
    loaded = (run.bundle.sacred_baseline, run.bundle.unhelpfulness)
    found = next((entry for entry in loaded if entry is not None), None)
    return load_prompts(NEUTRAL, role="plain texts") if found is None else found


def harmless_replies(evaluator: Evaluator, prompts: Sequence[Prompt], edits: Edits) -> list[Reply]:
    """Whole replies under `edits` ({} = none), in the order of the prompts."""
    sequences = evaluator.model.encoder.encode_all(prompts)
    return evaluator.replies_under([edits], sequences, evaluator.lengths.response)[0]


def behaviour_rate(run: Run, base: ValidationBase, replies: Sequence[Reply]) -> float:
    """Mean degree of the behaviour in replies to the harmless prompts."""
    assert run.judge is not None
    requests = [prompt.text for prompt in base.harmless]
    verdicts = run.judge.judge(requests, [reply.text for reply in replies])
    return sum(verdict.value for verdict in verdicts) / len(verdicts)


def read_by_base(base: ValidationBase, replies: Sequence[Reply]) -> list[float | None]:
    """Replies to the harmless prompts as the base model reads them."""
    model = base.subject.model
    if model.device.type == "meta":  # it had to make room for the other model
        raise DatasetError("the base model is no longer in memory")
    sequences = model.encoder.encode_all(base.harmless)
    return reply_likelihoods(base.subject, sequences, [reply.tokens for reply in replies])


def _base_odds(run: Run, base: ValidationBase, control: Sequence[Reply]) -> LogOdds:
    """Openers from the base's replies in the search, then its log-odds on the prompts of this report."""
    if base.subject.model.encoder.thinking:
        raise DatasetError("the first token of a thinking model begins a thought, not an answer")
    outcome = base.evaluator.base_outcome() if run.baseline is None else run.baseline.outcome
    pairs = zip(outcome.replies, outcome.judged, strict=True)
    behaving = [reply.tokens for reply, verdict in pairs if verdict.hit != run.induces]
    base.openers = behaving_openers(behaving, [reply.tokens for reply in control])
    return odds_of(base.subject, base)


def odds_of(subject: Subject, base: ValidationBase) -> LogOdds:
    """Log-odds of the base's openers on the prompts that draw the behaviour."""
    return measure_log_odds(subject, subject.model.encoder.encode_all(base.drawing), base.openers)
