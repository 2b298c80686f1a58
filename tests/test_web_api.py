"""The API against its own description, and against people who mean no good; over a real root and a real server."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pop.gates import answer_of
from pop.settings import Root, Settings
from pop.web.app import create_app
from pop.web.keys import Keys
from tests.webbing import Server, web_server
from tests.webstates import HOSTILE, STATES, States, every_state

os.environ.setdefault("SCHEMATHESIS_NO_COLOR", "1")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[States]:
    with every_state(tmp_path_factory.mktemp("api") / "root") as states:
        yield states


@pytest.fixture(scope="module")
def server(states: States) -> Iterator[Server]:
    with web_server(states.root) as server:
        yield server


@pytest.fixture(scope="module")
def token(states: States, server: Server) -> str:
    return Keys(states.root.machine_room).mint()


@pytest.fixture(scope="module")
def api(server: Server, token: str) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"{server.url}/api", headers=headers, trust_env=False, timeout=30) as client:
        yield client


def got(response: httpx2.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The error, which has its five keys whatever went wrong."""
    error: dict[str, Any] = got(response, status)["error"]
    assert set(error) == {"class", "code", "message", "where", "hint"} and error["code"] == code, error
    return error


# -- against its description -------------------------------------------------------------------------------------------


def described() -> Any:
    """The document as any server has it."""
    return create_app(Root(Path("/nonexistent")), Settings(), token=False).openapi()


MEANING = positive_data_acceptance  # what is well-formed may still make no sense
SPEAK_OF_THE_ROOT = ("/api/costs", "/api/costs.csv", "/api/runs/{run_id}/plan")
schema = schemathesis.openapi.from_dict(described())


@pytest.fixture
def known(states: States) -> dict[str, list[str]]:
    """Names of things that are there."""
    instances = ["ask", "draft", "boom"]
    return {"run_id": list(states.runs.values()), "instance": instances, "gate": ["sign-off"], "name": ["default"]}


@schema.parametrize()
@settings(
    max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_every_answer_is_as_described(case: Case[Any], server: Server, token: str, known: dict[str, list[str]]) -> None:
    """Status codes, content types, shapes of answers and errors, of what is asked rightly and wrongly.

    Of the names that are made up in paths, two in three are replaced by those of things that are there.
    """
    for key, names in known.items():
        if key in case.path_parameters and (chance := sum(map(ord, str(case.path_parameters[key])))) % 3:
            case.path_parameters[key] = names[chance % len(names)]
    excluded: list[Any] = [MEANING] if case.method == "POST" or case.path in SPEAK_OF_THE_ROOT else []
    headers = {"Authorization": f"Bearer {token}"}
    case.call_and_validate(base_url=server.url, headers=headers, excluded_checks=excluded)


def test_the_document_names_every_act_and_error(api: httpx2.Client) -> None:
    """For people who write clients: what it takes, what it gives, how it fails."""
    document = got(api.get("/openapi.json"))
    paths = document["paths"]
    assert len(paths) >= 25 and all(path.startswith("/api/") for path in paths)
    for path, methods in paths.items():
        for method, about in methods.items():
            assert about["summary"] and about["description"], (method, path)
            assert {"401", "404", "409", "413", "422"} <= set(about["responses"]), (method, path)
    assert set(document["components"]["schemas"]["ErrorAbout"]["required"]) == {
        "class",
        "code",
        "message",
        "where",
        "hint",
    }


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_state_is_told(api: httpx2.Client, states: States) -> None:
    """On the board, in lists, and by itself; what nobody can read too."""
    counts = got(api.get("/counts"))["counts"]
    assert all(counts[state] == 1 for state in STATES) and counts["rejected"] == 1 and counts["pending"] >= 1
    for state in STATES:
        (row,) = [row for row in got(api.get("/runs", params={"state": state}))["runs"] if row["state"] == state]
        detail = got(api.get(f"/runs/{row['run_id']}"))
        assert row["run_id"] == states.runs[state] == detail["run_id"] and detail["state"] == state
        assert (detail["status"] is None) == (state == "unreadable") == (detail["problem"] is not None)
        assert detail["gates"] == (["sign-off"] if state in ("waiting", "paused") else [])
    board = got(api.get("/board"))
    assert [row["name"] for row in board["waiting"]] == ["waiting"] and board["daemon"] is None
    assert got(api.get("/runs", params={"text": "wait", "size": 1}))["total"] == 1
    (row,) = got(api.get("/rejected"))["rejected"]
    assert row["code"] == "bad-json" and row["name"] == "broken.json"
    assert {"later.json": "later"}.items() <= {
        p["name"]: p["state"] for p in got(api.get("/pending"))["pending"]
    }.items()


def test_a_journal_is_followed_by_its_offsets(api: httpx2.Client, states: States) -> None:
    """Each line comes once, whatever the size of the steps; past the end there is nothing."""
    run = states.run("complete")
    found, offset = list[Any](), 0
    while page := got(api.get(f"/runs/{run.run_id}/events", params={"offset": offset, "limit": 2}))["events"]:
        found += page
        offset = got(api.get(f"/runs/{run.run_id}/events", params={"offset": offset, "limit": 2}))["next_offset"]
    assert found == [json.loads(line) for line in (run.path / "events.jsonl").read_bytes().splitlines()]
    assert offset == (run.path / "events.jsonl").stat().st_size
    beyond = got(api.get(f"/runs/{run.run_id}/events", params={"offset": 2**40}))
    assert beyond["events"] == [] and beyond["next_offset"] == offset


def test_a_step_tells_all_that_its_folder_holds(api: httpx2.Client, states: States) -> None:
    """Output, letter, attempts, calls with tokens, stages, log, artifacts, errors."""
    complete, failed = f"/runs/{states.runs['complete']}/steps", f"/runs/{states.runs['failed']}/steps"
    step = got(api.get(f"{complete}/ask"))
    assert step["task"]["state"] == "done" and step["letter"]["task"] == "ask" and isinstance(step["output"], str)
    attempt = got(api.get(f"{complete}/ask/attempts/1"))
    (call,) = attempt["calls"]
    assert call["provider"] == "builtin" and call["input_tokens"] > 0 and "trail.jsonl" in attempt["files"]
    assert {"prompt", "infer"} <= {line["stage"] for line in attempt["trail"]}
    assert [row["text"] for row in got(api.get(f"{complete}/a/attempts/1"))["log"]] == ["at work"]
    boom = got(api.get(f"{failed}/boom"))
    assert boom["error"]["error_class"] == "bug" and boom["output"] is None
    assert got(api.get(f"/runs/{states.runs['waiting']}/steps/draft"))["artifacts"] == ["note.md"]


def test_the_timeline_tells_where_the_time_went(api: httpx2.Client, states: States) -> None:
    """Of every run, by attempt."""
    for state in STATES:
        line = got(api.get(f"/runs/{states.runs[state]}/timeline"))
        assert line["end"] >= line["begin"] and (state == "unreadable" or line["rows"])
    (row,) = [
        row for row in got(api.get(f"/runs/{states.runs['complete']}/timeline"))["rows"] if row["instance"] == "ask"
    ]
    assert row["attempts"][0]["outcome"] == "done" and sum(row["seconds"].values()) > 0
    assert {"prompt", "infer"} <= {stage["name"] for stage in row["attempts"][0]["stages"]}


def test_costs_ledger_models_and_pipelines(api: httpx2.Client, states: States) -> None:
    """As the commands tell them."""
    costs = got(api.get("/costs", params={"by": "step"}))
    assert costs["rows"] == [] or costs["total"]["calls"] == sum(row["calls"] for row in costs["rows"])
    assert refused(api.get("/costs", params={"since": "2026-13-01"}), 400, "usage")["hint"]
    ledger = got(api.get("/ledger", params={"offset": -100_000}))
    assert [row["run_id"] for row in ledger["records"]] == [states.runs["complete"]] and ledger["passed_over"] == 0
    assert {row["name"] for row in got(api.get("/models"))["models"]} >= {"default", "builtin"}
    gated = got(api.get("/pipelines/gated"))
    assert [(step["name"], step["kind"], step["after"]) for step in gated["steps"]] == [
        ("draft", "task", []), ("sign-off", "gate", ["draft"]), ("a", "task", ["sign-off"]),
    ]  # fmt: skip
    default = got(api.get("/pipelines/default"))
    assert default["seed"]["required"] == ["text"] and default["graph"].startswith("flowchart")
    assert {file["path"] for task in default["tasks"] for file in task["files"]} == {
        "pipeline-tasks/a.py", "pipeline-tasks/ask.md",
    }  # fmt: skip
    assert got(api.get("/check")) == {"ok": True, "problems": [], "notes": []}
    a, b = states.runs["waiting"], states.runs["paused"]
    pairs = {pair["name"]: pair for pair in got(api.get("/compare", params={"a": a, "b": b}))["pairs"]}
    assert pairs["draft"]["output"] == "same"


# -- people who mean no good -------------------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "../pop.toml", "..%2f..%2fpop.toml", "/etc/passwd", "....//pop.toml", "tasks/../../../pop.toml", "a\x00b", "\\..\\x",
    "tasks//x", ".", "..", "tasks/.", "x" * 5000, "💥", "\r\nset-cookie: a=b", "tasks/link", "tasks/pipe",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_path_leads_out_of_a_run(api: httpx2.Client, states: States, name: str) -> None:
    """Nor through a link, nor into a pipe that never ends."""
    run = states.run("failed")
    if not (run.path / "tasks" / "link").is_symlink():
        os.symlink("/etc/passwd", run.path / "tasks" / "link")
        os.mkfifo(run.path / "tasks" / "pipe")
    for place in ("file", "files"):
        response = api.get(f"/runs/{run.run_id}/{place}", params={"path": name})
        assert response.status_code in (404, 422), (place, response.text)
        assert "root:" not in response.text
    for path in (f"/runs/{name}", f"/runs/{run.run_id}/steps/{name}", f"/runs/{run.run_id}/steps/{name}/attempts/1"):
        response = api.get("/" + "/".join(_escaped(part) for part in path.strip("/").split("/")))
        assert response.status_code in (404, 422, 200) and "root:" not in response.text
        assert response.status_code != 200 or "run_id" in response.text or "instance" in response.text


def _escaped(part: str) -> str:
    return "".join(f"%{byte:02x}" for byte in part.encode())


def test_a_file_is_only_ever_saved(api: httpx2.Client, states: States) -> None:
    """Whatever it is called and holds, no browser shows it as a page; parts of it are asked for by offset."""
    run = states.run("waiting")
    response = api.get(f"/runs/{run.run_id}/file", params={"path": "tasks/draft/output.json"})
    assert HOSTILE in response.text and response.headers["content-type"] == "application/octet-stream"
    assert (
        response.headers["content-disposition"] == "attachment"
        and "sandbox" in response.headers["content-security-policy"]
    )
    part = api.get(f"/runs/{run.run_id}/file", params={"path": "tasks/draft/output.json", "offset": 1, "limit": 3})
    assert part.content == response.content[1:4] and part.headers["x-size"] == str(len(response.content))


def test_a_write_needs_the_token_or_the_page(server: Server, states: States) -> None:
    """No cookie alone, no other origin."""
    path = f"/api/runs/{states.runs['running']}/orders/cancel"
    with server.client() as browser:
        assert refused(browser.post(path, json={}), 403, "other-origin")
        headers = {"origin": server.url}
        assert refused(browser.post(path, json={}, headers=headers), 403, "no-csrf-token")
    with httpx2.Client(base_url=server.url, trust_env=False) as stranger:
        assert refused(stranger.get("/api/counts"), 401, "no-token")
        assert refused(stranger.get("/api/counts", headers={"authorization": "Bearer x"}), 401, "wrong-token")
    assert "cancel" not in states.run("running").waiting_orders()


def test_huge_bodies_are_refused_while_they_come(api: httpx2.Client, states: States) -> None:
    """By what they say, and by what they bring; nothing is left in the queue."""
    before = set(os.listdir(states.root.pending))
    big = b'{"text": "' + b"x" * 33 * 2**20 + b'"}'
    refused(api.post("/seeds", content=big, headers={"content-type": "application/json"}), 413, "seed-too-large")
    pieces = (b"x" * 2**20 for _ in range(3))
    path = f"/runs/{states.runs['running']}/orders/pause"
    with suppress(httpx2.TransportError):  # it may end the connection before it was asked for an answer
        assert api.post(path, content=pieces, headers={"content-type": "application/json"}).status_code == 413
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("seed.json", "{}")
        archive.writestr("zeros", b"\0" * 64 * 2**20)
    headers = {"content-type": "application/zip"}
    assert (
        "expands" in refused(api.post("/seeds", content=bomb.getvalue(), headers=headers), 422, "bad-seed")["message"]
    )
    many = [("file", (f"{number}.txt", b"")) for number in range(1100)]
    response = api.post("/seeds", files=[("file", ("seed.json", b"{}")), *many])
    assert response.status_code in (413, 422), response.text
    assert set(os.listdir(states.root.pending)) == before


def test_deep_and_odd_json_is_refused(api: httpx2.Client, states: States) -> None:
    """What POP itself would not read is written nowhere."""
    path = f"/runs/{states.runs['failed']}/rerun"
    headers = {"content-type": "application/json"}
    for value in ("[" * 900 + "]" * 900, "NaN", "[" * 100_000):
        body = f'{{"from": ["boom"], "set": {{"seed.x": {value}}}}}'
        response = api.post(path, content=body, headers=headers)
        assert response.status_code in (400, 422), response.text
    assert not (states.run("failed").path / "orders" / "rerun.json").exists()


# -- acting ------------------------------------------------------------------------------------------------------------


def test_a_seed_is_dropped_in_three_ways(api: httpx2.Client, states: States) -> None:
    """Each answer names the file; the same seed again is another one."""
    first = got(api.post("/seeds?name=tides", json={"text": "low"}), 201)
    second = got(api.post("/seeds?name=tides", json={"text": "low"}), 201)
    assert first == {"file": "pipeline-pending/tides.json", "note": None, "served": False}
    assert second["file"] == "pipeline-pending/tides-2.json"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("seed.json", '{"text": "low"}')
    headers = {"content-type": "application/zip"}
    third = got(api.post("/seeds?name=z&pipeline=gated", content=archive.getvalue(), headers=headers), 201)
    seed = json.loads((states.root.path / third["file"] / "seed.json").read_bytes())
    assert seed["pipeline"] == "gated" and seed["data"] == {"text": "low"}
    files = [("file", ("seed.json", b'{"text": "low"}')), ("file", ("map.txt", b"x"))]
    fourth = got(api.post("/seeds?name=both", files=files), 201)
    assert sorted(os.listdir(states.root.path / fourth["file"])) == ["map.txt", "seed.json"]
    assert (
        refused(api.post("/seeds?pipeline=gatd", json={}), 422, "unknown-pipeline")["hint"] == "did you mean 'gated'?"
    )
    assert refused(api.post("/seeds", content=b'{"a":', headers={"content-type": "application/json"}), 422, "bad-seed")
    assert (
        refused(api.get("/runs", params={"stat": "failed"}), 422, "unknown-parameter")["hint"]
        == "did you mean 'state'?"
    )


def test_a_seed_is_looked_at_before(api: httpx2.Client) -> None:
    """What it would do and cost, and what it lacks."""
    plan = got(api.post("/seeds/plan", json={"text": "low"}))
    assert [(row["step"], row["what"]) for row in plan["steps"]] == [("ask", "run"), ("a", "run")] and not plan[
        "problems"
    ]
    assert got(api.post("/seeds/plan", json={"txt": "low"}))["problems"][0]["code"] == "bad-seed"
    assert (
        got(api.post("/seeds/plan", json={"data": {}, "pipeline": "nope"}))["problems"][0]["code"] == "unknown-pipeline"
    )


def test_orders_write_their_files_and_fit_the_state(tmp_path: Path) -> None:
    """Over a root of its own, since they stay."""
    with every_state(tmp_path / "root") as states, web_server(states.root) as server:
        token = Keys(states.root.machine_room).mint()
        headers = {"authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=f"{server.url}/api", headers=headers, trust_env=False, timeout=30) as api:
            _gate(api, states)
            paused, failed, done = (states.runs[state] for state in ("paused", "failed", "complete"))
            body = {"reason": "why not"}
            order = got(api.post(f"/runs/{paused}/orders/resume", json=body))
            assert order["file"] == f"pipeline-current/{paused}/orders/resume.json" and order["served"] is False
            assert json.loads((states.root.path / order["file"]).read_bytes())["reason"] == "why not"
            refused(api.post(f"/runs/{done}/orders/cancel", json={}), 409, "usage")
            retry = got(api.post(f"/runs/{failed}/orders/retry", json={"budget": {"run_usd": 5}}))
            assert json.loads((states.root.path / retry["file"]).read_bytes())["budget"] == {"run_usd": 5.0}
            refused(api.post(f"/runs/{failed}/orders/retry", json={"budget": {"usd": 5}}), 400, "usage")
            plan = got(api.get(f"/runs/{failed}/plan", params={"from": "boom"}))
            assert plan["from"] == ["boom"] and plan["steps"][1]["what"] == "run"
            rerun = got(api.post(f"/runs/{failed}/rerun", json={"from": ["boom"], "set": {"boom.attempts": 2}}))
            assert rerun["file"].endswith("orders/rerun.json") and rerun["stale"] == ["boom"] and not rerun["fork"]
            fork = got(api.post(f"/runs/{done}/rerun", json={"from": ["a"], "set": {"seed.text": "high"}}))
            assert fork["fork"] and json.loads((states.root.path / fork["file"]).read_bytes())["data"]["text"] == "high"
            refused(api.post(f"/runs/{states.runs['running']}/rerun", json={"from": ["sleep"]}), 409, "usage")
            refused(api.post(f"/runs/{failed}/rerun", json={"from": ["bom"]}), 422, "unknown-step")
            refused(
                api.post(f"/runs/{failed}/rerun", json={"from": ["a"], "models": {"*": "larg"}}), 422, "unknown-model"
            )


def _gate(api: httpx2.Client, states: States) -> None:
    """An answer with an edit, shown as a diff before; the second one is told who was first."""
    run = states.run("waiting")
    base = f"/runs/{run.run_id}/gates"
    (gate,) = got(api.get(base))["gates"]
    assert gate["instance"] == "sign-off" and "Is it good?" in gate["request"]
    path = next(copy["path"] for copy in gate["shown"] if copy["path"].endswith("draft.md"))
    (diff,) = got(api.post(f"{base}/sign-off/diff", json={"edits": {path: "high\n"}}))["diffs"]
    assert "-low" in diff["diff"] and "+high" in diff["diff"]
    refused(api.post(f"{base}/sign-off/diff", json={"edits": {"../../seed.json": "x"}}), 422, "bad-edit")
    refused(api.post(f"{base}/nope/answer", json={"decision": "approve"}), 409, "gate-not-open")
    refused(api.post(f"{base}/sign-off/answer", json={"decision": "request-changes"}), 400, "usage")
    refused(api.post(f"{base}/sign-off/answer", json={"decision": "maybe"}), 422, "invalid")
    answered = got(api.post(f"{base}/sign-off/answer", json={"decision": "approve", "edits": {path: "high\n"}}))
    assert answered["file"].endswith("tasks/sign-off/decision.json") and (run.path / path).read_text() == "high\n"
    given = answer_of(run.path / "tasks/sign-off")
    assert given and given.how == "dashboard"
    refused(api.post(f"{base}/sign-off/answer", json={"decision": "reject"}), 409, "already-answered")
