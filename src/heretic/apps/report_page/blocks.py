# SPDX-License-Identifier: Apache-2.0
"""What a page is made of: sections of blocks, all plain values. How they look is the templates' business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class Text:
    """Sentences. tone: `bad` and `warning` are marked by a word as well as by a colour."""

    kind: ClassVar[str] = "text"
    lines: Sequence[str]
    tone: Literal["plain", "quiet", "warning", "bad"] = "plain"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with values. code: the values are shown as typed."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first cell heads its row. figures: indexes of columns of numbers. strong: indexes of
    rows that stand out. folded: hidden behind its caption until it is opened, which needs no script."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[int] = ()
    strong: Sequence[int] = ()
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing. reading: what it shows, for somebody who was not there. method: how the figures were obtained. alt:
    what is in the picture, for somebody who cannot see it."""

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    alt: str
    reading: Sequence[str]
    method: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A prompt with the reply of the unedited model and that of the edited one."""

    prompt: str
    base: str
    edited: str


@dataclass(frozen=True, slots=True)
class Replies:
    """Replies side by side."""

    kind: ClassVar[str] = "replies"
    entries: Sequence[Reply]


@dataclass(frozen=True, slots=True)
class Commands:
    """Command lines with what each does."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[tuple[str, str]]


Block = Text | Facts | Table | Figure | Replies | Commands


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. key: the anchor. missing: why there is nothing to show, in one sentence."""

    key: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str = ""
