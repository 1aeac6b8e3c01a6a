# SPDX-License-Identifier: Apache-2.0
"""Consent typed at a real terminal: exactly the word, and nothing else (R-VAS-50)."""

from __future__ import annotations

import sys

import pexpect
import pytest

from .conftest import Cloud, thin
from .provider import KEY

pytestmark = pytest.mark.loopback


def typed(cloud: Cloud, line: list[str], answer: str) -> tuple[int, str]:
    """Exit code and screen of a command line answered at a terminal."""
    cloud.provider.loading_s = cloud.provider.stopping_s = 0.0
    environ = {**cloud.environ, "TERM": "dumb", "NO_COLOR": "1", "PROMPT_TOOLKIT_NO_CPR": "1"}
    child = pexpect.spawn(
        sys.executable, ["-m", "heretic.cloud", *line], env=environ, cwd=str(cloud.folder), timeout=60,
        encoding="utf-8", dimensions=(60, 200),
    )  # fmt: skip
    child.expect("to go on")
    asked = str(child.before)
    child.send(f"{answer}\r" if answer != "\x04" else answer)
    child.expect(pexpect.EOF)
    screen = asked + str(child.before)
    child.close()
    assert KEY not in screen
    return int(child.exitstatus), screen


@pytest.mark.parametrize("answer", thin(["y", "\x04", "complete", ""], 1))
def test_another_word_rents_nothing(cloud: Cloud, answer: str) -> None:
    code, screen = typed(cloud, ["create"], answer)
    assert code == 2 and not cloud.provider.writes() and "nothing was done" in screen


@pytest.mark.slow
def test_the_word_rents_one(cloud: Cloud) -> None:
    """Control of the test above."""
    cloud.provider.never.add("run")  # the address of the fake machine answers nobody
    code, screen = typed(cloud, ["create", "--wait", "0"], "yes")
    assert len(cloud.provider.instances) == 1 and code == 1 and "STILL BILLING" in screen


def test_terminate_wants_the_id_and_not_yes(cloud: Cloud) -> None:
    cloud.provider.instance(42, "mine")
    code, screen = typed(cloud, ["terminate", "42"], "yes")
    assert code == 2 and 42 in cloud.provider.instances and "could not be asked" in screen
    code, screen = typed(cloud, ["terminate", "42"], "42")
    assert code == 0 and 42 not in cloud.provider.instances
