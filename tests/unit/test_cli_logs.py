# SPDX-License-Identifier: Apache-2.0
"""Logging (requirements R-LOG-01 to R-LOG-04, reliability I02)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest

from heretic.exceptions import ConfigurationError, FileOperationError
from heretic.logs import FILE_BYTES, NOISY_LIBRARIES, OUR_LOGGERS, configure_logging, write_crash_file

TOKEN = "hf_" + "Zz9" * 12


def ignore(line: str) -> None:
    """A terminal nobody looks at."""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Loggers are global: leave them as they were."""
    names = (*OUR_LOGGERS, *NOISY_LIBRARIES)
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name, (level, handlers) in before.items():
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_file_has_all_and_terminal_has_warnings(tmp_path: Path) -> None:
    lines: list[str] = []
    path = configure_logging(lines.append, level="info", file=tmp_path / "deep" / "run.log")
    logger = logging.getLogger("heretic.study")
    logger.debug("hidden")
    logger.info("fact %d", 1)
    logger.warning("odd")
    assert path == tmp_path / "deep" / "run.log"
    text = path.read_text(encoding="utf-8")
    assert "fact 1" in text and "odd" in text and "hidden" not in text and "heretic.study" in text
    assert [line for line in lines if "odd" in line] and not [line for line in lines if "fact" in line]


def test_verbose_shows_the_chosen_level() -> None:
    lines: list[str] = []
    configure_logging(lines.append, level="info", verbose=True)
    logging.getLogger("heretic_chat").info("fact")
    assert len(lines) == 1


def test_what_the_console_said_is_not_said_twice(tmp_path: Path) -> None:
    lines: list[str] = []
    path = configure_logging(lines.append, file=tmp_path / "a.log", verbose=True)
    logging.getLogger("heretic.console").warning("once")
    assert lines == [] and path is not None and "once" in path.read_text(encoding="utf-8")


def test_structured_lines_are_json(tmp_path: Path) -> None:
    """R-LOG-03: time, level, logger, message, fields."""
    path = configure_logging(ignore, file=tmp_path / "a.jsonl", structured=True)
    assert path is not None
    logging.getLogger("heretic.export").info("saved %s", "x", extra={"shard": 3, "place": tmp_path})
    try:
        raise ValueError(TOKEN)
    except ValueError:
        logging.getLogger("heretic.export").exception("failed")
    first, second = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert first["time"].endswith("Z")
    assert {key: first[key] for key in ("level", "logger", "message")} == {
        "level": "info", "logger": "heretic.export", "message": "saved x",
    }  # fmt: skip
    assert first["fields"] == {"shard": 3, "place": str(tmp_path)}
    assert "ValueError" in second["traceback"] and TOKEN not in path.read_text(encoding="utf-8")


def test_no_secret_in_messages_arguments_or_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-LOG-04, I02: the real value of the variable and the pattern."""
    monkeypatch.setenv("HF_TOKEN", "a-value-without-prefix")
    lines: list[str] = []
    path = configure_logging(lines.append, file=tmp_path / "a.log")
    try:
        raise OSError("url http://u:pw123456@host a-value-without-prefix")
    except OSError:
        logging.getLogger("heretic.model").exception("with %s", TOKEN)
    assert path is not None
    for text in (
        path.read_text(encoding="utf-8"),
        "".join(lines),
        write_crash_file(TOKEN).read_text("utf-8"),
    ):
        assert "redacted" in text
        for secret in (TOKEN, "a-value-without-prefix", "pw123456"):
            assert secret not in text


def test_control_characters_do_not_reach_the_terminal() -> None:
    lines: list[str] = []
    configure_logging(lines.append)
    logging.getLogger("heretic").warning("a\x1b]52;c;eA==\x07b")
    assert "ab" in lines[0] and "\x1b" not in lines[0]


def test_rotation_is_ten_megabytes_five_files(tmp_path: Path) -> None:
    configure_logging(ignore, file=tmp_path / "a.log")
    (handler,) = [h for h in logging.getLogger("heretic").handlers if isinstance(h, RotatingFileHandler)]
    assert handler.maxBytes == FILE_BYTES == 10_000_000 and handler.backupCount + 1 == 5


def test_configuring_twice_does_not_double_lines(tmp_path: Path) -> None:
    lines: list[str] = []
    for _ in range(3):
        configure_logging(lines.append, file=tmp_path / "a.log")
    logging.getLogger("heretic").warning("once")
    assert len(lines) == 1 and (tmp_path / "a.log").read_text(encoding="utf-8").count("once") == 1


def test_libraries_are_quiet_but_not_silent() -> None:
    configure_logging(ignore)
    logger = logging.getLogger("optuna")
    assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)


def test_bad_level_and_bad_file_are_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="loud"):
        configure_logging(ignore, level="loud")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(FileOperationError) as caught:
        configure_logging(ignore, file=tmp_path / "file" / "a.log")
    assert "--log-file" in str(caught.value.hint)
