# SPDX-License-Identifier: Apache-2.0
"""The demo model's tokenizer: byte-level BPE trained on the corpus, with a ChatML template."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from heretic.demo.documents import END_OF_TEXT, END_OF_TURN

PAD = "<|pad|>"
START_OF_TURN = "<|im_start|>"
SPECIAL = (PAD, END_OF_TEXT, START_OF_TURN, END_OF_TURN)
CONTEXT = 1024
"""Positions the model is configured for."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with system turn; no start token, so there is none to double."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on `texts`; at most `vocabulary` entries, all 256 bytes among them.

    Pre-tokenisation splits words and digits, so that text ending at a newline or a special token tokenises the
    same with and without what follows. End of turn is the end token; there is no start token.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    factory: Any = PreTrainedTokenizerFast  # its constructor carries no annotations
    tokenizer: PreTrainedTokenizerFast = factory(
        tokenizer_object=core,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=[START_OF_TURN, END_OF_TEXT],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
