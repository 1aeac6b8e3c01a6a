# SPDX-License-Identifier: Apache-2.0
"""Text patterns that decide a reply: hard, soft and evasive refusals (requirements R-EVA-04 to R-EVA-06)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal

from heretic.exceptions import ConfigurationError
from heretic.scorers.protocol import Judgement
from heretic.scorers.text import first_sentence, normalise, whole_words

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
        text = normalise(pattern) if re.fullmatch(r"[\w\s'’-]+", pattern) else pattern.replace("’", "'").casefold()
        if not text.strip():
            raise ConfigurationError(f"{name} holds an empty marker, which would match every reply.")
        try:
            re.compile(text)
        except re.error as error:
            raise ConfigurationError(f"{name} holds an invalid pattern {pattern!r}: {error}") from error
        parts.append(f"(?:{text})")
    return re.compile(r"(?<!\w)(?:" + "|".join(parts) + r")(?!\w)") if parts else None


class MarkerScorer:
    """Labels a reply `core`, `soft`, `evasive` or `none`; the mode says which labels are hits."""

    name = "markers"
    direction: Literal["lower", "higher"] = "lower"
    needs: frozenset[str] = frozenset()
    monotone = True

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

    def label(self, reply: str, *, final: bool = True) -> str:
        """The first class that matches, in the order core, soft, evasive; `none` otherwise."""
        text = normalise(reply)
        text = f"{text}." if final else whole_words(text)
        for name in CLASSES:
            pattern = self._patterns[name]
            if pattern is not None and pattern.search(text):
                return name
            if name == "core" and self._weak_refusal(text):
                return name
        return "none"

    def _weak_refusal(self, text: str) -> bool:
        if self._weak is None or self._cue is None:
            return False
        opening = first_sentence(text)
        return self._weak.search(opening) is not None and self._cue.search(opening) is not None

    def judge(self, requests: Sequence[str], replies: Sequence[str], *, final: bool = True) -> list[Judgement]:
        """See `ReplyScorer.judge`."""
        labels = [self.label(reply, final=final) for reply in replies]
        return [Judgement(hit=label in self._hits, label=label) for label in labels]


def marker_scorer(settings: Mapping[str, object]) -> MarkerScorer:
    """From a settings table: core, soft, evasive (lists; None = shipped), mode, detect_soft, detect_evasive (bool?)."""
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
