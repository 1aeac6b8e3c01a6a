# SPDX-License-Identifier: Apache-2.0
"""What the pages say can be done (R-DOC-01 to R-DOC-06, architecture rule 15)."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import reduce
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

import pytest
from cyclopts import App, CycloptsError

import benchmarks.run
from heretic.cli.application import build_application
from heretic.cli.apply import split_files
from heretic.cli.effects import TAKES_SETTINGS
from heretic.cli.flags import SWITCHES, VALUES, split_flags
from heretic.config import help_table, resolve_settings
from heretic.exceptions import ConfigurationError

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
)
GENERATED: Final = frozenset({"cli.md", "settings.md", "architectures.md"})
MADE_BY_BENCH: Final = "performance.md"

BLOCK: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK: Final = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
STATED_PLACEHOLDERS: Final = {"N": "1", "STUDY:N": "study:1"}


class CommandLine(NamedTuple):
    """A command line of a page; `complete` when it is meant to be typed as it stands."""

    page: str
    text: str
    complete: bool


def texts_of(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines meant to be typed (console blocks, indented blocks), then what stands between back-quotes."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        if block.group(2) == "console":
            yield from ((line.strip()[2:], True) for line in block.group(3).splitlines() if "$ " in line)
    prose = BLOCK.sub("", text)
    yield from (
        (line.strip().split("  #")[0].strip(), True) for line in prose.splitlines() if line.startswith("    ")
    )
    yield from ((span, False) for span in SPAN.findall(prose))


def command_lines(program: str) -> list[CommandLine]:
    """Every command line of this program on all pages that are written by hand."""
    found = [
        CommandLine(page.relative_to(ROOT).as_posix(), text, complete)
        for page in PAGES
        if page.name not in GENERATED
        for text, complete in texts_of(page)
    ]
    return [line for line in dict.fromkeys(found) if line.text.split()[:1] == [program]]


def words_of(text: str) -> list[str]:
    """The words behind the program's name, redirections left out, placeholders that must be numbers filled in."""
    words = shlex.split(text.split(" > ")[0])[1:]
    return [STATED_PLACEHOLDERS.get(word, word) for word in words]


def paths(app: App, front: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all commands and groups."""
    for name in app:
        if not name.startswith("-"):
            yield (*front, name)
            yield from paths(app[name], (*front, name))


def check(text: str, complete: bool, folder: Path) -> None:
    """Parse a command line as the program would; raises what the program would show."""
    app = build_application()
    _, words = split_flags(words_of(text))
    known = set(paths(app))
    if words[:1] == ["--help"] or words[:1] == ["--version"] or (not complete and tuple(words) in known):
        return
    name = " ".join(
        next((path for path in known if tuple(words[: len(path)]) == path and len(path) > 1), words[:1])
    )
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    named = name if (name,) in known or tuple(name.split()) in known else "heretic"
    tokens = list(bound.arguments.get("tokens", ()))
    if named == "apply":
        found, tokens = split_files(tokens)
        assert found, f"{text} names no file"
    if named in TAKES_SETTINGS:
        resolve_settings(tokens, environ={}, cwd=folder, purpose="show")
    else:
        assert not tokens, f"{command} takes no settings"


@pytest.mark.parametrize("line", command_lines("heretic"), ids=lambda line: f"{line.page}: {line.text}")
def test_each_command_line_is_understood(
    line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-DOC-04."""
    monkeypatch.chdir(tmp_path)
    # What the line before it on its page writes.
    shutil.copy(
        str(files("heretic") / "data" / "behaviours" / "hedging.toml"), tmp_path / "my-behaviour.toml"
    )
    check(line.text, line.complete, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "heretic MODEL --n-trails 5", "heretic export NAME --tral 1", "heretic extract MODEL", "heretic study frnt x",
        "heretic apply MODEL --strength 1", "heretic apply MODEL a.direction.safetensors --strenth 1",
        "heretic MODEL --n-trials many", "heretic MODEL --strategy cubic",
    ],
)  # fmt: skip
def test_a_wrong_command_line_would_be_seen(text: str, tmp_path: Path) -> None:
    """Control of the test above."""
    with pytest.raises((ConfigurationError, CycloptsError, AssertionError)):
        check(text, True, tmp_path)


def known_flags() -> set[str]:
    """Common flags, settings, and the parameters of all commands."""
    app = build_application()
    own = {
        name
        for path in paths(app)
        if (part := reduce(lambda part, word: part[word], path, app)).default_command is not None
        for argument in part.assemble_argument_collection()
        for name in argument.names
    }
    return {
        *SWITCHES,
        *VALUES,
        "--no-color",
        "--help",
        "--version",
        *own,
        *(row.flag for row in help_table()),
    }


def test_each_flag_between_back_quotes_exists() -> None:
    """R-DOC-04. Flags of other programs stand with the program's name in front."""
    known = known_flags()
    unknown = {
        f"{page.name}: {span}"
        for page in PAGES
        if page.name not in GENERATED
        for span, complete in texts_of(page)
        if not complete and span.startswith("--")
        for word in span.split()
        if word.startswith("--") and word.split("=")[0].split(".")[0] not in {*known, "--cache-weights"}
    }
    assert not unknown


def test_each_benchmark_line_is_understood() -> None:
    """R-DOC-04."""
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python -m benchmarks.run")]
    assert lines
    for line in lines:
        benchmarks.run.parser().parse_args(shlex.split(line, comments=True)[3:])


def test_each_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {line.text.split()[1] for line in command_lines("make") if len(line.text.split()) > 1}
    assert {"demo", "test", "check", "bench"} <= asked
    assert {word for word in asked if "=" not in word} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_link_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [
        link for link in links if not (page.parent / link).exists() and not link.endswith(MADE_BY_BENCH)
    ]
    assert not missing


def test_each_page_is_listed() -> None:
    """A page that nobody can find does not exist."""
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not {name for name in pages if f"({name})" not in listed}
    decisions = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    numbered = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert numbered and all(f"({page.name})" in decisions for page in numbered)


def test_the_readme_opens_with_two_commands() -> None:
    """R-DOC-01."""
    lines = [
        line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["make demo", "make test"]


def docs_script() -> ModuleType:
    """scripts/docs.py."""
    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """Architecture rule 15; `make docs` writes them."""
    assert docs_script().main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control of the test above."""
    script = docs_script()
    monkeypatch.setitem(script.PAGES, "docs/cli.md", lambda: "something newer")
    assert script.main(["--check"]) == 1
    assert "docs/cli.md" in capsys.readouterr().err


def library_programs() -> list[str]:
    """The Python blocks of the library page, in order."""
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    return [block.group(3) for block in BLOCK.finditer(text) if block.group(2) == "python"]


def test_the_parts_work_as_the_library_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    """R-API-01: the first program removes the bundled model's refusal. Fewer prompts and tokens than on the page."""
    program = library_programs()[0]
    for said, used in (
        ("train[:100]", "train[:40]"),
        ("test[:20]", "test[:10]"),
        ("advance(40)", "advance(24)"),
    ):
        assert said in program
        program = program.replace(said, used)
    exec(compile(program, "docs/library.md", "exec"), {})  # noqa: S102  the program is the page under test
    found = re.search(r"refusals: (\d+) of 10 before, (\d+) after", capsys.readouterr().out)
    assert found is not None
    before, after = map(int, found.groups())
    assert before >= 7 and after <= before - 5


def test_the_library_page_names_what_exists(tmp_path: Path) -> None:
    """Imports of every program, modules of the table, and the settings of the second program."""
    tree = ast.parse("\n".join(library_programs()))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), node.module
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"^\|.*`(heretic\.[a-z_.]+)`", page, re.MULTILINE)):
        importlib.import_module(name)
    (call,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "resolve_settings"
    )
    resolved = resolve_settings(ast.literal_eval(call.args[0]), environ={}, cwd=tmp_path)
    assert resolved.settings.behaviour == "demo" and resolved.settings.auto_select


@pytest.mark.parametrize(
    "topic",
    [
        "32B", "Gated", "HF_TOKEN", "Qwen is open", "special tokens", "C4", "streamed", "accuracy",
        "without GPU support",        "force a reinstall", "doctor", "Two 7B models", "Stopping the instance",
    ],
)  # fmt: skip
def test_troubleshooting_covers(topic: str) -> None:
    """R-DOC-03."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert topic in " ".join(page.split())
