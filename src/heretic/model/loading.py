# SPDX-License-Identifier: Apache-2.0
"""From a source to a usable model: configuration, tokenizer, dtype chain, structure, sanity (requirements 4.1, 4.2)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from heretic.architectures.resolve import resolve
from heretic.architectures.site import Architecture
from heretic.constants import DEFAULT_SYSTEM_PROMPT
from heretic.exceptions import (
    CUDAOutOfMemoryError,
    HereticError,
    HostMemoryError,
    ModelLoadError,
    ModelValidationError,
    NonFiniteError,
    TokenizationError,
    UntrustedContentError,
)
from heretic.model.construction import WithoutReferences
from heretic.model.libraries import without_compiler
from heretic.model.model import Model, require_finite
from heretic.model.source import ModelSource
from heretic.model.tokens import PromptEncoder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("heretic.model")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load; every field is the setting of the same name (requirements 3.2)."""

    dtypes: Sequence[str] = ("auto", "bfloat16", "float16", "float32")
    quantization: str = "none"
    device_map: str | Mapping[str, object] = "auto"
    max_memory: Mapping[str, str] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_partial: bool = False
    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    chat_template: Path | None = None
    response_prefix: str | None = None
    max_prompt_tokens: int = 2048
    thinking: bool = False
    thinking_tokens: int = 512
    answer_tokens: int | None = None
    failures: list[str] = field(default_factory=list, compare=False)


UNUSABLE = (ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What the libraries raise for damaged files, by measurement (reliability X06, X07); 0 heads divide by zero."""


def load_config(source: ModelSource, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration; `ModelValidationError` for anything unreadable, `UntrustedContentError` for code."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    raw = read_json(source.path / "config.json")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code
        )
    except (*UNUSABLE, StrictDataclassError) as error:
        if raw.get("auto_map") and not trust_remote_code:
            raise UntrustedContentError(
                f"{source.name!r} needs code from its repository ({source.commit or 'local folder'}) to run.",
                hint="Read that code; then --trust-remote-code with --model-revision COMMIT on the command line.",
            ) from error
        raise ModelValidationError(
            f"The config.json of {source.name!r} cannot be used: {short(error)}",
            hint="Compare it with the original, or update transformers if the architecture is newer than it.",
        ) from error
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelValidationError(
            f"{path.name} cannot be read: {first_line(error)}", hint="Fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise ModelValidationError(f"{path.name} holds no JSON object.", hint="Fetch it again.")
    return value


def first_line(error: BaseException) -> str:
    """The first line of a library's message, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def short(error: BaseException) -> str:
    """A library's message in one line: a first line that only announces the next one keeps it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    announced = " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)
    return announced[:300]


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
)
"""At least one of them holds the vocabulary. Without any, transformers makes an empty tokenizer and says nothing."""


def require_tokenizer(source: ModelSource) -> None:
    """Raise `TokenizationError` for a folder without any file that could hold a vocabulary."""
    if not any(any(source.path.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise TokenizationError(
            f"{source.name!r} holds no tokenizer: none of {', '.join(TOKENIZER_FILES[:4])} is there.",
            hint="Copy the tokenizer files of the original model beside config.json.",
        )


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer; older folders that state `extra_special_tokens` as a list are accepted (R-MOD-43)."""
    from transformers import AutoTokenizer

    require_tokenizer(source)
    arguments: dict[str, object] = {}
    path = source.path / "tokenizer_config.json"
    stated = read_json(path).get("extra_special_tokens") if path.is_file() else None
    if isinstance(stated, list):
        arguments = {"extra_special_tokens": {}, "additional_special_tokens": stated}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **arguments
        )
    except UNUSABLE as error:
        raise TokenizationError(
            f"The tokenizer of {source.name!r} cannot be loaded: {first_line(error)}",
            hint="tokenizer.json, tokenizer.model or tokenizer_config.json must lie beside config.json.",
        ) from error
    return tokenizer


Prove = Callable[[nn.Module, Architecture], None]
"""The forward probe (algorithms 1.6); it raises `UnsupportedArchitectureError` when a site is not what it seems."""


def load_model(source: ModelSource, options: LoadOptions, prove: Prove | None = None) -> Model:
    """Load, check and resolve a model; `prove` pushes random vectors through every kind of writer.

    Raises `ModelValidationError` (damaged folder, tensors missing), `ModelLoadError` (no dtype worked, reasons
    listed), `NonFiniteError`, `UnsupportedArchitectureError`, `TokenizationError`, `CUDAOutOfMemoryError`,
    `HostMemoryError`, `UntrustedContentError`.
    """
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    config = load_config(source, trust_remote_code=options.trust_remote_code)
    encoder = PromptEncoder(
        load_tokenizer(source, trust_remote_code=options.trust_remote_code),
        system_prompt=options.system_prompt,
        chat_template=options.chat_template,
        max_tokens=options.max_prompt_tokens,
        thinking=options.thinking,
        thinking_tokens=options.thinking_tokens,
        answer_tokens=options.answer_tokens,
    )
    if options.response_prefix is not None:
        encoder.response_prefix = options.response_prefix
    network, dtype = _dtype_chain(source, config, options, encoder)
    network.eval()
    network.requires_grad_(False)
    architecture = resolve(network, allow_partial=options.allow_partial, prove=prove)
    if prove is not None and not options.allow_partial:
        prove(network, architecture)
    return Model(
        network=network,
        encoder=encoder,
        architecture=architecture,
        source=source,
        dtype=dtype,
        quantization=options.quantization,
    )


@dataclass(frozen=True, slots=True)
class _Probe:
    text: str = "How do I boil an egg?"
    system_prompt: str | None = None


def _dtype_chain(
    source: ModelSource, config: PretrainedConfig, options: LoadOptions, encoder: PromptEncoder
) -> tuple[PreTrainedModel, str]:
    """Load with the first dtype whose logits on a real prompt are finite (R-MOD-01)."""
    reasons: list[str] = []
    for dtype in options.dtypes:
        network = _load(source, config, options, dtype)
        try:
            _smoke_test(network, encoder)
        except NonFiniteError as error:
            require_finite(network)  # a damaged weight is not a matter of dtype
            reasons.append(f"{dtype}: {error.message}")
            logger.warning("dtype %s gave no finite logits; trying the next", dtype)
            continue
        require_finite(network)
        encoder.vocabulary = _embeddings(network)
        return network, str(network.dtype).removeprefix("torch.")
    raise ModelLoadError(
        f"{source.name!r} gave no finite result in any of {', '.join(options.dtypes)}.",
        details=tuple(reasons),
        hint="Try --dtypes float32, or fetch the model again.",
    )


def _smoke_test(network: PreTrainedModel, encoder: PromptEncoder) -> None:
    ids = torch.tensor([encoder.encode(_Probe())], device=network.device)
    if int(ids.max()) >= _embeddings(network):
        raise ModelValidationError(
            f"The tokenizer makes token {int(ids.max())}, but the model has only {_embeddings(network)} embeddings.",
            hint="The tokenizer files belong to another model.",
        )
    with torch.inference_mode():
        logits = network(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    if not bool(torch.isfinite(logits).any(dim=-1).all()) or bool(torch.isnan(logits).any()):
        raise NonFiniteError("the logits of a first prompt are NaN or infinite")


def _embeddings(network: PreTrainedModel) -> int:
    """Rows of the token embedding."""
    weight = network.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0])


def _load(source: ModelSource, config: PretrainedConfig, options: LoadOptions, dtype: str) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _require_shards(source)
    arguments: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if options.quantization != "none":
        arguments["quantization_config"] = _quantization(options.quantization)
    if torch.cuda.is_available() or options.device_map != "auto":
        arguments["device_map"] = options.device_map
        arguments["max_memory"] = options.max_memory
    try:
        with without_compiler(), WithoutReferences():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                config=config,
                output_loading_info=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, with the names that the library keeps to itself
                trust_remote_code=options.trust_remote_code,
                **arguments,
            )
    except torch.OutOfMemoryError as error:
        raise CUDAOutOfMemoryError(
            f"{source.name!r} does not fit on the accelerator.", hint="Try --quantization bnb_4bit."
        ) from error
    except MemoryError as error:
        raise HostMemoryError(
            f"{source.name!r} does not fit in memory.", hint="Try --quantization bnb_4bit."
        ) from error
    except (*UNUSABLE, RuntimeError, SafetensorError, ImportError) as error:
        raise _load_error(source, error) from error
    network: PreTrainedModel = loaded[0]
    _require_complete(source, loaded[1])
    return network


def _require_shards(source: ModelSource) -> None:
    """The index names files of this folder only, and all of them are there (reliability C06)."""
    path = source.path / "model.safetensors.index.json"
    if not path.is_file():
        return
    stated = read_json(path).get("weight_map")
    names = sorted({str(name) for name in stated.values()}) if isinstance(stated, dict) else []
    outside = [name for name in names if Path(name).name != name or "\\" in name]
    if not names or outside:
        raise ModelValidationError(
            f"{path.name} of {source.name!r} "
            + (f"names {outside[0]!r}, outside the folder." if outside else "lists no weights."),
            hint="Do not use this folder; fetch the model again.",
        )
    missing = [name for name in names if not (source.path / name).is_file()]
    if missing:
        raise ModelValidationError(
            f"{len(missing)} of {len(names)} files of weights of {source.name!r} are missing: "
            f"{', '.join(missing[:5])}.",
            hint="The download is incomplete; fetch the model again.",
        )


def _load_error(source: ModelSource, error: BaseException) -> HereticError:
    if isinstance(error, ImportError):
        return ModelLoadError(
            f"{source.name!r} needs a library that is not installed: {first_line(error)}",
            hint="For --quantization bnb_4bit: pip install 'heretic-workbench[quant]'.",
        )
    return ModelValidationError(
        f"The weights of {source.name!r} cannot be loaded: {first_line(error)}",
        hint="A file is missing, cut or does not fit config.json; fetch the model again.",
    )


def _quantization(name: str) -> object:
    from transformers import BitsAndBytesConfig

    if name == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def _mismatch(entry: object) -> str:
    """A tensor of another shape: transformers reports (name, stored shape, expected shape)."""
    if not isinstance(entry, tuple) or len(entry) != 3:
        return str(entry)
    name, stored, expected = entry
    return f"{name} ({list(stored)} in the files, {list(expected)} by config.json)"


def _require_complete(source: ModelSource, info: Mapping[str, Any]) -> None:
    """Missing or mismatched tensors are an error: transformers fills them with noise silently (reliability C04)."""
    missing = sorted(str(key) for key in info.get("missing_keys", ()))
    mismatched = [_mismatch(entry) for entry in info.get("mismatched_keys", ())]
    unexpected = sorted(str(key) for key in info.get("unexpected_keys", ()))
    if unexpected:
        logger.warning(
            "%d tensors of the files are not used by the architecture: %s", len(unexpected), unexpected[:5]
        )
    if missing or mismatched:
        found = missing + mismatched
        raise ModelLoadError(
            f"{len(found)} of the tensors that config.json asks for are missing or of another shape: "
            f"{', '.join(found[:5])}{' ...' if len(found) > 5 else ''}.",
            details=tuple(f"unexpected in the files: {key}" for key in unexpected[:5]),
            hint="The weights and config.json do not belong together; fetch the model again.",
        )
