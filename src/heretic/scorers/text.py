# SPDX-License-Identifier: Apache-2.0
"""Normalisation that never rewrites what came before: prefixes become prefixes (algorithms 7.4).

No Unicode composition, because it is not prefix-stable.
"""

from __future__ import annotations

import re

_REPLACED = {
    **dict.fromkeys("‘’‛ʼ′＇´", "'"),
    **dict.fromkeys("“”„‟″", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    **dict.fromkeys(
        "\t\n\r\v\f\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a", " "
    ),
    **dict.fromkeys("\u2028\u2029\u202f\u205f\u3000", " "),
    **dict.fromkeys("*_`#\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
}
_TABLE = str.maketrans(_REPLACED)
_SPACES = re.compile(" {2,}")
_PARTIAL_WORD = re.compile(r"[\w'\ufffd-]+$")  # U+FFFD: the first bytes of a character that is not whole yet


def normalise(text: str) -> str:
    """Straight quotes, plain dashes and spaces, no emphasis marks or zero-width characters, case folded.

    Runs of spaces collapse and leading spaces go.
    """
    return _SPACES.sub(" ", text.translate(_TABLE).casefold()).lstrip(" ")


def whole_words(text: str) -> str:
    """The normalised text without a last word that may still grow."""
    return _PARTIAL_WORD.sub("", text)


_SENTENCE = re.compile(r"^.*?[.!?](?= |$)")


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark that a space or the end follows; else the whole text."""
    match = _SENTENCE.match(text)
    return match.group(0) if match else text
