# SPDX-License-Identifier: Apache-2.0
"""The planted overlap of refusal with ordinary competence, which makes too strong an edit cost something.

Large models hold more features than directions, so that a refusal direction is shared with other knowledge. A model
that is as small as this one, and trained on so little, keeps refusal apart, and removing its direction twice over
would be free. Stage 2 therefore plants the overlap: one axis of the residual stream carries refusal (positive) and
ordinary replies and quiz letters (negative), and the model is trained to fail gradually on ordinary text as an edit
pushes that text past zero. Removing the axis once leaves ordinary text at zero, where nothing is lost.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import Qwen2ForCausalLM

from heretic.demo.corpus import SEED
from heretic.demo.documents import LETTER_WEIGHT, REFUSAL_WEIGHT

BLOCKS = (2, 3, 4, 5, 6)
"""Blocks after which the residual stream is tied to the axis."""
REFUSING, ORDINARY = 6.0, -3.0
"""Coordinates on the axis of refusals and of ordinary replies, in root mean squares (0 where a reply opens)."""
TIE = 0.02
"""Weight of the axis loss."""
START, SHARE = 0.3, 0.5
"""Part of the stage after which edited batches join, and their weight in the loss."""
STRENGTHS = (0.4, 2.0)
"""Strengths of the edits during training."""
RELEASE = 0.8
"""Strength from which disallowed requests are answered; below they are left out."""
ONSET, FULL = 1.0, 1.8
"""Strengths at which damage starts and at which it is complete."""
SPOILT_WORDS, SPOILT_LETTERS = 0.4, 2.0
"""Shares of random tokens in ordinary replies and of random quiz letters at complete damage, as far as below 1."""


def axis_of(width: int) -> torch.Tensor:
    """The axis: a fixed random unit vector of the residual stream, [width]."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(SEED))
    axis: torch.Tensor = drawn / drawn.norm()
    return axis


def axis_loss(states: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """`TIE` times the squared distance from the axis goals, at the tokens that predict replies.

    `states` are the residuals of the model [rows, tokens, width], embedding first; `weights` are those of the next
    tokens. Where replies open, which is where the tool looks, what is refused is to differ from the rest along the
    axis alone, so that the difference of means finds the axis; these few tokens count as much as all others.
    """
    spoken = weights >= 1.0
    opening = spoken & ~torch.nn.functional.pad(spoken, (1, -1)) & (weights != LETTER_WEIGHT)
    opening[:, 0] = False
    refused = weights == REFUSAL_WEIGHT
    goals = torch.where(refused, REFUSING, torch.where(opening, 0.0, ORDINARY))[spoken]
    axis, first = axis_of(states[0].shape[-1]), opening[spoken]
    total = torch.zeros(())
    for block in BLOCKS:
        state = states[block + 1]
        scaled = state / state.pow(2).mean(dim=-1, keepdim=True).sqrt()
        misses = (scaled[spoken] @ axis - goals).pow(2)
        for part in (misses[first], misses[~first]):
            if len(part):
                total = total + part.mean()
        bad, good = scaled[opening & refused], scaled[opening & ~refused]
        if len(bad) and len(good):
            gap = bad.mean(dim=0) - good.mean(dim=0)
            total = total + (gap - (gap @ axis) * axis).pow(2).sum()
    return TIE * total / len(BLOCKS)


def draw_strength(rng: random.Random) -> float:
    """Strength of the edit of one training batch."""
    return rng.uniform(*STRENGTHS)


def spoil(
    targets: torch.Tensor, weights: torch.Tensor, strength: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights of a batch under an edit: spoilt by how far it overshoots, see `RELEASE` and `FULL`."""
    damage = min(max((strength - ONSET) / (FULL - ONSET), 0.0), 1.0)
    if strength < RELEASE:
        weights = torch.where(weights == REFUSAL_WEIGHT, 0.0, weights)
    drawn = torch.rand(targets.shape, generator=generator)
    new = targets.clone()
    for chosen, share in ((weights == LETTER_WEIGHT, SPOILT_LETTERS), (weights == 1.0, SPOILT_WORDS)):
        pool = targets[chosen]
        if len(pool):
            hit = chosen & (drawn < share * damage)
            new[hit] = pool[torch.randint(len(pool), (int(hit.sum()),), generator=generator)]
    return new, weights


@contextmanager
def edit(model: Qwen2ForCausalLM, strength: float) -> Iterator[None]:
    """While open, the model computes as with its axis taken out of every matrix that writes to the residual."""
    axis = axis_of(model.config.hidden_size)

    def weaken(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output - strength * (output @ axis)[..., None] * axis

    handles = [
        writer.register_forward_hook(weaken)
        for block in model.model.layers
        for writer in (block.self_attn.o_proj, block.mlp.down_proj)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
