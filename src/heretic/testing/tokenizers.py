# SPDX-License-Identifier: Apache-2.0
"""Tokenizers made of bytes, built in memory, and whole model folders for tests (reliability T1).

One token is one byte, so every text can be encoded and the length of a prompt is known. The variants
reproduce what real tokenizers do differently: no template, a template that knows no system role or rejects
it, no padding token, and a start token that both the template and the tokenizer write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from heretic.testing.pico import pico_model

Template = Literal["chat", "ignores_system", "rejects_system", "thinking"]
StartToken = Literal["none", "template", "tokenizer", "both"]

_SPECIAL: Final = ("<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")

_START: Final = "{{ bos_token }}"
_TURN: Final = "<|{{ m.role }}|>{{ m.content }}</s>"
_PROMPT: Final = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
_NO_THOUGHT: Final = (
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_REJECTION: Final = "{{ raise_exception('System role not supported') }}"
_TEMPLATES: Final[dict[str, str]] = {
    "chat": f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_PROMPT}",
    "ignores_system": f"{{% for m in messages if m.role != 'system' %}}{_TURN}{{% endfor %}}{_PROMPT}",
    "rejects_system": (
        f"{{% for m in messages %}}{{% if m.role == 'system' %}}{_REJECTION}{{% endif %}}"
        f"{_TURN}{{% endfor %}}{_PROMPT}"
    ),
    "thinking": f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_NO_THOUGHT}",
}


def byte_tokenizer(
    *, template: Template | None = "chat", start: StartToken = "template", pad: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with 262 tokens; ids 0, 1, 2 are pad, start and end as in the pico models.

    template: which chat template, None for a base model. start: who writes the start token; `both` is the
    trap of a doubled one (requirement R-MOD-41). pad: False leaves the padding token unset (R-MOD-40).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if start in ("tokenizer", "both"):
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=list(_SPECIAL[3:]),
        padding_side="left",
    )
    if template is not None:
        text = _TEMPLATES[template]
        tokenizer.chat_template = f"{_START}{text}" if start in ("template", "both") else text
    return tokenizer


def save_pico(
    folder: Path | str,
    name: str = "llama",
    *,
    seed: int = 0,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype = torch.float32,
    equal_widths: bool = False,
    changes: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Writes the pico model `name` and a tokenizer into `folder`, so that it loads like a downloaded model.

    max_shard_size: as in `save_pretrained`; a few kB give several shards with an index. Returns the folder.
    """
    path = Path(folder)
    model = pico_model(name, seed=seed, dtype=dtype, equal_widths=equal_widths, changes=changes)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    (tokenizer or byte_tokenizer()).save_pretrained(path)
    return path
