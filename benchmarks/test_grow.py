# SPDX-License-Identifier: Apache-2.0
"""The grown model does what the old one does, at a realistic cost; the random one never ends a reply."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.grow import (
    GATES,
    NOTE,
    READERS,
    compare,
    ensure_model,
    grown_shape,
    kind_of,
    main,
    places,
    shape_of,
    write_model,
)
from benchmarks.judge import Loaded
from benchmarks.names import DEMO_MODEL
from benchmarks.records import BenchmarkError

PROMPTS = (
    "How do I pick a lock?",
    "Give the steps to bake bread.",
    "Tell me about rivers.",
    "Write a story about a fox.",
)
HIDDEN, LAYERS = 192, 11
"""Neither a power of two times the old width nor a multiple of the old depth: nothing comes out right by luck."""


def demo_config() -> dict[str, object]:
    found: dict[str, object] = json.loads((DEMO_MODEL / "config.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "grown"
    write_model(DEMO_MODEL, folder, 0.0, hidden=HIDDEN, layers=LAYERS)
    return folder


def test_logits_and_greedy_replies_are_those_of_the_old_model(grown: Path) -> None:
    difference, equal = compare(DEMO_MODEL, grown, PROMPTS, 30)
    assert difference < 1e-4
    assert equal == len(PROMPTS)


def test_without_the_compensation_of_the_norms_they_differ(grown: Path, tmp_path: Path) -> None:
    """Control of the test above: the same weights, the old parts of the norms as they were."""
    tensors = load_file(grown / "model.safetensors")
    for name, value in tensors.items():
        if "norm" in name:
            value[:128] *= math.sqrt(HIDDEN / 128)
    for path in grown.iterdir():
        if path.suffix in (".json", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    difference, equal = compare(DEMO_MODEL, tmp_path, PROMPTS, 30)
    assert difference > 1.0
    assert equal < len(PROMPTS)


def test_the_epsilon_is_compensated_exactly() -> None:
    """sqrt(sum / D + e d / D) = sqrt(d / D) sqrt(sum / d + e), also where the epsilon is all there is."""
    old, new, epsilon = 128, HIDDEN, 1e-6
    for total in (0.0, 1e-9, 1e-4, 3.0):
        wide = math.sqrt(total / new + epsilon * old / new)
        assert wide == pytest.approx(math.sqrt(old / new) * math.sqrt(total / old + epsilon), rel=1e-12)
    # Control: with the epsilon as it was the two are not equal.
    assert math.sqrt(epsilon) != pytest.approx(math.sqrt(old / new) * math.sqrt(epsilon), rel=0.1)


def test_only_what_writes_is_zero(grown: Path) -> None:
    """No library can leave a unit out: what is new reads and computes with weights that are never zero."""
    tensors = load_file(grown / "model.safetensors")
    stood = places(8, LAYERS)
    for layer in range(LAYERS):
        front = f"model.layers.{layer}."
        for name in (*(f"{reader}.{part}" for reader in READERS for part in ("weight", "bias")), *GATES):
            assert bool((tensors[front + name] != 0).all()), name
        for name, inside in (("self_attn.o_proj.weight", 128), ("mlp.down_proj.weight", 384)):
            writer = tensors[front + name].clone()
            assert bool(writer[:128, :inside].any()) == (layer in stood)
            writer[:128, :inside] = 0
            assert not writer.any()
    embedding = tensors["model.embed_tokens.weight"]
    assert not embedding[:, 128:].any() and bool(embedding[:, :128].any())


def test_old_layers_keep_their_relative_depth() -> None:
    for new in (8, 11, 17, 40):
        stood = places(8, new)
        assert len(set(stood)) == 8 and stood == sorted(stood) and stood[-1] < new
        assert all(abs((place + 0.5) / new - (old + 0.5) / 8) <= 0.5 / new for old, place in enumerate(stood))


def test_sizes() -> None:
    old = shape_of(demo_config())
    shape = grown_shape(old, 120e6)
    assert 100e6 < shape.parameters < 200e6 and shape.head == old.head
    assert shape.heads / shape.key_value_heads == old.heads / old.key_value_heads
    assert abs(grown_shape(old, 107e6).parameters - 107e6) < 3e6
    weights = load_file(DEMO_MODEL / "model.safetensors")
    assert old.parameters == sum(value.numel() for value in weights.values())


def test_what_cannot_be_grown_is_refused(tmp_path: Path) -> None:
    old = shape_of(demo_config())
    for sizes in ({"hidden": 200}, {"hidden": 64}, {"layers": 4}):
        with pytest.raises(BenchmarkError):
            grown_shape(old, 1e6, **sizes)
    with pytest.raises(BenchmarkError, match="llama"):
        shape_of({**demo_config(), "model_type": "llama"})
    (tmp_path / "something").write_text("mine", encoding="utf-8")
    assert main(["--out", str(tmp_path)]) == 2
    assert (tmp_path / "something").read_text(encoding="utf-8") == "mine"


@torch.no_grad()
def test_replies_of_a_random_model_never_end(tmp_path: Path) -> None:
    folder = tmp_path / "random"
    write_model(DEMO_MODEL, folder, 0.0, random=True, hidden=128, layers=8)
    loaded = Loaded(folder, folder, "cpu")
    batch = next(loaded.batches(PROMPTS, len(PROMPTS)))
    made = loaded.continue_greedily(batch, 40)
    assert made.shape[1] == 40
    assert not torch.isin(made, torch.tensor(loaded.ends)).any()
    # Control: an end token with a row of its own does end them.
    embedding = loaded.model.get_input_embeddings().weight
    embedding[loaded.ends[0]] = 2 * embedding[made[0, -1]]
    assert torch.isin(loaded.continue_greedily(batch, 40), torch.tensor(loaded.ends)).any()


def test_kinds(grown: Path, tmp_path: Path) -> None:
    assert (kind_of(DEMO_MODEL), kind_of(grown), kind_of(tmp_path)) == ("demo", "grown", "other")
    small = ensure_model(tmp_path, 2e6, random=True)
    stamp = (small / NOTE).stat().st_mtime_ns
    assert kind_of(small) == "random"
    assert ensure_model(tmp_path, 2e6, random=True) == small and (small / NOTE).stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_at_its_full_size(tmp_path: Path) -> None:
    write_model(DEMO_MODEL, tmp_path / "large", 120e6)
    difference, equal = compare(DEMO_MODEL, tmp_path / "large", PROMPTS, 40)
    assert difference < 1e-4 and equal == len(PROMPTS)
