# SPDX-License-Identifier: Apache-2.0
"""Every family is exported, reloaded and compared with the model edited in memory (10.3, REL-08)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from heretic.architectures.resolve import resolve
from heretic.architectures.site import Architecture, Site
from heretic.exceptions import ExportError, UnsupportedArchitectureError
from heretic.export.folder import ModelFiles, inspect_folder
from heretic.export.shards import patch_model
from heretic.export.trace import trace_sites
from heretic.interventions.edit import Edit
from heretic.interventions.plan import Plan, PlanRow
from heretic.interventions.weights import edited_bias, edited_parameter
from heretic.interventions.writers import Writers
from heretic.testing.pico import PICO_FAMILIES, pico_model

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

SHARD_SIZE = "60KB"


def make_edits(model: PreTrainedModel, architecture: Architecture) -> dict[Site, Edit]:
    """Two random directions for each site, with strengths that no rounding to 0 or 1 can imitate."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for site in architecture.sites:
        directions = torch.randn(2, architecture.hidden_size, generator=generator)
        rows.append(PlanRow(site, directions, torch.tensor([0.9, 0.35])))
    return dict(Plan(tuple(rows)).edits(Writers(model)))


def edit_in_memory(model: PreTrainedModel, edits: dict[Site, Edit]) -> None:
    """The evaluated weight form: every parameter edited in float32 and cast once."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for site, edit in edits.items():
            parameter = parameters[site.path]
            parameter.copy_(edited_parameter(parameter, edit, site).to(parameter.dtype))
            if site.bias is not None:
                bias = parameters[site.bias]
                bias.copy_(edited_bias(bias, edit).to(bias.dtype))


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits of two short rows of tokens."""
    tokens = torch.arange(3, 27).reshape(2, 12)
    with torch.no_grad():
        result = model(input_ids=tokens, use_cache=False).logits
    assert isinstance(result, torch.Tensor)
    return result


def digests(files: ModelFiles) -> dict[str, str]:
    """Key -> SHA-256 of the payload."""
    found = {}
    for key, (shard, tensor) in files.tensors().items():
        found[key] = hashlib.sha256(shard.path.read_bytes()[tensor.start : tensor.end]).hexdigest()
    return found


@pytest.mark.parametrize("family", PICO_FAMILIES)
def test_reloaded_export_equals_the_model_edited_in_memory(family: str, tmp_path: Path) -> None:
    """R-OUT-04, R-OUT-06, REL-08, REL-10: the changed tensors are the planned ones, exactly."""
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "out"
    saved = pico_model(family, dtype=torch.bfloat16)
    saved.save_pretrained(base, max_shard_size=SHARD_SIZE)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    try:
        architecture = resolve(model)
    except UnsupportedArchitectureError as error:
        pytest.skip(f"refused at load: {error.message}")
    files = inspect_folder(base)
    edits = make_edits(model, architecture)
    targets = trace_sites(model, edits, files)
    out.mkdir()
    report = patch_model(files, out, edits, targets)
    before = logits(model)
    edit_in_memory(model, edits)
    reloaded = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    expected = logits(model)
    assert torch.equal(logits(reloaded), expected)
    assert not torch.equal(before, expected), "control: the edit must matter"
    in_memory = dict(model.named_parameters())
    for path, parameter in reloaded.named_parameters():
        assert torch.equal(parameter, in_memory[path]), path  # also experts that no token was routed to
    old, new = digests(files), digests(inspect_folder(out))
    assert list(old) == list(new)
    changed = {key for key in old if old[key] != new[key]}
    assert changed == {target.key for target in targets} == set(report.changed)
    for shard, copy in zip(files.shards, inspect_folder(out).shards, strict=True):
        assert shard.header == copy.header


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_dropped_expert_is_noticed(family: str, tmp_path: Path) -> None:
    """Control of algorithms 10.3: the map without one expert is refused before a byte is published."""
    pico_model(family).save_pretrained(tmp_path / "base", max_shard_size=SHARD_SIZE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    edits = make_edits(model, resolve(model))
    files = inspect_folder(tmp_path / "base")
    targets = trace_sites(model, edits, files)
    dropped = next(number for number, target in enumerate(targets) if target.expert == 2)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="1 of 4 matrices are missing"):
        patch_model(files, tmp_path / "out", edits, targets[:dropped] + targets[dropped + 1 :])
