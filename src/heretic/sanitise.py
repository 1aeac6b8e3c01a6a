# SPDX-License-Identifier: Apache-2.0
"""Text that is safe to show and safe to store: no control characters, no credentials (reliability D10,
R12).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

# C0 without tab and newline, DEL, C1, and the bidirectional controls that can reorder a line on screen.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# A whole escape sequence goes, not only its first byte: "ESC ] 52 ; c ; text BEL" sets the clipboard of a
# terminal.
_ESCAPE: Final = re.compile(
    "(?:\x1b[\\]P^_X][^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?|\x1b\\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\\\-_])"
)

SECRET_VARIABLES: Final = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN",
    "VAST_API_KEY",
)
"""Environment variables whose values never appear in anything that is shown or written."""

_TOKEN_PATTERN: Final = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
_URL_PASSWORD: Final = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+@")
REDACTED: Final = "[redacted]"
_SHORTEST_SECRET: Final = 8


def printable(text: str) -> str:
    """`text` without escape sequences and control characters; tabs and newlines stay, CR LF becomes LF."""
    return _CONTROL.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n")))


def single_line(text: str, limit: int = 0) -> str:
    """`printable` text on one line; more than `limit` characters (0 = no limit) end in three dots."""
    line = " ".join(printable(text).split())
    return line if not limit or len(line) <= limit else line[: max(0, limit - 3)].rstrip() + "..."


def redact(text: str, *, environ: Mapping[str, str] | None = None) -> str:
    """`text` with the values of secret variables, Hub tokens and passwords in URLs replaced by a fixed
    word.
    """
    source = os.environ if environ is None else environ
    for name in SECRET_VARIABLES:
        value = source.get(name, "")
        # A very short value would blank out ordinary words.
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, REDACTED)
    text = _TOKEN_PATTERN.sub(REDACTED, text)
    return _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
