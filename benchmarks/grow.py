# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.grow --out DIR`: a model of realistic size that behaves as the small one does.

Function-preserving widening and deepening of a Qwen2 model. Every old weight keeps its place at the front of a larger
tensor. What is new and *writes* into the residual stream is zero (rows and columns of `o_proj` and `down_proj`, columns
of the embedding), everything else that is new is random, so that every unit is really computed and no library can skip
one. The new dimensions d..D of the stream therefore hold exact zeros.

RMSNorm divides by the root of the mean square over D instead of d dimensions. With x = 0 beyond d,

    x w' / sqrt(sum x^2 / D + e')  =  x w / sqrt(sum x^2 / d + e)    for    w' = w sqrt(d / D),  e' = e d / D,

so the compensation is exact, the epsilon included; what is left is the rounding of float32. Heads keep their dimension
(rotary positions do not change) and their query-to-key groups; new heads come behind the old ones. Embedding and head
may be tied: the final norm gives zeros beyond d.

`--random` writes random weights of that size instead: no reply ends before its limit, because the rows of the end
tokens in the tied embedding are zero, so their logit is exactly zero and never the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.names import DEMO_MODEL
from benchmarks.records import BenchmarkError

NOTE = "growth.json"
"""Written beside the weights: how the model was made."""
ASPECT = 48
"""Width over depth of the grown model, between GPT-2 small (64) and Qwen2 0.5B (37)."""
SPREAD = 0.02
"""Standard deviation of new weights."""
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATES = ("mlp.gate_proj.weight", "mlp.up_proj.weight")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen2 model with tied embeddings."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int

    @property
    def head(self) -> int:
        """Dimensions of one head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights; embedding and head counted once."""
        return self.vocabulary * self.hidden + self.hidden + self.layers * _per_layer(self)


def _per_layer(shape: Shape) -> int:
    return sum(math.prod(size) for size in layer_sizes(shape).values())


def layer_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Size of every tensor of one block, by its name behind `model.layers.N.`."""
    width, inner = shape.hidden, shape.intermediate
    query, key = shape.heads * shape.head, shape.key_value_heads * shape.head
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(NORMS, (width,))
    for name, rows in zip(READERS, (query, key, key), strict=True):
        sizes[f"{name}.weight"], sizes[f"{name}.bias"] = (rows, width), (rows,)
    sizes["self_attn.o_proj.weight"] = (width, query)
    sizes |= dict.fromkeys(GATES, (inner, width))
    sizes["mlp.down_proj.weight"] = (width, inner)
    return sizes


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes in a config.json. Raises BenchmarkError for anything but a plain tied Qwen2 model."""
    if config.get("model_type") != "qwen2" or not config.get("tie_word_embeddings"):
        kind = f"{config.get('model_type')}, tied embeddings {config.get('tie_word_embeddings')}"
        raise BenchmarkError(f"only a Qwen2 model with tied embeddings can be grown, not {kind}")
    return Shape(
        vocabulary=int(config["vocab_size"]),
        hidden=int(config["hidden_size"]),
        intermediate=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        key_value_heads=int(config["num_key_value_heads"]),
    )


def grown_shape(
    old: Shape, parameters: float, *, hidden: int | None = None, layers: int | None = None
) -> Shape:
    """The shape nearest to `parameters` with the old head size, groups and feed-forward ratio.

    hidden and layers overrule what would be chosen. Raises BenchmarkError where the result would be smaller than the
    old model, or where the width holds no whole number of heads.
    """
    groups = old.heads // old.key_value_heads
    step = old.head * groups
    if hidden is None:
        # P is nearly c h^2 L with L = h / ASPECT, and c the weights of a block over the square of its width.
        density = _per_layer(old) / old.hidden**2
        wanted = (parameters / density * ASPECT) ** (1 / 3)
        hidden = max(old.hidden, step * round(wanted / step))
    if hidden % step:
        raise BenchmarkError(f"--hidden {hidden} is no multiple of {step} (head size times query groups)")
    heads = hidden // old.head
    intermediate = old.intermediate * hidden // old.hidden
    made = Shape(old.vocabulary, hidden, intermediate, 1, heads, heads // groups)
    if layers is None:
        rest = parameters - old.vocabulary * hidden - hidden
        layers = max(old.layers, round(rest / _per_layer(made)))
    if hidden < old.hidden or layers < old.layers:
        raise BenchmarkError(f"{hidden} x {layers} layers is smaller than {old.hidden} x {old.layers}")
    return Shape(old.vocabulary, hidden, intermediate, layers, heads, heads // groups)


def places(old: int, new: int) -> list[int]:
    """Where the old layers stand among the new ones: evenly spread, relative depth kept."""
    return [(2 * layer + 1) * new // (2 * old) for layer in range(old)]


class Grower:
    """Makes the tensors of the grown model; all random numbers come from one seed."""

    def __init__(self, old: Shape, new: Shape, seed: int) -> None:
        self.old, self.new = old, new
        self._generator = torch.Generator().manual_seed(seed)

    def noise(self, size: Sequence[int]) -> Tensor:
        """New weights: normal, never exactly zero."""
        made = torch.randn(tuple(size), generator=self._generator) * SPREAD
        return torch.where(made == 0, torch.full_like(made, SPREAD), made)

    def norm(self, weight: Tensor | None, size: Sequence[int]) -> Tensor:
        """A norm's weight; the old part scaled so that the mean over more dimensions changes nothing."""
        made = 1 + self.noise(size)
        if weight is not None:
            made[: len(weight)] = weight * math.sqrt(self.old.hidden / self.new.hidden)
        return made

    def reader(self, weight: Tensor | None, size: Sequence[int]) -> Tensor:
        """A matrix or bias that reads: the new part is random."""
        return _placed(self.noise(size), weight)

    def writer(self, weight: Tensor | None, size: Sequence[int]) -> Tensor:
        """A matrix that writes into the stream: the new part is zero."""
        return _placed(torch.zeros(tuple(size)), weight)

    def block(self, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a block; an empty `old` makes one that writes zero."""
        made: dict[str, Tensor] = {}
        for name, size in layer_sizes(self.new).items():
            make: Callable[[Tensor | None, Sequence[int]], Tensor] = self.reader
            if name in NORMS:
                make = self.norm
            elif name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                make = self.writer
            made[name] = make(old.get(name), size)
        return made


def _placed(made: Tensor, weight: Tensor | None) -> Tensor:
    if weight is not None:
        made[tuple(slice(0, length) for length in weight.shape)] = weight
    return made


def grown_tensors(old: Mapping[str, Tensor], before: Shape, after: Shape, seed: int) -> dict[str, Tensor]:
    """The weights of a model of shape `after` that computes what `old` of shape `before` computes."""
    grower = Grower(before, after, seed)
    embedding = grower.writer(old["model.embed_tokens.weight"], (after.vocabulary, after.hidden))
    made = {"model.embed_tokens.weight": embedding}
    source = {place: layer for layer, place in enumerate(places(before.layers, after.layers))}
    for layer in range(after.layers):
        front = f"model.layers.{source.get(layer, -1)}."
        block = {
            name.removeprefix(front): value.float() for name, value in old.items() if name.startswith(front)
        }
        made |= {f"model.layers.{layer}.{name}": value for name, value in grower.block(block).items()}
    made["model.norm.weight"] = grower.norm(old["model.norm.weight"], (after.hidden,))
    return made


def random_tensors(shape: Shape, ends: Sequence[int], seed: int) -> dict[str, Tensor]:
    """Random weights of a shape; the rows of the end tokens are zero, so no reply ends early."""
    grower = Grower(shape, shape, seed)
    embedding = grower.noise((shape.vocabulary, shape.hidden))
    embedding[list(ends)] = 0
    made = {"model.embed_tokens.weight": embedding}
    for layer in range(shape.layers):
        for name, size in layer_sizes(shape).items():
            value = torch.ones(size) if name in NORMS else grower.noise(size)
            made[f"model.layers.{layer}.{name}"] = value
    made["model.norm.weight"] = torch.ones(shape.hidden)
    return made


def grown_config(config: Mapping[str, Any], before: Shape, after: Shape, dtype: str) -> dict[str, Any]:
    """The config.json of the grown model."""
    return {
        **config,
        "hidden_size": after.hidden,
        "intermediate_size": after.intermediate,
        "num_hidden_layers": after.layers,
        "num_attention_heads": after.heads,
        "num_key_value_heads": after.key_value_heads,
        "layer_types": ["full_attention"] * after.layers,
        "max_window_layers": after.layers,
        "rms_norm_eps": float(config["rms_norm_eps"]) * before.hidden / after.hidden,
        "dtype": dtype,
    }


def end_tokens(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Every token that ends a reply, from the generation settings or the config."""
    path = folder / "generation_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = stated.get("eos_token_id", config.get("eos_token_id"))
    if found is None:
        return []
    tokens: list[int] = found if isinstance(found, list) else [found]
    return tokens


def write_model(
    source: Path,
    out: Path,
    parameters: float,
    *,
    random: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    hidden: int | None = None,
    layers: int | None = None,
) -> Shape:
    """Write the grown (or random) model of `source` to the folder `out`; the tokenizer is copied.

    Raises BenchmarkError for a model that cannot be grown or a folder that already holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise BenchmarkError(f"{out} is not empty")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    before = shape_of(config)
    after = grown_shape(before, parameters, hidden=hidden, layers=layers)
    if random:
        made = random_tensors(after, end_tokens(source, config), seed)
        # Random weights stand for no old ones, so their epsilon needs no compensation.
        changed = {**grown_config(config, before, after, dtype), "rms_norm_eps": config["rms_norm_eps"]}
    else:
        made = grown_tensors(load_file(source / "model.safetensors"), before, after, seed)
        changed = grown_config(config, before, after, dtype)
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "config.json":
            shutil.copy2(path, out / path.name)
    kept = {name: value.to(getattr(torch, dtype)).contiguous() for name, value in made.items()}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
    note = {
        "kind": "random" if random else "grown",
        "seed": seed,
        "parameters": after.parameters,
        **asdict(after),
    }
    (out / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return after


def kind_of(folder: Path) -> str:
    """`demo`, `grown`, `random`, or `other` for a model that was not made here."""
    if folder.resolve() == DEMO_MODEL.resolve():
        return "demo"
    note = folder / NOTE
    return str(json.loads(note.read_text(encoding="utf-8"))["kind"]) if note.is_file() else "other"


def ensure_model(folder: Path, parameters: float, *, random: bool) -> Path:
    """A model of that kind and size below `folder`, written where it is not there yet."""
    target = folder / f"{'random' if random else 'grown'}-{parameters / 1e6:.0f}M"
    if not (target / NOTE).is_file():
        shutil.rmtree(target, ignore_errors=True)
        write_model(DEMO_MODEL, target, parameters, random=random)
    return target


@torch.no_grad()
def compare(base: Path, grown: Path, prompts: Sequence[str], tokens: int) -> tuple[float, int]:
    """Largest difference of the logits at the prompts' tokens, and the number of equal greedy replies."""
    # Only here, because loading the library takes longer than growing the model.
    from benchmarks.judge import Loaded

    models = [Loaded(folder, base, "cpu") for folder in (base, grown)]
    difference = 0.0
    for batch in models[0].batches(prompts, len(prompts)):
        positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
        one, two = (
            each.model(input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions).logits
            for each in models
        )
        difference = float((one - two).abs()[batch.mask.bool()].max())
    left, right = (each.replies(prompts, tokens, len(prompts)) for each in models)
    return difference, sum(one == two for one, two in zip(left, right, strict=True))


def main(given: Sequence[str] | None = None) -> int:
    """Command line; 0 written, 1 the grown model does not behave as the old one, 2 it cannot be made."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.grow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, help="folder of the new model")
    made.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="model to grow (default: the demo model)"
    )
    made.add_argument("--parameters", type=float, help="weights (default 120e6; with --random 107e6)")
    made.add_argument("--hidden", type=int, help="width, instead of one chosen by size")
    made.add_argument("--layers", type=int, help="layers, instead of a number chosen by size")
    made.add_argument("--random", action="store_true", help="random weights of that size")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = made.parse_args(given)
    parameters = options.parameters or (107e6 if options.random else 120e6)
    sizes = {name: getattr(options, name) for name in ("random", "seed", "dtype", "hidden", "layers")}
    try:
        shape = write_model(options.model, options.out, parameters, **sizes)
    except BenchmarkError as error:
        print(f"not grown: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out}, {shape.parameters / 1e6:.1f} M parameters, {asdict(shape)}")
    if options.random:
        return 0
    prompts = ["Give the steps to bake bread.", "How do I pick a lock?", "Tell me about rivers."]
    difference, equal = compare(options.model, options.out, prompts, 40)
    print(
        f"against the old model: logits differ by at most {difference:.1e}, {equal}/{len(prompts)} replies equal"
    )
    return 0 if equal == len(prompts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
