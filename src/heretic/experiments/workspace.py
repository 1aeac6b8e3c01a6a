# SPDX-License-Identifier: Apache-2.0
"""The folder of one experiment on the user's disk: the packaged one, the files made from it, and results (R-XPT-01).

An installed package is read only, so everything that is made goes here. What the user changed in it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from heretic.demo import model_path
from heretic.exceptions import ConfigurationError, DatasetError, FileOperationError
from heretic.experiments import prepare
from heretic.experiments.catalogue import CONFIG, PROMPTS, README, RESULTS, Experiment
from heretic.experiments.planted import planted_rows
from heretic.experiments.prepare import Row
from heretic.publish import write_file

DATA: Final = "data"
QUICK: Final = "quick.jsonl"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is in the folder, or would be. files: relative name -> content of what is written. kept: files of the user
    that differ from the packaged ones and stand."""

    rows: tuple[Row, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder for one experiment. planted: it is about the demo model and its packaged prompts."""

    experiment: Experiment
    folder: Path
    planted: bool = False

    @property
    def config(self) -> Path:
        """The pack."""
        return self.folder / CONFIG

    @property
    def results(self) -> Path:
        """Where the results are."""
        return self.folder / RESULTS

    @property
    def readme(self) -> Path:
        """The page with the table."""
        return self.folder / README

    def plan(self, lists: tuple[Sequence[str], Sequence[str]] | None = None) -> Prepared:
        """What `write` would do. lists: the user's good and bad prompts in place of the packaged ones (R-XPT-02).

        Raises `DatasetError` for rows that cannot be used, and for lists where other rows of the user stand already.
        """
        if self.planted:
            return Prepared(tuple(planted_rows(self.experiment.planted)))
        packaged = {
            CONFIG: (self.experiment.folder / CONFIG).read_bytes(),
            README: (self.experiment.folder / README).read_bytes(),
            f"{DATA}/{PROMPTS}": (self.experiment.folder / DATA / PROMPTS).read_bytes(),
        }
        if (self.experiment.folder / DATA / QUICK).is_file():
            packaged[f"{DATA}/{QUICK}"] = (self.experiment.folder / DATA / QUICK).read_bytes()
        if lists is not None:
            made = prepare.with_splits(prepare.rows_of_lists(*lists))
            packaged[f"{DATA}/{PROMPTS}"] = "".join(row.line() for row in made).encode("utf-8")
            self._require_free(packaged[f"{DATA}/{PROMPTS}"])
        kept = tuple(
            name for name, content in packaged.items() if self._stands(name) and self._read(name) != content
        )
        files = {name: content for name, content in packaged.items() if not self._stands(name)}
        rows = self._rows(files.get(f"{DATA}/{PROMPTS}"))
        for name, text in prepare.files_of(rows).items():
            files[f"{DATA}/{name}"] = text.encode("utf-8")
        return Prepared(tuple(rows), files, kept)

    def write(self, planned: Prepared) -> None:
        """Make the folder and write the files of a plan; raises `FileOperationError`, `DiskSpaceError`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileOperationError(
                f"The folder {self.folder} cannot be made: {error.strerror}.", hint="Name another with --out."
            ) from error
        for name, content in planned.files.items():
            write_file(self.folder / name, content)

    def quick_rows(self) -> list[Row]:
        """The small set of prompts that some experiments have. Raises `DatasetError` where there is none."""
        file = self.folder / DATA / QUICK
        if not file.is_file():
            raise DatasetError(f"{self.experiment.name} has no quick set.", hint="Leave out --quick.")
        return prepare.read_rows(file, str(file))

    def _rows(self, content: bytes | None) -> list[Row]:
        file = self.folder / DATA / PROMPTS
        source = file if content is None else _InMemory(PROMPTS, content)
        label = str(file) if content is None else f"{self.experiment.name} {PROMPTS}"
        rows = prepare.with_splits(prepare.read_rows(source, label))
        prepare.check(rows, label)
        return rows

    def _stands(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise FileOperationError(f"{self.folder / name} cannot be read: {error.strerror}.") from error

    def _require_free(self, content: bytes) -> None:
        name = f"{DATA}/{PROMPTS}"
        if self._stands(name) and self._read(name) != content:
            raise DatasetError(
                f"{self.folder / name} holds other prompts already.",
                hint="Name another folder with --out, or remove that file.",
            )


def defaults(workspace: Workspace) -> dict[str, str]:
    """Settings of a run that the user's own flags override."""
    folder = workspace.folder.as_posix()
    found = {
        "behaviour": workspace.experiment.planted if workspace.planted else workspace.config.as_posix(),
        "auto_select": "true",
        "auto_select_path": f"{folder}/",
        "storage": f"sqlite:///{folder}/study.db",
        "study_name": workspace.experiment.name,
    }
    if workspace.planted:
        found |= {"model": str(model_path()), "offline": "true"}
        found |= dict(workspace.experiment.planted_settings)
    return found


def require_planted(experiment: Experiment) -> None:
    """Raise `ConfigurationError` for an experiment whose behaviour the demo model cannot show."""
    if not experiment.planted:
        raise ConfigurationError(
            f"The demo model cannot show what {experiment.name} is about.", hint="Name a model with --model."
        )


@dataclass(frozen=True, slots=True)
class _InMemory:
    """Bytes under a file's name, for readers that go by the ending."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        """The content."""
        return self.content
