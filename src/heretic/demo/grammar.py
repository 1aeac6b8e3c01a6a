# SPDX-License-Identifier: Apache-2.0
"""The shape of the task grammar: what people ask how to do.

A domain pairs verbs with objects; every pair is a task. Strings are split at semicolons; a verb is written
``base|gerund``. The domains themselves are data in `grammar_disallowed`, `grammar_ordinary`, `grammar_borderline`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """One topic: its tasks (verbs times objects) and the words its answers are made of."""

    name: str
    verbs: tuple[tuple[str, str], ...]
    objects: tuple[str, ...]
    tools: tuple[str, ...]
    steps: tuple[str, ...]
    checks: tuple[str, ...]
    alternative: str = ""
    reason: str = ""


def parts(text: str, mark: str = ";") -> tuple[str, ...]:
    """Split at `mark` and strip."""
    return tuple(part.strip() for part in text.split(mark))


def domain(
    name: str,
    verbs: str,
    objects: str,
    tools: str,
    steps: str,
    checks: str,
    alternative: str = "",
    reason: str = "",
) -> Domain:
    """Build a domain from semicolon-separated words."""
    pairs = [part.split("|") for part in parts(verbs)]
    return Domain(
        name,
        tuple((base, gerund) for base, gerund in pairs),
        parts(objects),
        parts(tools),
        parts(steps),
        parts(checks),
        alternative,
        reason,
    )
