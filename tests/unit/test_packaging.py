# SPDX-License-Identifier: Apache-2.0
"""What the wheel contains, what it asks for, and what can be imported without extras (R-PKG-01 to R-PKG-06)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement

import heretic
from heretic.demo import KNOWLEDGE_SPLITS, PROMPT_SETS, SPLITS

ROOT: Final = Path(__file__).resolve().parents[2]

FLOORS: Final = {
    "torch": "2.7",
    "transformers": "5.19",
    "accelerate": "1.12",
    "safetensors": "0.8",
    "huggingface-hub": "2",
    "datasets": "5",
    "optuna": "5",
    "pydantic": "2.12",
    "cyclopts": "5.2",
    "rich": "14.2",
    "questionary": "2.1",
}
"""The oldest version of each library whose behaviour was measured; lowering one needs new measurements (REL-22)."""


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def working_uv() -> str | None:
    """A uv that runs: on the path, beside the interpreter, or where `make` puts it."""
    for candidate in ("uv", str(Path(sys.executable).with_name("uv")), str(ROOT / ".venv-uv" / "bin" / "uv")):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in the wheel that `uv build` makes of this checkout."""
    uv = working_uv()
    if uv is None:
        pytest.skip("uv is not installed; `make test` installs it")
    folder = tmp_path_factory.mktemp("wheel")
    # Sources only: the checkout also holds environments and caches.
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [uv, "build", "--wheel", "--quiet", "--out-dir", str(folder), str(copy)],
        capture_output=True, text=True, check=False, env={**os.environ, "UV_PYTHON_DOWNLOADS": "never"},
    )  # fmt: skip
    if built.returncode != 0 and re.search(r"dns|connect|network|fetch|offline", built.stderr, re.IGNORECASE):
        pytest.skip("the build backend cannot be fetched without a network")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.parametrize(
    "name",
    [
        "heretic/py.typed",
        "heretic/data/config.default.toml",
        "heretic/data/markers.toml",
        *(f"heretic/data/behaviours/{name}.toml" for name in ("demo", "hedging", "refusal", "verbosity")),
        *(
            f"heretic/demo/model/{name}"
            for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
        ),
        *(f"heretic/demo/prompts/{name}/{split}.jsonl" for name in PROMPT_SETS for split in SPLITS),
        *(f"heretic/demo/prompts/knowledge/{split}.jsonl" for split in KNOWLEDGE_SPLITS),
    ],
)
def test_the_wheel_contains_what_is_read_from_the_package(wheel: list[str], name: str) -> None:
    """R-PKG-04."""
    assert name in wheel


def test_the_wheel_contains_every_data_file_and_nothing_foreign(wheel: list[str]) -> None:
    """R-PKG-04: a data file added later is packed as well; tests and caches are not."""
    package = ROOT / "src" / "heretic"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    ours = {f"heretic/{path.relative_to(package).as_posix()}" for path in files}
    packed = {name for name in wheel if not name.endswith("/") and ".dist-info/" not in name}
    assert packed == ours
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_the_version_is_stated_once_for_each_reader() -> None:
    assert project()["project"]["version"] == heretic.__version__ == version("heretic-workbench")


def test_floors_are_the_measured_ones() -> None:
    """REL-22: a floor cannot be lowered in passing."""
    stated = [Requirement(line) for line in project()["project"]["dependencies"]]
    floors = {
        entry.name: next(part.version for part in entry.specifier if part.operator == ">=")
        for entry in stated
        if entry.name in FLOORS
    }
    assert floors == FLOORS


def test_torch_is_stated_and_extras_are_optional() -> None:
    """R-PKG-02: the installed metadata names torch for everyone and the parts of extras for nobody else."""
    found = [Requirement(line) for line in requires("heretic-workbench") or ()]
    always = {entry.name for entry in found if entry.marker is None}
    optional = {entry.name for entry in found if entry.marker is not None}
    assert "torch" in always
    assert {"bitsandbytes", "psycopg"} <= optional and not optional & always


def test_importing_the_package_loads_nothing() -> None:
    """R-PKG-02: `import heretic` works without extras, and costs nothing."""
    heavy = ("torch", "transformers", "optuna", "datasets", "pydantic", "rich", "cyclopts")
    code = f"import sys, heretic; sys.exit(bool(set({heavy!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "path", ["uv.lock", ".env", "study.db", "models/x", "chat_history/x", ".venv/x", ".venv-uv/x"]
)
def test_private_and_local_files_are_ignored_by_git(path: str) -> None:
    """R-PKG-06: lock files name hosts, `.env` holds keys."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_the_demo_model_is_not_ignored_by_git() -> None:
    """Control of the test above: a rule that is too wide would lose the bundled model."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for name in ("model/model.safetensors", "prompts/refusal-bad/train.jsonl"):
        ignored = subprocess.run(
            ["git", "check-ignore", "-q", f"src/heretic/demo/{name}"], cwd=ROOT, check=False
        )
        assert ignored.returncode == 1
