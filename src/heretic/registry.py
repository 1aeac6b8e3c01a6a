# SPDX-License-Identifier: Apache-2.0
"""Named collections of implementations: strategies, scorers, samplers.

A registry lists its names in order of registration, so that a contract suite can run over every entry and a test can
fail on one that no suite knows (architecture rule 12).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from heretic.exceptions import ConfigurationError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to an implementation of one interface; `kind` is the word used in messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores the decorated object under `name`; a second entry of one name is a mistake of ours."""

        def store(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name} registered twice"
            self._entries[name] = entry
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; raises `ConfigurationError` naming the nearest one."""
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(self._entries)}."
            raise ConfigurationError(f"There is no {self.kind} called {name!r}.", hint=hint)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
