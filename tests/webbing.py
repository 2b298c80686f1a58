"""What the tests of the dashboard share: a root with runs that need no daemon, and a signed-in browser of sorts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from starlette.testclient import TestClient

from pop.settings import Root, load_settings
from pop.web.app import cookie_name, create_app
from pop.web.keys import Keys, cookie_of, csrf_of

HOST = "http://127.0.0.1:7670"


def make_root(path: Path, settings: str = "") -> Root:
    """A root of one step, without a daemon."""
    root = Root(path)
    for folder in (root.tasks, root.rejected, root.current, root.complete, root.machine_room):
        folder.mkdir(parents=True, exist_ok=True)
    (path / "pipeline.json").write_text('{"name": "brief", "tasks": ["one"]}')
    (root.tasks / "one.py").write_text("def infer(prompt, ctx):\n    return {}\n")
    (path / "pop.toml").write_text(settings)
    return root


def run_id(number: int, name: str = "brief") -> str:
    return f"20261121-{number // 3600 % 24:02d}{number // 60 % 60:02d}{number % 60:02d}-{name}-{number:04x}"


def record(number: int, **about: Any) -> dict[str, Any]:
    """A line of runs.jsonl."""
    identity = run_id(number)
    at = f"2026-11-21T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000Z"
    usage = {"calls": 2, "input_tokens": 100, "output_tokens": 20, "cost_usd": 0.01}
    return {
        "run_id": identity, "name": f"brief {number}", "pipeline": "brief", "state": "complete", "created_at": at,
        "started_at": at, "finished_at": at, "seconds": 1.5, "tasks": ["one"], "attempts": 1, "refinements": 0,
        "usage": usage, "models": ["fast"], "path": f"pipeline-complete/{identity}", **about,
    }  # fmt: skip


def write_ledger(root: Root, *records: dict[str, Any], mode: str = "a") -> None:
    with open(root.ledger, mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in records)


def put_status(root: Root, number: int, state: str = "running", **about: Any) -> Path:
    """A run in pipeline-current/, as its status tells."""
    row = record(number)
    run_dir = root.current / str(row["run_id"])
    run_dir.mkdir(exist_ok=True)
    status = {
        "schema_version": 1, "run_id": row["run_id"], "name": row["name"], "pipeline": "brief", "state": state,
        "created_at": row["created_at"], "started_at": row["created_at"], "updated_at": row["created_at"],
        "finished_at": None, "progress": 0.5, "current": ["one"], "waiting_for": None, "error": None, "notes": [],
        "usage": {}, "tasks": {"one": {"state": "running"}}, **about,
    }  # fmt: skip
    (run_dir / "events.jsonl").touch()
    draft = run_dir / ".draft"
    draft.write_text(json.dumps(status))
    os.rename(draft, run_dir / "tasks-status.json")
    return run_dir


@contextlib.contextmanager
def web_client(root: Root, *, token: bool = True, signed_in: bool = True) -> Iterator[TestClient]:
    """The application behind its guard, in this process; `client.csrf` is what a form must bring."""
    app = create_app(root, load_settings(root), token=token)
    with TestClient(app, base_url=HOST, follow_redirects=False, raise_server_exceptions=False) as client:
        given = cookie_of(Keys(root.machine_room).mint()) if token else "0" * 64
        if signed_in:
            client.cookies.set(cookie_name(root), given)
        client.headers["accept"] = "text/html"
        client.csrf = csrf_of(given)  # type: ignore[attr-defined]
        yield client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`pop web` in a process of its own."""

    def __init__(self, root: Root, *arguments: str, port: int | None = None, code: str | None = None) -> None:
        self.root = root
        self.port = port or free_port()
        self.log = root.path / "web.log"
        with open(self.log, "ab") as log:
            start = ["-c", code] if code else ["-m", "pop"]
            command = [sys.executable, *start, "--root", str(root.path), "web", "--port", str(self.port), *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until_served(self.url, self.process, self.log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **about: Any) -> httpx2.Client:
        """A browser that came by a link."""
        cookie = cookie_of(Keys(self.root.machine_room).mint())
        headers = {"accept": "text/html", "cookie": f"{cookie_name(self.root)}={cookie}"}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=20, **about)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End it; returns the seconds that took."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(20)
        return time.monotonic() - began


def wait_until_served(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """The port is open before the application is there."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.get(f"{url}/favicon.ico", trust_env=False, timeout=30)
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def web_server(root: Root, *arguments: str, port: int | None = None, code: str | None = None) -> Iterator[Server]:
    """A server that ends with the test; `code` stands for `pop`."""
    server = Server(root, *arguments, port=port, code=code)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def events_of(
    client: httpx2.Client, path: str, *, most: int, seconds: float = 10, **about: Any
) -> list[dict[str, str]]:
    """The first events of a stream: ``{"id", "event", "data"}``."""
    found: list[dict[str, str]] = []
    one: dict[str, str] = {}
    give_up = time.monotonic() + seconds
    with contextlib.suppress(httpx2.ReadTimeout), client.stream("GET", path, timeout=seconds, **about) as response:
        assert response.status_code == 200, response.status_code
        for line in response.iter_lines():
            name, colon, value = line.partition(": ")
            if not line and "event" in one:
                found.append(one)
                if len(found) >= most:
                    break
                one = {}
            elif colon and name in ("id", "event", "data"):
                one[name] = one[name] + "\n" + value if name in one and name == "data" else value
            if time.monotonic() > give_up:
                break
    return found


def ids_of(html: str) -> list[str]:
    """The runs a page shows, in order."""
    return list(dict.fromkeys(re.findall(r'href="/runs/([^"/?]+)"', html)))
