# SPDX-License-Identifier: Apache-2.0
"""Where things lie on the machine (requirements R-VAS-25, R-VAS-26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STATE: Final = ".heretic"
MODELS: Final = "models"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below the workspace."""

    workspace: str

    @property
    def state(self) -> str:
        """Files of guard and supervisor."""
        return f"{self.workspace}/{STATE}"

    @property
    def models(self) -> str:
        """Saved models."""
        return f"{self.workspace}/{MODELS}"

    @property
    def cache(self) -> str:
        """HF_HOME."""
        return f"{self.workspace}/.cache/huggingface"

    @property
    def storage(self) -> str:
        """URL of the study's storage."""
        return f"sqlite:///{self.workspace}/heretic_study.db"

    @property
    def log(self) -> str:
        """What the run says."""
        return f"{self.workspace}/heretic.log"

    @property
    def python(self) -> str:
        """The interpreter that `setup` makes; it sees the torch of the image."""
        return f"{self.state}/venv/bin/python"

    @property
    def program(self) -> str:
        """`heretic` on the machine."""
        return f"{self.state}/venv/bin/heretic"
