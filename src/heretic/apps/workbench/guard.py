# SPDX-License-Identifier: Apache-2.0
"""What every answer of the server goes through: the host is ours, and the page may load and run nothing of others
(reliability G04, G05)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

INLINE: Final = re.compile(rb"<script(?P<attributes>[^>]*)>(?P<body>.*?)</script>", re.DOTALL)
FOREIGN: Final = re.compile(rb'<meta\s[^>]*content="https?://[^"]*"[^>]*>', re.DOTALL)
SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
CLOSED: Final = ("/monitoring", "/gradio_api/upload", "/docs", "/redoc", "/openapi.json", "/gradio_api/mcp")
"""Paths of the library that this page does not use."""


def policy(scripts: Sequence[bytes]) -> bytes:
    """The content security policy of a page whose own inline scripts are `scripts`.

    The library's HTML component compiles its fixed template by `eval`, which only a script that runs already can use;
    inline scripts and handlers of anybody else stay forbidden.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'self'; script-src 'self' 'unsafe-eval' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; media-src 'none'; object-src 'none'; "
        "frame-src 'none'; worker-src 'self' blob:; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ).encode()


class Guard:
    """ASGI middleware. hosts: names under which the server may be asked for; None = any (a shared link)."""

    def __init__(self, app: Application, hosts: frozenset[str] | None = None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse what is not for us, else answer with the headers of the page."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self._is_ours(scope):
            await _refuse(send, 400, b"This server does not answer under that name.")
            return
        path = str(scope.get("path", ""))
        if any(path.startswith(closed) for closed in CLOSED):
            await _refuse(send, 404, b"There is no such page.")
            return
        answer = _Answer(send)
        await self.app(scope, receive, answer.send)

    def _is_ours(self, scope: Scope) -> bool:
        if self.hosts is None:
            return True
        given = next((value for name, value in scope["headers"] if name == b"host"), b"")
        name = given.decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
        return name in self.hosts


class _Answer:
    """One answer on its way out. A page is held until it is whole, since the policy names its scripts."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._started(message)
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._page()
        else:
            await self._send(message)

    async def _started(self, message: Message) -> None:
        kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
        if kind.startswith(b"text/html"):
            self._start = message
            return
        headers = [*message["headers"], *SECURITY, (b"content-security-policy", policy(()))]
        await self._send({**message, "headers": headers})

    async def _page(self) -> None:
        assert self._start is not None
        body = FOREIGN.sub(b"", bytes(self._body))
        scripts = [found["body"] for found in INLINE.finditer(body) if b"src=" not in found["attributes"]]
        kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers = [
            *kept,
            *SECURITY,
            (b"content-security-policy", policy(scripts)),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._start = None


async def _refuse(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
