"""Pages that stay current, and the process that keeps them so: replay, restarts, kills, quick ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pexpect
import psutil
import pytest

from pop.settings import Root
from pop.web.app import cookie_name
from pop.web.keys import Keys, cookie_of
from pop.web.live import EVERY_S
from tests import warm
from tests.living import LivingRoot
from tests.webbing import Server, events_of, free_port, make_root, put_status, record, run_id, web_server, write_ledger


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = make_root(tmp_path)
    write_ledger(root, record(1))
    with web_server(root) as made:
        yield made


def mark_of(client: httpx2.Client) -> str:
    """Where a page that was just loaded stands."""
    found = re.search(r'data-mark="([^"]+)"', client.get("/").text)
    assert found
    return found[1]


def settled_mark(client: httpx2.Client) -> str:
    """The same, when the first look at everything is over."""
    mark = ""
    while (now := mark_of(client)) != mark:
        mark = now
        time.sleep(1.0)
    return mark


def test_a_page_is_told_what_changed_and_nothing_else(server: Server) -> None:
    """One event with the fragments that differ; its id is where the page then stands. The first that a page is told is
    all of them: it was made by itself, perhaps a moment before what is shown under the same mark."""
    with server.client() as client:
        mark = settled_mark(client)
        threading.Timer(1.0, lambda: put_status(server.root, 2)).start()
        threading.Timer(3.0, lambda: put_status(server.root, 3)).start()
        first, second = events_of(client, f"/live/board?after={mark}", most=2, seconds=12)
        assert first["event"] == "fragments" and first["id"] != mark
        assert 'id="notes"' in first["data"] and run_id(2) in first["data"]
        assert 'id="runs"' in second["data"] and run_id(3) in second["data"]
        assert 'id="notes"' not in second["data"]
        assert mark_of(client) == second["id"]


def test_a_page_that_is_current_is_told_nothing(server: Server) -> None:
    """Neither by the address nor by the header that browsers send when they come back."""
    with server.client() as client:
        mark = settled_mark(client)
        assert events_of(client, f"/live/board?after={mark}", most=1, seconds=2.5) == []
        assert events_of(client, "/live/board", most=1, seconds=2.5, headers={"last-event-id": mark}) == []


def test_what_was_missed_is_told_also_by_another_process(server: Server) -> None:
    """A page that comes back after the server was killed gets what changed meanwhile; else its mark still holds."""
    with server.client() as client:
        mark = settled_mark(client)
    server.stop(signal.SIGKILL)
    with web_server(server.root, port=server.port) as again, again.client() as client:
        assert settled_mark(client) == mark
        assert events_of(client, f"/live/board?after={mark}", most=1, seconds=2.5) == []
    put_status(server.root, 3, "waiting", waiting_for="sign-off")
    with web_server(server.root, port=server.port) as again, again.client() as client:
        events = events_of(client, "/live/board", most=1, headers={"last-event-id": mark})
        assert run_id(3) in events[0]["data"] and "sign-off" in events[0]["data"]
        unknown = events_of(client, "/live/board?after=none-such", most=1)
        assert run_id(3) in unknown[0]["data"]


def test_many_changes_make_few_events(server: Server) -> None:
    """At most two a second and page, however much happens."""
    over = threading.Event()

    def change() -> None:
        for number in range(10_000):
            put_status(server.root, 5, progress=number / 10_000)
            if over.wait(0.005):
                return

    with server.client() as client:
        settled_mark(client)
        thread = threading.Thread(target=change)
        thread.start()
        began = time.monotonic()
        events = events_of(client, "/live/board", most=1000, seconds=4)
        took = time.monotonic() - began
        over.set()
        thread.join()
    assert 2 <= len(events) <= took / EVERY_S + 2


def test_a_reader_that_left_is_forgotten(server: Server) -> None:
    """And with the last one the looking ends: a server nobody looks at does nothing."""
    process = psutil.Process(server.process.pid)
    with server.client() as client:
        for _ in range(20):
            events_of(client, "/live/board", most=1, seconds=0.3)
    time.sleep(3)
    before = sum(process.cpu_times()[:2])
    put_status(server.root, 9)
    time.sleep(3)
    assert sum(process.cpu_times()[:2]) - before < 0.2
    assert len([c for c in process.net_connections("tcp") if c.status == "ESTABLISHED"]) == 0


def test_it_ends_at_once_with_open_streams(server: Server) -> None:
    """One signal is enough, and the exit code says that it was asked to."""
    with _reading(server, 20):
        assert server.stop() < 5.0
    assert server.process.returncode == 0


@contextlib.contextmanager
def _reading(server: Server, count: int) -> Iterator[None]:
    def read() -> None:
        with (
            contextlib.suppress(httpx2.HTTPError),
            server.client() as client,
            client.stream("GET", "/live/board", timeout=20) as response,
        ):
            for _ in response.iter_lines():
                pass

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    yield
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()


def test_a_reader_that_takes_nothing_stops_no_other(server: Server) -> None:
    """Its connection fills up, and the others go on."""
    cookie = f"{cookie_name(server.root)}={cookie_of(Keys(server.root.machine_room).mint())}"
    deaf = []
    for _ in range(10):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", server.port))
        one.sendall(f"GET /live/board HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n".encode())
        deaf.append(one)
    for number in range(10, 60):
        put_status(server.root, number)
    with server.client() as client:
        later = threading.Timer(2.0, lambda: put_status(server.root, 70))
        later.start()
        events = events_of(client, "/live/board", most=3, seconds=6)
        assert any(run_id(70) in event["data"] for event in events)
    for one in deaf:
        one.close()


# -- pop web ---------------------------------------------------------------------------------------------------------


def pop(*arguments: str, cwd: Path) -> Any:
    return warm.pop(arguments, cwd=cwd)


def test_a_port_that_is_taken_is_a_message(server: Server) -> None:
    """With the next move."""
    told = pop("web", "--port", str(server.port), cwd=server.root.path)
    assert told.returncode == 3 and "not-listening" in told.stderr and "pop web --url" in told.stderr


def test_a_link_can_be_had_at_any_time(server: Server) -> None:
    """It is data, and goes to stdout; it opens the server that runs."""
    told = pop("web", "--port", str(server.port), "--url", cwd=server.root.path)
    link = told.stdout.strip()
    assert re.fullmatch(rf"http://127\.0\.0\.1:{server.port}/\?token=[\w-]{{32}}", link)
    assert httpx2.get(link, trust_env=False).status_code == 200


def test_beyond_loopback_is_warned_about_and_closed(tmp_path: Path) -> None:
    """Also where the settings let everybody in, which they say of loopback."""
    root = make_root(tmp_path, "[web]\ntoken = false\n")
    with web_server(root, "--host", "0.0.0.0") as served:
        assert "warning: other machines can reach 0.0.0.0" in served.log.read_text()
        assert httpx2.get(served.url, trust_env=False).status_code == 401
        with served.client() as client:
            assert client.get("/", headers={"host": "192.168.7.7:7670"}).status_code == 200
            assert client.get("/", headers={"host": "evil.example"}).status_code == 421


# -- pop up ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def living(make_living: Callable[..., LivingRoot]) -> LivingRoot:
    settings = f"[web]\nport = {free_port()}\n"
    pipeline = {"name": "brief", "tasks": ["one"]}
    return make_living(
        pipeline=pipeline, tasks={"one.py": "def infer(prompt, ctx):\n    return {}\n"}, settings=settings
    )


def up(living: LivingRoot) -> Any:
    """`pop up` on a terminal."""
    import sys

    command = ["-m", "pop", "--root", str(living.path), "up"]
    child = pexpect.spawn(
        sys.executable, command, encoding="utf-8", timeout=40, dimensions=(40, 220), env={**os.environ, "NO_COLOR": "1"}
    )
    child.logfile_read = open(living.path / "daemon.log", "w")  # what `living.wait` shows
    return child


def link_of(child: Any) -> str:
    child.expect(r"dashboard: (http\S+)")
    return str(child.match[1])


def web_pid(daemon: int) -> int | None:
    """The web process below a daemon."""
    for process in psutil.Process(daemon).children():
        with contextlib.suppress(psutil.Error):
            if "pop.web.server" in process.cmdline():
                return process.pid
    return None


def test_up_serves_the_dashboard_to_who_comes(living: LivingRoot) -> None:
    """Nothing runs for it before; killed it is there again at the next visit, with the same cookies; the daemon works on."""
    child = up(living)
    link = link_of(child)
    time.sleep(0.5)
    assert web_pid(child.pid) is None
    with httpx2.Client(trust_env=False, timeout=60) as client:
        answer = client.get(link)
        cookie = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
        base = link.partition("?")[0]
        assert client.get(base, headers=cookie).status_code == 200
        first = web_pid(child.pid)
        assert first
        os.kill(first, signal.SIGKILL)
        living.wait(lambda: web_pid(child.pid) != first, "the end of the web process")
        living.drop("a.json", {})
        living.wait_complete(1)
    with httpx2.Client(trust_env=False, timeout=60) as client:
        assert client.get(base, headers=cookie).status_code == 200
    second = web_pid(child.pid)
    assert second and second != first
    token = link.partition("token=")[2]
    for path in living.path.rglob("*"):
        if path.is_file() and path.name != "daemon.log":
            assert token.encode() not in path.read_bytes(), path
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    living.wait(lambda: not psutil.pid_exists(second), "the end of everything")


def test_up_ends_quickly_with_open_pages(living: LivingRoot) -> None:
    """SIGTERM to the daemon ends both; the port is free again."""
    child = up(living)
    link = link_of(child)
    base = link.partition("?")[0]
    cookie = httpx2.get(link, trust_env=False, timeout=60).headers["set-cookie"].partition(";")[0]
    ended = threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(httpx2.HTTPError),
            httpx2.stream(
                "GET", base + "live/board", headers={"cookie": cookie}, trust_env=False, timeout=60
            ) as response,
        ):
            for _ in response.iter_lines():
                pass
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(2)
    began = time.monotonic()
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    assert time.monotonic() - began < 8 and ended.wait(5)
    thread.join()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(re.findall(r":(\d+)/", base)[0])))


def test_up_goes_on_where_the_port_is_taken(living: LivingRoot) -> None:
    """It says so, with the next move, and serves the queue."""
    port = int(re.findall(r"\d+", (living.path / "pop.toml").read_text())[0])
    with socket.create_server(("127.0.0.1", port)):
        child = up(living)
        child.expect("web.not_listening")
        child.expect("another \\[web\\] port in pop.toml, or --no-web")
        living.drop("a.json", {})
        living.wait_complete(1)
        child.kill(signal.SIGTERM)
        child.expect(pexpect.EOF)


def test_the_web_process_has_no_keys(living: LivingRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs none: the gateway has them. It outlives no daemon."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    child = up(living)
    link = link_of(child)
    httpx2.get(link, trust_env=False, timeout=60)
    number = web_pid(child.pid)
    assert number and b"sk-secret" not in Path(f"/proc/{number}/environ").read_bytes()
    child.kill(signal.SIGKILL)
    child.expect(pexpect.EOF)
    living.wait(lambda: not psutil.pid_exists(number), "its end with that of the daemon")


def test_nobody_asking_ends_the_web_process(tmp_path: Path) -> None:
    """What the daemon started rests when nobody looks; here after a second."""
    from pop.web import server as module

    root = make_root(tmp_path)
    assert module.IDLE_S == 900.0
    code = (
        "import sys; from pathlib import Path; from pop.settings import Root, load_settings\n"
        "from pop.web.server import serve; from pop.webkeeper import listen\n"
        "root = Root(Path(sys.argv[2])); listening = listen('127.0.0.1', int(sys.argv[5]))\n"
        "serve(root, load_settings(root), listening, host='127.0.0.1', token=True, idle_s=1.0)"
    )
    with web_server(root, code=code) as served:
        with served.client() as client:
            assert client.get("/").status_code == 200
        assert served.process.wait(20) == 0


def test_no_web_means_none(living: LivingRoot) -> None:
    """Neither a port nor a word."""
    daemon = living.up()
    living.wait(lambda: "daemon.started" in living.log(), "the daemon")
    assert "dashboard" not in living.log() and not [
        one for one in psutil.Process(daemon.pid).net_connections("tcp") if one.status == "LISTEN"
    ]
    assert isinstance(living.root, Root)
