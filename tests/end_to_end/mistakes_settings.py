# SPDX-License-Identifier: Apache-2.0
"""The catalogue of seeded mistakes: settings files, flags and variables (reliability REL-09)."""

from __future__ import annotations

from .mistakes import Mistake, with_file
from .world import base_run

SETTINGS = (
    Mistake("no model", ["--n-trials", "3"], 2, "ConfigurationError", ["model"]),
    Mistake(
        "batch below zero", base_run("--batch-size=-1"), 2, "ConfigurationError", ["batch_size", "-1", "0"]
    ),
    Mistake(
        "largest batch of zero",
        base_run("--max-batch-size=0"),
        2,
        "ConfigurationError",
        ["max_batch_size", "> 0"],
    ),
    Mistake(
        "unknown engine",
        base_run("--engine=warp"),
        2,
        "ConfigurationError",
        ["engine", "warp", "auto", "fast", "reference"],
    ),
    Mistake(
        "reuse budget of nothing",
        base_run("--reuse-budget=0"),
        2,
        "ConfigurationError",
        ["reuse_budget", "> 0"],
    ),
    Mistake(
        "more trials in a pass than memory holds",
        base_run("--trials-per-batch=1000000000"),
        2,
        "ConfigurationError",
        ["trials_per_batch is 1000000000", "Allowed here: 1 to"],
        loads=True,
    ),
    Mistake("flag misspelt", base_run("--n-trails=5"), 2, "UnknownSettingError", ["n-trails", "n-trials"]),
    Mistake(
        "key misspelt in a file",
        base_run(),
        2,
        "UnknownSettingError",
        ["config.toml:2", "n_trails", "n_trials"],
        with_file("config.toml", "seed = 1\nn_trails = 5\n"),
    ),
    Mistake(
        "key misspelt in a table",
        base_run(),
        2,
        "UnknownSettingError",
        ["config.toml:2", "splitt", "split"],
        with_file("config.toml", "[bad_prompts]\nsplitt = 'train'\n"),
    ),
    Mistake(
        "top-level key inside a table",
        base_run(),
        2,
        "UnknownSettingError",
        ["config.toml:3", "n_trials", "above"],
        with_file("config.toml", "[bad_prompts]\nsplit = 'train'\nn_trials = 5\n"),
    ),
    Mistake(
        "malformed TOML",
        base_run(),
        2,
        "ConfigurationError",
        ["config.toml:2:9"],
        with_file("config.toml", "seed = 1\nstudy = = 2\n"),
    ),
    Mistake(
        "TOML in another encoding",
        base_run(),
        2,
        "ConfigurationError",
        ["config.toml", "UTF-8"],
        with_file("config.toml", "seed = 1\n".encode("utf-16")),
    ),
    Mistake(
        "settings file missing",
        base_run("--config", "nowhere.toml"),
        2,
        "ConfigurationError",
        ["nowhere.toml"],
    ),
    Mistake("out of range", base_run("--n-trials=0"), 2, "ConfigurationError", ["n-trials", "0"]),
    Mistake("wrong type", base_run("--n-trials=many"), 2, "ConfigurationError", ["n-trials", "many"]),
    Mistake(
        "two at once",
        base_run("--n-trials=many", "--sampler=best"),
        2,
        "ConfigurationError",
        ["many", "best", "tpe"],
    ),
    Mistake("value missing", base_run("--seed"), 2, "ConfigurationError", ["seed"]),
    Mistake(
        "wrong type in a file",
        base_run(),
        2,
        "ConfigurationError",
        ["config.toml:1", "seed"],
        with_file("config.toml", "seed = 'one'\n"),
    ),
    Mistake(
        "check length above reply length",
        base_run("--refusal-check-tokens=90"),
        2,
        "ConfigurationError",
        ["refusal_check_tokens", "max_response_length", "90", "8"],
    ),
    Mistake(
        "weights do not sum to one",
        base_run("--ensemble-weight-probe=0.9"),
        2,
        "ConfigurationError",
        ["ensemble_weight_probe", "ensemble_weight_pca"],
    ),
    Mistake(
        "strategy against a switch",
        base_run("--strategy=single", "--use-concept-cones"),
        2,
        "ConfigurationError",
        ["strategy", "use_concept_cones"],
    ),
    Mistake(
        "layer ranges overlap",
        base_run(
            '--layer-range-profiles=[{"start":0.0,"end":0.6,"multiplier":1.0},{"start":0.5,"end":1.0,"multiplier":1.0}]'
        ),
        2,
        "ConfigurationError",
        ["layer_range_profiles"],
    ),
    Mistake(
        "two strategies at once",
        base_run("--strategy=cones", "--use-caa"),
        2,
        "ConfigurationError",
        ["use_caa", "contradicts", "cones"],
    ),
    Mistake(
        "protection that the strategy breaks",
        base_run("--use-sacred-directions", "--strategy=norm_preserving"),
        2,
        "ConfigurationError",
        ["use_sacred_directions", "contradicts", "norm_preserving"],
    ),
    Mistake(
        "default switched on explicitly",
        base_run("--use-neural-refusal-detection=true"),
        1,
        "NetworkError",
        ["bart-large-mnli", "--no-use-neural-refusal-detection"],
    ),
    Mistake(
        "export format of a later version",
        base_run("--export-formats=lora"),
        2,
        "ConfigurationError",
        ["lora", "not available"],
    ),
    Mistake(
        "unknown behaviour", base_run("--behaviour=refusel"), 2, "ConfigurationError", ["refusel", "refusal"]
    ),
    Mistake("unused setting", base_run("--n-concept-cones=3"), 2, "UnusedSettingError", ["n_concept_cones"]),
    Mistake("unknown family", base_run("--model-family=lama"), 2, "WarmStartError", ["lama"]),
    Mistake(
        "duration", base_run("--time-budget=soon"), 2, "ConfigurationError", ["time-budget", "soon", "90s"]
    ),
    Mistake("log level", base_run("--log-level=loud"), 2, "ConfigurationError", ["loud", "info"]),
    Mistake("switch with a word", base_run("--json=maybe"), 2, "ConfigurationError", ["maybe"]),
    Mistake(
        "bad regular expression",
        base_run("--evasive-patterns=(["),
        2,
        "ConfigurationError",
        ["evasive_patterns", "(["],
    ),
)
