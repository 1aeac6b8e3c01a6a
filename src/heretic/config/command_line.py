# SPDX-License-Identifier: Apache-2.0
"""The command line as a layer: flags read against the schema (R-CLI-21, R-CLI-22).

The schema decides whether a flag takes a value, so that `--auto-select true MODEL` and `--auto-select MODEL`
both name the model: a word after a switch is its value only if it is a word for true or false.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from heretic.config import schema
from heretic.config.layers import RETIRED, Finding, Layer, near_name, unknown_text
from heretic.config.schema import KeyPath
from heretic.config.tables import SearchSpace

_NUMBER = re.compile(r"-\.?\d.*")
_SWITCH_WORDS: Final = (*schema.BOOLEAN_WORDS,)


def flag_of(path: KeyPath) -> str:
    """`--bad-prompts.split`."""
    return "--" + schema.dotted(path).replace("_", "-")


def path_of(name: str) -> KeyPath:
    """Path of a flag's name without its dashes; a component name of the search space keeps its dots."""
    parts = tuple(part for part in name.replace("-", "_").split("."))
    parts = (schema.ALIASES.get(parts[0], parts[0]), *parts[1:])
    if parts[0] == "search_space" and len(parts) > 2:
        return (parts[0], ".".join(parts[1:-1]), parts[-1])
    if parts[0] == "max_memory" and len(parts) > 1:
        return (parts[0], name.split(".", 1)[1])
    return parts


class _Reader:
    """Walks over the tokens once; `values` holds the text of each flag until all repetitions are known."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self.layer = Layer("command line")
        self.values: dict[KeyPath, list[str]] = {}
        self.models: list[str] = []

    def read(self) -> Layer:
        while self.tokens:
            token = self.tokens.pop(0)
            if token == "--":
                self.models += self.tokens
                break
            if token.startswith("--"):
                self._flag(*token[2:].partition("="))
            elif token.startswith("-") and len(token) > 1:
                self.layer.findings.append(Finding("unknown", f"command line: there is no flag {token!r}"))
            else:
                self.models.append(token)
        for path, texts in self.values.items():
            self._store(path, texts)
        self._store_models()
        return self.layer

    def _flag(self, name: str, equals: str, text: str) -> None:
        path = path_of(name)
        annotation = schema.annotation_of(path)
        if annotation is None and path[0].startswith("no_") and not equals:
            positive = (path[0][3:], *path[1:])
            if schema.is_boolean(schema.annotation_of(positive)):
                self._remember(positive, "false")
                return
        if annotation is None:
            self._unknown(name, path, equals, text)
        elif equals:
            self._remember(path, text)
        elif schema.is_boolean(annotation):
            self._remember(path, self._switch_word(annotation) or "true")
        elif not self.tokens or not _is_value(self.tokens[0]):
            wanted = schema.type_text(annotation)
            self.layer.findings.append(Finding("value", f"--{name}: needs a value ({wanted})"))
        else:
            self._remember(path, self.tokens.pop(0))

    def _switch_word(self, annotation: object) -> str | None:
        words = _SWITCH_WORDS + (schema.NULL_WORDS if schema.is_optional(annotation) else ())
        return self.tokens.pop(0) if self.tokens and self.tokens[0].lower() in words else None

    def _unknown(self, name: str, path: KeyPath, equals: str, text: str) -> None:
        """A flag that names nothing: its nearest name tells whether the next word belonged to it."""
        retired = path[0] in RETIRED or (path[0].startswith("no_") and path[0][3:] in RETIRED)
        near = near_name(path)
        meant = schema.annotation_of(tuple(near.split("."))) if near else None
        if not equals and (retired or schema.is_boolean(meant)):
            self._switch_word(bool)
        elif not equals and self.tokens and _is_value(self.tokens[0]):
            self.tokens.pop(0)
        if retired:
            self.layer.add((path[0].removeprefix("no_"),), text, f"--{name}")
            return
        self.layer.findings.append(Finding("unknown", _unknown_line(path, f"--{name}")))

    def _remember(self, path: KeyPath, text: str) -> None:
        self.values.setdefault(path, []).append(text)

    def _store(self, path: KeyPath, texts: list[str]) -> None:
        annotation = schema.annotation_of(path)
        flag = flag_of(path)
        if not schema.is_list(annotation) or len(texts) == 1:
            if len(set(texts)) > 1:
                said = ", ".join(texts)
                self.layer.findings.append(
                    Finding("value", f"{flag}: given more than once ({said}); state it once")
                )
            elif _is_single_range(path, texts[0]):
                self.layer.findings.append(Finding("unknown", _unknown_line(path, flag)))
            else:
                self.layer.add_text(path, texts[0], flag)
            return
        joined: list[object] = []
        for text in texts:
            value = schema.parse_text(text, annotation)
            joined += value if isinstance(value, list) else [value]
        self.layer.add(path, joined, flag)

    def _store_models(self) -> None:
        named = self.layer.entries.get(("model",))
        given = list(dict.fromkeys([*self.models, *([str(named.value)] if named else [])]))
        if len(given) == 1:
            if named is None:
                self.layer.add(("model",), given[0], "command line")
        elif len(given) > 1 and not any(item.kind == "unknown" for item in self.layer.findings):
            said = ", ".join(given)
            self.layer.findings.append(Finding("value", f"command line: more than one model: {said}"))


def _unknown_line(path: KeyPath, flag: str) -> str:
    """Like `unknown_text`, with the nearest name in the form of a flag."""
    line = unknown_text(path, "command line", flag).replace("there is no setting", "there is no flag")
    near = near_name(path)
    return (
        line.replace(f"did you mean {near}?", f"did you mean {flag_of(tuple(near.split('.')))}?")
        if near
        else line
    )


def _is_value(token: str) -> bool:
    return not token.startswith("-") or token == "-" or _NUMBER.fullmatch(token) is not None


def _is_single_range(path: KeyPath, text: str) -> bool:
    """`--search-space.max-wieght 1`: no component of that name takes a single value."""
    foreign = len(path) == 2 and path[0] == "search_space" and path[1] not in SearchSpace.model_fields
    return foreign and not text.lstrip().startswith("{")


def command_line_layer(tokens: Sequence[str]) -> Layer:
    """The layer of the tokens that belong to settings; a bare word is the model, wherever it stands."""
    return _Reader(tokens).read()
