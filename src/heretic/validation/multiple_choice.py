# SPDX-License-Identifier: Apache-2.0
"""Multiple choice by log-likelihood of the answer's letter (algorithms 11, requirements R-VAL-02).

Questions are asked as plain text, without chat template, also where the model has one: solved questions of the same
subject show the form, so that the letter is the next token of base and chat models alike, and what is measured is the
network and not its manners. The letter is read in the form that the shots have it (`Answer: A`): the text is tokenised
together with each letter, and what the letters do not share is what is scored, one token or several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

from torch import Tensor

from heretic.exceptions import TokenizationError
from heretic.linalg.intervals import bonett_price, mcnemar_exact, wilson
from heretic.model.tokens import PromptEncoder
from heretic.validation.questions import LETTERS, Question, QuestionSet
from heretic.validation.subject import Subject, plain_tokens

UNDECIDED = -1
"""The choice of a model whose scores are no numbers; never right."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers of n, with the standard error sqrt(p (1 - p) / n) and the 95 % Wilson interval."""

    correct: int
    n: int
    standard_error: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share of right answers; 0 for none asked."""
        return self.correct / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class MultipleChoiceResult:
    """One model on one question set.

    right: per question, in the order of the set. mean: of the categories' accuracies. ties: questions whose best
    choices scored alike, decided for the first of them. form: how it was asked, part of what the figure means.
    """

    overall: Accuracy
    mean: float
    categories: Mapping[str, Accuracy]
    right: tuple[bool, ...]
    ties: int
    form: str


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """Edited less base on the same questions.

    change: of the overall accuracy; low, high: its 95 % Bonett-Price interval. lost: only the base was right; gained:
    only the edited model was. p_value: exact McNemar, two-sided.
    """

    change: float
    low: float
    high: float
    lost: int
    gained: int
    p_value: float


@dataclass(frozen=True, slots=True, eq=False)
class EncodedQuestion:
    """Tokens of the text before the answer, and those of each letter that follow it. dropped: shots left out, because
    there was no room for them."""

    context: tuple[int, ...]
    letters: tuple[tuple[int, ...], ...]
    dropped: int = 0


def accuracy(right: Sequence[bool]) -> Accuracy:
    """The share of right answers with its uncertainty."""
    correct, n = sum(right), len(right)
    rate = correct / n if n else 0.0
    low, high = wilson(correct, n)
    return Accuracy(correct, n, sqrt(rate * (1 - rate) / n) if n else 0.0, low, high)


def compare_accuracy(base: MultipleChoiceResult, edited: MultipleChoiceResult) -> PairedAccuracy:
    """The paired difference; both results have to be of the same questions (asserted by their number)."""
    assert len(base.right) == len(edited.right)
    lost = sum(b and not e for b, e in zip(base.right, edited.right, strict=True))
    gained = sum(e and not b for b, e in zip(base.right, edited.right, strict=True))
    low, high = bonett_price(gained, lost, len(base.right))
    change = (gained - lost) / len(base.right)
    return PairedAccuracy(change, low, high, lost, gained, mcnemar_exact(gained, lost))


def question_text(question: Question) -> str:
    """The question with lettered choices, up to where the letter belongs."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([f"Question: {question.text}", *lines, "Answer:"])


def prompt_text(question: Question, shots: Sequence[Question] = ()) -> str:
    """Solved questions, then the open one."""
    solved = [f"{question_text(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots]
    return "".join(solved) + question_text(question)


def encode_question(
    encoder: PromptEncoder, question: Question, shots: Sequence[Question] = ()
) -> EncodedQuestion:
    """The question in tokens; shots are left out from the first on while it is longer than `encoder.max_tokens`, and of
    a question that is too long by itself the end is kept. Raises `TokenizationError` for letters that look alike."""
    for dropped in range(len(shots) + 1):
        text = prompt_text(question, shots[dropped:])
        letters = LETTERS[: len(question.choices)]
        wholes = plain_tokens(encoder, [f"{text} {letter}" for letter in letters])
        if max(len(whole) for whole in wholes) <= encoder.max_tokens or dropped == len(shots):
            break
    shared = _shared_start(wholes)
    endings = tuple(whole[shared:] for whole in wholes)
    if not shared or not all(endings) or len(set(endings)) < len(endings):
        raise TokenizationError(
            f"The tokenizer does not tell the answers {', '.join(letters)} apart.",
            hint="Multiple choice cannot be measured with it; set run_mmlu_validation = false.",
        )
    room = max(1, encoder.max_tokens - max(len(ending) for ending in endings))
    return EncodedQuestion(wholes[0][:shared][-room:], endings, dropped)


def _shared_start(rows: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common start."""
    low, high = min(rows), max(rows)
    for position, (first, second) in enumerate(zip(low, high, strict=False)):
        if first != second:
            return position
    return min(len(low), len(high))


def ask(subject: Subject, questions: QuestionSet) -> MultipleChoiceResult:
    """Every question asked of the subject; the answer is the letter of the highest log-likelihood (float32)."""
    encoder = subject.model.encoder
    encoded = [
        encode_question(encoder, question, questions.shots.get(question.subject, ()))
        for question in questions.questions
    ]
    chosen, ties = _choices(letter_scores(subject, encoded))
    right = [choice == question.answer for choice, question in zip(chosen, questions.questions, strict=True)]
    groups: dict[str, list[bool]] = {}
    for question, correct in zip(questions.questions, right, strict=True):
        groups.setdefault(question.subject, []).append(correct)
    categories = {name: accuracy(found) for name, found in groups.items()}
    return MultipleChoiceResult(
        overall=accuracy(right),
        mean=sum(found.value for found in categories.values()) / len(categories),
        categories=categories,
        right=tuple(right),
        ties=ties,
        form=_form(questions, encoded),
    )


def letter_scores(subject: Subject, encoded: Sequence[EncodedQuestion]) -> list[list[float]]:
    """Per question the log-likelihood of each letter: one pass over the text where letters are single tokens, else one
    over text and letter."""
    scores: list[list[float]] = [[] for _ in encoded]
    single = [n for n, question in enumerate(encoded) if all(len(row) == 1 for row in question.letters)]

    def read(place: int, logits: Tensor) -> list[float]:
        tokens = [row[0] for row in encoded[single[place]].letters]
        found: list[float] = logits[-1].log_softmax(dim=-1)[tokens].tolist()
        return found

    contexts = [encoded[number].context for number in single]
    for number, found in zip(single, subject.read(contexts, [1] * len(contexts), read), strict=True):
        scores[number] = found
    rest = [
        (n, row) for n, question in enumerate(encoded) if n not in set(single) for row in question.letters
    ]
    wholes = [encoded[number].context + row for number, row in rest]
    likelihoods = subject.log_likelihoods(wholes, [len(row) for _, row in rest])
    for (number, _), values in zip(rest, likelihoods, strict=True):
        scores[number].append(sum(values))
    return scores


def _choices(scores: Sequence[Sequence[float]]) -> tuple[list[int], int]:
    """(index of the best choice of each question, number of ties)."""
    chosen, ties = [], 0
    for values in scores:
        if not all(isfinite(value) for value in values):
            chosen.append(UNDECIDED)
            continue
        best = max(values)
        ties += values.count(best) > 1 if isinstance(values, list) else 0
        chosen.append(list(values).index(best))
    return chosen, ties


def _form(questions: QuestionSet, encoded: Sequence[EncodedQuestion]) -> str:
    """How it was asked, in words."""
    several = sum(any(len(row) > 1 for row in question.letters) for question in encoded)
    letters = "letters of one token" if not several else f"letters of several tokens in {several} questions"
    shots = max((len(found) for found in questions.shots.values()), default=0)
    dropped = sum(question.dropped > 0 for question in encoded)
    short = f", fewer in {dropped} questions for want of room" if dropped else ""
    return f"plain text, {shots} shots{short}, {letters}"
