# SPDX-License-Identifier: Apache-2.0
"""Text of models, users and files on the page: never a tag, a script or a picture of theirs (reliability G04)."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Final

from heretic.apps.conversation import Message
from heretic.exceptions import HereticError
from heretic.sanitise import printable

FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
SPECIAL: Final = re.compile(r"[<>&]")
EMPTY: Final = "*(no text)*"
"""In place of a reply that ended at once."""
PICTURE: Final = re.compile(r"!(?=\[)")


def markdown_safe(text: str) -> str:
    """`text` as Markdown that shows what was written: emphasis, lists and code work, tags and pictures are text.

    Inside code the page's Markdown shows every character as it is; outside, what could begin a tag, an entity or a
    picture is written as an entity. The name of a fence's language is dropped: some languages would be drawn.
    """
    parts: list[str] = []
    fence: str | None = None
    for line in printable(text).split("\n"):
        found = FENCE.match(line)
        if fence is None and found:
            fence = found.group(1)
            parts.append(fence)
        elif fence is not None:
            closing = found is not None and found.group(1).startswith(fence) and not line.strip(" `~")
            parts.append(fence if closing else line)
            fence = None if closing else fence
        else:
            parts.append(_outside(line))
    if fence is not None:
        parts.append(fence)
    return "\n".join(parts)


def _outside(line: str) -> str:
    """A line outside of a fence; code between backticks is left alone, unless its end is on another line."""
    pieces = re.split(r"(`+)", line)
    result: list[str] = []
    place = 0
    while place < len(pieces):
        piece = pieces[place]
        closing = (
            pieces.index(piece, place + 1) if piece.startswith("`") and piece in pieces[place + 1 :] else 0
        )
        if closing:
            result += pieces[place : closing + 1]
            place = closing + 1
        else:
            result.append(_escaped(piece))
            place += 1
    return "".join(result)


def _escaped(text: str) -> str:
    return PICTURE.sub("&#33;", SPECIAL.sub(lambda found: f"&#{ord(found.group())};", text))


def bubbles(messages: Sequence[Message], growing: str | None = None) -> list[dict[str, str]]:
    """A conversation for the chat component: contents are strings and nothing else."""
    turns = [{"role": turn.role, "content": markdown_safe(turn.content) or EMPTY} for turn in messages]
    if growing is not None:
        turns.append({"role": "assistant", "content": markdown_safe(growing) or "..."})
    return turns


def problem(error: HereticError) -> str:
    """An error for the page: what happened, the findings, what to do."""
    details = "".join(f"<li>{escape(line)}</li>" for line in error.details[:8])
    remedy = f"<p>{escape(error.hint)}</p>" if error.hint else ""
    return (
        f'<div class="problem" role="alert"><strong>{escape(sentence(error.message))}</strong>'
        f"{f'<ul>{details}</ul>' if details else ''}{remedy}</div>"
    )


def notice(text: str) -> str:
    """A fact in passing."""
    return f'<p class="notice">{escape(text)}</p>' if text else ""


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""


def escape(text: object) -> str:
    """Any value as text between tags or in an attribute."""
    return html.escape(printable(str(text)), quote=True)


def facts(pairs: Mapping[str, object]) -> str:
    """Names with values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{rows}</dl>'


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str, marked: int = -1) -> str:
    """A table that scrolls in its own frame; `marked`: the row that is chosen."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f"<tr{' class=chosen aria-selected=true' if number == marked else ''}>"
        f"{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def read_tokens(pieces: Sequence[tuple[str, float | None]], low: float, high: float) -> str:
    """Text in which each piece is shaded by the reading of the direction where it was chosen, between low and high."""
    span = (high - low) or 1.0
    marks = []
    for text, reading in pieces:
        if reading is None:
            marks.append(escape(text))
            continue
        share = 100 * min(1.0, max(0.0, (reading - low) / span))
        marks.append(
            f'<span style="background:color-mix(in srgb, var(--color-accent) {0.6 * share:.0f}%, transparent)" '
            f'title="{reading:.2f}">{escape(text)}</span>'
        )
    return f'<p class="reading">{"".join(marks)}</p>'
