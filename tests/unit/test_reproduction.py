# SPDX-License-Identifier: Apache-2.0
"""Reading a run file and grading a rebuilt model (requirements R-CLI-12, reliability F05)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from heretic.cli.application import run_command_line
from heretic.constants import SCHEMA_VERSION
from heretic.exceptions import ConfigurationError, HereticError, NetworkError, UntrustedContentError
from heretic.report import Divergence, Measurement, Rate
from heretic.reproduction import (
    SIZE_LIMIT,
    Comparison,
    _compare_files,
    _fetched,
    _stored_trial,
    parse_run_file,
    read_run_file,
)


def written(**sections: object) -> bytes:
    return json.dumps({"version": SCHEMA_VERSION, **sections}).encode()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x80\x04.", UntrustedContentError),
        (b"[1]", UntrustedContentError),
        (b'{"version": 1, "seed": NaN}', UntrustedContentError),
        (b"[" * 100_000, UntrustedContentError),
        (written(plugins=["evil.py:Class"]), UntrustedContentError),
        (b'{"version": 99}', ConfigurationError),
    ],
)
def test_only_json_of_known_sections_is_read(data: bytes, kind: type[HereticError]) -> None:
    assert parse_run_file(written(seed=1))["seed"] == 1  # control
    with pytest.raises(kind):
        parse_run_file(data)


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "heretic_run.json"
    path.write_bytes(written(seed=1))
    assert read_run_file(str(tmp_path))["seed"] == 1, "a folder means the file in it"
    with path.open("r+b") as stream:
        stream.truncate(SIZE_LIMIT + 1)
    with pytest.raises(UntrustedContentError, match="no run file"):
        read_run_file(str(path))


@pytest.mark.parametrize("address", ["http://example.org/x.json", "file:///etc/passwd", "ftp://x/y"])
def test_only_https_addresses_are_fetched(address: str) -> None:
    with pytest.raises(UntrustedContentError, match="no https address"):
        read_run_file(address)


def answering(request: httpx2.Request) -> httpx2.Response:
    """The web: a run file, one behind a redirect, one that leaves https, one without end."""
    path = request.url.path
    if path == "/moved":
        return httpx2.Response(302, headers={"location": "https://example.org/run"})
    if path == "/leaves":
        return httpx2.Response(302, headers={"location": "http://example.org/run"})
    if path == "/endless":
        return httpx2.Response(200, content=(b" " * 1_000_000 for _ in range(10**6)))
    return httpx2.Response(200, content=written(seed=1)) if path == "/run" else httpx2.Response(404)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("leaves", UntrustedContentError), ("endless", UntrustedContentError), ("none", NetworkError)],
)
def test_a_fetched_run_file_is_bounded_and_stays_on_https(path: str, kind: type[HereticError]) -> None:
    transport = httpx2.MockTransport(answering)
    for good in ("run", "moved"):
        assert parse_run_file(_fetched(f"https://example.org/{good}", transport))["seed"] == 1  # control
    with pytest.raises(kind):
        _fetched(f"https://example.org/{path}", transport)


def test_a_hostile_run_file_ends_the_command_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F05: exit 1, nothing written."""
    monkeypatch.chdir(tmp_path)
    settings = {"storage": {"value": "sqlite:////tmp/evil.db", "source": "--storage"}}
    trial = {"index": 1, "parameters": {"a": 1.0}}
    (tmp_path / "x.json").write_bytes(written(settings=settings, trial=trial))
    code = run_command_line(["reproduce", "x.json", "--model", "tiny", "--out", "out", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, document["error"]["type"]) == (1, "UntrustedContentError")
    assert "storage" in document["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json"]


@pytest.mark.parametrize("value", [True, [1.0], {"a": 1}])
def test_parameters_are_plain_values(value: object) -> None:
    assert _stored_trial({"trial": {"index": 3, "parameters": {"a": 1.0, "b": "x", "c": None}}})[0] == 3
    with pytest.raises(UntrustedContentError):
        _stored_trial({"trial": {"index": 3, "parameters": {"a": value}}})


def measured(hits: int, mean: float) -> Measurement:
    kl = Divergence(mean, 0.0, mean, mean, mean, mean, 24, 120)
    return Measurement("held_out", Rate(hits, 24, 0.0, 1.0), kl)


def manifest(checksum: str, change: float = 0.1, **more: Any) -> dict[str, Any]:
    site = {"path": "a.weight", "relative_change": change, "achieved": [0.9]}
    verified = {"rate": {"hits": 8, "n": 24}, "kl": {"mean": 0.01}}
    files = {"model.safetensors": checksum, "README.md": checksum, "heretic/edits.safetensors": checksum}
    return {
        "files": files,
        "certificate": [site],
        "export": {"verified": verified},
        "noise_floor": 1e-4,
        **more,
    }


@pytest.mark.parametrize(
    ("then", "hits", "mean", "grade"),
    [
        (manifest("a"), 8, 0.01, "bit-equal"),
        (manifest("b"), 8, 0.01005, "within noise floor"),
        (manifest("b"), 8, 0.0102, "different"),
        (manifest("b"), 9, 0.01, "different"),
        (manifest("b", change=0.12), 8, 0.01, "different"),
        (manifest("b", certificate=[]), 8, 0.01, "different"),
        (manifest("b", export={}), 8, 0.01, "different"),
        (manifest("b", files={}), 8, 0.01, "within noise floor"),
    ],
)
def test_the_grade(then: dict[str, Any], hits: int, mean: float, grade: str) -> None:
    """Bytes first; where they differ, certificate and figures decide, and missing data never passes."""
    comparison = Comparison()
    _compare_files(then, manifest("a"), measured(hits, mean), 1e-9, comparison)
    assert comparison.grade == grade
    assert bool(comparison.differences) == (grade == "different")
