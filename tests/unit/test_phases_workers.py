# SPDX-License-Identifier: Apache-2.0
"""What a run hands to its worker processes: settings, storage, accelerator, threads (R-SEA-15, REL-15)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heretic.cli.worker import trial_line, visible_device
from heretic.config import Resolved, resolve_settings
from heretic.exceptions import ConfigurationError
from heretic.phases.workers import NOT_PASSED_ON, child_environment, flags_of, own_device, worker_count
from heretic.study.types import Json, Scores, TrialFailure

CONFIG = """
seed = 3
system_prompt = ""
racing_prompts = 40
[bad_prompts]
dataset = "a.txt"
[search_space."attn.o_proj"]
max_weight = [0.0, 1.0]
"""


def resolved(folder: Path, *tokens: str, **environ: str) -> Resolved:
    return resolve_settings(["m", *tokens], environ=environ, cwd=folder)


def test_a_child_gets_the_settings_of_its_parent_wherever_they_came_from(tmp_path: Path) -> None:
    """File, .env, environment and command line become flags; what the child has of its own is left out."""
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / ".env").write_text("HERETIC_MAX_STRENGTH=1.25\n")
    secret = "postgresql://u:geheim@h/d"
    given = resolved(
        tmp_path,
        "--n-trials=7",
        "--workers=3",
        "--dtypes=float32,bfloat16",
        f"--storage={secret}",
        "--time-budget=9m",
        HERETIC_FINALISTS="2",
        HERETIC_PROGRESS="plain",
    )
    flags = flags_of(given)
    assert "geheim" not in " ".join(flags)
    empty = tmp_path / "empty.toml"
    empty.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = resolve_settings(flags, environ={}, cwd=elsewhere, config_files=[empty])
    for name, value in given.settings:
        if name not in NOT_PASSED_ON and name not in given.unused:
            assert getattr(again.settings, name) == value, name
    assert (again.settings.seed, again.settings.system_prompt, again.settings.finalists) == (3, "", 2)
    assert not any(flag.startswith("--racing-prompts") for flag in flags), "it would be refused as unused"
    assert flags_of(resolved(elsewhere)) == ["--model=m"], "control: defaults are not passed on"


def test_the_address_goes_through_the_environment_and_nothing_else_of_the_parent_does() -> None:
    found = child_environment(1, 2, "postgresql://u:p@h/d", {"HERETIC_SEED": "9", "PATH": "/bin"})
    assert found["HERETIC_STORAGE"] == "postgresql://u:p@h/d" and "HERETIC_SEED" not in found
    assert found["PATH"] == "/bin"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with an accelerator divides those instead")
def test_threads_are_divided_and_auto_means_one_without_an_accelerator(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert child_environment(1, 3, "s", {})["OMP_NUM_THREADS"] == "1"
        assert child_environment(1, 2, "s", {})["OMP_NUM_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)
    settings = resolved(tmp_path, "--workers=auto").settings
    assert worker_count(settings) == 1 and own_device(settings) == "auto"
    assert worker_count(resolved(tmp_path, "--workers=3").settings) == 3


@pytest.mark.parametrize(
    ("device", "visible", "shown"),
    [("1", None, "1"), ("cuda:2", "", "2"), ("cuda:1", "4, 6", "6"), ("cpu", "4,6", "")],
)
def test_a_device_is_counted_within_what_is_visible(device: str, visible: str | None, shown: str) -> None:
    """R-CLI-13."""
    assert visible_device(device, visible) == shown


@pytest.mark.parametrize(("device", "visible"), [("gpu", None), ("cuda:2", "4,6"), ("-1", None)])
def test_a_device_that_cannot_be_is_refused(device: str, visible: str | None) -> None:
    with pytest.raises(ConfigurationError, match="--device"):
        visible_device(device, visible)


def test_one_line_per_trial() -> None:
    measured: dict[str, Json] = {"rate": 0.25, "kl_mean": 0.03125, "status": "complete"}
    assert trial_line(7, Scores((0.5, 0.1), {}, measured)) == "trial 7: rate 25.0%, KL 0.0312 nats/token"
    cut = json.loads('{"rate": null, "kl_mean": 3.0, "status": "rejected_by_kl"}')
    assert trial_line(8, Scores((0.5, 3.0), {}, cut)).endswith("KL 3.0000 nats/token (rejected_by_kl)")
    assert trial_line(9, TrialFailure("NaN")) == "trial 9: failed: NaN"
