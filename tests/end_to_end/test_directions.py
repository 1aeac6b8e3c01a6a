# SPDX-License-Identifier: Apache-2.0
"""`heretic extract` and `heretic apply` on the bundled model, from the command line to the saved folder (R-CLI-05,
R-CLI-06)."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from heretic.demo import model_path
from heretic.directions.bank import DirectionBank
from heretic.directions.components import component_weights
from heretic.directions.compose import joint_basis
from heretic.directions.file import load_directions, save_directions
from heretic.residuals import capture

from .support import Ended, assert_clean_failure, here, heretic
from .test_errors import refuse_to_load
from .world import World, data_flags

Capture = pytest.CaptureFixture[str]

FEW = (
    "--behaviour=demo",
    "--bad-prompts.split=train[:24]",
    "--good-prompts.split=train[:24]",
    "--bad-evaluation-prompts.split=validation[:6]",
    "--good-evaluation-prompts.split=validation[:6]",
    "--bad-confirmation-prompts.split=test[:8]",
    "--good-confirmation-prompts.split=test[:8]",
    "--over-behaviour-prompts.split=test[:4]",
    "--max-response-length=32",
    "--refusal-check-tokens=16",
    "--offline",
)
PLAIN = ("--no-use-covectors",)
"""What is found for a run alone, and what a file does not hold."""
LAYERS = 8
COMPONENTS = ("attn.o_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A direction file of the bundled model, made by a process of its own, and what it said."""
    folder = tmp_path_factory.mktemp("extracted")
    path = folder / "refusal.direction.safetensors"
    words = ("extract", str(model_path()), *FEW, *PLAIN, "--out", str(path), "--json")
    return path, heretic(*words, cwd=folder)


@pytest.fixture
def other(extracted: tuple[Path, Ended], tmp_path: Path) -> Path:
    """A second file of the same model, whose directions are random."""
    file = load_directions(extracted[0])
    rows = torch.randn(LAYERS, 1, file.bank.width, generator=torch.Generator().manual_seed(3))
    bank = DirectionBank(torch.nn.functional.normalize(rows, dim=2), torch.ones(LAYERS, 1))
    path = tmp_path / "other.direction.safetensors"
    save_directions(path, replace(file, bank=bank, name="other"))
    return path


def apply(*words: str, capture: Capture, out: Path) -> Ended:
    """`heretic apply` to the bundled model, in this process."""
    return here("apply", str(model_path()), *words, *FEW, "--out", str(out), "--json", capture=capture)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_extract_says_what_it_found_and_saves_it(extracted: tuple[Path, Ended]) -> None:
    """R-CLI-05, R-CLI-23, R-CLI-27, R-FMT-04: one document, one table row per entry, and the next command."""
    path, ended = extracted
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["status"] == "complete" and document["output"] == str(path)
    assert document["sources"] == ["difference"] and document["plot"] is None
    rows = document["geometry"]
    assert [row["entry"] for row in rows] == list(range(1, LAYERS + 1))
    assert max(row["auroc"] for row in rows) > 0.99 and max(row["silhouette"] for row in rows) > 0.5
    assert all(row["difference_norm"] > 0 and abs(row["mean_cosine"]) <= 1 for row in rows)
    assert f"next: heretic apply {model_path()} {path} --behaviour demo" in " ".join(ended.err.split())

    file = load_directions(path)
    assert (file.name, file.behaviour, file.goal, file.method) == (
        "refusal",
        "refusal",
        "suppress",
        "difference",
    )
    assert (file.model, file.revision, file.component_weights) == ("model", None, (1.0,))
    assert set(file.data) == {"bad", "good"} and all(len(found) == 64 for found in file.data.values())
    assert str(model_path().parent) not in path.read_bytes().decode("latin-1"), "no path of this machine"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run whose search has one edit to choose from: the direction of the last layer, removed everywhere."""
    folder = tmp_path_factory.mktemp("ran")
    one = {
        "max-weight": 1,
        "max-weight-position": 1,
        "min-weight": 1,
        "min-weight-distance": 1,
        "direction-index": 1,
    }
    space = [f"--search-space.{name}={value}" for name, value in one.items()]
    words = (
        *FEW,
        *PLAIN,
        *space,
        "--no-enable-layer-profiles",
        "--n-trials=1",
        "--n-startup-trials=1",
        "--storage=",
    )
    save = ("--trial=0", "--auto-select", f"--auto-select-path={folder / 'out'}", "--json")
    return folder / "out", heretic(str(model_path()), *words, *save, cwd=folder)


def test_extract_then_apply_is_the_edit_of_a_run(
    extracted: tuple[Path, Ended], ran: tuple[Path, Ended], tmp_path: Path, capsys: Capture
) -> None:
    """Requirements 14: the weights are those of a run with the same direction and strengths, bit for bit. Control: a
    slightly smaller strength gives others.
    """
    out, ended = ran
    assert ended.code == 0, ended.err
    assert ended.document["chosen"]["parameters"]["direction_scope"] == "global"
    words = (str(extracted[0]), "--direction-layer=7", "--no-enable-layer-profiles")
    applied = apply(*words, capture=capsys, out=tmp_path / "out")
    assert applied.code == 0, applied.err
    assert weights(tmp_path / "out") == weights(out) != weights(model_path())
    assert applied.document["strengths"] == ended.document["chosen"]["strengths"]
    assert applied.document["verified"] == ended.document["verified"]
    assert apply(*words, "--strength=0.99", capture=capsys, out=tmp_path / "less").code == 0
    assert weights(tmp_path / "less") != weights(out)


def test_the_kernel_and_the_layer_profiles_are_those_of_a_run(
    extracted: tuple[Path, Ended], ran: tuple[Path, Ended], tmp_path: Path, capsys: Capture
) -> None:
    """The same with each layer's own direction, a tent over depth, and the profile of the settings: the record of a run
    with these parameters, built again, has the same weights.
    """
    document = json.loads((ran[0] / "heretic_run.json").read_text(encoding="utf-8"))
    values = {"max_weight": 0.75, "max_weight_position": 3.5, "min_weight": 0.25, "min_weight_distance": 7.0}
    document["trial"]["parameters"] = {
        "direction_scope": "per_layer",
        "direction_index": None,
        **{f"{component}.{name}": value for component in COMPONENTS for name, value in values.items()},
    }
    record = tmp_path / "heretic_run.json"
    record.write_text(json.dumps(document), encoding="utf-8")
    built = here(
        *("reproduce", str(record), "--model", str(model_path()), "--enable-layer-profiles"),
        *("--out", str(tmp_path / "built"), "--json"),
        capture=capsys,
    )
    assert built.document["grade"] == "different", "other parameters than those of the recorded files"
    words = (
        "--direction-layer=own",
        "--strength=0.75",
        "--peak-position=0.5",
        "--edge=0.25",
        "--half-width=1",
    )
    applied = apply(str(extracted[0]), *words, capture=capsys, out=tmp_path / "applied")
    assert applied.code == 0, applied.err
    assert weights(tmp_path / "applied") == weights(tmp_path / "built") != weights(ran[0])
    strengths = [
        applied.document["strengths"][f"model.layers.{layer}.mlp.down_proj.weight"][0] for layer in (0, 3)
    ]
    tent = [0.75 * (1 - 0.75 * distance / 7) for distance in (3.5, 0.5)]
    assert strengths == pytest.approx([0.5 * tent[0], tent[1]], abs=1e-6), (
        "the profile halves the first layers"
    )


def test_the_best_layer_removes_the_behaviour_and_the_folder_verifies(
    extracted: tuple[Path, Ended], tmp_path: Path, capsys: Capture
) -> None:
    """The defaults with the strength stated; the document, the manifest, `verify`, `reproduce`, and a second time."""
    path, ended = extracted
    out = tmp_path / "out"
    applied = apply(str(path), "--no-enable-layer-profiles", capture=capsys, out=out)
    assert applied.code == 0, applied.err
    document = applied.document
    assert document["status"] == "complete" and document["output"] == str(out)
    assert document["baseline"]["behaviour_rate"] >= 0.9 and document["verified"]["behaviour_rate"] <= 0.2
    assert (
        document["verified"]["kl_mean"] < 0.2 and document["measured"]["hits"] == document["verified"]["hits"]
    )
    assert document["dropped"] == [] and document["angles"] == [] and document["chosen"] is None
    assert document["study"] == {} and len(document["examples"]) == 3
    figures = [row["effect_size"] for row in ended.document["file"]["entries"]]
    best = figures.index(max(figures))
    assert f"--direction-layer={best}" in document["command"]

    manifest = json.loads((out / "heretic_run.json").read_text(encoding="utf-8"))
    (used,) = manifest["directions"]["files"]
    assert (used["file"], used["sha256"]) == (path.name, document["files"][0]["sha256"])
    assert manifest["trial"]["parameters"]["direction_index"] == best and manifest["scores"]["held_out"]
    assert str(path.parent) not in json.dumps(manifest)
    assert f"heretic apply model {path.name}" in (out / "README.md").read_text(encoding="utf-8")

    checked = here("verify", str(out), "--base", str(model_path()), "--json", capture=capsys)
    assert checked.code == 0, checked.err
    assert (
        checked.document["grade"] == "bit-equal"
        and checked.document["measured_again"]["hits"] == (document["verified"]["hits"])
    )
    again = here("reproduce", str(out), "--model", str(model_path()), capture=capsys)
    assert_clean_failure(again, 2, ("not found by a search", path.name, "heretic apply model"))
    taken = apply(str(path), capture=capsys, out=out)
    assert_clean_failure(taken, 2, ("--overwrite",))
    assert taken.document["error"]["type"] == "OutputExistsError"


def test_strength_zero_is_the_base(extracted: tuple[Path, Ended], tmp_path: Path, capsys: Capture) -> None:
    """Algorithms 5.2: nothing is edited, so every byte of the weights is that of the base, and the folder verifies."""
    applied = apply(str(extracted[0]), "--strength", "0", capture=capsys, out=tmp_path / "out")
    assert applied.code == 0, applied.err
    assert weights(tmp_path / "out") == weights(model_path())
    assert applied.document["strengths"] == {} and applied.document["verified"]["kl_mean"] == 0.0
    checked = here("verify", str(tmp_path / "out"), "--base", str(model_path()), "--json", capture=capsys)
    assert checked.code == 0, checked.err


def shares(base: Mapping[str, Tensor], edited: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """[writers, k]: what is left of the length of each matrix along each of the directions [k, d]."""
    found = []
    for name, weight in base.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            before, after = rows @ weight.double(), rows @ edited[name].double()
            found.append((after * before).sum(dim=1) / before.square().sum(dim=1))
    return torch.stack(found)


@pytest.mark.parametrize(("goal", "sign"), [("suppress", -1.0), ("induce", 1.0)])
def test_two_files_are_removed_at_once_each_with_its_scale(
    goal: str, sign: float, extracted: tuple[Path, Ended], other: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Algorithms 4.1, 4.7: QT W' = (1 - a) QT W along the joint basis at every writer, with a = 0.5 times the scale;
    for `induce` 1 + a. Control: along the second file's own direction, which is no row of the basis, it is not so.
    """
    path = extracted[0]
    applied = apply(
        *(str(path), str(other), "--strength=0.5", "--scale", "other=1.5", "--direction-layer=4"),
        *(f"--goal={goal}", "--allow-zero-baseline", "--no-enable-layer-profiles"),
        capture=capsys,
        out=tmp_path / "out",
    )
    assert applied.code == 0, applied.err
    document = applied.document
    (pair,) = document["angles"]
    assert (pair["first"], pair["second"], len(pair["entries"])) == (path.name, other.name, LAYERS)
    files = [load_directions(name) for name in (path, other)]
    cosine = float(files[0].bank.directions[0, 0] @ files[1].bank.directions[0, 0])
    assert pair["entries"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert math.cos(math.radians(pair["entries"][0]["angles_degrees"][0])) == pytest.approx(
        abs(cosine), abs=1e-6
    )

    base, edited = (load_file(folder / "model.safetensors") for folder in (model_path(), tmp_path / "out"))
    rows = joint_basis(files).bank.directions[4].double()
    wanted = 1.0 + sign * torch.tensor([0.5, 0.75], dtype=torch.float64)
    assert torch.allclose(shares(base, edited, rows), wanted.expand(2 * LAYERS, -1), atol=1e-4)
    own = files[1].bank.directions[4].double()
    assert float((shares(base, edited, own) - wanted[1]).abs().max()) > 1e-3


def test_several_components_keep_the_weights_of_the_best_layer(tmp_path: Path, capsys: Capture) -> None:
    """`--strategy subspace` gives several directions; the file's weights are the first component's multiples."""
    path = tmp_path / "span.direction.safetensors"
    ended = here(
        *("extract", str(model_path()), *FEW, *PLAIN, "--strategy=subspace", "--n-refusal-directions=2"),
        *("--out", str(path), "--name", "span", "--json"),
        capture=capsys,
    )
    assert ended.code == 0, ended.err
    file = load_directions(path)
    assert file.name == "span" and file.bank.components == 2
    tables = component_weights(file.bank.spread, method="softmax")
    best = max(range(LAYERS), key=lambda layer: file.effect_size[layer] or 0.0)
    assert file.component_weights == tuple(tables[best].tolist())
    assert file.component_weights != tuple(tables[0].tolist()), "control: layers differ"
    again = here("extract", str(model_path()), *FEW, *PLAIN, "--out", str(path), capture=capsys)
    assert_clean_failure(again, 2, ("exists", "--overwrite"))
    assert load_directions(path).name == "span"


def test_a_plot_is_drawn_or_the_extra_is_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-PKG-02: before anything is loaded. R-DIR-07: for the table the residuals are not computed a second time."""
    passes = []

    def counted(*arguments: Any, **named: Any) -> Any:
        passes.append(len(arguments[1]))
        return capture(*arguments, **named)

    monkeypatch.setattr("heretic.phases.captures.capture", counted)
    words = ("extract", str(model_path()), *FEW, *PLAIN, "--out", str(tmp_path / "a.direction.safetensors"))
    drawn = here(*words, "--plot", str(tmp_path / "a.png"), capture=capsys)
    assert drawn.code == 0, drawn.err
    assert passes == [24, 24]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("heretic.model.loading._load", refuse_to_load)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = here(*words, "--overwrite", "--plot", str(tmp_path / "b.png"), capture=capsys)
    assert_clean_failure(refused, 2, ("matplotlib", "heretic-workbench[plot]"))


def test_directions_of_another_model_are_refused_before_it_is_loaded(
    world: World, extracted: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-CLI-06, R-GEN-06: sizes of both in the message. A model of equal size is a warning; control: of the right one
    nothing is said.
    """
    flags = (
        *data_flags(),
        "--max-response-length=4",
        "--refusal-check-tokens=2",
        "--allow-zero-baseline",
        "--offline",
    )
    made = world.heretic("extract", "model", *flags, *PLAIN, "--out=pico.direction.safetensors", "--json")
    assert made.code == 0, made.err
    renamed = world.folder / "tuned"
    shutil.copytree(world.model, renamed)
    for name, said in (("model", False), ("tuned", True)):
        plan = world.heretic("apply", name, "pico.direction.safetensors", *flags, "--dry-run", "--json")
        assert plan.code == 0 and plan.document["status"] == "planned", plan.err
        assert any("extracted from model" in note for note in plan.document["plan"]["notes"]) is said

    monkeypatch.setattr("heretic.model.loading._load", refuse_to_load)
    told = world.heretic("apply", str(model_path()), "pico.direction.safetensors", *FEW, "--json")
    error = told.document["error"]
    assert (told.code, error["type"]) == (2, "DirectionFileError")
    assert "hidden size 40 and 2 layers" in error["message"] and "128 and 8 layers" in error["message"]
    assert error["data"] == {"hidden_size": [40, 128], "layers": [2, 8]}
    assert not world.leftovers()


MISTAKES = {
    "missing": (("gone.direction.safetensors",), 2, ("There is no file",)),
    "corrupt": (("broken.direction.safetensors",), 2, ("not a usable direction file",)),
    "none": ((), 2, ("no direction file",)),
    "twice": (("a.direction.safetensors", "same.direction.safetensors"), 1, ("lie within", "Leave one of these")),
    "scale": (("a.direction.safetensors", "--scale=nobody=1"), 2, ("means 0 of the files", "refusal")),
    "zero scale": (("a.direction.safetensors", "--scale=a=0"), 2, ("above 0",)),
    "scaled": (("a.direction.safetensors", "--scale=a=2"), 2, ("The strength is 2", "0 to 1.5", "max_strength")),
    "strong": (("a.direction.safetensors", "--strength=2.5", "--max-strength=2"), 2, ("0 to 2",)),
    "negative": (("a.direction.safetensors", "--strength=-1"), 2, ("--goal induce",)),
    "position": (("a.direction.safetensors", "--peak-position=0.5"), 2, ("no effect", "--half-width")),
    "depth": (("a.direction.safetensors", "--half-width=7"), 2, ("--half-width is 7",)),
    "empty": (
        ("a.direction.safetensors", "--half-width=0.01", "--peak-position=0.5"), 2, ("nothing would be edited",)
    ),
    "heads": (("a.direction.safetensors", "--strategy=heads"), 2, ("which heads", "--strategy subspace")),
    "oblique": (("a.direction.safetensors", "--strategy=oblique"), 2, ("covectors",)),
    "single": (("a.direction.safetensors", "other.direction.safetensors", "--strategy=single"), 2, ("one direction",)),
    "layer": (("a.direction.safetensors", "--direction-layer=8"), 2, ("--direction-layer is 8", "0 to 7")),
    "word": (("a.direction.safetensors", "--direction-layer=first"), 2, ("best, own",)),
    "setting": (("a.direction.safetensors", "--n-trails=3"), 2, ("n-trails",)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_a_weight_is_read(
    name: str,
    extracted: tuple[Path, Ended],
    other: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R-CLI-06, R-CLI-28: the exit code, the finding and the remedy; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("heretic.model.loading._load", refuse_to_load)
    whole = extracted[0].read_bytes()
    for stem, data in (("a", whole), ("same", whole), ("broken", whole[:-10])):
        Path(f"{stem}.direction.safetensors").write_bytes(data)
    words, code, said = MISTAKES[name]
    before = sorted(tmp_path.iterdir())
    told = apply(*words, capture=capsys, out=tmp_path / "out")
    assert_clean_failure(replace(told, err=" ".join(told.err.split())), code, said)
    assert told.document["exit_code"] == code and told.document["status"] == "failed"
    assert told.document["error"]["remedy"]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out=a.safetensors",), "a.direction.safetensors"),
        (("--out=a.direction.safetensors", "--source=cosine"), "difference, probe, ensemble"),
        (("--out=a.direction.safetensors", "--name="), "--name has 0 characters"),
        (("--out=a.direction.safetensors", "--plot=a.jpeg"), ".png, .svg, .pdf"),
        (("--out=file/a.direction.safetensors",), "is a file"),
    ],
)
def test_where_nothing_can_be_saved_nothing_is_loaded(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-SEL-04 for files: asked before the work is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("heretic.model.loading._load", refuse_to_load)
    (tmp_path / "file").write_text("taken", encoding="utf-8")
    told = here("extract", str(model_path()), *FEW, *words, capture=capsys)
    assert told.code in (1, 2) and said in " ".join(told.err.split()), told.err


def test_a_source_that_was_not_found_is_an_error_after_all(tmp_path: Path, capsys: Capture) -> None:
    """`--source probe` where no probe is trained; nothing is written."""
    path = tmp_path / "a.direction.safetensors"
    told = here(
        "extract", str(model_path()), *FEW, *PLAIN, "--source=probe", "--out", str(path), capture=capsys
    )
    assert_clean_failure(told, 2, ("no directions from the source 'probe'", "--use-supervised-probing"))
    assert not path.exists()
