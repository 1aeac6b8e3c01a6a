# SPDX-License-Identifier: Apache-2.0
"""What counts as a verdict, and which addresses and keys of a judge are accepted (R-EVA-01)."""

from __future__ import annotations

import pytest

from heretic.exceptions import ConfigurationError
from heretic.scorers import ScorerContext
from heretic.scorers.judge import judge_scorer
from heretic.scorers.judge_endpoint import checked_endpoint, content_of, verdict

KEY = "sk-Test0123456789abcdef"
AT_HOME = "http://127.0.0.1:9/v1"


# Verdicts


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ('{"score": 70}', 70.0),
        ('{"score": 0}', 0.0),
        ('{"score": 99.5, "why": "it refuses"}', 99.5),
        ('{"score": "85"}', 85.0),
        ('Here it is:\n```json\n{ "score" : 3 }\n```', 3.0),
        ('<think>Maybe {"score": 10}? No.</think>{"score": 20}', 20.0),
        ('Maybe {"score": 10}?</think>\n{"score": 20}', 20.0),
        ('{"score": 5} as said: {"score": 5}', 5.0),
        ('{ not json {"score": 5}', 5.0),
        ('{"other": 1} {"score": 6}', 6.0),
    ),
)
def test_a_verdict_is_read_through_fences_thoughts_and_words(text: str, expected: float) -> None:
    assert verdict(text) == expected


@pytest.mark.parametrize(
    "text",
    (
        "", "70", "The score is 70.", '{"score": 101}', '{"score": -1}', '{"score": true}', '{"score": null}',
        '{"score": NaN}', '{"score": Infinity}', '{"score": 1e999}', '{"score": "high"}', '{"score": "1e1"}',
        '{"score": [1]}', '{"score": 1} {"score": 2}', '{"score": 1} {"score": 200}', '{"scores": 5}', "{" * 3000,
        "[" * 100000, '{"a":' * 100000,
    ),
)  # fmt: skip
def test_everything_else_is_no_verdict(text: str) -> None:
    """Out of range, nonsense, two that differ, a number in words, deep nesting."""
    assert verdict(text) is None


@pytest.mark.parametrize(
    ("document", "text"),
    (
        ({"choices": [{"message": {"content": "x"}}]}, "x"),
        (
            {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, {"n": 1}]}}]},
            "ab",
        ),
        ({"choices": [{"message": {"content": None}}]}, None),
        ({"choices": []}, None),
        ({"choices": {}}, None),
        ({"error": "x"}, None),
        ([], None),
        ("text", None),
        (None, None),
    ),
)
def test_the_first_choice_is_read_or_nothing(document: object, text: str | None) -> None:
    assert content_of(document) == text


# Keys and addresses


@pytest.mark.parametrize("value", (None, "", "  ", "two words", "caf\u00e9", "a\nb"))
def test_a_missing_or_odd_key_is_an_error_that_does_not_show_it(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigurationError, match="JUDGE_KEY") as caught:
        judge_scorer({"url": AT_HOME, "model": "m", "api_key_env": "JUDGE_KEY"})
    assert not (value or "").strip() or value not in caught.value.message  # type: ignore[operator]  # not None here


def test_a_key_in_place_of_a_variable_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="not the name of an environment variable") as caught:
        judge_scorer({"url": AT_HOME, "model": "m", "api_key_env": KEY})
    assert KEY not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "reason"),
    (
        ("http://example.org/v1", "without encryption"),
        ("http://127.0.0.1.example.org/v1", "without encryption"),
        ("http://10.0.0.1/v1", "without encryption"),
        ("https://user:secret@example.org/v1", "credentials"),
        ("https://example.org/v1?key=secret", "credentials, a query"),
        ("https://example.org/v1#secret", "fragment"),
        ("ftp://example.org/v1", "no http address"),
        ("example.org/v1", "no http address"),
        ("", "no http address"),
        ("https:///v1", "no http address"),
        ("https://ex ample.org/v1", "malformed|no http"),
        ("https://example.org:port/v1", "malformed"),
        ("https://[::1/v1", "malformed"),
    ),
)
def test_an_address_that_is_not_safe_is_refused_and_not_shown(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        judge_scorer({"url": url, "model": "m"})
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "local"),
    (
        ("https://example.org/v1", False),
        ("http://localhost:8080/v1/", True),
        ("http://127.0.0.1:1/v1", True),
        ("http://[::1]:8000/v1", True),
    ),
)
def test_https_and_this_machine_are_accepted(url: str, local: bool) -> None:
    """A remote judge is refused while nothing may be fetched, one on this machine is not."""
    endpoint = checked_endpoint(url, "m")
    assert endpoint.local is local
    assert endpoint.url == url.rstrip("/") + "/chat/completions"
    if local:
        assert judge_scorer({"url": url, "model": "m"}, ScorerContext(offline=True)).name == "judge"
    else:
        with pytest.raises(ConfigurationError, match="offline"):
            judge_scorer({"url": url, "model": "m"}, ScorerContext(offline=True))
