"""What stands before the dashboard: names, links, forged writes, sizes, patience, headers."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from pop.settings import Root, load_settings
from pop.web import guard, server
from pop.web.app import cookie_name
from pop.web.guard import CSP, Policy
from pop.web.keys import KEPT, Keys, cookie_of, csrf_of
from tests.webbing import HOST, Server, make_root, web_client, web_server

ORIGIN = {"origin": HOST}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    """Signed in, with a page that takes what is written to it."""
    with web_client(root) as made:

        @made.app.post("/echo")  # type: ignore
        async def echo(request: Request) -> Any:
            return PlainTextResponse((await request.body()).decode("latin-1"))

        yield made


def csrf(client: TestClient) -> str:
    return str(client.csrf)  # type: ignore[attr-defined]


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:7670", "10.0.0.7", "", "a b", "[::1",
                                  "localhost:port", "0.0.0.0", "user@localhost"])  # fmt: skip
def test_another_name_is_not_served(client: TestClient, host: str) -> None:
    """A page of another site that points its own name at this machine reads nothing (DNS rebinding)."""
    for path in ("/", "/static/pop.css", "/api/openapi.json"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421 and "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1:7670", "127.0.0.2", "[::1]:7670", "LOCALHOST."]
)
def test_this_machine_is_served_by_every_name_of_it(client: TestClient, host: str) -> None:
    """Also through a tunnel, where the port is another one."""
    assert client.get("/", headers={"host": host}).status_code == 200


def test_beyond_loopback_addresses_are_names_too() -> None:
    """An address cannot be pointed elsewhere; any other name still can."""
    policy = Policy(None, hosts=frozenset({"box.local"}), any_address=True)
    assert policy.knows_host("192.168.1.7:7670") and policy.knows_host("box.local")
    assert not policy.knows_host("evil.example")


# -- links and cookies -----------------------------------------------------------------------------------------------


def test_without_a_link_nothing_is_told(root: Root) -> None:
    """Not what runs there are, not what addresses there are; only how to come in."""
    with web_client(root, signed_in=False) as client:
        for path in ("/", "/live/board", "/api/openapi.json", "/nothing", "/?token=", "/?token=wrong"):
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert "pop web --url" in answer.text
        assert client.get("/static/pop.css").status_code == 200


def test_a_link_becomes_a_cookie(root: Root) -> None:
    """The token leaves the address; the cookie is for this server's own pages, and no script reads it."""
    with web_client(root, signed_in=False) as client:
        token = Keys(root.machine_room).mint()
        answer = client.get(f"/?state=failed&token={token}")
        line = answer.headers["set-cookie"]
        assert "HttpOnly" in line and "SameSite=Strict" in line and "Path=/" in line and token not in line
        assert "url=/?state=failed" in answer.text and token not in answer.text
        client.cookies.set(cookie_name(root), line.partition("=")[2].partition(";")[0])
        assert client.get("/").status_code == 200


def test_a_link_leads_to_no_other_host(root: Root) -> None:
    """Whatever stands in its path."""
    with web_client(root, signed_in=False) as client:
        token = Keys(root.machine_room).mint()
        for path in ("//evil.example/", "/\\evil.example", '/"><script>alert(1)</script>'):
            answer = client.get(f"{HOST}{path}?token={token}")
            target = re.search(r'content="0;url=([^"]*)"', answer.text)
            assert target is None or re.match(r"/[^/\\]|/$", target[1]), answer.text
            assert "<script>alert" not in answer.text


def test_who_is_signed_in_needs_no_new_link(client: TestClient) -> None:
    """An old link still leads on; and one in a chat, to which browsers add no strict cookie, is followed by our own page."""
    answer = client.get("/?state=failed&token=over")
    assert answer.status_code == 200 and "url=/?state=failed" in answer.text
    client.cookies.clear()
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = client.get("/runs/x?attempt=2", headers=headers)
    assert 'content="0;url=/runs/x?attempt=2"' in answer.text and "set-cookie" not in answer.headers
    assert client.get("/runs/x?attempt=2", headers={**headers, "sec-fetch-site": "same-origin"}).status_code == 401


def test_tokens_are_kept_as_hashes_alone(root: Root) -> None:
    """Who reads the file, a task say, can open nothing with it; and only its owner reads it."""
    keys = Keys(root.machine_room)
    token = keys.mint()
    path = root.machine_room / "web-keys.json"
    text = path.read_text()
    assert token not in text and cookie_of(token) not in text
    assert path.stat().st_mode & 0o777 == 0o600
    for value in re.findall(r"[0-9a-f]{64}", text):
        assert not keys.knows_token(value) and not keys.knows_cookie(value)
    assert keys.knows_token(token) and keys.knows_cookie(cookie_of(token)) and not keys.knows_cookie(token)


def test_links_go_on_through_restarts_and_end_with_their_file(root: Root) -> None:
    """Deleting it signs everybody out; only the newest links count."""
    tokens = [Keys(root.machine_room).mint() for _ in range(KEPT + 1)]
    again = Keys(root.machine_room)
    assert again.knows_token(tokens[-1]) and again.knows_token(tokens[1]) and not again.knows_token(tokens[0])
    (root.machine_room / "web-keys.json").write_text('{"keys": [7, {"token": null}]}')
    assert not again.knows_token(tokens[-1]) and not again.knows_token("None")
    (root.machine_room / "web-keys.json").unlink()
    assert not again.knows_cookie(cookie_of(tokens[-1]))


def test_the_api_takes_the_token_as_bearer(root: Root) -> None:
    """Programs need no cookie, and send it by themselves, so that no form must prove anything."""
    with web_client(root, signed_in=False) as client:
        token = Keys(root.machine_room).mint()
        assert client.get("/api/openapi.json", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/api/openapi.json", headers={"authorization": "Bearer x"}).status_code == 401
        assert client.post("/nothing", headers={"authorization": f"Bearer {token}"}).status_code == 404


def test_switched_off_everybody_is_let_in_and_forms_still_prove_themselves(root: Root) -> None:
    """`[web] token = false` is about links; a page of another site still writes nothing."""
    with web_client(root, token=False, signed_in=False) as client:
        answer = client.get("/")
        assert answer.status_code == 200 and "SameSite=Strict" in answer.headers["set-cookie"]
        client.cookies.clear()  # as a browser does that comes from another site
        for data in ({"a": "b"}, {"csrf": csrf_of("")}, {"csrf": "0" * 32}):
            assert client.post("/nothing", data=data).status_code == 403
            assert client.post("/nothing", data=data, headers=ORIGIN).status_code == 403
            assert (
                client.post("/nothing", data=data, headers={**ORIGIN, "x-csrf-token": csrf_of("")}).status_code == 403
            )
        cookie = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
        assert csrf_of(cookie) in answer.text
        client.cookies.set(cookie_name(root), cookie)
        assert client.post("/nothing", headers={**ORIGIN, "x-csrf-token": csrf_of(cookie)}).status_code == 404


def test_beyond_loopback_a_token_is_always_demanded(tmp_path: Path) -> None:
    """By the settings, with the place of the mistake."""
    root = make_root(tmp_path, '[web]\nhost = "0.0.0.0"\ntoken = false\n')
    with pytest.raises(Exception, match="loopback"):
        load_settings(root)


# -- writes ----------------------------------------------------------------------------------------------------------


def test_a_form_of_our_own_page_is_taken_whole(client: TestClient) -> None:
    """Its first field is the browser's token; what the guard has read of the body, the page reads again."""
    data = {"csrf": csrf(client), "text": "x" * 20_000}
    answer = client.post("/echo", data=data, headers=ORIGIN)
    assert answer.status_code == 200 and answer.text.endswith("x" * 20_000) and answer.text.startswith("csrf=")
    files: Any = {"csrf": (None, csrf(client)), "file": ("a.json", b"\x00" * 9000)}
    assert client.post("/echo", files=files, headers=ORIGIN).status_code == 200
    assert client.post("/echo", json={}, headers={**ORIGIN, "x-csrf-token": csrf(client)}).status_code == 200


def test_a_forged_write_is_refused(client: TestClient) -> None:
    """Without our origin, without the token, with another browser's, with the token somewhere behind."""
    good = csrf(client)
    headers: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {"csrf": good}),
        ({"origin": "null"}, {"csrf": good}),
        ({"origin": "http://127.0.0.1:3000"}, {"csrf": good}),
        ({"origin": "http://evil.example"}, {"csrf": good}),
        ({"origin": "http://evil.example/" + HOST}, {"csrf": good}),
        (ORIGIN, {}),
        (ORIGIN, {"csrf": "0" * 32}),
        (ORIGIN, {"text": "a", "csrf": good}),
        ({**ORIGIN, "x-csrf-token": "0" * 32}, {"csrf": good}),
        ({**ORIGIN, "content-type": "text/plain"}, {"csrf": good}),
    ]
    for sent, data in headers:
        answer = client.post("/echo", data=data, headers=sent)
        assert answer.status_code == 403, (sent, data)
    for method in ("PUT", "PATCH", "DELETE", "FROB"):
        assert client.request(method, "/echo").status_code == 403


def test_other_sites_load_nothing(client: TestClient) -> None:
    """Other ports of this machine count as the same site to cookies; what a page loads from there is refused too."""
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert client.get("/", headers=headers).status_code == 403
        assert client.get("/", headers={**headers, "sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}).status_code == 200


# -- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/pop.css", "/favicon.ico", "/?page=x", "/bug"])
def test_every_answer_carries_the_headers(client: TestClient, path: str) -> None:
    """Also an error's, and that of a bug, which tells nothing of itself."""

    @client.app.get("/bug")  # type: ignore
    def bug() -> None:
        raise KeyError("secret")

    answer = client.get(path)
    assert answer.headers["content-security-policy"] == CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in answer.headers and "server" not in answer.headers
    assert "secret" not in answer.text and "Traceback" not in answer.text


def test_pages_keep_their_own_policy(client: TestClient) -> None:
    """No inline script or style, no handler, no address of another host stands in a page."""
    for path in ("/", "/?state=failed", "/nothing", "/?q=%3Cscript%3Ealert(1)%3C/script%3E"):
        html = client.get(path).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:|<script>alert", html), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', html)
    assert "unsafe" not in CSP and "default-src 'none'" in CSP


def test_static_files_stay_in_their_folder(client: TestClient) -> None:
    """Whatever dots and slashes are asked for."""
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00",
                 "/static/vendor/../../app.py", "/static/....//app.py"):  # fmt: skip
        assert client.get(HOST + path).status_code in (404, 400), path


# -- size and patience, on a real socket -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with web_server(make_root(tmp_path_factory.mktemp("served"))) as made:
        yield made


def spoken(served: Server, text: bytes, *, seconds: float = 5.0) -> bytes:
    """What the server says to these bytes."""
    with socket.create_connection(("127.0.0.1", served.port), 5) as connection:
        connection.settimeout(seconds)
        connection.sendall(text)
        told = b""
        try:
            while part := connection.recv(65536):
                told += part
        except TimeoutError:
            told += b"<still open>"
        except ConnectionResetError:
            pass
        return told


def head(served: Server, *lines: str, method: str = "GET", path: str = "/") -> bytes:
    cookie = cookie_of(Keys(served.root.machine_room).mint())
    host = f"Host: 127.0.0.1:{served.port}"
    all_lines = [f"{method} {path} HTTP/1.1", host, f"Cookie: {cookie_name(served.root)}={cookie}", *lines]
    return "\r\n".join([*all_lines, "", ""]).encode()


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Transfer-Encoding: chunked, identity"),
        ("Transfer-Encoding: xchunked"),
        ("Content-Length: -1"),
        ("Content-Length: 1_0"),
        ("Host: localhost"),
        ("Content-Length : 5"),
        ("X-A: b\rContent-Length: 5"),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(served: Server, lines: Any) -> None:
    """And the connection is over, so that nothing behind it is taken for another request."""
    lines = (lines,) if isinstance(lines, str) else lines
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    told = spoken(served, head(served, *lines, method="POST") + smuggled)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", told)
    assert statuses and statuses[0][:1] == b"4" and b"<still open>" not in told and len(statuses) == 1, told[:600]


def test_a_large_body_is_refused_before_it_is_read(served: Server) -> None:
    """By its length; or, where it tells none, as soon as it is too long."""
    origin = f"Origin: {served.url}"
    told = spoken(served, head(served, "Content-Length: 99999999999", origin, method="POST"))
    assert told.startswith(b"HTTP/1.1 413") and b"<still open>" not in told
    cookie = cookie_of(Keys(served.root.machine_room).mint())
    lines = (origin, f"X-CSRF-Token: {csrf_of(cookie)}", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    own = head(served, *lines, method="POST").replace(b"Cookie: ", b"X: ", 1)
    own = own.replace(b"\r\n\r\n", f"\r\nCookie: {cookie_name(served.root)}={cookie}\r\n\r\n".encode())
    told = spoken(served, own + chunk * 40)
    assert not told or re.match(rb"HTTP/1.1 4(13|04|05)", told), told[:300]


def test_long_heads_are_refused(served: Server) -> None:
    """A head has a size; so has an address."""
    assert spoken(served, head(served, "X-Long: " + "x" * 100_000)).startswith(b"HTTP/1.1 4")
    assert spoken(served, head(served, path="/?" + "x" * 100_000)).startswith(b"HTTP/1.1 4")


def test_who_says_nothing_is_not_waited_for(root: Root) -> None:
    """A connection without a request, with half of one, with half a body; and a second request that does not come."""
    times = "server.HEAD_S = 0.5; guard.PIECE_S = 0.5"
    code = f"from pop.web import server, guard; {times}; from pop.cli import main; main()"
    with web_server(root, code=code) as served:
        began = time.monotonic()
        assert b"<still open>" not in spoken(served, b"")
        assert b"<still open>" not in spoken(served, b"GET / HTTP/1.1\r\nHost: loc")
        lines = (f"Origin: {served.url}", "Content-Length: 50", "Content-Type: application/x-www-form-urlencoded")
        told = spoken(served, head(served, *lines, method="POST") + b"csrf=")
        assert told.startswith(b"HTTP/1.1 408") and b"<still open>" not in told
        assert time.monotonic() - began < 8
        slowly = head(served, "X-Slow: yes")
        with socket.create_connection(("127.0.0.1", served.port), 5) as connection, pytest.raises(OSError):
            for place in range(len(slowly)):
                connection.sendall(slowly[place : place + 1])
                time.sleep(0.02)
            connection.settimeout(5)
            assert connection.recv(10) == b"never"


def test_many_connections_stop_no_other(served: Server) -> None:
    """Two hundred that say nothing, and a page all the same."""
    idle = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(200)]
    try:
        with served.client() as client:
            assert client.get("/").status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_the_log_holds_no_token(served: Server) -> None:
    """Neither the greeting, which is no terminal's here, nor what was asked for."""
    token = Keys(served.root.machine_room).mint()
    with served.client() as client:
        client.get(f"/?token={token}")
        client.get(f"/nothing?token={token}")
    text = served.log.read_text()
    assert token not in text and "pop web --url" in text and "token=" not in text


def test_the_limits_are_what_they_are() -> None:
    """Seconds and bytes that the pages' documentation names."""
    assert (server.HEAD_S, guard.PIECE_S, guard.BODY_BYTES) == (10.0, 20.0, 2**20)
    assert os.path.basename(server.__file__) == "server.py"


@pytest.mark.parametrize("path", ["/static/nothing", "/static/", "/favicon.icon", "/static/pop.css/x"])
def test_a_stranger_is_not_told_what_is_served_here(root: Root, path: str) -> None:
    """Of public addresses the page of an error says nothing of the root: neither its name nor the way around in it."""
    with web_client(root, signed_in=False) as client:
        for answer in (client.get(path), client.post(path)):
            assert answer.status_code in (404, 405)
            assert root.path.name not in answer.text and "New seed" not in answer.text
