# SPDX-License-Identifier: Apache-2.0
"""Any text classifier as the judge: its probability of the named labels (requirements R-EVA-01; algorithms 7.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from heretic.exceptions import ConfigurationError
from heretic.scorers.protocol import Judgement, ScorerContext
from heretic.scorers.table import Option, read_table
from heretic.scorers.text_model import DIGITS, Pair, Row, TextModel, load_text_model
from heretic.scorers.verdicts import Remembered, judged_whole, share_option, size_option

NAME: Final = "classifier"
INPUTS: Final = ("reply", "request_reply")


class ClassifierScorer:
    """degree: the probability of the positive labels. hit: degree >= threshold. Labels: `model` (hit), `uncertain` (a
    positive label is the most probable one, but below the threshold), `empty`, `none`.

    positive: names of the model's labels. Their probabilities add up; of a model whose labels are independent of one
    another (sigmoid) the largest counts. request_too: request and reply as a sequence pair. A reply without letter and
    digit is not sent: degree 0. Nor is a text that may still grow: it is no hit. identity: what judged.
    """

    name = NAME
    direction: Literal["lower", "higher"] = "lower"
    monotone = False  # the model has to see the whole reply

    def __init__(
        self, model: TextModel, positive: Sequence[str], *, threshold: float = 0.5, request_too: bool = False
    ) -> None:
        self._model = model
        self._positive = label_indices(model, positive)
        self._threshold = threshold
        self._request_too = request_too
        self._verdicts = Remembered(self._judged)
        self.needs: frozenset[str] = frozenset({"request"} if request_too else ())
        self.identity = model.identity(NAME, threshold)

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`; the errors are those of `TextModel.logits`."""
        seen = requests if self._request_too else [""] * len(replies)
        return judged_whole(list(zip(seen, replies, strict=True)), self._verdicts, final=final)

    def _judged(self, pairs: Sequence[Pair]) -> list[Judgement]:
        windows = [self._model.fitted(*pair, self._row) for pair in pairs]
        logits = self._model.logits([self._row(*window) for parts in windows for window in parts]).double()
        values = logits.sigmoid() if self._model.multi_label else logits.softmax(dim=-1)
        found = iter(self._judgement(row) for row in values.tolist())
        return [max((next(found) for _ in parts), key=lambda verdict: verdict.value) for parts in windows]

    def _judgement(self, shares: Sequence[float]) -> Judgement:
        mine = [shares[number] for number in self._positive]
        degree = min(1.0, round(max(mine) if self._model.multi_label else sum(mine), DIGITS))
        hit = degree >= self._threshold
        # A single label has no other one beside it: it is the most probable one from one half on.
        top = max(mine) >= (max(shares) if len(shares) > 1 else 0.5)
        return Judgement(hit, "model" if hit else "uncertain" if top else "none", degree)

    def _row(self, request: str, reply: str) -> Row:
        return (request, reply) if self._request_too else (reply, None)


def label_indices(model: TextModel, names: Sequence[str]) -> list[int]:
    """Outputs by the names of their labels, in any case of letters; `ConfigurationError` for one the model lacks."""
    known = {label.casefold(): number for number, label in enumerate(model.labels)}
    foreign = [name for name in names if name.casefold() not in known]
    if foreign or not names:
        raise ConfigurationError(
            f"The judging model {model.name!r} has no label {', '.join(map(repr, foreign))}."
            if foreign
            else "The scorer 'classifier' names no positive label.",
            hint=f"Its labels: {', '.join(model.labels)}.",
        )
    return sorted({known[name.casefold()] for name in names})


def classifier_scorer(
    settings: Mapping[str, object], context: ScorerContext | None = None
) -> ClassifierScorer:
    """From a settings table: model (required), positive (labels that count, required), revision, threshold, batch_size
    (replies of one pass), device, input (`reply` or `request_reply`).

    Raises `ConfigurationError` for anything wrong in the table, and what `load_text_model` raises.
    """
    context = context or ScorerContext()
    given = {key: value for key, value in settings.items() if value is not None}
    defaults: dict[str, Option] = {
        "revision": None, "threshold": 0.5, "batch_size": 8, "device": context.device, "input": INPUTS[0]
    }  # fmt: skip
    options = read_table(NAME, given, defaults, {"model": str, "positive": list})
    positive, revision = options["positive"], options["revision"]
    assert isinstance(positive, list)
    if options["input"] not in INPUTS:
        raise ConfigurationError(
            f"The option 'input' of the scorer 'classifier' is {options['input']!r}.",
            hint=f"Known: {', '.join(INPUTS)}.",
        )
    threshold, rows = share_option(NAME, options["threshold"]), size_option(NAME, options["batch_size"])
    model = load_text_model(
        str(options["model"]),
        revision=None if revision is None else str(revision),
        offline=context.offline,
        device=str(options["device"]),
        batch_size=rows,
    )
    return ClassifierScorer(
        model, positive, threshold=threshold, request_too=options["input"] == "request_reply"
    )
