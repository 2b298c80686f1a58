"""What the command line and the dashboard do alike: seeds that are sent, orders, answers with edits."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest

from pop.acts import PLANS, DoesNotFit, Wish, order, rerun
from pop.answering import answer_gate, open_gate_of
from pop.drops import Upload, drop
from pop.errors import ConfigError, PopError, SeedRejected, UsageError
from pop.gates import AlreadyAnswered, answer_of
from pop.records import dump_json
from pop.runs import Run
from pop.settings import Root
from tests.test_admission import make_root
from tests.test_gate_commands import opened
from tests.test_gates import RUN, journal


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path)
    (root.path / "pipeline.json").write_text('{"tasks": ["a"]}')
    root.tasks.mkdir(exist_ok=True)
    (root.tasks / "a.md").write_text("{{ seed.topic }}")
    return root


def sent(*files: tuple[str, bytes]) -> list[Upload]:
    return [Upload(name, io.BytesIO(data)) for name, data in files]


def zipped(**files: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return made.getvalue()


def queue(root: Root) -> list[str]:
    """Everything below pipeline-pending/, drafts included."""
    return sorted(name for name in os.listdir(root.pending) if name != "rejected")


SEED = b'{"topic": "tides"}'


def test_what_is_sent_appears_whole(root: Root) -> None:
    """A .json and a .zip as they are, several files as a folder; the same name twice gets a number."""
    assert drop(root, sent(("a.json", SEED))).read_bytes() == SEED
    assert drop(root, sent(("a.json", SEED))).name == "a-2.json"
    archive = zipped(seed__json=SEED, notes__txt=b"low and high")
    assert drop(root, sent(("b.zip", archive))).read_bytes() == archive
    folder = drop(root, sent(("seed.json", SEED), ("notes.txt", b"low")), name="sea")
    assert folder.name == "sea" and (folder / "notes.txt").read_bytes() == b"low"
    assert queue(root) == ["a-2.json", "a.json", "b.zip", "sea"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([], "bad-seed"),
        ([("a.txt", b"{}")], "bad-seed"),
        ([("a.json", b'{"topic":')], "bad-seed"),
        ([("a.json", b'{"a": 1, "a": 2}')], "bad-json"),
        ([("a.json", b'{"data": {}, "pipeline": "nope"}')], "unknown-pipeline"),
        ([("a.json", b'"' + b"x" * 2**20 + b'"')], "seed-too-large"),
        ([("seed.json", SEED), ("b.bin", b"x" * 3 * 2**20)], "seed-too-large"),
        ([("seed.json", SEED), *((f"{n}.txt", b"") for n in range(6))], "seed-too-large"),
        ([("b.txt", b""), ("c.txt", b"")], "bad-seed"),
        ([("seed.json", SEED), ("b.txt", b""), ("b.txt", b"")], "bad-seed"),
        ([("a.zip", b"PK")], "bad-seed"),
        ([("a.zip", zipped(seed__json=SEED, big=b"0" * 2**21))], "bad-seed"),
        ([("a.zip", zipped(**{"seed__json": SEED, "__/__/x": b""}))], "bad-seed"),
        ([("../a.json", SEED)], "bad-name"),
        ([("a\\b.json", SEED)], "bad-name"),
        ([(".hidden.json", SEED)], "bad-name"),
        ([("a\n.json", SEED)], "bad-name"),
        ([("\ud800.json", SEED)], "bad-name"),
        ([("x" * 300 + ".json", SEED)], "bad-name"),
        ([("-", SEED)], "bad-seed"),
    ],
)
def test_what_cannot_be_a_seed_leaves_nothing(root: Root, files: list[tuple[str, bytes]], code: str) -> None:
    """By the limits of [seeds]: size, count, expansion; names that lead elsewhere; and no draft stays."""
    root.settings_file.write_text("[seeds]\nmax_mb = 0.5\nmax_files = 5\nmax_files_mb = 2\n")
    with pytest.raises((SeedRejected, UsageError, ConfigError)) as caught:
        drop(root, sent(*files))
    assert caught.value.code == code
    assert queue(root) == []


def test_no_more_is_read_than_fits(root: Root) -> None:
    """Of what never ends a bounded part is written to the disk."""

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    root.settings_file.write_text("[seeds]\nmax_files_mb = 3\n")
    source = Endless()
    with pytest.raises(SeedRejected):
        drop(root, [Upload("a.zip", source)])  # type: ignore[arg-type]
    assert source.given <= 5 * 2**20 and queue(root) == []


# -- orders ------------------------------------------------------------------------------------------------------------


def run_in(root: Root, state: str) -> Run:
    place = "complete" if state == "complete" else "current"
    path = (root.complete if place == "complete" else root.current) / f"20261121-031502-{state}-abcd"
    path.mkdir()
    (path / "events.jsonl").write_text('{"event": "run.created"}\n')
    status = {"run_id": path.name, "name": state, "state": state, "tasks": {}, "pipeline": "default"}
    (path / "tasks-status.json").write_bytes(dump_json(status))
    return Run(path, place)


FITS = {
    "cancel": {"running", "waiting", "paused", "failed"},
    "pause": {"running", "waiting"},
    "resume": {"paused"},
    "retry": {"failed", "cancelled"},
}


@pytest.mark.parametrize("verb", PLANS)
@pytest.mark.parametrize("state", ["running", "waiting", "paused", "failed", "cancelled", "complete"])
def test_an_order_writes_its_file_or_says_why_not(root: Root, verb: str, state: str) -> None:
    """One table for all orders and states."""
    run = run_in(root, state)
    try:
        given = order(run, verb, "because")
    except DoesNotFit:
        given = None
    assert (given is not None and given.file is not None) == (state in FITS[verb])
    if given and given.file:
        assert given.file == run.path / "orders" / f"{verb}.json"
        assert json.loads(given.file.read_bytes())["reason"] == "because"
    else:
        assert given is None or given.note
        assert not list(run.path.glob("orders/*"))


def test_a_rerun_of_what_never_ran_is_refused(root: Root) -> None:
    """And nothing is written."""
    run = run_in(root, "failed")
    with pytest.raises(PopError):
        rerun(root, run, Wish(["a"]))
    assert not (run.path / "orders").exists() and queue(root) == []


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(root: Root) -> Run:
    """A run whose gate ``review`` shows a text and an object."""
    run_dir = root.current / RUN
    for step, value in (("draft", "low\n"), ("facts", {"a": 1})):
        (run_dir / "tasks" / step).mkdir(parents=True)
        (run_dir / "tasks" / step / "output.json").write_bytes(dump_json(value))
    created = {"run_id": RUN, "name": "a", "pipeline": "default", "seed_file": "a.json"}
    journal(run_dir, {"event": "run.created", **created}, {"event": "run.started"})
    opened(root, "review", shown=["draft", "facts"])
    return Run(run_dir, "current")


DRAFT, FACTS = "tasks/review/show/draft.md", "tasks/review/show/facts.json"


def test_edits_are_laid_down_before_the_answer(gate: Run) -> None:
    """As by an editor; the answer says how it came."""
    assert open_gate_of(gate, None) == "review"
    path, _ = answer_gate(gate, "review", "approve", text="fine", how="dashboard", edits={DRAFT: b"high\n"})
    assert path == gate.path / "tasks/review/decision.json"
    assert (gate.path / DRAFT).read_text() == "high\n"
    answer = answer_of(path.parent)
    assert answer and (answer.how, answer.text) == ("dashboard", "fine")


@pytest.mark.parametrize(
    "edits",
    [{DRAFT: b"high\n", FACTS: b"{"}, {DRAFT: b"\xff"}, {DRAFT: b"high\n", "tasks/draft/output.json": b'"x"'},
     {"../../../pop.toml": b""}, {"tasks/review/gate.json": b"{}"}],
)  # fmt: skip
def test_edits_that_cannot_be_taken_change_nothing(gate: Run, edits: dict[str, bytes]) -> None:
    """What is no JSON, no UTF-8, or no copy of the gate; what the person had edited before stays."""
    (gate.path / FACTS).write_text('{"a": 2}')
    before = {path: path.read_bytes() for path in gate.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError):
        answer_gate(gate, "review", "approve", text=None, edits=edits)
    assert {path: path.read_bytes() for path in gate.path.rglob("*") if path.is_file()} == before


def test_edits_after_an_answer_are_refused(gate: Run) -> None:
    """Somebody was first: the copies are theirs."""
    answer_gate(gate, "review", "approve", text=None)
    with pytest.raises(AlreadyAnswered):
        answer_gate(gate, "review", "approve", text=None, edits={DRAFT: b"high\n"})
    assert (gate.path / DRAFT).read_text() == "low\n"
