# SPDX-License-Identifier: Apache-2.0
"""How large a model is: from its folder, from the Hub's metadata, or, offline, from what its name says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from heretic.cloud.types import ModelSize
from heretic.exceptions import (
    ConfigurationError,
    HubAccessError,
    ModelNotFoundError,
    ModelValidationError,
    NetworkError,
)

GB: Final = 1e9
BYTES_AT_16_BIT: Final = 2.0
WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth")
_NAMED: Final = re.compile(r"(?<![0-9.])(\d{1,3}(?:\.\d{1,2})?)\s*[bB](?![a-zA-Z])")
LARGEST_BILLIONS: Final = 2000.0


def model_size(
    model: str, *, offline: bool = False, weights_gb: float | None = None, token: str | None = None
) -> ModelSize:
    """The size of MODEL. weights_gb: what the user states, which counts before everything.

    Raises `ModelNotFoundError`, `HubAccessError`, `NetworkError`, `ModelValidationError`, `ConfigurationError`.
    """
    if weights_gb is not None:
        if not 0 < weights_gb < LARGEST_BILLIONS * BYTES_AT_16_BIT:
            raise ConfigurationError(f"--weights-gb is {weights_gb:g}", hint="Give the size in GB, above 0.")
        return ModelSize(model, weights_gb, None, "stated with --weights-gb")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _folder_size(model, folder)
    if offline:
        return _guess(model)
    return _hub_size(model, token)


def name_says(model: str) -> float | None:
    """Billions of parameters by the name ("Qwen2.5-32B-Instruct" -> 32.0), None when it says nothing."""
    found = [float(match) for match in _NAMED.findall(model.rsplit("/", 1)[-1])]
    sensible = [value for value in found if 0 < value <= LARGEST_BILLIONS]
    return max(sensible) if sensible else None


def _guess(model: str) -> ModelSize:
    """Ten per cent above the name's figure: names round down as often as up."""
    billions = name_says(model)
    if billions is None:
        raise NetworkError(
            f"the size of {model!r} cannot be looked up offline, and its name says nothing of it",
            hint="State it with --weights-gb N, or leave out --offline.",
        )
    return ModelSize(
        model, round(billions * BYTES_AT_16_BIT * 1.1, 1), billions, "guessed from the name", measured=False
    )


def _folder_size(model: str, folder: Path) -> ModelSize:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    total = weight_bytes(sizes.items())
    if not total:
        raise ModelValidationError(
            f"the folder {folder} holds no weights", hint="Give the folder of a model."
        )
    return ModelSize(model, total / GB, None, "files of the folder")


def weight_bytes(files: Iterable[tuple[str, int | None]]) -> int:
    """Bytes of the weights that a loader reads: files at the top, safetensors before other formats, and no second copy
    of the same weights (`consolidated*`).
    """
    top = [(name, size or 0) for name, size in files if "/" not in name and name.endswith(WEIGHTS)]
    for suffix in WEIGHTS:
        chosen = [(name, size) for name, size in top if name.endswith(suffix)]
        sharded = [(name, size) for name, size in chosen if not name.startswith("consolidated")]
        if chosen:
            return sum(size for _, size in (sharded or chosen))
    return 0


def _hub_size(model: str, token: str | None) -> ModelSize:
    """Metadata alone; no weight is fetched. More specific errors are tested before general ones (R-ERR-02)."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        info: Any = HfApi(token=token).model_info(model, files_metadata=True, timeout=30)
    except GatedRepoError as error:
        raise HubAccessError(
            f"the repository {model!r} is gated",
            hint=f"Accept its terms at huggingface.co/{model}, then log in with 'hf auth login' or set HF_TOKEN.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no folder and no repository {model!r} (a private one needs a login)",
            hint="Check the spelling; log in with 'hf auth login' or set HF_TOKEN for a private one.",
        ) from error
    except HFValidationError as error:
        raise ConfigurationError(
            f"{model!r} is no folder and no name of a repository", hint="Write OWNER/NAME."
        ) from error
    except OfflineModeIsEnabled:
        return _guess(model)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise NetworkError(
            f"the size of {model!r} could not be looked up ({type(error).__name__})",
            hint="Check the network, or state the size with --weights-gb N.",
        ) from error
    files = [(sibling.rfilename, sibling.size) for sibling in info.siblings or ()]
    total = weight_bytes(files)
    if not total:
        raise ModelValidationError(
            f"the repository {model!r} holds no weights", hint="State the size with --weights-gb N."
        )
    parameters = getattr(info.safetensors, "total", None)
    billions = parameters / 1e9 if isinstance(parameters, int) and parameters > 0 else None
    return ModelSize(model, total / GB, billions, "files of the repository")
