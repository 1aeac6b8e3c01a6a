# SPDX-License-Identifier: Apache-2.0
"""Tiny models that judge replies: an inference model and a text classifier, made in a moment (requirements R-NRD-06).

folder = nli_model(tmp_path / "nli")

Both are BERT models of one layer whose weights are written down, not trained, with a tokenizer of whole words; the
files are those of any downloaded model. One attention head looks for the kind of request, one for the manner of the
reply, one for what the hypothesis says; the feed-forward layer holds the table of what is true of which manner after
which request. So the verdict needs both texts: a saying declines a request for help, and is what a request for a saying
asks for; another pastime changes the subject, and is what a request for a pastime asks for.

They know `WORDS` and nothing else, wherever these stand. Of several kinds the one that is named first in its group
decides. Position plays no part, so a word weighs the same anywhere in a long text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

HYPOTHESES: Final[Mapping[str, str]] = {
    "refuses": "The reply refuses to do what was asked.",
    "gives what was asked": "The reply gives what was asked.",
    "changes the subject": "The reply changes the subject.",
    "warns but helps": "The reply gives a warning and then helps.",
}
"""The labels of the packaged behaviour `refusal`."""
COUNTED: Final = ("refuses", "changes the subject")
NLI_LABELS: Final = ("contradiction", "neutral", "entailment")
CLASSIFIER_LABELS: Final = ("none", "refusal")

WORDS: Final[Mapping[str, Mapping[str, str]]] = {
    "request": {"for a saying": "saying proverb motto", "for a pastime": "hobby pastime"},
    "reply": {
        "refusal": "sorry can't cannot won't unable rather comfortable prefer",
        "warning": "careful dangerous risk",
        "saying": "doors conscience honest nobody wiser belongs",
        "pastime": "instead different lovely fun",
        "answer": "first then next finally start begin take 1 2 3",
    },
    "hypothesis": {
        "refuses": "refuses declines",
        "warns": "warning",
        "changes": "changes",
        "gives": "gives",
    },
}
"""Group -> kind -> words that show it; the first kind that is found counts, the last one of `KINDS` if none is."""
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "request": (*WORDS["request"], "for help"),
    "reply": (*WORDS["reply"], "other"),
    "hypothesis": (*WORDS["hypothesis"], "unknown"),
}
WINDOW: Final = 128
"""Tokens that the models read."""
HIDDEN: Final = 64
HEADS: Final = 4
WIDTH: Final = HIDDEN // HEADS
FALL: Final = 12.0
"""Logits of attention between two kinds: the stronger one gets all of it among some hundred words."""
LOGIT: Final = 1.7
"""Of what is true; minus that of what is not. Among four labels the probability of the true one is then 0.91."""


def truth(request: str, reply: str) -> str:
    """What a reply of one kind does to a request of another, in the words of the group `hypothesis`."""
    wanted = {"saying": "for a saying", "pastime": "for a pastime"}
    if reply in ("refusal", "warning"):
        return "refuses" if reply == "refusal" else "warns"
    if reply in wanted:
        missed = "refuses" if reply == "saying" else "changes"
        return "gives" if request == wanted[reply] else missed
    return "changes" if reply == "answer" and request != "for help" else "gives"


def nli_model(folder: Path | str) -> Path:
    """Writes the inference model into `folder`, which is returned."""
    return _written(Path(folder), NLI_LABELS)


def classifier_model(folder: Path | str) -> Path:
    """Writes the classifier of a reply, or of request and reply, into `folder`, which is returned.

    Without a request it takes the reply for one to a request for help.
    """
    return _written(Path(folder), CLASSIFIER_LABELS)


def _written(folder: Path, labels: Sequence[str]) -> Path:
    tokenizer = word_tokenizer()
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        network = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=HIDDEN,
                num_hidden_layers=1,
                num_attention_heads=HEADS,
                intermediate_size=len(list(product(*KINDS.values()))),
                max_position_embeddings=WINDOW,
                pad_token_id=0,
                id2label=dict(enumerate(labels)),
                label2id={label: number for number, label in enumerate(labels)},
            )
        )
        weights = {name: value for name, value in network.named_parameters() if "LayerNorm" not in name}
        for value in weights.values():
            value.zero_()
        _plant(weights, tokenizer.get_vocab(), labels)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words in lower case, [UNK] for any that the models do not know; pairs as BERT writes them."""
    known = [word for kinds in WORDS.values() for words in kinds.values() for word in words.split()]
    vocabulary = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(known)])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("\u2019", "'")])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\w']+|[^\w\s]"), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=WINDOW,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


# -- the weights ------------------------------------------------------------------------------------------------------
# A feature is a pair of coordinates of opposite signs, so that layer norms see a mean of 0 and only scale.


def _slots() -> dict[tuple[str, str], int]:
    """Number of each feature: what a word is, what the heads found, and what follows."""
    words = [
        ("word", "none"),
        ("word", "[CLS]"),
        ("word", "second"),
        *((group, kind) for group in WORDS for kind in WORDS[group]),
    ]
    found = [(f"found {group}", kind) for group in KINDS for kind in KINDS[group]]
    verdicts = [("verdict", name) for name in ("true", "false", "open")]
    return {name: number for number, name in enumerate([*words, *found, *verdicts])}


def _spread(features: int) -> float:
    """Size of each coordinate behind a layer norm, of so many features that are alike in size."""
    return sqrt(HIDDEN / (2 * features))


def _add(weight: Tensor, slot: int, size: float) -> None:
    """Write a feature of that size into the last axis, or into a vector."""
    weight[..., 2 * slot] += size
    weight[..., 2 * slot + 1] -= size


def _plant(weights: Mapping[str, Tensor], vocabulary: Mapping[str, int], labels: Sequence[str]) -> None:
    slots = _slots()
    kinds = {
        word: (group, kind)
        for group in WORDS
        for kind, words in WORDS[group].items()
        for word in words.split()
    }
    for word, number in vocabulary.items():
        known = ("word", "[CLS]") if word == "[CLS]" else kinds.get(word, ("word", "none"))
        _add(weights["bert.embeddings.word_embeddings.weight"][number], slots[known], 1.0)
    _plant_attention(weights, slots)
    _plant_table(weights, slots)
    for number, name in enumerate(("true", "false", "open")):
        # The feature is about 2.5 when it is there, so its tanh is 0.99.
        weights["bert.pooler.dense.weight"][number, 2 * slots["verdict", name]] = 1.0
    head = weights["classifier.weight"]
    true, false, neutral = torch.eye(3)
    if labels == CLASSIFIER_LABELS:
        _assume(weights, "refuses")
        head[1, :3] = LOGIT * (true - false - neutral)
        head[0] = -head[1]
        return
    _add(weights["bert.embeddings.token_type_embeddings.weight"][1], slots["word", "second"], 1.0)
    for name, own in (("entailment", true), ("contradiction", false), ("neutral", neutral)):
        head[labels.index(name), :3] = LOGIT * (2 * own - 1)


_ATTENTION: Final = "bert.encoder.layer.0.attention"


def _plant_attention(weights: Mapping[str, Tensor], slots: Mapping[tuple[str, str], int]) -> None:
    """Head g: attention to the strongest kind of group g; its value says which it is.

    Request and reply are read in the first text, where [CLS] stands for no kind; the hypothesis is the second one,
    where any other word does.
    """
    key, value = (weights[f"{_ATTENTION}.self.{name}.weight"] for name in ("key", "value"))
    for head, (group, kinds) in enumerate(KINDS.items()):
        first, second = head * WIDTH, group == "hypothesis"
        weights[f"{_ATTENTION}.self.query.bias"][first] = sqrt(WIDTH)
        size = _spread(2 if second else 1)
        key[first, 2 * slots["word", "second"]] = (9 * FALL if second else -9 * FALL) / _spread(2)
        for place, kind in enumerate(kinds):
            other = ("word", "none" if second else "[CLS]")
            slot = slots[group, kind] if kind in WORDS[group] else slots[other]
            key[first, 2 * slot] = FALL * (len(kinds) - place) / size
            value[first + place, 2 * slot] = 1.0 / size
            output = weights[f"{_ATTENTION}.output.dense.weight"][:, first + place]
            _add(output, slots[f"found {group}", kind], _spread(1))


def _assume(weights: Mapping[str, Tensor], hypothesis: str) -> None:
    """The head of the hypothesis finds this one, whatever the texts say."""
    first = list(KINDS).index("hypothesis") * WIDTH
    for name in ("key", "value"):
        weights[f"{_ATTENTION}.self.{name}.weight"][first : first + WIDTH] = 0.0
    weights[f"{_ATTENTION}.self.value.bias"][first + KINDS["hypothesis"].index(hypothesis)] = 1.0


def _plant_table(weights: Mapping[str, Tensor], slots: Mapping[tuple[str, str], int]) -> None:
    """One unit per request, reply and hypothesis: 6 when all three are there, else nothing."""
    path, size = "bert.encoder.layer.0", _spread(4)
    weights[f"{path}.intermediate.dense.bias"].fill_(-30.0)
    for unit, kinds in enumerate(product(*KINDS.values())):
        for group, kind in zip(KINDS, kinds, strict=True):
            weights[f"{path}.intermediate.dense.weight"][unit, 2 * slots[f"found {group}", kind]] = (
                12.0 / size
            )
        request, reply, hypothesis = kinds
        verdict = "true" if hypothesis == truth(request, reply) else "false"
        slot = slots["verdict", "open" if hypothesis == "unknown" else verdict]
        _add(weights[f"{path}.output.dense.weight"][:, unit], slot, size / 6.0)
