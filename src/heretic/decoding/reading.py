# SPDX-License-Identifier: Apache-2.0
"""From token ids to replies: plain text, or with a thinking model only the answer (requirements R-MOD-51).

What is judged, early or late, is `Reply.text`. While a thought is open it is empty, so an undecided thought decides
nothing; after it, it only grows.
"""

from __future__ import annotations

from collections.abc import Sequence

from heretic.decoding.protocol import Reply, Thought
from heretic.model.thinking import Marker, Split, close_position, split_thought
from heretic.model.tokens import PromptEncoder


class Transcripts:
    """Texts of growing replies: only the last few tokens are decoded again, those that may still change how they read.

    The usual scheme of two offsets: what lies between them is decoded once alone and once with the new tokens, and the
    difference is appended, unless it ends within a character.
    """

    def __init__(self, encoder: PromptEncoder, rows: int) -> None:
        self._encoder = encoder
        self._texts = [""] * rows
        self._first = [0] * rows
        self._read = [0] * rows

    def read(self, rows: Sequence[int], replies: Sequence[Sequence[int]]) -> list[str]:
        """The text to be judged of these rows; `replies` are all their tokens so far."""
        if self._encoder.thinking:
            return read_texts(self._encoder, replies)
        before = [
            tokens[self._first[row] : self._read[row]] for row, tokens in zip(rows, replies, strict=True)
        ]
        whole = [tokens[self._first[row] :] for row, tokens in zip(rows, replies, strict=True)]
        decoded = _decoded(self._encoder, [*before, *whole], skip=True)
        texts: list[str] = []
        for number, (row, tokens) in enumerate(zip(rows, replies, strict=True)):
            new = decoded[len(before) + number][len(decoded[number]) :]
            texts.append(self._texts[row] + new)
            if not new.endswith("\ufffd"):
                self._texts[row] = texts[-1]
                self._first[row], self._read[row] = self._read[row], len(tokens)
        return texts


def read_texts(encoder: PromptEncoder, replies: Sequence[Sequence[int]]) -> list[str]:
    """The text to be judged of each reply so far."""
    if not encoder.thinking:
        return _decoded(encoder, replies, skip=True)
    return [text for text, _ in _read(encoder, replies)]


def read_replies(
    encoder: PromptEncoder, replies: Sequence[Sequence[int]], ended: Sequence[bool]
) -> list[Reply]:
    """Replies with their text and, of a thinking model, what is known about the thought."""
    if not encoder.thinking:
        texts: list[tuple[str, Thought | None]] = [(text, None) for text in read_texts(encoder, replies)]
    else:
        texts = [*_read(encoder, replies)]
    return [
        Reply(tokens=tuple(tokens), text=text, ended=end, thought=thought)
        for tokens, end, (text, thought) in zip(replies, ended, texts, strict=True)
    ]


def _decoded(encoder: PromptEncoder, replies: Sequence[Sequence[int]], *, skip: bool) -> list[str]:
    texts: list[str] = encoder.tokenizer.batch_decode(
        [list(tokens) for tokens in replies], skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )
    return texts


def _read(encoder: PromptEncoder, replies: Sequence[Sequence[int]]) -> list[tuple[str, Thought]]:
    opened = encoder.opened_thought
    wholes = _decoded(encoder, replies, skip=False)
    found: list[tuple[str, Thought]] = []
    for tokens, whole in zip(replies, wholes, strict=True):
        split = split_thought(whole, opened)
        length = _thought_length(encoder, tokens, split, opened)
        # A thought over its budget is exhausted, also where it closed later: the answer did not come in time.
        late = length > encoder.thinking_tokens or (
            split.state == "open" and length >= encoder.thinking_tokens
        )
        thought = Thought(length=length, state=split.state, exhausted=late)
        answer = "" if late or split.state == "open" else _answer(encoder, tokens, length, split)
        found.append((answer, thought))
    return found


def _thought_length(
    encoder: PromptEncoder, tokens: Sequence[int], split: Split, opened: Marker | None
) -> int:
    """Tokens up to the end of the closing marker; all of them while the thought is open."""
    if split.state != "closed" or split.marker is None:
        return len(tokens) if split.state == "open" else 0
    closing = encoder.tokenizer.convert_tokens_to_ids(split.marker.close)
    if isinstance(closing, int) and closing != encoder.tokenizer.unk_token_id and closing in tokens:
        return list(tokens).index(closing) + 1

    def closed(count: int) -> bool:
        text = _decoded(encoder, [tokens[:count]], skip=False)[0]
        return split_thought(text, opened).state == "closed"

    return close_position(len(tokens), closed)


def _answer(encoder: PromptEncoder, tokens: Sequence[int], length: int, split: Split) -> str:
    """The answer without special tokens, cut at its budget."""
    if encoder.answer_tokens is not None and len(tokens) - length > encoder.answer_tokens:
        kept = tokens[: length + encoder.answer_tokens]
        split = split_thought(_decoded(encoder, [kept], skip=False)[0], encoder.opened_thought)
    text = split.answer
    for word in encoder.tokenizer.all_special_tokens:
        text = text.replace(word, "")
    return text
