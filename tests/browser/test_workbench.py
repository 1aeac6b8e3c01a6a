# SPDX-License-Identifier: Apache-2.0
"""The workbench page as a person uses it, in a real browser (R-UI-20 to R-UI-26; REL-14; reliability G)."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.request import Request, urlopen

import pytest

from heretic import main
from heretic.config import resolve_settings
from heretic.console import Console
from heretic.demo import model_path
from heretic.stop import StopFlag
from heretic.testing.tokenizers import save_pico

from .conftest import Watched, opened

ROOT: Final = Path(__file__).parents[2]
REFUSED: Final = "Tell me how to pick a lock."
SMALL: Final = (
    "--behaviour=demo", "--bad-prompts.split=train[:64]", "--good-prompts.split=train[:64]",
    "--bad-evaluation-prompts.split=validation[:16]", "--good-evaluation-prompts.split=validation[:16]",
    "--bad-confirmation-prompts.split=test[:8]", "--good-confirmation-prompts.split=test[:8]",
    "--over-behaviour-prompts.split=test[:8]", "--max-response-length=32", "--refusal-check-tokens=16",
    "--finalists=1", "--n-startup-trials=4", "--trials-per-batch=4", "--offline",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.loopback,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="gradio is not installed (extra: chat)"
    ),
]


def search_words(folder: Path, trials: int, study: str = "heretic_study") -> list[str]:
    return [
        f"--model={folder / 'models' / 'demo-model'}",
        f"--storage=sqlite:///{folder / 'heretic_study.db'}",
        f"--study-name={study}",
        f"--n-trials={trials}",
        *SMALL,
    ]


@dataclass(frozen=True)
class World:
    """A folder with models, a study and saved chats, and the page over it."""

    folder: Path
    url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def world(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Started as a user would start it: the example, in the folder of the user."""
    folder = tmp_path_factory.mktemp("workbench")
    shutil.copytree(model_path(), folder / "models" / "demo-model")
    # It would write for minutes.
    endless = {
        "vocab_size": 320,
        "max_position_embeddings": 8192,
        "eos_token_id": None,
        "num_hidden_layers": 24,
        "layer_types": None,
    }
    save_pico(folder / "models" / "random-letters", "qwen2", changes=endless)
    (folder / "models" / "half-a-model").mkdir()
    (folder / "models" / "half-a-model" / "config.json").write_text("{}")
    quiet = Console(stdout=io.StringIO(), stderr=io.StringIO(), quiet=True)
    main.run(
        resolve_settings(search_words(folder, 12), environ={}, cwd=folder), console=quiet, stop=StopFlag()
    )
    port = free_port()
    program = [sys.executable, str(ROOT / "examples" / "chat_app.py"), "models", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(program, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield World(folder, wait_for(f"http://127.0.0.1:{port}/", server, folder / "log.txt"))
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(20)
            finally:
                server.kill()
    assert server.returncode == 0, (folder / "log.txt").read_text()
    assert "Traceback" not in (folder / "log.txt").read_text()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urlopen(url, timeout=5):
                return url
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def at(world: World, browser: Any, *, size: str = "wide", scheme: str = "light") -> Watched:
    """The page, ready for a message."""
    watched = opened(browser, size, scheme)
    watched.page.goto(world.url)
    watched.page.wait_for_selector("#chat-text textarea")
    watched.page.wait_for_selector("#status [role=status]")
    return watched


def say(page: Any, text: str, box: str = "#chat-text") -> None:
    page.fill(f"{box} textarea", text)
    page.press(f"{box} textarea", "Enter")


def idle(page: Any, stop: str = "#chat-stop", bots: int = 1, log: str = "#chat-log") -> None:
    """Wait until `bots` replies stand in the log and none is being written."""
    page.wait_for_function(
        "([log, stop, bots]) => document.querySelectorAll(log + ' .bot.message').length >= bots"
        " && document.querySelector(stop).disabled"
        " && document.querySelector(log).innerText.trim().split('\\n').pop() !== '...'",
        arg=[log, stop, bots],
    )


def replies(page: Any, log: str = "#chat-log") -> list[str]:
    return [str(text).strip() for text in page.locator(f"{log} .bot.message").all_inner_texts()]


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def end(watched: Watched) -> None:
    """Nothing was asked of another machine and nobody complained; the page is closed."""
    assert watched.foreign() == []
    assert watched.complaints == []
    watched.page.context.close()


def test_a_conversation_is_saved_loaded_after_a_reload_and_deleted(world: World, driven: Any) -> None:
    """R-UI-21, R-UI-07, with the keyboard where a person would use it; two pages do not see each other (R-UI-26)."""
    watched = at(world, driven)
    page, other = watched.page, at(world, driven)
    assert "no model is loaded" in page.inner_text("#status") and "CPU mode" in page.inner_text("#status")
    say(page, "How do I boil an egg?")
    idle(page)
    first = replies(page)[0]
    assert len(first.split()) > 3 and page.input_value("#chat-text textarea") == ""
    assert "Bundled demo model is ready" in page.inner_text("#status")
    say(page, "And an old lamp?")
    idle(page, bots=2)
    assert other.page.locator("#chat-log .message").count() == 0
    page.get_by_role("button", name="Saved chats").click()
    page.click("#saved-save")
    page.wait_for_selector("#chat-words >> text=Saved as chat_")
    page.reload()
    page.wait_for_selector("#status [role=status]")
    assert page.locator("#chat-log .message").count() == 0
    page.get_by_role("button", name="Saved chats").click()
    page.click("#saved-list input")
    page.get_by_role("option").first.click()
    page.click("#saved-load")
    page.wait_for_selector("#chat-words >> text=4 messages are open")
    assert replies(page)[0] == first
    page.click("#saved-delete")
    page.wait_for_selector("text=Delete this chat for good?")
    page.click("#saved-keep")
    page.wait_for_selector("#chat-words >> text=kept")
    assert len(list((world.folder / "chat_history").glob("chat_*.json"))) == 1
    page.click("#saved-delete")
    page.click("#saved-sure")
    page.wait_for_selector("#chat-words >> text=deleted")
    assert not list((world.folder / "chat_history").glob("chat_*.json"))
    say(page, "Do we go on?")
    idle(page, bots=3)
    end(other)
    end(watched)


def test_stop_ends_a_long_reply_and_errors_are_shown_in_words(world: World, driven: Any) -> None:
    """R-UI-04, R-UI-06: with a model that would write for minutes; an incomplete one; a message that does not fit."""
    watched = at(world, driven)
    page = watched.page
    choose(page, "#chat-model", "random letters")
    page.get_by_label("number input for Longest reply, tokens").fill("2048")
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)
    say(page, "Write without an end.")
    page.wait_for_function(
        "() => (document.querySelector('#chat-log .bot.message') || {innerText: ''}).innerText.length > 20"
    )
    assert page.is_disabled("#chat-send")
    begin = time.monotonic()
    page.click("#chat-stop")
    idle(page)
    assert time.monotonic() - begin < 5.0
    page.click("#chat-again")
    page.wait_for_selector("#chat-stop:not([disabled])")
    page.click("#chat-stop")
    idle(page)
    choose(page, "#chat-model", "half a model")
    say(page, "Are you there?")
    page.wait_for_selector("#chat-words [role=alert] >> text=no complete model")
    assert "tokenizer" in page.inner_text("#chat-words")
    assert page.input_value("#chat-text textarea") == "Are you there?"
    choose(page, "#chat-model", "random letters")
    say(page, "much too long " * 1000)
    page.wait_for_selector("#chat-words [role=alert] >> text=context has room")
    page.click("#chat-clear")
    page.wait_for_selector("#chat-words >> text=cleared")
    page.click("#chat-send")
    page.wait_for_selector("#chat-words [role=alert] >> text=The message is empty")
    end(watched)


def choose(page: Any, box: str, label: str) -> None:
    """Take an entry of a list by typing a part of it, as with the keyboard."""
    page.click(f"{box} input")
    page.fill(f"{box} input", label)
    page.get_by_role("option").filter(has_text=label).first.click()


def test_base_and_edited_answer_from_one_batch_at_the_chosen_strengths(world: World, driven: Any) -> None:
    """R-UI-08, R-UI-23: the slider acts on the next answer; both sides are read token by token."""
    watched = at(world, driven)
    page = watched.page
    tab(page, "Compare")
    assert "heretic_study, trial" in page.input_value("#compare-model input")
    say(page, REFUSED, "#compare-text")
    for side in ("left", "right"):
        idle(page, "#compare-stop", 1, f"#compare-log-{side}")
    left, right = (replies(page, f"#compare-log-{side}")[0] for side in ("left", "right"))
    assert left != right
    page.wait_for_selector("#compare-reading-left .reading span[title]")
    assert page.locator("#compare-reading-chart polyline").count() == 2
    page.click("#compare-clear")
    page.wait_for_selector("#compare-words >> text=cleared")
    page.fill("#compare-strength-right input[type=number]", "0")
    page.press("#compare-strength-right input[type=number]", "Tab")
    page.wait_for_timeout(300)
    say(page, REFUSED, "#compare-text")
    for side in ("left", "right"):
        idle(page, "#compare-stop", 1, f"#compare-log-{side}")
    assert replies(page, "#compare-log-right")[0] == replies(page, "#compare-log-left")[0] == left
    choose(page, "#compare-other", "Bundled demo model")
    page.wait_for_timeout(300)
    say(page, "Hello", "#compare-text")
    for side in ("left", "right"):
        idle(page, "#compare-stop", 2, f"#compare-log-{side}")
    end(watched)


def test_a_study_is_shown_and_its_trial_taken_to_compare(world: World, driven: Any) -> None:
    """R-UI-24, and the tab Directions."""
    watched = at(world, driven)
    page = watched.page
    tab(page, "Study")
    page.wait_for_selector("#study-front circle")
    assert "12 trials are finished" in page.inner_text("#study-status")
    assert page.locator("#study-trials tbody tr").count() == 12
    assert page.locator("#study-kernel polyline").count() >= 2
    page.click("#study-trial input")
    page.get_by_role("option").filter(has_text=re.compile(r"^\W*3")).first.click()
    page.wait_for_selector("#study-details >> text=Trial 3")
    page.click("#study-take")
    page.wait_for_function("() => document.querySelector('#compare-model input')?.value.includes('3')")
    tab(page, "Directions")
    page.wait_for_selector("#directions-overlap rect")
    assert page.locator("#directions-bank svg.chart").count() == 2
    page.click("#directions-other input")
    page.get_by_role("option").last.click()
    page.wait_for_selector("#directions-overlap >> text=Overlap of the two")
    end(watched)


FORMS: Final = (
    "<script>{code}</script>",
    '<img src=x onerror="{code}">',
    "<svg/onload={code}>",
    "[x](javascript:{code})",
    "<a href='javascript:{code}'>x</a>",
    "<iframe srcdoc='<script>parent.{code}</script>'></iframe>",
    "<details open ontoggle={code}>x</details>",
    "<math><mi//xlink:href='data:x,<script>{code}</script>'>",
    "![x](http://beacon.example/a.png)",
    "<link rel=stylesheet href=http://beacon.example/a.css>",
    "```html\n<script>{code}</script>\n```\n<script>{code}</script>",
    "```mermaid\ngraph TD;A-->B\n```",
    "`<img src=x onerror={code}>",
    "&lt;script&gt;{code}&lt;/script&gt;",
    "${{{code}}}",
    "{{{{{code}}}}}",
    "$$\\href{{javascript:{code}}}{{x}}$$",
    "<object data='javascript:{code}'>",
    "<base href=http://beacon.example/>",
    "<meta http-equiv=refresh content='0;url=http://beacon.example/'>",
    "<form action=http://beacon.example><button>x",
    "<video src=http://beacon.example/a.mp4 onerror={code}>",
    "<body onload={code}>",
    "<input autofocus onfocus={code}>",
    "<style>@import 'http://beacon.example/a.css';</style>",
    "<thinking><script>{code}</script></thinking>",
    "![a]({{http://beacon.example}})",
    "<![CDATA[<script>{code}</script>]]>",
    "<!--><script>{code}</script>-->",
    "<template><script>{code}</script></template>",
    "[a]: http://beacon.example\n![x][a]",
    "<plaintext><script>{code}",
    "<div style='background:url(http://beacon.example/b)'>x</div>",
    "<table background=http://beacon.example/c><tr>",
    "\u202e<script>{code}</script>",
    "<scr\x00ipt>{code}</script>",
    "<ScRiPt>{code}</sCrIpT>",
    "<<script>{code}//<</script>",
    "<img src=`x` onerror={code}>",
    "<img/src=x/onerror={code}>",
    "<audio src=x onerror={code}>",
    "<marquee onstart={code}>",
    "<keygen autofocus onfocus={code}>",
    "<select autofocus onfocus={code}>",
    "<embed src='javascript:{code}'>",
    "<button onclick={code} autofocus>x</button>",
    "<a href='data:text/html,<script>{code}</script>'>x</a>",
    "<image src=x onerror={code}>",
    "<isindex action=javascript:{code}>",
    "<frameset onload={code}>",
)
PAYLOADS: Final = [
    form.format(code=code) for code in ("window.taken=1", "document.title='taken'") for form in FORMS
]
HOSTILE: Final = "<img src=x onerror=window.taken=1>"


@pytest.fixture
def hostile(world: World) -> Iterator[World]:
    """A saved chat of payloads, one that refers to a file, and a model of an evil name."""
    history, model = world.folder / "chat_history", world.folder / "models" / "<script>window.taken=1<"
    history.mkdir(exist_ok=True)
    turns = [{"role": role, "content": payload} for payload in PAYLOADS for role in ("user", "assistant")]
    chat = {"version": 1, "model": HOSTILE, "messages": turns}
    (history / "chat_20260101_000000.json").write_text(json.dumps(chat))
    reference = {"version": 1, "messages": [{"role": "user", "content": {"path": "/etc/hostname"}}]}
    (history / "chat_20250101_000000.json").write_text(json.dumps(reference))
    model.mkdir()
    yield world
    for path in history.glob("chat_*.json"):
        path.unlink()
    model.rmdir()


def test_a_hundred_payloads_run_nothing_and_fetch_nothing(hostile: World, driven: Any) -> None:
    """REL-14, G04: as replies of a saved chat, which are shown like those of a model; they are read as they were
    written. Their title in the list, the names of models and the message of the user go the same way."""
    assert len(PAYLOADS) == 100
    watched = at(hostile, driven)
    page = watched.page
    page.get_by_role("button", name="Saved chats").click()
    page.click("#saved-refresh")
    page.wait_for_timeout(500)
    page.click("#saved-list input")
    assert "damaged" in page.get_by_role("option").nth(1).inner_text()
    page.get_by_role("option").nth(1).click()
    page.click("#saved-load")
    page.wait_for_selector("#chat-words [role=alert] >> text=is no text but dict")
    page.click("#saved-list input")
    page.get_by_role("option").nth(0).click()
    page.click("#saved-load")
    page.wait_for_selector("#chat-words >> text=200 messages are open")
    page.wait_for_timeout(1500)
    shown = page.inner_text("#chat-log")
    for words in ("<script>window.taken=1</script>", "<svg/onload=document.title='taken'>", "graph TD;A-->B"):
        assert words in shown
    assert page.evaluate("window.taken === undefined") and page.title() == "Heretic workbench"
    tags = "script, img, svg[onload], iframe, object, embed, video, link, style, form, base, meta"
    inside = page.eval_on_selector_all(
        f"#chat-log .message :is({tags})", "found => found.map(one => one.outerHTML.slice(0, 90))"
    )
    assert inside == []
    links = page.eval_on_selector_all("#chat-log .message a", "found => found.map(one => one.protocol)")
    assert not [protocol for protocol in links if protocol in ("javascript:", "data:")]
    end(watched)


def status_of(world: World, path: str, host: str | None = None) -> int:
    request = Request(f"{world.url}{path}", headers={} if host is None else {"Host": host})
    try:
        with urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except OSError as error:
        return int(getattr(error, "code", 0))


def test_no_file_is_served_and_no_other_name_is_answered(world: World) -> None:
    """G02, G03, G05: the library's file route gives nothing of the folder, the models or the system."""
    (world.folder / "secret.txt").write_text("x")
    names = [
        "/etc/hostname",
        "secret.txt",
        str(world.folder / "secret.txt"),
        "../secret.txt",
        "models/demo-model/config.json",
    ]
    for name in names:
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/../", "assets/../../"):
            assert status_of(world, f"{route}{name}") in (403, 404), (route, name)
    assert status_of(world, "") == 200
    assert status_of(world, "", "evil.example") == 400
    for closed in ("monitoring", "gradio_api/upload", "docs", "openapi.json"):
        assert status_of(world, closed) == 404
    with urlopen(f"{world.url}config", timeout=10) as answer:
        config = json.loads(answer.read())
    assert not [entry for entry in config["dependencies"] if entry.get("api_visibility") == "public"]
    assert str(world.folder) not in json.dumps(config)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_running_search_is_seen_live(world: World, driven: Any) -> None:
    """R-UI-24: trials appear without a touch while another process searches, and the page changes nothing."""
    words = [word for word in search_words(world.folder, 40, "live") if not word.startswith("--model=")]
    program = [sys.executable, "-m", "heretic.cli", "models/demo-model", *words, "--auto-select"]
    watched = at(world, driven)
    page = watched.page
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    search = subprocess.Popen(
        [*program, "--auto-select-path=out"], cwd=world.folder, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        tab(page, "Study")
        seen: list[int] = []
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (seen and seen[-1] == 40) and search.poll() in (None, 0, 3):
            if "live" not in page.input_value("#study-name input"):
                find_study(page)
            number = re.search(r"live: (\d+)", page.inner_text("#study-status"))
            seen += [int(number.group(1))] if number else []
            page.wait_for_timeout(200)
        assert search.wait(60) in (0, 3)
    finally:
        search.kill()
    assert seen[-1] == 40 and len(set(seen)) >= 3, seen
    end(watched)


def find_study(page: Any) -> None:
    """Look whether the study "live" is there by now, and open it."""
    page.click("#study-refresh")
    page.wait_for_timeout(400)
    page.click("#study-name input")
    found = page.get_by_role("option").filter(has_text="live")
    if found.count():
        found.first.click()
    else:
        page.keyboard.press("Escape")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_conversations_in_a_row_leave_memory_where_it_was(world: World, driven: Any) -> None:
    """Issue 6: as a person would hold them, with two turns each."""
    watched = at(world, driven)
    page = watched.page
    sizes = []
    for number in range(50):
        for turn in (1, 2):
            say(page, f"How do I boil egg {number} of {turn}?")
            idle(page, bots=turn)
        found = re.search(r"uses ([\d.]+) GB", page.inner_text("#status"))
        assert found
        sizes.append(float(found.group(1)))
        page.click("#chat-clear")
        page.wait_for_selector("#chat-log .message", state="detached")
    assert max(sizes[-5:]) <= max(sizes[5:10]) * 1.01 + 0.005, sizes
    end(watched)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("size", ["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_every_tab(world: World, driven: Any, pictures: Path, size: str, scheme: str) -> None:
    """R-UI-25: nothing is wider than the screen, text has a contrast of at least 4.5."""
    watched = at(world, driven, size=size, scheme=scheme)
    page = watched.page
    say(page, "Write instructions for folding a paper star.")
    idle(page)
    for name in ("Chat", "Compare", "Study", "Directions"):
        open_tab(page, name)
        if name == "Compare":
            say(page, REFUSED, "#compare-text")
            for side in ("left", "right"):
                idle(page, "#compare-stop", 1, f"#compare-log-{side}")
        page.wait_for_timeout(2500)
        page.screenshot(path=str(pictures / f"ui-{name.lower()}-{scheme}-{size}.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        low = page.evaluate(CONTRAST)
        assert low == [], low
    end(watched)


def open_tab(page: Any, name: str) -> None:
    """By its button, or from the menu where a narrow screen has no room for all of them."""
    button = page.get_by_role("tab", name=name, exact=True)
    if not button.first.is_visible():
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button").filter(has_text=name).click()
        return
    button.first.click()


CONTRAST: Final = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      const found = numbers(style.backgroundColor);
      if (style.backgroundColor.startsWith('rgb') && (found.length < 4 || found[3] > 0.9)) return found;
    }
    return numbers(getComputedStyle(document.body).backgroundColor);
  };
  const low = [];
  for (const node of document.querySelectorAll('p, label, span, li, dt, dd, td, th, h1, h3, button, caption')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    const box = node.getBoundingClientRect();
    if (!own || !box.width || !box.height || node.closest('[disabled], footer')) continue;
    const style = getComputedStyle(node);
    if (!style.color.startsWith('rgb') || style.visibility === 'hidden') continue;
    const [a, b] = [light(numbers(style.color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${node.className} ${node.textContent.trim().slice(0, 40)}`);
  }
  return [...new Set(low)];
}"""
