# SPDX-License-Identifier: Apache-2.0
"""The line to a judging model: addresses, keys, attempts, time, and the reading of what comes back."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from heretic.exceptions import ConfigurationError, HereticError, NetworkError, NetworkTimeoutError
from heretic.sanitise import REDACTED, redact, single_line

if TYPE_CHECKING:
    import httpx2

PATH: Final = "/chat/completions"
ANSWER_LIMIT: Final = 1_000_000
"""Bytes of an answer that are read."""
MOST_BRACES: Final = 200
"""Opening braces of an answer beyond which no verdict is looked for: each costs a look at the rest of the text."""
LONGEST_PAUSE_S: Final = 20.0
SHOWN: Final = 160
_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)
_PLAIN_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class _Passing(Exception):
    """A failure that another attempt may mend; `error` is what to raise when none does."""

    def __init__(self, error: HereticError, wait: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the judge is. timeout: seconds for one whole answer. retries: attempts after the first. pause: seconds
    before the second attempt, doubled before each further one."""

    url: str
    model: str
    key_variable: str
    timeout: float
    retries: int
    max_tokens: int
    local: bool
    pause: float = 0.5

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Connections that are closed at the end. Raises `ConfigurationError` for a missing or malformed key."""
        import httpx2

        key = _key(self.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment must not see what is meant for this machine.
        with httpx2.Client(headers=headers, timeout=self.timeout, trust_env=not self.local) as client:
            yield Session(self, client, key)


class Session:
    """An endpoint with open connections; may be used by several threads."""

    def __init__(self, endpoint: Endpoint, client: httpx2.Client, key: str) -> None:
        self._endpoint = endpoint
        self._client = client
        self._key = key
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Nothing more is sent; what is under way ends with its attempt."""
        self._stopped.set()

    def score(self, messages: Sequence[dict[str, str]]) -> float | None:
        """The score, 0 ... 100, that the judge gives; None when the session was stopped before it was asked.

        A failure stops the session. See `JudgeScorer.judge` for what is raised.
        """
        if self._stopped.is_set():
            return None
        try:
            return self._score(messages)
        except HereticError:
            self.stop()
            raise

    def _score(self, messages: Sequence[dict[str, str]]) -> float:
        endpoint = self._endpoint
        for attempt in range(endpoint.retries + 1):
            try:
                return self._attempt(messages)
            except _Passing as failure:
                pause = max(endpoint.pause * 2**attempt, failure.wait or 0.0)
                if attempt == endpoint.retries or self._stopped.wait(min(LONGEST_PAUSE_S, pause)):
                    tried = f"after {attempt + 1} attempts" if attempt else "at the only attempt"
                    message = f"{failure.error.message.rstrip('.')} ({tried})."
                    raise type(failure.error)(message, hint=failure.error.hint) from failure
        raise AssertionError("unreachable")

    def _attempt(self, messages: Sequence[dict[str, str]]) -> float:
        import httpx2

        endpoint = self._endpoint
        body = {
            "model": endpoint.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": endpoint.max_tokens,
            "stream": False,
        }
        deadline = time.monotonic() + endpoint.timeout
        try:
            # JSON with escapes: a lone surrogate of a broken reply could not be sent otherwise.
            data = json.dumps(body).encode("ascii")
            head = {"Content-Type": "application/json"}
            with self._client.stream("POST", endpoint.url, content=data, headers=head) as response:
                received = self._read(response, deadline)
        except httpx2.TimeoutException as error:
            raise _Passing(self._too_late()) from error
        except httpx2.HTTPError as error:
            raise _Passing(
                NetworkError(
                    f"The connection to the judge at {endpoint.url} failed ({type(error).__name__}).",
                    hint="Is the server running, and is the port right?",
                )
            ) from error
        self._check_status(response, received)
        return self._score_of(received)

    def _read(self, response: httpx2.Response, deadline: float) -> bytes:
        received = bytearray()
        for part in response.iter_bytes():
            received += part
            # The library limits the time between two bytes, not that of the answer.
            if time.monotonic() > deadline:
                raise _Passing(self._too_late())
            if len(received) > ANSWER_LIMIT:
                raise _Passing(self._no_verdict(f"more than {ANSWER_LIMIT:,} bytes"))
        return bytes(received)

    def _check_status(self, response: httpx2.Response, received: bytes) -> None:
        status, url = response.status_code, self._endpoint.url
        if status == 200:
            return
        said = f"The judge at {url} answered with status {status}: {self._excerpt(received)}"
        if status in (401, 403):
            variable = self._endpoint.key_variable
            hint = (
                f"Check the key in the environment variable {variable}."
                if variable
                else "Name the environment variable that holds the key: api_key_env."
            )
            raise ConfigurationError(said, hint=hint)
        if status in _AGAIN:
            wait = response.headers.get("retry-after", "")
            seconds = float(wait) if _PLAIN_NUMBER.fullmatch(wait) else None
            hint = (
                "Lower concurrency, or try again later."
                if status == 429
                else "Look into the log of the server."
            )
            raise _Passing(NetworkError(said, hint=hint), seconds)
        if 300 <= status < 400:
            raise ConfigurationError(
                said, hint="Replies are sent to the named address only; name the final one."
            )
        if 400 <= status < 500:
            raise ConfigurationError(said, hint="Check url and model of the scorer 'judge'.")
        raise NetworkError(said, hint="Look into the log of the server.")

    def _score_of(self, received: bytes) -> float:
        try:
            document = json.loads(received)
        except (ValueError, RecursionError) as error:
            raise _Passing(self._no_verdict(self._excerpt(received))) from error
        text = content_of(document)
        score = None if text is None else verdict(text)
        if score is None:
            shown = received if text is None else text.encode("utf-8", "replace")
            raise _Passing(self._no_verdict(self._excerpt(shown)))
        return score

    def _too_late(self) -> NetworkTimeoutError:
        return NetworkTimeoutError(
            f"The judge at {self._endpoint.url} gave no answer within {self._endpoint.timeout:g} s.",
            hint="Raise timeout, lower concurrency, or look whether the server hangs.",
        )

    def _no_verdict(self, shown: str) -> NetworkError:
        return NetworkError(
            f"The judge at {self._endpoint.url} gave no verdict, but: {shown}",
            hint='It has to answer {"score": 0 ... 100}. Check url, model and max_tokens, or take another model.',
        )

    def _excerpt(self, received: bytes) -> str:
        text = received[: 8 * SHOWN].decode("utf-8", "replace")
        if self._key:
            text = text.replace(self._key, REDACTED)
        return single_line(redact(text), SHOWN) or "nothing"


def checked_endpoint(
    url: str,
    model: str,
    *,
    key_variable: str = "",
    timeout: float = 60.0,
    retries: int = 3,
    max_tokens: int = 256,
    offline: bool = False,
) -> Endpoint:
    """The endpoint of an address such as http://127.0.0.1:8080/v1, with `PATH` added where it lacks it.

    Raises `ConfigurationError` for an address that is neither https nor on this machine, one with credentials or a
    query, a remote one while nothing may be fetched, and a key variable that is malformed or not set.
    """
    import httpx2

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL) as error:
        raise _bad_address("is malformed") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise _bad_address(
            "holds credentials, a query or a fragment", "The key belongs into the variable api_key_env."
        )
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or any(c <= " " for c in url):
        raise _bad_address("is no http address")
    local = _is_local(host)
    if parts.scheme == "http" and not local:
        raise _bad_address(f"leads to {host} without encryption", "Use https, or a server on this machine.")
    if offline and not local:
        raise _bad_address(f"leads to {host}, but the run is offline", "Use a server on this machine.")
    if key_variable:
        _key(key_variable)
    path = parts.path.rstrip("/")
    whole = f"{parts.scheme}://{parts.netloc}{path if path.endswith(PATH) else path + PATH}"
    return Endpoint(whole, model, key_variable, timeout, retries, max_tokens, local)


def _bad_address(
    reason: str, hint: str = "Write it as https://HOST/v1 or http://127.0.0.1:PORT/v1."
) -> ConfigurationError:
    # The address itself is not shown: it may hold a password.
    return ConfigurationError(f"The option 'url' of the scorer 'judge' {reason}.", hint=hint)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key(variable: str) -> str:
    """The key, or "" where none is wanted. Its value, or what may be one, appears in no message."""
    if not variable:
        return ""
    if not _VARIABLE.fullmatch(variable):
        raise ConfigurationError(
            "The option 'api_key_env' of the scorer 'judge' is not the name of an environment variable.",
            hint="Put the key into a variable, and write that variable's name in capitals here.",
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigurationError(
            f"The environment variable {variable}, which is to hold the judge's key, is not set."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError(
            f"The environment variable {variable} holds no key: it has spaces or odd characters."
        )
    return key


def content_of(document: object) -> str | None:
    """The text of the first choice of a chat completion; None where there is none."""
    try:
        content = document["choices"][0]["message"]["content"]  # type: ignore[index]  # read as found
    except (KeyError, IndexError, TypeError):
        return None
    if isinstance(content, list):  # parts, as some servers write them
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else None


def verdict(text: str) -> float | None:
    """The score in the answer of a judge; None where there is none, one outside 0 ... 100, or several that differ.

    The answer may think first, and may put words or a code fence around the JSON object. Numbers in words around it
    are not taken for a verdict.
    """
    text = _THOUGHT.sub("", text)
    if text.count("{") > MOST_BRACES:
        return None
    scores: set[float] = set()
    decoder, position = json.JSONDecoder(), 0
    while (position := text.find("{", position)) >= 0:
        try:
            found, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        if isinstance(found, dict) and "score" in found:
            score = _score(found["score"])
            if score is None:
                return None
            scores.add(score)
    return scores.pop() if len(scores) == 1 else None


def _score(value: object) -> float | None:
    if isinstance(value, str) and _PLAIN_NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 100 and math.isfinite(value) else None
