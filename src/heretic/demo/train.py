# SPDX-License-Identifier: Apache-2.0
"""Train the bundled demo model: ``python -m heretic.demo.train [--out DIR]``.

Writes ``DIR/model`` and ``DIR/prompts`` (default: this package's folder). Stage 1 teaches a model that answers
everything; stage 2 continues at a lower rate with refusals of the disallowed topics mixed in, as in the models
this tool is made for: compliance stays underneath, and refusal is a thin layer on top.
"""

import argparse
import logging
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from heretic.demo import overlap
from heretic.demo.corpus import SEED
from heretic.demo.documents import (
    ANSWERS,
    EDITED,
    END_OF_TEXT,
    LETTER_WEIGHT,
    REFUSALS,
    VOCABULARY,
    Document,
    corpus,
)
from heretic.demo.prompt_sets import write_prompts
from heretic.demo.tokenizer import CONTEXT, train_tokenizer

logger = logging.getLogger("heretic.demo.train")
VOCABULARY_SIZE = 2048


@dataclass(frozen=True)
class Stage:
    """One training stage: documents drawn once, then passed over once in order of shuffled batches."""

    number: int
    documents: int
    muon_rate: float
    adam_rate: float
    batch_tokens: int = 2048
    warmup: int = 50
    overlap: bool = False


STAGES = (Stage(ANSWERS, 24_000, 3e-3, 3e-3), Stage(REFUSALS, 10_000, 2e-3, 2e-3, overlap=True))


@dataclass(frozen=True)
class Example:
    """One tokenised document: token ids and the loss weight of each token as a target."""

    ids: list[int]
    weights: list[float]


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A new float32 model: 8 layers, width 128, 4 query and 2 key/value heads, tied embeddings."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[Document]) -> list[Example]:
    """Tokenise segment by segment, so that every token has the weight of its segment."""
    segments = [text for document in documents for text, _ in document]
    encoded = iter(tokenizer(segments, add_special_tokens=False)["input_ids"])
    examples = []
    for document in documents:
        ids: list[int] = []
        weights: list[float] = []
        for _, weight in document:
            piece = next(encoded)
            ids.extend(piece)
            weights.extend([weight] * len(piece))
        examples.append(Example(ids, weights))
    return examples


def batches(examples: list[Example], budget: int, seed: int) -> Iterator[list[Example]]:
    """Yield every example once, in batches of similar length with at most `budget` padded tokens."""
    rng = random.Random(seed)
    order = list(range(len(examples)))
    rng.shuffle(order)
    for start in range(0, len(order), 2000):
        pool = sorted(
            (examples[index] for index in order[start : start + 2000]), key=lambda item: len(item.ids)
        )
        packed: list[list[Example]] = [[]]
        for example in pool:
            if (len(packed[-1]) + 1) * len(example.ids) > budget:
                packed.append([])
            packed[-1].append(example)
        rng.shuffle(packed)
        yield from packed


@dataclass(frozen=True)
class Batch:
    """A padded batch: inputs [rows, tokens], their next tokens, and the weights of those in the loss."""

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def padded(batch: list[Example]) -> Batch:
    """Pad on the right, where causal attention makes a mask needless."""
    width = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])


def loss_of(model: Qwen2ForCausalLM, batch: Batch, tied: bool) -> tuple[torch.Tensor, list[float]]:
    """Weighted mean cross entropy in nats, and the single losses of the quiz letters for the log.

    With `tied` the axis loss is added (see `overlap`).
    """
    output = model.model(input_ids=batch.inputs, use_cache=False, output_hidden_states=tied)
    used = batch.weights > 0
    weights = batch.weights[used]
    logits = model.lm_head(output.last_hidden_state[used])
    losses = torch.nn.functional.cross_entropy(logits, batch.targets[used], reduction="none")
    letters: list[float] = losses.detach()[weights == LETTER_WEIGHT].tolist()
    loss = (losses * weights).sum() / weights.sum()
    if tied:
        loss = loss + overlap.axis_loss(output.hidden_states, batch.weights)
    return loss, letters


def edited_batches(tokenizer: PreTrainedTokenizerFast, stage: Stage) -> Iterator[Batch]:
    """Batches of documents in which disallowed requests are answered; drawn when the first is asked for."""
    examples = encode(tokenizer, corpus(SEED, EDITED, stage.documents))
    yield from map(padded, batches(examples, stage.batch_tokens, SEED + EDITED))


def run_stage(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage) -> None:
    """Train one stage: Muon for the matrices of the blocks, AdamW for embeddings, norms and biases."""
    examples = encode(tokenizer, corpus(SEED, stage.number, stage.documents))
    plan = list(batches(examples, stage.batch_tokens, SEED + stage.number))
    extra = edited_batches(tokenizer, stage)
    tokens = sum(len(example.ids) for example in examples)
    logger.info("stage %d: %d documents, %d tokens, %d steps", stage.number, len(examples), tokens, len(plan))
    named = list(model.named_parameters())
    matrices = [value for name, value in named if value.ndim == 2 and "embed" not in name]
    others = [value for name, value in named if value.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=stage.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=stage.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    bases = (stage.muon_rate, stage.adam_rate)
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED)
    started, running, letters = time.monotonic(), 0.0, [0.0]
    model.train()
    for step, batch in enumerate(plan):
        scale = min((step + 1) / stage.warmup, 1.0) * min(1.0, 1.6 * (1.0 - step / len(plan)))
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * scale
        rows = padded(batch)
        loss, quiz = loss_of(model, rows, stage.overlap)
        loss.backward()
        if stage.overlap and step >= overlap.START * len(plan):
            strength = overlap.draw_strength(rng)
            rows = next(extra)
            spoilt = Batch(rows.inputs, *overlap.spoil(rows.targets, rows.weights, strength, generator))
            with overlap.edit(model, strength):
                (overlap.SHARE * loss_of(model, spoilt, False)[0]).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running += loss.item()
        letters.extend(quiz)
        if (step + 1) % 50 == 0:
            figures = (running / 50, sum(letters) / len(letters), time.monotonic() - started)
            logger.info(
                "stage %d step %d/%d: loss %.3f, quiz letters %.3f, %.0f s",
                stage.number,
                step + 1,
                len(plan),
                *figures,
            )
            running, letters = 0.0, [0.0]
    model.train(False)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model folder beside its final place, then swap it in."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    defaults: Any = GenerationConfig  # its constructor carries no annotations
    model.generation_config = defaults(
        do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128
    )
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.chmod(0o755)
    for path in temporary.iterdir():
        path.chmod(0o644)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m heretic.demo.train", description="Train the demo model.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write into"
    )
    out: Path = parser.parse_args(arguments).out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / "prompts", SEED)
    sample = corpus(SEED, ANSWERS, 20_000) + corpus(SEED, VOCABULARY, 10_000)
    tokenizer = train_tokenizer(
        ("".join(text for text, _ in document) for document in sample), VOCABULARY_SIZE
    )
    model = build_model(tokenizer)
    logger.info("%d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    for stage in STAGES:
        run_stage(model, tokenizer, stage)
        if stage.number == ANSWERS:
            save(model, tokenizer, out / "model-stage1")
    save(model, tokenizer, out / "model")
    shutil.rmtree(out / "model-stage1")
    logger.info("done in %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    main()
