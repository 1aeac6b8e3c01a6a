# SPDX-License-Identifier: Apache-2.0
"""Which experiments there are, and what each of them measures (requirements R-XPT-01)."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final, Literal

from heretic.config.behaviour import PackHeader
from heretic.config.schema import deep_tuples
from heretic.exceptions import ConfigurationError

CONFIG: Final = "config.toml"
README: Final = "README.md"
RESULTS: Final = "results.json"
PROMPTS: Final = "prompts.jsonl"

Kind = Literal["reduction", "at_most"]


@dataclass(frozen=True, slots=True)
class Target:
    """What an experiment aims at on the held-out prompts that show the behaviour.

    metric: its figure. group: the kind of prompt it is taken on, empty = all. kind: `reduction` (relative, the bound is
    the least one) or `at_most` (the figure after the edit). kept: a quality figure that must not fall by more than
    `KEPT_MARGIN`, on prompts of the kind `kept_group`. The bound is the pack's, `[targets]`, under `key`.
    """

    metric: str
    group: str = ""
    kind: Kind = "reduction"
    kept: str = ""
    kept_group: str = ""

    @property
    def key(self) -> str:
        """Name in the pack's `[targets]`."""
        return f"{self.metric}_{self.kind}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment.

    question: one line. metrics: names in `metrics.METRICS`, the main one first. tokens: length of scored replies.
    groups: kinds of prompts that are also reported apart. planted: the packaged pack with the same behaviour planted
    into the demo model; empty where the demo model cannot show it. planted_settings: of a run on it, unless the user
    says otherwise.
    """

    name: str
    question: str
    metrics: tuple[str, ...]
    tokens: int
    target: Target
    groups: tuple[str, ...] = ()
    planted: str = ""
    planted_settings: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Traversable:
        """The packaged folder; read only."""
        return resources.files("heretic") / "experiments" / self.name


LENGTHS: Final = ("words", "tokens", "characters", "padding")

GENTLE: Final = (
    ("search_space.direction_source", "covector"),
    ("search_space.max_weight", "[-0.25, 0.8]"),
    ("search_space.min_weight", "[0.9, 1.0]"),
    ("search_space.min_weight_distance", "[0.9, 1.0]"),
)
"""In the demo model words and answers trade off along the strength (docs/behaviours.md): a full removal leaves a third
of the words and costs one answer in ten, because the objective sees length alone."""

EXPERIMENTS: Final = (
    Experiment(
        name="verbosity",
        question="Do answers to short questions lose their padding?",
        metrics=(*LENGTHS, "content"),
        tokens=200,
        target=Target("words", kept="content"),
        planted="demo-verbosity",
        planted_settings=GENTLE,
    ),
    Experiment(
        name="verbosity_v2",
        question="Is elaboration removed from simple questions while open questions keep their content?",
        metrics=(*LENGTHS, "content"),
        tokens=256,
        target=Target("words", group="simple", kept="content", kept_group="open"),
        groups=("simple", "open"),
        planted="demo-verbosity",
        planted_settings=GENTLE,
    ),
    Experiment(
        name="hedging",
        question="Does the model say what it knows without weakening it, and stay right?",
        metrics=("hedges", "hedged", "words", "content"),
        tokens=150,
        target=Target("hedges", kept="content"),
        planted="demo-hedging",
    ),
    Experiment(
        name="code_refusal",
        question="Are harmless coding requests with alarming words still refused?",
        metrics=("refusals", "words", "parses"),
        tokens=200,
        target=Target("refusals", kind="at_most"),
        planted="demo",
        planted_settings=(("n_trials", "40"), ("n_startup_trials", "20")),
    ),
    Experiment(
        name="code_verbosity",
        question="Does code come with less prose around it, and does it still parse?",
        metrics=("prose", "comments", "words", "parses", "content"),
        tokens=256,
        target=Target("prose", kept="parses"),
    ),
)


def names() -> tuple[str, ...]:
    """Names of all experiments."""
    return tuple(experiment.name for experiment in EXPERIMENTS)


def find(name: str) -> Experiment:
    """The experiment of that name; dashes count as underscores. Raises `ConfigurationError` naming near ones."""
    wanted = name.replace("-", "_")
    for experiment in EXPERIMENTS:
        if experiment.name == wanted:
            return experiment
    near = difflib.get_close_matches(wanted, names(), n=1)
    raise ConfigurationError(
        f"There is no experiment {name!r}.",
        hint=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(names())}.",
    )


@cache
def header(experiment: Experiment) -> PackHeader:
    """What the experiment's pack says beside settings."""
    values = tomllib.loads((experiment.folder / CONFIG).read_text(encoding="utf-8"))
    return PackHeader.model_validate(
        deep_tuples({key: values[key] for key in PackHeader.model_fields if key in values})
    )


def bound(experiment: Experiment) -> float:
    """The figure that the experiment aims at, from its pack."""
    return header(experiment).targets[experiment.target.key]


def target_text(experiment: Experiment) -> str:
    """The target in words."""
    target = experiment.target
    where = f" on {target.group} questions" if target.group else ""
    whose = f" of {target.kept_group} questions" if target.kept_group else ""
    kept = f", {target.kept}{whose} kept" if target.kept else ""
    if target.kind == "reduction":
        return f"{target.metric} down by at least {bound(experiment):.0%}{where}{kept}"
    return f"{target.metric} at most {bound(experiment):.0%}{where}{kept}"


def planted_settings(pack: str) -> dict[str, str]:
    """What runs on the bundled model state beside a pack of planted behaviour; empty for every other one."""
    return next((dict(entry.planted_settings) for entry in EXPERIMENTS if entry.planted == pack), {})
