# SPDX-License-Identifier: Apache-2.0
"""Leaving out what a reply quotes: those words are somebody else's."""

from __future__ import annotations

from typing import Final

QUOTATION_LIMIT: Final = 300
"""Characters after which a quotation mark without a partner is taken for a slip."""


def without_quotations(text: str, *, keep_opening: bool = False) -> str:
    """Normalised text with each passage in double quotation marks left out, the marks kept.

    keep_opening: a passage with which the text begins stays, for a whole reply may stand in quotation marks.
    A mark opens only where no letter or digit stands before it (5" is a length), and a passage ends after
    `QUOTATION_LIMIT` characters at the latest. What is kept depends on earlier characters alone, so the result for a
    prefix is a prefix of the result (algorithms 7.4).
    """
    if '"' not in text:
        return text
    kept: list[str] = []
    inside, before = 0, ""
    for character in text:
        shown = not inside
        if inside:
            inside -= 1
            if character == '"':
                inside, shown = 0, True
        elif character == '"' and not before.isalnum() and (before or not keep_opening):
            inside = QUOTATION_LIMIT
        if shown:
            kept.append(character)
        before = character
    return "".join(kept)
