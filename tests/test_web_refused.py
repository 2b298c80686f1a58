"""A refused seed on a page: why, its text, and a mended copy in the queue, while the refused one stays as it lies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.admission import reject
from pop.errors import SeedRejected
from pop.refusals import refusal, refusal_keys
from pop.settings import Root
from pop.store import Disk
from tests.test_web_acts import fields_of, written
from tests.test_web_board import settled
from tests.webbing import HOST, make_root, web_client

HOSTILE = "</textarea><script>alert(1)</script>"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path)


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        client.headers["origin"] = HOST
        yield client


def refuse(root: Root, name: str, data: bytes | None) -> Path:
    """As the daemon refuses a seed; None makes a folder of it."""
    source = root.pending / name
    if data is None:
        source.mkdir()
        (source / "seed.json").write_text(HOSTILE)
        (source / "<b>.txt").write_text("x")
    else:
        source.write_bytes(data)
    error = SeedRejected(f"the key {HOSTILE} is twice", where="seed.json:1:5", hint=HOSTILE, code="bad-json")
    return reject(root, Disk(), source, name, error, 0.0)


def send(client: TestClient, address: str, **fields: Any) -> Any:
    response = client.post(address, data=fields_of(client.get(address).text, address) | fields)
    return client.get(response.headers["location"]) if response.status_code == 303 else response


def test_a_refused_seed_has_a_page(client: TestClient, root: Root) -> None:
    """From the board's list; its reason with the place, its text, and nothing of it is a tag."""
    refuse(root, "tides #1.json", HOSTILE.encode())
    board = settled(client, "/?state=pending")
    (address,) = re.findall(r'href="(/refused/[^"]+)"', board)
    page = client.get(unescape(address))
    assert page.status_code == 200 and "<script>alert" not in page.text and "<script>alert" not in board
    assert "seed.json:1:5" in page.text and "bad-json" in page.text and "is twice" in page.text
    assert fields_of(page.text, address)["text"] == HOSTILE and "pipeline-pending/rejected/tides #1.json" in page.text
    assert "1 refused</a>" in settled(client)


def test_a_mended_copy_is_dropped_and_the_refused_one_stays(client: TestClient, root: Root) -> None:
    """A look drops nothing; what is still wrong is told, with what was written; sent twice it is one seed."""
    lies = refuse(root, "tides.json", b'{"a": 1, "a": 2}')
    before = {path: path.read_bytes() for path in root.rejected.iterdir()}
    looked = send(client, "/refused/tides.json", text='{"a": 1}', do="look")
    assert "What it would do" in looked.text and not list(root.pending.glob("*.json"))
    wrong = send(client, "/refused/tides.json", text='{"a": <b>', do="drop")
    assert wrong.status_code == 422 and "Nothing was written" in wrong.text and "&lt;b&gt;" in wrong.text
    fields = fields_of(client.get("/refused/tides.json").text, "/refused/tides.json")
    fields |= {"text": '{"a": 1}', "do": "drop"}
    places = {client.post("/refused/tides.json", data=fields).headers["location"] for _ in range(2)}
    (place,) = places
    done = client.get(place)
    file = written(done)
    assert file == "pipeline-pending/tides.json" and json.loads((root.path / file).read_bytes()) == {"a": 1}
    assert "until you remove it" in done.text and len(list(root.pending.glob("*.json"))) == 1
    assert {path: path.read_bytes() for path in root.rejected.iterdir()} == before and lies in before


def test_what_is_no_text_is_shown_and_not_mended(client: TestClient, root: Root, tmp_path: Path) -> None:
    """A folder with its files, an archive, something large or binary, a link, and one of which only the reason is left."""
    refuse(root, "many", None)
    refuse(root, "deep.zip", b"PK")
    refuse(root, "large.json", b" " * 200_000)
    refuse(root, "binary.json", b"\xff")
    refuse(root, "gone.json", b"{").unlink()
    link = refuse(root, "link.json", b"{")
    link.unlink()
    (tmp_path / "secret.json").write_text("secret words")
    link.symlink_to(tmp_path / "secret.json")
    for key, words in (
        ("many", "&lt;b&gt;.txt"),
        ("deep.zip", "a zip archive of 2 bytes"),
        ("large.json", "too large"),
        ("binary.json", "no text"),
        ("gone.json", "only its reason is left"),
        ("link.json", "neither a file nor a folder"),
    ):
        page = client.get(f"/refused/{key}")
        assert page.status_code == 200 and words in page.text, key
        assert "<form" not in page.text and "<b>" not in page.text and "secret words" not in page.text, key


def test_names_lead_nowhere_else(client: TestClient, root: Root) -> None:
    """Not above the folder, not to hidden files; a name too long for its reason is found all the same."""
    (root.pending / "up.reason.json").write_text("{}")
    (root.rejected / ".hidden.reason.json").write_text("{}")
    for key in ("..%2fup", ".hidden", "nope", "%00", "x" * 300):
        assert client.get(f"/refused/{key}").status_code == 404, key
        assert client.get(f"/api/rejected/{key}").status_code == 404, key
    name = "n." + "n" * 250
    lies = refuse(root, name, b"{}")
    (key,) = refusal_keys(root)
    found = refusal(root, key)
    assert len(key) == 64 and found and found.path == lies and found.name == name
    os.rename(root.rejected / f"{key}.reason.json", os.fsencode(root.rejected) + b"/\xff.reason.json")
    for path in ("/?state=pending", "/", "/api/rejected"):
        assert client.get(path).status_code == 200
    assert "rejected" in settled(client, "/?state=pending")


def test_reasons_of_any_kind_are_told(client: TestClient, root: Root) -> None:
    """Somebody wrote a list, half of an object, a number for the time, depth without end."""
    for number, text in enumerate(("[]", "{", '{"at": 5, "message": {"a": []}}', "[" * 5000)):
        (root.rejected / f"{number}.json.reason.json").write_text(text)
        assert client.get(f"/refused/{number}.json").status_code == 200, text
    assert settled(client, "/?state=pending").count("cannot be read") == 3
    assert [row["key"] for row in client.get("/api/rejected").json()["rejected"]] == [f"{n}.json" for n in range(4)]


def test_programs_read_it(client: TestClient, root: Root) -> None:
    """As the list tells it, with its text and where it lies."""
    refuse(root, "tides.json", b'{"a": 1, "a": 2}')
    (row,) = client.get("/api/rejected").json()["rejected"]
    seed = client.get(f"/api/rejected/{row['key']}").json()
    assert {key: seed[key] for key in row} == row and row["code"] == "bad-json"
    assert seed["text"] == '{"a": 1, "a": 2}' and seed["kind"] == "file" and seed["size"] == 16
    assert seed["file"] == "pipeline-pending/rejected/tides.json" and seed["files"] == []
