# SPDX-License-Identifier: Apache-2.0
"""What scorers with a model of their own share: verdicts that are kept, replies that are never sent, options."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from heretic.exceptions import ConfigurationError
from heretic.scorers.degeneration import is_empty
from heretic.scorers.protocol import Judgement
from heretic.scorers.text_model import Pair

VERDICTS_KEPT: Final = 2**14


class Remembered:
    """Answers for pairs of request and reply: each distinct pair is asked once while it is among the last `most`."""

    def __init__(
        self, ask: Callable[[Sequence[Pair]], Sequence[Judgement]], most: int = VERDICTS_KEPT
    ) -> None:
        self._ask = ask
        self._most = most
        self._kept: OrderedDict[Pair, Judgement] = OrderedDict()

    def __call__(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """One verdict per pair, in their order."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._kept]
        found = dict(zip(missing, self._ask(missing), strict=True)) if missing else {}
        verdicts = [found[pair] if pair in found else self._kept[pair] for pair in pairs]
        for pair, verdict in zip(pairs, verdicts, strict=True):
            self._kept[pair] = verdict
            self._kept.move_to_end(pair)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return verdicts


def judged_whole(pairs: Sequence[Pair], verdicts: Remembered, *, final: bool) -> list[Judgement]:
    """Empty replies and texts that may still grow get their verdict here, the others by `verdicts`."""
    sent = [pair for pair in pairs if final and not is_empty(pair[1])]
    found = iter(verdicts(sent))
    return [
        Judgement(False, "empty", 0.0)
        if is_empty(pair[1])
        else next(found)
        if final
        else Judgement(False, "none", 0.0)
        for pair in pairs
    ]


def share_option(scorer: str, value: object) -> float:
    """A threshold: above 0, at most 1; else `ConfigurationError`."""
    assert isinstance(value, int | float)
    if not 0.0 < value <= 1.0:
        raise ConfigurationError(
            f"The option 'threshold' of the scorer {scorer!r} is {value!r}.",
            hint="It lies above 0 and at most at 1.",
        )
    return float(value)


def size_option(scorer: str, value: object) -> int:
    """A batch size: at least 1; else `ConfigurationError`."""
    assert isinstance(value, int)
    if value < 1:
        raise ConfigurationError(
            f"The option 'batch_size' of the scorer {scorer!r} is {value!r}.", hint="It is at least 1."
        )
    return value
