# SPDX-License-Identifier: Apache-2.0
"""Patterns of the user's own, over the reply as the model wrote it (requirements R-EVA-01).

Unlike markers nothing is normalised and no word boundary is added. A pattern that needs exponential time takes it:
patterns come from the user's own settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from heretic.exceptions import ConfigurationError
from heretic.scorers.degeneration import is_empty
from heretic.scorers.protocol import Judgement, ScorerContext
from heretic.scorers.table import read_table

VERDICTS_KEPT: Final = 2**16
FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}

_PLAIN_ESCAPE = re.compile(r"\\[^ZzbB]", re.DOTALL)
_MAY_UNDO = re.compile(r"\$|\\[Zz]|\(\?!|\(\?>|\(\?\(|[*+?}]\+")
"""Ends, negative look-aheads, conditionals, and groups and repetitions that give nothing back: with them more text
can take a match away."""
_LOOKS_AHEAD = re.compile(r"\(\?=")
_BOUNDARY = re.compile(r"\\[bB]")


def may_be_undone(pattern: str) -> bool:
    """Whether a match that ends before the end of the text can vanish when text is added; True when in doubt.

    Without look-ahead a boundary is decided by the character behind it, which is there. Everything else in the language
    either matches the characters it spans or looks back.
    """
    text = _PLAIN_ESCAPE.sub("", pattern)
    looks_past_the_match = _LOOKS_AHEAD.search(text) and _BOUNDARY.search(text)
    return _MAY_UNDO.search(text) is not None or looks_past_the_match is not None


class RegexScorer:
    """hit: any of the patterns is found. Labels: `label`, `none`, `empty` (no letter, no digit, no match).

    monotone: see `may_be_undone`; then a match that ends where a growing text ends is not counted.
    """

    name = "regex"
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()

    def __init__(self, patterns: Sequence[str], label: str = "match", flags: str = "") -> None:
        self._label = label
        self._patterns = [_compiled(pattern, flags) for pattern in patterns]
        self.monotone = not any(may_be_undone(pattern) for pattern in patterns)
        self._kept = lru_cache(maxsize=VERDICTS_KEPT)(self._verdict)

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`."""
        return [self._kept(reply, final) for reply in replies]

    def _verdict(self, reply: str, final: bool) -> Judgement:
        # U+FFFD: the first bytes of a character that is not whole yet.
        text = reply if final else reply.rstrip("\ufffd")
        end = len(text) + (1 if final else 0)
        for pattern in self._patterns:
            match = pattern.search(text)
            if match is not None and match.end() < end:
                return Judgement(True, self._label)
        return Judgement(False, "empty" if is_empty(reply) else "none")


def _compiled(pattern: str, flags: str) -> re.Pattern[str]:
    combined = re.NOFLAG
    for letter in flags:
        combined |= FLAGS[letter]
    try:
        found = re.compile(pattern, combined)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigurationError(
            f"The scorer 'regex' holds an invalid pattern {pattern!r}: {error}.",
            hint="Patterns are Python regular expressions; put a backslash before ( ) [ ] . ? + *.",
        ) from error
    if found.search("") is not None:
        raise ConfigurationError(
            f"The pattern {pattern!r} of the scorer 'regex' matches the empty reply, so it may match every one.",
            hint="Write the words that decide; for their absence use the goal induce.",
        )
    return found


def regex_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> RegexScorer:
    """From a settings table: patterns (list, required), label (default `match`), flags (letters of i, m, s, x).

    Raises `ConfigurationError` for an unknown or missing option, an invalid pattern, one that matches nothing at all,
    an empty list, an empty or reserved label and an unknown flag.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    options = read_table("regex", given, {"label": "match", "flags": ""}, {"patterns": list})
    patterns, label, flags = options["patterns"], str(options["label"]).strip(), str(options["flags"])
    assert isinstance(patterns, list)
    if not patterns:
        raise ConfigurationError(
            "The scorer 'regex' has no patterns.", hint='Write options = { patterns = ["..."] }.'
        )
    if not label or label in ("none", "empty"):
        raise ConfigurationError(
            f"The option 'label' of the scorer 'regex' is {label!r}.",
            hint="Name what a hit is; none and empty are taken.",
        )
    unknown = sorted(set(flags) - set(FLAGS))
    if unknown:
        raise ConfigurationError(
            f"The option 'flags' of the scorer 'regex' holds {', '.join(unknown)}.",
            hint=f"Known: {', '.join(FLAGS)}, joined: 'is'.",
        )
    return RegexScorer([str(pattern) for pattern in patterns], label, flags)
