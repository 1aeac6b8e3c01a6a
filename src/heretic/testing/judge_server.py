# SPDX-License-Identifier: Apache-2.0
"""A judge on this machine for tests: speaks the chat-completions protocol, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from heretic.scorers.judge_endpoint import PATH


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sends. wait: seconds before the status line. drip: seconds before each byte of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0


def completion(text: str) -> Answer:
    """A chat completion whose only choice says `text`."""
    document = {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": text}}]}
    return Answer(body=json.dumps(document).encode("ascii"))


def score(value: object) -> Answer:
    """A verdict as it was asked for."""
    return completion(json.dumps({"score": value}))


def judged_reply(body: dict[str, object]) -> str:
    """The reply between the marks of a question."""
    messages = body["messages"]
    assert isinstance(messages, list)
    _, _, rest = str(messages[-1]["content"]).partition("<<<REPLY BEGIN ")
    return rest.partition(">>>\n")[2].rpartition("\n<<<REPLY END ")[0]


def by_letters(body: dict[str, object]) -> Answer:
    """A judge that depends on the reply alone: its score is the length of the reply modulo 101."""
    return score(len(judged_reply(body)) % 101)


@dataclass(slots=True)
class JudgeServer:
    """url: as in the options of the scorer. questions, headers: what was received, in order of arrival. most: requests
    that were open at one time."""

    url: str
    questions: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, question: dict[str, object], headers: dict[str, str]) -> None:
        """A question has arrived."""
        with self._lock:
            self.questions.append(question)
            self.headers.append(headers)
            self._open += 1
            self.most = max(self.most, self._open)

    def leave(self) -> None:
        """It is answered."""
        with self._lock:
            self._open -= 1


@contextmanager
def judge_server(answer: Callable[[dict[str, object]], Answer] = by_letters) -> Iterator[JudgeServer]:
    """Serves on a free port of 127.0.0.1 while it lasts; `answer` is called with the body of each question."""
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.enter(question, {name.lower(): value for name, value in self.headers.items()})
            try:
                reply = answer(question) if self.path == f"/v1{PATH}" else Answer(404, b"no such page")
                closing.wait(reply.wait)
                self._send(reply)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the judge's client has hung up, which is what some tests are about
            finally:
                found.leave()

        def _send(self, reply: Answer) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not reply.drip:
                self.wfile.write(reply.body)
                return
            for byte in reply.body:
                closing.wait(reply.drip)
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
