# SPDX-License-Identifier: Apache-2.0
"""Names, manifest, card, upload and verification of an output folder (R-OUT, R-FMT, REL-05, REL-15)."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from heretic.architectures.resolve import resolve
from heretic.constants import HIDDEN_MANIFEST
from heretic.exceptions import (
    ChecksumError,
    ConfigurationError,
    ModelValidationError,
    UploadError,
)
from heretic.export.card import CardFacts, CardRow, Measured, build_card
from heretic.export.edits_file import EDITS_FILE, save_edits
from heretic.export.folder import inspect_folder
from heretic.export.manifest import build_manifest, clean, manifest_bytes, read_manifest
from heretic.export.naming import output_folder, output_name, public_model_id
from heretic.export.shards import patch_model
from heretic.export.trace import trace_sites
from heretic.export.upload import upload_model
from heretic.export.verify import require_intact, verify_folder
from heretic.interventions.edit import ablation
from heretic.publish import StagedFolder, staged_folder, verify_checksums, write_file
from heretic.testing.pico import pico_model

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

TOKEN = "hf_" + "abcdEFGH12345678abcdEFGH"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `out`, exported the way the program does it."""
    root = tmp_path_factory.mktemp("published")
    pico_model("llama", dtype=torch.bfloat16).save_pretrained(root / "base", max_shard_size="60KB")
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    files = inspect_folder(root / "base")
    edits = {site: ablation(torch.randn(1, 40), torch.tensor([0.8])) for site in resolve(model).sites}
    targets = trace_sites(model, edits, files)
    with staged_folder(root / "out", needed_bytes=files.total_bytes) as staging:
        report = patch_model(files, staging.path, edits, targets)
        save_edits(staging.path, edits, targets)
        finish(staging, [record.as_dict() for record in report.sites])
    return root


def finish(staging: StagedFolder, certificate: list[dict[str, object]]) -> None:
    """Manifest, then commit."""
    manifest = build_manifest({"seed": 1, "certificate": certificate}, staging.checksums())
    write_file(staging.path / "heretic_run.json", manifest_bytes(manifest))
    staging.commit()


@pytest.mark.parametrize(
    ("model", "behaviour", "name"),
    [
        ("org/Model-7B", "refusal", "Model-7B-heretic"),
        ("/models/Model-7B/", "verbosity", "Model-7B-verbosity"),
        ("C:\\models\\Model-7B", "refusal", "Model-7B-heretic"),
    ],
)
def test_output_name(model: str, behaviour: str, name: str) -> None:
    """R-OUT-01."""
    assert output_name(model, behaviour) == name
    assert output_name(model, behaviour, "induce") == name.rsplit("-", 1)[0] + f"-more-{behaviour}"


def test_output_folder(tmp_path: Path) -> None:
    """R-OUT-02: parent when it exists or ends in a slash; an earlier output of ours is the folder itself."""
    assert output_folder(None, "m") == Path("m")
    assert output_folder(str(tmp_path), "m") == tmp_path / "m"
    assert output_folder(f"{tmp_path}/new/", "m") == tmp_path / "new" / "m"
    assert output_folder(f"{tmp_path}/new", "m") == tmp_path / "new"
    (tmp_path / "heretic_run.json").write_text("{}")
    assert output_folder(str(tmp_path), "m") == tmp_path


def test_public_model_id(tmp_path: Path) -> None:
    """R-OUT-30: a Hub id stays, a path becomes its last name."""
    assert public_model_id("org/Model") == "org/Model"
    for local in (
        "/home/anna/Model",
        "./Model",
        "~/Model",
        "a/b/Model",
        "D:\\x\\Model",
        str(tmp_path / "Model"),
    ):
        assert public_model_id(local) == "Model"


def test_the_manifest_holds_no_secret_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """REL-15, I03, R-FMT-01: tokens, logins, names and paths are gone; ordinary values stay (control)."""
    monkeypatch.setenv("HOME", "/home/anna")
    sections = {
        "command_line": ["heretic", "--model", "/home/anna/m/Model", "--hf-token", "tok1", f"--x={TOKEN}"],
        "settings": {
            "hf_token": {"value": TOKEN, "source": "env"},
            "storage": "postgresql://anna:pass1@host/db",
            "local": "sqlite:////home/anna/work/study.db",
            "token": "tok2",
            "max_tokens": 100,
            "dataset": "mlabonne/harmless_alpaca",
            "note": "kept in /home/anna/notes today",
        },
        "model": {"id": Path("/home/anna/m/Model")},
        "scores": {"kl": float("nan"), "rate": 0.25, "thinking": "/no_think"},
    }
    manifest = build_manifest(sections, {"b": "2", "a": "1", "heretic_run.json": "0"})
    text = manifest_bytes(manifest).decode()
    for secret in (TOKEN, "tok1", "tok2", "pass1", "anna"):
        assert secret not in text, secret
    settings = manifest["settings"]
    assert isinstance(settings, dict)
    assert settings["local"] == "sqlite:///study.db"
    assert settings["dataset"] == "mlabonne/harmless_alpaca" and settings["max_tokens"] == 100
    assert manifest["scores"] == {"kl": None, "rate": 0.25, "thinking": "/no_think"}
    assert manifest["files"] == {"a": "1", "b": "2"} and manifest["version"] == 1
    assert json.loads(text) == manifest


def test_the_manifest_is_an_allow_list(tmp_path: Path) -> None:
    """I03: unknown sections and unknown types are refused; an unknown version is not read."""
    with pytest.raises(AssertionError, match="allow-list"):
        build_manifest({"environment": {}}, {})
    with pytest.raises(TypeError):
        clean(object())
    (tmp_path / "heretic_run.json").write_text('{"version": 99}')
    with pytest.raises(ModelValidationError, match="99"):
        read_manifest(tmp_path)


def facts(model: str = "org/Base", behaviour: str = "refusal") -> CardFacts:
    """What a run tells the card."""
    rate = CardRow(
        "refusal rate", "org/prompts", Measured(0.9, 100, 0.83, 0.94), Measured(0.1, 100, 0.05, 0.17)
    )
    return CardFacts(
        name="Base-heretic",
        model=model,
        behaviour=behaviour,
        goal="suppress",
        strategy="directional",
        rows=[
            rate,
            CardRow("KL divergence", "org/plain", None, Measured(0.02, 50), share=False, separable=True),
        ],
        noise_floor="0.001 nats",
        conditions="Greedy decoding, thinking off, 100 held-out prompts.",
        reproduce="heretic --model /home/anna/Base --seed 1",
        strengths={"attn.o_proj": "0.9 at layer 3"},
        guards={"degenerate text": "passed"},
        not_measured=["Languages other than English."],
    )


SOURCE_CARD = """---
license: apache-2.0
extra_gated_prompt: Accept the terms.
tags: [chat]
base_model: org/Grandparent
model-index:
- name: Base
  results:
  - task: {type: text-generation}
    dataset: {type: x, name: x}
    metrics: [{type: acc, value: 99.9}]
---

# The base model

Original text.
"""


def test_the_card_keeps_the_source_and_says_what_was_done() -> None:
    """R-OUT-30, R-GEN-06: licence and gating kept, the source's results not claimed, n shown."""
    text = build_card(facts(), SOURCE_CARD)
    card = ModelCard(text)
    data = vars(card.data)
    assert data["license"] == "apache-2.0" and data["extra_gated_prompt"] == "Accept the terms."
    assert data["base_model"] == "org/Base" and data["base_model_relation"] == "finetune"
    assert data["tags"] == ["chat", "heretic", "abliterated", "uncensored", "decensored"]
    assert "99.9" not in text and data["eval_results"][0].metric_value == 0.1
    assert "90.0 % [83.0, 94.0] (n = 100)" in text and "0.0200 (n = 50)" in text and "unknown" in text
    assert text.index("What was measured") < text.index("Original text.")
    assert "Languages other than English." in text
    assert build_card(facts(), SOURCE_CARD) == text


@pytest.mark.parametrize("source", [None, "plain text", "---\n: [broken\n---\nOriginal text."])
def test_the_card_of_another_behaviour_and_of_local_sources(source: str | None) -> None:
    """R-OUT-30: refusal words only for refusal; no local path; broken source metadata stops nothing."""
    text = build_card(facts("/home/anna/models/Base", "verbosity"), source)
    data = vars(ModelCard(text).data)
    assert "abliterated" not in data["tags"] and data.get("base_model") is None
    assert "/home/anna/models" not in text
    assert source is None or source.splitlines()[-1] in text


def test_a_failed_upload_keeps_the_folder_and_says_how_to_repeat(published: Path) -> None:
    """R-OUT-21, REL-B09: no server: typed error, command, folder untouched. A wrong name is a usage error."""
    api = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(UploadError, match="is saved in") as caught:
        upload_model(published / "out", "org/name", api=api)
    assert caught.value.data["cause"] == "network"
    assert caught.value.resume == f"hf upload org/name {published / 'out'} . --private"
    assert TOKEN not in str(caught.value)
    assert verify_checksums(published / "out") == []
    for name in ("a/b/c", "", "a--b/c", "../x"):
        with pytest.raises(ConfigurationError):
            upload_model(published / "out", name, api=api)


class RefusingHub(HfApi):
    """A Hub that answers every request to create a repository with one status."""

    status = 0

    def create_repo(self, *arguments: Any, **named: Any) -> RepoUrl:
        """Fail as the real client does."""
        response = httpx2.Response(self.status, request=httpx2.Request("POST", "http://hub.invalid"))
        raise HfHubHTTPError(f"{self.status}", response=response)


@pytest.mark.parametrize(
    ("status", "cause"), [(401, "access"), (403, "access"), (413, "size"), (429, "busy"), (500, "server")]
)
def test_each_answer_of_the_hub_has_its_own_remedy(published: Path, status: int, cause: str) -> None:
    """REL-B09, R-CLI-43: classified by status, not by text; the status is not taken for a broken network."""
    hub = RefusingHub(token=TOKEN)
    hub.status = status
    with pytest.raises(UploadError) as caught:
        upload_model(published / "out", "org/name", api=hub)
    assert caught.value.data["cause"] == cause and caught.value.hint


def test_a_damaged_folder_is_not_uploaded(published: Path, tmp_path: Path) -> None:
    """REL-B09: the local artefact is verified first."""
    shutil.copytree(published / "out", tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UploadError, match="config"):
        upload_model(tmp_path / "out", "org/name", api=HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))


def test_verify_recomputes_the_certificate_bit_for_bit(published: Path) -> None:
    """R-OUT-31, R-CLI-11: base plus stored edits gives the files, and the manifest's certificate."""
    report = verify_folder(published / "out", published / "base")
    assert report.passed and report.grade == "bit-equal", report.problems
    manifest = read_manifest(published / "out")
    again = json.loads(json.dumps([record.as_dict() for record in report.sites]))
    assert manifest["certificate"] == again
    assert report.changed and verify_folder(published / "out").passed


def test_verify_finds_every_flipped_bit(published: Path, tmp_path: Path) -> None:
    """REL-05: 200 flips in the weights; `require_intact` refuses the folder before it is loaded (REL-C02)."""
    out = tmp_path / "out"
    shutil.copytree(published / "out", out)
    require_intact(out)
    generator = random.Random(11)
    shards = sorted(out.glob("*.safetensors"))
    for number in range(200):
        path = generator.choice(shards)
        sound = path.read_bytes()
        data = bytearray(sound)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        assert verify_checksums(out)
        if number % 50 == 0:
            assert not verify_folder(out).passed
            with pytest.raises(ChecksumError):
                require_intact(out)
        path.write_bytes(sound)


def reseal(source: Path, target: Path, damage: str) -> Path:
    """A copy with valid checksums whose weights were changed by somebody afterwards."""
    with staged_folder(target) as staging:
        shutil.copytree(source, staging.path, dirs_exist_ok=True)
        files = inspect_folder(staging.path)
        edited = {key for row in certificate(source) for key in row["keys"]}
        chosen = next(key for key in files.tensors() if (key in edited) == (damage == "edited"))
        shard, tensor = files.tensors()[chosen]
        data = bytearray(shard.path.read_bytes())
        data[tensor.start + 1] ^= 0x10
        shard.path.write_bytes(data)
        if damage == "no edits":
            (staging.path / EDITS_FILE).unlink()
        staging.commit()
    return target


def certificate(folder: Path) -> list[dict[str, list[str]]]:
    """The manifest's certificate."""
    rows = read_manifest(folder)["certificate"]
    assert isinstance(rows, list)
    return rows


@pytest.mark.parametrize("damage", ["edited", "untouched", "no edits"])
def test_verify_against_the_base_sees_what_checksums_cannot(
    published: Path, tmp_path: Path, damage: str
) -> None:
    """R-CLI-11: a change under fresh checksums passes alone (control), and fails against the base."""
    folder = reseal(published / "out", tmp_path / "out", damage)
    assert verify_folder(folder).passed
    report = verify_folder(folder, published / "base")
    assert not report.passed and report.grade != "bit-equal"


def test_a_certificate_that_claims_more_than_the_files_hold_is_found(published: Path, tmp_path: Path) -> None:
    """R-OUT-31: checksums are fresh and the weights right; control: the folder as it was passes."""
    assert verify_folder(published / "out", published / "base").passed
    with staged_folder(tmp_path / "out") as staging:
        shutil.copytree(published / "out", staging.path, dirs_exist_ok=True)
        path = staging.path / HIDDEN_MANIFEST
        manifest = json.loads(path.read_text())
        manifest["certificate"][0]["relative_change"] += 0.1
        path.write_text(json.dumps(manifest))
        staging.commit()
    report = verify_folder(tmp_path / "out", published / "base")
    assert any("relative change" in problem for problem in report.problems)


def test_a_lost_shard_with_a_matching_index_is_found(published: Path, tmp_path: Path) -> None:
    """L14: an exporter that drops a shard and rebuilds the index is compared with the source's keys."""
    with staged_folder(tmp_path / "out") as staging:
        shutil.copytree(published / "out", staging.path, dirs_exist_ok=True)
        index = staging.path / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        lost = sorted(set(table["weight_map"].values()))[-1]
        table["weight_map"] = {key: name for key, name in table["weight_map"].items() if name != lost}
        index.write_text(json.dumps(table))
        (staging.path / lost).unlink()
        staging.commit()
    assert verify_folder(tmp_path / "out").passed
    report = verify_folder(tmp_path / "out", published / "base")
    assert any("missing" in problem for problem in report.problems)
