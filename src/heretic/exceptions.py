# SPDX-License-Identifier: Apache-2.0
"""The one error tree. Imports nothing, so that every room may raise from it.

Each error is raised where the value is used, with the value in its message, and is shown once, at the rim of the
program (`heretic.cli.rim`): the sentence, the hint, the resume command. The class decides the exit code
(requirements R-CLI-28, reliability REL-R07/R08).

    HereticError 1
      ConfigurationError 2     UnknownSettingError  UnusedSettingError  WarmStartError  FingerprintMismatchError
                               DirectionFileError
      DatasetError             DatasetConfigError
      ModelError               ModelNotFoundError  ModelValidationError > ChecksumError  ModelLoadError
                               ModelInferenceError > NonFiniteError  UnsupportedArchitectureError  TokenizationError
                               GenerationError
      UntrustedContentError
      NetworkError             NetworkTimeoutError  HubAccessError  UploadError
      FileOperationError       ValidationFileError  ExportError > SaveVerificationError  OutputExistsError 2
      ResourceError            CUDAOutOfMemoryError  HostMemoryError  BatchSizeError  DiskSpaceError
      AbliterationError        CircuitAblationError
                               ExtractionError > SupervisedProbeError  ConceptConeError  CAAExtractionError
                               SacredDirectionError
      StudyError               StorageError > StudyLockedError  StudyCorruptError  TooManyFailedTrialsError
                               StudyNotFoundError 2
      NothingQualifiedError 3
      ConfirmationRequiredError 2
      InterruptedRunError 130
"""

from __future__ import annotations

from collections.abc import Mapping


class HereticError(Exception):
    """Base of all errors a user may see.

    `hint` is the remedy in one sentence, `details` are further lines (one finding each), `resume` is the command
    that continues the work, `data` is machine-readable and goes into the `--json` document.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: tuple[str, ...] = (),
        resume: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details
        self.resume = resume
        self.data = dict(data or {})


class ConfigurationError(HereticError):
    """A setting, a flag or a combination of them is wrong; nothing was changed."""

    exit_code = 2


class DirectionFileError(ConfigurationError):
    """A direction file is damaged, of another format, or belongs to another kind of model."""


class UnknownSettingError(ConfigurationError):
    """A key, flag or variable that names no setting."""


class UnusedSettingError(ConfigurationError):
    """A setting given on the command line that nothing in the effective configuration reads."""


class WarmStartError(ConfigurationError):
    """An explicit model family that the profile table does not hold."""


class FingerprintMismatchError(ConfigurationError):
    """A stored study was made with other inputs."""


class DatasetError(HereticError):
    """A prompt source is empty, unreadable or too small."""


class DatasetConfigError(DatasetError):
    """A prompt source lacks the named config, split or column."""


class ModelError(HereticError):
    """Something about the model."""


class ModelNotFoundError(ModelError):
    """No such folder and no such Hub repository."""


class ModelValidationError(ModelError):
    """A model folder is incomplete, corrupt or inconsistent."""


class ChecksumError(ModelValidationError):
    """A file of a saved model does not have the recorded checksum."""


class ModelLoadError(ModelError):
    """Every way of loading the model failed."""


class ModelInferenceError(ModelError):
    """A forward pass failed."""


class NonFiniteError(ModelInferenceError):
    """NaN or infinity in weights, activations, directions or scores."""


class UnsupportedArchitectureError(ModelError):
    """A parameter that writes to the residual stream could not be placed."""


class TokenizationError(ModelError):
    """The tokenizer or its chat template cannot do what is needed."""


class GenerationError(ModelError):
    """Decoding failed."""


class UntrustedContentError(HereticError):
    """Remote code, pickle, a template over its limits, a run file outside the allow-list."""


class NetworkError(HereticError):
    """The network or the Hub failed."""


class NetworkTimeoutError(NetworkError):
    """No answer after all attempts."""


class HubAccessError(NetworkError):
    """A repository is gated or private."""


class UploadError(NetworkError):
    """The model is saved locally but was not uploaded."""


class FileOperationError(HereticError):
    """Reading or writing a file failed."""


class ValidationFileError(FileOperationError):
    """A validation report could not be written or read."""


class ExportError(FileOperationError):
    """An edited model could not be written."""


class SaveVerificationError(ExportError):
    """What was written is not what was evaluated; nothing was published."""


class OutputExistsError(FileOperationError):
    """The output path is taken."""

    exit_code = 2


class ResourceError(HereticError):
    """Memory or disk ran out."""


class CUDAOutOfMemoryError(ResourceError):
    """The accelerator has too little memory."""


class HostMemoryError(ResourceError):
    """The host has too little memory."""


class BatchSizeError(ResourceError):
    """Not even one row fits."""


class DiskSpaceError(ResourceError):
    """The disk has too little space."""


class AbliterationError(HereticError):
    """Directions or edits could not be made."""


class ExtractionError(AbliterationError):
    """No usable direction in the data."""


class SupervisedProbeError(ExtractionError):
    """No probe of the wanted accuracy: too few samples of a class, or they cannot be told apart."""


class ConceptConeError(ExtractionError):
    """The prompts that show the behaviour do not fall into separate categories."""


class CAAExtractionError(ExtractionError):
    """Too few replies with or without the behaviour to say what to add, or nothing is left to add."""


class SacredDirectionError(ExtractionError):
    """Nothing is left of a direction outside what is to be protected."""


class CircuitAblationError(AbliterationError):
    """No attention head carries the behaviour clearly enough."""


class StudyError(HereticError):
    """Something about the study."""


class StorageError(StudyError):
    """The study's storage cannot be used."""


class StudyLockedError(StorageError):
    """Another process owns the study."""


class StudyCorruptError(StorageError):
    """The study's file is damaged; it was not touched."""


class TooManyFailedTrialsError(StudyError):
    """Trial after trial failed for the same reason."""


class StudyNotFoundError(StudyError):
    """No study of that name in the storage."""

    exit_code = 2


class NothingQualifiedError(HereticError):
    """The run finished, but no trial met the limits."""

    exit_code = 3


class ConfirmationRequiredError(HereticError):
    """A question has no answer, or the answer was not the exact word."""

    exit_code = 2


class InterruptedRunError(HereticError):
    """The user stopped the run; finished trials are kept."""

    exit_code = 130
