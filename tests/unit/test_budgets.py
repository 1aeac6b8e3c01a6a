# SPDX-License-Identifier: Apache-2.0
"""Sizes, layout and words that keep the code readable (architecture rules 5, 8 and 14, R-LOG-02, R-DOC-05)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "src" / "heretic"

FILE_LINES: Final = 400
FUNCTION_LINES: Final = 60
MEDIAN_FILE_LINES: Final = 160
LINE_LENGTH: Final = 120

# Tables that happen to be Python; the words in them are data.
DATA_FILES: Final = frozenset({f"src/heretic/demo/grammar_{part}.py" for part in ("words", "phrases")})
# Quotation marks and dashes that replies are normalised from.
TYPOGRAPHY: Final = frozenset({"src/heretic/scorers/text.py", "src/heretic/scorers/markers.py"})
GENERATED: Final = frozenset(
    {"docs/settings.md", "docs/cli.md", "docs/architectures.md", "docs/performance.md"}
)

# Written apart, so that this file does not contain what it forbids.
PROCESS_WORDS: Final = tuple(
    first + rest
    for first, rest in (
        ("sub", "agent"), ("coding ", "agent"), ("agent ", "session"), ("helper ", "session"), ("clau", "de"),
        ("anthro", "pic"), ("co", "pilot"),
    )
)  # fmt: skip
# Folders of somebody's machine; the people of the examples (alice, anna) may have one.
MACHINE: Final = re.compile(
    r"(?<![\w.~])(?:/ho"
    r"me/(?!alice|anna)[a-z]|/ro"
    r"ot/|/wo"
    r"rk/|/opt/wh"
    r"eels|/Us"
    r"ers/(?!alice|anna)[a-z])"
)
REGISTRY: Final = re.compile(
    r"https?://[^\s\"'<>)]*(?:/simple\b|pypi|artifact|nexus|devpi|mirror|download\.pytorch)|files\.python"
    r"hosted|index-"
    r"url\s*=|find-"
    r"links\s*=\s*[\[\"']"
)
TEXT_SUFFIXES: Final = frozenset(
    {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jsonl", ".jinja", ".typed", ""}
)
PLACES: Final = ("src", "tests", "scripts", "benchmarks", "docs", ".ci")
TOP_FILES: Final = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", ".pre-commit-config.yaml",
    ".gitignore", ".env.example",
)  # fmt: skip


@cache
def text_of(path: Path) -> str:
    """The text of a file, read once in a session."""
    return path.read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    """The path inside the checkout, with slashes."""
    return path.relative_to(ROOT).as_posix()


def python_files(*places: str) -> list[Path]:
    """Every module below these folders of the checkout."""
    return sorted(path for place in places for path in (ROOT / place).rglob("*.py"))


def all_texts() -> Iterator[Path]:
    """Every text file that a reader of the checkout sees; binary files and data sets are left out."""
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*")):
            hidden = any(part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts)
            if (
                path.is_file()
                and path.suffix in TEXT_SUFFIXES
                and not hidden
                and "__pycache__" not in path.parts
            ):
                yield path
    yield from (ROOT / name for name in TOP_FILES if (ROOT / name).exists())


SOURCES: Final = python_files("src", "scripts", "benchmarks")
EVERY_MODULE: Final = python_files("src", "scripts", "benchmarks", "tests")


def functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines from the first to the last of its own) of every function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    """Rule 8: a file at most 400 lines, a function at most 60."""
    if name_of(path) not in DATA_FILES:
        assert len(text_of(path).splitlines()) <= FILE_LINES
    long = {name: lines for name, lines in functions(text_of(path)) if lines > FUNCTION_LINES}
    assert not long


def test_the_median_file_is_short() -> None:
    sizes = [len(text_of(path).splitlines()) for path in PACKAGE.rglob("*.py")]
    assert median(sizes) <= MEDIAN_FILE_LINES


def test_a_long_function_would_be_seen() -> None:
    """Control: 61 lines are one too many."""
    body = "\n".join(f"    x{index} = {index}" for index in range(FUNCTION_LINES))
    assert dict(functions(f"def long():\n{body}\n")) == {"long": FUNCTION_LINES + 1}


@pytest.mark.parametrize("path", EVERY_MODULE, ids=name_of)
def test_each_file_states_its_licence(path: Path) -> None:
    assert text_of(path).startswith("# SPDX-License-Identifier: Apache-2.0\n")


@pytest.mark.parametrize("path", [path for path in SOURCES if name_of(path) not in TYPOGRAPHY], ids=name_of)
def test_what_users_read_is_ascii(path: Path) -> None:
    """R-LOG-02. Other characters are data, and stand as escapes or in the files that list them."""
    assert text_of(path).isascii()


def wide_nets(tree: ast.AST) -> Iterator[int]:
    """Lines of `suppress(Exception)`, which is `except Exception: pass` in another dress."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == "suppress"
        ):
            names = {argument.id for argument in node.args if isinstance(argument, ast.Name)}
            if names & {"Exception", "BaseException"}:
                yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_error_is_swallowed(path: Path) -> None:
    """Rule 5."""
    assert not list(wide_nets(ast.parse(text_of(path))))


def test_a_swallowed_error_would_be_seen() -> None:
    """Control of the test above."""
    assert list(wide_nets(ast.parse("with contextlib.suppress(OSError, Exception):\n    pass"))) == [1]


def unpickling(tree: ast.AST) -> Iterator[str]:
    """Calls that run whatever a file says: `torch.load`, `pickle.load`, `Unpickler`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            if called in {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"}:
                yield called


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_file_is_unpickled(path: Path) -> None:
    """REL-22: the gate of REL-F02 is the only place that may, and names itself here when it does."""
    assert not list(unpickling(ast.parse(text_of(path))))


def test_unpickling_would_be_seen() -> None:
    """Control of the test above."""
    assert list(unpickling(ast.parse("import torch\ntorch.load(path)"))) == ["torch.load"]


def test_linalg_knows_only_torch() -> None:
    """Whatever is not the standard library, torch or the notation of shapes is refused, also what nobody thought of."""
    known = {*sys.stdlib_module_names, "torch", "jaxtyping"}
    foreign = {
        module
        for path in (PACKAGE / "linalg").glob("*.py")
        for module in imported(ast.parse(text_of(path)))
        if module.split(".")[0] not in known and not module.startswith("heretic.linalg")
    }
    assert not foreign


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all imported modules, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_module_hides_a_standard_one_or_collects_odds_and_ends() -> None:
    """Rule 14: no `utils.py`, no module at the top named like one of the standard library."""
    banned = {"utils", "util", "helpers", "misc", "common"}
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & banned
    assert not {path.stem for path in PACKAGE.glob("*.py")} & sys.stdlib_module_names


@pytest.mark.parametrize("path", [*all_texts()], ids=name_of)
def test_no_trace_of_a_machine_or_of_how_it_was_written(path: Path) -> None:
    """The files say what the program is: no folder of somebody's machine, no host of a registry, no diary."""
    text = text_of(path)
    found = [match.group() for pattern in (MACHINE, REGISTRY) for match in pattern.finditer(text)]
    assert not found
    assert not [word for word in PROCESS_WORDS if word in text.lower()]


@pytest.mark.parametrize(
    "line",
    ["see /ho" + "me/somebody/x", "https://py" + "pi.example.org/sim" + "ple", "made by a sub" + "agent"],
)
def test_a_trace_would_be_seen(line: str) -> None:
    """Control of the test above."""
    assert MACHINE.search(line) or REGISTRY.search(line) or any(word in line for word in PROCESS_WORDS)


@pytest.mark.parametrize("path", [path for path in all_texts() if path.suffix == ".md"], ids=name_of)
def test_pages_are_ascii_with_lines_of_a_readable_length(path: Path) -> None:
    text = text_of(path)
    assert text.isascii()
    if name_of(path) not in GENERATED:
        # Tables and links cannot be broken.
        prose = [line for line in text.splitlines() if not line.startswith("|") and "](" not in line]
        assert not [line for line in prose if len(line) > LINE_LENGTH]
