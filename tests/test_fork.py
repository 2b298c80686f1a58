"""A fork takes over what another run has finished, stands on its own, and goes on from a step."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pop import admission, forks
from pop.errors import SeedRejected
from pop.history import read_history
from pop.records import dump_json
from pop.seeds import parse_seed
from pop.settings import Root, SeedSettings
from pop.store import Disk
from tests.power import recorded
from tests.test_admission import Crash, crash_before, make_root
from tests.test_cli import pop
from tests.test_power import at_risk

LIMITS = SeedSettings(settle_s=0.0)
PARENT = "20261121-031502-tides-abcd"
STEPS = ["plan", {"each": "inputs.plan.parts", "name": "parts", "do": "draft"}, {"task": "join", "when": "seed.yes"}]


def parent_in(folder: Path, *, name: str = PARENT) -> Path:
    """A complete run of three steps, one of them for each of two parts."""
    run_dir = folder / name
    lines: list[dict[str, Any]] = [{"event": "run.created", "run_id": name, "name": "tides", "pipeline": "default"}]
    outputs = {"plan": {"parts": [1, 2]}, "draft.0": "one", "draft.1": "two", "join": "all"}
    for number, (instance, output) in enumerate(outputs.items()):
        data = dump_json(output)
        (run_dir / "tasks" / instance / "attempts" / "1").mkdir(parents=True)
        (run_dir / "tasks" / instance / "output.json").write_bytes(data)
        (run_dir / "tasks" / instance / "letter.json").write_text('{"generation": 2, "problems": []}')
        sha256 = hashlib.sha256(data).hexdigest()
        if number == 1:
            lines.append({"event": "each.expanded", "key": "parts", "count": 2})
        if instance == "join":
            lines.append({"event": "when.decided", "key": "join", "value": True})
        lines.append({"event": "step.started", "instance": instance, "attempt": 1, "generation": 1})
        usage = {"calls": 1, "cost_usd": 1.0}
        lines.append({"event": "step.done", "instance": instance, "sha256": sha256, "size_bytes": 5, "usage": usage})
    lines.append({"event": "run.complete"})
    (run_dir / "tasks" / "plan" / "artifacts" / "deep").mkdir(parents=True)
    (run_dir / "tasks" / "plan" / "artifacts" / "deep" / "plan.md").write_text("# Plan\n")
    (run_dir / "files").mkdir()
    (run_dir / "files" / "doc.txt").write_text("hello")
    (run_dir / "pipeline.json").write_text(json.dumps({"tasks": STEPS}))
    (run_dir / "seed.json").write_text('{"data": {"yes": true}, "id": "once", "priority": 5}')
    journal = [dump_json({"at": "2026-11-21T03:15:02.000Z", **line}, pretty=False) for line in lines]
    (run_dir / "events.jsonl").write_bytes(b"".join(journal))
    return run_dir


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path.resolve())
    parent_in(root.complete)
    return root


def seed_of(**about: Any) -> dict[str, Any]:
    return {"data": {"precious": True}, "fork": {"run": PARENT, "from": ["draft.1"], **about}}


def drop(root: Root, seed: dict[str, Any]) -> admission.Claimed:
    (root.pending / "a.json").write_text(json.dumps(seed))
    (claimed,) = admission.claim(root, Disk(), ["a.json"], 1_800_000_000.0, random.Random(7))
    return claimed


def seal(root: Root, claimed: admission.Claimed) -> Path:
    """As the intake does it."""
    seed, data = admission.read_claim(claimed, LIMITS)
    taken = forks.take_over(root, seed)
    forks.lay_out(Disk(), claimed.run_dir, taken)
    admission.seal(
        root, Disk(), claimed, seed, data, pipeline_name=taken.pipeline_name, pipeline_bytes=taken.data, provenance={},
        now=1_800_000_000.0, forked_from=taken.about, lines=taken.lines,
    )  # fmt: skip
    return claimed.run_dir


def journal_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_bytes().splitlines()]


def test_a_fork_holds_what_does_not_depend_on_the_step(root: Root) -> None:
    """Outputs, artifacts, files, the pipeline and the lines about them; nothing of what is to run, and no cost."""
    run_dir = seal(root, drop(root, seed_of()))
    assert sorted(path.name for path in (run_dir / "tasks").iterdir()) == ["draft.0", "plan"]
    assert (run_dir / "tasks" / "plan" / "artifacts" / "deep" / "plan.md").read_text() == "# Plan\n"
    assert sorted(path.name for path in (run_dir / "tasks" / "plan").iterdir()) == ["artifacts", "output.json"]
    assert (run_dir / "files" / "doc.txt").read_text() == "hello"
    assert json.loads((run_dir / "pipeline.json").read_bytes()) == {"tasks": STEPS}
    history = read_history(run_dir)
    assert {name: one.state for name, one in history.instances.items()} == {"plan": "done", "draft.0": "done"}
    assert history.counts == {"parts": 2} and history.decisions == {} and history.usage.calls == 0
    created, *rest = journal_of(run_dir)
    assert created["forked_from"]["run"] == PARENT
    assert rest[0]["from"] == f"{PARENT}/plan" and rest[0]["event"] == "step.reused"


def test_a_fork_needs_the_other_run_no_more(root: Root) -> None:
    """It stands on its own; copies, not links."""
    run_dir = seal(root, drop(root, seed_of()))
    shutil.rmtree(root.complete / PARENT)
    assert json.loads((run_dir / "tasks" / "draft.0" / "output.json").read_bytes()) == "one"
    assert (run_dir / "tasks" / "draft.0" / "output.json").stat().st_nlink == 1


def test_a_fork_from_a_parsing_stage_names_whose_answers_count(root: Root) -> None:
    """The other run's, in the generation in which they were asked; of a fork of a fork, the first one's."""
    run_dir = seal(root, drop(root, seed_of(**{"from": ["join:parse"]})))
    history = read_history(run_dir)
    assert history.instances["join"].models == {"*": f"replay:{PARENT}"}
    assert history.instances["join"].generation == 2 and history.instances["join"].state == "stale"
    second = drop(root, {"data": {}, "fork": {"run": run_dir.name, "from": ["plan:parse"]}})
    history = read_history(seal(root, second))
    assert history.instances["plan"].models == {"*": f"replay:{PARENT}"}


def test_a_fork_sets_its_pipeline(root: Root) -> None:
    """The other run's stays as it was."""
    run_dir = seal(root, drop(root, seed_of(set={"draft.model": "large"})))
    assert json.loads((run_dir / "pipeline.json").read_bytes())["tasks"][1]["do"] == {"task": "draft", "model": "large"}
    assert json.loads((root.complete / PARENT / "pipeline.json").read_bytes()) == {"tasks": STEPS}


@pytest.mark.parametrize(
    ("about", "code"),
    [
        ({"run": "20261121-031502-gone-abcd"}, "unknown-run"),
        ({"from": ["drafft"]}, "unknown-step"),
        ({"from": ["draft.7"]}, "unknown-instance"),
        ({"from": ["draft:prase"]}, "unknown-stage"),
        ({"set": {"draft.with.x.y": 1}}, "unknown-path"),
        ({"set": {"draft.attempts": -1}}, "invalid-config"),
    ],
)
def test_a_stale_reference_is_a_rejected_seed(root: Root, about: dict[str, Any], code: str) -> None:
    """With the reason; the other run is not touched."""
    claimed = drop(root, seed_of(**about))
    with pytest.raises(SeedRejected) as caught:
        seal(root, claimed)
    assert caught.value.code == code
    admission.reject(root, Disk(), admission.claim_path(claimed.run_dir), "a.json", caught.value, 0.0)
    admission.drop_run_dir(claimed.run_dir)
    assert (root.rejected / "a.json").exists() and not list(root.current.iterdir())


@pytest.mark.parametrize(
    "fork",
    [
        {},
        {"run": PARENT},
        {"run": PARENT, "from": []},
        {"run": PARENT, "from": "draft"},
        {"run": "../../etc", "from": ["draft"]},
        {"run": PARENT + "/..", "from": ["draft"]},
        {"run": PARENT, "from": ["draft"], "set": {"seed.x": 1}},
        {"run": PARENT, "from": ["draft"], "more": 1},
        {"run": PARENT, "from": ["draft"], "models": {"*": 1}},
    ],
)
def test_a_hostile_fork_never_enters(fork: dict[str, Any]) -> None:
    """It is refused at the first look."""
    with pytest.raises(SeedRejected):
        parse_seed(json.dumps({"data": {}, "fork": fork}).encode())


def test_a_seed_for_another_pipeline_is_no_fork(root: Root) -> None:
    """A fork follows the other run's own pipeline."""
    with pytest.raises(SeedRejected, match="is of the pipeline 'default'"):
        seal(root, drop(root, {**seed_of(), "pipeline": "other"}))


@pytest.mark.parametrize("what", ["changed", "gone", "link", "half"])
def test_a_run_that_changed_meanwhile_is_not_taken_over(root: Root, tmp_path: Path, what: str) -> None:
    """What is copied must be what the journal says."""
    output = root.complete / PARENT / "tasks" / "plan" / "output.json"
    if what == "changed":
        output.write_text('{"parts": []}')
    elif what == "gone":
        output.unlink()
    elif what == "link":
        output.rename(tmp_path / "elsewhere")
        output.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.rmtree(output.parent)
    with pytest.raises(SeedRejected) as caught:
        seal(root, drop(root, seed_of()))
    assert caught.value.code == "run-changed" and "--fork once more" in str(caught.value.hint)


@pytest.mark.parametrize("journal", [b"", b"junk\n", b'{"event": "run.created"}\n', b'{"event": 1}\n[1]\n'])
def test_a_run_that_cannot_be_read_is_not_taken_over(root: Root, journal: bytes) -> None:
    """The seed is rejected, and nothing else happens."""
    (root.complete / PARENT / "events.jsonl").write_bytes(journal)
    with pytest.raises(SeedRejected):
        seal(root, drop(root, seed_of()))


def test_a_crash_before_any_system_call_is_repeatable(tmp_path: Path) -> None:
    """The next start seals the same fork, whole, or it was sealed."""
    number = 0
    while True:
        number += 1
        root = make_root(tmp_path / str(number))
        parent_in(root.complete)
        claimed = drop(root, seed_of())
        try:
            with crash_before(number):
                seal(root, claimed)
            break
        except Crash:
            pass
        for left in admission.unfinished_claims(root):
            seal(root, left)
        assert admission.unfinished_claims(root) == []
        assert sorted(path.name for path in (claimed.run_dir / "tasks").iterdir()) == ["draft.0", "plan"], number
        assert (claimed.run_dir / "files" / "doc.txt").read_text() == "hello"
        assert set(read_history(claimed.run_dir).instances) == {"plan", "draft.0"}
    assert number > 20


def test_what_is_taken_over_is_on_the_disk_before_the_journal_says_so(root: Root) -> None:
    """Bytes and names."""
    claimed = drop(root, seed_of())
    with recorded(root.path) as power:
        seal(root, claimed)
    risk = at_risk(root, power.moment("rename", "/events.jsonl"))
    run = f"pipeline-current/{claimed.run_dir.name}"
    assert not [path for path in risk if path.startswith((f"{run}/tasks", f"{run}/files"))]


def test_the_command_puts_a_fork_into_the_queue(root: Root) -> None:
    """Of a complete run without asking; with what is set in its data, and without its id."""
    (root.path / "pipeline.json").write_text('{"tasks": ["plan"]}')
    result = pop("rerun", PARENT, "--from", "draft", "--set", "seed.yes=false", "--json", root=root.path)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["fork"] and row["stale"] == ["draft.0", "draft.1", "join"]
    seed = json.loads(Path(row["seed"]).read_bytes())
    assert seed["data"] == {"yes": False} and seed["priority"] == 5 and "id" not in seed
    assert seed["fork"] == {"run": PARENT, "from": ["draft"], "set": {}}
    assert set(read_history(seal(root, drop(root, seed))).instances) == {"plan"}


def test_a_step_that_no_run_has_is_told(root: Root) -> None:
    """Where every run is passed over, nothing was done; and where to begin has to be said."""
    nothing = pop("rerun", "--all", "--fork", "--from", "nope", root=root.path)
    assert nothing.returncode == 2 and f"{PARENT}: " in nothing.stderr
    assert "usage: no run was run again\n  where: --from nope\n  hint: " in nothing.stderr
    unsaid = pop("rerun", PARENT, root=root.path)
    assert unsaid.returncode == 2 and unsaid.stderr.startswith("usage: from which step?\n  where: --from\n  hint: ")
