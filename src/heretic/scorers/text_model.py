# SPDX-License-Identifier: Apache-2.0
"""A second model that reads text: loaded, asked in batches, named in the results (requirements R-NRD-02, R-EVA-23).

Only safetensors are read and no code of a repository runs. The object holds no thread and no lock, so it goes on
working in forked copies of the process; on an accelerator it cannot be forked, as no model can.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from heretic.exceptions import (
    BatchSizeError,
    ConfigurationError,
    CUDAOutOfMemoryError,
    HereticError,
    HostMemoryError,
    HubAccessError,
    ModelInferenceError,
    ModelLoadError,
    ModelNotFoundError,
    ModelValidationError,
    NetworkError,
    NonFiniteError,
    TokenizationError,
    UntrustedContentError,
)

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from heretic.model.source import ModelSource

DIGITS: Final = 4
"""Probabilities are rounded to so many places: beyond lies the rounding of another batch shape (algorithms 6.6)."""
DEFAULT_WINDOW: Final = 512
"""Tokens, for a model whose files state no length."""
UNLIMITED: Final = 10**6
"""A tokenizer that knows no length states a very large one."""
READ_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
READERS_SECONDS: Final = 10.0
LEAST_ROOM: Final = 16
"""Tokens of request and reply that have to fit beside everything else in the window."""

Pair = tuple[str, str]
Row = tuple[str, str | None]
"""One input of the model: a text, or two texts as a sequence pair."""

_LEFT_OUT = "leave it out with --no-use-neural-refusal-detection"
_HINTS: Final[Mapping[type[HereticError], str]] = {
    ModelNotFoundError: f"Check the name and the revision of the judging model, or {_LEFT_OUT}.",
    NetworkError: "Run once with a network so that the judging model is kept, name a folder that holds it, "
    f"or {_LEFT_OUT}.",
    UntrustedContentError: "Code of a repository is never run for a judging model; choose one that transformers knows.",
    ConfigurationError: "Write the judging model as org/model, or as a folder.",
}


@dataclass(frozen=True, slots=True)
class JudgeIdentity:
    """What judged, to be stored with the results (algorithms 7.5).

    scorer: its name. name: Hub id, or the last part of a local folder. revision: Hub commit, or `sha256:` and the
    digest of the folder's configuration, tokenizer and weights. device: as torch writes it.
    """

    scorer: str
    name: str
    revision: str
    device: str
    threshold: float


class TextModel:
    """A sequence classifier with its tokenizer. Made by `load_text_model`.

    labels: name of each output. window: tokens of one input, special ones included. multi_label: outputs are
    independent of one another. revision, device, name: see `JudgeIdentity`.
    """

    def __init__(
        self,
        source: ModelSource,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
    ) -> None:
        from heretic.batching import AdaptiveBatch

        config: Any = network.config
        self.name = source.name if source.commit else source.basename
        self.revision = source.commit or folder_digest(source.path)
        self.device = str(network.device)
        self.labels: list[str] = [str(config.id2label[number]) for number in range(config.num_labels)]
        self.multi_label = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        self.window = context_window(network, tokenizer)
        self._network = network
        # The library's own object: asked for one text it starts no threads, whose lack would stop a forked copy.
        self._backend: Any = _backend(source, tokenizer)
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._padding = _padding(source, config, tokenizer)
        self._typed = "token_type_ids" in tokenizer.model_input_names
        self._batches = AdaptiveBatch(f"the judging model {self.name}", batch_size)

    def identity(self, scorer: str, threshold: float) -> JudgeIdentity:
        """What is stored with the results of a scorer that asks this model."""
        return JudgeIdentity(scorer, self.name, self.revision, self.device, threshold)

    def size(self, row: Row) -> int:
        """Tokens of an input, special ones included."""
        return len(self._encoded(row)[0])

    def fitted(self, request: str, reply: str, row: Callable[[str, str], Row]) -> list[Pair]:
        """The pair if row(request, reply) fits into the window, else its head and its tail (algorithms 7.5).

        The reply gets what the request leaves free, and half of the room at least: both windows hold the begin
        (end) of both, so that no reply is judged without its request. Cut between tokens. Raises
        `ConfigurationError` where the rest of the row alone fills the window.
        """
        if self.size(row(request, reply)) <= self.window:
            return [(request, reply)]
        room = self.window - self.size(row("", ""))
        if room < LEAST_ROOM:
            raise ConfigurationError(
                f"The judging model {self.name!r} reads {self.window} tokens; hypotheses and template leave {room} "
                "of them to request and reply.",
                hint="Shorten the hypotheses and the template, or choose a model that reads more.",
            )
        return [self._end_fitted(request, reply, row, room, head) for head in (True, False)]

    def _end_fitted(
        self, request: str, reply: str, row: Callable[[str, str], Row], room: int, head: bool
    ) -> Pair:
        offsets = self._offsets(request), self._offsets(reply)
        while room > 0:
            of_reply = min(len(offsets[1]), max(room // 2, room - len(offsets[0])))
            of_request = min(len(offsets[0]), room - of_reply)
            cut = _end(request, offsets[0], of_request, head), _end(reply, offsets[1], of_reply, head)
            excess = self.size(row(*cut)) - self.window
            if excess <= 0:
                return cut
            room -= excess  # the pieces next to a cut may be split in another way
        return "", ""

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each token in characters."""
        offsets: list[tuple[int, int]] = self._backend.encode(text, add_special_tokens=False).offsets
        return offsets

    def _encoded(self, row: Row) -> tuple[list[int], list[int]]:
        """(token ids, segment of each)."""
        found: Encoding = self._backend.encode(*row) if row[1] is not None else self._backend.encode(row[0])
        # A special token that the text spells out would end it there for the model.
        kept = [
            (token, kind)
            for token, kind, own in zip(found.ids, found.type_ids, found.special_tokens_mask, strict=True)
            if own or token not in self._special
        ]
        return [token for token, _ in kept], [kind for _, kind in kept]

    def logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """[rows, labels] float32 on the CPU, in the order of the rows, which are batched by length.

        Raises `BatchSizeError` when not one row fits in memory, `NonFiniteError`, `ModelInferenceError`.
        """
        import torch

        encoded = [self._encoded(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda number: len(encoded[number][0]))
        try:
            parts = self._batches([encoded[number] for number in order], self._pass)
        except BatchSizeError as error:
            raise BatchSizeError(
                error.message,
                hint=f"Choose a smaller neural_detection_model, shorter prompts or another device, or {_LEFT_OUT}.",
            ) from error
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelInferenceError(
                f"The judging model {self.name!r} cannot read its input: {str(error)[:200]}",
                hint=f"Its files do not belong together, or it is no text classifier; or {_LEFT_OUT}.",
            ) from error
        found = torch.empty(len(rows), len(self.labels))
        if parts:
            found[order] = torch.cat(parts)
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                f"The judging model {self.name!r} gave NaN or infinity.",
                hint="Fetch it again, or choose another.",
            )
        return found

    def _pass(self, encoded: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
        import torch

        longest = max(len(tokens) for tokens, _ in encoded)
        ids = torch.full((len(encoded), longest), self._padding)
        kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for number, (tokens, segments) in enumerate(encoded):
            ids[number, : len(tokens)] = torch.tensor(tokens)
            kinds[number, : len(tokens)] = torch.tensor(segments)
            mask[number, : len(tokens)] = 1
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            **({"token_type_ids": kinds} if self._typed else {}),
        }
        device = self._network.device
        with torch.inference_mode():
            output = self._network(**{name: value.to(device) for name, value in inputs.items()})
        logits: torch.Tensor = output.logits
        return logits.float().cpu()


def _end(text: str, offsets: Sequence[tuple[int, int]], tokens: int, head: bool) -> str:
    """The first (last) so many tokens as text."""
    if tokens >= len(offsets):
        return text
    if tokens <= 0:
        return ""
    return text[: offsets[tokens - 1][1]] if head else text[offsets[-tokens][0] :]


def load_text_model(
    name: str, *, revision: str | None = None, offline: bool = False, device: str = "cpu", batch_size: int = 8
) -> TextModel:
    """A text classifier from a local folder or the Hub, in float32 on `device`; batch_size: inputs of one pass.

    Raises `ModelNotFoundError`, `NetworkError` (offline and not cached), `HubAccessError`, `ModelValidationError` (no
    classifier, no safetensors, damaged), `ModelLoadError` (tensors missing), `UntrustedContentError` (code of its own),
    `TokenizationError`, `ConfigurationError` (name or device), `CUDAOutOfMemoryError`, `HostMemoryError`.
    """
    place = _device(device)
    source, config, tokenizer = find_text_model(name, revision=revision, offline=offline)
    return TextModel(source, _network(source, config, place), tokenizer, batch_size=batch_size)


def find_text_model(
    name: str, *, revision: str | None = None, offline: bool = False
) -> tuple[ModelSource, PretrainedConfig, PreTrainedTokenizerBase]:
    """The files of a text classifier, found or fetched, without reading its weights. Raises as `load_text_model`."""
    from heretic.model.loading import load_config, load_tokenizer
    from heretic.model.source import locate

    try:
        source = locate(name, revision=revision, offline=offline)
        config = load_config(source)
        _require_classifier(source, config)
        return source, config, load_tokenizer(source)
    except HereticError as error:
        raise _of_the_judge(error) from error


def _of_the_judge(error: HereticError) -> HereticError:
    """The same kind of error, saying which model it is about and what to do about that one."""
    kind = type(error)
    hint = error.hint if kind is HubAccessError else _HINTS.get(kind, error.hint)
    return kind(f"The judging model: {error.message}", hint=hint, details=error.details)


def _device(device: str) -> torch.device:
    import torch

    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        # torch answers for a device that is not there with either of them.
        raise ConfigurationError(
            f"The device {device!r} of the judging model cannot be used: {str(error).splitlines()[0][:120]}",
            hint="Write cpu, cuda, cuda:1, xpu or mps, whichever torch has here.",
        ) from error
    return place


def _require_classifier(source: ModelSource, config: PretrainedConfig) -> None:
    stated = [str(entry) for entry in getattr(config, "architectures", None) or ()]
    if not any(entry.endswith("ForSequenceClassification") for entry in stated):
        raise ModelValidationError(
            f"{source.name!r} is {', '.join(stated) or 'of no stated kind'}, not a text classifier.",
            hint="Name a model of the kind ...ForSequenceClassification, such as facebook/bart-large-mnli.",
        )
    if not any(source.path.glob("*.safetensors")):
        raise ModelValidationError(
            f"{source.name!r} holds no *.safetensors file.",
            hint="Other formats can run code when they are read; choose a revision that has one.",
        )


def _network(source: ModelSource, config: PretrainedConfig, place: torch.device) -> PreTrainedModel:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    from heretic.model.construction import WithoutReferences
    from heretic.model.libraries import without_compiler
    from heretic.model.loading import UNUSABLE, first_line

    too_large = f"The judging model {source.name!r} does not fit"
    remedy = f"Choose a smaller neural_detection_model or another device, or {_LEFT_OUT}."
    before = frozenset(threading.enumerate())
    try:
        with without_compiler(), WithoutReferences():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        _wait_for_readers(before)
        network: PreTrainedModel = loaded[0].to(place)
    except torch.OutOfMemoryError as error:
        raise CUDAOutOfMemoryError(f"{too_large} on {place}.", hint=remedy) from error
    except MemoryError as error:
        raise HostMemoryError(f"{too_large} in memory.", hint=remedy) from error
    except (*UNUSABLE, RuntimeError, SafetensorError, ImportError) as error:
        raise ModelValidationError(
            f"The weights of the judging model {source.name!r} cannot be loaded: {first_line(error)}",
            hint="A file is missing, cut or does not fit config.json; fetch the model again.",
        ) from error
    missing = sorted(str(key) for key in loaded[1].get("missing_keys", ()))
    if missing:
        raise ModelLoadError(
            f"{len(missing)} tensors of the judging model {source.name!r} are missing: {', '.join(missing[:5])}.",
            hint="They would be random, and so would every verdict; fetch the model again.",
        )
    network.eval()
    network.requires_grad_(False)
    return network


def _wait_for_readers(before: Collection[threading.Thread]) -> None:
    """The library reads tensors in threads that it tells to end but does not wait for; a fork must not meet them."""
    for thread in threading.enumerate():
        if thread not in before and thread.name.startswith("ThreadPoolExecutor"):
            thread.join(READERS_SECONDS)


def _backend(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> object:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizationError(
            f"The judging model {source.name!r} has no tokenizer of the tokenizers library.",
            hint="Choose a model that holds a tokenizer.json.",
        )
    backend.no_padding()
    backend.no_truncation()
    return backend


def _padding(source: ModelSource, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up; also told to models that look for the end of a row by it."""
    known = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id, tokenizer.eos_token_id)
    found = next((token for token in known if isinstance(token, int) and token >= 0), None)
    if found is None:
        raise TokenizationError(
            f"The judging model {source.name!r} has neither a padding nor an end token.",
            hint="Choose another model.",
        )
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = found
    return found


def context_window(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that one input may have: the smallest length that configuration or tokenizer state.

    Positions of some families start behind the padding token's, so their table has more rows than places.
    """
    stated = getattr(network.config, "max_position_embeddings", None)
    limits = [] if not isinstance(stated, int) or stated <= 0 else [stated]
    for path, module in network.named_modules():
        offset = getattr(module, "padding_idx", None)
        if path.endswith("position_embeddings") and isinstance(offset, int):
            limits = [limit - offset - 1 for limit in limits]
            break
    if tokenizer.model_max_length < UNLIMITED:
        limits.append(int(tokenizer.model_max_length))
    return min(limits, default=DEFAULT_WINDOW)


def folder_digest(folder: Path) -> str:
    """`sha256:` and the digest of configuration, tokenizer and weights of a local folder."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in READ_FILES for path in folder.glob(pattern)):
        with path.open("rb") as stream:
            digest.update(f"{path.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"
