# SPDX-License-Identifier: Apache-2.0
"""Direction files: what is written is read, and nothing else is (R-FMT-04, REL-C01, REL-C02, REL-R11); their sums and
joint bases (algorithms 4.1, 4.2).
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from heretic.directions.bank import DirectionBank
from heretic.directions.compose import combine, compare, joint_basis
from heretic.directions.file import DirectionFile, load_directions, require_fits, save_directions
from heretic.directions.file_format import DOCUMENT, HEADER_LIMIT, SIZE_LIMIT, encode
from heretic.exceptions import AbliterationError, DirectionFileError, OutputExistsError

L, K, D = 4, 2, 16
CREATED = "2031-05-06T07:08:09+00:00"


def orthonormal(*shape: int, seed: int = 0) -> Tensor:
    """[..., k, d] float32 with orthonormal rows."""
    source = torch.Generator().manual_seed(seed)
    columns = torch.randn(*shape[:-2], shape[-1], shape[-2], generator=source, dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(columns)[0].transpose(-1, -2)
    return rows.float().contiguous()


def made(directions: Tensor | None = None, *, seed: int = 0, **changes: Any) -> DirectionFile:
    """A file of the directions [L, k, d], or of random ones; what is absent has zero rows."""
    rows = orthonormal(L, K, D, seed=seed) if directions is None else directions
    layers, count = rows.shape[:2]
    covectors = changes.pop("covectors", None)
    values: dict[str, Any] = {
        "bank": DirectionBank(
            rows, 3.0 * rows.any(dim=2).float(), covectors, {"method": "difference", "projected": True}
        ),
        "name": "refusal", "behaviour": "refusal", "goal": "suppress", "method": "difference",
        "component_weights": (1.0, *(0.5,) * (count - 1)),
        "auroc": (*(0.9,) * (layers - 1), None), "effect_size": (*(2.25,) * (layers - 1), None),
        "model": "org/model", "revision": "0" * 40, "data": {"bad": "ab" * 32, "good": "cd" * 32},
        "source": "heretic extract", "created": CREATED,
    }  # fmt: skip
    return DirectionFile(**{**values, **changes})


def same(first: DirectionFile, second: DirectionFile) -> bool:
    """Whether everything is equal, tensors bit for bit."""
    one, other = first.bank, second.bank
    tensors = torch.equal(one.directions, other.directions) and torch.equal(one.spread, other.spread)
    if one.covectors is None or other.covectors is None:
        tensors = tensors and one.covectors is other.covectors
    else:
        tensors = tensors and torch.equal(one.covectors, other.covectors)
    words = [entry.name for entry in fields(DirectionFile) if entry.name != "bank"]
    return (
        tensors
        and one.provenance == other.provenance
        and all(getattr(first, word) == getattr(second, word) for word in words)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.direction.safetensors"


def sheared(rows: Tensor, towards: Tensor, share: float = 0.5) -> Tensor:
    """Covectors of the rows [L, k, d]: they read a foreign direction as well, and D_i . r_j is 1 for i = j, else 0."""
    foreign = towards - (towards @ rows.transpose(1, 2)) @ rows
    return rows + share * foreign


def with_covectors(seed: int = 0) -> DirectionFile:
    rows = orthonormal(L, K, D, seed=seed)
    return made(rows, covectors=sheared(rows, orthonormal(L, 1, D, seed=seed + 50)))


def uneven() -> DirectionFile:
    """Layer 1 has one component only."""
    rows = orthonormal(L, K, D)
    rows[1, 1] = 0
    return made(rows)


# Writing and reading


@pytest.mark.parametrize(
    "file",
    [
        made(),
        with_covectors(),
        uneven(),
        made(revision=None, goal="induce", data={}),
        made(orthonormal(1, 1, 3)),
    ],
    ids=["plain", "covectors", "uneven", "bare", "smallest"],
)
def test_a_file_is_read_as_it_was_written(file: DirectionFile, path: Path) -> None:
    """Bit for bit, and equal records give equal bytes; control: the comparison sees one changed bit and one word."""
    save_directions(path, file)
    found = load_directions(path)
    assert same(found, file)
    written = path.read_bytes()
    save_directions(path, found, overwrite=True)
    assert path.read_bytes() == written
    bits = file.bank.directions.clone()
    bits.view(torch.int32)[0, 0, 0] ^= 1
    assert not same(replace(file, bank=replace(file.bank, directions=bits)), found)
    assert not same(replace(file, source="another"), found)


def test_other_programs_can_read_it(path: Path) -> None:
    """R-FMT-04: float32 of L + 1 entries, entry 0 zero, entry l + 1 that of block l, one JSON table beside them."""
    file = made()
    save_directions(path, file)
    with safe_open(path, framework="pt") as stream:
        directions, spread = stream.get_tensor("directions"), stream.get_tensor("spread")
        document = json.loads(stream.metadata()[DOCUMENT])
    assert directions.shape == (L + 1, K, D) and directions.dtype == torch.float32
    assert not directions[0].any() and torch.equal(directions[1:], file.bank.directions)
    assert spread.shape == (L + 1, K) and not spread[0].any()
    assert document["model"] == {
        "id": "org/model",
        "revision": "0" * 40,
        "hidden_size": D,
        "layers": L,
    }
    assert document["auroc"] == [None, 0.9, 0.9, 0.9, None] and document["version"] == 1


def test_a_token_does_not_leave_in_a_file(path: Path) -> None:
    """REL-R12: these files are given away."""
    secret = "hf_" + "a" * 30
    save_directions(path, made(source=f"made with {secret}"))
    assert secret.encode() not in path.read_bytes()
    assert load_directions(path).source == "made with [redacted]"


def test_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    taken = tmp_path / "a.direction.safetensors"
    save_directions(taken, made())
    for name, remedy in (("model.safetensors", "model.direction"), (".direction.safetensors", "NAME.dir")):
        with pytest.raises(DirectionFileError) as caught:
            save_directions(tmp_path / name, made())
        assert remedy in (caught.value.hint or "")
    with pytest.raises(OutputExistsError, match="exists"):
        save_directions(taken, made(name="another"))
    assert load_directions(taken).name == "refusal"
    save_directions(taken, made(name="another"), overwrite=True)
    assert load_directions(taken).name == "another"
    folder = tmp_path / "b.direction.safetensors"
    folder.mkdir()
    with pytest.raises(OutputExistsError, match="not a file"):
        save_directions(folder, made(), overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {taken.name, folder.name}


@pytest.mark.parametrize(
    "file",
    [
        made(1.01 * orthonormal(L, K, D)),
        made(auroc=(math.nan,) * L),
        made(component_weights=(1.0,)),
        made(created="yesterday"),
        made(version=2),
        made(data={"bad": Path("x")}),
    ],
    ids=["length", "nan", "weights", "time", "version", "no JSON"],
)
def test_what_could_not_be_read_is_not_written(file: DirectionFile, path: Path) -> None:
    with pytest.raises(DirectionFileError, match="was not written"):
        save_directions(path, file)
    assert not list(path.parent.iterdir())


# Damage


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    """REL-C01; control: the whole one, and one byte more is refused too."""
    save_directions(path, made())
    whole = path.read_bytes()
    for end in {*range(24), *range(24, len(whole), 13), len(whole) - 1}:
        path.write_bytes(whole[:end])
        with pytest.raises(DirectionFileError, match="is not a usable direction file") as caught:
            load_directions(path)
        assert caught.value.hint and caught.value.exit_code == 2
    path.write_bytes(whole + b"\0")
    with pytest.raises(DirectionFileError, match=f"describes {len(whole):,} bytes, the file has"):
        load_directions(path)
    path.write_bytes(whole)
    assert load_directions(path).name == "refusal"


def test_no_flipped_bit_changes_what_is_read(path: Path) -> None:
    """REL-C02: one bit of each byte of the header and of every fourth value. Flips without a meaning are harmless."""
    file = made()
    save_directions(path, file)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    reasons = set()
    for place in (*range(header), *range(header, len(whole), 15)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert same(load_directions(path), file), f"byte {place}"
        except DirectionFileError as error:
            reasons.add(error.message.partition(" file: ")[2].split()[0])
    assert len(reasons) >= 3
    # The values alone would not have told: the last bit of a unit vector.
    flipped = bytearray(whole)
    flipped[header + 4 * K * D] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DirectionFileError, match="its checksum is not that of its content"):
        load_directions(path)


Table = dict[str, Any]
Tensors = dict[str, Tensor]


def contents() -> tuple[Table, Tensors]:
    """A good table and good tensors, with covectors."""
    file = with_covectors()
    assert file.bank.covectors is not None
    tensors = {
        name: torch.cat([torch.zeros_like(values[:1]), values])
        for name, values in (
            ("directions", file.bank.directions),
            ("spread", file.bank.spread),
            ("covectors", file.bank.covectors),
        )
    }
    names = ("name", "behaviour", "goal", "method", "source", "created", "version")
    document = {name: getattr(file, name) for name in names}
    model = {"id": file.model, "revision": file.revision, "hidden_size": D, "layers": L}
    numbers = {
        "component_weights": [1.0, 0.5],
        "auroc": [None] * (L + 1),
        "effect_size": [None] * (L + 1),
    }
    return {**document, **numbers, "model": model, "data": {}, "provenance": {}}, tensors


def at(name: str, index: tuple[int, ...], value: float) -> Callable[[Table, Tensors], None]:
    """Put a value into a tensor."""

    def change(_: Table, tensors: Tensors) -> None:
        tensors[name][index] = value

    return change


def scaled(index: tuple[int, ...], factor: float) -> Callable[[Table, Tensors], None]:
    """Make a direction longer, and what reads it shorter."""

    def change(_: Table, tensors: Tensors) -> None:
        tensors["directions"][index] *= factor
        tensors["covectors"][index] /= factor

    return change


def turned(_: Table, tensors: Tensors) -> None:
    """Component 1 turned towards component 0, length 1."""
    first, second = tensors["directions"][3]
    tensors["directions"][3, 1] = 0.1 * first + math.sqrt(0.99) * second


def tensor(name: str, made: Callable[[Tensors], Tensor]) -> Callable[[Table, Tensors], None]:
    """Replace a tensor."""

    def change(_: Table, tensors: Tensors) -> None:
        tensors[name] = made(tensors)

    return change


def gone(name: str) -> Callable[[Table, Tensors], None]:
    """Take a tensor or a word away."""

    def change(table: Table, tensors: Tensors) -> None:
        if name in tensors:
            del tensors[name]
        else:
            del table[name]

    return change


def word(name: str, value: object) -> Callable[[Table, Tensors], None]:
    """Replace or add a word of the table."""
    return lambda table, _: table.update({name: value})


def absent(layers: slice, components: slice) -> Callable[[Table, Tensors], None]:
    """Take components away, with all that belongs to them."""

    def change(_: Table, tensors: Tensors) -> None:
        for values in tensors.values():
            values[layers, components] = 0

    return change


def nested(levels: int) -> object:
    return [nested(levels - 1)] if levels else 0


DAMAGE: list[tuple[Callable[[Table, Tensors], None], str]] = [
    (at("directions", (2, 1, 3), math.nan), "directions holds NaN or infinity at entry 2"),
    (at("spread", (4, 0), math.inf), "spread holds NaN or infinity at entry 4"),
    (at("covectors", (1, 0, 0), -math.inf), "covectors holds NaN or infinity at entry 1"),
    (at("directions", (0, 0, 0), 1e-30), "directions is not zero at entry 0"),
    (at("spread", (0, 1), 1.0), "spread is not zero at entry 0"),
    (at("spread", (3, 1), -1.0), "spread at entry 3 is not positive"),
    (at("spread", (3, 1), 0.0), "spread at entry 3 is not positive"),
    (scaled((2, 1), 1.001), "directions are not orthonormal: at entry 2 .* components 1 and 1 is 1.002"),
    (scaled((2, 1), -1.001), "directions are not orthonormal: at entry 2 .* components 1 and 1 is 1.002"),
    (turned, "directions are not orthonormal: at entry 3 .* is 0.1"),
    (absent(slice(1, 2), slice(0, 2)), "a component before the last ones is missing at entry 1"),
    (absent(slice(2, 3), slice(0, 1)), "a component before the last ones is missing at entry 2"),
    (tensor("covectors", lambda have: 1.01 * have["covectors"]), "covectors are not orthonormal"),
    (tensor("covectors", lambda have: have["covectors"].flip(1).contiguous()), "covectors are not orth"),
    (tensor("directions", lambda have: have["directions"].half()), "directions has the dtype F16, not F32"),
    (tensor("spread", lambda have: have["spread"].double()), "spread has the dtype F64, not F32"),
    (tensor("directions", lambda have: have["directions"][0]), r"shape \(2, 16\), not \(layers \+ 1, k, hid"),
    (tensor("directions", lambda have: have["directions"][:1]), r"shape \(1, 2, 16\), not"),
    (tensor("spread", lambda have: have["spread"][1:]), r"spread has the shape \(4, 2\), expected \(5, 2\)"),
    (tensor("covectors", lambda have: have["covectors"][:, :1].contiguous()), "covectors has the shape"),
    (tensor("directions", lambda have: have["directions"][:, :0]), "the shape of directions is malformed"),
    (tensor("weight", lambda have: torch.ones(2)), "it holds an unknown tensor 'weight'"),
    (gone("directions"), "it lacks the tensor directions"),
    (gone("spread"), "it lacks the tensor spread"),
    (word("version", 2), "it has the version 2, this program reads 1"),
    (word("version", "1"), "it has the version 1, this"),
    (word("version", True), "it has the version True, this"),
    (word("version", None), "it has the version None, this"),
    (gone("behaviour"), "its description lacks 'behaviour'"),
    (word("trust_remote_code", True), "its description has the unknown key 'trust_remote_code'"),
    (word("name", ""), "'name' is not a text of 1 to 1000"),
    (word("name", 7), "'name' is not a text"),
    (word("source", "x" * 1001), "'source' is not a text"),
    (word("goal", "destroy"), "'goal' is 'destroy', not one of suppress, induce"),
    (word("created", "yesterday"), "'created' is 'yesterday', which is no ISO time"),
    (word("component_weights", [1.0]), "'component_weights' is not a list of 2 numbers"),
    (word("component_weights", [1.0, None]), "component_weights has an empty place"),
    (word("component_weights", [1.0, True]), "'component_weights' holds True"),
    (word("component_weights", [1.0, 10**400]), "'component_weights' holds 1000"),
    (word("auroc", [None, 0.5, 1.5, 0.5, 0.5]), "'auroc' holds 1.5, not a number from 0 to 1"),
    (word("auroc", [None, 0.5]), "'auroc' is not a list of 5 numbers"),
    (word("effect_size", [None, math.nan, 0, 0, 0]), "its description is not JSON .*NaN"),
    (word("model", {"id": "m"}), "'model' is not a table of id, revision"),
    (word("model", "org/model"), "'model' is not a table of id, revision"),
    (
        word("model", {"id": "m", "revision": None, "hidden_size": 99, "layers": L}),
        "hidden size 99 and 4 layers, its tensors have 16 and 4",
    ),
    (word("model", {"id": "m", "revision": 5, "hidden_size": D, "layers": L}), "'revision' is not a text"),
    (word("data", {"bad": 3}), "'bad' is not a text"),
    (word("data", []), "'data' is not a table"),
    (word("provenance", "x"), "'provenance' is not a table"),
    (word("provenance", {"x": nested(20)}), "nested deeper than 16 levels"),
    (word("provenance", {"x": nested(900)}), "nested deeper than 16 levels|not JSON"),
    (word("provenance", {"x": "y" * HEADER_LIMIT}), "a header of .* bytes, the limit is 1,048,576"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[message[:48] for _, message in DAMAGE])
def test_each_damage_is_refused_for_what_it_is(
    change: Callable[[Table, Tensors], None], message: str, path: Path
) -> None:
    """With a checksum that fits, so that a stranger may have meant it."""
    table, tensors = contents()
    path.write_bytes(encode(table, tensors))
    assert load_directions(path).name == "refusal", "control: the same file before the damage"
    change(table, tensors)
    path.write_bytes(encode(table, tensors))
    with pytest.raises(DirectionFileError, match=message) as caught:
        load_directions(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_rounding_is_no_damage(path: Path) -> None:
    """Vectors of another program may be off by less than 1e-4; components that are missing at the end are none."""
    table, tensors = contents()
    scaled((2, 1), 1.00003)(table, tensors)
    absent(slice(4, 5), slice(1, 2))(table, tensors)
    path.write_bytes(encode(table, tensors))
    assert load_directions(path).bank.count_at(3) == 1


class Dangerous:
    """Leaves a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def header_claiming(length: int, text: bytes = b"{}") -> bytes:
    return length.to_bytes(8, "little") + text


def claimed(shape: list[int]) -> bytes:
    """The head of a file whose header claims tensors of a size it does not have."""
    size = 4 * math.prod(shape)
    lines = {
        "__metadata__": {DOCUMENT: "{}"},
        "directions": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        "spread": {
            "dtype": "F32",
            "shape": shape[:2],
            "data_offsets": [size, size + 4 * shape[0] * shape[1]],
        },
    }
    text = json.dumps(lines).encode()
    return header_claiming(len(text), text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"directions: none at all\n" * 9, "it does not begin as one"),
        (b'{"directions": []}', "it does not begin as one"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 60, "its header is not JSON|does not begin|ends at byte"),
        (header_claiming(2**63), "a header of 9,223,372,036,854,775,808 bytes"),
        (header_claiming(2**64 - 1), "a header of 18,446,744,073,709,551,615 bytes"),
        (header_claiming(10**6), "its header ends at byte 1,000,008, the file has 10"),
        (header_claiming(2), "its header says nothing under 'direction_file'"),
        (header_claiming(2, b"[]"), "its header is not a table"),
        (header_claiming(4, b'"\xff"x'), "its header is not JSON"),
        (header_claiming(5000, b"[" * 5000), "its header is not JSON"),
        (header_claiming(16, b'{"a":1,"a":NaN}\n'), "its header is not JSON"),
        (header_claiming(14, b'{"a":1,"a":2}\n'), "a key occurs twice"),
        (claimed([3, 1, 1 << 30]), "its header describes"),
        (claimed([1 << 30, 1 << 30, 1 << 30]), "its header describes"),
        (claimed([-3, -1, 4]), "the shape of directions is malformed"),
        (safetensors.torch.save({"model.norm.weight": torch.ones(4)}), "its header says nothing under"),
        (safetensors.torch.save({"directions": torch.ones(4, 1, 8)}), "its header says nothing under"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(DirectionFileError, match=message) as caught:
        load_directions(path)
    assert caught.value.hint


def test_a_pickle_under_that_name_is_not_opened(tmp_path: Path, path: Path) -> None:
    """REL-F02; control: opened by what reads pickles, both leave the file."""
    canary = tmp_path / "canary"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Dangerous(canary))),
        lambda: torch.save({"directions": Dangerous(canary)}, path),
    ):
        write()
        with pytest.raises(DirectionFileError, match="is not a usable direction file"):
            load_directions(path)
        assert not canary.exists()
    pickle.loads(pickle.dumps(Dangerous(canary)))
    assert canary.exists()


def test_what_is_no_file_is_said_and_nothing_waits(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (tmp_path, pipe, Path("/dev/zero")):
        with pytest.raises(DirectionFileError, match="a folder or a device"):
            load_directions(place)
    with pytest.raises(DirectionFileError, match=r"There is no file .*nothing"):
        load_directions(tmp_path / "nothing")
    with pytest.raises(DirectionFileError, match="cannot be read"):
        load_directions(tmp_path / ("x" * 300))


def test_a_huge_file_is_not_read(path: Path) -> None:
    """Its header is honest, so that only the limit speaks; the file is a hole and takes no disk."""
    head = claimed([5, 2, 1 << 26])
    path.write_bytes(head)
    size = len(head) + 4 * 5 * 2 * (1 << 26) + 4 * 5 * 2
    assert size > SIZE_LIMIT
    os.truncate(path, size)
    with pytest.raises(DirectionFileError, match="bytes, the limit is 2,147,483,648"):
        load_directions(path)


ODD: list[Any] = [
    None, True, 0, -1, 2**70, 0.5, 1e300, "", "x" * 2000, "\ud800", "\x1b]52;c;x\x07", "F32", [], {}, [[]], [None] * 5,
    [0.5] * 5, [2, 2, 2], {"id": 1},
]  # fmt: skip


def places(value: object) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    inner: Any = value
    return [place for key in keys for place in [(inner, key), *places(inner[key])]]


def test_mutated_files_are_refused_or_sound(path: Path, tmp_path: Path) -> None:
    """Structure-aware: a value of the table (with a checksum that fits) or of the header is replaced or taken away, or
    bytes of the header are. What is accepted can be saved and read again; no other exception comes out.
    """
    file = with_covectors()
    save_directions(path, file)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(7)
    accepted = 0
    for number in range(900):
        table, tensors = contents()
        lines = json.loads(whole[8:header])
        text = bytearray(whole[8:header])
        if number % 3 == 2:
            start = chance.randrange(len(text))
            text[start : start + chance.choice((0, 1, 5, 40))] = chance.choice((b"[", b'"', b"{", b",", b"9"))
        else:
            container, key = chance.choice(places((table, lines)[number % 3]))
            container[key] = chance.choice(ODD)
            text = bytearray(json.dumps(lines).encode())
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[header:])
        if number % 3 == 0:
            path.write_bytes(encode(table, tensors))
        try:
            found = load_directions(path)
        except DirectionFileError:
            continue
        accepted += 1
        again = tmp_path / "again.direction.safetensors"
        save_directions(again, found, overwrite=True)
        assert same(load_directions(again), found)
    assert 0 < accepted < 200


def test_directions_of_another_size_are_refused_with_both(path: Path) -> None:
    file = made()
    require_fits(file, hidden_size=D, layers=L, model_name="org/model")
    for hidden_size, layers in ((D + 1, L), (D, L + 2)):
        with pytest.raises(DirectionFileError) as caught:
            require_fits(file, hidden_size=hidden_size, layers=layers, model_name="org/other")
        shown = caught.value.message
        assert f"hidden size {D} and {L} layers" in shown and "org/model" in shown
        assert f"org/other has hidden size {hidden_size} and {layers} layers" in shown
        assert "org/other" in (caught.value.hint or "")


# Comparing


def rows_of(*vectors: Tensor, layers: int = L) -> Tensor:
    """The same rows at every layer."""
    return torch.stack(vectors).expand(layers, -1, -1).contiguous()


def axis(index: int) -> Tensor:
    return torch.eye(D)[index]


def test_planted_angles_are_found() -> None:
    """Two planes with angles of 0.001 and 0.7 radians; component 0 holds the large one, with its sign."""
    small, large = 1e-3, 0.7
    first = made(rows_of(axis(0), axis(1)))
    second = made(
        rows_of(
            -math.cos(large) * axis(0) + math.sin(large) * axis(2),
            math.cos(small) * axis(1) + math.sin(small) * axis(3),
        )
    )
    found = compare(first, second)
    assert [row.entry for row in found] == list(range(1, L + 1))
    for row in found:
        assert row.angles == pytest.approx((small, large), abs=1e-6)
        assert row.cosine == pytest.approx(-math.cos(large), abs=1e-6)
    for row in compare(first, made(rows_of(axis(4), axis(5)))):
        assert row.angles == pytest.approx((math.pi / 2, math.pi / 2)) and row.cosine == 0, "control"


def test_a_missing_component_makes_no_angle() -> None:
    """Its zero row would look like a right angle."""
    found = compare(uneven(), made(orthonormal(L, K, D)))
    assert [len(row.angles) for row in found] == [2, 1, 2, 2]
    assert all(angle < 1e-3 for row in found for angle in row.angles)


def test_files_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(DirectionFileError, match=f"hidden size {D + 1} .*hidden size {D}"):
        compare(made(), made(orthonormal(L, K, D + 1)))


# Adding up


def combined(files: list[DirectionFile], scales: list[float]) -> DirectionFile:
    return combine(files, scales, name="both", created=CREATED)


def test_the_sum_is_weighted_and_of_length_one(path: Path) -> None:
    """3 a + 4 b = 5 (0.6 a + 0.8 b); a negative scale turns a direction round. Components beyond the first are left."""
    first, second = made(rows_of(axis(0), axis(5))), made(rows_of(axis(1)), behaviour="hedging")
    found = combined([first, second], [3.0, 4.0])
    assert torch.allclose(found.bank.directions, rows_of(0.6 * axis(0) + 0.8 * axis(1)), atol=1e-7)
    # 3 units of class difference each, of which 0.6 and 0.8 lie along the sum.
    assert torch.allclose(found.bank.spread, torch.full((L, 1), 3 * (3 * 0.6 + 4 * 0.8) / 7))
    turned_round = combined([first, second], [1.0, -1.0]).bank.directions
    assert torch.allclose(turned_round, rows_of((axis(0) - axis(1)) / math.sqrt(2)), atol=1e-7)
    assert not torch.allclose(turned_round, combined([first, second], [1.0, 1.0]).bank.directions, atol=0.5)
    assert found.behaviour == "refusal + hedging" and found.auroc == (None,) * L
    assert found.data["2.bad"] == "ab" * 32 and found.method == "combine"
    save_directions(path, found)
    assert same(load_directions(path), found)


def test_directions_that_cancel_are_an_error_with_layer_and_value() -> None:
    rows = orthonormal(L, 1, D)
    other = rows.clone()
    other[2] = -other[2]
    with pytest.raises(
        AbliterationError, match=r"at layer 2 a length of 0\.00e\+00 is left of scales .* 2\."
    ) as caught:
        combined([made(rows), made(other)], [1.0, 1.0])
    assert caught.value.exit_code == 1 and caught.value.hint
    assert combined([made(rows), made(other)], [1.0, 0.9]).bank.layers == L, "control: not quite"
    with pytest.raises(AbliterationError, match="add up to 0"):
        combined([made(rows), made(other)], [0.0, 0.0])


def test_the_sum_does_not_read_what_no_file_reads() -> None:
    """Algorithms 4.2: a covector blind to a subspace stays blind; control: the direction itself is not."""
    hidden = axis(9)
    files = []
    for seed in (1, 2):
        rows = orthonormal(L, 1, D, seed=seed)
        reads = rows - (rows @ hidden)[..., None] * hidden
        files.append(made(rows, covectors=reads / (reads * rows).sum(dim=2, keepdim=True)))
    found = combined(files, [1.0, 2.0]).bank
    assert found.covectors is not None
    assert torch.allclose((found.covectors * found.directions).sum(dim=2), torch.ones(L, 1), atol=1e-6)
    assert float((found.covectors @ hidden).abs().max()) < 1e-6
    assert float((found.directions @ hidden).abs().max()) > 1e-2


@pytest.mark.parametrize("together", [lambda files: combined(files, [1.0, 1.0]), joint_basis])
def test_files_of_two_models_do_not_mix(together: Callable[[list[DirectionFile]], object]) -> None:
    """Hidden size and depth of different models are often the same."""
    with pytest.raises(DirectionFileError, match="org/model, 'refusal' those of org/other"):
        together([made(), made(seed=1, model="org/other")])
    with pytest.raises(DirectionFileError, match="hidden size"):
        together([made(), made(orthonormal(L, K, D + 1))])
    together([made(), made(seed=1)])


# One basis for all


def projector(bank: DirectionBank) -> Tensor:
    """[L, d, d] on the span of each layer."""
    return bank.directions.transpose(1, 2) @ bank.directions


def test_the_joint_basis_is_orthonormal_and_its_span_has_no_order() -> None:
    """Algorithms 4.1; control: a span without one of the files is another one."""
    files = [made(seed=seed, name=str(seed)) for seed in (1, 2, 3)]
    joint = joint_basis(files)
    assert joint.bank.directions.shape == (L, 3 * K, D) and not joint.dropped
    gram = joint.bank.directions @ joint.bank.directions.transpose(1, 2)
    assert torch.allclose(gram, torch.eye(3 * K).expand(L, -1, -1), atol=1e-6)
    assert torch.allclose(joint.bank.directions[:, :K], files[0].bank.directions, atol=1e-6)
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        other = joint_basis([files[place] for place in order]).bank
        assert torch.allclose(projector(other), projector(joint.bank), atol=1e-5)
    fewer = joint_basis(files[:2]).bank
    assert float((projector(fewer) - projector(joint.bank)).norm()) > 1.0


def test_each_row_keeps_the_weight_and_what_is_left_of_the_spread() -> None:
    """cos 0.8 leaves 0.6 of the second direction."""
    first = made(rows_of(axis(0)), name="a", component_weights=(1.0,))
    second = made(rows_of(0.8 * axis(0) + 0.6 * axis(1), axis(2)), name="b")
    joint = joint_basis([first, second], [1.0, -0.5])
    assert torch.allclose(joint.bank.directions, rows_of(axis(0), axis(1), axis(2)), atol=1e-6)
    assert torch.allclose(joint.bank.spread, torch.tensor([3.0, 1.8, 3.0]).expand(L, -1), atol=1e-5)
    assert torch.equal(joint.weights, torch.tensor([1.0, -0.5, -0.25]).expand(L, -1))
    assert joint_basis([second, first]).bank.directions[0, 0] @ axis(0) == pytest.approx(0.8)


def test_one_file_alone_is_its_own_basis() -> None:
    file = with_covectors()
    joint = joint_basis([file], [2.0])
    assert joint.bank is file.bank and torch.equal(joint.weights, torch.tensor([2.0, 1.0]).expand(L, -1))


def test_a_dependent_direction_is_dropped_and_told_and_hides_nothing() -> None:
    """At layer 1 the second file repeats the first. What comes after it is in the span all the same; control: one
    factorisation of all three, without the dependent column, loses a part of it.
    """
    a, b, c = (orthonormal(L, 1, D, seed=seed) for seed in (1, 2, 3))
    b[1] = a[1]
    files = [made(rows, name=name, component_weights=(1.0,)) for rows, name in ((a, "a"), (b, "b"), (c, "c"))]
    joint = joint_basis(files)
    assert joint.dropped == (
        "Component 0 of 'b' lies within the directions before it and is left out at the layers 1.",
    )
    assert joint.bank.provenance["degradations"] == list(joint.dropped)
    assert [joint.bank.count_at(layer) for layer in range(L)] == [3, 2, 3, 3]
    assert not joint.bank.directions[1, 2].any() and joint.weights[1, 2] == 0

    def outside(rows: Tensor) -> float:
        return float((c[1] - c[1] @ rows.T @ rows).norm())

    assert outside(joint.bank.directions[1]) < 1e-6
    columns, _ = torch.linalg.qr(torch.cat([a[1], b[1], c[1]]).T)
    assert outside(columns.T[[0, 2]]) > 1e-2
    reordered = joint_basis([files[2], files[1], files[0]])
    assert torch.allclose(projector(reordered.bank), projector(joint.bank), atol=1e-5)


def test_an_absent_component_leaves_the_next_file_its_place() -> None:
    """The first file has one component at one layer and two at the others."""
    first, second = uneven(), made(orthonormal(L, 1, D, seed=8), name="second", component_weights=(1.0,))
    joint = joint_basis([first, second], [1.0, 0.25])
    counts = [first.bank.count_at(layer) + 1 for layer in range(L)]
    assert [joint.bank.count_at(layer) for layer in range(L)] == counts and len(set(counts)) > 1
    for layer, count in enumerate(counts):
        rows = torch.cat([first.bank.directions[layer], second.bank.directions[layer]])
        inside = joint.bank.directions[layer]
        assert torch.allclose(rows @ inside.T @ inside, rows, atol=1e-6)
        assert float(joint.weights[layer, count - 1]) == 0.25


def test_a_file_that_adds_nothing_anywhere_is_an_error() -> None:
    """R-CLI-06: exit 1; control: at one layer it adds something."""
    rows = orthonormal(L, 2, D)
    whole = made(rows, name="whole")
    part = made((0.6 * rows[:, :1] + 0.8 * rows[:, 1:]).contiguous(), name="part", component_weights=(1.0,))
    with pytest.raises(
        AbliterationError, match=r"'part' lie within .* of their length is left, 0\.001"
    ) as caught:
        joint_basis([whole, part])
    assert caught.value.exit_code == 1
    other = part.bank.directions.clone()
    other[3] = orthonormal(1, D, seed=9)
    dropped = joint_basis([whole, replace(part, bank=replace(part.bank, directions=other))]).dropped
    assert dropped[0].endswith("at the layers 0, 1, 2.")


def test_covectors_of_several_files_read_the_joint_basis() -> None:
    """Algorithms 4.2: D_i . q_j is 1 for i = j and 0 otherwise, and what every file ignores stays ignored."""
    hidden = orthonormal(1, D, seed=40)[0]
    files = []
    for seed, count in ((1, 2), (2, 1)):
        rows = orthonormal(L, count, D, seed=seed)
        seen = rows - (rows @ hidden)[..., None] * hidden
        files.append(
            made(rows, covectors=torch.linalg.solve(seen @ rows.transpose(1, 2), seen), name=str(seed))
        )
    bank = joint_basis(files).bank
    assert bank.covectors is not None
    products = bank.covectors @ bank.directions.transpose(1, 2)
    assert torch.allclose(products, torch.eye(3).expand(L, -1, -1), atol=1e-5)
    assert float((bank.covectors @ hidden).abs().max()) < 1e-5
    assert float((bank.directions @ hidden).abs().max()) > 1e-2, "control"
    mixed = joint_basis([files[0], made(seed=7)]).bank
    assert mixed.covectors is not None and mixed.components == 4


def test_what_is_read_must_meet_what_is_removed() -> None:
    """The sum a + b is read along a and b, but the second file reads b with the opposite sign in all but name."""
    a, b = rows_of(axis(0)), rows_of(axis(1))
    first = made(a, covectors=a - b, name="a")
    second = made(b, covectors=b - a, name="b")
    with pytest.raises(AbliterationError, match="at layer 0 the share is"):
        joint_basis([first, second])
    with pytest.raises(AbliterationError, match="hardly meets"):
        combined([first, second], [1.0, 1.0])
    assert joint_basis([first, made(b, name="b")]).bank.covectors is not None, "control"
