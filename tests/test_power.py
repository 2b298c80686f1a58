"""What must be on the disk before each point of no return, as docs/architecture.md has it.

A process is killed at any instant elsewhere (test_admission, test_kills); there the page cache survives. Here every
system call is recorded, and with it what a power cut would have taken at that instant.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pop import admission, attempts
from pop.admission import Claimed
from pop.diskwork import DiskWork
from pop.errors import SeedRejected
from pop.executors import Attempt, Result
from pop.ledger import Ledger
from pop.records import FileRef, Letter, Limits, dump_json
from pop.settings import Root, SeedSettings
from pop.store import Disk, Later
from tests.power import Moment, Power, recorded

LIMITS = SeedSettings(settle_s=0.0)
PIPELINE = b'{"name": "p", "tasks": ["a"]}'


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = Root(tmp_path.resolve())
    for folder in (root.rejected, root.current, root.complete, root.machine_room):
        folder.mkdir(parents=True)
    Ledger(root, Disk()).settle()
    return root


def claim(root: Root, name: str = "a.json", text: str = '{"x": 1}') -> Claimed:
    if not (root.pending / name).exists():
        (root.pending / name).write_text(text)
    (claimed,) = admission.claim(root, Disk(), [name], 0.0, random.Random(1))
    return claimed


def seal(root: Root, claimed: Claimed) -> None:
    seed, data = admission.read_claim(claimed, LIMITS)
    admission.seal(
        root, Disk(), claimed, seed, data,
        pipeline_name="default", pipeline_bytes=PIPELINE, provenance={}, now=1_800_000_000.0,
    )  # fmt: skip


def relative(root: Root, paths: Any) -> set[str]:
    return {os.path.relpath(path, root.path) for path in paths}


def at_risk(root: Root, moment: Moment) -> set[str]:
    """Files whose bytes, and names that, a power cut at this moment would take."""
    return relative(root, moment.bytes_at_risk | moment.names_at_risk)


def left_at_risk(root: Root, power: Power) -> set[str]:
    contents, names = power.at_risk()
    return relative(root, contents | names)


def test_a_claim_moves_a_seed_into_a_folder_that_is_there(root: Root) -> None:
    """The run's folder is durable before the rename, the rename before the claim returns."""
    with recorded(root.path) as power:
        claimed = claim(root)
    run = f"pipeline-current/{claimed.run_dir.name}"
    assert run not in at_risk(root, power.moment("rename", "/seed.claim"))
    risk = left_at_risk(root, power)
    assert f"{run}/seed.claim" not in risk
    assert {"pipeline-pending/a.json"} & risk == set()


@pytest.mark.parametrize("kind", ["file", "linked", "folder", "zip"])
def test_a_seal_writes_the_journal_last(root: Root, tmp_path: Path, kind: str) -> None:
    """Bytes of seed, files and pipeline are on the disk before the journal says that the run stands on its own."""
    name = {"folder": "job", "zip": "job.zip"}.get(kind, "a.json")
    if kind == "folder":
        (root.pending / "job").mkdir()
        (root.pending / "job" / "seed.json").write_text("{}")
        (root.pending / "job" / "doc.txt").write_text("hello")
    elif kind == "zip":
        with zipfile.ZipFile(root.pending / "job.zip", "w") as archive:
            archive.writestr("seed.json", "{}")
            archive.writestr("doc.txt", "hello")
    claimed = claim(root, name)
    if kind == "linked":  # somebody knows the file by another name, so that the run gets a copy
        os.link(claimed.run_dir / admission.CLAIM, root.path / "other")
    with recorded(root.path) as power:
        seal(root, claimed)
    journal = power.moment("rename", "/events.jsonl")
    contents = relative(root, journal.bytes_at_risk)
    run = f"pipeline-current/{claimed.run_dir.name}"
    assert not contents & {f"{run}/seed.json", f"{run}/pipeline.json", f"{run}/files/doc.txt"}
    assert not any(path.endswith(".tmp") and "events" in path for path in contents)
    if kind in ("folder", "zip"):
        before = power.moments[: power.moments.index(journal)]
        assert [m for m in before if m.call in ("fsync", "fdatasync") and m.path.endswith("files/doc.txt")]
    risk = left_at_risk(root, power)
    assert not risk & {f"{run}/seed.json", f"{run}/pipeline.json", f"{run}/events.jsonl"}


@pytest.mark.parametrize("lost", ["seed.json", "pipeline.json"])
def test_a_journal_that_reached_the_disk_before_the_seed_is_sealed_again(root: Root, lost: str) -> None:
    """Where renames are not ordered, a power cut may keep the journal's and lose another one: the claim still stands."""
    claimed = claim(root)
    seal(root, claimed)
    os.rename(claimed.run_dir / "seed.json", claimed.run_dir / "seed.claim")
    (claimed.run_dir / lost).unlink(missing_ok=True)
    assert [one.run_dir for one in admission.unfinished_claims(root)] == [claimed.run_dir]
    seal(root, claimed)
    assert (claimed.run_dir / lost).exists() and not (claimed.run_dir / "seed.claim").exists()


def test_the_files_of_a_seed_have_their_names_on_the_disk(root: Root) -> None:
    """The folders a zip brings are fsynced too."""
    with zipfile.ZipFile(root.pending / "job.zip", "w") as archive:
        archive.writestr("seed.json", "{}")
        archive.writestr("docs/doc.txt", "hello")
    claimed = claim(root, "job.zip")
    with recorded(root.path) as power:
        seal(root, claimed)
    files = f"pipeline-current/{claimed.run_dir.name}/files"
    risk = relative(root, power.moment("rename", "/events.jsonl").names_at_risk)
    assert not {path for path in risk if path == files or path.startswith(files)}


def test_an_id_is_bound_before_the_run_is_sealed(root: Root) -> None:
    """So that of two seeds with one id never both are sealed."""
    claimed = claim(root, text='{"data": 1, "id": "order-7"}')
    with recorded(root.path) as power:
        seal(root, claimed)
    link = next(moment for moment in power.moments if moment.call == "link")
    assert not {path for path in relative(root, link.bytes_at_risk) if ".ids" in path}
    bound = os.path.relpath(link.path, root.path)
    assert bound not in at_risk(root, power.moment("rename", "/events.jsonl"))


def test_a_refusal_has_its_reason_first(root: Root) -> None:
    """The reason's bytes are on the disk before the seed moves; both names before it is over."""
    (root.pending / "a.json").write_text("[1]")
    with recorded(root.path) as power:
        admission.reject(root, Disk(), root.pending / "a.json", "a.json", SeedRejected("no"), 0.0)
    move = power.moment("rename", "rejected/a.json")
    assert "pipeline-pending/rejected/a.json.reason.json" not in relative(root, move.bytes_at_risk)
    assert not left_at_risk(root, power) & {
        "pipeline-pending/a.json", "pipeline-pending/rejected/a.json", "pipeline-pending/rejected/a.json.reason.json",
    }  # fmt: skip


# -- the commit of a step ------------------------------------------------------------------------------------------


def attempt_in(run_dir: Path, *, number: int = 1) -> tuple[Letter, Attempt]:
    """An attempt whose worker has left an output and an artifact, none of it fsynced."""
    letter = Letter(
        run_id=run_dir.name, run_name="r", instance="a", step="a", task="a", tasks_dir="", run_dir=str(run_dir),
        attempt=number, attempt_id=f"a/{number}", generation=1, deadline_at=0.0, limits=Limits(),
        seed=FileRef(path="seed.json", sha256=""),
    )  # fmt: skip
    letter, attempt, _ = attempts.begin(Disk(), run_dir, letter)
    folder = Path(attempt.attempt_dir)
    for path, data in (("output.json", b'{"n": 1}\n'), ("artifacts/deep/brief.md", b"# Brief\n")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, data)
        os.close(fd)
    return letter, attempt


def commit(root: Root, run_dir: Path, *, artifacts: bool) -> None:
    """What the orchestrator does with an attempt that went well."""
    letter, attempt = attempt_in(run_dir)
    if not artifacts:
        for path in sorted(Path(attempt.attempt_dir, "artifacts").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        Path(attempt.attempt_dir, "artifacts").rmdir()

    async def work() -> None:
        disk_work = DiskWork(root, Disk(), lambda: None)
        with Later(disk_work.disk) as files:
            outcome = attempts.judge_and_place(files, run_dir, attempt, letter, Result("a", "exited", code=0))
            assert outcome.error is None
            line = dump_json(attempts.done_event(letter, outcome, 0.1), pretty=False)
            await disk_work.commit(files, run_dir / "events.jsonl", line)

    asyncio.run(work())


@pytest.mark.parametrize("artifacts", [False, True], ids=["output", "output and artifacts"])
def test_a_step_is_done_when_its_output_is_on_the_disk(root: Root, artifacts: bool) -> None:
    """Bytes and names of output and artifacts, and of the folders they stand in, before the line that says so."""
    claimed = claim(root)
    seal(root, claimed)
    run = f"pipeline-current/{claimed.run_dir.name}"
    with recorded(root.path) as power:
        commit(root, claimed.run_dir, artifacts=artifacts)
    moment = power.moment("write", "/events.jsonl", b"step.done")
    step = f"{run}/tasks/a"
    counts = {step, f"{step}/output.json"}
    if artifacts:
        counts |= {f"{step}/artifacts", f"{step}/artifacts/deep", f"{step}/artifacts/deep/brief.md"}
        assert (root.path / step / "artifacts" / "deep" / "brief.md").read_bytes() == b"# Brief\n"
    assert not at_risk(root, moment) & counts
    assert f"{run}/events.jsonl" not in left_at_risk(root, power)


def test_the_folder_of_all_steps_is_on_the_disk_too(root: Root) -> None:
    """tasks/ itself is a name in the run's folder: without it no output stands anywhere."""
    claimed = claim(root)
    seal(root, claimed)
    with recorded(root.path) as power:
        commit(root, claimed.run_dir, artifacts=False)
    moment = power.moment("write", "/events.jsonl", b"step.done")
    assert f"pipeline-current/{claimed.run_dir.name}/tasks" not in at_risk(root, moment)


def test_the_supervisor_trusts_no_worker_with_its_fsync(root: Root) -> None:
    """The output's bytes are synced by the supervisor itself, before it is called done."""
    claimed = claim(root)
    seal(root, claimed)
    with recorded(root.path) as power:
        commit(root, claimed.run_dir, artifacts=False)
    line = power.moment("write", "/events.jsonl", b"step.done")
    before = power.moments[: power.moments.index(line)]
    assert [m for m in before if m.call in ("fsync", "fdatasync") and m.path.endswith("output.json")]


# -- promotion -----------------------------------------------------------------------------------------------------


def test_a_line_of_the_ledger_comes_when_everything_else_is_there(root: Root) -> None:
    """The intent before the rename, both parents before the line, the line before it is over; for several runs."""
    run_dirs = [claim(root, f"{number}.json").run_dir for number in range(3)]
    for run_dir in run_dirs:
        seal(root, Claimed(run_dir, run_dir.name))
        Disk().put(run_dir / "record.json", dump_json({"run_id": run_dir.name}))
    lines = {path.name: dump_json({"run_id": path.name}, pretty=False) for path in run_dirs}
    with recorded(root.path) as power:
        Ledger(root, Disk()).promote(lines)
    for run_dir in run_dirs:
        move = power.moment("rename", f"pipeline-complete/{run_dir.name}")
        assert ".pop/promoting" not in at_risk(root, move)
    line = power.moment("write", "/runs.jsonl")
    moved = {f"{folder}/{path.name}" for path in run_dirs for folder in ("pipeline-current", "pipeline-complete")}
    assert not at_risk(root, line) & moved
    assert "pipeline-complete/runs.jsonl" not in relative(root, power.at_risk()[0])
    assert [json.loads(text)["run_id"] for text in root.ledger.read_bytes().splitlines()] == list(lines)


def test_the_first_line_of_the_ledger_has_its_file_on_the_disk(root: Root) -> None:
    """Repaired at the next start, as long as .pop/promoting names the run."""
    claimed = claim(root)
    seal(root, claimed)
    with recorded(root.path) as power:
        Ledger(root, Disk()).promote({claimed.run_dir.name: b"{}\n"})
    assert "pipeline-complete/runs.jsonl" not in left_at_risk(root, power)


def test_new_intents_are_whole_or_not_there(root: Root) -> None:
    """The list of intents is replaced by one rename of a durable file."""
    with recorded(root.path) as power:
        Ledger(root, Disk()).settle()
    moment = power.moment("rename", ".pop/promoting")
    assert moment.bytes_at_risk == frozenset()
    assert left_at_risk(root, power) - {path for path in left_at_risk(root, power) if ".tmp" in path} == set()


def test_fast_durability_syncs_nothing(root: Root) -> None:
    """Only then: the very same work, and no fsync in it."""
    with recorded(root.path) as power:
        (root.pending / "a.json").write_text("{}")
        (claimed,) = admission.claim(root, Disk(durable=False), ["a.json"], 0.0, random.Random(1))
        Ledger(root, Disk(durable=False)).promote({claimed.run_dir.name: b"{}\n"})
    assert not [moment for moment in power.moments if moment.call in ("fsync", "fdatasync")]
