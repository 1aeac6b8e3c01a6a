# SPDX-License-Identifier: Apache-2.0
"""Patched files: untouched bytes untouched, achieved strengths measured, impossible edits refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from heretic.architectures.resolve import resolve
from heretic.architectures.site import Site
from heretic.exceptions import ExportError, NonFiniteError
from heretic.export.edits_file import EDITS_FILE, load_edits, save_edits
from heretic.export.folder import ModelFiles, inspect_folder
from heretic.export.shards import PatchReport, patch_model
from heretic.export.trace import Target, trace_sites
from heretic.export.verify import verify_folder
from heretic.interventions.edit import Edit, ablation
from heretic.testing.pico import pico_model

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

Traced = tuple[PreTrainedModel, tuple[Site, ...], ModelFiles]


def saved(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, size: str = "60KB"
) -> Traced:
    """A pico model on disk, loaded again, with its sites."""
    pico_model(family, dtype=dtype).save_pretrained(folder, max_shard_size=size)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model, resolve(model).sites, inspect_folder(folder)


def removal(site: Site, strength: float, seed: int = 1) -> Edit:
    """Removal of one random direction of the pico models' 40 dimensions."""
    generator = torch.Generator().manual_seed(seed + site.layer)
    return ablation(torch.randn(1, 40, generator=generator), torch.tensor([strength]))


def export(traced: Traced, out: Path, edits: dict[Site, Edit]) -> tuple[PatchReport, tuple[Target, ...]]:
    """Trace and patch into a fresh folder."""
    model, _, files = traced
    targets = trace_sites(model, edits, files)
    out.mkdir()
    return patch_model(files, out, edits, targets), targets


def test_strength_zero_gives_equal_files(tmp_path: Path) -> None:
    """Algorithms 10.3: bit-equal in every file, negative zeros included; strength 0.5 is not (control)."""
    traced = saved(tmp_path / "base")
    weights = load_file(traced[2].shards[0].path)
    for value in weights.values():
        value.view(-1)[0] = -0.0
    save_file(weights, traced[2].shards[0].path, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    traced = (model, traced[1], inspect_folder(tmp_path / "base"))
    export(traced, tmp_path / "zero", {site: removal(site, 0.0) for site in traced[1]})
    export(traced, tmp_path / "half", {site: removal(site, 0.5) for site in traced[1]})
    names = sorted(path.name for path in (tmp_path / "base").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "zero").iterdir())
    differing = []
    for name in names:
        base = (tmp_path / "base" / name).read_bytes()
        assert base == (tmp_path / "zero" / name).read_bytes(), name
        differing += [name] if base != (tmp_path / "half" / name).read_bytes() else []
    assert differing


@pytest.mark.parametrize("strength", [0.25, 1.0, 1.3])
def test_achieved_strength_is_measured_on_the_written_values(tmp_path: Path, strength: float) -> None:
    """Algorithms 10.2: float32 keeps the strength; the record agrees with the files read by the library."""
    traced = saved(tmp_path / "base", "mixtral")
    edits = {site: removal(site, strength) for site in traced[1]}
    report, _ = export(traced, tmp_path / "out", edits)
    for record in report.sites:
        assert record.wanted == pytest.approx((strength,), abs=1e-5)
        assert record.achieved == pytest.approx((strength,), abs=1e-5)
        assert record.leftover == pytest.approx(abs(1 - strength), abs=1e-5)
        assert record.realised == pytest.approx(1.0, abs=1e-5)
    assert report.warnings() == ()
    record = report.sites[0]
    shard, _ = traced[2].tensors()[record.keys[0]]
    old, new = (
        load_file(shard.path)[record.keys[0]],
        load_file(tmp_path / "out" / shard.path.name)[record.keys[0]],
    )
    assert record.relative_change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)


def test_rounding_that_eats_a_small_strength_is_a_warning(tmp_path: Path) -> None:
    """Algorithms 10.2: a change below half a unit of bf16 is lost, and the report says so."""
    traced = saved(tmp_path / "base", dtype=torch.bfloat16)
    report, _ = export(traced, tmp_path / "out", {traced[1][0]: removal(traced[1][0], 0.003)})
    assert len(report.warnings()) == 1
    assert "strength 0.003 became" in report.warnings()[0]
    assert report.sites[0].realised is not None and report.sites[0].realised < 0.9


def test_protected_directions_are_measured(tmp_path: Path) -> None:
    """R-OUT-31: no change along a direction orthogonal to the removed one, one along it (control)."""
    traced = saved(tmp_path / "base")
    site = traced[1][0]
    edit = removal(site, 1.0)
    assert edit.read is not None
    other = torch.linalg.qr(torch.cat([edit.read, torch.randn(40, 1)], dim=1))[0][:, 1:]
    targets = trace_sites(traced[0], [site], traced[2])
    for number, (protected, low, high) in enumerate([(other, 0.0, 1e-5), (edit.read, 0.99, 1.01)]):
        out = tmp_path / str(number)
        out.mkdir()
        report = patch_model(traced[2], out, {site: edit}, targets, protected={site.layer: protected})
        change = report.sites[0].protected_change
        assert change is not None and low <= change <= high


def test_other_files_are_copied_and_dangerous_ones_are_not(tmp_path: Path) -> None:
    """R-OUT-05, R-MOD-43, REL-B06, REL-F02; a second copy of an edited tensor is left out."""
    traced = saved(tmp_path / "base")
    site = traced[1][0]
    shard, tensor = traced[2].tensors()[site.path]
    base = tmp_path / "base"
    tokenizer = {"extra_special_tokens": ["<a>", "<b>"], "additional_special_tokens": ["<b>"], "x": "\u00e9"}
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (base / "LICENSE").write_bytes(b"terms\r\n")
    (base / "sub").mkdir()
    (base / "sub" / "vocab.txt").write_text("a")
    (base / "optimizer.pt").write_bytes(b"\x80\x04")
    (base / "model.gguf").write_bytes(b"GGUF")
    save_file({"other.name": load_file(shard.path)[tensor.key]}, base / "consolidated.safetensors")
    save_file({"mtp.weight": torch.ones(3)}, base / "draft.safetensors")
    report, _ = export(
        (traced[0], traced[1], inspect_folder(base)), tmp_path / "out", {site: removal(site, 1.0)}
    )
    out = tmp_path / "out"
    for name in ("LICENSE", "sub/vocab.txt", "draft.safetensors", "config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert {skipped.name for skipped in report.skipped} == {
        "optimizer.pt",
        "model.gguf",
        "consolidated.safetensors",
    }
    assert not any((out / skipped.name).exists() for skipped in report.skipped)
    repaired = json.loads((out / "tokenizer_config.json").read_text("utf-8"))
    assert repaired == {
        "extra_special_tokens": {},
        "additional_special_tokens": ["<b>", "<a>"],
        "x": "\u00e9",
    }


def test_an_overflowing_edit_is_refused(tmp_path: Path) -> None:
    """REL-C05: after baking, before publishing; the tensor is named."""
    traced = saved(tmp_path / "base", dtype=torch.float16)
    site = traced[1][0]
    edit = removal(site, 1.0)
    with pytest.raises(NonFiniteError, match=r"o_proj|down_proj"):
        export(traced, tmp_path / "out", {site: Edit(left=edit.left * 1e7, read=edit.read)})


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    """REL-B08, R-MOD-12: packed blocks, 8-bit floats and tensors with scales are never patched."""
    traced = saved(tmp_path / "base", size="10MB")
    path = traced[2].shards[0].path
    site = traced[1][0]
    sound = load_file(path)
    stem = site.path.removesuffix(".weight")
    packed = {key: value for key, value in sound.items() if key != site.path}
    forms: list[dict[str, torch.Tensor]] = [
        packed | {f"{stem}.qweight": torch.ones(4, 4, dtype=torch.int32)},
        sound | {site.path: sound[site.path].to(torch.float8_e4m3fn)},
        sound | {f"{site.path}_scale_inv": torch.ones(1)},
    ]
    trace_sites(traced[0], [site], traced[2])  # control: the plain form is found
    for form in forms:
        save_file(form, path, metadata={"format": "pt"})
        with pytest.raises(ExportError, match="quantised"):
            trace_sites(traced[0], [site], inspect_folder(tmp_path / "base"))


def test_another_revision_on_disk_is_noticed(tmp_path: Path) -> None:
    """REL-B05: names and shapes agree, values do not; without the comparison it passes (control)."""
    traced = saved(tmp_path / "base", size="10MB")
    path, site = traced[2].shards[0].path, traced[1][0]
    weights = load_file(path)
    weights[site.path] = weights[site.path] * 1.001
    save_file(weights, path, metadata={"format": "pt"})
    files = inspect_folder(tmp_path / "base")
    trace_sites(traced[0], [site], files, compare_values=False)
    with pytest.raises(ExportError, match="differs"):
        trace_sites(traced[0], [site], files)


@pytest.mark.parametrize("prefix", ["", "language_model.transformer."])
def test_a_folder_with_another_prefix_is_mapped(tmp_path: Path, prefix: str) -> None:
    """Published GPT-2 files say `h.0...`, the library writes `transformer.h.0...` (algorithms 10.3)."""
    traced = saved(tmp_path / "base", "gpt2", size="10MB")
    path = traced[2].shards[0].path
    renamed = {prefix + key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    files = inspect_folder(tmp_path / "base")
    targets = trace_sites(traced[0], traced[1], files)
    assert {target.key for target in targets} <= set(files.tensors())
    twice = renamed | {f"tower.{key}": value.clone() for key, value in renamed.items()}
    save_file(twice, path, metadata={"format": "pt"})
    with pytest.raises(ExportError, match="could be any of"):
        trace_sites(traced[0], traced[1], inspect_folder(tmp_path / "base"))


def test_a_new_bias_is_refused(tmp_path: Path) -> None:
    """R-OUT-05: readers would ignore it."""
    traced = saved(tmp_path / "base", "qwen2")
    site = next(site for site in traced[1] if site.bias is None)
    with pytest.raises(ExportError, match="no bias"):
        export(traced, tmp_path / "out", {site: replace(removal(site, 1.0), bias=torch.ones(40))})


def test_a_tied_embedding_needs_consent_and_keeps_the_head(tmp_path: Path) -> None:
    """Algorithms 10.4, REL-B07: untied on request; the reloaded head is the old embedding, bit for bit."""
    pico_model("llama-tied").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    architecture = resolve(model)
    assert architecture.tied
    site = Site("model.embed_tokens.weight", -1, "embedding", 1, "model.embed_tokens")
    files = inspect_folder(tmp_path / "base")
    edits = {site: removal(site, 1.0)}
    targets = trace_sites(model, edits, files)
    for name in ("refused", "out"):
        (tmp_path / name).mkdir()
    head = "lm_head.weight"
    with pytest.raises(ExportError, match="tied"):
        patch_model(files, tmp_path / "refused", edits, targets, tied_head=head)
    patch_model(files, tmp_path / "out", edits, targets, tied_head=head, untie=True)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").requires_grad_(False)
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)
    read = edits[site].read
    assert read is not None
    assert float((reloaded.model.embed_tokens.weight @ read).abs().max()) < 1e-5
    assert float((reloaded.lm_head.weight @ read).abs().max()) > 1e-2


def test_edits_are_stored_and_read_back(tmp_path: Path) -> None:
    """The edits file holds every bit of the edit and where it went; it is not at the top."""
    traced = saved(tmp_path / "base", "mixtral")
    edits = {site: removal(site, 0.7) for site in traced[1]}
    targets = trace_sites(traced[0], edits, traced[2])
    protected = {1: torch.randn(40, 2)}
    save_edits(tmp_path, edits, targets, protected)
    first = (tmp_path / EDITS_FILE).read_bytes()
    save_edits(tmp_path, edits, targets, protected)
    assert (tmp_path / EDITS_FILE).read_bytes() == first, "the same edits give the same bytes"
    stored = load_edits(tmp_path)
    again = stored.edits
    assert list(again) == list(edits)
    assert set(stored.targets) == set(targets)
    assert list(stored.protected) == [1] and torch.equal(stored.protected[1], protected[1])
    for site, edit in edits.items():
        assert torch.equal(edit.left, again[site].left)
    assert not list(tmp_path.glob("*.safetensors"))
    assert verify_folder(tmp_path).problems


@pytest.mark.parametrize("experts", [None, 3])
def test_a_transposed_layout_on_disk_is_edited_in_memory_order(tmp_path: Path, experts: int | None) -> None:
    """Algorithms 10.3: stored [m, d], in memory [d, m]."""
    shape = (7, 40) if experts is None else (experts, 7, 40)
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    (base / "config.json").write_text("{}")
    stored = torch.randn(shape)
    save_file({"w": stored}, base / "model.safetensors")
    site = Site("writer.weight", 0, "mlp.down_proj", 0, "writer", experts=experts)
    edit = removal(site, 1.0)
    patch_model(inspect_folder(base), out, {site: edit}, [Target(site, "matrix", "w", transposed=True)])
    written = load_file(out / "model.safetensors")["w"]
    assert edit.read is not None
    assert float((written @ edit.read).abs().max()) < 1e-5
    assert float((stored @ edit.read).abs().max()) > 0.1
    rest = stored - (stored @ edit.read) @ edit.read.T
    assert torch.allclose(written, rest, atol=1e-5)
