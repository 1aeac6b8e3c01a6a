# SPDX-License-Identifier: Apache-2.0
"""A loaded causal language model with its tokenizer and resolved structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from heretic.architectures.site import Architecture
from heretic.exceptions import NonFiniteError
from heretic.model.source import ModelSource
from heretic.model.tokens import Batch, PromptEncoder, pad_left

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Network, prompt encoder, structure and origin of one model. Nothing here changes a weight."""

    network: PreTrainedModel
    encoder: PromptEncoder
    architecture: Architecture
    source: ModelSource
    dtype: str
    quantization: str = "none"

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embedding."""
        return self.network.get_input_embeddings().weight.device  # type: ignore[return-value]  # a Tensor attribute

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Token ids that end a reply, from the generation configuration, else the tokenizer."""
        configured = getattr(self.network.generation_config, "eos_token_id", None)
        if configured is None:
            configured = self.encoder.tokenizer.eos_token_id
        if configured is None:
            return ()
        return tuple(configured) if isinstance(configured, list | tuple) else (int(configured),)

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Left-padded rows on the model's device."""
        return pad_left(sequences, self.encoder.pad, self.device)

    def parameter(self, path: str) -> Tensor:
        """The parameter at `path`, detached."""
        return self.network.get_parameter(path).detach()

    def blocks(self) -> list[nn.Module]:
        """Decoder blocks in order."""
        return [self.network.get_submodule(path) for path in self.architecture.blocks]

    def logits(self, batch: Batch, keep: int) -> Tensor:
        """Raw logits [rows, keep, V] float32 of the last `keep` positions, head in float32 (algorithms 7.1)."""
        with torch.inference_mode(), float32_head(self.network):
            output = self.network(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=keep,
            )
        logits: Tensor = output.logits
        return logits.float()


@contextmanager
def float32_head(network: PreTrainedModel) -> Iterator[None]:
    """Multiply the final hidden states with the head in float32; the model's own cap and scale act on top.

    A bf16 head alone fakes a KL of 2e-4 (algorithms 7.1). Nothing changes for a float32 model or a quantised head.
    """
    head = network.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if head is None or not isinstance(weight, Tensor) or weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    bias = getattr(head, "bias", None)
    chunk = max(1, 2**26 // weight.shape[1])

    def forward(hidden: Tensor) -> Tensor:
        inputs = hidden.float()
        parts = [inputs @ part.float().T for part in weight.split(chunk)]
        result = torch.cat(parts, dim=-1)
        return result if bias is None else result + bias.float()

    head.forward = forward  # restored below; an instance attribute shadows the class
    try:
        yield
    finally:
        del head.forward


def require_finite(network: nn.Module) -> None:
    """Raise `NonFiniteError` naming the first floating-point parameter with NaN or infinity (reliability C05)."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(
                f"The weight {name} holds NaN or infinity.",
                hint="The file is damaged or was saved in too small a number format; fetch the model again.",
            )
