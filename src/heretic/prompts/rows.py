# SPDX-License-Identifier: Apache-2.0
"""One row to one text: strings as they are, chats by their first user turn (R-DAT-03, R-MOD-42)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heretic.exceptions import DatasetError
from heretic.prompts.specification import DatasetSpecification, Prompt
from heretic.prompts.tables import Row

_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_USER_ROLES = ("user", "human", "prompter")


def prompts_of_rows(rows: Sequence[Row], spec: DatasetSpecification, source: str) -> tuple[list[Prompt], int]:
    """(the prompts of all rows with text, the number of blank rows).

    Prefix and suffix are added to the text; a row is blank by its own text. Raises `DatasetError` naming the
    source and the row for a value that is neither a string nor a chat.
    """
    prompts = []
    blank = 0
    for row in rows:
        text = row_text(row, spec.column, source)
        if not text.strip():
            blank += 1
            continue
        category = None if spec.category is None else _category(row, spec.category, source)
        whole = f"{spec.prefix or ''}{text}{spec.suffix or ''}"
        prompts.append(Prompt(whole, category, spec.system_prompt))
    return prompts, blank


def row_text(row: Row, column: str, source: str) -> str:
    """The text of `column`; raises `DatasetError` naming the row when there is none."""
    place = f"{source}, {row.where}"
    if column not in row.values:
        raise DatasetError(
            f"{place}: no column {column!r}; the row has {', '.join(row.values) or 'no columns'}."
        )
    value = row.values[column]
    text = value if isinstance(value, str) else _first_user_turn(value, column, place)
    return _encodable(text, place)


def _encodable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{place}: half of a surrogate pair at character {error.start}; the text is damaged.",
            hint="Write the row again as proper UTF-8.",
        ) from error
    return text


def _first_user_turn(value: object, column: str, place: str) -> str:
    turns = _turns(value)
    if turns is None:
        raise DatasetError(
            f"{place}: column {column!r} holds a {type(value).__name__}, not text.",
            hint="Name a column of strings, or of chats (lists of turns with role and content).",
        )
    for turn in turns:
        role = next((turn[key] for key in _ROLE_KEYS if key in turn), None)
        if isinstance(role, str) and role.lower() in _USER_ROLES:
            content = next((turn[key] for key in _CONTENT_KEYS if key in turn), None)
            return _flat_content(content, place)
    raise DatasetError(f"{place}: the chat in column {column!r} has no user turn.")


def _turns(value: object) -> list[Mapping[str, object]] | None:
    """The turns of a chat: a list of objects, or (older Arrow files) an object of equally long lists."""
    if isinstance(value, Mapping):
        lists = {name: items for name, items in value.items() if isinstance(items, (list, tuple))}
        if len(lists) != len(value) or len({len(items) for items in lists.values()}) != 1:
            return None
        return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    if isinstance(value, (list, tuple)) and value and all(isinstance(turn, Mapping) for turn in value):
        return list(value)
    return None


def _flat_content(content: object, place: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise DatasetError(f"{place}: the content of a user turn is a {type(content).__name__}, not text.")
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, Mapping) else block
        if isinstance(text, str):
            texts.append(text)
        elif not isinstance(block, Mapping):
            raise DatasetError(f"{place}: a content block is a {type(block).__name__}, not text.")
    return "\n".join(texts)


def _category(row: Row, column: str, source: str) -> str | None:
    value = row.values.get(column)
    if value is None:
        return None
    if isinstance(value, (str, bool, int)):
        return _encodable(str(value), f"{source}, {row.where}")
    raise DatasetError(
        f"{source}, {row.where}: category column {column!r} holds a {type(value).__name__}, not a name."
    )
