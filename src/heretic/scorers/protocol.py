# SPDX-License-Identifier: Apache-2.0
"""What a scorer of replies is (requirements R-EVA-01) and where they are listed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from heretic.exceptions import ConfigurationError
from heretic.registry import Registry


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a scorer says of one reply.

    hit: it shows the behaviour. label: its class, for the breakdown (`core`, `soft`, `none`, ...). degree: how much it
    shows, in 0 ... 1, of scorers that grade; None = 1 for a hit and 0 for none. The search makes the mean of `value`
    rare, counts of hits are reported beside it.
    """

    hit: bool
    label: str
    degree: float | None = None

    @property
    def value(self) -> float:
        """The degree, in 0 ... 1."""
        return float(self.hit) if self.degree is None else self.degree


class ReplyScorer(Protocol):
    """Judges replies one by one.

    direction: `lower` when fewer hits are the goal of suppressing. needs: inputs beside the reply (`request`).
    monotone: True only if a hit on a text that may still grow (final=False) implies a hit, of degree 1, on the text
    followed by anything (algorithms 6.4); rows of other scorers always get whole replies.
    """

    name: str
    direction: Literal["lower", "higher"]
    needs: frozenset[str]
    monotone: bool

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """One judgement per reply. final=False: the text may still grow, so a cut last word decides nothing."""
        ...


@dataclass(frozen=True, slots=True)
class ScorerContext:
    """What a built-in scorer may need beside its own table.

    limit: tokens at which a reply is cut. count_tokens: of a text. labels: of the behaviour, label -> hypothesis;
    counted: those that count as the behaviour. offline: nothing may be fetched. device: where a judging model runs.
    """

    limit: int = 100
    count_tokens: Callable[[str], int] = len
    labels: Mapping[str, str] = field(default_factory=dict)
    counted: Sequence[str] = ()
    offline: bool = False
    device: str = "cpu"


ScorerFactory = Callable[[Mapping[str, object], ScorerContext], ReplyScorer]
SCORERS: Registry[ScorerFactory] = Registry("scorer")


def build_scorer(
    name: str, settings: Mapping[str, object], context: ScorerContext | None = None
) -> ReplyScorer:
    """A built-in scorer by name, or a user's as `module:Class` or `file.py:Class` (requirements R-EVA-02).

    A user's class is called with the settings table. Raises `ConfigurationError` for an unknown name, a file or class
    that does not exist, or an object that is no scorer.
    """
    if ":" not in name:
        return SCORERS[name](settings, context or ScorerContext())
    place, _, class_name = name.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ConfigurationError(f"The scorer file {place!r} does not exist.")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ConfigurationError(f"The scorer module {place!r} cannot be imported: {error}") from error
    factory = getattr(module, class_name, None)
    if factory is None:
        raise ConfigurationError(f"{place!r} has no class {class_name!r}.")
    scorer: ReplyScorer = factory(settings)
    missing = [
        field for field in ("name", "direction", "needs", "monotone", "judge") if not hasattr(scorer, field)
    ]
    if missing:
        raise ConfigurationError(f"{name!r} is no scorer: it lacks {', '.join(missing)}.")
    return scorer
