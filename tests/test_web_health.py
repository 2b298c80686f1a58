"""The page of health: what the command line's doctor, models, notify and gc say and do, and no secret of theirs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.events import RUN_COMPLETE, rfc3339
from pop.settings import Root
from pop.store import lock_holder
from tests.test_web_acts import fields_of
from tests.webbing import HOST, make_root, put_status, run_id, web_client

HOSTILE = "<script>alert(1)</script>"
SECRET = "T0PSECRETTOKEN"
SETTINGS = f"""
[models.fast]
provider = "openai"
model = "gpt-x"
base_url = "http://127.0.0.1:9/v1"
price = {{ input = 1.0, output = 10.0 }}
requests_per_minute = 60

[notify.chat]
on = ["failed"]
url = "https://hooks.example/{SECRET}?t={SECRET}"

[notify.bell]
on = ["finished"]
command = ["/usr/bin/ring", "{SECRET}"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path, SETTINGS)
    put_status(root, 1, "failed", error={"error_class": "bug", "message": HOSTILE})
    (root.machine_room / "log").mkdir()
    row = {
        "hook": "chat",
        "at": "2026-11-21T10:00:00.000Z",
        "id": "x",
        "tries": 5,
        "error": f"404 of /{SECRET}, given up",
    }
    row["error"] = f"cannot reach https://hooks.example/{SECRET}?t={SECRET}"
    (root.machine_room / "log" / "notify.jsonl").write_text(json.dumps(row) + "\n")
    return root


@pytest.fixture
def client(root: Root) -> Iterator[TestClient]:
    with web_client(root) as client:
        client.headers["origin"] = HOST
        yield client


def ended(root: Root, number: int, days: float, state: str = "complete") -> Path:
    """A run that came to its end so many days ago."""
    at = rfc3339(time.time() - days * 86400)
    folder = put_status(root, number, state, finished_at=at)
    event = RUN_COMPLETE if state == "complete" else f"run.{state}"
    (folder / "events.jsonl").write_text(json.dumps({"event": event, "at": at}) + "\n")
    if state == "complete":
        os.rename(folder, root.complete / folder.name)
        return root.complete / folder.name
    return folder


def post(client: TestClient, page: str, action: str, **fields: Any) -> Any:
    response = client.post(action, data=fields_of(page, action) | fields)
    return client.get(response.headers["location"]) if response.status_code == 303 else response


def test_it_tells_what_the_doctor_models_and_notify_tell(client: TestClient) -> None:
    """Findings with their next move, limits and what a test costs, the last try of each who is told; nothing hostile."""
    page = client.get("/health").text
    assert (
        "none is running here" in page
        and f'href="/runs/{run_id(1)}">{run_id(1)}</a> failed: bug' in page
        and "pop show" in page
    )
    assert "gpt-x" in page and "of 60" in page and "$0.0" in page
    assert "https://hooks.example/…" in page and "/usr/bin/ring …" in page and "cannot reach …" in page
    assert SECRET not in page and HOSTILE not in page
    assert "OPENAI_API_KEY is not set" not in page and '"model"' not in page, "no box without a daemon"


def test_it_is_told_when_settings_cannot_be_read(client: TestClient, root: Root) -> None:
    """By the finding; the rest stands."""
    (root.path / "pop.toml").write_text("[models\n")
    page = client.get("/health")
    assert page.status_code == 200 and "pop.toml:1" in page.text and "None can be told" in page.text


def test_models_are_not_asked_without_a_daemon(client: TestClient) -> None:
    """The dashboard has no keys."""
    refused = post(client, client.get("/health").text, "/health/models", model="fast")
    assert refused.status_code == 400 and "no daemon serves this folder" in refused.text


def test_old_runs_are_shown_then_removed(client: TestClient, root: Root) -> None:
    """Only those that were shown; only when that was ticked; what goes is named. Nothing younger, nothing at work."""
    old, young, failed = ended(root, 10, 40), ended(root, 11, 1), ended(root, 12, 50, "failed")
    page = client.get("/health/gc?age=30d").text
    assert run_id(10) in page and run_id(11) not in page and run_id(12) not in page and "1 run," in page
    assert run_id(12) in client.get("/health/gc?age=30d&failed=true").text
    assert old.is_dir()
    assert post(client, page, "/health/gc").status_code == 400 and old.is_dir()
    later = ended(root, 13, 29)
    done = post(client, page, "/health/gc", sure="1")
    assert "Removed 1 run" in done.text and run_id(10) in done.text and not old.exists()
    assert young.is_dir() and failed.is_dir() and later.is_dir()
    again = post(client, page, "/health/gc", sure="1")
    assert "Removed 1 run" in again.text, "the same form is the same act"
    kept = ended(root, 14, 40)
    page = client.get("/health/gc?age=30d&archive=true").text
    assert "Removed 1 run" in post(client, page, "/health/gc", sure="1").text and not kept.exists()
    assert (root.complete / "archive" / f"{run_id(14)}.tar.gz").is_file()
    for before in ("x", "nan", "-1", "1e99", ""):
        assert post(client, page, "/health/gc", sure="1", before=before).status_code == 400
    assert client.get("/health/gc?age=soon").status_code == 400 and young.is_dir()


def test_a_model_is_tested_by_the_daemon(make_living: Any) -> None:
    """Its answer is told; each that was not asked is told too."""
    living = make_living(
        "root", pipeline={"tasks": ["one"]}, tasks={"one.py": "def infer(prompt, ctx):\n    return {}\n"}
    )
    living.up()
    living.wait(lambda: lock_holder(living.root.machine_room), "the daemon")
    with web_client(living.root) as client:
        client.headers["origin"] = HOST
        page = client.get("/health").text
        assert "`pop up`, process" in page and 'name="model" value="builtin"' in page
        done = post(client, page, "/health/models", model="builtin")
        assert done.status_code == 200 and "Asked 1 model" in done.text and "test: " in done.text
        assert post(client, page, "/health/models", model="nope").status_code == 400


def test_programs_have_the_same(client: TestClient, root: Root) -> None:
    """Findings, who is told, what can be removed, and removing exactly that."""
    header = {"x-csrf-token": client.csrf}  # type: ignore[attr-defined]
    health = client.get("/api/health").json()
    assert health["daemon"] is None and any("failed: bug" in one["says"] for one in health["findings"])
    told = client.get("/api/notifications")
    assert SECRET not in told.text and SECRET not in client.get("/api/health").text
    assert [(hook["name"], hook["target"]) for hook in told.json()["hooks"]] == [
        ("chat", "https://hooks.example/…"),
        ("bell", "/usr/bin/ring …"),
    ]
    old, young = ended(root, 10, 40), ended(root, 11, 1)
    found = client.get("/api/gc/plan?older_than=30d").json()
    assert found["runs"] == [run_id(10)] and found["size_bytes"] > 0 and old.is_dir()
    body = {"before": found["before"]}
    assert client.post("/api/gc", json=body, headers=header).json()["runs"] == [run_id(10)]
    assert not old.exists() and young.is_dir()
    assert client.get("/api/gc/plan?older_than=soon").status_code == 422
    assert client.post("/api/gc", json={"before": time.time() + 999}, headers=header).status_code == 400
    assert client.post("/api/gc", json={}, headers=header).status_code == 422
    refused = client.post("/api/models/test", json={"models": ["fast"]}, headers=header)
    assert refused.status_code == 400 and "no daemon" in refused.json()["error"]["message"]
