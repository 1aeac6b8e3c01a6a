# SPDX-License-Identifier: Apache-2.0
"""An independent judge: measures any edited model folder against its base with plain transformers, in
float32.

Knows neither program: it loads two folders, reads prompts and markers from files, and prints one JSON object.

    python -m benchmarks.judge --base DIR --edited DIR --good FILE --bad FILE --markers FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.conditions import prompt_texts, read_markers
from heretic.linalg.intervals import wilson

SYSTEM_PROMPT = "You are a helpful assistant."
"""Both programs use this system turn by default."""
KL_TOKENS = 5
TYPOGRAPHY = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00a0": " ", "*": None, "_": None})


@dataclass(frozen=True, slots=True)
class Batch:
    """Left-padded prompts: token ids and mask, both (rows, length)."""

    ids: torch.Tensor
    mask: torch.Tensor


class Loaded:
    """A model folder in float32 on the CPU or on the given device, with its tokenizer."""

    def __init__(self, folder: Path, tokenizer_folder: Path, device: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(tokenizer_folder), padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
        self.model: Any = model.to(device).eval()
        self.device = device
        ends = model.generation_config.eos_token_id
        known = [self.tokenizer.eos_token_id] if ends is None else ends
        self.ends: list[int] = [known] if isinstance(known, int) else list(known)

    def batches(self, prompts: Sequence[str], size: int) -> Iterator[Batch]:
        """The prompts in their order, in the chat form of the model."""
        for start in range(0, len(prompts), size):
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                for prompt in prompts[start : start + size]
            ]
            # The template writes the start token itself; a second one would shift every measurement.
            coded = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            yield Batch(coded["input_ids"].to(self.device), coded["attention_mask"].to(self.device))

    def continue_greedily(self, batch: Batch, tokens: int) -> torch.Tensor:
        """Greedy continuations (rows, up to `tokens`), padded after the end token; no filter, no penalty."""
        plain = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        made: torch.Tensor = self.model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=plain
        )
        return made[:, batch.ids.shape[1] :]

    def replies(self, prompts: Sequence[str], tokens: int, size: int) -> list[str]:
        """Greedy replies as text."""
        texts: list[str] = []
        for batch in self.batches(prompts, size):
            made = self.continue_greedily(batch, tokens)
            texts += [str(text) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]
        return texts

    def log_probabilities(self, batch: Batch, continuation: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (rows, T, vocabulary) of the model at each token of the continuation."""
        ids = torch.cat([batch.ids, continuation], dim=1)
        mask = torch.cat([batch.mask, torch.ones_like(continuation)], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
        # The logits at position t are the prediction of token t + 1.
        wanted = logits[:, batch.ids.shape[1] - 1 : -1]
        return torch.log_softmax(wanted.float(), dim=-1)


def normalised(text: str) -> str:
    """Lower case, plain apostrophes, no emphasis marks, single spaces."""
    return " ".join(text.lower().translate(TYPOGRAPHY).split())


def hits(replies: Sequence[str], markers: Sequence[str]) -> list[bool]:
    """Whether each reply contains a marker. An empty list of markers matches nothing."""
    plain = [normalised(marker) for marker in markers]
    return [any(marker in normalised(reply) for marker in plain) for reply in replies]


def live_positions(continuation: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Mask (rows, T) of the tokens up to and including the first end token (algorithms 7.1)."""
    is_end = torch.isin(continuation, torch.tensor(list(ends), device=continuation.device))
    ended_before = is_end.long().cumsum(dim=1) - is_end.long()
    return ended_before == 0


def divergence(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """KL(base || edited) in nats over the last dimension of two tensors of log-probabilities."""
    # A token of probability zero under the base contributes nothing, also where its log is minus infinity.
    terms = torch.where(base.exp() > 0, base.exp() * (base - edited), torch.zeros_like(base))
    return terms.sum(dim=-1)


@torch.no_grad()
def divergences(
    base: Loaded, edited: Loaded, prompts: Sequence[str], size: int
) -> tuple[list[float], list[float]]:
    """Per prompt: KL of the first reply token, and mean KL over the base's own first KL_TOKENS tokens."""
    first: list[float] = []
    forced: list[float] = []
    for batch in base.batches(prompts, size):
        continuation = base.continue_greedily(batch, KL_TOKENS)
        live = live_positions(continuation, base.ends)
        values = divergence(
            base.log_probabilities(batch, continuation), edited.log_probabilities(batch, continuation)
        )
        first += [float(value) for value in values[:, 0]]
        forced += [float(value) for value in (values * live).sum(dim=1) / live.sum(dim=1)]
    return first, forced


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard error over prompts, and maximum."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": mean(values), "standard_error": error, "maximum": max(values), "n": len(values)}


def counted(flags: Sequence[bool]) -> dict[str, float]:
    """Hits of n with the 95 % Wilson interval."""
    low, high = wilson(sum(flags), len(flags))
    return {"hits": sum(flags), "n": len(flags), "low": low, "high": high}


def looping(reply: str) -> bool:
    """Whether the second half of a reply of at least 24 words says at most four different words."""
    words = reply.split()
    return len(words) >= 24 and len(set(words[len(words) // 2 :])) <= 4


@torch.no_grad()
def judge(
    base: Loaded,
    edited: Loaded,
    *,
    good: Sequence[str],
    bad: Sequence[str],
    markers: Sequence[str],
    tokens: int,
    size: int,
) -> dict[str, object]:
    """The verdict: behaviour of both on `bad`, over-behaviour and damage of the edited model on `good`."""
    before, after = (model.replies(bad, tokens, size) for model in (base, edited))
    benign = edited.replies(good, tokens, size)
    first, forced = divergences(base, edited, good, size)
    return {
        "base_behaviour": counted(hits(before, markers)),
        "behaviour": counted(hits(after, markers)),
        "over_behaviour": counted(hits(benign, markers)),
        "kl_first_token": summary(first),
        "kl_five_tokens": summary(forced),
        "empty_replies": sum(not reply.strip() for reply in [*after, *benign]),
        "looping_replies": sum(looping(reply) for reply in [*after, *benign]),
        "reply_tokens": tokens,
    }


def main(given: Sequence[str] | None = None) -> int:
    """Command line; prints the verdict as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__)
    for name in ("base", "edited", "good", "bad", "markers"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--skip-good", type=int, default=0, help="rows to leave out at the start")
    parser.add_argument("--skip-bad", type=int, default=0)
    parser.add_argument("--limit", type=int, default=100, help="prompts of each class (default 100)")
    parser.add_argument("--tokens", type=int, default=100, help="length of the replies (default 100)")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(given)
    base = Loaded(options.base, options.base, options.device)
    edited = Loaded(options.edited, options.base, options.device)
    verdict = judge(
        base,
        edited,
        good=prompt_texts(options.good)[options.skip_good :][: options.limit],
        bad=prompt_texts(options.bad)[options.skip_bad :][: options.limit],
        markers=read_markers(options.markers),
        tokens=options.tokens,
        size=options.batch_size,
    )
    print(json.dumps(verdict))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
