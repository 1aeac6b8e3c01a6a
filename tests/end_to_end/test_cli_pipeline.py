# SPDX-License-Identifier: Apache-2.0
"""The commands on a tiny real model: search, stop, export, verify, compare (requirements 2.2, R-HDL-01, R-CLI-26)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heretic.testing.tokenizers import byte_tokenizer, save_pico

SETS = ("bad", "good", "bad_evaluation", "good_evaluation", "bad_confirmation", "good_confirmation")
CONFIG = """
n_startup_trials = 2
max_response_length = 8
refusal_check_tokens = 4
max_trial_kl = 50.0
select_max_kl = 50.0
finalists = 2
refusal_markers = ["a", "e", "i", "o"]
allow_zero_baseline = true
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, prompt files and a settings file."""
    folder = tmp_path_factory.mktemp("work")
    changes = {"vocab_size": 320, "max_position_embeddings": 512}
    save_pico(folder / "tiny", "llama", tokenizer=byte_tokenizer(), changes=changes)
    config = CONFIG
    for name in SETS:
        lines = [f"{name} number {index}, tell me" for index in range(10)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
        config += f'[{name}_prompts]\ndataset = "{name}.txt"\n'
    config += '[over_behaviour_prompts]\ndataset = "good_confirmation.txt"\n'
    (folder / "config.toml").write_text(config, encoding="utf-8")
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "heretic.cli", *arguments],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def heretic(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def document(text: str) -> dict[str, Any]:
    """The one document on stdout."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow  # the same flow runs in process, in test_command_lines
@pytest.mark.timeout(300)
def test_headless_search_prints_the_front_and_its_commands_work(workplace: Path) -> None:
    """R-HDL-01: nothing is saved, exit 0; the printed export command works as it stands, verify agrees (R-CLI-11)."""
    code, out, err = heretic(workplace, "tiny", "--n-trials", "4")
    assert code == 0, err
    assert not list(workplace.glob("*-heretic")) and "\x1b" not in out + err and (out + err).isascii()
    assert len([line for line in err.splitlines() if "trial 4/4 |" in line]) == 1
    command = next(line for line in out.splitlines() if line.startswith("heretic export"))
    code, out, err = heretic(workplace, *shlex.split(command)[1:], "--out", "saved", "--json")
    assert code == 0, err
    report = document(out)
    assert report["exit_code"] == 0 and Path(report["output"]) == workplace / "saved"
    assert report["verified"]["n"] == 10 and report["error"] is None
    code, out, _ = heretic(workplace, "verify", "saved", "--base", "tiny", "--json")
    assert code == 0 and document(out)["passed"] is True
    shard = next((workplace / "saved").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    code, out, _ = heretic(workplace, "verify", "saved", "--base", "tiny", "--json")
    assert code == 1 and document(out)["status"] == "failed"


@pytest.mark.slow  # test_signals sends the same signal to the same flow
@pytest.mark.timeout(300)
def test_ctrl_c_keeps_what_is_finished_and_ends_with_130(workplace: Path) -> None:
    """R-CLI-26, R-HDL-02: one document, the study holds the finished trials."""
    name = ["--study-name", "stopped", "--n-trials", "100000", "--trials-per-batch", "1"]
    process = start(workplace, "tiny", *name, "--json")
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "trial 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, seen + err
    report = document(out)
    assert report["exit_code"] == 130
    code, out, _ = heretic(workplace, "study", "show", "stopped", "--json")
    assert code == 0 and document(out)["finished"] >= 2


@pytest.mark.slow  # each command also runs in process, in test_command_lines
@pytest.mark.timeout(300)
def test_dry_run_inspect_and_evaluate_change_nothing(workplace: Path) -> None:
    """R-CLI-04, R-CLI-08, R-CLI-25."""
    before = sorted(path.name for path in workplace.iterdir())
    code, out, err = heretic(workplace, "tiny", "--dry-run", "--json")
    assert code == 0 and document(out)["plan"]["prompts"]["bad"] == 10, err
    code, out, err = heretic(workplace, "inspect", "tiny", "--json")
    assert code == 0 and document(out)["layers"] == 2, err
    code, out, err = heretic(workplace, "evaluate", "tiny", "--against", "tiny", "--json")
    assert code == 0, err
    found = document(out)
    assert found["model"]["behaviour_rate"] == found["base"]["behaviour_rate"] and found["base"]["n"] == 10
    assert sorted(path.name for path in workplace.iterdir()) == before


@pytest.mark.timeout(300)
def test_a_missing_model_is_a_typed_failure(workplace: Path) -> None:
    """R-CLI-43; exit 1, one document, no traceback."""
    code, out, err = heretic(workplace, "./nothing-here", "--offline", "--json")
    assert code == 1 and document(out)["error"]["type"] == "ModelNotFoundError", (out, err)
    assert "Traceback" not in err
