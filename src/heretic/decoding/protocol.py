# SPDX-License-Identifier: Apache-2.0
"""What every decoding engine does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from heretic.interventions.hooks import Rows

if TYPE_CHECKING:
    from heretic.decoding.passes import Passed
    from heretic.decoding.prompts import Prompts


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

    def prepare(
        self, sequences: Sequence[Sequence[int]], *, keep: int = 1, reply: int = 0, reuse: bool = False
    ) -> Prompts:
        """Prompts that are used again and again. keep: positions at their end whose logits are asked for. reply: the
        most tokens that will be decoded after them; 0 = none. reuse: keep what the lower blocks make of them."""
        ...

    def start(
        self,
        prompts: Prompts | Sequence[Sequence[int]],
        *,
        stop: Stopper | None = None,
        rows: Rows | None = None,
    ) -> Decoding:
        """Begin with prepared prompts or token ids. Row r is prompt r % len(prompts); `rows` says which trial it
        belongs to and is kept in step when rows come and go; None = one row per prompt, of the base."""
        ...

    def logits(self, prompts: Prompts, *, rows: Rows | None = None) -> Iterator[Passed]:
        """Raw logits in float32 of the last `keep` positions of every row, pass by pass (algorithms 7.1)."""
        ...
