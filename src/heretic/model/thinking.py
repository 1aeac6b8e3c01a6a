# SPDX-License-Identifier: Apache-2.0
"""Thoughts of thinking models: how families mark them, and where a reply's answer begins (requirements 4.5).

Pure functions over text; which prompt is sent and which budget holds is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Marker:
    """How one family writes a thought. empty: a whole closed, empty thought; None = open, blank line, close."""

    open: str
    close: str
    empty: str | None = None

    @property
    def closed_block(self) -> str:
        """What stands at the start of a reply without a thought."""
        return self.empty or f"{self.open}\n\n{self.close}\n\n"


HARMONY: Final = Marker("<|channel|>analysis", "<|channel|>final<|message|>", "<|channel|>final<|message|>")
"""gpt-oss: channels instead of a bracket; a reply may begin with the answer's channel at once."""

MARKERS: Final = (
    Marker("<think>", "</think>"),
    Marker("<thinking>", "</thinking>"),
    Marker("<thought>", "</thought>"),
    Marker("<reasoning>", "</reasoning>"),
    Marker("<seed:think>", "</seed:think>"),
    Marker("[THINK]", "[/THINK]"),
    Marker("<|START_THINKING|>", "<|END_THINKING|>"),
    Marker("<|begin_of_thought|>", "<|end_of_thought|>"),
    Marker("<|channel>thought", "<channel|>"),
    Marker("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    HARMONY,
)

SWITCHES: Final = ("enable_thinking", "thinking", "reasoning")
"""Names under which templates offer a switch."""

State = Literal["none", "open", "closed"]


@dataclass(frozen=True, slots=True)
class Split:
    """A reply in two parts. answer is empty while the thought is open; marker is the one in use."""

    thought: str
    answer: str
    state: State
    marker: Marker | None = None


def split_thought(text: str, opened: Marker | None = None) -> Split:
    """Thought and answer of a reply decoded with its special tokens.

    opened: the marker with which the prompt itself begins the thought. A text that may still become an opening marker
    counts as open, so that nothing is judged before it is known to be the answer.
    """
    if opened is not None:
        return _closed(text, opened)
    start = text.lstrip()
    for marker in MARKERS:
        if start.startswith(marker.open):
            return _closed(start[len(marker.open) :], marker)
        if marker.empty is not None and start.startswith(marker.empty):
            return Split("", start[len(marker.empty) :], "closed", marker)
    for marker in MARKERS:
        if start and (marker.open.startswith(start) or (marker.empty or "").startswith(start)):
            return Split(start, "", "open", marker)
    return Split("", text, "none")


def _closed(text: str, marker: Marker) -> Split:
    thought, found, answer = text.partition(marker.close)
    return Split(thought, answer, "closed", marker) if found else Split(thought, "", "open", marker)


def opened_by(generation_prompt: str) -> Marker | None:
    """The marker whose thought is open at the end of a generation prompt, or None."""
    for marker in MARKERS:
        position = generation_prompt.rfind(marker.open)
        if position >= 0 and marker.close not in generation_prompt[position:]:
            return marker
    return None


def family_marker(template: str) -> Marker | None:
    """The marker of a family that its template knows but its generation prompt does not open; harmony only: other
    templates mention the markers of old turns as well."""
    return HARMONY if HARMONY.open in template or "<|channel|>" in template else None


def close_position(length: int, holds: Callable[[int], bool]) -> int:
    """The least number of tokens n <= length for which `holds(n)`; holds must be monotone and true at length."""
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
