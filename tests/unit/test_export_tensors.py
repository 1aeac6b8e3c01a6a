# SPDX-License-Identifier: Apache-2.0
"""Model folders are judged from headers and small files, before loading (REL-C01, C05, C06, R-CLI-44)."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

from heretic.exceptions import HereticError, ModelValidationError, NonFiniteError, UntrustedContentError
from heretic.export.folder import INDEX_FILE, check_finite_folder, inspect_folder
from heretic.export.tensors import TENSOR_LIMIT, check_finite, read_shard


def tensors() -> dict[str, torch.Tensor]:
    """Tensors of several dtypes and shapes."""
    return {
        "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b.weight": torch.ones(5, dtype=torch.bfloat16),
        "c.scale": torch.tensor(2.0, dtype=torch.float16),
        "d.ids": torch.arange(7, dtype=torch.int64),
    }


def make_folder(folder: Path) -> Path:
    """A two-shard model folder with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    parts = list(tensors().items())
    weight_map: dict[str, str] = {}
    for number in (0, 1):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        chunk = dict(parts[2 * number : 2 * number + 2])
        save_file(chunk, folder / name)
        weight_map |= dict.fromkeys(chunk, name)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def raw_file(path: Path, header: object, payload: bytes = b"") -> Path:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


def test_header_of_a_sound_file(tmp_path: Path) -> None:
    """Places, shapes and dtypes are those the library wrote."""
    save_file(tensors(), tmp_path / "x.safetensors", metadata={"format": "pt"})
    shard = read_shard(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    assert {tensor.key for tensor in shard.tensors} == set(tensors())
    assert shard.metadata == {"format": "pt"}
    found = {tensor.key: tensor for tensor in shard.tensors}["a.weight"]
    values = numpy.frombuffer(data[found.start : found.end], dtype="<f4").reshape(found.shape)
    assert numpy.array_equal(values, tensors()["a.weight"].numpy())
    assert data.startswith(shard.header)


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_truncation_is_found_with_expected_and_actual_bytes(tmp_path: Path, percent: int) -> None:
    """REL-C01, X06: cut at every 5 %; the message holds both sizes."""
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size * percent // 100])
    with pytest.raises(ModelValidationError, match=r"model\.safetensors") as caught:
        read_shard(path)
    assert "bytes" in caught.value.message
    assert f"{size * percent // 100:,}" in caught.value.message


BAD_HEADERS: dict[str, object] = {
    "not json": b"{nonsense",
    "a list": [1, 2],
    "deep": b"[" * 100_000,
    "twice": b'{"a": {"dtype":"F32","shape":[],"data_offsets":[0,4]}, "a": 1}',
    "entry": {"a": 5},
    "dtype": {"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}},
    "negative": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "boolean": {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    "huge": {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
    "outside": {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}},
    "hole": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "backwards": {"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}},
    "metadata": {"__metadata__": {"a": 1}},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_lying_header_is_refused(tmp_path: Path, name: str) -> None:
    """REL-C01: nothing is believed that the file's size contradicts."""
    with pytest.raises(ModelValidationError):
        read_shard(raw_file(tmp_path / "x.safetensors", BAD_HEADERS[name], b"\0" * 4))


def test_caps_on_header_and_tensor_count(tmp_path: Path) -> None:
    """REL-C01: 32 MB and 200,000 tensors; a sound file with one tensor passes (control)."""
    (tmp_path / "a").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelValidationError, match="limit"):
        read_shard(tmp_path / "a")
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    many = "{" + ",".join(f'"{number}":{entry}' for number in range(TENSOR_LIMIT + 1)) + "}"
    with pytest.raises(ModelValidationError, match="200,000"):
        read_shard(raw_file(tmp_path / "b", many.encode()))
    assert read_shard(raw_file(tmp_path / "c", f'{{"0":{entry}}}'.encode())).tensors[0].key == "0"


def test_mutated_files_never_escape_as_other_errors(tmp_path: Path) -> None:
    """REL-04: 400 mutations; either the file is accepted or the error is ours."""
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path)
    sound = path.read_bytes()
    generator = random.Random(3)
    refused = 0
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(min(len(data), 350))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            read_shard(path)
        except ModelValidationError:
            refused += 1
    assert refused > 200


def test_a_sound_folder(tmp_path: Path) -> None:
    """Shards in index order, everything else listed."""
    folder = make_folder(tmp_path / "m")
    (folder / "README.md").write_text("x")
    files = inspect_folder(folder)
    assert len(files.shards) == 2
    assert set(files.tensors()) == set(tensors())
    assert set(files.others) == {INDEX_FILE, "README.md", "config.json"}
    assert files.total_bytes == sum(path.stat().st_size for path in folder.iterdir())


def remap(folder: Path, key: str, name: str) -> None:
    """Point one key of the index to another file."""
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"][key] = name
    (folder / INDEX_FILE).write_text(json.dumps(index))


def duplicate(folder: Path) -> None:
    """Store a key of the first shard in the second one too."""
    save_file(tensors(), folder / "model-00002-of-00002.safetensors")


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, type[HereticError]]] = {
    "missing shard": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
        ModelValidationError,
    ),
    "duplicate key": (duplicate, ModelValidationError),
    "wrong shard": (
        lambda folder: remap(folder, "a.weight", "model-00002-of-00002.safetensors"),
        ModelValidationError,
    ),
    "parent": (lambda folder: remap(folder, "a.weight", "../x.safetensors"), UntrustedContentError),
    "absolute": (lambda folder: remap(folder, "a.weight", "/x.safetensors"), UntrustedContentError),
    "drive": (lambda folder: remap(folder, "a.weight", "C:/x.safetensors"), UntrustedContentError),
    "pickle": (lambda folder: remap(folder, "a.weight", "pytorch_model.bin"), UntrustedContentError),
    "link": (lambda folder: (folder / "notes").symlink_to("/etc/hostname"), UntrustedContentError),
    "folder link": (lambda folder: (folder / "sub").symlink_to("/etc"), UntrustedContentError),
    "no config": (lambda folder: (folder / "config.json").unlink(), ModelValidationError),
    "config list": (lambda folder: (folder / "config.json").write_text("[]"), ModelValidationError),
    "config broken": (lambda folder: (folder / "config.json").write_bytes(b"\xff{"), ModelValidationError),
    "no index map": (lambda folder: (folder / INDEX_FILE).write_text("{}"), ModelValidationError),
    "no weights": (lambda folder: (folder / INDEX_FILE).unlink(), ModelValidationError),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_hostile_folder_is_refused(tmp_path: Path, name: str) -> None:
    """REL-C06, R-CLI-44, X06."""
    folder = make_folder(tmp_path / "m")
    inspect_folder(folder)  # control: sound before the damage
    damage, expected = DAMAGES[name]
    damage(folder)
    with pytest.raises(expected):
        inspect_folder(folder)


def test_all_damaged_files_are_listed_at_once(tmp_path: Path) -> None:
    """R-CLI-44: a list, not the first one only."""
    folder = make_folder(tmp_path / "m")
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ModelValidationError) as caught:
        inspect_folder(folder)
    assert len(caught.value.details) == 2


def test_pickle_only_folders_are_refused(tmp_path: Path) -> None:
    """REL-F02: no pickle is opened, and the message says what to do."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UntrustedContentError, match="pickle"):
        inspect_folder(tmp_path)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    """REL-C06: snapshots/<revision>/file -> blobs/<hash> is the cache's form; other ways out are not."""
    cache = tmp_path / "models--a--b"
    snapshot = make_folder(cache / "snapshots" / "0123")
    (cache / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(cache / "blobs" / path.name)
        path.symlink_to(Path("..", "..", "blobs", path.name))
    assert len(inspect_folder(snapshot).shards) == 2
    (tmp_path / "secret").write_text("x")
    (snapshot / "extra").symlink_to(tmp_path / "secret")
    with pytest.raises(UntrustedContentError, match="outside"):
        inspect_folder(snapshot)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_planted_non_finite_weight_is_named(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    """REL-11, REL-C05: file and tensor named; the largest finite values pass (control)."""
    path = tmp_path / "x.safetensors"
    sound = torch.full((50, 3), torch.finfo(dtype).max, dtype=dtype)
    save_file({"ok": sound, "bad": sound.clone()}, path)
    check_finite(read_shard(path))
    bad = sound.clone()
    bad[31, 1] = value
    save_file({"ok": sound, "bad": bad}, path)
    with pytest.raises(NonFiniteError, match="bad"):
        check_finite(read_shard(path))


def test_integer_and_low_precision_tensors_are_not_misread(tmp_path: Path) -> None:
    """Integers with all bits set are not infinities; the NaN codes of 8-bit floats are found."""
    folder = make_folder(tmp_path / "m")
    save_file({"a": torch.full((4,), -1, dtype=torch.int64)}, tmp_path / "i.safetensors")
    check_finite(read_shard(tmp_path / "i.safetensors"))
    check_finite_folder(inspect_folder(folder))
    for dtype, code in ((torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0x7C)):
        stored = torch.tensor([1, code], dtype=torch.uint8).view(dtype)
        save_file({"a": stored}, tmp_path / "x.safetensors")
        with pytest.raises(NonFiniteError):
            check_finite(read_shard(tmp_path / "x.safetensors"))


def test_inspection_loads_no_torch() -> None:
    """Usable before loading: the folder is checked without importing torch."""
    code = "import sys, heretic.export.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
