# SPDX-License-Identifier: Apache-2.0
"""A reply that holds code: what is code, what is prose, what is comment, and does the code parse (section 11).

Code is what stands in fences of backquotes or tildes. A reply without a fence is code as a whole if it parses as Python
and holds a statement that prose does not parse as; else it is prose as a whole.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PYTHON: Final = "python"
_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})\s*(?P<language>[\w+#-]*)")
_ALIASES: Final = {"py": PYTHON, "python3": PYTHON, "js": "javascript", "sh": "bash", "shell": "bash"}
_COMMENT_MARKS: Final = {
    **dict.fromkeys((PYTHON, "bash", "powershell"), ("#",)),
    **dict.fromkeys(("javascript", "c", "c++", "java", "go", "rust", "php"), ("//", "/*", "*/", "* ")),
    "sql": ("--", "/*"),
}
_STATEMENTS = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign,
    ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Return, ast.Call,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of code. language: as the fence says, else empty. closed: the fence ended, or there was none."""

    language: str
    lines: tuple[str, ...]
    closed: bool = True

    @property
    def text(self) -> str:
        """The code."""
        return "\n".join(self.lines)

    @property
    def filled(self) -> int:
        """Lines that are not blank."""
        return sum(bool(line.strip()) for line in self.lines)


@dataclass(frozen=True, slots=True)
class Parts:
    """A reply taken apart. prose: lines outside code that are not blank; lines of fences belong to neither."""

    blocks: tuple[Block, ...]
    prose: tuple[str, ...]

    @property
    def code_lines(self) -> int:
        """Lines of code that are not blank."""
        return sum(block.filled for block in self.blocks)


def take_apart(reply: str) -> Parts:
    """Code and prose of a reply."""
    lines = reply.splitlines()
    if not any(_FENCE.match(line) for line in lines):
        if _is_bare_python(reply):
            return Parts((Block(PYTHON, tuple(lines)),), ())
        return Parts((), tuple(line for line in lines if line.strip()))
    blocks, prose = [], []
    rest = iter(lines)
    for line in rest:
        opening = _FENCE.match(line)
        if opening is not None:
            blocks.append(_block(opening, rest))
        elif line.strip():
            prose.append(line)
    return Parts(tuple(block for block in blocks if block.filled), tuple(prose))


def _block(opening: re.Match[str], rest: Iterator[str]) -> Block:
    language = opening["language"].lower()
    language = _ALIASES.get(language, language)
    kept: list[str] = []
    for line in rest:
        closing = line.strip()
        if len(closing) >= len(opening["mark"]) and set(closing) == {opening["mark"][0]}:
            return Block(language, tuple(kept))
        kept.append(line)
    return Block(language, tuple(kept), closed=False)


def _tree(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubtful escapes in a model's code are no concern of ours
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_bare_python(text: str) -> bool:
    tree = _tree(text)
    return tree is not None and any(isinstance(node, _STATEMENTS) for node in ast.walk(tree))


def parses(parts: Parts, language: str) -> bool | None:
    """Whether the code of a reply is whole: Python by its grammar, other languages by a closed fence that holds a line.

    False for a reply without code. None where the reply was cut inside a fence that parses no more: then length decides
    and not the model. language: the one asked for; blocks that name another one do not count, if any names it.
    """
    named = [block for block in parts.blocks if block.language == language]
    blocks = named or list(parts.blocks)
    if not blocks:
        return False
    if language == PYTHON:
        good = all(_tree(block.text) is not None for block in blocks)
    else:
        good = all(block.closed for block in blocks)
    return True if good else None if not blocks[-1].closed else False


def prose_lines(parts: Parts) -> tuple[int, int]:
    """(lines of prose, lines of prose and code), blank ones left out."""
    prose = len(parts.prose)
    return prose, prose + parts.code_lines


def comment_lines(parts: Parts, language: str) -> tuple[int, int]:
    """(lines of comment, lines of code), blank ones left out. Docstrings are comments."""
    comments = sum(_comments(block, block.language or language) for block in parts.blocks)
    return comments, parts.code_lines


def _comments(block: Block, language: str) -> int:
    marks = _COMMENT_MARKS.get(language, ("#", "//"))
    numbers = {number for number, line in enumerate(block.lines, 1) if line.strip().startswith(marks)}
    if language == PYTHON:
        numbers |= _docstring_lines(block)
    return len(numbers)


def _docstring_lines(block: Block) -> set[int]:
    tree = _tree(block.text)
    found: set[int] = set()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(
            node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) and _documented(node.body):
            first = node.body[0]
            found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return {number for number in found if block.lines[number - 1].strip()}


def _documented(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
