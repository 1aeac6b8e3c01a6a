# SPDX-License-Identifier: Apache-2.0
"""The contract that every scorer of replies keeps (requirements R-EVA-01, R-EVA-02; algorithms 6.4).

check_reply_scorer(lambda: MyScorer({}))

Built-in scorers are listed in `REPLY_SCORER_CASES`; scorers that need a model or a server add a case that makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final

from heretic.exceptions import ConfigurationError
from heretic.scorers.hedging import hedging_scorer
from heretic.scorers.judge import judge_scorer
from heretic.scorers.length import length_scorer, padding_scorer
from heretic.scorers.markers import marker_scorer
from heretic.scorers.protocol import Judgement, ReplyScorer, ScorerContext, ScorerFactory
from heretic.scorers.regex import regex_scorer
from heretic.testing.judge_server import judge_server

EMPTY: Final = ("", "  \n\t", "\u200b\u200b", "...", "**")
REPLIES: Final = (
    "I can\u2019t help with that.",
    "I\u2019m sorry, but I won\u2019t do it. Let us talk about something else instead.",
    "As an AI language model, I do not have opinions.",
    "I would rather not. **I\u00a0cannot** say more; perhaps somebody else can.",
    "Great question! It seems that tea may help a little. I hope this helps!",
    "Four.",
    "Mix flour, water and salt.\n\n1. Knead.\n2. Wait.\n3. Bake for 40 minutes, or perhaps a little longer.",
    "\u201cI cannot,\u201d said the knight, \u201cfor I gave my word.\u201d",
    "```python\nunable_to_connect = True\n```",
    "Reykjav\u00edk \U0001f44d \u3053\u3093\u306b\u3061\u306f",
    "word " * 120,
    "A cut repl\ufffd",
    *EMPTY,
)
"""Replies of many kinds, the last ones empty."""
EXTENSIONS: Final = ("", " ", "s", "n't", ".", ", but I can help.", "\nNo.", " instead", "\u200b", "\u2019")


@dataclass(frozen=True, slots=True)
class ReplyScorerCase:
    """How a registered scorer is built for its contract. table, context: as its factory takes them.

    factory: None = the registered one. shown: a reply that is a hit, so that no promise is kept by saying nothing.
    """

    shown: str
    factory: ScorerFactory | None = None
    table: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    context: ScorerContext = field(default_factory=ScorerContext)


CaseMaker = Callable[[], AbstractContextManager[ReplyScorerCase]]


@contextmanager
def _judge_case() -> Iterator[ReplyScorerCase]:
    with judge_server() as server:
        yield ReplyScorerCase("x" * 99, judge_scorer, {"url": server.url, "model": "letters", "retries": 0})


@contextmanager
def _nli_case() -> Iterator[ReplyScorerCase]:
    from heretic.scorers.nli import nli_scorer
    from heretic.testing.text_models import COUNTED, HYPOTHESES, nli_model

    with TemporaryDirectory() as folder:
        context = ScorerContext(labels=HYPOTHESES, counted=COUNTED, offline=True)
        yield ReplyScorerCase(REPLIES[0], nli_scorer, {"model": str(nli_model(folder))}, context)


@contextmanager
def _classifier_case() -> Iterator[ReplyScorerCase]:
    from heretic.scorers.classifier import classifier_scorer
    from heretic.testing.text_models import classifier_model

    with TemporaryDirectory() as folder:
        table = {"model": str(classifier_model(folder)), "positive": ["refusal"]}
        yield ReplyScorerCase(REPLIES[0], classifier_scorer, table, ScorerContext(offline=True))


def _plain(case: ReplyScorerCase) -> CaseMaker:
    return lambda: nullcontext(case)


_PATTERNS = {"patterns": ["can(?:no|.)t", r"\bcut\b"], "flags": "i"}

REPLY_SCORER_CASES: dict[str, CaseMaker] = {
    "markers": _plain(ReplyScorerCase(REPLIES[0], marker_scorer)),
    "length": _plain(ReplyScorerCase("word " * 80, length_scorer)),
    "hedging": _plain(ReplyScorerCase("Perhaps.", hedging_scorer)),
    "padding": _plain(ReplyScorerCase("Great question!", padding_scorer)),
    "regex": _plain(ReplyScorerCase(REPLIES[0], regex_scorer, _PATTERNS)),
    "judge": _judge_case,
    "nli": _nli_case,
    "classifier": _classifier_case,
}
"""Scorer -> what makes its case for as long as it is used."""


@contextmanager
def opened(
    name: str, cases: Mapping[str, CaseMaker] = REPLY_SCORER_CASES
) -> Iterator[Callable[[], ReplyScorer]]:
    """What builds the scorer of a case anew, while its server or model is there."""
    with cases[name]() as case:
        assert case.factory is not None
        factory = case.factory
        yield lambda: factory(case.table, case.context)


Build = Callable[[], ReplyScorer]


def check_reply_scorer(build: Build, *, shown: str | None = None) -> None:
    """Raises `AssertionError` naming every promise of `PROMISES` that the scorer breaks.

    build: makes the scorer anew. shown: a reply that has to be a hit, None = of `REPLIES` at least one.
    """
    broken = broken_promises(build, shown=shown)
    assert not broken, "; ".join(f"{name}: {what}" for name, what in broken.items())


def broken_promises(build: Build, *, shown: str | None = None) -> dict[str, str]:
    """Promise -> how the scorer breaks it."""
    replies = REPLIES if shown is None else (shown, *REPLIES)
    broken: dict[str, str] = {}
    for name, promise in PROMISES.items():
        try:
            promise(build, replies)
        except AssertionError as error:
            broken[name] = str(error)
    return broken


def _judged(scorer: ReplyScorer, replies: Sequence[str], *, final: bool = True) -> list[Judgement]:
    verdicts = scorer.judge([f"Question {len(reply)}" for reply in replies], replies, final=final)
    assert len(verdicts) == len(replies), f"{len(verdicts)} judgements for {len(replies)} replies"
    return verdicts


def _described(build: Build, replies: Sequence[str]) -> None:
    """name, direction, needs and monotone are there and of their kind."""
    scorer = build()
    assert isinstance(scorer.name, str) and scorer.name, "the name is empty"
    assert scorer.direction in ("lower", "higher"), f"direction is {scorer.direction!r}"
    assert isinstance(scorer.needs, frozenset) and scorer.needs <= {"request"}, f"needs is {scorer.needs!r}"
    assert isinstance(scorer.monotone, bool), f"monotone is {scorer.monotone!r}"


def _one_each(build: Build, replies: Sequence[str]) -> None:
    """One judgement per reply, none for none."""
    scorer = build()
    assert scorer.judge([], []) == [], "no replies have judgements"
    for final in (True, False):
        for size in (1, 2, len(replies)):
            _judged(scorer, replies[:size], final=final)


def _shows(build: Build, replies: Sequence[str]) -> None:
    """The first reply, or where none was named any, is a hit: no promise is kept by saying nothing."""
    judged = replies[:1] if len(replies) > len(REPLIES) else replies
    assert any(verdict.hit for verdict in _judged(build(), judged)), "nothing is a hit"


def _well_formed(build: Build, replies: Sequence[str]) -> None:
    """hit is a bool, label a text that is not empty, degree None or in 0 ... 1, and no hit has degree 0."""
    for final in (True, False):
        for reply, verdict in zip(replies, _judged(build(), replies, final=final), strict=True):
            assert isinstance(verdict.hit, bool), f"hit of {reply!r} is {verdict.hit!r}"
            assert isinstance(verdict.label, str) and verdict.label.strip(), f"{reply!r} has no label"
            assert verdict.degree is None or 0.0 <= verdict.degree <= 1.0, f"degree of {reply!r}"
            assert verdict.value > 0 or not verdict.hit, f"{reply!r} is a hit of degree 0"


def _empty_reply(build: Build, replies: Sequence[str]) -> None:
    """An empty reply shows nothing; guards count it (algorithms 7.6)."""
    for reply, verdict in zip(EMPTY, _judged(build(), EMPTY), strict=True):
        assert not verdict.hit and verdict.value == 0.0, f"the empty reply {reply!r} is {verdict}"


def _order_and_batches(build: Build, replies: Sequence[str]) -> None:
    """The judgement of a reply depends neither on its neighbours nor on what was judged before."""
    together = _judged(build(), replies)
    scorer = build()
    assert list(reversed(_judged(scorer, replies[::-1]))) == together, "the order of replies matters"
    assert [_judged(build(), [reply])[0] for reply in replies] == together, "the batch matters"
    assert _judged(scorer, [*replies, *replies]) == together * 2, "a second time it is another verdict"


def _deterministic(build: Build, replies: Sequence[str]) -> None:
    """Two scorers of one table agree, and one agrees with itself."""
    first, second = build(), build()
    assert _judged(first, replies) == _judged(second, replies), "two of one table differ"
    assert _judged(first, replies) == _judged(first, replies), "one differs from itself"


def _request_only_if_needed(build: Build, replies: Sequence[str]) -> None:
    """A scorer that does not say `request` judges the same without one."""
    scorer = build()
    if "request" not in scorer.needs:
        others = [scorer.judge([request] * len(replies), replies) for request in ("", "Say I can't.", "a\nb")]
        assert others[0] == others[1] == others[2], "the request matters, but needs does not name it"


def _cut_is_never_more(build: Build, replies: Sequence[str]) -> None:
    """Of a monotone scorer: what is a hit while it may grow is a hit at its end."""
    scorer = build()
    if scorer.monotone:
        growing, ended = (_judged(scorer, replies, final=final) for final in (False, True))
        for reply, early, late in zip(replies, growing, ended, strict=True):
            assert late.hit or not early.hit, f"{reply!r} is a hit only while it may grow"


def _growing(build: Build, replies: Sequence[str]) -> None:
    """Of a monotone scorer: a hit on a growing text is one, of degree 1, on that text followed by anything."""
    scorer = build()
    if not scorer.monotone:
        return
    for reply in replies:
        prefixes = [reply[:cut] for cut in range(len(reply) + 1)][:160]
        hits = [verdict.hit for verdict in _judged(scorer, prefixes, final=False)]
        for shorter, longer in pairwise(range(len(hits))):
            assert hits[longer] or not hits[shorter], f"{prefixes[longer]!r} takes a hit back"
        certain = [prefix for prefix, hit in zip(prefixes, hits, strict=True) if hit]
        wholes = [prefix + end for prefix in certain[:3] + certain[-3:] for end in (*EXTENSIONS, reply)]
        for whole, verdict in zip(wholes, _judged(scorer, wholes), strict=True):
            assert verdict.hit and verdict.value == 1.0, (
                f"{whole!r} is {verdict} though its beginning is a hit"
            )


PROMISES: Final[Mapping[str, Callable[[Build, Sequence[str]], None]]] = MappingProxyType(
    {
        "described": _described,
        "one each": _one_each,
        "shows": _shows,
        "well formed": _well_formed,
        "empty reply": _empty_reply,
        "order and batches": _order_and_batches,
        "deterministic": _deterministic,
        "request": _request_only_if_needed,
        "cut is never more": _cut_is_never_more,
        "growing": _growing,
    }
)
"""Name -> check of one promise, which raises `AssertionError`."""


def refuses_unknown_options(
    factory: ScorerFactory, table: Mapping[str, object], context: ScorerContext
) -> bool:
    """Whether a mistyped option is an error that names it."""
    try:
        factory({**table, "no_such_option": 1}, context)
    except ConfigurationError as error:
        return "no_such_option" in error.message
    return False
