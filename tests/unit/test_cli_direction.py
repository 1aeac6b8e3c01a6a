# SPDX-License-Identifier: Apache-2.0
"""`heretic direction show|compare|combine`, through the real command line (R-CLI-07, R-CLI-23, R-CLI-27, R-CLI-28)."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from heretic.cli.application import run_command_line
from heretic.cli.direction import match_scales
from heretic.directions.bank import DirectionBank
from heretic.directions.file import DirectionFile, load_directions, save_directions
from heretic.exceptions import ConfigurationError

L, D = 3, 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files are named as a user names them, from inside their folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    yield tmp_path


def rows_of(*vectors: Tensor) -> Tensor:
    return torch.stack(vectors).expand(L, -1, -1).contiguous()


def axis(index: int, width: int = D) -> Tensor:
    return torch.eye(width)[index]


def write(stem: str, rows: Tensor, **changes: Any) -> str:
    """Save directions as STEM.direction.safetensors; returns the name."""
    values: dict[str, Any] = {
        "name": stem, "behaviour": "refusal", "goal": "suppress", "method": "difference",
        "component_weights": (1.0,) * rows.shape[1], "auroc": (0.75, 0.9, None), "effect_size": (1.0, 2.5, None),
        "model": "org/model", "revision": "abc", "data": {"bad": "f00d" * 16}, "source": "heretic extract",
        "created": "2031-05-06T07:08:09+00:00",
    }  # fmt: skip
    path = Path(f"{stem}.direction.safetensors")
    bank = DirectionBank(rows, 2.0 * rows.any(dim=2).float(), provenance={"method": "difference"})
    save_directions(path, DirectionFile(bank=bank, **{**values, **changes}))
    return path.name


@pytest.fixture
def pair() -> tuple[str, str]:
    """Two files whose first components are 60 degrees apart."""
    turned = math.cos(math.pi / 3) * axis(0) + math.sin(math.pi / 3) * axis(1)
    return write("a", rows_of(axis(0), axis(2))), write("b", rows_of(turned), behaviour="hedging")


def document(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    """The one document of a command line that ends with `code`."""
    capsys.readouterr()
    assert run_command_line(["direction", *words, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == code and (found["error"] is None) == (code == 0)
    return found


def test_show_tells_where_directions_come_from_and_how_good_they_are(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "show", *pair)["files"]
    assert [file["name"] for file in found] == ["a", "b"]
    first = found[0]
    assert (first["hidden_size"], first["layers"], first["components"]) == (D, L, 2)
    assert first["model"] == "org/model" and first["data"] == {"bad": "f00d" * 16}
    assert first["entries"][1] == {
        "block": 1,
        "entry": 2,
        "spread": [2.0, 2.0],
        "auroc": 0.9,
        "effect_size": 2.5,
        "cosine_to_entry_before": 1.0,
    }
    assert first["entries"][0]["cosine_to_entry_before"] is None and first["entries"][2]["auroc"] is None
    assert run_command_line(["direction", "show", *pair]) == 0
    shown = capsys.readouterr()
    for word in ("org/model at abc", "hedging", "difference", "0.900", "2.50", "f00df00df00d"):
        assert word in shown.out
    assert "next: heretic direction compare a.direction.safetensors b" in shown.err


def test_compare_gives_cosines_and_angles_of_each_pair(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """60 degrees, by hand; control: a file with itself."""
    found = document(capsys, "compare", *pair, pair[0])["comparisons"]
    assert [(entry["first"], entry["second"]) for entry in found] == [
        (pair[0], pair[1]),
        (pair[0], pair[0]),
        (pair[1], pair[0]),
    ]
    for entry in found[0]["entries"]:
        assert entry["cosine"] == pytest.approx(0.5) and entry["angles_degrees"] == [pytest.approx(60.0)]
    assert found[0]["entries"][2]["entry"] == 3 and found[0]["entries"][2]["block"] == 2
    for entry in found[1]["entries"]:
        assert entry["cosine"] == pytest.approx(1.0)
        assert entry["angles_degrees"] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert run_command_line(["direction", "compare", *pair]) == 0
    shown = capsys.readouterr()
    assert "0.5000" in shown.out and "60.00" in shown.out
    assert "direction combine" in shown.err and "warning" not in shown.err


def test_comparing_two_models_is_done_with_a_warning(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = write("c", rows_of(axis(0)), model="org/other")
    assert run_command_line(["direction", "compare", pair[0], foreign]) == 0
    assert "org/other" in capsys.readouterr().err


def test_combine_saves_the_weighted_sum(
    pair: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control: other scales give another direction."""
    out = "sum.direction.safetensors"
    found = document(capsys, "combine", "--scale", "a=-2", *pair, "--out", out, "--scale=b=0.5")
    assert found["parts"] == [{"path": pair[0], "scale": -2.0}, {"path": pair[1], "scale": 0.5}]
    assert found["output"] == out and found["status"] == "done"
    assert found["file"]["name"] == "a + b" and found["file"]["behaviour"] == "refusal + hedging"
    saved = load_directions(folder / out)
    whole = -2 * axis(0) + 0.5 * load_directions(folder / pair[1]).bank.directions[0, 0]
    assert torch.allclose(saved.bank.directions, rows_of(whole / whole.norm()), atol=1e-6)
    assert saved.created.endswith("+00:00") and saved.auroc == (None,) * L
    other = "other.direction.safetensors"
    assert run_command_line(["direction", "combine", *pair, "--out", other, "--name", "mine"]) == 0
    shown = capsys.readouterr()
    assert f"saved mine as {other}" in shown.out and f"next: heretic direction show {other}" in shown.err
    assert not torch.allclose(
        load_directions(folder / other).bank.directions, saved.bank.directions, atol=0.1
    )


def test_combine_replaces_nothing_unless_told_to(
    pair: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-47."""
    before = (folder / pair[0]).read_bytes()
    found = document(capsys, "combine", *pair, "--out", pair[0], code=2)
    assert found["error"]["type"] == "OutputExistsError" and "--overwrite" in found["error"]["remedy"]
    assert (folder / pair[0]).read_bytes() == before
    document(capsys, "combine", *pair, "--out", pair[0], "--dry-run", code=2)
    document(capsys, "combine", *pair, "--out", pair[0], "--overwrite", "--dry-run")
    assert (folder / pair[0]).read_bytes() == before
    document(capsys, "combine", *pair, "--out", pair[0], "--overwrite")
    assert load_directions(folder / pair[0]).method == "combine"
    assert {entry.name for entry in folder.iterdir()} == {*pair}


def test_dry_run_writes_nothing(
    pair: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-25."""
    found = document(capsys, "combine", *pair, "--out", "c.direction.safetensors", "--dry-run")
    assert found["status"] == "planned" and {entry.name for entry in folder.iterdir()} == {*pair}


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("show", "ConfigurationError", "at least 1"),
        ("show nothing.direction.safetensors", "DirectionFileError", "no file"),
        ("show damaged", "DirectionFileError", "does not begin as one"),
        ("show A --layers 3", "ConfigurationError", "--layers"),
        ("compare A", "ConfigurationError", "at least 2"),
        ("compare A wide", "DirectionFileError", "hidden size 9"),
        ("combine A --out x.direction.safetensors", "ConfigurationError", "at least 2"),
        ("combine A B", "ConfigurationError", "--out"),
        ("combine A B --out x.safetensors", "DirectionFileError", "x.safetensors"),
        ("combine A B --out x.direction.safetensors --scale a", "ConfigurationError", "--scale is 'a'"),
        (
            "combine A B --out x.direction.safetensors --scale a=inf",
            "ConfigurationError",
            "--scale is 'a=inf'",
        ),
        (
            "combine A B --out x.direction.safetensors --scale c=1",
            "ConfigurationError",
            "means 0 of the files",
        ),
        ("combine A B --out x.direction.safetensors --scale a=1 --scale a=2", "ConfigurationError", "second"),
        ("combine A foreign --out x.direction.safetensors", "DirectionFileError", "org/other"),
        ("combine A wide --out x.direction.safetensors", "DirectionFileError", "hidden size 9"),
    ],
)
def test_mistakes_are_code_2_and_write_nothing(
    line: str,
    kind: str,
    message: str,
    pair: tuple[str, str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """R-CLI-07, R-CLI-28: with what was found and the remedy."""
    names = {
        "A": pair[0],
        "B": pair[1],
        "wide": write("wide", rows_of(axis(0, D + 1))),
        "foreign": write("foreign", rows_of(axis(0)), model="org/other"),
    }
    (folder / "damaged").write_text("directions: none at all", encoding="utf-8")
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    error = document(capsys, *(names.get(word, word) for word in line.split()), code=2)["error"]
    assert error["type"] == kind and message in error["message"] and error["remedy"]
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before


def test_directions_that_cancel_are_code_1(
    pair: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opposite = write("opposite", rows_of(-axis(0)))
    words = ("combine", pair[0], opposite, "--out", "x.direction.safetensors")
    error = document(capsys, *words, code=1)["error"]
    assert error["type"] == "AbliterationError" and not (folder / "x.direction.safetensors").exists()
    document(capsys, *words, "--scale", "opposite=0.5")


def test_a_scale_means_a_file_by_either_name() -> None:
    """Two extractions of one behaviour have one name, but never one file name."""
    files = ["here/one.direction.safetensors", "two.direction.safetensors"]
    assert match_scales([("two", 2.0)], files, ["refusal", "refusal"]) == [1.0, 2.0]
    assert match_scales([("one.direction.safetensors", 3.0)], files, ["x", "x"]) == [3.0, 1.0]
    assert match_scales([("x=y", 4.0)], files, ["x=y", "z"]) == [4.0, 1.0]
    with pytest.raises(ConfigurationError, match="means 2 of the files"):
        match_scales([("refusal", 2.0)], files, ["refusal", "refusal"])


def test_hostile_words_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """D10, REL-R11: an escape sequence in a name would set the clipboard."""
    name = write("c", rows_of(axis(0)), name="\x1b]52;c;x\x07refusal [red]", source="line\x1b[2J")
    assert run_command_line(["direction", "show", name]) == 0
    shown = capsys.readouterr().out
    assert "refusal [red]" in shown and "\x1b" not in shown and "\x07" not in shown


@pytest.mark.parametrize(
    "line", ["--help", "direction --help", "direction combine --help", "direction combine a --out b"]
)
def test_help_and_a_line_that_lacks_a_word_load_no_torch(line: str, folder: Path) -> None:
    """Architecture rule 15; control: a command that reads a file."""
    code = (
        "import sys; from heretic.cli.application import run_command_line; run_command_line(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )

    def loads_torch(words: list[str]) -> int:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, timeout=60, check=False
        )
        return done.returncode

    assert loads_torch(shlex.split(line)) == 0
    if line == "--help":
        assert loads_torch(["direction", "show", "nothing"]) == 1
