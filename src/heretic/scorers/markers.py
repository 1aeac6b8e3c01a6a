# SPDX-License-Identifier: Apache-2.0
"""Text patterns that decide a reply: hard, soft and evasive refusals (requirements R-EVA-04 to R-EVA-06)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from heretic.exceptions import ConfigurationError
from heretic.scorers.protocol import Judgement, ScorerContext
from heretic.scorers.quotations import without_quotations
from heretic.scorers.text import first_sentence, normalise, whole_words

LABELS_KEPT = 2**16
OPTIONS = frozenset({"core", "soft", "evasive", "mode", "detect_soft", "detect_evasive"})
CLASSES = ("core", "soft", "evasive")
MODES: Mapping[str, tuple[str, ...]] = {
    "strict": ("core",),
    "moderate": ("core", "soft"),
    "lenient": ("core", "soft", "evasive"),
}


def shipped_markers(behaviour: str = "refusal") -> dict[str, list[str]]:
    """The packaged pattern lists of a behaviour: `core`, `soft`, `evasive`, `weak`, `cue`."""
    text = (files("heretic") / "data" / "markers.toml").read_text(encoding="utf-8")
    table: dict[str, list[str]] = tomllib.loads(text)[behaviour]
    return table


def compile_patterns(patterns: Sequence[str], name: str) -> re.Pattern[str] | None:
    """One pattern for a whole list, with word boundaries; None for an empty list, which matches nothing.

    Raises `ConfigurationError` naming an empty or invalid entry.
    """
    parts: list[str] = []
    for pattern in patterns:
        text = _normalised_pattern(pattern)
        try:
            re.compile(text)  # alone, so that a stray parenthesis cannot close ours
            matches_nothing = re.fullmatch(f"(?:{text})", "") is not None
        except re.error as error:
            raise _invalid(name, pattern, str(error)) from error
        if not text.strip() or matches_nothing:
            raise ConfigurationError(
                f"{name} holds the empty marker {pattern!r}, which would match every reply.",
                hint="Remove the entry, or write the words that decide.",
            )
        if _NUMBERED.search(text):
            raise _invalid(
                name, pattern, "groups are counted over the whole list, so no pattern may refer to one"
            )
        parts.append(f"(?:{text})")
    try:
        return re.compile(r"(?<!\w)(?:" + "|".join(parts) + r")(?!\w)") if parts else None
    except re.error as error:
        raise _invalid(name, "list", str(error)) from error


def _invalid(name: str, pattern: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} holds an invalid pattern {pattern!r}: {reason}.",
        hint="Markers are Python regular expressions over lower-case text; put a backslash before ( ) [ ] . ? + *.",
    )


_ESCAPE = re.compile(r"\\.|[^\\]+", re.DOTALL)
_NUMBERED = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?P=|\(\?\()")
_MAY_UNDO = re.compile(r"\$|\\[ZB]|\(\?!|\(\?<[!=]")
"""Anchors and assertions with which more text can take a match away again."""


def _normalised_pattern(pattern: str) -> str:
    """Plain words as a reply is normalised; of a real pattern only letters and quotes, since `\\S` is not `\\s`."""
    if re.fullmatch(r"[\w\s'\u2019-]+", pattern):
        return normalise(pattern).rstrip(" ")
    straight = pattern.replace("\u2018", "'").replace("\u2019", "'")
    return _ESCAPE.sub(lambda part: part[0] if part[0].startswith("\\") else part[0].casefold(), straight)


class MarkerScorer:
    """Labels a reply `core`, `soft`, `evasive` or `none`; the mode says which labels are hits."""

    name = "markers"
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        core: Sequence[str],
        soft: Sequence[str] = (),
        evasive: Sequence[str] = (),
        weak: Sequence[str] = (),
        cue: Sequence[str] = (),
        hits: Sequence[str] = CLASSES,
    ) -> None:
        self._patterns = {
            "core": compile_patterns(core, "refusal_markers"),
            "soft": compile_patterns(soft, "soft_refusal_markers"),
            "evasive": compile_patterns(evasive, "evasive_patterns"),
        }
        self._weak = compile_patterns(weak, "weak words")
        self._cue = compile_patterns(cue, "cues")
        self._hits = frozenset(hits)
        # Hit classes first: a later match of a class that is no hit must not take a hit back.
        self._order = sorted(CLASSES, key=lambda name: name not in self._hits)
        # Trials write the same replies again and again, and grow them through the same prefixes.
        self._label = lru_cache(maxsize=LABELS_KEPT)(self._find_label)
        self.monotone = not any(_MAY_UNDO.search(entry) for entry in (*core, *soft, *evasive, *weak, *cue))

    def label(self, reply: str, *, final: bool = True) -> str:
        """The first class that matches, hit classes first and then in the order core, soft, evasive; else `none`.

        final=False: a match that ends where the text ends is not counted, for its right boundary is not known yet.
        """
        return self._label(reply, final)

    def _find_label(self, reply: str, final: bool) -> str:
        text = without_quotations(normalise(reply), keep_opening=True)
        text = f"{text}." if final else whole_words(text)
        end = len(text) + (1 if final else 0)
        for name in self._order:
            if _found(self._patterns[name], text, end) or (name == "core" and self._weak_refusal(text, end)):
                return name
        return "none"

    def _weak_refusal(self, text: str, end: int) -> bool:
        opening = first_sentence(text)
        return _found(self._weak, opening, end) and _found(self._cue, opening, end)

    def judge(
        self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True
    ) -> list[Judgement]:
        """See `ReplyScorer.judge`."""
        labels = [self.label(reply, final=final) for reply in replies]
        return [Judgement(hit=label in self._hits, label=label) for label in labels]


def _found(pattern: re.Pattern[str] | None, text: str, end: int) -> bool:
    match = None if pattern is None else pattern.search(text)
    return match is not None and match.end() < end


def marker_scorer(settings: Mapping[str, object], context: ScorerContext | None = None) -> MarkerScorer:
    """From a settings table: core, soft, evasive (lists; None = shipped), mode, detect_soft, detect_evasive (bool?)."""
    unknown = sorted(set(settings) - OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"The scorer 'markers' has no option {unknown[0]!r}.",
            hint=f"Known options: {', '.join(sorted(OPTIONS))}.",
        )
    shipped = shipped_markers()

    def patterns(name: str) -> list[str]:
        value = settings.get(name)
        if value is None:
            return shipped[name]
        assert isinstance(value, list | tuple)
        return [str(entry) for entry in value]

    mode = str(settings.get("mode", "lenient"))
    if mode not in MODES:
        raise ConfigurationError(f"refusal_detection_mode is {mode!r}; known: {', '.join(MODES)}.")
    hits = set(MODES[mode])
    for label, switch in (("soft", settings.get("detect_soft")), ("evasive", settings.get("detect_evasive"))):
        if switch is not None:
            hits = hits | {label} if switch else hits - {label}
    return MarkerScorer(
        core=patterns("core"),
        soft=patterns("soft"),
        evasive=patterns("evasive"),
        weak=shipped["weak"],
        cue=shipped["cue"],
        hits=sorted(hits),
    )
