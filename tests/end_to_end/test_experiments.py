# SPDX-License-Identifier: Apache-2.0
"""Experiments from prompts to results on the bundled model, in which the behaviours were planted (R-XPT-03, R-XPT-06).

The default run measures a known edit of each behaviour and one small run of the whole chain; the searches are `slow`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from heretic.cli import experiment as commands
from heretic.cli.context import Context
from heretic.cli.flags import split_flags
from heretic.cli.rim import guarded
from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.experiments import runner
from heretic.experiments.catalogue import EXPERIMENTS, find
from heretic.experiments.results import BASE, EDITED, INSTRUCTION, RANDOM, Results, read_results
from heretic.experiments.runner import Trial
from heretic.experiments.workspace import Workspace, defaults
from heretic.interventions.placement import Parameters
from heretic.stop import StopFlag

LAYERS = 8
HELD_OUT = (
    "--bad-evaluation-prompts.split=validation[:16]",
    "--good-evaluation-prompts.split=validation[:16]",
    "--bad-confirmation-prompts.split=test[100:140]",
    "--good-confirmation-prompts.split=test[100:140]",
    "--over-behaviour-prompts.split=test[:8]",
)
TINY = (
    "--n-trials=4", "--finalists=1", "--max-response-length=24", "--refusal-check-tokens=8",
    "--bad-prompts.split=train[:16]", "--good-prompts.split=train[:16]",
    "--bad-evaluation-prompts.split=validation[:8]", "--good-evaluation-prompts.split=validation[:8]",
    "--bad-confirmation-prompts.split=test[:10]", "--good-confirmation-prompts.split=test[:10]",
    "--over-behaviour-prompts.split=test[20:24]", "--select-max-kl=2",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """What a command line gave."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def heretic_experiment(capture: pytest.CaptureFixture[str], *words: str) -> Ended:
    """`heretic experiment WORDS` in this process."""
    flags, rest = split_flags(["experiment", *words])
    context = Context(Console(json=flags.json, quiet=flags.quiet, color=False), flags)
    app = App(name="heretic", help_formatter="plain")
    commands.register(app)

    def action() -> int:
        command, bound, injected = app.parse_args(rest, exit_on_error=False, print_error=False)
        return int(command(*bound.args, **bound.kwargs, **dict.fromkeys(injected, context)) or 0)

    code = guarded(action, context)
    captured = capture.readouterr()
    return Ended(code, captured.out, captured.err)


def kernel(attention: float, feed_forward: float, half_width: float) -> dict[str, float]:
    """A flat kernel in the last layers."""
    found: dict[str, float] = {}
    for component, peak in (("attn.o_proj", attention), ("mlp.down_proj", feed_forward)):
        found |= {f"{component}.max_weight": peak, f"{component}.max_weight_position": LAYERS - 1.0}
        found |= {f"{component}.min_weight": 1.0, f"{component}.min_weight_distance": half_width}
    return found


FEW = TINY[4:]
KNOWN: dict[str, Parameters] = {
    "verbosity": {
        "direction_scope": "global", "direction_index": 6.5, "direction_source": "covector", **kernel(0.8, 0.8, 8),
    },
    "hedging": {
        "direction_scope": "global", "direction_index": 4.5, "direction_source": "covector", **kernel(1.5, 0, 2.5),
    },
}  # fmt: skip
"""An edit that removes the planted behaviour."""


def measured(folder: Path, name: str, parameters: Parameters, flags: tuple[str, ...] = HELD_OUT) -> Results:
    """Base, edit and controls on held-out prompts, 40 + 40 unless the flags say otherwise."""
    workspace = Workspace(find(name), folder, planted=True)
    set_up = [f"--{key.replace('_', '-')}={value}" for key, value in defaults(workspace).items()]
    resolved = resolve_settings([*set_up, *flags], environ={}, cwd=folder)
    trial = Trial(0, parameters, None)
    return runner.evaluate_trial(workspace, resolved, trial, console=Console(quiet=True), stop=StopFlag())


@pytest.mark.parametrize(("name", "least"), [("verbosity", 0.3), ("hedging", 0.5)])
def test_a_planted_behaviour_falls_and_what_was_asked_stays(name: str, least: float, tmp_path: Path) -> None:
    """R-XPT-04, R-XPT-06: the target on held-out prompts, at a small KL, the content kept; the controls do nothing."""
    found = measured(tmp_path, name, KNOWN[name])
    main = found.of(EDITED, "bad", "", find(name).target.metric)
    content = found.of(EDITED, "bad", "", "content")
    assert main is not None and content is not None and main.relative is not None
    assert found.target.met is True and found.target.reached == -main.relative
    assert main.n == 40 and main.relative < -least and main.interval.high < 0.0
    assert main.relative_interval is not None and main.relative_interval.high < -least
    assert content.base > 0.8 and content.difference > -0.05
    assert 0.0 < found.kl[EDITED]["mean"] < 0.05
    for side in (RANDOM, INSTRUCTION):
        control = found.of(side, "bad", "", main.metric)
        assert control is not None and control.value > 0.8 * main.base, side
    assert any(entry[INSTRUCTION] != entry[BASE] for entry in found.replies), "it was told"
    if (
        name == "verbosity"
    ):  # the scale of the scorer follows the length of scored replies: 0.75 words a token
        assert found.objective[BASE] == pytest.approx(main.base / (0.75 * 200), rel=1e-6)
    good = found.of(EDITED, "good", "", "words")
    assert good is not None and abs(good.relative or 0.0) < 0.05, "where nothing is to change, nothing does"
    assert {*found.replies[0]} == {"id", "prompt", BASE, EDITED, RANDOM, INSTRUCTION}
    assert read_results(tmp_path / "results.json").target.met is True


def test_no_edit_is_no_result(tmp_path: Path) -> None:
    """Control of the test above: with strength 0 all figures are those of the base, and the target is missed."""
    found = measured(tmp_path, "hedging", {**KNOWN["hedging"], **kernel(0, 0, 2.5)}, FEW)
    assert found.target.met is False
    own = [figure for figure in found.figures if figure.side == EDITED]
    assert own and all(figure.difference == 0.0 for figure in own)
    assert abs(found.kl[EDITED]["mean"]) < 1e-6


@pytest.mark.timeout(240)
def test_one_command_line_prepares_searches_saves_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-XPT-03: `run`, then `report` gives the same tables, then `evaluate` measures the saved model from its files."""
    monkeypatch.chdir(tmp_path)
    ran = heretic_experiment(capsys, "run", "hedging", "--demo", "--json", *TINY)
    assert ran.code in (0, 3), ran.err  # four trials need not find a good one
    assert ran.document["exit_code"] == ran.code and ran.document["run"]["chosen"] is not None
    folder = tmp_path / "experiments" / "hedging-demo"
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert stored == ran.document["results"] and len(stored["replies"]) == 20
    assert stored["manifest"] and stored["trial"]["index"] == ran.document["run"]["chosen"]["trial"]
    held_out = ran.document["run"]["chosen"]["kl_mean"]
    assert stored["kl"]["edited"]["mean"] == pytest.approx(held_out, rel=1e-3), (
        "the same edit from a second load"
    )
    again = heretic_experiment(capsys, "report", "hedging", "--demo")
    assert again.code == 0 and "Target: hedges" in again.out
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == stored

    saved = next(folder.glob("*-hedging"))
    short = [word for word in TINY if "confirmation" in word or "length" in word or "check" in word]
    pair = heretic_experiment(
        capsys, "evaluate", "hedging", "--original", str(model_path()), "--modified", str(saved), "--json",
        "--bad-confirmation-prompts.split=train[:5]", "--good-confirmation-prompts.split=train[:5]", "--offline",
        *(word for word in short if "confirmation" not in word),
    )  # fmt: skip
    assert pair.code == 0, pair.err
    results = pair.document["results"]
    assert results["modified"]["name"] == saved.name and results["model"]["name"] == "the demo model"
    assert results["manifest"] == stored["manifest"] and results["trial"] == stored["trial"]
    assert results["n"] == {"bad": 5, "good": 5} and results["kl"]["edited"]["mean"] > 0.0
    prepared = tmp_path / "experiments" / "hedging"
    assert len((prepared / "data" / "bad-test.jsonl").read_text(encoding="utf-8").splitlines()) == 30
    assert "against the demo model" in (prepared / "README.md").read_text(encoding="utf-8")


def test_commands_that_load_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-CLI-16, R-CLI-25: list, show, prepare; a dry run writes nothing."""
    monkeypatch.chdir(tmp_path)
    listed = heretic_experiment(capsys, "list", "--json").document["experiments"]
    assert [row["experiment"] for row in listed] == [entry.name for entry in EXPERIMENTS]
    shown = heretic_experiment(capsys, "show", "hedging", "--json").document
    assert shown["prompts"]["bad"] == {"train": 50, "validation": 20, "test": 30}
    planned = heretic_experiment(capsys, "prepare", "hedging", "--dry-run", "--json").document
    assert planned["status"] == "planned" and "data/bad-test.jsonl" in planned["plan"]["written"]
    run = heretic_experiment(
        capsys, "run", "hedging", "--dry-run", "--json", f"--model={model_path()}", "--offline"
    )
    assert run.code == 0 and run.document["plan"]["prompts"]["bad_confirmation"] == 30, run.err
    assert not list(tmp_path.iterdir())
    assert heretic_experiment(capsys, "prepare", "hedging").code == 0
    assert (tmp_path / "experiments" / "hedging" / "data" / "bad-test.jsonl").is_file()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("show", "nothing"), "ConfigurationError"),
        (("run", "code_verbosity", "--demo"), "ConfigurationError"),
        (("run", "hedging", "--demo", "--goal", "induce"), "ConfigurationError"),
        (("run", "hedging", "--demo", "--n-trails", "5"), "UnknownSettingError"),
        (("run", "hedging", "--quick", "--model", "m"), "DatasetError"),
        (("prepare", "hedging", "--good", "x.json"), "ConfigurationError"),
        (("report", "hedging"), "FileOperationError"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(
    words: tuple[str, ...],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = heretic_experiment(capsys, *words, "--json")
    assert ended.code == (1 if kind in ("DatasetError", "FileOperationError") else 2)
    assert ended.document["error"]["type"] == kind


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [entry.name for entry in EXPERIMENTS if entry.planted])
def test_the_search_reaches_the_target_on_planted_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-XPT-06, with the settings of the packs."""
    monkeypatch.chdir(tmp_path)
    ran = heretic_experiment(capsys, "run", name, "--demo", "--json")
    assert ran.code == 0, ran.err
    found = read_results(tmp_path / "experiments" / f"{name}-demo" / "results.json")
    assert found.target.met is True, found.target
    assert found.kl[EDITED]["mean"] < 0.1
