# SPDX-License-Identifier: Apache-2.0
"""Uploading a finished folder to the Hub; the local folder always stays (R-OUT-20, R-OUT-21, REL-B09)."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from heretic.constants import CHECKSUM_FILE, HIDDEN_MANIFEST
from heretic.exceptions import ConfigurationError, UploadError
from heretic.export.edits_file import EDITS_FILE
from heretic.publish import verify_checksums

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("heretic.export")

_REPOSITORY = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,94}\w", re.ASCII)

_CAUSES = {
    401: ("access", "The token is missing or invalid.", "Log in with `hf auth login` or set HF_TOKEN."),
    403: ("access", "The token may not write there.", "Use a token with write access to this repository."),
    404: ("access", "The owner does not exist or the token may not see it.", "Check the repository name."),
    413: ("size", "The Hub refused the size.", "Write smaller shards, or ask the Hub for more space."),
    429: ("busy", "The Hub asks for a pause.", "Run the command again in some minutes."),
}


def upload_model(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    include_manifest: bool = True,
    message: str = "Upload edited model",
    api: HfApi | None = None,
) -> str:
    """Upload a published folder; returns the URL of the repository.

    The folder is checked against its `SHA256SUMS` first. Files already on the Hub are not sent again, so
    the same command resumes. The token is the one huggingface_hub finds; it is not stored.
    include_manifest: the manifest, checksums and edits go along. Raises `ConfigurationError` for a
    malformed repository name, `UploadError` for everything else; the message says where the folder is and
    `resume` is the command that repeats the upload.
    """
    import httpx2
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ConfigurationError(f"{repository!r} is not a repository name.", hint="Use owner/name.")
    problems = verify_checksums(folder)
    if problems:
        raise _failed(folder, repository, "damaged", problems[0], "Save the model again.")
    client = api or HfApi(token=get_token())
    if client.token is None:
        cause, sentence, hint = _CAUSES[401]
        raise _failed(folder, repository, cause, sentence, hint)
    ignored = [".*"] if include_manifest else [".*", HIDDEN_MANIFEST, CHECKSUM_FILE, EDITS_FILE]
    try:
        url = client.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        client.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=message, ignore_patterns=ignored
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        default = ("server", f"The Hub answered with status {status}.", "Run the command again later.")
        raise _failed(folder, repository, *_CAUSES.get(status, default)) from error
    except (httpx2.HTTPError, OSError) as error:
        sentence = f"The connection failed ({type(error).__name__})."
        hint = "Check the network, then repeat."
        raise _failed(folder, repository, "network", sentence, hint) from error
    logger.info("Uploaded %s to %s.", folder.name, url.repo_id)
    return str(url)


def repeat_command(folder: Path, repository: str, *, private: bool = True) -> str:
    """The command that uploads the folder again; it comes with huggingface_hub, no search is needed."""
    command = f"hf upload {shlex.quote(repository)} {shlex.quote(str(folder))} ."
    return f"{command} --private" if private else command


def _failed(folder: Path, repository: str, cause: str, sentence: str, hint: str) -> UploadError:
    return UploadError(
        f"The model is saved in {folder} but was not uploaded to {repository}. {sentence}",
        hint=hint,
        resume=repeat_command(folder, repository),
        data={"folder": str(folder), "repository": repository, "cause": cause},
    )
