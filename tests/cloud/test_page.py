# SPDX-License-Identifier: Apache-2.0
"""docs/cloud.md and the help say what is there (R-DOC-04, R-CLI-18, REL-17)."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from cyclopts import CycloptsError

from heretic.cli.effects import Effect
from heretic.cli.flags import split_flags
from heretic.cloud.cli.application import AMBIGUOUS, ELSEWHERE, build_application
from heretic.cloud.cli.context import EFFECTS

from .conftest import Cloud

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "cloud.md"
LINE: Final = re.compile(r"(?:^\$ |`)(heretic-vast [^`\n]+?)(?:`|$)", re.MULTILINE)


def lines() -> list[str]:
    """Every command line of the page."""
    found = dict.fromkeys(LINE.findall(PAGE.read_text(encoding="utf-8")))
    return [
        line for line in found if len(line.split()) > 2 or line.split()[1] not in ("exec", "terminate", "run")
    ]


def parse(line: str) -> None:
    """As the program would."""
    words = shlex.split(line)[1:]
    words = words[: words.index("--")] if "--" in words else words
    _, rest = split_flags(words)
    build_application().parse_args(rest, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("line", lines())
def test_each_command_line_of_the_page_is_understood(line: str) -> None:
    parse(line)


@pytest.mark.parametrize(
    "line", ["heretic-vast create --max-prize 1", "heretic-vast extend", "heretic-vast stop 1 2 3"]
)
def test_a_wrong_one_would_be_seen(line: str) -> None:
    """Control of the test above."""
    with pytest.raises(CycloptsError):
        parse(line)


def test_the_page_names_every_command() -> None:
    shown = {line.split()[1] for line in lines()}
    assert set(EFFECTS) == {name for name in build_application() if not name.startswith("-")}
    assert set(EFFECTS) <= shown


def test_effects_are_declared_and_no_verb_is_ambiguous() -> None:
    """R13, R-VAS-53: what costs or destroys says so, and only that."""
    build_application()
    costly = {name for name, effect in EFFECTS.items() if effect in (Effect.SPEND, Effect.DESTROY_REMOTE)}
    assert costly == {"create", "start", "extend", "stop", "terminate", "exec", "guard"}
    assert not set(EFFECTS) & {*AMBIGUOUS, *ELSEWHERE} and set(ELSEWHERE.values()) <= set(EFFECTS)


def test_help_names_effect_and_flags(cloud: Cloud) -> None:
    for name in EFFECTS:
        told = cloud.run(name, "--help")
        assert (
            told.code == 0
            and "Effect:" in told.out
            and "--dry-run" in told.out
            and not cloud.provider.requests
        )
    assert "heretic-vast terminate ID" in cloud.run("--help").out


def test_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys; from heretic.cloud.cli.application import build_application; build_application(); "
        "heavy = {'torch', 'transformers', 'fabric', 'paramiko', 'optuna', 'datasets'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_known_names_lead_to_their_homes() -> None:
    """R-API-01."""
    import heretic.cloud
    from heretic.cloud.ssh import open_connection

    assert (
        heretic.cloud.GPU_TIERS["RTX_4090"].disk_gb == 75 and heretic.cloud.get_connection is open_connection
    )
    assert all(hasattr(heretic.cloud, name) for name in heretic.cloud.__all__) and not hasattr(
        heretic.cloud, "other"
    )
