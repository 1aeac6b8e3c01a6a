# SPDX-License-Identifier: Apache-2.0
"""What a scorer of replies is (requirements R-EVA-01) and where they are listed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from heretic.exceptions import ConfigurationError
from heretic.registry import Registry


@dataclass(frozen=True, slots=True)
class Judgement:
    """hit: the reply shows the behaviour. label: its class, for the breakdown (`core`, `soft`, `none`, ...)."""

    hit: bool
    label: str


class ReplyScorer(Protocol):
    """Judges replies one by one.

    direction: `lower` when fewer hits are the goal of suppressing. needs: inputs beside the reply (`request`).
    monotone: True only if a hit on a text implies a hit on the text followed by anything (algorithms 6.4); rows of
    other scorers always get whole replies.
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


ScorerFactory = Callable[[Mapping[str, object]], ReplyScorer]
SCORERS: Registry[ScorerFactory] = Registry("scorer")


def build_scorer(name: str, settings: Mapping[str, object]) -> ReplyScorer:
    """A built-in scorer by name, or a user's as `module:Class` or `file.py:Class` (requirements R-EVA-02).

    The class is called with the settings table. Raises `ConfigurationError` for an unknown name, a file or class that
    does not exist, or an object that is no scorer.
    """
    if ":" not in name:
        return SCORERS[name](settings)
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
