# SPDX-License-Identifier: Apache-2.0
"""What writers are given and return, over prompts and replies, and which heads carry a direction (algorithms 2, 4.6;
R-CIR-02 to 06, R-FMT-06)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heretic.architectures.site import Site
from heretic.attribution import (
    HeadCache,
    HeadImportance,
    attribution_error,
    capture_inputs,
    capture_writes,
    chosen_heads,
    head_contributions,
    head_importance,
    read_cache,
    write_cache,
)
from heretic.batching import AdaptiveBatch
from heretic.decoding import FastEngine
from heretic.directions.findings import Head
from heretic.exceptions import CircuitAblationError, ConfigurationError, ExtractionError, NonFiniteError
from heretic.interventions.heads import HeadLayout, head_columns, head_layouts
from heretic.interventions.writers import Writers
from heretic.linalg.shrinkage import solve
from heretic.model.model import Model
from heretic.residuals import capture
from heretic.testing.theorems import unit
from heretic.testing.workbench import loaded_pico

FAMILIES = ("llama", "gpt2", "gemma3", "lfm2", "falcon_h1", "mixtral", "gpt_oss", "llama4", "bitnet")
SIZES, REPLIES = (6, 3, 11, 4, 9, 3, 7), (4, 1, 2, 7, 0, 3, 5)

Rows = list[tuple[int, ...]]


def drawn(sizes: Sequence[int], seed: int = 4, low: int = 80, high: int = 160) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(low, high, (size,), generator=generator).tolist()) for size in sizes]


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4 * float(second.abs().max()))


def batches(width: int = 3) -> AdaptiveBatch:
    return AdaptiveBatch("activations", width)


def everything(model: Model, row: Sequence[int], paths: Sequence[str], *, inputs: bool) -> list[Tensor]:
    """All positions of one sequence at the modules: [positions, width] each."""
    seen: dict[str, Tensor] = {}
    handles = []
    for path in paths:

        def keep(module: nn.Module, given: tuple[Tensor, ...], output: object, path: str = path) -> None:
            found = given[0] if inputs else output[0] if isinstance(output, tuple) else output
            assert isinstance(found, Tensor)
            seen[path] = found.reshape(-1, found.shape[-1]).float().clone()

        handles.append(model.network.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        model.network(input_ids=torch.tensor([list(row)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


def plain_sites(model: Model) -> list[Site]:
    """Writers that are modules of their own."""
    return [site for site in model.architecture.sites if f"{site.hook}.weight" == site.path]


@pytest.mark.parametrize("start", (0, 10), ids=("nothing shared", "shared start"))
@pytest.mark.parametrize("name", FAMILIES)
def test_with_replies_the_mean_over_their_tokens_is_taken(name: str, start: int) -> None:
    """Sections 2, 3.8, 4.7: mixed lengths, padding and a shared start change nothing; a reply without tokens is its
    prompt's end. Control: the mean over all positions, and the last one alone, differ."""
    model = loaded_pico(name)
    prompts = [tuple(range(80, 80 + start)) + row for row in drawn(SIZES)]
    replies = drawn(REPLIES, seed=5)
    engine = FastEngine(model)
    prepare = engine.prepare if start else None
    if start and engine.longest is not None:
        assert engine.prepare(prompts, keep=7).prefix, "control: the start is shared"
    found = capture(model, prompts, run=batches(7 if start else 3), prepare=prepare, replies=replies).samples
    wanted, others, ends = [], [], []
    for prompt, reply in zip(prompts, replies, strict=True):
        streams = everything(model, (*prompt, *reply), model.architecture.blocks, inputs=False)
        wanted.append(torch.stack([stream[-max(1, len(reply)) :].mean(dim=0) for stream in streams]))
        others.append(torch.stack([stream.mean(dim=0) for stream in streams]))
        ends.append(torch.stack([stream[-1] for stream in streams]))
    assert close(found, torch.stack(wanted))
    assert not close(found, torch.stack(others)) and not close(found, torch.stack(ends))


@pytest.mark.parametrize("with_replies", (False, True), ids=("prompt end", "reply"))
@pytest.mark.parametrize("shared", (False, True), ids=("nothing shared", "shared start"))
@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_and_writes_are_what_the_modules_see_at_these_positions(
    name: str, shared: bool, with_replies: bool
) -> None:
    """Every plain writer: W z + b = y, also in the last block, whose feed-forward part is computed at few positions."""
    model = loaded_pico(name)
    prompts = [tuple(range(80, 90)) + row for row in drawn(SIZES)]
    replies = drawn(REPLIES, seed=5) if with_replies else None
    prepare = FastEngine(model).prepare if shared else None
    plain, every = plain_sites(model), model.architecture.sites
    inputs = capture_inputs(model, prompts, plain, run=batches(), prepare=prepare, replies=replies)
    writes = capture_writes(model, prompts, every, run=batches(), prepare=prepare, replies=replies)
    assert list(inputs) == plain and list(writes) == list(every)
    writers = Writers(model.network)
    for site in plain:
        weight, bias = writers.weight(site), writers.bias(site)
        made = inputs[site] @ (weight.T if site.residual_axis == 0 else weight)
        assert close(made if bias is None else made + bias, writes[site])
    row, reply = prompts[2], replies[2] if replies else ()
    last = max(1, len(reply))
    for found, given, is_input in ((inputs, plain, True), (writes, list(every), False)):
        hooks = [site.hook for site in given]
        whole = everything(model, (*row, *reply), hooks, inputs=is_input)
        for site, values in zip(given, whole, strict=True):
            assert close(found[site][2], values[-last:].mean(dim=0)), site.path
            assert not close(found[site][1], values[-last:].mean(dim=0)), "control: prompts differ"


def test_empty_replies_are_told_and_replies_that_are_all_empty_are_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, prompts = loaded_pico("llama"), drawn((4, 6))
    ends = capture(model, prompts, run=batches()).samples
    with caplog.at_level(logging.WARNING, logger="heretic.residuals"):
        mixed = capture(model, prompts, run=batches(), replies=[(), (90, 91)]).samples
    assert "1 of 2 replies are empty" in caplog.text
    assert close(mixed[0], ends[0]) and not close(mixed[1], ends[1])
    with pytest.raises(ExtractionError, match="None of the 2 replies has a token"):
        capture(model, prompts, run=batches(), replies=[(), ()])


def test_places_without_an_input_of_their_own_are_named() -> None:
    """Routed experts see chosen tokens only, the embedding sees numbers; what they write is there."""
    model = loaded_pico("mixtral")
    experts = [site for site in model.architecture.sites if site.experts is not None]
    assert model.architecture.embedding is not None
    for site in (experts[0], model.architecture.embedding):
        with pytest.raises(ConfigurationError, match=site.path):
            capture_inputs(model, drawn((4,)), [site], run=batches())
        assert capture_writes(model, drawn((4,)), [site], run=batches())[site].shape == (1, 40)


def test_a_value_that_is_not_finite_is_named_with_its_writer() -> None:
    model = loaded_pico("llama")
    site = model.architecture.sites[2]
    with torch.no_grad():
        model.network.get_parameter(site.path)[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=rf"prompt 0 .* {site.path} .*float32"):
        capture_writes(model, drawn((4, 5)), model.architecture.sites, run=batches())


def inputs_of(model: Model, rows: Rows) -> dict[Site, Tensor]:
    sites = list(head_layouts(model.network, model.architecture.sites))
    return capture_inputs(model, rows, sites, run=batches(64))


def by_layer(model: Model, seed: int = 1) -> Tensor:
    """A direction [L, d] for each layer."""
    return torch.stack([unit(40, seed + layer) for layer in range(model.architecture.layers)])


@pytest.mark.parametrize("name", ("llama", "gpt2", "gpt_bigcode", "bitnet", "falcon_h1", "recurrent_gemma"))
def test_the_heads_add_up_to_what_is_written(name: str) -> None:
    """Section 4.6: sum_h c + rT b = rT y. Control: heads cut at another width, and a bias left out, do not."""
    model, rows = loaded_pico(name), drawn((5, 8, 3, 6))
    layouts = head_layouts(model.network, model.architecture.sites)
    inputs, directions, writers = inputs_of(model, rows), by_layer(model), Writers(model.network)
    writes = capture_writes(model, rows, list(layouts), run=batches())
    parts = head_contributions(inputs, writers, directions, layouts)
    for site, layout in layouts.items():
        assert parts[site].shape == (4, layout.heads)
        direction, bias = directions[site.layer], writers.bias(site)
        assert attribution_error(parts[site], writes[site], bias, direction) < 1e-6
        assert attribution_error(parts[site][:, 1:], writes[site], bias, direction) > 1e-3
        if bias is not None:
            assert attribution_error(parts[site], writes[site], None, direction) > 1e-4


@pytest.mark.parametrize("name", ("gemma3", "olmo2"))
def test_behind_a_norm_the_heads_add_up_to_what_the_stream_receives(name: str) -> None:
    """Sections 1.4, 4.6; the bias of the writer counts in the norm, but is no head's. Control: the gain ignored."""
    model, rows = loaded_pico(name, changes={"attention_bias": True}), drawn((5, 8, 3, 6))
    layouts = head_layouts(model.network, model.architecture.sites)
    directions, writers = by_layer(model), Writers(model.network)
    parts = head_contributions(inputs_of(model, rows), writers, directions, layouts)
    writes = capture_writes(model, rows, list(layouts), run=batches())
    for site in layouts:
        bias, written = writers.bias(site), writes[site]
        assert site.gain is not None and bias is not None
        factors = model.network.get_submodule(site.gain.path)(written) / written
        received = (factors * (written - bias)) @ directions[site.layer]
        assert torch.allclose(parts[site].sum(dim=1).float(), received, rtol=1e-3, atol=1e-4)
        assert not torch.allclose((written - bias) @ directions[site.layer], received, rtol=0.1, atol=1e-2)


PLANTED = {
    "multi-head": ("llama", {"num_key_value_heads": 4}),
    "grouped": ("llama", {"num_key_value_heads": 2}),
    "multi-query": ("gpt_bigcode", {}),
    "Conv1D": ("gpt2", {}),
}


@pytest.mark.parametrize("form", PLANTED)
def test_a_planted_head_is_found(form: str) -> None:
    """R-CIR-06: the classes differ along r in head 2 of layer 1. Control: before, it was not the strongest."""
    name, changes = PLANTED[form]
    model = loaded_pico(name, changes=dict(changes))
    target, control = drawn([6] * 48, 1, 80, 120), drawn([6] * 48, 2, 120, 160)
    layouts = head_layouts(model.network, model.architecture.sites)
    directions, writers = by_layer(model), Writers(model.network)

    def found() -> HeadImportance:
        sides = inputs_of(model, target), inputs_of(model, control)
        return head_importance(*sides, writers, directions, layouts)

    before = found()
    assert before.places[int(before.importance.abs().argmax())] != (1, 2)
    site = next(site for site in layouts if site.layer == 1)
    columns = head_columns(2, layouts[site].size)
    inputs = [inputs_of(model, rows)[site][:, columns].double() for rows in (target, control)]
    within = torch.cat([rows - rows.mean(dim=0) for rows in inputs])
    gap = solve(within, (inputs[0].mean(dim=0) - inputs[1].mean(dim=0))[None])[0][0]
    reading = (20.0 * nn.functional.normalize(gap, dim=0)).float()
    weight = model.network.get_parameter(site.path).data
    planted = torch.outer(directions[1], reading)
    if site.residual_axis == 0:
        weight[:, columns] += planted
    else:
        weight[columns] += planted.T
    after = found()
    heads = chosen_heads(after, count=20, threshold=0.5)
    assert [(head.layer, head.head) for head in heads] == [(1, 2)]
    assert heads[0].importance > 0.3, "signed, relative to the sum over all heads"
    assert float(after.shares.abs().sum()) == pytest.approx(1.0)


class Projections(nn.Module):
    """Random output projections without a model around them."""

    def __init__(self, layers: int, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(width, 40) for _ in range(layers))


LAYERS, HEADS = 8, HeadLayout(8, 6)


def random_importance(seed: int, signal: float = 0.0) -> tuple[HeadImportance, Tensor]:
    """Importance of 64 heads of random matrices for inputs without classes, and all shuffled ones in one heap.

    signal: shift of the inputs of head 3 in layer 5 between the classes.
    """
    width = HEADS.heads * HEADS.size
    sites = [
        Site(f"layers.{layer}.weight", layer, "attn.o_proj", 0, f"layers.{layer}") for layer in range(LAYERS)
    ]
    generator = torch.Generator().manual_seed(seed)
    samples = {site: (1.0 + 4.0 * site.layer) * torch.randn(60, width, generator=generator) for site in sites}
    directions = torch.stack([unit(40, 7 * seed + layer) for layer in range(LAYERS)])
    writers, layouts = Writers(Projections(LAYERS, width, seed)), dict.fromkeys(sites, HEADS)
    columns = head_columns(3, HEADS.size)
    samples[sites[5]][:30, columns] += signal * (directions[5] @ writers.weight(sites[5]))[columns]

    def contrast(first: Tensor, second: Tensor) -> HeadImportance:
        sides = [{site: samples[site][rows] for site in sites} for rows in (first, second)]
        return head_importance(sides[0], sides[1], writers, directions, layouts, seed=seed)

    orders = [torch.randperm(60, generator=generator) for _ in range(5)]
    heap = torch.cat([contrast(order[:30], order[30:]).importance.abs() for order in orders])
    return contrast(torch.arange(30), torch.arange(30, 60)), heap


def test_random_matrices_and_classes_pass_no_head() -> None:
    """R-CIR-06. Control: above the 99th percentile over all heads and shuffles, some head passes in most draws."""
    naive = 0
    for seed in range(8):
        importance, heap = random_importance(seed)
        assert importance.chance.shape == importance.importance.shape == (64,)
        with pytest.raises(CircuitAblationError, match=r"the largest importance is .* \(head \d of layer \d"):
            chosen_heads(importance, count=20, threshold=0.1)
        naive += bool((importance.importance.abs() > torch.quantile(heap, 0.99)).any())
    assert naive >= 3
    planted, _ = random_importance(0, signal=400.0)
    assert (5, 3) in [(head.layer, head.head) for head in chosen_heads(planted, count=3, threshold=0.1)]


def test_heads_are_chosen_by_rank_share_and_chance() -> None:
    """Section 4.6, R-CIR-01, R-CIR-05."""
    importance = HeadImportance(
        places=((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)),
        importance=torch.tensor([0.3, -4.0, 2.0, 0.1, 3.6], dtype=torch.float64),
        chance=torch.tensor([0.2, 1.0, 1.0, 0.2, 5.0], dtype=torch.float64),
    )
    heads = chosen_heads(importance, count=20, threshold=0.1)
    assert [(head.layer, head.head) for head in heads] == [(0, 1), (1, 0)]
    assert [head.importance for head in heads] == pytest.approx([-0.4, 0.2])
    assert chosen_heads(importance, count=1, threshold=0.1) == heads[:1]
    assert [head.layer for head in chosen_heads(importance, count=20, threshold=0.05)] == [0, 1, 0]
    nothing = HeadImportance(importance.places, importance.importance, 10.0 + importance.chance)
    with pytest.raises(
        CircuitAblationError, match=r"importance is 4 \(head 1 of layer 0, 40% of the sum"
    ) as info:
        chosen_heads(nothing, count=20, threshold=0.1)
    assert info.value.data == {"largest": 4.0, "chance": 11.0}
    with pytest.raises(CircuitAblationError, match="no query heads"):
        chosen_heads(
            head_importance({}, {}, Writers(nn.Module()), torch.zeros(0, 40), {}), count=1, threshold=0
        )


KEY = {
    "revision": "abc",
    "data": ["h1", "h2"],
    "directions": "d1",
    "parameters": {"count": 20, "threshold": 0.1},
}


def test_a_cache_is_read_with_its_own_key_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R-CIR-03, R-FMT-06: any change of the key means that heads are found again."""
    path = tmp_path / "deep" / "circuits.json"
    assert read_cache(path, KEY) is None
    cache = HeadCache(KEY, (Head(3, 1, 0.25), Head(0, 2, -0.125)))
    write_cache(path, cache)
    assert read_cache(path, KEY) == cache
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["heads"][0] == {"layer": 3, "head": 1, "importance": 0.25}
    assert document["version"] == 1 and document["key"] == KEY
    caplog.set_level(logging.INFO, logger="heretic.attribution")
    for name in KEY:
        assert read_cache(path, {**KEY, name: "other"}) is None
        assert f"made with other {name}" in caplog.text
    assert read_cache(path, {**KEY, "seed": 1}) is None
    path.write_text(json.dumps({**document, "version": 2}), encoding="utf-8")
    assert read_cache(path, KEY) is None


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"\xff\xfe",
        b"[]",
        b'"heads"',
        b"{}",
        b"[" * 100_000,
        b'{"version": 1, "key": {}, "heads": []}',
        b'{"version": 1, "key": {}, "heads": [3]}',
        b'{"version": 1, "key": {}, "heads": [{"layer": 0, "head": 0}]}',
        b'{"version": 1, "key": {}, "heads": [{"layer": 0, "head": -1, "importance": 1.0}]}',
        b'{"version": 1, "key": {}, "heads": [{"layer": true, "head": 0, "importance": 1.0}]}',
        b'{"version": 1, "key": {}, "heads": [{"layer": 0, "head": 0, "importance": NaN}]}',
        b'{"version": 1, "key": 5, "heads": [{"layer": 0, "head": 0, "importance": 1}]}',
    ),
    ids=range(13),
)
def test_a_file_that_is_no_cache_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    """Exit code 2, and the file is left as it was. Control: its last form, made right, is read."""
    path = tmp_path / "circuits.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a circuit cache") as info:
        read_cache(path, {})
    assert info.value.exit_code == 2 and path.read_bytes() == content
    path.write_bytes(b'{"version": 1, "key": {}, "heads": [{"layer": 0, "head": 0, "importance": 1}]}')
    assert read_cache(path, {}) == HeadCache({}, (Head(0, 0, 1.0),))
