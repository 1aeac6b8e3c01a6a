# SPDX-License-Identifier: Apache-2.0
"""The main job on the bundled model, from the command line to the saved, reloaded and re-measured folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from heretic.constants import DEFAULT_SYSTEM_PROMPT
from heretic.demo import model_path, prompts_path
from heretic.scorers.markers import marker_scorer
from heretic.study.catalogue import load_finished

from .support import TRIALS, Ended, here, run_flags


def test_json_document_has_every_key_of_the_contract(finished: tuple[Path, Ended]) -> None:
    """R-FMT-03, R-CLI-23: stdout is exactly one document."""
    _, ended = finished
    assert ended.code == 0, ended.err
    document = ended.document
    for key in (
        "model",
        "settings",
        "baseline",
        "front",
        "chosen",
        "verified",
        "timings",
        "output",
        "status",
    ):
        assert key in document
    assert {"behaviour_rate", "n"} <= set(document["baseline"])
    assert {"trial", "behaviour_rate", "interval", "kl_mean", "kl_first_token", "parameters"} <= set(
        document["chosen"]
    )
    assert {"total_s", "search_s", "trials", "per_trial_s"} <= set(document["timings"])
    assert document["timings"]["trials"] == TRIALS


def test_the_behaviour_goes_and_the_model_stays(finished: tuple[Path, Ended]) -> None:
    """At least 95 % refusals before; so few trials remove most of them at a small KL."""
    document = finished[1].document
    assert document["baseline"]["behaviour_rate"] >= 0.95
    assert document["chosen"]["behaviour_rate"] <= 0.1
    assert document["chosen"]["kl_mean"] <= 0.5
    assert document["verified"]["hits"] == document["chosen"]["hits"]


def test_saved_folder_gives_the_remeasured_figures_in_plain_transformers(
    finished: tuple[Path, Ended],
) -> None:
    """R-OUT-06: no code of ours between the files and the count, one prompt at a time."""
    folder, ended = finished
    out = folder / "out"
    network: Any = AutoModelForCausalLM.from_pretrained(out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out)
    rows = prompts_path("refusal-bad", "test").read_text(encoding="utf-8").splitlines()[:24]
    scorer = marker_scorer({})
    hits = 0
    for row in rows:
        messages = [
            {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
            {"role": "user", "content": json.loads(row)["text"]},
        ]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        reply = network.generate(ids, do_sample=False, max_new_tokens=48)[0, ids.shape[1] :]
        hits += scorer.judge([""], [tokenizer.decode(reply, skip_special_tokens=True)])[0].hit
    assert hits == ended.document["verified"]["hits"]


def test_only_declared_sites_changed_and_other_files_are_byte_equal(finished: tuple[Path, Ended]) -> None:
    """R-OUT-04, R-OUT-05, REL-10."""
    folder, ended = finished
    strengths = ended.document["chosen"]["strengths"]
    with (
        safe_open(model_path() / "model.safetensors", "pt") as base,
        safe_open(folder / "out" / "model.safetensors", "pt") as edited,
    ):
        assert list(base.keys()) == list(edited.keys())
        changed = {k for k in base.keys() if not torch.equal(base.get_tensor(k), edited.get_tensor(k))}  # noqa: SIM118
    assert changed == set(strengths)
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "generation_config.json"):
        assert (model_path() / name).read_bytes() == (folder / "out" / name).read_bytes()
    stated, written = (
        json.loads((path / "tokenizer_config.json").read_text()) for path in (model_path(), folder / "out")
    )
    if isinstance(stated.get("extra_special_tokens"), list):  # the one exception, R-MOD-43
        stated["additional_special_tokens"] = stated["extra_special_tokens"]
        stated["extra_special_tokens"] = {}
    assert written == stated


def test_checksums_cover_every_file(finished: tuple[Path, Ended]) -> None:
    """R-FMT-02."""
    out = finished[0] / "out"
    lines = [line.split(maxsplit=1) for line in (out / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert {name.lstrip("*") for name in listed} == names
    for name, digest in listed.items():
        assert hashlib.sha256((out / name.lstrip("*")).read_bytes()).hexdigest() == digest


def test_manifest_holds_no_path_of_this_machine(finished: tuple[Path, Ended]) -> None:
    """R-FMT-01, I03."""
    text = (finished[0] / "out" / "heretic_run.json").read_text()
    assert str(finished[0]) not in text
    assert str(model_path().parent) not in text


def test_same_command_again_continues_and_refuses_to_overwrite(
    finished: tuple[Path, Ended], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-47, R-SEA-21: the finished study is not searched again, and the output is not replaced silently."""
    folder, first = finished
    for source in folder.glob("study.db*"):
        shutil.copy(source, tmp_path)
    shutil.copytree(folder / "out", tmp_path / "out")
    refused = here(*run_flags(tmp_path, TRIALS), capture=capsys)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    again = here(*run_flags(tmp_path, TRIALS, "--overwrite", "--yes"), "--json", capture=capsys)
    assert again.code == 0, again.err
    assert again.document["chosen"]["trial"] == first.document["chosen"]["trial"]
    assert again.document["timings"]["trials_here"] == 0


def test_verify_finds_a_flipped_bit(
    finished: tuple[Path, Ended], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-11, REL-05: an intact folder passes with its figures measured again; one flipped bit does not."""
    folder, _ = finished
    intact = here("verify", str(folder / "out"), "--base", str(model_path()), "--json", capture=capsys)
    assert intact.code == 0, intact.err
    assert intact.document["grade"] == "bit-equal"
    copy = tmp_path / "copy"
    shutil.copytree(folder / "out", copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 4
    (copy / "model.safetensors").write_bytes(bytes(data))
    damaged = here("verify", str(copy), capture=capsys)
    assert damaged.code == 1
    assert "model.safetensors" in damaged.err + damaged.out


def test_trials_keep_classes_and_sample_replies(finished: tuple[Path, Ended]) -> None:
    """R-EVA-10: what a trial said can be read later; a trial that was cut short keeps no such figures."""
    trials = load_finished(f"sqlite:///{finished[0] / 'study.db'}", "heretic_study")
    complete = [trial.scores.measured for trial in trials if trial.scores.measured["status"] == "complete"]
    assert complete
    for measured in complete:
        classes = measured["classes"]
        assert isinstance(classes, dict) and sum(classes.values()) == measured["n"]
        assert measured["samples"]
    cut = [trial.scores.measured for trial in trials if trial.scores.measured["status"] != "complete"]
    assert all("samples" not in measured and measured["hits"] is None for measured in cut)


@pytest.mark.timeout(180)
def test_a_search_that_stands_still_ends_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requirements 3.4, stop_on_stall: the report names the reason; control: without the flag all trials are made."""
    monkeypatch.setattr("heretic.study.progress.STALL_TRIALS", 8)
    monkeypatch.setattr("heretic.study.progress.STALL_GROWTH", 0.5)
    more = ("--sampler=qmc", "--json")
    for name in ("stalled", "whole"):
        (tmp_path / name).mkdir()
    stalled = here(*run_flags(tmp_path / "stalled", 24, *more, "--stop-on-stall"), capture=capsys)
    assert stalled.code == 0, stalled.err
    assert stalled.document["study"]["ended"] == "stalled"
    assert 8 < stalled.document["timings"]["trials"] < 24
    whole = here(*run_flags(tmp_path / "whole", 16, *more), capture=capsys)
    assert whole.document["study"]["ended"] == "finished" and whole.document["timings"]["trials"] == 16
