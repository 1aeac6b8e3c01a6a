# SPDX-License-Identifier: Apache-2.0
"""The cascade: every pair of layers merged right for every field (R-CFG-01, R-CFG-02, R-CFG-08)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from heretic.config import schema
from heretic.config.behaviour import PACK_SETTINGS
from heretic.config.command_line import command_line_layer, flag_of
from heretic.config.describe import toml_value
from heretic.config.files import dotenv_layer, environment_layer, load_toml, table_layer, toml_layer
from heretic.config.layers import Layer, merge
from heretic.config.resolve import default_layer
from heretic.config.schema import KeyPath
from heretic.config.settings import has_note
from heretic.config.tables import SOURCE_KEYS
from heretic.exceptions import ConfigurationError
from heretic.testing.settings_cases import leaf_paths, resolve, two_values, value_at

KINDS = ("default", "behaviour", "file", ".env", "environment", "command line")
Stated = Mapping[KeyPath, object]


def toml_text(stated: Stated) -> str:
    top = [f"{path[0]} = {toml_value(path[0], value)}" for path, value in stated.items() if len(path) == 1]
    tables: dict[str, list[str]] = {}
    for path, value in stated.items():
        if len(path) > 1:
            tables.setdefault(path[0], []).append(f"{path[1]} = {toml_value(path[1], value)}")
    return "\n".join([*top, *(line for name, rows in tables.items() for line in (f"[{name}]", *rows))]) + "\n"


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def layer_of(kind: str, stated: Stated, folder: Path) -> Layer:
    """The layer as its real reader makes it."""
    variables = {"HERETIC_" + "__".join(path).upper(): as_text(value) for path, value in stated.items()}
    if kind == "file":
        (folder / "config.toml").write_text(toml_text(stated), encoding="utf-8")
        return toml_layer(folder / "config.toml", "config.toml", trusted=True)
    if kind == "behaviour":
        (folder / "pack.toml").write_text(toml_text(stated), encoding="utf-8")
        values, text, _ = load_toml(folder / "pack.toml", "pack.toml")
        return table_layer("behaviour", values, text, "pack.toml")
    if kind == ".env":
        lines = [f"export {name}='{value}'\n" for name, value in variables.items()]
        (folder / ".env").write_text("".join(lines), encoding="utf-8")
        layer = dotenv_layer(folder)
        assert layer is not None
        return layer
    if kind == "environment":
        return environment_layer(variables)
    return command_line_layer([f"{flag_of(path)}={as_text(value)}" for path, value in stated.items()])


def writable(kind: str) -> list[KeyPath]:
    """Leaves a layer may state."""
    return [
        path
        for path in leaf_paths()
        if (kind == "command line" or not has_note(path[0], "consent"))
        and (kind != "behaviour" or path[0] in PACK_SETTINGS)
    ]


def leaves(layer: Layer) -> dict[KeyPath, object]:
    assert [finding.text for finding in layer.findings] == []
    return {path: schema.plain(entry.value) for path, entry in layer.entries.items()}


def lower_layer(kind: str, folder: Path) -> Layer:
    if kind == "default":
        return default_layer()
    return layer_of(kind, {path: two_values(path)[0] for path in writable(kind)}, folder)


@pytest.mark.parametrize(("below", "above"), list(itertools.combinations(KINDS, 2)))
def test_each_pair_of_layers_is_merged_right_for_every_field(below: str, above: str, tmp_path: Path) -> None:
    """R-CFG-08: the upper layer wins where it states something, and changes nothing else."""
    lower = lower_layer(below, tmp_path)
    before = leaves(lower)
    for path in writable(above):
        value = two_values(path)[1]
        upper = layer_of(above, {path: value}, tmp_path)
        said = leaves(upper)
        assert said, path
        replaced = {key[:-1] for key in said if len(key) > 1}
        expected = {**{key: item for key, item in before.items() if key not in replaced}, **said}
        if path[-1] == "dataset":
            expected = {
                key: item for key, item in expected.items() if key[0] != path[0] or key[-1] not in SOURCE_KEYS
            }
        merged, stated = merge([lower, upper])
        assert {key: schema.plain(entry.value) for key, entry in merged.items()} == expected, path
        for key in said:
            assert merged[key].value is not lower.entries.get(key)
            assert stated[key][-1][0] == above
            overridden = [schema.plain(entry.value) for _, entry in stated[key][:-1]]
            assert overridden == ([before[key]] if key in before else [])


def test_an_absent_flag_contributes_nothing() -> None:
    """Reliability D09."""
    assert command_line_layer([]).entries == {} and environment_layer({"PATH": "x"}).entries == {}


def test_whole_cascade(tmp_path: Path) -> None:
    """R-CFG-01: six layers, the highest wins, the others are remembered in order."""
    (tmp_path / "config.toml").write_text("\n\nn_trials = 100\n", encoding="utf-8")
    (tmp_path / ".env").write_text("HERETIC_N_TRIALS=60\n", encoding="utf-8")
    (tmp_path / ".env").chmod(0o600)
    resolved = resolve("m", "--n-trials", "20", cwd=tmp_path, environ={"HERETIC_N_TRIALS": "50"})
    origin = resolved.origins["n_trials"]
    assert (
        resolved.settings.n_trials == 20 and origin.layer == "command line" and origin.source == "--n-trials"
    )
    assert origin.overridden == (
        ("HERETIC_N_TRIALS", 50),
        (".env:1 HERETIC_N_TRIALS", 60),
        ("config.toml:3", 100),
        ("default", 200),
    )
    assert resolved.files == ("config.toml", ".env")
    assert "n_trials" in resolved.explicit and "seed" not in resolved.explicit


def test_later_config_files_win_and_replace_the_found_one(tmp_path: Path) -> None:
    for name, text in {"config": "seed = 1\n", "a": "seed = 2\nn_trials = 40\n", "b": "seed = 3\n"}.items():
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    assert resolve("m", cwd=tmp_path).settings.seed == 1
    resolved = resolve("m", cwd=tmp_path, files=[Path("a.toml"), Path("b.toml")])
    assert (resolved.settings.seed, resolved.settings.n_trials) == (3, 40)
    assert resolved.files == ("a.toml", "b.toml")


def test_the_users_folder_is_read_when_the_working_directory_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    home = tmp_path / "home" / "heretic"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("seed = 9\n", encoding="utf-8")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert resolve("m", cwd=tmp_path, environ=environ).settings.seed == 9
    (tmp_path / "config.toml").write_text("n_trials = 40\n", encoding="utf-8")
    assert resolve("m", cwd=tmp_path, environ=environ).settings.seed == 0


def test_example_flag_alone_takes_the_rest_from_defaults(tmp_path: Path) -> None:
    """Requirements 3.1, example 1."""
    resolved = resolve("m", "--unhelpfulness-prompts.config", "en", cwd=tmp_path)
    sets = resolved.settings.unhelpfulness_prompts
    assert (sets.dataset, sets.config, sets.split) == ("allenai/c4", "en", "train[:200]")


def test_example_an_absent_flag_does_not_reset_a_file(tmp_path: Path) -> None:
    """Requirements 3.1, example 2."""
    (tmp_path / "config.toml").write_text('[unhelpfulness_prompts]\nconfig = "de"\n', encoding="utf-8")
    resolved = resolve("m", cwd=tmp_path)
    assert resolved.settings.unhelpfulness_prompts.config == "de"
    assert resolved.origins["unhelpfulness_prompts.config"].source == "config.toml:2"


def test_example_a_flag_refines_the_table_of_a_file(tmp_path: Path) -> None:
    """Requirements 3.1, example 3."""
    text = '[unhelpfulness_prompts]\ndataset = "wikitext"\nconfig = "wikitext-2-raw-v1"\nsplit = "test"\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    resolved = resolve("m", "--unhelpfulness-prompts.split", "train[:50]", cwd=tmp_path)
    sets = resolved.settings.unhelpfulness_prompts
    assert (sets.dataset, sets.config, sets.split) == ("wikitext", "wikitext-2-raw-v1", "train[:50]")


def test_example_another_data_set_inherits_no_config(tmp_path: Path) -> None:
    """Requirements 3.1, example 4, and R-CFG-05; the loader then lists the variants."""
    sets = resolve(
        "m", "--unhelpfulness-prompts.dataset", "wikitext", cwd=tmp_path
    ).settings.unhelpfulness_prompts
    assert (sets.dataset, sets.config, sets.split, sets.column) == ("wikitext", None, "train", "text")
    same = resolve("m", "--unhelpfulness-prompts.dataset", "allenai/c4", cwd=tmp_path)
    assert same.settings.unhelpfulness_prompts.config == "en"


def test_example_a_higher_layer_keeps_what_it_states_beside_the_data_set(tmp_path: Path) -> None:
    """R-CFG-05: the same or a higher layer remains, a lower one is dropped, `sample` belongs to the use."""
    (tmp_path / "config.toml").write_text(
        '[sacred_prompts]\ndataset = "a/b"\ncolumn = "q"\n', encoding="utf-8"
    )
    resolved = resolve("m", "--sacred-prompts.split", "dev", cwd=tmp_path)
    sets = resolved.settings.sacred_prompts
    assert (sets.dataset, sets.config, sets.split, sets.column, sets.sample) == ("a/b", None, "dev", "q", 200)
    environ = {"HERETIC_SACRED_PROMPTS": '{"dataset": "c/d", "config": "x"}'}
    sets = resolve("m", cwd=tmp_path, environ=environ).settings.sacred_prompts
    assert (sets.dataset, sets.config, sets.split, sets.column) == ("c/d", "x", "train", "text")


def test_example_three_layers_name_one_number(tmp_path: Path) -> None:
    """Requirements 3.1, example 5."""
    (tmp_path / "config.toml").write_text("n_trials = 100\n", encoding="utf-8")
    resolved = resolve("m", "--n-trials", "20", cwd=tmp_path, environ={"HERETIC_N_TRIALS": "50"})
    assert resolved.settings.n_trials == 20
    assert [value for _, value in resolved.origins["n_trials"].overridden][:2] == [50, 100]


def test_example_a_misspelt_key_in_a_file(tmp_path: Path) -> None:
    """Requirements 3.1, example 6."""
    (tmp_path / "config.toml").write_text("seed = 1\nn_trails = 5\n", encoding="utf-8")
    with pytest.raises(
        ConfigurationError, match=r"config\.toml:2: .*'n_trails'; did you mean n_trials"
    ) as caught:
        resolve("m", cwd=tmp_path)
    assert caught.value.exit_code == 2


def test_nested_variables_refine_a_json_variable(tmp_path: Path) -> None:
    """R-CFG-03."""
    environ = {"HERETIC_BAD_PROMPTS": '{"dataset": "a/b", "split": "x"}', "HERETIC_BAD_PROMPTS__SPLIT": "y"}
    sets = resolve("m", cwd=tmp_path, environ=environ).settings.bad_prompts
    assert (sets.dataset, sets.split) == ("a/b", "y")


@pytest.mark.parametrize("name", ["HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "NO_COLOR"])
def test_foreign_variables_keep_their_meaning(name: str, tmp_path: Path) -> None:
    assert resolve("m", cwd=tmp_path, environ={name: "1"}).explicit == {"model"}


def test_search_space_of_one_component_in_every_form(tmp_path: Path) -> None:
    """Requirements 7.2: the range of one component, written with quotes, as nested tables, as a flag."""
    for text in ('[search_space."mlp.down_proj"]\n', "[search_space.mlp.down_proj]\n"):
        (tmp_path / "config.toml").write_text(text + "max_weight = [0.8, 1.5]\n", encoding="utf-8")
        space = resolve("m", "--search-space.min-weight=0.5", cwd=tmp_path).settings.search_space
        assert space.component("mlp.down_proj").max_weight == (0.8, 1.5)
        assert space.component("attn.o_proj").max_weight is None
        assert space.component("mlp.down_proj").min_weight == (0.5, 0.5)
    (tmp_path / "config.toml").unlink()
    flag = "--search-space.mlp.down-proj.max-weight=0.8,1.5"
    assert resolve("m", flag, cwd=tmp_path).settings.search_space.component("mlp.down_proj").max_weight == (
        0.8,
        1.5,
    )


def test_settings_read_back_what_a_layer_said(tmp_path: Path) -> None:
    """The merged value reaches the record: one list, one table, one path, one duration."""
    tokens = ["m", "--time-budget", "45m", "--max-memory.0", "10GiB", "--max-memory.cpu", "30GiB"]
    resolved = resolve(*tokens, "--auto-select-path", "out/", "--device-map", '{"a": 0}', cwd=tmp_path)
    assert resolved.settings.time_budget == 2700.0
    assert resolved.settings.max_memory == {"0": "10GiB", "cpu": "30GiB"}
    assert resolved.settings.device_map == {"a": 0}
    assert value_at(resolved.settings, ("auto_select_path",)) == "out/"
