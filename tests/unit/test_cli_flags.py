# SPDX-License-Identifier: Apache-2.0
"""The common flags (requirements R-CLI-20 to R-CLI-22)."""

from __future__ import annotations

from pathlib import Path

import pytest

from heretic.cli.flags import SWITCHES, VALUES, split_flags
from heretic.exceptions import ConfigurationError


def test_settings_pass_unchanged_and_in_order() -> None:
    tokens = [
        "--n-trials",
        "20",
        "M",
        "--bad-prompts.split=train[:5]",
        "--no-compile",
        "-x",
        "--auto-select",
        "true",
    ]
    flags, rest = split_flags(
        [*tokens[:3], "--json", *tokens[3:], "-q", "--config", "a.toml", "--config=b.toml"]
    )
    assert rest == tokens
    assert (
        flags.json and flags.quiet and not flags.verbose and flags.config == [Path("a.toml"), Path("b.toml")]
    )


@pytest.mark.parametrize("word", ["true", "yes", "on", "1", "TRUE"])
@pytest.mark.parametrize("flag", ["--json", "--dry-run", "--dry_run", "--yes"])
def test_switches_take_words(flag: str, word: str) -> None:
    """R-CLI-21; the word belongs to the switch, what follows does not."""
    for tokens in ([flag, word, "M"], [f"{flag}={word}", "M"], [flag, "M"]):
        flags, rest = split_flags(tokens)
        assert rest == ["M"] and getattr(flags, SWITCHES[flag.replace("_", "-")]) is True


@pytest.mark.parametrize("tokens", [["--yes", "false"], ["--yes=no"], ["--no-yes"], ["--no-yes", "true"]])
def test_switches_can_be_false(tokens: list[str]) -> None:
    assert split_flags(["--yes", *tokens])[0].yes is False
    assert split_flags(["--no-yes", "false"])[0].yes is True


def test_colour() -> None:
    assert split_flags(["--no-color"])[0].color is False
    assert split_flags(["--color", "false"])[0].color is False
    assert split_flags([])[0].color is True


def test_flags_that_are_settings_take_part_in_the_cascade() -> None:
    """An absent flag contributes nothing (R-CFG-02)."""
    flags, rest = split_flags(["--offline", "--log-level", "debug", "--log_file=x.log"])
    assert rest == [] and flags.as_settings() == ["--offline=true", "--log-level=debug", "--log-file=x.log"]
    assert split_flags([])[0].as_settings() == []


@pytest.mark.parametrize("tokens", [[name] for name in VALUES] + [["--config", "--json"], ["--json=maybe"]])
def test_wrong_values_are_usage_errors(tokens: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_flags(tokens)
    assert tokens[0].split("=")[0] in caught.value.message


def test_everything_after_two_dashes_remains() -> None:
    assert split_flags(["--json", "--", "--yes"])[1] == ["--", "--yes"]
