# SPDX-License-Identifier: Apache-2.0
"""Command lines that must work as written (requirements R-CLI-60), and the ways of a user through the commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .world import World, base_run, joined

SETTINGS = """\
allow_zero_baseline = true
offline = true
max_response_length = 40
kl_divergence_tokens = 2
finalists = 1
time_budget = "1s"
trials_per_batch = 2
n_startup_trials = 2

[bad_prompts]
dataset = "bad.txt"
split = "train[:30]"
[good_prompts]
dataset = "good.txt"
split = "train[:30]"
[bad_evaluation_prompts]
dataset = "bad.txt"
split = "train[30:36]"
[good_evaluation_prompts]
dataset = "good.txt"
split = "train[30:36]"
[bad_confirmation_prompts]
dataset = "bad.txt"
split = "train[40:46]"
[good_confirmation_prompts]
dataset = "good.txt"
split = "train[40:46]"
[over_behaviour_prompts]
dataset = "good.txt"
split = "train[50:54]"
"""
"""A user's config.toml; the command lines stay as they are written in the requirements."""

LINES = (
    ("model", None),
    ("--model model", None),
    ("run --model model", None),
    ("--model model --auto-select true --n-trials 20 --compile", "model-heretic"),
    (
        "--model model --auto-select true --cache-weights false --storage sqlite:///study.db "
        "--unhelpfulness-prompts.config en",
        "model-heretic",
    ),
    (
        "--model model --auto-select true --auto-select-path {here}/models --storage sqlite:///{here}/heretic_study.db "
        "--study-name qwen32b-abliteration --cache-weights false --n-trials 200 --unhelpfulness-prompts.config en",
        "models/model-heretic",
    ),
    ("--model model --ensemble-probe-pca false --use-pca-extraction true", None),
    ("--model model --use-circuit-ablation false", None),
    ("--model model --refusal-check-tokens 30", None),
)


@pytest.mark.parametrize(("line", "output"), LINES, ids=range(len(LINES)))
def test_r_cli_60_line_works_as_written(line: str, output: str | None, world: World) -> None:
    """R-CLI-60; without auto-select and terminal R-HDL-01: the front and the export commands, nothing saved, exit 0."""
    world.write("config.toml", SETTINGS)
    (world.folder / "models").mkdir()
    told = world.heretic(*shlex.split(line.format(here=world.folder)))
    assert told.code == 0, told.err
    saved = [path.parent for path in world.folder.rglob("SHA256SUMS")]
    if output is None:
        assert not saved
        assert "heretic export heretic_study --trial" in told.out
    else:
        assert saved == [world.folder / output]
        assert output in joined([told.out])


def test_a_user_looks_at_a_study_exports_evaluates_verifies_and_deletes_it(world: World) -> None:
    """R-CLI-08 to R-CLI-11, R-CLI-27, R-HDL-01: the printed commands work as printed."""
    run = [word for word in base_run("--storage=sqlite:///study.db") if not word.startswith("--auto-select")]
    first = world.heretic(*run)
    assert first.code == 0, first.err
    printed = [line for line in first.out.splitlines() if line.startswith("heretic export")]
    assert printed
    storage = ["--storage", "sqlite:///study.db"]

    listed = world.heretic("study", "list", *storage)
    assert "heretic_study" in listed.out and "4" in listed.out
    shown = world.heretic("study", "show", "heretic_study", *storage, "--json")
    assert shown.document["finished"] == 4 and len(shown.document["trials"]) == 4
    front = world.heretic("study", "front", "heretic_study", *storage, "--json").document["front"]
    assert {row["trial"] for row in front} <= {row["trial"] for row in shown.document["trials"]}

    missing = world.heretic("export", "heretic_study", "--trial", "99", "--model", "model", *storage)
    assert missing.code == 2 and "99" in missing.err and "Traceback" not in missing.err

    more = [word for word in run if "prompts" in word or word == "--allow-zero-baseline"]
    exported = world.heretic(*shlex.split(printed[0])[1:], "--out", "out", "--offline")
    assert exported.code == 0, exported.err
    assert "0 of" not in exported.err and (world.folder / "out" / "SHA256SUMS").is_file()
    automatic = world.heretic(
        "export", "heretic_study", "--model", "model", *storage, "--out", "best", "--json", *more
    )
    assert automatic.code == 0, automatic.err
    assert Path(str(automatic.document["output"])).name == "best"

    verified = world.heretic("verify", "out", "--base", "model", "--json")
    assert verified.code == 0 and verified.document["passed"], verified.err
    compared = world.heretic(
        "evaluate", "out", "--against", "model", *more, "--max-response-length=8", "--offline"
    )
    assert compared.code == 0, compared.err
    assert "KL noise floor" in compared.out

    freed = world.heretic("study", "unlock", "heretic_study", *storage)
    assert freed.code == 0 and "is free" in freed.out
    kept = world.heretic("study", "delete", "heretic_study", *storage)
    assert kept.code == 2 and "--yes" in kept.err
    gone = world.heretic("study", "delete", "heretic_study", *storage, "--yes")
    assert gone.code == 0
    assert "no studies" in world.heretic("study", "list", *storage).out


def test_a_finished_study_grows_and_needs_no_search_again(world: World) -> None:
    """R-SEA-20, R-SEA-21: the same command repeats nothing, a larger total adds the difference."""

    def run(*more: str) -> dict[str, object]:
        words = [word for word in base_run(*more, "--json") if not word.startswith("--n-startup-trials")]
        told = world.heretic(*words)
        assert told.code == 0, told.err
        timings: dict[str, object] = told.document["timings"]
        return timings

    run()
    assert run("--overwrite", "--yes")["trials_here"] == 0
    more = run("--overwrite", "--yes", "--n-trials=6")
    assert more["trials_here"] == 2 and more["trials"] == 6


def test_quiet_says_results_only_and_verbose_says_more(world: World) -> None:
    """R-CLI-20."""
    quiet = world.heretic(*base_run("--quiet", "--storage="))
    assert quiet.code == 0
    assert not [line for line in quiet.err.splitlines() if not line.startswith(("warning:", "  - "))]
    assert "Before and after" in quiet.out
    verbose = world.heretic(*base_run("--verbose", "--storage=", "--auto-select-path=loud"))
    assert verbose.code == 0 and len(verbose.err) > 3 * len(quiet.err)


def test_looking_commands_read_and_change_nothing(world: World) -> None:
    """R-CLI-03, R-CLI-04, R-CLI-25: inspect, dry run and show-config; nothing is written."""
    before = world.snapshot()
    plan = world.heretic(*base_run("--dry-run", "--json"))
    assert plan.code == 0, plan.err
    assert plan.document["status"] == "planned" and plan.document["plan"]["trials"] == 4
    seen = world.heretic("inspect", "model", "--json")
    assert seen.document["layers"] == 2 and seen.document["coverage"] == 1.0
    probed = world.heretic("inspect", "model", "--probe")
    assert probed.code == 0 and "float32" in probed.out
    config = world.heretic("show-config", *base_run())
    assert config.code == 0 and "--n-trials" in config.out
    toml = world.heretic("show-config", *base_run(), "--toml")
    assert world.snapshot() == before
    world.write("again.toml", toml.out)
    loaded = json.loads(world.heretic("show-config", "--config", "again.toml", "--json").out)
    assert loaded["exit_code"] == 0


@pytest.mark.parametrize(
    "name",
    ["a model with spaces", "Modell-Größe", "模型", "model'quote"],
    ids=["spaces", "umlaut", "cjk", "quote"],
)
def test_odd_folder_names_work_from_load_to_export(name: str, world: World) -> None:
    """R-GEN-10: non-ASCII paths and names with spaces."""
    world.model.rename(world.folder / name)
    told = world.heretic(*base_run(f"--auto-select-path=out {name}", "--storage=sqlite:///s.db", model=name))
    assert told.code == 0, told.err
    assert (world.folder / f"out {name}" / "SHA256SUMS").is_file()
    assert name in told.out
    assert world.heretic("verify", f"out {name}", "--base", name).code == 0
