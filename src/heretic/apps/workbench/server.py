# SPDX-License-Identifier: Apache-2.0
"""Serving the page: on this machine unless asked otherwise, from an empty folder, with a password where others can
reach it (requirements R-UI-20, reliability G01)."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from heretic.apps.discovery import Places
from heretic.apps.history import ChatHistory
from heretic.apps.main_thread import MainThread
from heretic.apps.manager import ModelManager
from heretic.apps.workbench.desk import Desk
from heretic.console import Console
from heretic.exceptions import ConfigurationError, FileOperationError
from heretic.logs import tame_progress_bars
from heretic.model.loading import LoadOptions
from heretic.stop import interruptible

LOCAL: Final = frozenset({"127.0.0.1", "localhost", "::1"})
PORTS_TRIED: Final = 50
PAGES_KEPT: Final = 32
"""Open pages that the library remembers, the oldest are forgotten first: each holds about 1 MB of it."""
LIBRARY_SETTINGS: Final = {
    # The library reads these when it is imported; nothing of its own leaves the machine.
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How the page is served. auth: USER:PASS; generated where others can reach the page and none is given."""

    places: Places
    history: Path
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    auth: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    offline: bool = False
    files: Path = Path()


@dataclass(slots=True, eq=False)
class Served:
    """A running page. url: where; login: (user, password) or None; close: end it."""

    url: str
    login: tuple[str, str] | None
    shared: str | None
    work: MainThread
    page: Any
    folder: Path
    ended: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Stop serving; repeating is harmless."""
        self.ended.set()
        self.page.close(verbose=False)


def require_gradio() -> None:
    """Raise `ConfigurationError` where the extra `chat` is not installed; loads nothing."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigurationError(
            "the page needs gradio, which is not installed", hint="pip install 'heretic-workbench[chat]'"
        )


def check_options(options: Options) -> tuple[Options, tuple[str, ...]]:
    """The options with a login where one is needed, and sentences of warning.

    Raises `ConfigurationError` for a login without user or password, `FileOperationError` for a port that is taken,
    naming the next free one.
    """
    warnings: list[str] = []
    if options.auth is not None and (
        not options.auth.partition(":")[0] or not options.auth.partition(":")[2]
    ):
        raise ConfigurationError("--auth is not USER:PASS", hint="Write it as --auth NAME:PASSWORD.")
    reachable = options.share or options.host not in LOCAL
    if reachable:
        warnings.append(
            "The page can be reached from other machines: whoever knows the password can use this model and read "
            "and delete saved chats."
        )
        if options.auth is None:
            options = replace(options, auth=f"heretic:{secrets.token_urlsafe(12)}")
            warnings.append("No --auth was given, so a password was made.")
    if not _is_free(options.host, options.port):
        other = next_free(options.host, options.port)
        hint = "Choose another one with --port." if other is None else f"Use --port {other}, which is free."
        raise FileOperationError(f"the port {options.port} of {options.host} is taken", hint=hint)
    return options, tuple(warnings)


def _is_free(host: str, port: int) -> bool:
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except socket.gaierror as error:
        raise ConfigurationError(f"{host!r} is no address of this machine", hint="Use 127.0.0.1.") from error
    except OSError:
        return False
    return True


def next_free(host: str, port: int) -> int | None:
    """The next port above that can be taken; None when there is none near."""
    last = min(65535, port + PORTS_TRIED)
    return next((other for other in range(port + 1, last + 1) if _is_free(host, other)), None)


def allowed_hosts(options: Options) -> frozenset[str] | None:
    """Names under which the server answers; None = any, for a shared link, whose name is not known before."""
    if options.share:
        return None
    names = {*LOCAL, options.host.lower()}
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(options.host).is_unspecified:
            return None
    return frozenset(names)


@contextlib.contextmanager
def served(options: Options) -> Iterator[Served]:
    """The page while the context lasts. The working folder is an empty private one meanwhile: the library serves
    files of it when it is told to by a message (reliability G03)."""
    require_gradio()
    here = Path.cwd()
    options = _absolute(options, here)
    with tempfile.TemporaryDirectory(prefix="heretic-page-") as name:
        folder = Path(name)
        (folder / "empty").mkdir(mode=0o700)
        os.environ.update(LIBRARY_SETTINGS, GRADIO_TEMP_DIR=str(folder / "files"))
        os.chdir(folder / "empty")
        try:
            running = _launched(options, folder)
            try:
                yield running
            finally:
                running.close()
        finally:
            os.chdir(here)


def _absolute(options: Options, here: Path) -> Options:
    places = options.places
    named = {
        label: str(here / where) if (here / Path(where).expanduser()).is_dir() else where
        for label, where in places.named.items()
    }
    storage = places.storage
    if storage and storage.startswith("sqlite:///") and not storage.startswith("sqlite:////"):
        storage = f"sqlite:///{here / storage.removeprefix('sqlite:///')}"
    return replace(
        options,
        places=replace(
            places, models_dir=here / places.models_dir, named=named, storage=storage, base=here / places.base
        ),
        history=here / options.history,
        files=here / options.files,
    )


def _launched(options: Options, folder: Path) -> Served:
    from starlette.middleware import Middleware

    from heretic.apps.workbench.guard import Guard
    from heretic.apps.workbench.page import build_page
    from heretic.apps.workbench.theme import CSS, theme

    work = MainThread()
    manager = ModelManager(options.places, options.load, offline=options.offline, run=work.run)
    page = build_page(Desk(manager, ChatHistory(options.history)), options.places.storage, options.files)
    page.queue(max_size=64, api_open=False)
    login = None
    if options.auth is not None:
        user, _, password = options.auth.partition(":")
        login = (user, password)
    _, url, shared = page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=login,
        theme=theme(),
        css=CSS,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        inbrowser=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        num_workers=0,
        footer_links=[],
        allowed_paths=[],
        blocked_paths=["/"],
        state_session_capacity=PAGES_KEPT,
        app_kwargs={
            "middleware": [Middleware(Guard, hosts=allowed_hosts(options))],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    )
    return Served(str(url), login, shared, work, page, folder)


def serve(options: Options, console: Console) -> None:
    """Serve until Ctrl-C. Says where the page is; the main thread loads models and renders templates meanwhile."""
    tame_progress_bars(terminal=False)
    options, warnings = check_options(options)
    for line in warnings:
        console.warn(line)
    with interruptible(), contextlib.suppress(KeyboardInterrupt), served(options) as running:
        console.result(running.shared or running.url)
        console.document({"url": running.url, "shared": running.shared})
        if running.login is not None:
            console.note(f"User {running.login[0]}, password {running.login[1]}")
        console.note("Ctrl-C ends it.")
        running.work.serve(running.ended)
