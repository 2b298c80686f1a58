"""Gates: what a person is shown, how they answer, and that the first answer counts, whenever the power goes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pop import gateanswers, gates, gateshow, store
from pop.errors import UsageError
from pop.events import unix_s
from pop.gatepage import loop_key
from pop.gates import (
    AlreadyAnswered,
    Answer,
    BadEdit,
    GateNotOpen,
    answer_of,
    find_answer,
    give_answer,
    open_gate,
    owner,
    problem_of,
    set_aside,
    take_edits,
    write_output,
)  # fmt: skip
from pop.gateshow import Shown, diff, sha256_of
from pop.records import dump_json
from pop.store import Disk
from tests.power import recorded

T = "2026-11-21T03:15:02.000Z"
RUN = "20261121-031502-a-aaaa"
ALL = ["approve", "reject", "request-changes"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose draft and facts are done; the draft is a text with an artifact."""
    folder = tmp_path / RUN
    (folder / "tasks" / "draft" / "artifacts").mkdir(parents=True)
    (folder / "tasks" / "facts").mkdir()
    (folder / "tasks" / "draft" / "output.json").write_text('"# Title\\n\\nSome words."')
    (folder / "tasks" / "draft" / "artifacts" / "plot.bin").write_bytes(b"\x00\xff\x01")
    (folder / "tasks" / "facts" / "output.json").write_text('{"n":1,"of":["a","b"]}')
    journal(
        folder, {"event": "run.created", "run_id": RUN, "name": "a", "pipeline": "default", "seed_file": "article.json"}
    )
    return folder


def journal(run_dir: Path, *rows: dict[str, Any]) -> None:
    with open(run_dir / "events.jsonl", "ab") as file:
        file.write(b"".join(dump_json({"at": T, **row}, pretty=False) for row in rows))


def opened(run_dir: Path, instance: str = "review", **about: Any) -> list[Shown]:
    given: dict[str, Any] = {
        "kind": "step", "title": "", "why": "Is it fit to print?", "shown": ["draft", "facts"], "options": ALL,
        "opening": 1, "expires_at": None, **about,
    }  # fmt: skip
    return open_gate(Disk(durable=False), run_dir, instance, **given)


def gate_of(run_dir: Path, instance: str = "review") -> Path:
    return run_dir / "tasks" / instance


def still(path: Path, seconds: float = 10.0) -> Path:
    """A file that nobody has changed for a while."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def found(run_dir: Path, instance: str = "review") -> Answer | None:
    return find_answer(Disk(durable=False), gate_of(run_dir, instance), time.time())


def test_an_opened_gate_shows_copies_and_says_how_to_answer(run_dir: Path) -> None:
    """Texts as Markdown, the rest as indented JSON, artifacts as they are."""
    shown = opened(run_dir)
    assert [(copy.instance, copy.path) for copy in shown] == [
        ("draft", "tasks/review/show/draft.md"),
        ("draft", "tasks/review/show/draft/plot.bin"),
        ("facts", "tasks/review/show/facts.json"),
    ]
    assert (run_dir / shown[0].path).read_text() == "# Title\n\nSome words.\n"
    assert json.loads((run_dir / shown[2].path).read_bytes()) == {"n": 1, "of": ["a", "b"]}
    page = (gate_of(run_dir) / "request.md").read_text()
    assert "> Is it fit to print?" in page and "`article.json`" in page and "Some words." in page
    assert f'    pop request-changes {RUN} review -m "..."' in page and "`CHANGES.md`" in page


def test_the_first_answer_counts_and_the_next_one_hears_of_it(run_dir: Path) -> None:
    """Who, when and how."""
    opened(run_dir)
    path = give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command", text=" fine ")
    assert path == gate_of(run_dir) / "decision.json"
    with pytest.raises(
        AlreadyAnswered, match=r"review was answered already: approve, by anna at .+Z \(command\): fine"
    ):
        give_answer(Disk(), gate_of(run_dir), "reject", by="bert", how="command")
    answer = found(run_dir)
    assert answer is not None and (answer.decision, answer.by, answer.text) == ("approve", "anna", "fine")


def test_edits_become_the_output_and_the_old_version_stays(run_dir: Path) -> None:
    """Only what was changed is an edit."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("# Title\n\nBetter words.\n")
    edits = take_edits(Disk(), run_dir, gate_of(run_dir), shown, "review")
    assert [edit.path for edit in edits] == ["tasks/draft/output.json"]
    folder = run_dir / "tasks" / "draft"
    assert json.loads((folder / "output.json").read_bytes()) == "# Title\n\nBetter words."
    assert json.loads((folder / "output.before-review.json").read_bytes()) == "# Title\n\nSome words."
    assert "+Better words." in (gate_of(run_dir) / "edits.diff").read_text()
    answer = Answer(decision="approve", by="anna", at=T, how="command")
    sha256, size = write_output(Disk(), gate_of(run_dir), answer, edits)
    data = (gate_of(run_dir) / "output.json").read_bytes()
    assert (sha256, size) == (sha256_of(data), len(data))
    assert json.loads(data) == {**answer.model_dump(), "edited": ["tasks/draft/output.json"]}


# -- answers by file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text, decision",
    [("APPROVE", "", "approve"), ("REJECT", "too long", "reject"), ("CHANGES.md", "Shorter.\n", "request-changes")],
)
def test_a_file_answers(run_dir: Path, name: str, text: str, decision: str) -> None:
    """Its owner and its time are those of the answer; it becomes decision.json, and stays."""
    opened(run_dir)
    path = gate_of(run_dir) / name
    path.write_text(text)
    still(path)
    answer = found(run_dir)
    assert answer is not None
    assert (answer.decision, answer.text, answer.how) == (decision, text.strip() or None, f"file {name}")
    assert answer.by == owner(path.stat().st_uid) and abs(unix_s(answer.at) - path.stat().st_mtime) < 0.01
    assert path.exists() and found(run_dir) == answer
    with pytest.raises(AlreadyAnswered):
        give_answer(Disk(), gate_of(run_dir), "approve", by="bert", how="command")


@pytest.mark.parametrize("name", ["APPROVE", "REJECT", "CHANGES.md"])
def test_a_file_that_is_being_written_waits(run_dir: Path, name: str) -> None:
    """A second without a change, also where the clocks of two machines differ a little; a time far ahead is no reason."""
    opened(run_dir)
    path = gate_of(run_dir) / name
    path.write_text("first half")
    now = path.stat().st_mtime
    for moment in (now, now + 0.9, now - 1.5):
        assert find_answer(Disk(), gate_of(run_dir), moment) is None
    assert not (gate_of(run_dir) / "decision.problem.json").exists()
    assert find_answer(Disk(), gate_of(run_dir), now - 86400) is not None


def test_of_several_files_the_oldest_counts(run_dir: Path) -> None:
    """And of two with the same time the more careful one."""
    opened(run_dir)
    for name, age in (("APPROVE", 10), ("REJECT", 20), ("CHANGES.md", 15)):
        (gate_of(run_dir) / name).write_text("x")
        still(gate_of(run_dir) / name, age)
    answer = found(run_dir)
    assert answer is not None and answer.decision == "reject"


def test_of_two_files_of_one_instant_the_careful_one_counts(run_dir: Path) -> None:
    """`touch APPROVE REJECT` is no yes."""
    opened(run_dir)
    for name in ("APPROVE", "REJECT"):
        (gate_of(run_dir) / name).touch()
        os.utime(gate_of(run_dir) / name, ns=(10**18, 10**18))
    answer = found(run_dir)
    assert answer is not None and answer.decision == "reject"


def test_a_file_that_came_before_the_command_is_first(run_dir: Path) -> None:
    """Also while no daemon runs that could have seen it."""
    opened(run_dir)
    (gate_of(run_dir) / "REJECT").write_text("no")
    still(gate_of(run_dir) / "REJECT")
    with pytest.raises(AlreadyAnswered, match=r"reject, by .+ \(file REJECT\): no"):
        give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command")


@pytest.mark.parametrize("name", ["APPROVE", "REJECT", "CHANGES.md", "decision.json"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "socket", "huge"])
def test_what_is_no_plain_file_never_counts_and_never_hangs(
    run_dir: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and a real answer still gets through."""
    opened(run_dir)
    path = gate_of(run_dir) / name
    yes = run_dir / "yes"
    yes.write_text('{"decision": "approve"}')
    if kind in ("link", "dangling"):
        path.symlink_to(yes if kind == "link" else run_dir / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
        (path / "x").touch()
    elif kind == "socket":
        monkeypatch.chdir(gate_of(run_dir))  # its path is too long otherwise
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    else:
        path.write_bytes(b"x" * (gateanswers.MAX_DECISION_BYTES + 1))
        still(path)
    assert found(run_dir) is None
    problem = problem_of(gate_of(run_dir))
    assert problem is not None and problem["file"] == name and problem["problem"]
    give_answer(Disk(), gate_of(run_dir), "reject", by="anna", how="command")
    answer = found(run_dir)
    assert answer is not None and answer.decision == "reject" and problem_of(gate_of(run_dir)) is None


@pytest.mark.parametrize(
    "name, meant",
    [("approve", "APPROVE"), ("APPROVE.txt", "APPROVE"), ("Approved.md", "APPROVE"), ("CHANGES", "CHANGES.md"),
     ("changes.md", "CHANGES.md"), ("REJECT.md", "REJECT"), ("decision.txt", "decision.json"),
     ("decision.json.txt", "decision.json"), ("DECISION.JSON", "decision.json")],
)  # fmt: skip
def test_a_name_that_is_almost_right_is_told(run_dir: Path, name: str, meant: str) -> None:
    """It counts for nothing, and decision.problem.json names the right one."""
    opened(run_dir)
    (gate_of(run_dir) / name).write_text('{"decision": "approve"}')
    still(gate_of(run_dir) / name)
    assert found(run_dir) is None
    problem = problem_of(gate_of(run_dir))
    assert problem is not None and (problem["file"], problem["hint"]) == (name, f"rename it to {meant}")
    before = (gate_of(run_dir) / "decision.problem.json").stat()
    assert found(run_dir) is None
    after = (gate_of(run_dir) / "decision.problem.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)  # written once


@pytest.mark.parametrize("name", [".CHANGES.md.swp", "CHANGES.md~", "notes.md", ".decision.1.aa.tmp", "4913"])
def test_what_editors_leave_is_nothing(run_dir: Path, name: str) -> None:
    """No answer and no complaint."""
    opened(run_dir)
    (gate_of(run_dir) / name).write_text("x")
    still(gate_of(run_dir) / name)
    assert found(run_dir) is None and problem_of(gate_of(run_dir)) is None


@pytest.mark.parametrize("data", [b"", b"  \n", b"\xff\xfe", b"x" * (gateanswers.MAX_TEXT_BYTES + 1)])
def test_a_changes_file_needs_words(run_dir: Path, data: bytes) -> None:
    """Few enough to be read, in UTF-8."""
    opened(run_dir)
    (gate_of(run_dir) / "CHANGES.md").write_bytes(data)
    still(gate_of(run_dir) / "CHANGES.md")
    assert found(run_dir) is None and problem_of(gate_of(run_dir)) is not None


# -- decision.json by hand -----------------------------------------------------------------------------------------


def decide(run_dir: Path, text: str | bytes, age_s: float = 10.0) -> None:
    path = gate_of(run_dir) / "decision.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    still(path, age_s)


def test_a_decision_by_hand_needs_only_the_decision(run_dir: Path) -> None:
    """Who and when are those of the file."""
    opened(run_dir)
    decide(run_dir, '{"decision": "approve"}', age_s=0.0)
    answer = found(run_dir)
    assert answer is not None and (answer.decision, answer.how) == ("approve", "decision.json")
    assert answer.by == owner(os.getuid())


def test_a_decision_by_hand_may_say_more(run_dir: Path) -> None:
    """Text and name."""
    opened(run_dir)
    decide(run_dir, '{"decision": "request-changes", "text": "shorter", "by": "the board"}')
    answer = found(run_dir)
    assert answer is not None and (answer.text, answer.by) == ("shorter", "the board")


@pytest.mark.parametrize(
    "text, said, hint",
    [
        ('{"decision": "aprove"}', "no decision 'aprove'", "did you mean 'approve'?"),
        ('{"decision": "APPROVED"}', "no decision 'APPROVED'", "did you mean 'approve'?"),
        ('{"decision": "request_changes", "text": "x"}', "no decision", "did you mean 'request-changes'?"),
        ('{"decision": "request-changes"}', "without a text", "say what"),
        ('{"decision": "request-changes", "text": " "}', "without a text", "say what"),
        ('{"decison": "approve"}', "unknown", "did you mean 'decision'?"),
        ('{"decision": true}', "no decision 'True'", "e.g."),
        ('{"decision": ["approve"]}', "no decision", "e.g."),
        ("{}", "holds no decision", "e.g."),
        ('{"decision": "approve", "text": 7}', "text:", "e.g."),
        ('{"decision": "approve"', "not valid JSON", "e.g."),
        ('{"decision": "approve", "decision": "reject"}', "twice", "e.g."),
        ("[]", "no JSON object", "e.g."),
        ("", "not valid JSON", "e.g."),
        (b"\xff", "not UTF-8", "e.g."),
        ("[" * 5000, "nested", "e.g."),
    ],
)
def test_a_decision_that_is_none_is_set_aside(run_dir: Path, text: str | bytes, said: str, hint: str) -> None:
    """The gate stays open, and decision.problem.json tells why; half-written ones get two seconds."""
    opened(run_dir)
    decide(run_dir, text, age_s=0.0)
    assert found(run_dir) is None and (gate_of(run_dir) / "decision.json").exists()
    decide(run_dir, text)
    assert found(run_dir) is None and not (gate_of(run_dir) / "decision.json").exists()
    problem = problem_of(gate_of(run_dir))
    assert problem is not None and said in problem["problem"] and hint in problem["hint"], problem
    assert problem["set_aside"] == "decision.invalid-1.json"
    decide(run_dir, text)
    assert found(run_dir) is None and (gate_of(run_dir) / "decision.invalid-2.json").exists()
    give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command")
    assert found(run_dir) is not None and problem_of(gate_of(run_dir)) is None


def test_a_gate_takes_only_its_own_decisions(run_dir: Path) -> None:
    """An invalid order of a task cannot be changed by words, however they come."""
    opened(run_dir, options=["approve", "reject"])
    decide(run_dir, '{"decision": "request-changes", "text": "x"}')
    (gate_of(run_dir) / "CHANGES.md").write_text("x")
    still(gate_of(run_dir) / "CHANGES.md")
    assert found(run_dir) is None
    assert found(run_dir) is None
    with pytest.raises(UsageError, match="no answer here"):
        give_answer(Disk(), gate_of(run_dir), "request-changes", by="anna", how="command", text="x")


def test_an_answer_where_nothing_is_asked_is_refused(run_dir: Path) -> None:
    """A step that is no gate, and a folder that is not there."""
    for name in ("draft", "nothing"):
        with pytest.raises(GateNotOpen):
            give_answer(Disk(), run_dir / "tasks" / name, "approve", by="anna", how="command")


@pytest.mark.parametrize("how", ["threads", "processes"])
def test_of_fifty_at_once_exactly_one_wins(run_dir: Path, how: str) -> None:
    """And everybody else hears of that one."""
    opened(run_dir)
    if how == "threads":
        with ThreadPoolExecutor(50) as pool:
            said = list(pool.map(answer_as, [str(gate_of(run_dir))] * 50, range(50)))
    else:
        with multiprocessing.get_context("spawn").Pool(8) as processes:
            said = processes.starmap(answer_as, [(str(gate_of(run_dir)), n) for n in range(50)])
    answer = found(run_dir)
    assert answer is not None
    assert sorted(set(said)) == sorted({"won", answer.by}) and said.count("won") == 1
    assert said.index("won") == int(answer.by.removeprefix("person "))
    assert not [name for name in os.listdir(gate_of(run_dir)) if name.startswith(".")]


def answer_as(gate_dir: str, number: int) -> str:
    decision: gates.Decision = "approve" if number % 2 else "reject"
    try:
        give_answer(Disk(durable=False), Path(gate_dir), decision, by=f"person {number}", how="command")
    except AlreadyAnswered as error:
        assert error.answer is not None
        return error.answer.by
    return "won"


# -- edits ---------------------------------------------------------------------------------------------------------


def edits_of(run_dir: Path, shown: list[Shown]) -> list[str]:
    edits = take_edits(Disk(durable=False), run_dir, gate_of(run_dir), shown, "review")
    return [edit.path for edit in edits]


def test_nothing_edited_changes_nothing(run_dir: Path) -> None:
    """Nor does a copy that was deleted, or saved with another layout."""
    shown = opened(run_dir)
    before = (run_dir / "tasks" / "facts" / "output.json").read_bytes()
    (run_dir / shown[0].path).unlink()
    (run_dir / shown[2].path).write_text('{"n": 1,\n "of": ["a", "b"]}')
    assert edits_of(run_dir, shown) == []
    assert (run_dir / "tasks" / "facts" / "output.json").read_bytes() == before
    assert not (gate_of(run_dir) / "edits.json").exists()


def test_json_artifacts_and_texts_are_taken(run_dir: Path) -> None:
    """Each as what it is, binary ones by their bytes, with every old version kept."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_bytes(b"\xef\xbb\xbfnew\r\n\n")
    (run_dir / shown[1].path).write_bytes(b"\x00\x00new")
    (run_dir / shown[2].path).write_text('{"n": true, "of": []}')
    assert edits_of(run_dir, shown) == [
        "tasks/draft/output.json", "tasks/draft/artifacts/plot.bin", "tasks/facts/output.json",
    ]  # fmt: skip
    draft, facts = run_dir / "tasks" / "draft", run_dir / "tasks" / "facts"
    assert json.loads((draft / "output.json").read_bytes()) == "new\r\n"
    assert json.loads((facts / "output.json").read_bytes()) == {"n": True, "of": []}
    assert (draft / "artifacts" / "plot.bin").read_bytes() == b"\x00\x00new"
    assert (draft / "artifacts.before-review" / "plot.bin").read_bytes() == b"\x00\xff\x01"
    assert (facts / "output.before-review.json").read_text() == '{"n":1,"of":["a","b"]}'
    text = (gate_of(run_dir) / "edits.diff").read_text()
    assert '+  "n": true,' in text and "plot.bin: 3 bytes before, 5 after" in text


@pytest.mark.parametrize("data", [b"{", b"", b"\xff", b'{"a": NaN}'])
def test_an_edit_that_is_no_json_is_refused_before_anything_changes(run_dir: Path, data: bytes) -> None:
    """`set_aside` then opens the gate again; mended, it is taken with the next answer."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("fine")
    (run_dir / shown[2].path).write_bytes(data)
    (gate_of(run_dir) / "APPROVE").touch()
    still(gate_of(run_dir) / "APPROVE")
    assert found(run_dir) is not None
    with pytest.raises(BadEdit) as error:
        edits_of(run_dir, shown)
    assert "# Title" in (run_dir / "tasks" / "draft" / "output.json").read_text()
    set_aside(Disk(), gate_of(run_dir), error.value)
    assert found(run_dir) is None
    problem = problem_of(gate_of(run_dir))
    assert problem is not None and "show/facts.json" in problem["problem"] and "once more" in problem["hint"]
    (run_dir / shown[2].path).write_text("[]")
    (gate_of(run_dir) / "APPROVE").touch()
    still(gate_of(run_dir) / "APPROVE")
    assert found(run_dir) is not None
    assert len(edits_of(run_dir, shown)) == 2


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_copy_that_is_no_plain_file_is_refused(run_dir: Path, kind: str) -> None:
    """It could be anybody's file; nothing is read from a pipe."""
    shown = opened(run_dir)
    path = run_dir / shown[0].path
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(BadEdit):
        edits_of(run_dir, shown)


def test_two_gates_do_not_overwrite_each_others_edits(run_dir: Path) -> None:
    """The later one is told that the original has changed."""
    one, other = opened(run_dir), opened(run_dir, "second")
    (run_dir / one[0].path).write_text("one")
    (run_dir / other[0].path).write_text("other")
    assert edits_of(run_dir, one) == ["tasks/draft/output.json"]
    with pytest.raises(BadEdit, match="has changed since"):
        take_edits(Disk(), run_dir, gate_of(run_dir, "second"), other, "second")
    (run_dir / other[0].path).unlink()
    assert take_edits(Disk(), run_dir, gate_of(run_dir, "second"), other, "second") == []


def test_a_huge_edit_has_a_short_diff(run_dir: Path) -> None:
    """And does not take for ever."""
    lines = [f"line {n % 7} {n}" for n in range(60_000)]
    (run_dir / "tasks" / "draft" / "output.json").write_text(json.dumps("\n".join(lines)))
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("\n".join(reversed(lines)) + "\n")
    (run_dir / shown[2].path).write_text(json.dumps({"n": 1, "of": ["a" * 10**6]}))
    began = time.monotonic()
    assert len(edits_of(run_dir, shown)) == 2
    assert time.monotonic() - began < 5
    text = (gate_of(run_dir) / "edits.diff").read_text()
    assert "too much for a diff: 60001 lines" in text and len(text) < 500_000


def test_a_diff_counts_lines_from_the_beginning_of_the_text() -> None:
    """Though what is alike at both ends is left out of the comparison."""
    before = "".join(f"{n}\n" for n in range(100))
    text = diff("x", before.encode(), before.replace("50\n", "fifty\n").encode())
    assert "@@ -48,7 +48,7 @@" in text and "-50\n+fifty\n" in text
    assert diff("x", b"a\n", b"b\n") == "--- x (before)\n+++ x\n@@ -1,2 +1,2 @@\n-a\n+b\n \n"


# -- openings ------------------------------------------------------------------------------------------------------


def test_a_second_opening_keeps_the_first_one(run_dir: Path) -> None:
    """In answers/1/, with all its files; the new page tells what was said."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("edited")
    give_answer(Disk(), gate_of(run_dir), "request-changes", by="anna", how="command", text="More `jokes`.")
    edits = take_edits(Disk(), run_dir, gate_of(run_dir), shown, "review")
    answer = found(run_dir)
    assert answer is not None
    write_output(Disk(), gate_of(run_dir), answer, edits)
    (gate_of(run_dir) / "APPROVE").touch()  # too late
    journal(run_dir, {"event": "gate.decided", "instance": "review", **answer.model_dump()})
    (run_dir / "tasks" / "draft" / "output.json").write_text('"second draft"')
    again = opened(run_dir, opening=2)
    assert (run_dir / again[0].path).read_text() == "second draft\n"
    assert set(os.listdir(gate_of(run_dir) / "answers" / "1")) == {
        "APPROVE", "decision.json", "edits.diff", "edits.json", "gate.json", "output.json", "request.md", "show",
    }  # fmt: skip
    assert set(os.listdir(gate_of(run_dir))) == {"answers", "gate.json", "request.md", "show"}
    page = (gate_of(run_dir) / "request.md").read_text()
    assert "opening 2" in page and "More `jokes`." in page
    assert found(run_dir) is None
    (run_dir / again[0].path).write_text("third")
    assert edits_of(run_dir, again) == ["tasks/draft/output.json"]
    kept = sorted(p.name for p in (run_dir / "tasks" / "draft").glob("output.before-*"))
    assert kept == ["output.before-review-2.json", "output.before-review.json"]


def test_a_recovery_gate_leaves_the_tasks_own_files_alone(run_dir: Path) -> None:
    """The failed instance itself waits: its folder holds a letter, attempts, and perhaps an old output."""
    folder = run_dir / "tasks" / "draft"
    for name in ("letter.json", "error.json"):
        (folder / name).write_text("{}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    opened(run_dir, "draft", kind="recovery", shown=[])
    opened(run_dir, "draft", kind="recovery", shown=[], opening=2)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(os.listdir(folder / "answers" / "1")) == ["gate.json", "request.md", "show"]


def test_a_repeated_opening_keeps_edits_and_answers(run_dir: Path) -> None:
    """The daemon may have died before it journaled that the gate is open."""
    shown = opened(run_dir)
    (run_dir / shown[0].path).write_text("edited")
    (gate_of(run_dir) / "APPROVE").touch()
    assert opened(run_dir, expires_at=1_800_000_000.0) == shown
    assert (run_dir / shown[0].path).read_text() == "edited" and (gate_of(run_dir) / "APPROVE").exists()
    assert "2027-01-15T08:00:00.000Z" in (gate_of(run_dir) / "request.md").read_text()


def test_an_old_answer_counts_no_second_time(run_dir: Path) -> None:
    """Also where gate.json is gone: a fork takes over answers, and people tidy up."""
    opened(run_dir)
    give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command")
    (gate_of(run_dir) / "gate.json").unlink()
    opened(run_dir, opening=2)
    assert found(run_dir) is None and answer_of(gate_of(run_dir) / "answers" / "1") is not None
    (gate_of(run_dir) / "APPROVE").touch()
    opened(run_dir, opening=2)
    assert (gate_of(run_dir) / "APPROVE").exists() and (gate_of(run_dir) / "gate.json").exists()


def test_a_gate_whose_files_somebody_removed_harms_nobody(run_dir: Path) -> None:
    """No answer is found there, and it can be opened once more."""
    shown = opened(run_dir)
    shutil.rmtree(gate_of(run_dir))
    assert found(run_dir) is None
    assert edits_of(run_dir, shown) == []
    assert opened(run_dir) == shown


def test_edits_that_somebody_tampered_with_are_refused(run_dir: Path) -> None:
    """Not a bug in POP; and nothing outside the run is touched."""
    shown = opened(run_dir)
    edit = {"instance": "draft", "path": "../../x", "before_sha256": "", "sha256": ""}
    (gate_of(run_dir) / "edited").mkdir()
    (gate_of(run_dir) / "edited" / "0").touch()
    broken: list[Any] = [[{"edit": edit, "kept": "tasks/y"}], [{"edit": 1}], [1], 7, None]
    for rows in broken:
        (gate_of(run_dir) / "edits.json").write_text(json.dumps(rows))
        with pytest.raises(BadEdit):
            edits_of(run_dir, shown)
    (gate_of(run_dir) / "edits.json").unlink()
    (run_dir / shown[0].path).write_text("new")
    (run_dir / "tasks" / "draft" / "output.json").unlink()
    (run_dir / "tasks" / "draft" / "output.json").mkdir()
    with pytest.raises(BadEdit):
        edits_of(run_dir, shown)


# -- request.md ----------------------------------------------------------------------------------------------------

HOSTILE = (
    "```\n# Not a heading\n````text\n<script>alert(1)</script>\n![x](http://evil.example/x.png)\n"
    "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\x00\r\x7f \u200b\ud83d\ude00 ~~~\n`````"
)  # fmt: skip


def outside_fences(page: str) -> str:
    """The Markdown of a page that a reader of CommonMark would not take for code."""
    kept, fence = [], ""
    for line in page.split("\n"):
        marks = re.match(r"`{3,}", line)
        if fence:
            if marks and line.strip() == marks[0] and len(marks[0]) >= len(fence):
                fence = ""
        elif marks:
            fence = marks[0]
        else:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


def test_hostile_text_stays_in_its_fence(run_dir: Path) -> None:
    """Whatever a model wrote: no way out of the fence, nothing that steers a terminal."""
    text = HOSTILE.encode("utf-16", "surrogatepass").decode("utf-16")
    (run_dir / "tasks" / "draft" / "output.json").write_text(json.dumps(text), encoding="utf-8")
    (run_dir / "tasks" / "facts" / "output.json").write_text(json.dumps({"a`b": text}))
    (run_dir / "tasks" / "draft" / "artifacts" / "`![x](y) `` | <b>.md").write_text(text)
    error = {"error_class": "invalid_output", "message": text, "where": text, "hint": text, "problems": [text] * 30}
    lap = {"event": "lap.ended", "key": "x", "lap": 1, "reason": text, "values": {"inputs.a": text}, "verdict": "ask"}
    journal(
        run_dir, {"event": "run.created", "run_id": RUN, "name": text, "pipeline": text, "seed_file": text}, lap,
        {"event": "step.attempt_failed", "instance": "x@1", "error": error},
        {"event": "step.done", "instance": "x@1", "control_error": text},
        {"event": "gate.decided", "instance": "x@1", "decision": text, "by": text, "text": text},
    )  # fmt: skip
    for kind in gates.KINDS:
        if kind == "step":
            continue
        (gate_of(run_dir, "x@1") / "gate.json").unlink(missing_ok=True)
        opened(run_dir, "x@1", kind=kind, title=text, why=text)
        data = (gate_of(run_dir, "x@1") / "request.md").read_bytes()
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", data) and "\u202e" not in data.decode()
        rest = re.sub(r"(?<!\\)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside_fences(data.decode()))
        for bad in ("<script", "![x]", "# Not"):
            assert bad not in re.sub(r"\\.", "", rest), rest


def test_a_glance_is_short(run_dir: Path) -> None:
    """Sixty lines, none endless; sizes are told, and so is what is no text or has no copy."""
    (run_dir / "tasks" / "facts" / "output.json").write_text(json.dumps(["y" * 10**6, *range(500)]))
    (run_dir / "tasks" / "draft" / "output.json").write_text(json.dumps("\n".join("x" * 40 for _ in range(100))))
    opened(run_dir, shown=["draft", "facts", "gone"])
    page = (gate_of(run_dir) / "request.md").read_text()
    assert page.count("x" * 40) == 60 and page.count("The rest is in the file.") == 2
    assert len(page) < 20_000 and "`show/facts.json`, 9" in page
    assert "`show/draft/plot.bin`, 3 bytes, of `draft`: no text" in page and "- `gone has no output`" in page


def test_large_artifacts_are_named_not_copied(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person finds them where they are; links and odd names are passed over."""
    monkeypatch.setattr(gateshow, "MAX_ARTIFACT_BYTES", 10)
    folder = run_dir / "tasks" / "draft" / "artifacts"
    (folder / "sub").mkdir()
    (folder / "sub" / "large.txt").write_text("x" * 11)
    (folder / "sub" / "small.txt").write_text("x")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "a\nb").touch()
    (folder / os.fsdecode(b"\xff")).touch()
    os.mkfifo(folder / "pipe")
    paths = [copy.path.removeprefix("tasks/review/show/") for copy in opened(run_dir)]
    assert paths == ["draft.md", "draft/plot.bin", "draft/sub/small.txt", "facts.json"]
    page = (gate_of(run_dir) / "request.md").read_text()
    assert "one of too many: tasks/draft/artifacts/sub/large.txt" in page


def test_a_loop_tells_its_laps(run_dir: Path) -> None:
    """Of this loop alone, the newest of each number."""
    row: dict[str, Any] = {"event": "lap.ended", "key": "loop@2", "checks": None, "values": {}, "verdict": "again"}
    journal(
        run_dir, {**row, "lap": 1, "score": 1.0, "reason": "stale"}, {**row, "lap": 2, "score": 2.0, "reason": "stale"},
        {**row, "lap": 1, "score": 6.5, "reason": "not yet"}, {**row, "key": "loop@1", "lap": 2, "reason": "elsewhere"},
        {**row, "lap": 2, "score": 6.0, "checks": False, "reason": "no gain for two laps"},
    )  # fmt: skip
    opened(run_dir, "loop@2.2", kind="loop", why="2 laps are over")
    page = (gate_of(run_dir, "loop@2.2") / "request.md").read_text()
    assert "2 laps so far" in page and "stale" not in page and "elsewhere" not in page
    assert "lap 1   score 6.5   not yet\nlap 2   score 6.0   checks failed   no gain for two laps" in page


@pytest.mark.parametrize(
    "instance, key", [("a-loop@5", "a-loop"), ("a.2@1.5", "a.2@1"), ("a.0.1@1.2.3", "a.0.1@1.2"), ("a", "a")]
)
def test_the_key_of_a_loop_lacks_the_innermost_lap(instance: str, key: str) -> None:
    """It stands in the journal so."""
    assert loop_key(instance) == key


def test_recovery_and_control_tell_what_went_wrong(run_dir: Path) -> None:
    """The error with its hint and problems; the order and what is wrong with it."""
    error = {"error_class": "invalid_output", "message": "no title", "hint": "look at the prompt", "problems": ["p1"]}
    failed = {"event": "step.attempt_failed", "instance": "draft", "error": error, "action": "ask"}
    journal(run_dir, failed, failed, {"event": "step.done", "instance": "plan", "control_error": "no step 'x'"})
    opened(run_dir, "draft", kind="recovery", shown=[])
    page = (gate_of(run_dir, "draft") / "request.md").read_text()
    assert "2 attempts failed" in page and "invalid_output: no title\nhint: look at the prompt\n- p1" in page
    assert "fresh attempts" in page
    opened(run_dir, "plan+control", kind="control", options=["approve", "reject"], shown=[])
    page = (gate_of(run_dir, "plan+control") / "request.md").read_text()
    assert "no step 'x'" in page and "CHANGES.md" not in page and "request-changes" not in page


@pytest.mark.parametrize("on_timeout, said", [("wait", "still waits"), ("approve", "approved"), ("reject", "rejected")])
def test_the_page_tells_until_when_and_what_then(run_dir: Path, on_timeout: str, said: str) -> None:
    """A time in UTC."""
    opened(run_dir, expires_at=1_800_000_000.0, on_timeout=on_timeout)
    page = (gate_of(run_dir) / "request.md").read_text()
    assert "until 2027-01-15T08:00:00.000Z" in page and said in page


def test_a_journal_that_is_broken_only_shortens_the_page(run_dir: Path) -> None:
    """A gate opens whatever lies there."""
    with open(run_dir / "events.jsonl", "ab") as file:
        file.write(
            b'{"event": "lap.ended"}\n{"event": "lap.ended", "key": "x", "lap": "1"}\nrun.created\n[]\n{"event": '
        )
    opened(run_dir, "x@1", kind="loop")
    (run_dir / "events.jsonl").unlink()
    opened(run_dir, "y@1", kind="loop")
    assert (gate_of(run_dir, "y@1") / "request.md").exists()


# -- crashes -------------------------------------------------------------------------------------------------------

CALLS = ("open", "write", "rename", "link", "unlink", "mkdir", "rmdir", "fsync", "fdatasync", "close")


class Died(BaseException):
    """The process was killed here: nothing below may tidy up after it."""


@contextmanager
def dying(at: int, error: OSError | None = None) -> Iterator[list[str]]:
    """Die before the `at`-th call that changes a file (or let it fail once); from then on no call changes anything."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}
    real_noreplace = store.rename_noreplace

    def before(name: str) -> None:
        seen.append(name)
        if len(seen) == at + 1 and error is not None:
            raise error
        if len(seen) > at and error is None:
            raise Died(name)

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            changes = name != "open" or (args[1] if len(args) > 1 else 0) & (os.O_CREAT | os.O_TRUNC)
            if name == "close":
                real["close"](*args)  # the kernel closes what a dead process had open
                return None
            if changes:
                before(name)
            return real[name](*args, **more)

        return call

    def noreplace(source: Path, target: Path) -> None:
        before("rename_noreplace")
        real_noreplace(source, target)

    try:
        for name in CALLS:
            setattr(os, name, wrapped(name))
        for module in (gates, gateanswers):
            module.rename_noreplace = noreplace  # type: ignore[attr-defined]
        yield seen
    finally:
        for name, call in real.items():
            setattr(os, name, call)
        for module in (gates, gateanswers):
            module.rename_noreplace = real_noreplace  # type: ignore[attr-defined]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, with its content; drafts of dead processes do not count."""
    return {
        os.path.relpath(path, folder): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".")
    }


def first_opening(run_dir: Path) -> None:
    opened(run_dir, expires_at=1_800_000_000.0)


def second_opening(run_dir: Path) -> None:
    opened(run_dir, opening=2)


def conversion(run_dir: Path) -> None:
    assert find_answer(Disk(), gate_of(run_dir), 1_900_000_000.0)


def setting_aside(run_dir: Path) -> None:
    assert find_answer(Disk(), gate_of(run_dir), 1_900_000_000.0) is None


def refusing_an_edit(run_dir: Path) -> None:
    about = gates.opened(gate_of(run_dir))
    assert about is not None
    if find_answer(Disk(), gate_of(run_dir), 1_900_000_000.0):
        with pytest.raises(BadEdit) as error:
            take_edits(Disk(), run_dir, gate_of(run_dir), about.shown, "review")
        set_aside(Disk(), gate_of(run_dir), error.value)


def edit_and_output(run_dir: Path) -> None:
    about = gates.opened(gate_of(run_dir))
    assert about is not None
    edits = take_edits(Disk(), run_dir, gate_of(run_dir), about.shown, "review")
    answer = Answer(decision="approve", by="anna", at=T, how="command")
    write_output(Disk(), gate_of(run_dir), answer, edits)
    assert len(edits) == 3


def answering(run_dir: Path) -> None:
    with suppress(AlreadyAnswered):
        give_answer(Disk(), gate_of(run_dir), "approve", by="anna", how="command")


def prepared(run_dir: Path, work: Callable[[Path], None]) -> None:
    if work is first_opening:
        return
    shown = opened(run_dir)
    gate_dir = gate_of(run_dir)
    if work is conversion:
        for name, at in (("APPROVE", 1_800_000_000), ("REJECT", 1_700_000_000)):
            (gate_dir / name).write_text(name)
            os.utime(gate_dir / name, (at, at))
    elif work is refusing_an_edit:
        (gate_dir / "APPROVE").touch()
        os.utime(gate_dir / "APPROVE", (1_800_000_000, 1_800_000_000))
        (run_dir / shown[2].path).write_text("{")
    elif work is setting_aside:
        decide(run_dir, "{}")
    elif work is edit_and_output:
        (run_dir / shown[0].path).write_text("one\n")
        (run_dir / shown[1].path).write_bytes(b"two")
        (run_dir / shown[2].path).write_text("3")
    elif work is second_opening:
        (run_dir / shown[0].path).write_text("one\n")
        (gate_dir / "CHANGES.md").write_text("x")
        answering(run_dir)
        edits = take_edits(Disk(), run_dir, gate_dir, shown, "review")
        write_output(Disk(), gate_dir, Answer(decision="approve", by="anna", at=T, how="command"), edits)
    # whatever stood there before stands there with the same times
    for path in run_dir.rglob("*"):
        if path.is_file() and path.name not in ("APPROVE", "REJECT"):
            os.utime(path, (1_800_000_000, 1_800_000_000))


WORKS = [first_opening, second_opening, conversion, setting_aside, refusing_an_edit, edit_and_output, answering]


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    """An answer by command bears the time of the call."""
    return {name: re.sub(rb'"at": "[^"]+"', b'"at": ""', data) for name, data in files.items()}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("how", ["killed", "full disk"])
def test_repeated_after_a_crash_anywhere_it_comes_to_the_same_end(
    run_dir: Path, tmp_path: Path, work: Callable[[Path], None], how: str
) -> None:
    """Between every two calls that change a file the process dies, or the disk refuses; then it is done once more."""
    prepared(run_dir, work)
    aim = tmp_path / "aim" / RUN
    shutil.copytree(run_dir, aim)
    with dying(10**6) as seen:
        work(aim)
    assert len(seen) > 3
    expected = without_times(tree(aim))
    for at in range(len(seen)):
        copy = tmp_path / f"at{at}" / RUN
        shutil.copytree(run_dir, copy)
        error = OSError(errno.ENOSPC, "no space") if how == "full disk" else None
        with suppress(Died, OSError, AlreadyAnswered), dying(at, error):
            work(copy)
        work(copy)
        assert without_times(tree(copy)) == expected, f"{how} before call {at}, {seen[at]}"
        shutil.rmtree(copy.parent)


def test_a_killed_process_leaves_what_a_second_one_finishes(run_dir: Path) -> None:
    """The same with kill -9 from outside, at many instants of opening, editing and writing."""
    shown_code = (
        "import sys\nfrom pathlib import Path\nfrom pop.gates import *\nfrom pop.gates import opened, open_gate\n"
        "from pop.store import Disk\n"
        "run, n = Path(sys.argv[1]), int(sys.argv[2])\nprint('go', flush=True)\n"
        "while True:\n"
        "    n += 1\n"
        "    shown = open_gate(Disk(), run, 'review', kind='step', title='', why='', shown=['draft', 'facts'],\n"
        "        options=['approve'], opening=n, expires_at=None)\n"
        "    (run / shown[0].path).write_text(f'edit {n}')\n"
        "    take_edits(Disk(), run, run / 'tasks/review', shown, 'review')\n"
    )
    opening = 0
    for turn in range(8):
        command = [sys.executable, "-c", shown_code, str(run_dir), str(opening)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"go\n"
            time.sleep(0.004 + 0.011 * turn)
            process.kill()
        about = gates.opened(gate_of(run_dir))
        opening = (about.opening if about else opening) + 1
        shown = opened(run_dir, opening=opening)
        value = json.loads((run_dir / "tasks" / "draft" / "output.json").read_bytes())
        assert (run_dir / shown[0].path).read_text() == (value if value.endswith("\n") else value + "\n")
        assert found(run_dir) is None


@pytest.mark.parametrize("work", [edit_and_output, answering, conversion])
def test_a_power_cut_never_takes_both_versions(run_dir: Path, work: Callable[[Path], None]) -> None:
    """A file that is about to be replaced, or an answer, is on the disk before its name is."""
    prepared(run_dir, work)
    with recorded(run_dir) as power:
        work(run_dir)
    for moment in power.moments:
        if moment.call == "link" and moment.path.endswith("decision.json"):
            assert not [path for path in moment.bytes_at_risk if ".decision." in path]
        if moment.call == "rename" and moment.path.endswith("draft/output.json"):
            assert not [path for path in moment.names_at_risk if "output.before" in path or "/edited" in path]
            assert not [path for path in moment.bytes_at_risk if "/edited/" in path]
    contents, names = power.at_risk()
    assert not contents
    assert not [path for path in names if path.endswith(("decision.json", "output.json", "edits.json"))]
