"""``pop plan``: what would be reused, run or wait, why, and what it may cost; and that it spends nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pop.orders import Order, Orders
from pop.records import dump_json
from pop.rerun import journaled
from pop.settings import Root
from pop.store import Disk
from tests.test_admission import make_root
from tests.test_cli import pop

T = "2026-11-21T03:15:02.000Z"
STEPS: list[Any] = ["plan", {"parallel": ["draft", "facts"]}, "join"]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path)
    root.tasks.mkdir()
    for name in ("plan", "draft", "facts", "join"):
        (root.tasks / f"{name}.md").write_text(name)
    (root.path / "pipeline.json").write_text(json.dumps({"tasks": STEPS}))
    return root


def finished(root: Root, number: int = 1, *, state: str = "complete", calls: int = 2, **tasks: str) -> str:
    """A run whose steps each asked `calls` times; `tasks` are the states of those that are not done."""
    run_id = f"20261121-03150{number}-a-abcd"
    run_dir = (root.complete if state == "complete" else root.current) / run_id
    names = ["plan", "draft", "facts", "join"]
    pipeline = (root.path / "pipeline.json").read_bytes()
    usage = {"calls": calls, "input_tokens": 100 * calls, "output_tokens": 10 * calls, "cost_usd": 0.5 * calls}
    rows: list[dict[str, Any]] = [
        {"event": "run.created", "run_id": run_id, "name": "a", "pipeline": "default", "seed_file": "a.json",
         "pipeline_sha256": hashlib.sha256(pipeline).hexdigest()},
        {"event": "run.started"},
    ]  # fmt: skip
    for name in names:
        rows.append({"event": "step.started", "instance": name, "attempt": 1, "generation": 1})
        if tasks.get(name) == "failed":
            error = {"error_class": "bug", "message": "oh"}
            rows.append({"event": "step.attempt_failed", "instance": name, "error": error, "action": "fail"})
            break
        rows.append({"event": "step.done", "instance": name, "attempt": 1, "sha256": "x", "usage": usage})
    error = {"error_class": "bug", "message": "oh"}
    rows.append({"event": "run.complete"} if state == "complete" else {"event": "run.failed", "error": error})
    run_dir.mkdir(parents=True)
    (run_dir / "events.jsonl").write_bytes(b"".join(dump_json({"at": T, **row}, pretty=False) for row in rows))
    (run_dir / "seed.json").write_text('{"topic": "tides"}')
    (run_dir / "pipeline.json").write_bytes(pipeline)
    hashes = {n: {f"{n}.md": hashlib.sha256((root.tasks / f"{n}.md").read_bytes()).hexdigest()} for n in names}
    (run_dir / "provenance.json").write_bytes(dump_json({"tasks": hashes, "helpers": {}}))
    status = {name: {"state": tasks.get(name, "done"), "attempt": 1, "usage": usage} for name in names}
    about = {"run_id": run_id, "name": "a", "pipeline": "default", "state": state, "tasks": status}
    (run_dir / "tasks-status.json").write_bytes(dump_json(about))
    if state == "complete":
        with open(root.ledger, "ab") as file:
            file.write(dump_json({"run_id": run_id, "pipeline": "default"}, pretty=False))
    return run_id


def plan(root: Root, *arguments: object) -> dict[str, Any]:
    result = pop("plan", *arguments, "--json", root=root.path)
    assert result.returncode == 0, result.stdout + result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def steps(planned: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {row["step"]: (row["what"], row["why"]) for row in planned["steps"]}


def seed(root: Root, value: Any) -> Path:
    path = root.path / "seed-of-mine.json"
    path.write_text(json.dumps(value))
    return path


def test_a_seed_runs_everything_at_what_it_used_on_the_average(root: Root) -> None:
    """Over the last finished runs of its pipeline; unknown before there are any."""
    path = seed(root, {"topic": "moon"})
    planned = plan(root, path)
    assert steps(planned)["plan"] == ("run", "it is new") and planned["total"]["calls"] is None
    finished(root, 1, calls=2)
    finished(root, 2, calls=4)
    planned = plan(root, path)
    assert planned["steps"][0]["estimate"] == {
        "calls": 3.0, "input_tokens": 300, "output_tokens": 30, "cost_usd": 1.5, "source": "2 of the last 2 run(s)",
    }  # fmt: skip
    assert planned["total"]["calls"] == 12 and not list(root.pending.glob("*.json"))


def test_a_pipeline_whose_document_has_a_name_of_its_own_is_known_by_its_file(root: Root) -> None:
    """`default` may be called `hello`: what it cost, what was asked before, and a role of it are found all the same."""
    (root.path / "pipeline.json").write_text(json.dumps({"name": "hello", "tasks": STEPS}))
    run_id = finished(root)
    failed = finished(root, 2, state="failed", facts="failed")
    assert plan(root, seed(root, {"topic": "moon"}))["total"]["calls"] == 8
    asked = steps(plan(root, seed(root, {"data": {"topic": "tides"}, "reuse": True})))
    assert asked["plan"][1] == f"asked before: {run_id} asked the same"
    planned = plan(root, failed)
    assert planned["notes"] == [] and planned["total"]["calls"] == 4
    again = pop("rerun", failed, "--from", "plan", "-m", "default=builtin", root=root.path)
    assert again.returncode == 0, again.stderr


def test_a_step_nobody_has_seen_is_unknown(root: Root) -> None:
    """And so is the sum."""
    finished(root)
    (root.tasks / "late.md").write_text("late")
    (root.path / "pipeline.json").write_text(json.dumps({"tasks": [*STEPS, "late"]}))
    planned = plan(root, seed(root, {}))
    assert planned["steps"][-1]["estimate"]["source"] == "unknown" and planned["total"]["calls"] is None
    shown = pop("plan", seed(root, {}), root=root.path)
    assert "unknown" in shown.stdout and "late" in shown.stdout


def test_under_reuse_it_says_asked_before_only_when_that_is_known(root: Root) -> None:
    """The same data, pipeline and tasks, in a finished run."""
    finished(root)
    path = seed(root, {"data": {"topic": "tides"}, "reuse": True})
    assert {what for what, _ in steps(plan(root, path)).values()} == {"reuse"}
    assert plan(root, path)["total"]["calls"] == 0
    (root.tasks / "join.md").write_text("join otherwise")
    assert {what for what, _ in steps(plan(root, path)).values()} == {"run"}
    assert {what for what, _ in steps(plan(root, seed(root, {"topic": "tides"}))).values()} == {"run"}


def test_a_run_from_a_step_reuses_what_does_not_depend_on_it(root: Root) -> None:
    """With what these very steps used in it."""
    run_id = finished(root, state="failed", join="failed")
    planned = plan(root, run_id, "--from", "draft")
    assert steps(planned) == {
        "plan": ("reuse", "nothing changed"), "draft": ("run", "you said so"), "facts": ("reuse", "nothing changed"),
        "join": ("run", "it failed"),
    }  # fmt: skip
    assert planned["steps"][1]["estimate"]["source"] == "this run" and planned["total"]["cost_usd"] == 2.0
    assert steps(plan(root, run_id, "--from", "draft:parse"))["draft"] == (
        "run",
        "its recorded answers are parsed again",
    )


def test_a_run_is_taken_up_from_what_changed(root: Root) -> None:
    """It says which file; nothing changed is said too."""
    run_id = finished(root)
    assert {what for what, _ in steps(plan(root, run_id)).values()} == {"done"}
    (root.tasks / "draft.md").write_text("draft better")
    (root.tasks / "draft.schema.json").write_text("{}")
    planned = plan(root, run_id)
    assert planned["from"] == ["draft"]
    assert steps(planned)["draft"] == ("run", "changed: prompt draft.md, schema draft.schema.json is new")
    assert steps(planned)["join"] == ("run", "what it depends on runs again")
    assert steps(planned)["facts"][0] == "reuse"
    (root.path / "pipeline.json").write_text(json.dumps({"tasks": ["plan"]}))
    assert "the run keeps its own" in plan(root, run_id)["notes"][0]


def test_a_pipeline_is_known_by_its_file_whatever_name_it_has(root: Root) -> None:
    """To what it costs, to what was asked before, to whether it changed, and to roles of models."""
    (root.path / "pipeline.json").write_text(json.dumps({"name": "letters", "tasks": STEPS}))
    finished(root, 1)
    run_id = finished(root, 2, state="failed", draft="failed")
    planned = plan(root, run_id)
    assert planned["notes"] == [] and planned["steps"][3]["estimate"]["source"] == "1 of the last 1 run(s)"
    path = seed(root, {"data": {"topic": "tides"}, "reuse": True})
    assert {what for what, _ in steps(plan(root, path)).values()} == {"reuse"}
    ordered = pop("rerun", run_id, "--from", "draft", "-m", "default=builtin", root=root.path)
    assert ordered.returncode == 0, ordered.stderr
    (root.path / "pipeline.json").write_text(json.dumps({"name": "letters", "tasks": ["plan"]}))
    assert "changed since" in plan(root, run_id)["notes"][0]


def test_a_task_mended_before_a_retry_has_not_changed(root: Root) -> None:
    """What ran before the retry is compared with the files of then, what ran after it with those it went on with."""
    run_id = finished(root, state="failed", facts="failed")
    run_dir = root.current / run_id
    (root.tasks / "facts.md").write_text("mended")
    (root.tasks / "draft.md").write_text("touched")
    assert Orders(root, Disk()).apply_to_resting(Order(run_dir, "retry", "me", None))
    resumed = [row for row in journaled(run_dir, "run.resumed")]
    assert [row["provenance"] for row in resumed] == ["provenance.resumed-1.json"]
    for row in [{"event": "step.started", "instance": name, "attempt": 2} for name in ("facts", "join")]:
        Disk().append(run_dir / "events.jsonl", dump_json({"at": T, "generation": 1, **row}, pretty=False))
        done: dict[str, Any] = {
            "event": "step.done",
            "instance": row["instance"],
            "attempt": 2,
            "sha256": "x",
            "usage": {},
        }
        Disk().append(run_dir / "events.jsonl", dump_json({"at": T, **done}, pretty=False))
    Disk().append(run_dir / "events.jsonl", dump_json({"at": T, "event": "run.complete"}, pretty=False))
    found = steps(plan(root, run_id))
    assert found["draft"] == ("run", "changed: prompt draft.md")
    assert found["facts"] == ("reuse", "nothing changed")
    (root.tasks / "facts.md").write_text("and touched again")
    assert steps(plan(root, run_id))["facts"] == ("run", "changed: prompt facts.md")


def test_behind_a_gate_everything_waits_for_a_person(root: Root) -> None:
    """The gate too."""
    (root.path / "pipeline.json").write_text(json.dumps({"tasks": ["plan", {"approve": "sign-off"}, "join"]}))
    rows = steps(plan(root, seed(root, {})))
    assert rows["plan"][0] == "run" and rows["sign-off"] == ("blocked", "a person decides")
    assert rows["join"] == ("blocked", "waits for a person at 'sign-off'; it is new")


def test_apply_does_exactly_that(root: Root) -> None:
    """A re-run of the run, or the seed in the queue."""
    run_id = finished(root, state="failed", join="failed")
    planned = plan(root, run_id, "--from", "draft", "--apply")
    order = json.loads(Path(planned["applied"]).read_bytes())
    assert order["from"] == planned["from"] == ["draft"]
    assert Path(plan(root, seed(root, {"x": 1}), "--apply")["applied"]).parent == root.pending
    done = finished(root, 2)
    assert plan(root, done, "--apply")["applied"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no run 'nothing'"),
        (["some/where.json"], "no file"),
        (["last", "--from", "drafft"], "did you mean 'draft'?"),
        (["{seed}", "--from", "draft"], "--from is for a run"),
    ],
)
def test_what_is_not_there_is_told(root: Root, arguments: list[str], said: str) -> None:
    """With the nearest name."""
    finished(root)
    path = seed(root, {})
    result = pop("plan", *(text.format(seed=path) for text in arguments), root=root.path)
    assert result.returncode == 2 and said in result.stderr


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"data": 1, "pipeline": "nope"}'])
def test_a_seed_that_can_be_none_is_told(root: Root, text: str) -> None:
    """As the queue would say it."""
    path = root.path / "seed-of-mine.json"
    path.write_text(text)
    result = pop("plan", path, root=root.path)
    assert result.returncode in (2, 3) and "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["folder", "zip", "link"])
def test_a_seed_with_files_is_planned_as_one_without(root: Root, kind: str) -> None:
    """A folder or a zip; --apply puts all of it into the queue."""
    folder = root.path / "my seed"
    folder.mkdir()
    (folder / "seed.json").write_text('{"topic": "moon"}')
    (folder / "notes.txt").write_text("hello")
    path = folder
    if kind == "zip":
        path = Path(shutil.make_archive(str(root.path / "mine"), "zip", folder))
    elif kind == "link":
        path = root.path / "link"
        path.symlink_to(folder)
    assert steps(plan(root, path)) == steps(plan(root, seed(root, {"topic": "moon"})))
    applied = Path(plan(root, path, "--apply")["applied"])
    assert applied.parent == root.pending and applied.suffix == (".zip" if kind == "zip" else "")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"PK\x05\x06" + bytes(18), "holds no seed.json"),
        (b"PK\x03\x04", "not yet a seed"),
        (b"junk", "cannot be unpacked"),
    ],
)
def test_an_archive_that_is_no_seed_is_told(root: Root, made: bytes, said: str) -> None:
    """As the queue would say it."""
    path = root.path / "mine.zip"
    path.write_bytes(made)
    result = pop("plan", path, root=root.path)
    assert result.returncode == 3 and said in result.stderr and "Traceback" not in result.stderr


def test_a_seed_that_is_a_fork_runs_what_is_not_shared(root: Root) -> None:
    """By the other run, from the step it names; one that is not there is told."""
    run_id = finished(root)
    about = {"run": run_id, "from": ["draft"]}
    planned = plan(root, seed(root, {"data": {}, "fork": about}))
    assert {name: what for name, (what, _) in steps(planned).items()} == {
        "plan": "reuse", "draft": "run", "facts": "reuse", "join": "run",
    }  # fmt: skip
    assert f"it is a fork of {run_id}" in planned["notes"]
    path = seed(root, {"data": {}, "fork": {**about, "run": "20261121-031509-gone-abcd"}})
    result = pop("plan", path, root=root.path)
    assert result.returncode == 3 and "no run" in result.stderr


def test_what_a_step_added_is_said_to_depend_on_it(root: Root) -> None:
    """It may be ordered anew, or not."""
    run_dir = root.complete / finished(root)
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]
    for row in rows:
        if row["event"] == "step.done" and row["instance"] == "plan":
            row["control"] = {"add": [{"task": "facts", "name": "more"}], "skip": {}, "pause": None}
    rows.insert(-1, {"at": T, "event": "step.done", "instance": "more", "attempt": 1, "sha256": "x", "usage": None})
    (run_dir / "events.jsonl").write_bytes(b"".join(dump_json(row, pretty=False) for row in rows))
    what, why = steps(plan(root, run_dir.name, "--from", "plan"))["more"]
    assert what == "run" and why.startswith("plan added it, and runs again")


def test_a_seed_for_a_pipeline_that_is_not_there(root: Root) -> None:
    """The nearest one is named."""
    (root.path / "pipelines").mkdir()
    (root.path / "pipelines" / "tides.json").write_text('{"tasks": ["plan"]}')
    (root.path / "a.json").write_text('{"data": {}, "pipeline": "tide"}')
    result = pop("plan", root.path / "a.json", root=root.path)
    assert result.returncode == 3 and "no pipeline 'tide'" in result.stderr and "'tides'" in result.stderr
