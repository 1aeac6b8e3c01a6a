# SPDX-License-Identifier: Apache-2.0
"""What the page does and shows, without a browser (R-UI-04 to R-UI-08, R-UI-20, R-UI-26; reliability G)."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from heretic.apps import charts
from heretic.apps.conversation import Message
from heretic.apps.discovery import Places
from heretic.apps.history import ChatHistory
from heretic.apps.manager import ModelManager
from heretic.apps.workbench.desk import Desk, View, Visitor, Wishes
from heretic.apps.workbench.guard import Guard
from heretic.apps.workbench.markup import bubbles, markdown_safe, problem, read_tokens, table
from heretic.apps.workbench.server import Options, allowed_hosts, check_options, next_free
from heretic.apps.workbench.wiring import told, told_stream
from heretic.demo import model_path
from heretic.exceptions import ConfigurationError, FileOperationError, GenerationError
from heretic.testing.tokenizers import save_pico

torch.set_num_threads(1)
CHANGES = {"vocab_size": 320, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "models"
    shutil.copytree(model_path(), folder / "demo-model")
    save_pico(folder / "other", "qwen2", changes=CHANGES)
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def desk(models: Path, tmp_path: Path) -> Desk:
    return Desk(ModelManager(Places(models), offline=True), ChatHistory(tmp_path / "chats"))


def wishes(model: object = "folder:demo-model", **more: object) -> Wishes:
    return Wishes(model, **{"temperature": 0.0, "max_tokens": 64, **more})  # type: ignore[arg-type]


def last(views: Iterator[View]) -> View:
    return list(views)[-1]


# Conversations


def test_a_reply_grows_on_the_page_and_ends_idle(desk: Desk) -> None:
    """The first view comes before the model is loaded; every view holds strings only."""
    visitor = Visitor()
    views = desk.send(visitor, " How do I boil an egg? ", wishes())
    first = next(views)
    assert first.busy and not desk.manager.state.ready and first.turns[0][-1]["content"] == "..."
    rest = list(views)
    assert len(rest) > 1 and not rest[-1].busy and not rest[-1].failed and desk.manager.state.ready
    for view in (first, *rest):
        assert all(
            set(turn) == {"role", "content"} and type(turn["content"]) is str for turn in view.turns[0]
        )
    assert [turn.role for turn in visitor.chat] == ["user", "assistant"]
    assert visitor.chat[0].content == "How do I boil an egg?" and visitor.session is None


def test_two_visitors_do_not_see_each_other(desk: Desk) -> None:
    """R-UI-26."""
    one, other = Visitor(), Visitor()
    last(desk.send(one, "first", wishes()))
    last(desk.send(other, "second", wishes()))
    assert [turn.content for turn in one.chat][0] == "first"
    assert [turn.content for turn in other.chat][0] == "second" and len(other.chat) == 2


@pytest.mark.parametrize(
    ("text", "wish", "words"),
    [
        ("", {}, "message is empty"),
        ({"path": "/etc/passwd"}, {}, "message is empty"),
        ("x" * 100_001, {}, "characters"),
        ("x", {"model": None}, "no model is chosen"),
        ("x", {"model": ["folder:demo-model"]}, "no model is chosen"),
        ("x", {"model": "folder:../x"}, "no model"),
        ("x", {"model": "folder:half"}, "no complete model"),
        ("x", {"model": "study:1"}, "no model"),
        ("x", {"temperature": 3.0}, "temperature"),
        ("x", {"max_tokens": 4096}, "reply length"),
        ("x", {"top_p": 0.0}, "top-p"),
    ],
)
def test_every_error_path_is_shown_in_words(
    desk: Desk, text: object, wish: dict[str, Any], words: str
) -> None:
    """Nothing is raised, the conversation stands, and the next message works."""
    visitor = Visitor()
    last(desk.send(visitor, "hello", wishes()))
    before = list(visitor.chat)
    view = last(desk.send(visitor, text, wishes(**wish)))
    assert view.failed and not view.busy and words.lower() in view.words.lower()
    assert 'role="alert"' in view.words and "<p>" in view.words
    assert visitor.chat == before and visitor.session is None
    assert not last(desk.send(visitor, "again", wishes())).failed


def test_stop_ends_a_reply_and_a_second_message_meanwhile_is_refused(desk: Desk) -> None:
    visitor = Visitor()
    views = desk.send(visitor, "hello", wishes("folder:other", max_tokens=2048))
    for _ in range(3):
        next(views)
    refused = last(desk.send(visitor, "again", wishes()))
    assert refused.failed and "still being written" in refused.words
    visitor.stop()
    begin = time.monotonic()
    end = list(views)[-1]
    assert time.monotonic() - begin < 1.0 and not end.failed and len(visitor.chat) == 2


def test_a_page_that_goes_away_frees_the_model(desk: Desk) -> None:
    """G06: a view that nobody takes holds no lock for longer than its reply."""
    views = desk.send(Visitor(), "hello", wishes("folder:other", max_tokens=256))
    for _ in range(3):
        next(views)
    waiting = list(desk.send(Visitor(), "hello", wishes("folder:other")))
    assert "waits for its end" in waiting[0].words and not waiting[-1].failed
    views.close()  # type: ignore[attr-defined]  # it is a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heretic-chat")]


def test_again_replace_and_clear(desk: Desk) -> None:
    visitor = Visitor()
    assert "no reply" in last(desk.regenerate(visitor, wishes())).words
    last(desk.send(visitor, "one", wishes()))
    last(desk.regenerate(visitor, wishes()))
    assert len(visitor.chat) == 2
    last(desk.edit_last(visitor, "two", wishes()))
    assert visitor.chat[0].content == "two" and len(visitor.chat) == 2
    assert desk.clear(visitor).turns == [[]] and visitor.chat == []


def test_chats_are_saved_and_taken_up_by_another_visitor(desk: Desk) -> None:
    visitor = Visitor()
    last(desk.send(visitor, "remember me", wishes()))
    assert "Saved as chat_" in desk.save(visitor, "be kind", "folder:demo-model")
    assert "Saved as chat_" in desk.save(visitor, "be kind", "folder:demo-model")
    [(label, name)] = desk.saved()
    assert "remember me" in label and "demo model" in label
    other = Visitor()
    chat = desk.load(other, name)
    assert (
        other.chat == visitor.chat
        and chat.system_prompt == "be kind"
        and other.parameters["max_tokens"] == 64
    )
    for word in ("../x", None, ["x"], {"path": "x"}):
        with pytest.raises(FileOperationError):
            desk.load(other, word)


def test_two_unrelated_models_answer_one_after_the_other(desk: Desk) -> None:
    """R-UI-08; stopping during the first one leaves the second one out."""
    visitor = Visitor()
    views = list(desk.compare(visitor, "hello", wishes(), (0.0, 1.0), "folder:other"))
    assert not views[-1].failed, views[-1].words
    left, right = (side[-1]["content"] for side in views[-1].turns)
    assert left and left != right
    alone = Visitor()
    last(desk.send(alone, "hello", wishes()))
    assert visitor.sides[0] == alone.chat
    stopped = Visitor()
    running = desk.compare(
        stopped, "hello", wishes("folder:other", max_tokens=2048), (0, 1), "folder:demo-model"
    )
    for _ in range(3):
        next(running)
    stopped.stop()
    end = list(running)[-1]
    assert not end.failed and stopped.sides[1][-1].content == "" and stopped.sides[0][-1].content


def test_one_model_without_edit_says_so_in_compare(desk: Desk) -> None:
    view = last(desk.compare(Visitor(), "hello", wishes(), (0.0, 1.0), ""))
    assert view.failed and "no edit" in view.words and view.turns == [[], []]
    view = last(desk.compare(Visitor(), "hello", wishes(), (0.0, 9.0), ""))
    assert view.failed and "strength" in view.words


# Text


PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil.example/beacon.png)",
    "[x](javascript:alert(1))",
    "</textarea><svg/onload=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "`<b>` and ``<i>`` <u>",
    "```html\n<script>alert(1)</script>\n```\n<script>",
    "```mermaid\ngraph TD; A-->B\n```",
    "~~~\n<script>\n",
    "`open <script>alert(1)</script>",
    "\x1b]52;c;eA==\x07<b>",
    "    <script>alert(1)</script>",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_of_a_model_becomes_a_tag_or_a_picture(payload: str) -> None:
    """G04: outside code no character that could begin a tag, an entity of its own or a picture is left."""
    safe = markdown_safe(payload)
    outside = re.sub(r"(?ms)^(```|~~~)$.*?^\1$|(`+)(?!`).*?(?<!`)\2(?!`)", "", safe)
    assert "<" not in outside and "![" not in outside and "mermaid" not in safe and "\x1b" not in safe
    assert not re.search(r"&(?!#\d+;)", outside)
    assert bubbles([Message("assistant", payload)])[0]["content"] == safe


def test_ordinary_markdown_stays_as_it_is() -> None:
    text = "# Title\n\n*a* **b** `c < d` [link](https://x.example)\n\n```\nif a < b & c:\n```\n- item"
    assert markdown_safe(text) == text
    assert markdown_safe("a < b & c") == "a &#60; b &#38; c"
    assert markdown_safe("```python\nx\n```\ny") == "```\nx\n```\ny"


def test_values_in_tables_charts_and_errors_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    shown = [
        table((evil,), [(evil,)], caption=evil),
        problem(ConfigurationError(evil, hint=evil, details=(evil,))),
        read_tokens([(evil, 0.5), (evil, None)], 0.0, 1.0),
        charts.scatter(
            [charts.Dot(0, 0, note=evil), charts.Dot(1, 1)], title=evil, x_label=evil, y_label=evil
        ),
        charts.lines({evil: [1, None, 2.0], "b": [0.0]}, title=evil, x_label=evil, y_label=evil),
        charts.bars({evil: 1.0}, title=evil),
        charts.parallel([({evil: 1.0, "b": 2.0}, True), ({evil: 2.0, "b": 1.0}, False)], title=evil),
        charts.heat([[1.0, float("nan")], [0.2, 1.0]], title=evil, label=evil),
        charts.empty(evil),
    ]
    for text in shown:
        assert "<script" not in text and "alert(1)" in text


def test_charts_use_theme_variables_only_and_survive_odd_numbers() -> None:
    """R-UI-25: no colour of their own."""
    nan, inf = float("nan"), float("inf")
    shown = [
        charts.lines({"a": [nan, inf, 1.0, None]}, title="t", x_label="x", y_label="y"),
        charts.lines({"a": [nan]}, title="t", x_label="x", y_label="y"),
        charts.scatter([charts.Dot(1e-9, 1e9, True, True)], title="t", x_label="x", y_label="y"),
        charts.heat([], title="t", label="x"),
        charts.parallel([], title="t"),
        charts.bars({"a": 0.0}, title="t"),
    ]
    for text in shown:
        assert "#" not in text and "rgb(" not in text and "nan" not in text


def test_unexpected_errors_become_words_too() -> None:
    """The rim of the page: even our own mistakes end in a sentence, without their inside."""

    def broken(*arguments: object) -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("secret inside")

    assert list(told_stream(broken, lambda words: words)())[0] == 1
    words = list(told_stream(broken, lambda words: words)())[1]
    assert "ZeroDivisionError" in str(words) and "secret" not in str(words)

    def refused() -> None:
        raise GenerationError("what happened", hint="What to do.")

    assert "What happened." in told(refused, str)() and "What to do." in told(refused, str)()


# Serving


def options(**changes: object) -> Options:
    return Options(Places(Path("models")), Path("chats"), **changes)  # type: ignore[arg-type]


@pytest.mark.loopback
def test_a_password_is_made_where_others_can_reach_the_page() -> None:
    """G01, R-UI-20. Control: this machine only needs none."""
    port = next_free("127.0.0.1", 20_000)
    assert port is not None
    same, warnings = check_options(options(port=port))
    assert same.auth is None and not warnings
    for changes in ({"share": True}, {"host": "0.0.0.0"}):
        made, warnings = check_options(options(port=port, **changes))
        user, _, password = str(made.auth).partition(":")
        assert user and len(password) >= 16 and len(warnings) == 2
        kept, warnings = check_options(options(port=port, auth="me:secret", **changes))
        assert kept.auth == "me:secret" and len(warnings) == 1
    for auth in ("me", "me:", ":x"):
        with pytest.raises(ConfigurationError, match="USER:PASS"):
            check_options(options(port=port, auth=auth))


@pytest.mark.loopback
def test_a_busy_port_is_an_error_that_names_a_free_one() -> None:
    """R-CLI-15."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FileOperationError, match="is taken") as failure:
            check_options(options(port=port))
        found = re.search(r"--port (\d+)", str(failure.value.hint))
        assert found and int(found.group(1)) > port


def answers(guard: Guard, host: bytes, path: str = "/") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request, without a socket."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "path": path, "headers": [(b"host", host)]}
    # In a thread of its own: a browser of another test may keep a loop running in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, guard(scope, receive, send)).result()
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(part.get("body", b"") for part in sent[1:])


PAGE = (
    b'<html><meta property="og:image"\n content="https://elsewhere.example/x.jpg" /><script>ours()</script>'
    b'<script type="module" src="./a.js"></script></html>'
)


async def application(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/html"), (b"content-length", str(len(PAGE)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE[:30], "more_body": True})
    await send({"type": "http.response.body", "body": PAGE[30:], "more_body": False})


def test_only_our_host_is_answered_and_pages_carry_their_policy() -> None:
    """G05: a foreign name gives 400; the policy names our inline script by its hash and nobody else's host."""
    guard = Guard(application, allowed_hosts(options()))
    for host in (b"127.0.0.1:7860", b"localhost", b"[::1]:7860", b"LOCALHOST:1"):
        assert answers(guard, host)[0] == 200
    for host in (b"evil.example", b"127.0.0.1.evil.example", b"", b"localhost.evil:80", b"10.0.0.1"):
        assert answers(guard, host)[0] == 400
    _, headers, body = answers(guard, b"localhost")
    policy = headers[b"content-security-policy"].decode()
    assert "'sha256-" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "img-src 'self' data:" in policy and "elsewhere" not in body.decode() and b"ours()" in body
    assert int(headers[b"content-length"]) == len(body)
    assert answers(guard, b"localhost", "/gradio_api/upload")[0] == 404
    assert answers(Guard(application, allowed_hosts(options(share=True))), b"any.example")[0] == 200
