"""kill -9 between every two changes to the files of a run: gates, laps, reruns, forks and orders of tasks.

One root, one run for each kill: the n-th daemon dies before the n-th change it makes to the n-th run after the moment in
question (see tests.dying), the next one goes on with it and dies in the run after it, at any instant of the first. In the
end every run has come to the same end as one that was left alone, and nothing was done or paid for twice.

By default a few kills of each kind are tried; POP_KILLS=all tries every one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pop import gates, gatework
from pop.gateanswers import AlreadyAnswered, GateNotOpen
from pop.history import read_history
from pop.moves import Open
from pop.orders import Order, Orders
from pop.pipeline import Pipeline, load_pipeline
from pop.records import dump_json
from pop.settings import Root
from pop.steps import At
from pop.store import Disk, mend_tail
from tests.fake_openai import FakeOpenAI
from tests.living import LivingRoot
from tests.power import recorded

Make = Callable[..., LivingRoot]

SETTINGS = """
[models]
default = "fake"
[models.fake]
provider = "openai"
model = "fake-1"
base_url = "{url}"
[seeds]
settle_s = 0.0
[daemon]
scan_s = 0.1
[concurrency]
workers = 4
"""
CHECK = "def infer(prompt, ctx):\n    return {'score': ctx.seed['scores'][ctx.lap - 1], 'lap': ctx.lap}\n"
LAST = "def infer(prompt, ctx):\n    return {name: ctx.inputs[name] for name in ctx.inputs if name != 'look'}\n"
ORDERS = (
    "def infer(prompt, ctx):\n    ctx.control.add({'task': 'write', 'name': 'more'})\n"
    "    ctx.control.skip('gone', 'not needed')\n    return 1\n"
)
TASKS = {
    "write.md": "Write {{ step }} about {{ seed.topic }} for {{ seed.number }}. {{ changes }}",
    "revise.md": "Revise it in lap {{ lap }} for {{ seed.number }} after {{ inputs.check.score }}. {{ changes }}",
    "check.py": CHECK,
    "last.py": LAST,
    "orders.py": ORDERS,
}
LOOP = {"repeat": ["check", "revise"], "until": "inputs.check.score >= 8", "at_most": 3, "name": "loop"}
GATED = [{"task": "write", "name": "made"}, {"approve": "look"}, "last"]


@dataclass(frozen=True)
class Kind:
    """What happens to a run: `steps`, what is done when it rests for the first time, and the moment that counts begin."""

    steps: list[Any]
    act: Callable[[LivingRoot, Path], None] | None
    after: str
    calls: int = 0  # paid for, by each run
    few: int = 5
    lines: bool = True  # an append is torn between its lines


def edited(living: LivingRoot, run_dir: Path) -> None:
    (run_dir / "tasks" / "look" / "show" / "made.md").write_text("By hand.\n")
    answer(run_dir, "look", "approve")


def answer(run_dir: Path, gate: str, decision: Any, text: str | None = None) -> None:
    gates.give_answer(Disk(), run_dir / "tasks" / gate, decision, by="Ada", how="command", text=text)


def rerun(living: LivingRoot, run_dir: Path) -> None:
    (run_dir / "orders").mkdir(exist_ok=True)
    order = {"from": ["made"], "set": {"seed.topic": "moons", "made.timeout": "77s"}, "by": "Ada"}
    draft = run_dir / "orders" / ".rerun"
    draft.write_text(json.dumps(order))
    draft.rename(run_dir / "orders" / "rerun.json")


KINDS = {
    "edited": Kind(GATED, edited, "", calls=1),
    "loop-gate": Kind(
        [{**LOOP, "at_most": 1, "otherwise": "ask"}, "last"],
        lambda _, run_dir: answer(run_dir, "loop@1", "request-changes", "bolder"),
        "",
        calls=1,
    ),
    "changes": Kind(GATED, lambda _, run_dir: answer(run_dir, "look", "request-changes", "bolder"), "", calls=2),
    "lap": Kind([LOOP, "last"], None, '"lap.ended"', calls=2),
    "rerun": Kind(GATED, rerun, "orders", calls=2),
    "fork": Kind([*GATED, {"task": "write", "name": "end"}], None, "", calls=1),
    "control": Kind(["orders", {"task": "write", "name": "gone"}, "last"], None, '"step.done"', calls=1),
    "open": Kind(GATED, None, "tasks/look", calls=1),
}


def seed(number: int) -> dict[str, Any]:
    return {"topic": "tides", "number": number, "scores": [1, 2, 9]}


class Sweep:
    """One root whose daemons die, each in another run."""

    def __init__(self, living: LivingRoot, kind: Kind) -> None:
        self.living = living
        self.kind = kind
        self.log = living.path / "dying.log"
        self.parent = ""  # the run that all others are forks of

    def daemon(self, run: str, number: int) -> subprocess.Popen[bytes]:
        """A daemon that dies before the change with this number; 0: never."""
        order = {"run": run, "after": self.kind.after, "number": number, "lines": self.kind.lines}
        env = {**os.environ, "POP_DYING": json.dumps(order), "POP_DYING_LOG": str(self.log)}
        with open(self.living.path / "daemon.log", "ab") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "tests.dying", "--root", str(self.living.path), "up", "--no-web"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
            )  # fmt: skip
        self.living.daemons.append(daemon)
        return daemon

    def run_dir(self, number: int) -> Path | None:
        for folder in (self.living.root.current, self.living.root.complete):
            for path in folder.glob(f"*-s{number}-*"):
                if (path / "events.jsonl").exists():
                    return path
        return None

    def waits(self, number: int) -> bool:
        run_dir = self.run_dir(number)
        return run_dir is not None and bool(self.living.status(run_dir)["state"] == "waiting")

    def ended(self, number: int) -> bool:
        """Whether a run is complete; gates that ask once more are approved."""
        run_dir = self.run_dir(number)
        if run_dir is None:
            return False
        if run_dir.parent == self.living.root.complete:
            return any(row["run_id"] == run_dir.name for row in self.living.ledger())
        state = self.living.status(run_dir)["state"]
        assert state in ("queued", "running", "waiting", "complete"), self.living.status(run_dir)
        for gate in [row["instance"] for row in journal(run_dir) if row["event"] == "gate.opened"]:
            opened = gates.opened(run_dir / "tasks" / gate)
            if opened and (opened.opening > 1 or gate == "loop@2" or self.kind.after == "tasks/look"):
                try:
                    answer(run_dir, gate, "approve")
                except (AlreadyAnswered, GateNotOpen):
                    pass
        return False


def journal(run_dir: Path) -> list[dict[str, Any]]:
    rows = []
    for line in (run_dir / "events.jsonl").read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def check(living: LivingRoot, run_dir: Path, kind: Kind) -> None:
    """Nothing twice in its history."""
    rows = journal(run_dir)
    done: set[str] = set()
    openings: set[tuple[str, int]] = set()
    for row in rows:
        name = str(row.get("instance"))
        if row["event"] == "run.rerun":
            done -= set(row["instances"])
        if row["event"] in ("step.done", "step.reused"):
            assert name not in done, f"{name} twice"
            done.add(name)
        if row["event"] == "step.started":
            assert name not in done
        if row["event"] == "gate.opened":
            assert (name, row["opening"]) not in openings
            openings.add((name, row["opening"]))
    reruns = [row for row in rows if row["event"] == "run.rerun" and row["from"]]
    assert len(reruns) <= 1, reruns
    decided = [row["instance"] for row in rows if row["event"] == "gate.decided"]
    undecided = kind.after == "orders"  # the first opening was over before it was decided
    assert len(decided) == len(openings) - undecided, (decided, openings)
    assert sum(row["run_id"] == run_dir.name for row in living.ledger()) == 1


def outcome(run_dir: Path, number: int) -> dict[str, Any]:
    """What a run came to, without what differs from run to run."""
    found = {}
    for path in sorted(run_dir.glob("tasks/*/output.json")):
        value = json.loads(path.read_bytes())
        found[path.parent.name] = value.get("decision") if path.parent.name[:4] in ("look", "loop") else _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return "An answer." if isinstance(value, str) and value.startswith("An answer to ") else value


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_kill_between_any_two_changes_changes_nothing(name: str, make_living: Make, fake_openai: FakeOpenAI) -> None:
    kind = KINDS[name]
    living = make_living(
        pipeline={"name": name, "tasks": kind.steps}, tasks=TASKS, settings=SETTINGS.format(url=fake_openai.base_url)
    )
    sweep = Sweep(living, kind)
    prepare(living, sweep, [0])
    daemon = sweep.daemon("-s0-", 0)
    begin(living, sweep, 0)
    living.wait(lambda: sweep.ended(0), "the run that is left alone")
    living.stop(daemon)
    total = len(sweep.log.read_text().splitlines())
    print(f"{name}: {total} changes")
    assert total > 3
    numbers = list(range(1, total + 1))
    if os.environ.get("POP_KILLS") != "all":
        numbers = sorted(random.Random(os.environ.get("POP_KILLS", "0")).sample(numbers, min(kind.few, total)))
    prepare(living, sweep, numbers)
    for number in numbers:
        daemon = sweep.daemon(f"-s{number}-", number)
        begin(living, sweep, number)
        living.wait(lambda: daemon.poll() is not None or sweep.ended(number), f"a kill in {number}")  # noqa: B023
        if daemon.poll() is None:  # this run had fewer changes to make
            living.stop(daemon)
    daemon = living.up()
    for number in numbers:
        living.wait(lambda: sweep.ended(number), f"the end of run {number}")  # noqa: B023
    living.stop(daemon)
    first = sweep.run_dir(0)
    assert first
    for number in [0, *numbers]:
        run_dir = sweep.run_dir(number)
        assert run_dir
        check(living, run_dir, kind)
        assert outcome(run_dir, number) == outcome(first, 0), number
    late = fake_openai.served_after_stored(living.root.machine_room / "answers.db")
    assert late == []
    asked = fake_openai.total
    ours = 2 if kind is KINDS["fork"] else 0
    different = len({served.messages_sha256 for served in fake_openai.served})
    assert different == ours + kind.calls * (1 + len(numbers)), (different, asked)
    print(f"{name}: {asked} requests, {different} different ones")


def prepare(living: LivingRoot, sweep: Sweep, numbers: list[int]) -> None:
    """The runs up to the moment before the one in question."""
    if sweep.kind is KINDS["fork"] and not sweep.parent:
        daemon = living.up()
        living.drop("s999.json", {"name": "s999", "data": seed(999)})
        living.wait(lambda: sweep.waits(999), "the parent to wait")
        parent = sweep.run_dir(999)
        assert parent
        answer(parent, "look", "approve")
        living.wait(lambda: sweep.ended(999), "the parent's end")
        living.stop(daemon)
        sweep.parent = parent.name
    if sweep.kind.act is None:
        return
    daemon = living.up()
    for number in numbers:
        living.drop(f"s{number}.json", {"name": f"s{number}", "data": seed(number)})
    living.wait(lambda: all(sweep.waits(number) for number in numbers), "runs that wait")
    living.stop(daemon)


def begin(living: LivingRoot, sweep: Sweep, number: int) -> None:
    """The moment in question."""
    if sweep.kind.act is None:
        more = {"fork": {"run": sweep.parent, "from": ["end"]}} if sweep.parent else {}
        living.drop(f"s{number}.json", {"name": f"s{number}", "data": seed(number), **more})
    else:
        run_dir = sweep.run_dir(number)
        assert run_dir
        sweep.kind.act(living, run_dir)


# -- a power cut -------------------------------------------------------------------------------------------------------


def gated_run(root: Root) -> tuple[Path, Pipeline]:
    """A run that waits at `look`, all of it on the disk."""
    data = b'{"tasks": [{"task": "write", "name": "made"}, {"approve": "look"}, "last"]}'
    run_dir = root.current / "run"
    made = run_dir / "tasks" / "made"
    (made / "artifacts").mkdir(parents=True)
    (made / "output.json").write_bytes(b'"Hello.\\n"\n')
    (made / "artifacts" / "a.txt").write_bytes(b"one\n")
    (run_dir / "seed.json").write_bytes(b'{"topic": "tides"}')
    (run_dir / "pipeline.json").write_bytes(data)
    sha256 = hashlib.sha256((made / "output.json").read_bytes()).hexdigest()
    rows: list[dict[str, Any]] = [
        {"event": "run.created", "run_id": "run", "name": "run", "pipeline": "default", "seed_sha256": "s"},
        {"event": "step.started", "instance": "made", "attempt": 1, "generation": 1},
        {"event": "step.done", "instance": "made", "sha256": sha256, "size_bytes": 9},
    ]
    pipeline = load_pipeline(data, where="pipeline.json", name="default")
    for row in rows:
        Disk().append(run_dir / "events.jsonl", dump_json({"at": "2026-01-01T00:00:00Z", **row}, pretty=False))
    opened = gatework.open_gate(Disk(), run_dir, pipeline, read_history(run_dir), Open("look", "look", At()))
    for row in (opened, {"event": "run.waiting", "for": ["look"], "wake_at": None}):
        Disk().append(run_dir / "events.jsonl", dump_json({"at": "2026-01-01T00:00:00Z", **row}, pretty=False))
    return run_dir, pipeline


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path.resolve())
    for path in (root.rejected, root.current, root.complete, root.machine_room, root.tasks):
        path.mkdir(parents=True)
    return root


def test_an_answer_is_on_the_disk_before_it_counts(root: Root) -> None:
    """decision.json, the edited output and artifact, the versions before them and the gate's output; then the line."""
    run_dir, pipeline = gated_run(root)
    look = run_dir / "tasks" / "look"
    (look / "show" / "made.md").write_text("By hand.\n")
    (look / "show" / "made" / "a.txt").write_text("two\n")
    with recorded(root.path) as power:
        answer(run_dir, "look", "approve")
        assert not [path for path in set().union(*power.at_risk()) if path.endswith("decision.json")]
        found = gates.find_answer(Disk(), look, time.time())
        assert found
        rows = gatework.decide(Disk(), run_dir, pipeline, read_history(run_dir), "look", found)
        Disk().append(run_dir / "events.jsonl", b"".join(dump_json(row, pretty=False) for row in rows))
    moment = power.moment("write", "/events.jsonl", b"gate.decided")
    risk = {os.path.relpath(path, run_dir) for path in moment.bytes_at_risk | moment.names_at_risk}
    counts = {
        "tasks/made/output.json", "tasks/made/output.before-look.json", "tasks/made/artifacts/a.txt",
        "tasks/made/artifacts.before-look", "tasks/made/artifacts.before-look/a.txt", "tasks/look/output.json",
        "tasks/look/decision.json", "tasks/look/edits.json",
    }  # fmt: skip
    assert all((run_dir / path).exists() for path in counts)
    assert not risk & counts
    for move in (one for one in power.moments if one.call == "rename" and one.path.endswith("made/output.json")):
        assert not {
            path for path in move.bytes_at_risk | move.names_at_risk if "before" in path or "edits.json" in path
        }


def test_what_a_rerun_sets_is_on_the_disk_before_it_counts(root: Root) -> None:
    """Seed, pipeline and provenance of the rerun; then the line."""
    run_dir, _ = gated_run(root)
    content = {"from": ["made"], "set": {"seed.topic": "moons", "made.timeout": "77s"}}
    with recorded(root.path) as power:
        assert Orders(root, Disk()).apply_to_resting(Order(run_dir, "rerun", "Ada", None, content=content))
    moment = power.moment("write", "/events.jsonl", b"run.rerun")
    risk = {os.path.relpath(path, run_dir) for path in moment.bytes_at_risk | moment.names_at_risk}
    counts = {f"{name}.rerun-1.json" for name in ("seed", "pipeline", "provenance")}
    assert all((run_dir / path).exists() for path in counts)
    assert not risk & counts
    assert "events.jsonl" not in {os.path.relpath(path, run_dir) for path in power.at_risk()[0]}


@pytest.mark.parametrize("words", ["bolder", "b" * 60_000], ids=["short", "long"])
def test_half_an_answer_in_the_journal_is_none(root: Root, words: str) -> None:
    """Whatever part of the append a power cut leaves: the gate waits still, or all that it asked for is to run again."""
    run_dir, pipeline = gated_run(root)
    answer(run_dir, "look", "request-changes", words)
    found = gates.find_answer(Disk(), run_dir / "tasks" / "look", time.time())
    assert found
    rows = gatework.decide(Disk(), run_dir, pipeline, read_history(run_dir), "look", found)
    lines = b"".join(dump_json({"at": "2026-01-01T00:00:00Z", **row}, pretty=False) for row in rows)
    before = (run_dir / "events.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(lines) if byte == 10]
    for length in sorted({0, 1, *ends, *(end - 1 for end in ends), *(end + 5 for end in ends[:-1])}):
        (run_dir / "events.jsonl").write_bytes(before + lines[:length])
        mend_tail(run_dir / "events.jsonl")
        known = read_history(run_dir).instances
        states = (known["look"].state, known["made"].state)
        assert states in (("waiting", "done"), ("stale", "stale")), (length, states)


def test_an_edited_artifact_called_output_json_is_no_output(root: Root) -> None:
    """The recorded hash stays that of the output, or whoever reads it is told that it was tampered with."""
    run_dir, pipeline = gated_run(root)
    shutil.rmtree(run_dir / "tasks" / "look")
    (run_dir / "tasks" / "made" / "artifacts" / "output.json").write_bytes(b"{}\n")
    history = read_history(run_dir)
    opened = gatework.open_gate(Disk(), run_dir, pipeline, history, Open("look", "look", At()))
    history.apply({"at": "2026-01-01T00:00:00Z", **opened})
    (run_dir / "tasks" / "look" / "show" / "made" / "output.json").write_text("[]")
    answer(run_dir, "look", "approve")
    found = gates.find_answer(Disk(), run_dir / "tasks" / "look", time.time())
    assert found
    before = history.instances["made"].sha256
    for row in gatework.decide(Disk(), run_dir, pipeline, history, "look", found):
        history.apply({"at": "2026-01-01T00:00:00Z", **row})
    assert history.instances["made"].sha256 == before
