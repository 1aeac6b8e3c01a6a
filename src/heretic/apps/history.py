# SPDX-License-Identifier: Apache-2.0
"""Saved chats: versioned JSON in one folder, read as if a stranger had written it (R-FMT-07, R-UI-07, reliability G03).

A chat is named by the name of its file as `entries` lists it; nothing else is ever opened, written over or deleted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from heretic.apps.conversation import Message, now
from heretic.exceptions import FileOperationError
from heretic.publish import translate_os_error, write_file
from heretic.sanitise import single_line

LOGGER: Final = logging.getLogger("heretic_chat")
VERSION: Final = 1
NAME: Final = re.compile(r"chat_\d{8}_\d{6}(_\d{1,4})?\.json", re.ASCII)
FILE_LIMIT: Final = 16_000_000
"""Bytes of a file that is read at all."""
CONTENT_LIMIT: Final = 1_000_000
"""Bytes of one message (reliability G03)."""
MESSAGES_LIMIT: Final = 10_000
TEXT_LIMIT: Final = 100_000
LISTED: Final = 200
"""The newest chats that are listed."""
FIELDS: Final = frozenset({"version", "created", "model", "trial", "system_prompt", "parameters", "messages"})
OLDER_FIELDS: Final = frozenset({"timestamp", "history"})
PARAMETERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0.0, 2.0),
    "max_tokens": (1, 4096),
    "top_p": (0.01, 1.0),
}


@dataclass(frozen=True, slots=True)
class SavedChat:
    """The content of a file. trial: STUDY:N or None; parameters: those of `PARAMETERS` that were stored."""

    messages: tuple[Message, ...]
    created: str = ""
    model: str = ""
    trial: str | None = None
    system_prompt: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """One line of the list. name: of the file; problem: why it cannot be loaded, None when it can."""

    name: str
    label: str
    problem: str | None = None


class ChatHistory:
    """The folder of saved chats; it is made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> tuple[SavedEntry, ...]:
        """The newest chats first. A damaged file is listed with its problem."""
        return tuple(self._entry(name) for name in self._names()[:LISTED])

    def save(self, chat: SavedChat, name: str | None = None) -> str:
        """Write a chat and return its name. name: of a listed chat to be replaced.

        Raises `FileOperationError`, `DiskSpaceError`; the old file is whole until the new one is.
        """
        if not chat.messages:
            raise FileOperationError("there is nothing to save yet", hint="Write a message first.")
        target = name if name is not None and name in self._names() else self._free_name()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise translate_os_error(error, self.folder) from error
        write_file(self.folder / target, _written(chat), private=True)
        LOGGER.info("a chat of %d messages was saved as %s", len(chat.messages), target)
        return target

    def load(self, name: str) -> SavedChat:
        """The chat of a listed file; raises `FileOperationError` saying what is wrong with it."""
        self._require_listed(name)
        return parsed(_bytes_of(self.folder / name), name)

    def delete(self, name: str) -> None:
        """Delete a listed file for good; the caller has asked. Raises `FileOperationError`."""
        self._require_listed(name)
        try:
            (self.folder / name).unlink()
        except OSError as error:
            raise translate_os_error(error, self.folder / name) from error
        LOGGER.info("the chat %s was deleted", name)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.folder) as found:
                names = [
                    entry.name
                    for entry in found
                    if NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise translate_os_error(error, self.folder) from error
        return sorted(names, reverse=True)

    def _require_listed(self, name: object) -> None:
        if not isinstance(name, str) or name not in self._names():
            raise FileOperationError(
                f"there is no saved chat {single_line(str(name), 80)!r}",
                hint="Refresh the list and choose one.",
            )

    def _entry(self, name: str) -> SavedEntry:
        try:
            chat = parsed(_bytes_of(self.folder / name), name)
        except FileOperationError as error:
            return SavedEntry(name, f"{name}: damaged", error.message)
        when = f"{name[5:9]}-{name[9:11]}-{name[11:13]} {name[14:16]}:{name[16:18]}"
        first = single_line(chat.messages[0].content, 50) if chat.messages else "empty"
        return SavedEntry(name, f"{when}  {single_line(chat.model, 40)}  {first}".strip())

    def _free_name(self) -> str:
        taken = set(self._names())
        base = f"chat_{datetime.now(UTC):%Y%m%d_%H%M%S}"
        names = (f"{base}.json", *(f"{base}_{number}.json" for number in range(2, 10_000)))
        return next(name for name in names if name not in taken and not os.path.lexists(self.folder / name))


def _written(chat: SavedChat) -> bytes:
    document: dict[str, Any] = {"version": VERSION, "created": chat.created or now(), "model": chat.model}
    if chat.trial is not None:
        document["trial"] = chat.trial
    document["system_prompt"] = chat.system_prompt
    document["parameters"] = dict(chat.parameters)
    document["messages"] = [
        {"role": turn.role, "content": turn.content, "time": turn.time} for turn in chat.messages
    ]
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def _bytes_of(path: Path) -> bytes:
    """The content of a regular file of bounded size that is no link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path.name, "is no ordinary file")
            data = stream.read(FILE_LIMIT + 1)
    except OSError as error:
        raise translate_os_error(error, path) from error
    if len(data) > FILE_LIMIT:
        raise _damaged(path.name, f"has more than {FILE_LIMIT:,} bytes")
    return data


def parsed(data: bytes, name: str) -> SavedChat:
    """The chat in a file's bytes, in the present form or in the older one; raises `FileOperationError`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, f"is not valid JSON ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise _damaged(name, "holds no JSON object")
    if "version" not in document and set(document) <= OLDER_FIELDS and "history" in document:
        return _older(document, name)
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise _damaged(name, f"has the version {_shown(document.get('version'))}; known is {VERSION}")
    unknown = sorted(set(document) - FIELDS)
    if unknown:
        raise _damaged(name, f"has the unknown field {_shown(unknown[0])}")
    trial = document.get("trial")
    return SavedChat(
        messages=_messages(document.get("messages"), name),
        created=_text(document.get("created", ""), "created", name),
        model=_text(document.get("model", ""), "model", name),
        trial=None if trial is None else _text(trial, "trial", name),
        system_prompt=_text(document.get("system_prompt", ""), "system_prompt", name),
        parameters=_parameters(document.get("parameters", {}), name),
    )


def _older(document: Mapping[str, object], name: str) -> SavedChat:
    """`{timestamp, history}`; a system turn at its start is the system prompt."""
    history = document["history"]
    system = ""
    first = history[0] if isinstance(history, list) and history else None
    if isinstance(history, list) and isinstance(first, dict) and first.get("role") == "system":
        system = _text(first.get("content"), "system prompt", name)
        history = history[1:]
    created = document.get("timestamp", "")
    return SavedChat(
        messages=_messages(history, name), created=_text(created, "timestamp", name), system_prompt=system
    )


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _damaged(name, "has no list of messages")
    if len(value) > MESSAGES_LIMIT:
        raise _damaged(name, f"has {len(value):,} messages, more than {MESSAGES_LIMIT:,}")
    return tuple(_message(entry, number, name) for number, entry in enumerate(value, 1))


def _message(value: object, number: int, name: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= set(value) <= {"role", "content", "time"}:
        raise _damaged(name, f"message {number} is not made of role, content and time")
    role = value["role"]
    if role not in ("user", "assistant"):
        raise _damaged(name, f"message {number} has the role {_shown(role)}")
    content = _text(value["content"], f"the content of message {number}", name, CONTENT_LIMIT)
    return Message(role, content, _text(value.get("time", ""), "time", name))


def _text(value: object, what: str, name: str, limit: int = TEXT_LIMIT) -> str:
    """A string that can be shown and sent; anything else, such as a reference to a file, is refused."""
    if not isinstance(value, str):
        raise _damaged(name, f"{what} is no text but {_shown(value)}")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise _damaged(name, f"{what} holds half of a character") from error
    if size > limit:
        raise _damaged(name, f"{what} has {size:,} bytes, more than {limit:,}")
    return value


def _parameters(value: object, name: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _damaged(name, "has no table of parameters")
    found: dict[str, float] = {}
    for key, number in value.items():
        if key not in PARAMETERS:
            raise _damaged(name, f"has the unknown parameter {_shown(key)}")
        low, high = PARAMETERS[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
            raise _damaged(name, f"{key} is {_shown(number)}, not {low:g} to {high:g}")
        assert math.isfinite(number)
        found[key] = number
    return found


def _shown(value: object) -> str:
    """A value of a stranger in a sentence."""
    return (
        single_line(json.dumps(value)[:200], 60)
        if isinstance(value, str | int | float)
        else type(value).__name__
    )


def _damaged(name: str, problem: str) -> FileOperationError:
    return FileOperationError(f"the saved chat {name} {problem}", hint="Delete it, or repair it by hand.")


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as plain text, for copying."""
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in messages)
