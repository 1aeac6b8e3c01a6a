# SPDX-License-Identifier: Apache-2.0
"""What every decoding engine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from heretic.interventions.hooks import Rows


@dataclass(frozen=True, slots=True)
class Thought:
    """The thought of one reply. length: tokens up to and with the closing marker. exhausted: it did not close within
    its budget, so there is no answer."""

    length: int
    state: Literal["none", "open", "closed"]
    exhausted: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """tokens: new token ids without the end token. text: decoded, special tokens skipped. ended: the end token came.

    A row that left early (its verdict was decided) has only the tokens up to there and ended = False. In thinking mode
    `tokens` holds all of the reply, `text` the answer alone, and `thought` what came before it.
    """

    tokens: tuple[int, ...]
    text: str
    ended: bool
    thought: Thought | None = None


class Stopper(Protocol):
    """Says which rows need no further token because their verdict cannot change (algorithms 6.4)."""

    def __call__(self, rows: Sequence[int], texts: Sequence[str]) -> Sequence[bool]: ...


def settled(texts: Sequence[str]) -> list[str]:
    """Texts without the replacement characters of an unfinished UTF-8 tail: the next token may complete it."""
    return [text.rstrip("\ufffd") for text in texts]


class Decoding(Protocol):
    """One batch being decoded. Row numbers are those of the sequences given to `start`, whatever has left since."""

    def advance(self, limit: int) -> None:
        """Continue all remaining rows until each has ended, been decided, or has `limit` new tokens in total."""
        ...

    def leave(self, rows: Sequence[int]) -> None:
        """Take rows out: their trial cannot win any more."""
        ...

    def replies(self) -> list[Reply]:
        """One reply per row, in the order of the sequences."""
        ...


class Engine(Protocol):
    """Starts decodings. Only the argmax of the raw logits counts; token suppression of the model's own generation
    configuration is honoured, nothing else of it."""

    name: str

    def start(
        self, sequences: Sequence[Sequence[int]], *, stop: Stopper | None = None, rows: Rows | None = None
    ) -> Decoding:
        """Begin with prompt token ids; `rows` is the hook assignment to keep in step when rows leave."""
        ...
