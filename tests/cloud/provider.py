# SPDX-License-Identifier: Apache-2.0
"""A provider of machines on 127.0.0.1, with the shapes of the real one's answers, scripted faults and a clock (T7).

It keeps the truth: which instances exist, what each costs, who was asked to do what. Tests compare what the program
says with that truth.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

KEY: Final = "canary-key-0123456789abcdef-SECRET"
SCOPED: Final = "scoped-key-of-"


class FakeClock:
    """Time that goes by only when somebody waits. `at` runs things when their moment comes."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self.waited = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(0.0, seconds)
        self.waited += max(0.0, seconds)
        for moment, action in sorted(self._due, key=lambda entry: entry[0]):
            if moment <= self._now:
                self._due.remove((moment, action))
                action()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Run `action` once the clock has gone on by that much."""
        self._due.append((self._now + seconds, action))


@dataclass
class Fault:
    """One thing that goes wrong: the `skip`-th and following `times` requests that match."""

    method: str
    path: str
    kind: str
    body: str = ""
    status: int = 200
    times: int = 1
    skip: int = 0


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    query: str
    authorised: bool
    body: Any


@dataclass
class FakeProvider:
    """The account of one user, with a market."""

    clock: Any
    offers: list[dict[str, Any]] = field(default_factory=list)
    instances: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    scoped: dict[str, int] = field(default_factory=dict)
    loading_s: float = 40.0
    stopping_s: float = 5.0
    page: int = 25
    address: tuple[str, int] = ("127.0.0.1", 1)
    next_id: int = 7001
    created: int = 0
    charged: float | None = None
    never: set[str] = field(default_factory=set)
    _server: ThreadingHTTPServer | None = None

    # The world

    def offer(self, identity: int = 501, **changes: Any) -> dict[str, Any]:
        """Put an offer on the market."""
        entry = {
            "id": identity, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "disk_space": 800.0,
            "dph_base": 0.30, "dph_total": 0.31, "storage_cost": 0.15, "inet_down": 850.0, "cuda_max_good": 12.9,
            "driver_version": "575.51.03", "reliability2": 0.997, "verified": True, "geolocation": "Testland",
            "machine_id": 90 + identity, "rentable": True,
        }  # fmt: skip
        entry.update(changes)
        self.offers.append(entry)
        return entry

    def instance(
        self, identity: int, label: str | None = None, status: str = "running", **changes: Any
    ) -> int:
        """Put an instance into the account, as if somebody had rented it before."""
        entry = {
            "id": identity, "label": label, "actual_status": status,
            "cur_state": "running" if status not in ("stopped", "exited") else "stopped",
            "intended_status": status, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "disk_space": 75.0,
            "dph_total": 0.31, "storage_cost": 0.15, "ssh_host": self.address[0], "ssh_port": self.address[1],
            "status_msg": "", "machine_id": 17, "uptime_mins": 987654,
        }  # fmt: skip
        entry.update(changes)
        self.instances[identity] = entry
        return identity

    def fault(self, method: str, path: str, kind: str, **rest: Any) -> None:
        """Let something go wrong; see `Handler._faulty` for the kinds."""
        self.faults.append(Fault(method, path, kind, **rest))

    def writes(self, method: str = "", path: str = "") -> list[Seen]:
        """Requests that would change something."""
        return [
            seen
            for seen in self.requests
            if (seen.method in ("PUT", "DELETE") or "/ssh/" in seen.path)
            and (not method or seen.method == method)
            and path in seen.path
        ]

    # What the requests do

    def rent(self, offer: int, body: dict[str, Any]) -> int:
        """A new instance; it loads, then runs."""
        market = next((entry for entry in self.offers if entry["id"] == offer), None)
        price = market["dph_base"] + market["storage_cost"] * body["disk"] / 720 if market else 0.31
        identity = self.next_id
        self.next_id += 1
        self.created += 1
        self.instance(identity, body.get("label"), "loading", disk_space=float(body["disk"]))
        entry = self.instances[identity]
        entry.update(
            cur_state="running",
            dph_total=price if self.charged is None else self.charged,
            onstart=body["onstart"],
        )
        if "run" not in self.never:
            self.later(self.loading_s, lambda: entry.update(actual_status="running"))
        return identity

    def change(self, identity: int, state: str) -> None:
        """Pause or start; the state follows later."""
        entry = self.instances[identity]
        entry["intended_status"] = state
        if state == "stopped" and "stop" not in self.never:
            self.later(self.stopping_s, lambda: entry.update(actual_status="exited", cur_state="stopped"))
        elif state == "running" and "run" not in self.never:
            entry.update(actual_status="loading", cur_state="running")
            self.later(self.loading_s, lambda: entry.update(actual_status="running"))

    def destroy(self, identity: int) -> None:
        """The end of an instance."""
        if "destroy" not in self.never:
            self.later(self.stopping_s, lambda: self.instances.pop(identity, None))

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """Run something when the clock has gone on; at once without a clock of ours."""
        if seconds <= 0 or not isinstance(self.clock, FakeClock):
            action()
        else:
            self.clock.at(seconds, lambda: (action(), None)[1])

    # The server

    def start(self) -> str:
        """Serve; the base address."""
        provider = self

        class Bound(Handler):
            world = provider

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Stop serving."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    world: FakeProvider
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        body = json.loads(raw) if raw else None
        parts = urlsplit(self.path)
        bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        allowed = bearer == KEY or bearer in self.world.scoped
        self.world.requests.append(Seen(self.command, parts.path, parts.query, allowed, body))
        if not allowed:
            self._answer(401, {"success": False, "error": "auth_error", "msg": f"bad key {bearer[:3]}"})
            return
        fault = self._matching(parts.path)
        if fault is not None and self._faulty(fault, parts.path, parts.query, body):
            return
        self._answer(*self._do(parts.path, parts.query, body, bearer))

    def _matching(self, path: str) -> Fault | None:
        for fault in self.world.faults:
            if fault.times > 0 and fault.method in ("", self.command) and fault.path in path:
                if fault.skip > 0:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    def _faulty(self, fault: Fault, path: str, query: str, body: Any) -> bool:
        """True when the answer (or its absence) was given here."""
        kind = fault.kind
        if kind.endswith("after"):
            self._do(path, query, body, KEY)
        if kind.startswith("drop"):
            self.connection.close()
        elif kind.startswith("stall"):
            time.sleep(0.8)
        elif kind.startswith("trickle"):
            self._trickle()
        elif kind.startswith("text"):
            self._raw(fault.status, fault.body.encode())
        elif kind.startswith("cut"):
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"success": tr')
            self.wfile.flush()
            self.connection.close()
        elif kind == "lie":
            self._answer(200, {"success": True, "new_contract": 987_654})
        elif kind == "double":
            self._do(path, query, body, KEY)
            return False
        else:
            raise AssertionError(kind)
        return True

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(40):
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)

    def _do(self, path: str, query: str, body: Any, bearer: str) -> tuple[int, Any]:
        match = re.fullmatch(r"/api/(v\d+)/(bundles|asks|instances)/(?:(\d+)/)?(ssh/)?", path)
        if match is None:
            return 404, {"success": False, "error": "no_such_url", "msg": "no such address"}
        version, kind, number, ssh = match.groups()
        if version in self.world.retired and kind == "instances":
            return 410, {"success": False, "error": "gone", "msg": "this version is retired"}
        if bearer in self.world.scoped and (
            kind != "instances" or not number or int(number) != self.world.scoped[bearer]
        ):
            return 403, {"success": False, "error": "forbidden", "msg": "not with this key"}
        if kind == "bundles":
            return 200, {"success": True, "offers": self.world.offers}
        if kind == "asks":
            return 200, {"success": True, "new_contract": self.world.rent(int(number), body)}
        if number is None:
            return 200, self._page(version, query)
        return self._instance(int(number), bool(ssh), body)

    def _instance(self, identity: int, ssh: bool, body: Any) -> tuple[int, Any]:
        if identity not in self.world.instances:
            return 404, {"success": False, "error": "no_such_instance", "msg": "no such instance"}
        self.world.touched.add(identity)
        if ssh:
            self.world.instances[identity]["keys"] = body["ssh_key"]
        elif self.command == "DELETE":
            self.world.destroy(identity)
        elif self.command == "PUT":
            self.world.change(identity, body["state"])
        return 200, {"success": True}

    def _page(self, version: str, query: str) -> dict[str, Any]:
        entries = [entry for _, entry in sorted(self.world.instances.items())]
        if version == "v0":
            return {"instances_found": len(entries), "instances": entries}
        begin = int(parse_qs(query).get("after_token", ["0"])[0])
        end = begin + self.world.page
        return {
            "success": True,
            "total_instances": len(entries),
            "instances": entries[begin:end],
            "next_token": str(end) if end < len(entries) else None,
        }

    def _answer(self, status: int, document: Any) -> None:
        self._raw(status, json.dumps(document).encode())

    def _raw(self, status: int, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            return
