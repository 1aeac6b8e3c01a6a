# SPDX-License-Identifier: Apache-2.0
"""The validation report of a model that is saved, beside the base measured before the search (requirements 6.4).

What fails here is unknown in the report; nothing fails a run whose model is saved already.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

from heretic.decoding.protocol import Engine
from heretic.evaluator import Evaluator
from heretic.exceptions import ValidationFileError
from heretic.interventions.hooks import Edits
from heretic.linalg.intervals import Interval
from heretic.model.model import Model
from heretic.phases.confirmation import Confirmation
from heretic.phases.state import Run
from heretic.phases.validation_base import (
    LOG_ODDS,
    TEXTS,
    Known,
    ValidationBase,
    ValidationData,
    behaviour_rate,
    check_validation,
    chosen_path,
    harmless_replies,
    measure_validation_base,
    odds_of,
    read_by_base,
)
from heretic.report import Measurement, Rate
from heretic.scorers.hedging import per_hundred_words
from heretic.validation.harness import Scores, compare_tasks, run_tasks
from heretic.validation.multiple_choice import MultipleChoiceResult, ask, compare_accuracy
from heretic.validation.panel import behaviour_guard, compare_replies, panel_guards
from heretic.validation.perplexity import (
    PerplexityResult,
    compare_perplexity,
    measure_perplexity,
)
from heretic.validation.report import (
    REPORT_VERSION,
    OddsReport,
    QuizReport,
    ReplyReport,
    Snapshot,
    TextReport,
    ValidationReport,
    improvements,
    judge,
    save_report,
)
from heretic.validation.salad import compare_salad, salad_guard
from heretic.validation.subject import Subject

__all__ = [
    "ValidationBase",
    "ValidationData",
    "check_validation",
    "measure_validation_base",
    "validate",
    "validate_saved",
]


def validate(
    run: Run,
    confirmation: Confirmation,
    base: ValidationBase,
    measured: Measurement,
    *,
    edits: Edits | None = None,
    other: tuple[Model, Engine] | None = None,
    trial: int | None = None,
) -> ValidationReport:
    """The report of one model: the run's under `edits`, or `other` (a reloaded or second model with its engine).

    measured: its rate and KL on the prompts of `confirmation`, whose base figures stand beside them. A part that fails
    is unknown; nothing is raised for it.
    """
    assert confirmation.base_measured is not None, "the base is measured first"
    started = time.monotonic()
    evaluator, subject = _under(base, edits, other)
    unknown = list(base.unknown)
    known = Known(unknown)
    quiz = known.part("multiple choice", lambda: _quiz(base, subject))
    texts = known.part("perplexity", lambda: _text_report(base, subject))
    replies = known.part(
        "replies to harmless prompts", lambda: _reply_report(run, base, evaluator, subject.edits, known)
    )
    odds = known.part(LOG_ODDS, lambda: _odds_report(base, subject))
    scores = known.part("benchmarks", lambda: _scores(run, base, subject)) or {}
    before, after = confirmation.base_measured.behaviour, measured.behaviour
    change = None if quiz is None else Interval(quiz.paired.low, quiz.paired.high)
    verdict = judge(
        None if measured.kl is None else measured.kl.mean,
        change,
        informative=quiz is None or quiz.informative,
    )
    return ValidationReport(
        version=REPORT_VERSION,
        model=run.settings.model if other is None else other[0].source.name,
        behaviour=run.resolved.behaviour.name,
        goal=run.settings.goal,
        trial=trial,
        where=measured.where,
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
        before=_snapshot(before, base.quiz, base.perplexity),
        after=_snapshot(
            after, None if quiz is None else quiz.edited, None if texts is None else texts.edited
        ),
        kl=measured.kl,
        noise_floor=confirmation.floor,
        multiple_choice=quiz,
        plain_text=texts,
        replies=replies,
        log_odds=odds,
        benchmarks=compare_tasks(base.scores, scores),
        improvements=improvements(before, after, measured.kl, quiz),
        verdict=verdict.word,
        reason=verdict.reason,
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _under(
    base: ValidationBase, edits: Edits | None, other: tuple[Model, Engine] | None
) -> tuple[Evaluator, Subject]:
    """What replies and what is read, for the base's network under edits or for another model."""
    if other is None:
        return base.evaluator, Subject(base.subject.model, base.subject.engine, edits)
    assert edits is None, "another model is measured as it is"
    model, engine = other
    evaluator = Evaluator(
        model,
        engine,
        base.evaluator.scorer,
        bad=base.drawing,
        good=base.harmless,
        lengths=base.evaluator.lengths,
        width=base.evaluator.decoding_batches.width,
        early_exit=False,
    )
    return evaluator, Subject(model, engine)


def _snapshot(rate: Rate, quiz: MultipleChoiceResult | None, texts: PerplexityResult | None) -> Snapshot:
    return Snapshot(rate, None if quiz is None else quiz.mean, None if texts is None else texts.perplexity)


def _scores(run: Run, base: ValidationBase, subject: Subject) -> Scores | None:
    tasks = base.data.tasks
    if tasks is None or not base.scores:
        return None
    return run_tasks(subject.model, tasks, subject.edits, seed=run.settings.seed)


def _quiz(base: ValidationBase, subject: Subject) -> QuizReport | None:
    questions = base.data.questions
    if questions is None or base.quiz is None:
        return None
    edited = ask(subject, questions)
    return QuizReport(
        source=questions.source,
        seed=questions.seed,
        content_hash=questions.content_hash,
        chance=questions.chance,
        informative=base.quiz.overall.low > questions.chance,
        base=base.quiz,
        edited=edited,
        paired=compare_accuracy(base.quiz, edited),
    )


def _text_report(base: ValidationBase, subject: Subject) -> TextReport | None:
    if base.perplexity is None:
        return None
    edited = measure_perplexity(subject, base.texts.texts[:TEXTS])
    paired = compare_perplexity(base.perplexity, edited, floor=base.floor)
    return TextReport(base.texts.source, base.perplexity, edited, paired)


def _reply_report(
    run: Run, base: ValidationBase, evaluator: Evaluator, edits: Edits, known: Known
) -> ReplyReport | None:
    if base.replies is None:
        return None
    replies = harmless_replies(evaluator, base.harmless, edits)
    panel = compare_replies(base.replies, replies, per_hundred_words)
    assert run.scorer is not None
    guards = panel_guards(panel, length_behaviour=run.scorer.name == "length")
    if not run.induces:
        guards["behaviour"] = behaviour_guard(base.shown, behaviour_rate(run, base, replies))
    salad, own = None, base.own
    if own is not None:
        found = known.part("word salad", lambda: read_by_base(base, replies))
        salad = None if found is None else compare_salad(own, found)
    if salad is not None:
        guards["salad"] = salad_guard(salad)
    where = "held-out" if run.bundle is not None and run.bundle.good_confirmation is not None else "search"
    return ReplyReport(f"{len(replies)} {where} prompts without the behaviour", panel, guards, salad)


def _odds_report(base: ValidationBase, subject: Subject) -> OddsReport | None:
    return None if base.odds is None else OddsReport(base.odds, odds_of(subject, base))


def validate_saved(
    run: Run,
    confirmation: Confirmation,
    base: ValidationBase,
    edits: Edits,
    measured: Measurement,
    output: Path,
    *,
    trial: int | None = None,
) -> tuple[ValidationReport, Path | None]:
    """The report of `edits` that were just saved to `output`, shown in a line and written beside it.

    measured: rate and KL of the saved files. Returns the report and its file, None where it was not to be written or
    could not be, which is a degradation: the model is saved already.
    """
    with run.phase("validation", "Validating what was saved") as phase:
        report = validate(run, confirmation, base, measured, edits=edits, trial=trial)
        phase.result(f"capability {report.verdict}: {report.reason}")
    if not run.settings.save_validation_report:
        return report, None
    try:
        return report, save_report(report, chosen_path(run.settings, output))
    except ValidationFileError as error:
        run.degradations.append(f"validation report: {error.message}")
        run.console.warn(error.message, error.hint)
        return report, None
