# SPDX-License-Identifier: Apache-2.0
"""Is it still a reply: empty, looping and degenerate text (algorithms 7.6)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from heretic.decoding.protocol import Reply

MAXIMUM_PERIOD = 24
MINIMUM_TAIL = 48
WORDS_NEEDED = 40
DISTINCT_FLOOR = 0.25
COMPRESSION_FLOOR = 0.15


def is_empty(text: str) -> bool:
    """No letter and no digit."""
    return not any(character.isalnum() for character in text)


def is_loop(tokens: Sequence[int]) -> bool:
    """The last max(48, 3 p) tokens repeat with some period p <= 24."""
    for period in range(1, MAXIMUM_PERIOD + 1):
        tail = max(MINIMUM_TAIL, 3 * period)
        if len(tokens) < tail:
            return False
        end = tokens[-tail:]
        if all(end[position] == end[position - period] for position in range(period, tail)):
            return True
    return False


def is_degenerate(text: str) -> bool:
    """Distinct word 4-grams / all < 0.25 over at least 40 words, or zlib ratio < 0.15."""
    words = text.split()
    if len(words) < WORDS_NEEDED:
        return False
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(set(grams)) / len(grams) < DISTINCT_FLOOR:
        return True
    raw = text.encode("utf-8")
    return len(zlib.compress(raw)) / len(raw) < COMPRESSION_FLOOR


def condition(text: str, tokens: Sequence[int]) -> str:
    """`empty`, `loop`, `degenerate` or `valid`; the first that applies."""
    if is_empty(text):
        return "empty"
    if is_loop(tokens):
        return "loop"
    if is_degenerate(text):
        return "degenerate"
    return "valid"


def reply_condition(reply: Reply) -> str:
    """The condition of a reply; of a thinking model's reply `thinking_loop` (the thought went in circles until its
    budget ended), `thinking_exhausted` (it did not come to an end), else that of the answer (requirements R-MOD-51)."""
    thought = reply.thought
    if thought is None:
        return condition(reply.text, reply.tokens)
    if thought.exhausted:
        return "thinking_loop" if is_loop(reply.tokens[: thought.length]) else "thinking_exhausted"
    return condition(reply.text, reply.tokens[thought.length :])
