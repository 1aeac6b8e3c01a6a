# SPDX-License-Identifier: Apache-2.0
"""`heretic reproduce` on a real run of the bundled model (requirements R-CLI-12)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from heretic.demo import model_path

from .support import Ended, assert_clean_failure, heretic, run_flags


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One small run with an output folder, started with --compile."""
    folder = tmp_path_factory.mktemp("run")
    ended = heretic(*run_flags(folder, 8), "--compile", "--json", cwd=folder)
    assert ended.code in (0, 3), ended.err
    (folder / "document.json").write_text(ended.out, encoding="utf-8")
    yield folder


def reproduce(file: Path, out: Path) -> Ended:
    return heretic(
        "reproduce", str(file), "--model", str(model_path()), "--out", str(out), "--json", cwd=file.parent
    )


def test_a_run_with_compile_works_where_nothing_can_be_compiled(finished: Path) -> None:
    """R-CLI-60, R-PRF-10: it switches itself off and says so."""
    document = json.loads((finished / "document.json").read_text(encoding="utf-8"))
    off = [line for line in document["degradations"] if line.startswith("compile is off")]
    assert len(off) == (0 if torch.cuda.is_available() else 1)
    assert document["chosen"]["thinking_mode"] == "off"  # R-MOD-53


def test_a_run_is_rebuilt_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    ended = reproduce(finished / "out" / "heretic_run.json", tmp_path / "again")
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["grade"] == "bit-equal" and document["differences"] == []
    assert document["environment_differences"] == []
    first, second = (folder / "model.safetensors" for folder in (finished / "out", tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    assert not list(finished.glob("out/*.db")) and not (tmp_path / "heretic_study.db").exists()


def test_a_tampered_parameter_is_another_model(finished: Path, tmp_path: Path) -> None:
    """Control of the test above, and of the exit code."""
    document = json.loads((finished / "out" / "heretic_run.json").read_text(encoding="utf-8"))
    for name in document["trial"]["parameters"]:
        if name.endswith(".max_weight"):
            document["trial"]["parameters"][name] = 0.4
    document["versions"]["torch"] = "1.0"
    (tmp_path / "heretic_run.json").write_text(json.dumps(document), encoding="utf-8")
    ended = reproduce(tmp_path / "heretic_run.json", tmp_path / "again")
    assert_clean_failure(ended, 1, ())
    found = ended.document
    assert found["grade"] == "different" and found["error"]["type"] == "SaveVerificationError"
    assert any("removed share" in line for line in found["differences"])
    assert {"what": "torch", "then": "1.0"}.items() <= found["environment_differences"][0].items()
    assert (tmp_path / "again" / "model.safetensors").is_file()
