# SPDX-License-Identifier: Apache-2.0
"""One request to the provider: time limits, retries for reads alone, clear words (requirements R-VAS-04, H12, I05).

The only module that calls `httpx2`. The key travels in a header and nowhere else; redirects are not followed, because
it would travel along; what the server says is scrubbed before it is shown.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import httpx2

from heretic.cloud.clock import Clock
from heretic.cloud.errors import ProviderError
from heretic.cloud.types import Secret
from heretic.constants import NETWORK_ATTEMPTS, NETWORK_DELAY_CAP_S
from heretic.sanitise import single_line

LOGGER: Final = logging.getLogger("heretic.cloud.http")
CONNECT_S: Final = 10.0
READ_S: Final = 30.0
TOTAL_S: Final = 60.0
LARGEST_ANSWER: Final = 32 * 1024 * 1024
SHOWN_CHARACTERS: Final = 200

Method = Literal["GET", "POST", "PUT", "DELETE"]


class UnsentError(ProviderError):
    """No connection was made, so the request had no effect."""


class RefusedError(ProviderError):
    """The provider said no; the request had no effect. status: of HTTP."""

    def __init__(self, message: str, *, status: int, hint: str | None = None, code: str = "") -> None:
        super().__init__(message, hint=hint, data={"status": status, "code": code})
        self.status = status
        self.code = code


class DoubtfulError(ProviderError):
    """The request may have had its effect: the answer was lost, broken, or an error of the server."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits in seconds. total: of one whole answer, however slowly it drips."""

    connect: float = CONNECT_S
    read: float = READ_S
    total: float = TOTAL_S


class Channel:
    """Requests to one base address with one key."""

    def __init__(self, base: str, key: Secret, clock: Clock, limits: Limits | None = None) -> None:
        self.base = base
        self._key = key
        self._clock = clock
        self.limits = limits or Limits()

    def read(
        self, method: Method, path: str, *, query: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        """A request without effect, as parsed JSON; repeated after 429, 5xx and lost answers."""
        delay = 1.0
        for attempt in range(1, NETWORK_ATTEMPTS + 1):
            try:
                return self._send(method, path, query, body)
            except (UnsentError, DoubtfulError) as error:
                failed: ProviderError = error
            except RefusedError as error:
                if error.status != 429:
                    raise
                failed = error
            if attempt < NETWORK_ATTEMPTS:
                LOGGER.info("attempt %d of %d failed: %s", attempt, NETWORK_ATTEMPTS, failed.message)
                self._clock.sleep(min(delay, NETWORK_DELAY_CAP_S))
                delay *= 2
        raise failed

    def write(self, method: Method, path: str, body: object = None) -> Any:
        """A request with an effect: sent exactly once, whatever happens."""
        return self._send(method, path, None, body)

    def _send(self, method: Method, path: str, query: Mapping[str, str] | None, body: object) -> Any:
        limits = httpx2.Timeout(self.limits.read, connect=self.limits.connect)
        headers = {"Authorization": f"Bearer {self._key.reveal()}", "Accept": "application/json"}
        deadline = time.monotonic() + self.limits.total
        try:
            with (
                httpx2.Client(timeout=limits, follow_redirects=False, verify=_trusted()) as client,
                client.stream(
                    method, f"{self.base}{path}", params=query, headers=headers, json=body
                ) as answer,
            ):
                content = self._body(answer, deadline)
                return self._understood(answer.status_code, content)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise UnsentError(
                f"the provider at {self.base} cannot be reached ({type(error).__name__})",
                hint="Check the network; nothing was changed.",
            ) from error
        except httpx2.HTTPError as error:
            raise DoubtfulError(
                f"the answer of the provider was lost ({type(error).__name__}) after {method} {path}",
                hint="Look at the state with: heretic-vast list",
            ) from error

    def _body(self, answer: httpx2.Response, deadline: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        for piece in answer.iter_bytes():
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > deadline or size > LARGEST_ANSWER:
                raise DoubtfulError(
                    f"the provider's answer did not end within {self.limits.total:g} s and {LARGEST_ANSWER} bytes",
                    hint="Try again later; look at the state with: heretic-vast list",
                )
        return b"".join(pieces)

    def _understood(self, status: int, content: bytes) -> Any:
        """The JSON of a good answer; every other answer raises."""
        text = self._key.scrub(content.decode("utf-8", "replace"))
        parsed: Any = None
        try:
            parsed = json.loads(text)
            garbage = False
        except ValueError:
            garbage = True
        if status >= 500 or 300 <= status < 400:
            raise DoubtfulError(
                f"the provider answered with status {status}: {_shown(text, parsed)}",
                hint="It is a fault on the provider's side; try again later."
                if status >= 500
                else "The address is not the provider's API; check --api-url.",
            )
        if status >= 400:
            raise _refusal(status, text, parsed)
        if garbage:
            kind = "a web page" if "<html" in text[:2000].lower() else "something that is no JSON"
            raise DoubtfulError(
                f"the provider answered with {kind}: {_shown(text, None)}",
                hint="A proxy or a login page may stand between; check the network and --api-url.",
            )
        return parsed


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """The certificates of the system; reading them takes longer than a request."""
    return httpx2.create_ssl_context()


_WORDS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("did not accept the request", "Update heretic, or report this with the message above."),
    401: ("does not know the key", "Make a new one at cloud.vast.ai/manage-keys and set VAST_API_KEY."),
    402: ("says that the credit is used up", "Add credit to the account."),
    403: (
        "does not allow this with the key in use, or the account has no credit",
        "Check the key's permissions and the account's credit at cloud.vast.ai.",
    ),
    404: ("does not know what was asked for", "It may be gone; see: heretic-vast list"),
    409: ("says that somebody else was faster", "Choose another offer: heretic-vast gpus"),
    410: (
        "says that this is gone: the offer, or this version of its API",
        "Choose another offer; if it stays, update heretic or give another --api-version.",
    ),
    429: ("says that requests come too fast", "Wait a minute and give the command again."),
}


def _refusal(status: int, text: str, parsed: object) -> RefusedError:
    meaning, cure = _WORDS.get(status, ("refused the request", "See the message."))
    code = str(parsed.get("error", "")) if isinstance(parsed, Mapping) else ""
    return RefusedError(
        f"the provider {meaning} (status {status}): {_shown(text, parsed)}",
        status=status,
        hint=cure,
        code=code,
    )


def _shown(text: str, parsed: object) -> str:
    """The part of an answer that is worth showing, on one line."""
    if isinstance(parsed, Mapping):
        said = parsed.get("msg") or parsed.get("message") or parsed.get("error")
        if said:
            return single_line(str(said), SHOWN_CHARACTERS)
    return single_line(text, SHOWN_CHARACTERS) or "an empty answer"


def unsuccessful(answer: object) -> str | None:
    """What the provider said when a good status carries `"success": false`; None when it does not."""
    if isinstance(answer, Mapping) and answer.get("success") is False:
        return single_line(
            str(answer.get("msg") or answer.get("error") or "no reason given"), SHOWN_CHARACTERS
        )
    return None
