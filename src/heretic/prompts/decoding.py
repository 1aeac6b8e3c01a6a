# SPDX-License-Identifier: Apache-2.0
"""Bytes to text, strictly: UTF-8 with or without byte-order mark, or an error with the byte offset (D03)."""

from __future__ import annotations

import codecs
import re

from heretic.exceptions import DatasetError

_FOREIGN_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_HINT = "Save the file as UTF-8 text, for example: iconv -f UTF-16 -t UTF-8 OLD > NEW."
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def decode_utf8(raw: bytes, label: str) -> str:
    """The text of `raw`, without byte-order mark and with Windows line ends turned into plain ones.

    Raises `DatasetError` naming `label` and the byte offset for another encoding, a NUL byte, an encoded
    surrogate or anything else that is not UTF-8.
    """
    for mark, encoding in _FOREIGN_MARKS:
        if raw.startswith(mark):
            raise DatasetError(f"{label} is {encoding}, not UTF-8 (mark at byte 0).", hint=_HINT)
    nul = raw.find(b"\0")
    if nul >= 0:
        raise DatasetError(f"{label} holds a NUL at byte {nul}; it is binary or not UTF-8.", hint=_HINT)
    skipped = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + skipped
        raise DatasetError(
            f"{label} is not UTF-8: byte {offset} (0x{raw[offset]:02x}): {error.reason}.", hint=_HINT
        ) from error
    return text.replace("\r\n", "\n")


def check_json_escapes(raw: bytes, label: str) -> None:
    r"""Raise `DatasetError` with the byte offset of the first `\u0000` or half of a surrogate pair in JSON
    text.

    `json.loads` accepts both and returns text that no tokenizer and no file can hold.
    """
    if b"\\u" not in raw:
        return
    high_end = -1
    high_start = -1
    # Latin-1 maps each byte to one character, so that a match position is a byte offset.
    for match in _ESCAPE.finditer(raw.decode("latin-1")):
        code = int(match[1], 16) if match[1] else -1
        is_low = 0xDC00 <= code <= 0xDFFF
        if high_end >= 0 and not (is_low and match.start() == high_end):
            break
        if code == 0 or (is_low and high_end < 0):
            problem = "NUL" if code == 0 else "lone surrogate"
            raise DatasetError(f"{label} holds a {problem} ({match[0]}) at byte {match.start()}.", hint=_HINT)
        is_high = 0xD800 <= code <= 0xDBFF
        high_end, high_start = (match.end(), match.start()) if is_high else (-1, -1)
    if high_end >= 0:
        raise DatasetError(f"{label} holds a lone surrogate at byte {high_start}.", hint=_HINT)
