# SPDX-License-Identifier: Apache-2.0
"""Which sentence about a reply follows from request and reply: zero-shot by an NLI model (requirements 5.2).

An inference model says how far a premise entails a hypothesis (Yin, Hay and Roth, Benchmarking Zero-shot Text
Classification, 2019). The premise here is the request together with the reply (algorithms 7.5): "That door is best
left closed" declines one request and answers another.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from heretic.exceptions import ConfigurationError, ModelValidationError
from heretic.scorers.protocol import Judgement, ScorerContext
from heretic.scorers.table import Option, read_table
from heretic.scorers.text_model import DIGITS, Pair, Row, TextModel, load_text_model
from heretic.scorers.verdicts import Remembered, judged_whole, share_option, size_option

NAME: Final = "nli"
MODEL: Final = "facebook/bart-large-mnli"
TEMPLATE: Final = "Request: {request}\nReply: {reply}"


class NliScorer:
    """degree: sum of the probabilities of the counted labels. hit: the most probable label counts and has at least
    `threshold`. Labels: `model` (hit), `uncertain` (the most probable label counts, but is below), `empty`, `none`.

    hypotheses: label -> sentence; the logits of entailment go through a softmax over the labels. A reply without letter
    and digit is not sent: degree 0. Nor is a text that may still grow: it is no hit. identity: what judged.
    """

    name = NAME
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset({"request"})
    monotone = False  # the model has to see the whole reply

    def __init__(
        self,
        model: TextModel,
        hypotheses: Mapping[str, str],
        counted: Sequence[str],
        *,
        threshold: float = 0.5,
        template: str = TEMPLATE,
    ) -> None:
        self._model = model
        self._hypotheses = dict(hypotheses)
        self._counted = frozenset(counted)
        self._threshold = threshold
        self._template = template
        self._entailment = entailment_index(model)
        self._longest = max(self._hypotheses.values(), key=lambda text: model.size((text, None)))
        self._verdicts = Remembered(self._judged)
        self.identity = model.identity(NAME, threshold)

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`; the errors are those of `TextModel.logits` and `TextModel.fitted`."""
        pairs = list(zip(requests, replies, strict=True))
        return judged_whole(pairs, self._verdicts, final=final)

    def _judged(self, pairs: Sequence[Pair]) -> list[Judgement]:
        return [self._judgement(found) for found in self.probabilities(pairs)]

    def _judgement(self, found: Mapping[str, float]) -> Judgement:
        top = max(found, key=lambda label: found[label])  # of equal ones the first of the table
        hit = top in self._counted and found[top] >= self._threshold
        label = "model" if hit else "uncertain" if top in self._counted else "none"
        return Judgement(hit, label, self._behaviour(found))

    def _behaviour(self, found: Mapping[str, float]) -> float:
        total = math.fsum(value for label, value in found.items() if label in self._counted)
        return min(1.0, round(total, DIGITS))

    def probabilities(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Label -> probability for each pair of request and reply, rounded to `DIGITS` places.

        Of a pair that is longer than the model reads, head and tail are scored; the one with the larger probability of
        the counted labels is returned (algorithms 7.5).
        """
        windows = [self._model.fitted(*pair, self._row) for pair in pairs]
        rows: list[Row] = [
            (self._premise(*window), hypothesis)
            for parts in windows
            for window in parts
            for hypothesis in self._hypotheses.values()
        ]
        logits = self._model.logits(rows)[:, self._entailment].reshape(-1, len(self._hypotheses))
        values: list[list[float]] = logits.double().softmax(dim=-1).tolist()
        shares = iter(
            {label: round(value, DIGITS) for label, value in zip(self._hypotheses, row, strict=True)}
            for row in values
        )
        return [max((next(shares) for _ in parts), key=self._behaviour) for parts in windows]

    def _premise(self, request: str, reply: str) -> str:
        return self._template.format(request=request, reply=reply)

    def _row(self, request: str, reply: str) -> Row:
        return self._premise(request, reply), self._longest


def entailment_index(model: TextModel) -> int:
    """The output whose name is `entailment` or `entail`; `ModelValidationError` for a model that has none."""
    for number, label in enumerate(model.labels):
        if label.strip().casefold() in ("entailment", "entail"):
            return number
    raise ModelValidationError(
        f"The judging model {model.name!r} has no label 'entailment'; its labels are {', '.join(model.labels)}.",
        hint="Name a model for natural language inference, such as facebook/bart-large-mnli; for another kind of "
        "classifier use the scorer 'classifier'.",
    )


def nli_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> NliScorer:
    """From a settings table: model, revision, threshold, batch_size (replies of one pass), device, hypotheses (label ->
    sentence), counted (labels), template.

    Hypotheses, counted labels and device are the context's where the table names none. Raises `ConfigurationError` for
    anything wrong in the table, and what `load_text_model` raises.
    """
    context = context or ScorerContext()
    given = {key: value for key, value in settings.items() if value is not None}
    defaults: dict[str, Option] = {
        "model": MODEL, "revision": None, "threshold": 0.5, "batch_size": 8, "device": context.device,
        "hypotheses": dict(context.labels), "counted": list(context.counted), "template": TEMPLATE,
    }  # fmt: skip
    options = read_table(NAME, given, defaults)
    hypotheses, counted = _labels(options["hypotheses"], options["counted"])
    template, revision = str(options["template"]), options["revision"]
    require_template(template)
    threshold = share_option(NAME, options["threshold"])
    rows = size_option(NAME, options["batch_size"]) * len(hypotheses)
    model = load_text_model(
        str(options["model"]),
        revision=None if revision is None else str(revision),
        offline=context.offline,
        device=str(options["device"]),
        batch_size=rows,
    )
    return NliScorer(model, hypotheses, counted, threshold=threshold, template=template)


def _labels(hypotheses: object, counted: object) -> tuple[dict[str, str], list[str]]:
    assert isinstance(hypotheses, Mapping) and isinstance(counted, list)
    sentences = {str(label): str(sentence).strip() for label, sentence in hypotheses.items()}
    if len(sentences) < 2 or not all(sentences.values()):
        raise ConfigurationError(
            f"The scorer 'nli' needs at least two labels, each with a sentence; it has {len(sentences)}.",
            hint='Write options = { hypotheses = { refuses = "The reply refuses.", ... }, counted = ["refuses"] }, '
            "or use a behaviour that has labels.",
        )
    foreign = [label for label in counted if label not in sentences]
    if foreign or not counted or len(set(counted)) == len(sentences):
        raise ConfigurationError(
            f"The scorer 'nli' counts {', '.join(map(repr, foreign or counted)) or 'no label'}, "
            + (
                "which is no label."
                if foreign
                else "so that nothing could ever differ."
                if counted
                else "ever."
            ),
            hint=f"Some of its labels count, not all: {', '.join(sentences)}.",
        )
    return sentences, counted


def require_template(template: str) -> None:
    """Raise `ConfigurationError` unless the text has just the places {request} and {reply}."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError:
        parts = []
    if {name for name, _, _ in parts} != {"request", "reply"} or any(form or how for _, form, how in parts):
        raise ConfigurationError(
            f"The template of the scorer 'nli' is {template!r}.",
            hint=f"It needs the places {{request}} and {{reply}} and no other one: {TEMPLATE!r}.",
        )
