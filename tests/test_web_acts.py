"""The pages on which something is done, as plain forms without script: each act names the file it wrote, and is done once."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pop.gates import answer_of, open_gate, opened
from pop.store import Disk, lock_holder
from pop.web.pages.act import steps_of
from tests.webbing import HOST, web_client
from tests.webstates import HOSTILE, States, every_state


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[States]:
    with every_state(tmp_path_factory.mktemp("acts") / "root") as states:
        yield states


@pytest.fixture
def client(states: States) -> Iterator[TestClient]:
    with web_client(states.root) as client:
        client.headers["origin"] = HOST
        yield client


def fields_of(html: str, action: str) -> dict[str, str]:
    """The hidden fields, inputs and textareas of the form with this action, as a browser would send them."""
    form = next(
        part for part in re.findall(r"<form .*?</form>", html, re.DOTALL) if f'method="post" action="{action}"' in part
    )
    assert re.search(r'<form [^>]*>\s*<input type="hidden" name="csrf"', form), "csrf must be the first field"
    found = {}
    for tag in re.findall(r"<input [^>]*>", form):
        name, value = (re.search(rf'{key}="([^"]*)"', tag) for key in ("name", "value"))
        if name and 'type="checkbox"' not in tag and 'type="file"' not in tag:
            found[unescape(name[1])] = unescape(value[1]) if value else ""
    for name, text in re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>\n?(.*?)</textarea>', form, re.DOTALL):
        found[unescape(name)] = unescape(text).replace("\n", "\r\n")
    return found


def send(client: TestClient, address: str, action: str, /, **changed: Any) -> Any:
    """Fill in a form of a page and send it; the answer to a redirect is the page it leads to."""
    fields = fields_of(client.get(address).text, action) | changed
    return post(client, action, fields)


def post(client: TestClient, action: str, fields: dict[str, Any], files: Any = None) -> Any:
    response = client.post(action, data=fields, files=files)
    return client.get(response.headers["location"]) if response.status_code == 303 else response


def written(response: Any) -> str:
    """The file that an act names."""
    assert response.status_code == 200, response.text
    found = re.search(r'<code id="file">([^<]*)</code>', response.text)
    assert found, response.text
    return unescape(found[1])


def queued(states: States) -> set[str]:
    return set(os.listdir(states.root.pending))


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_a_seed_is_made_by_the_form(client: TestClient, states: States) -> None:
    """Its fields are the keys that the pipeline reads; a look at the plan drops nothing."""
    page = client.get("/new").text
    assert 'name="f.text"' in page and "needed" in page
    before = queued(states)
    looked = send(client, "/new", "/new", **{"f.text": "low\r\nhigh", "do": "look"})
    assert "What it would do" in looked.text and "Nothing was dropped" in looked.text and "low" in looked.text
    assert queued(states) == before
    file = written(send(client, "/new", "/new", **{"f.text": "low\r\nhigh", "name": "tides", "do": "drop"}))
    assert json.loads((states.root.path / file).read_bytes()) == {"text": "low\nhigh"}
    assert file.startswith("pipeline-pending/tides")


def test_a_seed_is_pasted_for_another_pipeline(client: TestClient, states: States) -> None:
    """The choice goes into its envelope; half of it is told, with the place, and what was written stays in the form."""
    address = "/new?pipeline=gated&by=paste"
    file = written(send(client, address, "/new", text='{"text": "low"}', do="drop"))
    seed = json.loads((states.root.path / file).read_bytes())
    assert seed == {"data": {"text": "low"}, "pipeline": "gated"}
    before = queued(states)
    refused = send(client, address, "/new", text='{"text": <b>', do="drop")
    assert refused.status_code == 422 and "seed.json:1:10" in refused.text and "&lt;b&gt;" in refused.text
    assert "Nothing was written" in refused.text and queued(states) == before


def test_files_are_uploaded(client: TestClient, states: States) -> None:
    """A .json, a .zip, several with a seed.json; a bomb, a strange name or none leave nothing."""
    address = "/new?by=upload"
    fields = fields_of(client.get(address).text, "/new") | {"do": "drop"}
    file = written(post(client, "/new", fields, [("file", ("sea.json", b'{"text": "low"}'))]))
    assert Path(file).name.startswith("sea") and file.endswith(".json")
    many = [("file", ("seed.json", b'{"text": "low"}')), ("file", ("map.txt", b"x"))]
    assert sorted(os.listdir(states.root.path / written(post(client, "/new", fields, many)))) == [
        "map.txt",
        "seed.json",
    ]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("seed.json", "{}")
        archive.writestr("zeros", b"\0" * 16 * 2**20)
    before = queued(states)
    for name, data in (("b.zip", bomb.getvalue()), ("a.exe", b""), ("x/../../a.json", b"{}"), ("a.json", b"[]")):
        refused = post(client, "/new", fields, [("file", (name, data))])
        assert refused.status_code in (400, 422) and 'role="alert"' in refused.text, name
    assert "no file was chosen" in post(client, "/new", fields, [("x", ("", b""))]).text
    assert queued(states) == before


def test_what_is_sent_twice_is_done_once(client: TestClient, states: States) -> None:
    """By two clicks at the same instant too; a form that was changed on the way back is another act."""
    fields = fields_of(client.get("/new?by=paste").text, "/new") | {"text": '{"text": "once"}', "do": "drop"}
    before, places = queued(states), list[str]()

    def click() -> None:
        places.append(client.post("/new", data=fields).headers["location"])

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places)) == 1 and len(queued(states) - before) == 1
    other = client.post("/new", data=fields | {"text": '{"text": "twice"}'}).headers["location"]
    assert other != places[0] and len(queued(states) - before) == 2
    assert client.get("/acted/" + "0" * 32).status_code == 404


def test_a_form_of_another_page_is_refused(client: TestClient, states: States) -> None:
    """Without the token of this browser, or from another origin, nothing is done."""
    before = queued(states)
    fields = fields_of(client.get("/new?by=paste").text, "/new") | {"text": "{}", "do": "drop"}
    assert client.post("/new", data=fields | {"csrf": "0" * 32}).status_code == 403
    assert client.post("/new", data=fields, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/new", data={**fields, "once": "x"}).status_code == 400
    assert queued(states) == before


# -- gates -------------------------------------------------------------------------------------------------------------


def test_gates_that_wait_are_listed(client: TestClient, states: States) -> None:
    """Each leads to its page; of what models said nothing is run."""
    page = client.get("/gates").text
    assert f"/runs/{states.runs['waiting']}/gates/sign-off" in page and "Approve sign-off?" in page
    assert re.search(r'<span class="small soft">[^<]*Is it good\?', page)
    gate = client.get(f"/runs/{states.runs['waiting']}/gates/sign-off").text
    assert HOSTILE not in gate and "&lt;script&gt;" in gate and "Is it good?" in gate
    assert client.get(f"/runs/{states.runs['waiting']}/gates/draft").status_code == 404
    assert client.get(f"/runs/{states.runs['waiting']}/gates/..%2fx").status_code == 404


def test_a_gate_is_answered_with_an_edit(tmp_path: Path) -> None:
    """The difference is shown first; untouched copies stay as they are, byte for byte; the second answer is told of the first."""
    with every_state(tmp_path / "root") as states, web_client(states.root) as client:
        client.headers["origin"] = HOST
        run = states.run("waiting")
        address = f"/runs/{run.run_id}/gates/sign-off"
        copies = {path: path.read_bytes() for path in (run.path / "tasks/sign-off/show").rglob("*") if path.is_file()}
        draft = "edit:tasks/sign-off/show/draft.md"
        assert draft in fields_of(client.get(address).text, address)
        preview = send(client, address, address, **{draft: "high\r\n", "do": "preview"})
        assert preview.status_code == 200 and "These edits go with it" in preview.text and "+high" in preview.text
        assert {path: path.read_bytes() for path in copies} == copies
        refused = send(client, address, address, do="request-changes")
        assert refused.status_code == 400 and "without a text" in refused.text
        page = client.get(address).text
        done = send(client, address, address, **{draft: "high\r\n", "text": "well", "do": "approve"})
        assert (
            written(done) == f"pipeline-current/{run.run_id}/tasks/sign-off/decision.json"
            and "1 edited copy" in done.text
        )
        answer = answer_of(run.path / "tasks/sign-off")
        assert answer and (answer.decision, answer.text, answer.how) == ("approve", "well", "dashboard")
        changed = {path.name for path, data in copies.items() if path.read_bytes() != data}
        assert changed == {"draft.md"}
        late = post(client, address, fields_of(page, address) | {"do": "reject"})
        assert late.status_code == 409 and "answered already: approve" in late.text


def test_the_form_of_one_question_answers_no_other(tmp_path: Path) -> None:
    """Also after a look at the edits; what was written for it is given back, and the copies of the new question are its own."""
    with every_state(tmp_path / "root") as states, web_client(states.root) as client:
        client.headers["origin"] = HOST
        run = states.run("waiting")
        address, gate = f"/runs/{run.run_id}/gates/sign-off", run.path / "tasks/sign-off"
        draft = "edit:tasks/sign-off/show/draft.md"
        form = fields_of(client.get(address).text, address) | {draft: "mine\r\n", "text": "well done"}
        ask_again(run.path)
        for do in ("approve", "request-changes", "reject", "preview"):
            refused = post(client, address, form | {"do": do})
            assert refused.status_code == 409 and "opened anew since you were asked" in refused.text, do
        assert not (gate / "decision.json").exists()
        again = fields_of(refused.text, address)
        assert again["opening"] == "2" and again["text"] == "well done" and again[draft] == "anew\r\n"
        kept = refused.text.partition("What you had written")[2].partition("</section>")[0]
        assert "mine" in kept and kept.count("readonly") == 1
        assert "which question it answers" in post(client, address, {**again, "opening": "", "do": "approve"}).text
        api = f"/api{address}/answer"
        headers = {"x-csrf-token": client.csrf}  # type: ignore[attr-defined]
        late = client.post(api, json={"decision": "approve", "opening": 1}, headers=headers)
        assert late.status_code == 409 and late.json()["error"]["code"] == "asked-anew"
        assert written(post(client, address, again | {"do": "approve"})).endswith("tasks/sign-off/decision.json")


def ask_again(run_dir: Path) -> None:
    """The gate opens once more, as the daemon does it in a later lap, with another draft to look at."""
    (run_dir / "tasks/draft/output.json").write_text(json.dumps("anew\n"))
    about = opened(run_dir / "tasks/sign-off")
    assert about
    open_gate(
        Disk(durable=False), run_dir, "sign-off", kind=about.kind, title=about.title, why="", shown=["draft"],
        options=about.options, opening=about.opening + 1, expires_at=None,
    )  # fmt: skip


# -- orders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "verb"), [("paused", "resume"), ("running", "pause"), ("failed", "retry"), ("running", "cancel")]
)
def test_an_order_is_given(client: TestClient, states: States, state: str, verb: str) -> None:
    """With its reason; the page says which file that was, and that nobody serves the folder."""
    run = states.run(state)
    done = send(client, f"/runs/{run.run_id}/act", f"/runs/{run.run_id}/orders/{verb}", reason=HOSTILE)
    file = states.root.path / written(done)
    assert file == run.path / "orders" / f"{verb}.json" and json.loads(file.read_bytes())["reason"] == HOSTILE
    assert "No daemon serves this folder" in done.text and HOSTILE not in done.text
    file.unlink()


def test_a_failed_run_leads_to_its_retry(client: TestClient, states: States) -> None:
    """From what went wrong."""
    link = f'<a href="/runs/{states.runs["failed"]}/act">Retry it</a>'
    assert link in client.get(f"/runs/{states.runs['failed']}").text
    assert "Retry it" not in client.get(f"/runs/{states.runs['complete']}").text


def test_orders_that_do_not_fit_have_no_button(client: TestClient, states: States) -> None:
    """And are refused when they are sent all the same."""
    run_id = states.runs["complete"]
    page = client.get(f"/runs/{run_id}/act").text
    assert "there is nothing to end" in page and "<button class=" not in page.partition("<main")[2]
    csrf = client.csrf  # type: ignore[attr-defined]
    refused = client.post(f"/runs/{run_id}/orders/cancel", data={"csrf": csrf, "once": "0" * 16})
    assert refused.status_code == 409 and "Nothing was written" in refused.text
    assert client.post(f"/runs/{run_id}/orders/erase", data={"csrf": csrf}).status_code == 404
    assert client.get("/runs/nope/act").status_code == 404
    assert client.get(f"/runs/{states.runs['unreadable']}/act").status_code == 200


def test_a_run_is_run_again_with_edits(client: TestClient, states: States) -> None:
    """The plan tells what runs, what it costs and what is set; nothing is ordered until that is wished."""
    run = states.run("failed")
    address = f"/runs/{run.run_id}/rerun"
    looked = send(client, address, address, **{"from": "boom", "sets": "boom.attempts=2", "do": "preview"})
    assert (
        "What would happen" in looked.text
        and "boom.attempts = 2" in looked.text
        and not (run.path / "orders" / "rerun.json").exists()
    )
    assert "from which step?" in send(client, address, address, do="rerun").text
    refused = send(client, address, address, **{"from": "boom", "seed": "{", "do": "preview"})
    assert refused.status_code == 422 and "the seed is" in refused.text
    done = send(client, address, address, **{"from": "boom", "sets": "boom.attempts=2", "do": "rerun"})
    order = json.loads((states.root.path / written(done)).read_bytes())
    assert order["from"] == ["boom"] and order["set"] == {"boom.attempts": 2}
    (run.path / "orders" / "rerun.json").unlink()


def test_steps_to_run_again_from_show_what_a_person_should_see_first() -> None:
    """A step whose last lap was skipped is done, not running."""
    states = {"a@1": "done", "a@2": "skipped", "b.0": "done", "b.1": "failed", "c": "pending"}
    status = {"tasks": {name: {"state": state} for name, state in states.items()}}
    assert steps_of(status) == [("a", "done"), ("b", "failed"), ("c", "pending")]


def test_a_complete_run_makes_a_new_one(client: TestClient, states: States) -> None:
    """From a stage, with another seed: as the difference shows it."""
    run = states.run("complete")
    address = f"/runs/{run.run_id}/rerun"
    seed = json.loads(fields_of(client.get(address).text, address)["seed"]) | {"text": "high"}
    wish = {"from": "ask", "seed": json.dumps(seed, indent=2)}
    looked = send(client, address, address, **wish, do="preview")
    assert "in a new run" in looked.text and "+" in looked.text and "high" in looked.text
    done = send(client, address, address, **wish, do="rerun")
    fork = json.loads((states.root.path / written(done)).read_bytes())
    assert fork["data"]["text"] == "high" and fork["fork"]["run"] == run.run_id
    gone = send(client, address, address, **{"from": "ask", "seed": "{}", "do": "preview"})
    assert gone.status_code == 422 and "cannot be taken away" in gone.text
    assert (
        "seed is none" not in send(client, address, address, **{"from": "ask", "stage": "parse", "do": "preview"}).text
    )


def test_what_failed_is_planned_without_naming_a_step(client: TestClient, states: States) -> None:
    """As `pop plan RUN` prints it; it leads to the page that orders just that, and orders nothing itself."""
    run_id = states.runs["failed"]
    assert f'href="/runs/{run_id}/plan"' in client.get(f"/runs/{run_id}/act").text
    page = client.get(f"/runs/{run_id}/plan").text
    assert "it failed" in page and f'href="/runs/{run_id}/rerun?from=boom"' in page
    assert re.search(r'value="boom" checked', client.get(f"/runs/{run_id}/rerun?from=boom").text)
    assert "nothing to run again" in client.get(f"/runs/{states.runs['complete']}/plan").text
    assert client.get(f"/runs/{states.runs['unreadable']}/plan").status_code == 409
    assert client.get("/runs/nope/plan").status_code == 404


def test_a_finished_run_is_replayed(client: TestClient, states: States) -> None:
    """Its own seed, with its recorded answers for all models; one that is not finished, or unknown, is refused."""
    run = states.run("complete")
    file = written(send(client, f"/runs/{run.run_id}/rerun", f"/runs/{run.run_id}/replay"))
    seed = json.loads((states.root.path / file / "seed.json").read_bytes())
    assert seed["models"] == {"*": f"replay:{run.run_id}"} and seed["data"]["note"] == HOSTILE
    waiting = states.runs["waiting"]
    assert "/replay" not in client.get(f"/runs/{waiting}/rerun").text
    header = {"x-csrf-token": client.csrf}  # type: ignore[attr-defined]
    assert client.post(f"/api/runs/{waiting}/replay", headers=header).status_code == 409
    assert client.post("/api/runs/nope/replay", headers=header).status_code == 404
    again = client.post(f"/api/runs/{run.run_id}/replay", headers=header)
    assert again.status_code == 201 and again.json()["file"].startswith("pipeline-pending/")


@pytest.mark.parametrize(
    "address", ["/new", "/new?by=paste", "/new?by=upload", "/gates", "/runs/{}/act", "/runs/{}/rerun"]
)
def test_pages_hold_nothing_that_the_policy_forbids(client: TestClient, states: States, address: str) -> None:
    """No inline script, style or handler; every control has its label."""
    html = client.get(address.format(states.runs["waiting"])).text
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=", html)
    for control in re.findall(r'<(?:input|select|textarea) [^>]*id="([^"]+)"', html):
        assert f'for="{control}"' in html, control


def test_from_a_form_to_a_finished_run(make_living: Any) -> None:
    """A daemon takes the seed, the gate is answered with an edit, and what comes after works on it."""
    living = make_living("root", pipeline={"tasks": ["draft", {"approve": "sign-off"}, "end"]}, tasks={
        "draft.py": "def infer(prompt, ctx):\n    return ctx.seed['text']\n",
        "end.py": "def infer(prompt, ctx):\n    return {'end': ctx.inputs['draft']}\n",
    })  # fmt: skip
    living.up()
    living.wait(lambda: lock_holder(living.root.machine_room), "the daemon")
    with web_client(living.root) as client:
        client.headers["origin"] = HOST
        done = send(client, "/new?by=paste", "/new", text='{"text": "low"}', do="drop")
        assert "No daemon serves" not in done.text and written(done) == "pipeline-pending/seed.json"
        run_id = living.wait(lambda: living.status()["state"] == "waiting" and living.current()[0].name, "the gate")
        address = f"/runs/{run_id}/gates/sign-off"
        assert (
            f'href="{address}"' in client.get("/gates").text
            and f'href="{address}"' in client.get(f"/runs/{run_id}").text
        )
        written(send(client, address, address, **{"edit:tasks/sign-off/show/draft.md": "high", "do": "approve"}))
        (record,) = living.wait_complete(1)
        assert living.output(record, "end") == {"end": "high"}
