"""The commands against real daemons, and against what people and crashes leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.living import LivingRoot
from tests.test_cli import REPOSITORY, hello, pop

__all__ = ["hello"]
Make = Callable[..., LivingRoot]
SLOW = "import time\ndef infer(prompt, ctx):\n    time.sleep(60)\n    return {}\n"
QUICK = "def infer(prompt, ctx):\n    return {'n': 1}\n"


def start(living: LivingRoot, *arguments: object) -> subprocess.Popen[str]:
    """`pop` in the background, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pop", *map(str, arguments), "--root", str(living.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def one_step(make_living: Make, code: str, **about: Any) -> LivingRoot:
    return make_living(pipeline={"name": "x", "tasks": ["work"]}, tasks={"work.py": code}, **about)


# -- pop run and pop submit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [True, False])
def test_an_older_rejection_of_the_same_name_is_not_taken_for_ours(make_living: Make, served: bool) -> None:
    """Nor a run of the same name: what is reported is this submission."""
    living = one_step(make_living, QUICK)
    (living.root.rejected / "seed.json").write_text("[1]")
    (living.root.rejected / "seed.json.reason.json").write_text(json.dumps({"message": "old", "name": "seed.json"}))
    (living.path / "seed.json").write_text("{}")
    if served:
        living.up()
        living.wait(lambda: (living.root.machine_room / "daemon.json").exists(), "the daemon")
    names = []
    for _ in range(2):
        result = pop("run", "seed.json", "--json", root=living.path, cwd=living.path)
        assert result.returncode == 0, result.stderr
        names.append(json.loads(result.stdout))
    assert names[0]["run_id"] != names[1]["run_id"] and {status["name"] for status in names} == {"seed"}
    assert (Path(names[0]["path"]) / "seed.json").read_text() == "{}"


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a":1', "q.json:1:7"),
        ('{"a":1', "it ends in the middle"),
        ("", "it is empty"),
        ('{"a": 1,}', "q.json:1:9"),
        ("[1]", "a seed is a JSON object"),
        ('{"data": 1, "frob": 2}', "frob"),
    ],
)
def test_a_broken_seed_is_refused_at_once(hello: Path, command: str, text: str, told: str) -> None:
    """With its place; nothing is left in the queue."""
    (hello / "q.json").write_text(text)
    result = pop(command, "q.json", root=hello, cwd=hello)
    assert result.returncode == 3 and told in result.stderr
    assert os.listdir(hello / "pipeline-pending") in ([], ["rejected"])


@pytest.mark.parametrize("command", ["run", "submit"])
def test_empty_standard_input_is_refused_at_once(hello: Path, command: str) -> None:
    """`pop run - </dev/null` once waited for ever."""
    result = pop(command, "-", root=hello, stdin=subprocess.DEVNULL)
    assert result.returncode == 3 and "standard input" in result.stderr


def test_a_broken_folder_and_archive_are_refused_at_once(hello: Path) -> None:
    """The place is inside them."""
    (hello / "seed").mkdir()
    assert "no seed.json" in pop("submit", "seed", root=hello, cwd=hello).stderr
    (hello / "seed" / "seed.json").write_text('{"a":1')
    assert "seed/seed.json:1:7" in pop("submit", "seed", root=hello, cwd=hello).stderr
    (hello / "x.zip").write_bytes(b"PK\x03\x04 and nothing more")
    assert pop("run", "x.zip", root=hello, cwd=hello).returncode == 3


def test_names_that_the_queue_leaves_alone_are_mended_or_refused(hello: Path) -> None:
    """JSON without its ending gets one; a dot-name is refused."""
    (hello / "notes.txt").write_text('{"text": "x"}')
    assert Path(pop("submit", "notes.txt", root=hello, cwd=hello).stdout.strip()).name == "notes.txt.json"
    (hello / ".hidden.json").write_text("{}")
    for command in ("run", "submit"):
        result = pop(command, ".hidden.json", root=hello, cwd=hello)
        assert result.returncode == 2 and "leaves '.hidden.json' alone" in result.stderr
    (hello / "prose.txt").write_text("hello")
    assert "a .json file" in pop("submit", "prose.txt", root=hello, cwd=hello).stderr


def test_every_kind_of_seed_can_be_given_a_pipeline(make_living: Make) -> None:
    """A file, a folder, an archive; in an envelope or not; and nothing is left in /tmp."""
    living = one_step(make_living, QUICK)
    (living.path / "pipelines").mkdir()
    (living.path / "pipelines" / "other.json").write_text('{"name": "other", "tasks": ["work"]}')
    (living.path / "a.json").write_text('{"data": {"k": 1}, "name": "called so"}')
    (living.path / "b").mkdir()
    (living.path / "b" / "seed.json").write_text('{"k": 1}')
    (living.path / "b" / "more.txt").write_text("more")
    with zipfile.ZipFile(living.path / "c.zip", "w") as archive:
        for name in ("seed.json", "more.txt"):
            archive.write(living.path / "b" / name, name)
    temporary = living.path / "tmp"
    temporary.mkdir()
    for seed in ("a.json", "b", "c.zip"):
        result = pop("run", seed, "-p", "other", "--json", root=living.path, cwd=living.path)
        assert result.returncode == 0, result.stderr
        status = json.loads(result.stdout)
        assert status["pipeline"] == "other" and status["name"] == {"a.json": "called so"}.get(seed, seed[0])
        assert json.loads((Path(status["path"]) / "seed.json").read_text())["data"] == {"k": 1}
        assert (Path(status["path"]) / "files" / "more.txt").exists() == (seed != "a.json")
    (living.path / "bad.json").write_text("[1]")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "pop", "run", "bad.json", "-p", "other"]
    assert subprocess.run(command, cwd=living.path, env=environment, capture_output=True).returncode == 3
    assert not list(temporary.iterdir())
    assert pop("run", "nosuch.json", "-p", "other", root=living.path).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_daemon_of_a_run_ends_with_it(make_living: Make, number: int) -> None:
    """However `pop run` is ended; the run can be taken up again."""
    living = one_step(make_living, SLOW, settings="[daemon]\ndrain_s = 0.2\n")
    (living.path / "seed.json").write_text("{}")
    running = start(living, "run", living.path / "seed.json")
    living.wait(lambda: list(living.root.current.glob("*/tasks/work/attempts/1/trail.jsonl")), "the attempt")
    running.send_signal(number)
    code = running.wait(30)
    assert code == (-9 if number == signal.SIGKILL else 130)
    living.wait(lambda: not living.processes(), "the end of every process", 20)


def test_a_run_whose_words_nobody_reads_ends_its_daemon(make_living: Make) -> None:
    """`pop run seed 2>&1 | head -1` leaves nothing behind."""
    living = one_step(make_living, SLOW, settings="[daemon]\ndrain_s = 0.2\n")
    (living.path / "seed.json").write_text("{}")
    running = start(living, "run", living.path / "seed.json")
    assert running.stderr
    running.stderr.close()
    running.wait(30)
    living.wait(lambda: not living.processes(), "the end of every process", 20)


def test_leaving_a_run_that_a_daemon_serves_ends_only_the_view(make_living: Make) -> None:
    """And it says how to look again and how to end it."""
    living = one_step(make_living, SLOW)
    living.up()
    living.wait(lambda: (living.root.machine_room / "daemon.json").exists(), "the daemon")
    (living.path / "seed.json").write_text("{}")
    running = start(living, "run", living.path / "seed.json")
    living.wait_state("running")
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    run_id = living.current()[0].name
    assert running.returncode == 130 and f"pop watch {run_id}" in said and f"pop cancel {run_id}" in said
    assert living.status()["state"] == "running"


def test_a_second_run_comes_after_the_first(make_living: Make) -> None:
    """The daemon of the first serves that alone."""
    living = one_step(make_living, "import time\ndef infer(prompt, ctx):\n    time.sleep(2)\n    return {}\n")
    (living.path / "seed.json").write_text("{}")
    first = start(living, "run", living.path / "seed.json")
    living.wait_state("running")
    second = pop("run", living.path / "seed.json", root=living.path)
    assert second.returncode == 0 and "comes after it" in second.stderr
    assert first.wait(10) == 0 and len(living.ledger()) == 2


def test_a_mistake_in_a_task_is_told_once(hello: Path) -> None:
    """Though the task is looked at by itself and in its pipeline."""
    (hello / "pipeline-tasks" / "measure.py").write_text("def infer(:\n")
    told = pop("run", hello / "examples" / "hello.json", root=hello).stderr
    assert told.count("measure.py:1") == 1


# -- errors --------------------------------------------------------------------------------------------------------


def test_no_mistake_of_a_user_ends_in_a_traceback(hello: Path, tmp_path: Path) -> None:
    """What, where, and the next move; with an exit code that says whose it is."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[int, list[object], Path | None]] = [
        (2, ["init", tmp_path / "file"], None),
        (3, ["graph"], tmp_path / "empty"),
        (2, ["graph", "nosuch"], hello),
        (2, ["run", "nosuch.json", "-p", "default"], hello),
        (2, ["submit", "nosuch.json"], hello),
        (2, ["gc", "--older-than", "soon"], hello),
        (2, ["show"], hello),
    ]
    for code, words, root in cases:
        result = pop(*words, root=root)
        assert result.returncode == code, (words, result.stderr)
        assert "Traceback" not in result.stderr and result.stderr.strip()
    (hello / "pipeline-pending").rmdir()
    (hello / "pipeline-pending").write_text("a file")
    result = pop("submit", hello / "examples" / "hello.json", root=hello)
    assert result.returncode == 3 and "Traceback" not in result.stderr and "pipeline-pending" in result.stderr


def test_errors_are_json_where_that_was_asked_for(hello: Path) -> None:
    """On stdout, with all problems; the exit code is the same."""
    for words in (["run", "nosuch.json"], ["show", "nosuch"], ["graph", "nosuch"], ["logs", "nosuch"]):
        result = pop(*words, "--json", root=hello)
        assert result.returncode == 2 and json.loads(result.stdout)["error"]["code"]
    (hello / "pipeline.json").write_text('{"name": "x", "tasks": ["a", "b"]}')
    result = pop("run", hello / "examples" / "hello.json", "--json", root=hello)
    assert result.returncode == 3 and len(json.loads(result.stdout)["problems"]) == 2


def test_a_reader_that_has_seen_enough_is_no_error(hello: Path) -> None:
    """`pop show last | head -1` ends quietly."""
    assert pop("run", hello / "examples" / "hello.json", root=hello).returncode == 0
    for words in ("show last", "ls", "logs last --trail --json", "doctor"):
        line = f"set -o pipefail; {sys.executable} -m pop --root {hello} {words} 2>err | true; code=$?; cat err; exit $code"
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=hello)
        assert result.returncode == 0 and "BrokenPipe" not in result.stdout


# -- looking at runs -----------------------------------------------------------------------------------------------


def test_a_run_is_shown_by_its_own_name(make_living: Make) -> None:
    """ls tells name and pipeline of finished runs; after gc the ledger's line is pointed at."""
    living = one_step(make_living, QUICK)
    (living.path / "seed.json").write_text('{"data": {}, "name": "The Monthly Report"}')
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    assert "The Monthly Report" in pop("show", "The Monthly Report", root=living.path).stdout
    assert "(The Monthly Report, default)" in pop("ls", root=living.path).stdout
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    several = pop("show", "The Monthly Report", root=living.path).stderr
    assert "fits 2 runs" in several and "`last`" in several
    assert pop("gc", "--older-than", "0s", root=living.path).returncode == 0
    gone = pop("show", "The Monthly Report", root=living.path)
    assert gone.returncode == 2 and "runs.jsonl:2" in gone.stderr


def test_a_run_with_a_broken_status_is_shown_all_the_same(hello: Path) -> None:
    """By show, ls, watch, logs, graph and doctor."""
    assert pop("run", hello / "examples" / "hello.json", root=hello).returncode == 0
    folder = next((hello / "pipeline-complete").glob("*-hello-*"))
    (folder / "tasks-status.json").write_text("{}")
    folder.rename(hello / "pipeline-current" / folder.name)
    for words in (
        ["show"],
        ["ls"],
        ["watch", "last", "--once"],
        ["watch", "--once"],
        ["logs"],
        ["graph", "last"],
        ["doctor"],
    ):
        result = pop(*words, root=hello)
        assert "Traceback" not in result.stderr and "None" not in result.stdout, words
    (hello / "pipeline-current" / folder.name / "events.jsonl").write_text("")
    assert "cannot be read" in pop("doctor", root=hello).stdout
    assert "unreadable" in pop("ls", root=hello).stdout


def test_the_whole_queue_is_counted(hello: Path) -> None:
    """By ls, doctor and watch; more than are looked at."""
    for number in range(1003):
        (hello / "pipeline-pending" / f"{number:04}.json").write_text("{}")
    assert "pending (1003)" in pop("ls", root=hello).stdout
    assert "1003 in the queue, 1000 of the first 1000 ready" in pop("doctor", root=hello).stdout
    assert json.loads(pop("ls", "--json", root=hello).stdout)["pending_count"] == 1003


def test_doctor_reads_the_limits_of_this_root(hello: Path) -> None:
    """What is too large here is not ready."""
    (hello / "pipeline-pending" / "big.json").write_text(json.dumps({"text": "x" * 5000}))
    assert "1 in the queue, 1 ready" in pop("doctor", root=hello).stdout
    (hello / "pop.toml").write_text("[seeds]\nmax_mb = 0.001\n")
    assert "1 in the queue, 0 ready" in pop("doctor", root=hello).stdout


def test_doctor_tells_each_mistake_on_a_line_with_its_hint_once(hello: Path) -> None:
    """Exit code 3: it keeps POP from its work."""
    (hello / "pipeline.json").write_text('{"name": "x",\n "tasks": ["sumarise"]}')
    result = pop("doctor", root=hello)
    assert result.returncode == 3 and result.stdout.count("did you mean 'summarise'?") == 1
    assert "unknown-task: no task 'sumarise' (pipeline.json:2:12" in result.stdout


def test_logs_of_a_family_come_in_order_and_nothing_is_said_to_be_nothing(make_living: Make) -> None:
    """`draft` means all its items; an item that is not there names those that are."""
    pipeline = {"name": "x", "tasks": ["make", {"each": "inputs.make.parts", "do": "draft"}, "quiet"]}
    tasks = {
        "make.py": "def infer(prompt, ctx):\n    return {'parts': list(range(12))}\n",
        "draft.py": "def infer(prompt, ctx):\n    print('item', ctx.item)\n    return {}\n",
        "quiet.py": QUICK,
    }
    living = make_living(pipeline=pipeline, tasks=tasks)
    (living.path / "seed.json").write_text("{}")
    assert pop("run", "seed.json", root=living.path, cwd=living.path).returncode == 0
    lines = pop("logs", "last", "draft", root=living.path).stdout.splitlines()
    assert [line.split("#")[0] for line in lines] == [f"draft.{number}" for number in range(12)]
    missing = pop("logs", "last", "draft.99", root=living.path)
    assert missing.returncode == 2 and "draft has the items draft.0 to draft.11" in missing.stderr
    assert "did you mean 'quiet'" in pop("logs", "last", "quite", root=living.path).stderr
    quiet = pop("logs", "last", "quiet", root=living.path)
    assert quiet.stdout == "" and "--trail" in quiet.stderr
    rows = [json.loads(line) for line in pop("logs", "last", "--json", root=living.path).stdout.splitlines()]
    assert {"step": "draft.3", "attempt": 1, "file": "stdout.txt", "text": "item 3"} in rows
    watched = json.loads(pop("watch", "last", "--json", root=living.path).stdout.splitlines()[-1])
    assert watched["state"] == "complete"
    assert "draft" in json.loads(pop("graph", "--json", root=living.path).stdout)["mermaid"]


# -- ending runs and going on --------------------------------------------------------------------------------------


def test_a_cancelled_run_tells_why_and_how_to_go_on(make_living: Make) -> None:
    """A second cancel writes nothing; an order that waits is told."""
    living = one_step(make_living, SLOW)
    daemon = living.up()
    living.drop("a.json", {})
    living.wait_state("running")
    run_id = living.current()[0].name
    assert pop("cancel", "a", "-m", "wrong seed", root=living.path).returncode == 0
    living.wait_state("cancelled")
    shown = pop("show", "a", root=living.path).stdout
    assert "wrong seed" in shown and f"pop retry {run_id}" in shown and "mend it" not in shown
    again = pop("cancel", "a", root=living.path)
    assert again.returncode == 0 and "cancelled already" in again.stderr
    assert not list((living.current()[0] / "orders").glob("*.json"))
    living.stop(daemon)
    assert pop("retry", "a", root=living.path).returncode == 0
    assert "retry waits" in pop("show", "a", root=living.path).stdout
    assert "retry waits" in pop("ls", root=living.path).stdout
    assert pop("cancel", "a", root=living.path).returncode == 0  # the newer order is the one that counts
    living.up()
    living.wait(lambda: list((living.current()[0] / "orders" / "done").glob("*-cancel.json"))[1:], "the second cancel")
    assert living.status()["state"] == "cancelled"


def test_a_failed_condition_names_the_copy_to_mend(make_living: Make) -> None:
    """Each run its own; mended there, `pop retry` goes on."""
    pipeline = {"name": "x", "tasks": ["work", {"each": "inputs.work.n", "do": "more"}]}
    living = make_living(pipeline=pipeline, tasks={"work.py": QUICK, "more.py": QUICK})
    living.up()
    living.drop("a.json", {})
    living.drop("b.json", {})
    living.wait(lambda: len(living.current()) == 2, "both runs")
    for name in ("a", "b"):
        run_dir = next(living.root.current.glob(f"*-{name}-*"))
        living.wait_state("failed", run_dir)
        shown = pop("show", name, root=living.path).stdout
        own = f"pipeline-current/{run_dir.name}/pipeline.json"
        assert f"where      {own}:1:" in shown and f"mend {own}, then pop retry" in shown
    own_file = run_dir / "pipeline.json"
    own_file.write_text(own_file.read_text().replace("inputs.work.n", "[inputs.work.n]"))
    assert pop("retry", "b", root=living.path).returncode == 0
    living.wait_complete(1)


# -- up, gc, init --------------------------------------------------------------------------------------------------


def test_up_tells_what_is_broken_and_serves_only_what_it_holds(make_living: Make) -> None:
    """A second daemon does not say that it serves."""
    living = one_step(make_living, QUICK)
    (living.path / "pipeline.json").write_text('{"name": "x", "tasks": ["wrok"]}')
    living.up()
    living.wait(lambda: "wait until it is mended" in living.log(), "the warning")
    assert "did you mean 'work'?" in living.log() and "POP serves" in living.log()
    second = pop("up", root=living.path)
    assert second.returncode == 3 and "POP serves" not in second.stderr and "another daemon" in second.stderr


def test_gc_makes_an_archive_durable_before_the_run_goes(hello: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and its name; and it finishes what a crash of an earlier gc left."""
    from pop.cleaning import archive_run, remove_run
    from pop.runs import Run
    from pop.settings import Root
    from pop.store import Disk

    calls: list[str] = []
    rename = os.rename

    def noted(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(target).suffix}")
        rename(source, target)

    monkeypatch.setattr(Disk, "sync", lambda self, fd: calls.append("file"))
    monkeypatch.setattr(Disk, "sync_folder", lambda self, path: calls.append(f"folder {Path(path).name}"))
    monkeypatch.setattr(os, "rename", noted)
    run_dir = hello / "pipeline-complete" / "20261121-031502-brief-abcd"
    run_dir.mkdir()
    archive_run(Root(hello), Run(run_dir, "complete"))
    remove_run(run_dir)
    assert calls == ["folder pipeline-complete", "file", "rename .gz", "folder archive", "rename .removed"]
    assert not run_dir.exists()


def test_gc_finishes_what_a_crash_left(hello: Path) -> None:
    """A run that was out of sight and half removed, an archive that was half written."""
    doomed = hello / "pipeline-complete" / ".20261121-031502-brief-abcd.removed"
    (doomed / "tasks").mkdir(parents=True)
    draft = hello / "pipeline-complete" / "archive" / ".20261121-031502-brief-abcd.tmp"
    draft.parent.mkdir()
    draft.touch()
    assert pop("gc", "--older-than", "1d", "--dry-run", root=hello).returncode == 0 and doomed.exists()
    assert pop("gc", "--older-than", "1d", root=hello).returncode == 0
    assert not doomed.exists() and not draft.exists()


def test_the_brief_can_be_started_from_in_a_checkout(tmp_path: Path) -> None:
    """An editable install has no packaged copy; the repository's own files serve."""
    assert pop("init", "--list").stdout.split() == ["agentic-workflow", "brief", "minimal"]
    made = json.loads(pop("init", "--template", "brief", "--json", root=tmp_path / "b").stdout)
    assert made["path"] == str(tmp_path / "b") and made["files"]["pipeline.json"] == "created"
    assert pop("check", "examples/brief", root=tmp_path / "b", cwd=tmp_path / "b").returncode == 0


def test_the_wheel_holds_the_starters(tmp_path: Path) -> None:
    """With all that the brief needs."""
    source = tmp_path / "source"
    shutil.copytree(
        REPOSITORY, source, ignore=shutil.ignore_patterns(".venv", ".git", "pipeline-c*", ".*_cache", ".pop")
    )
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", "-w", str(tmp_path)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-200:]}")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = {name.removeprefix("pop/starters/") for name in wheel.namelist() if "/starters/" in name}
    assert {"minimal/pipeline.json", "brief/pipeline.json", "brief/pop.toml", "brief/examples/brief/seed.json"} <= names
    tasks = {
        path.relative_to(REPOSITORY) for path in (REPOSITORY / "pipeline-tasks").rglob("*.*") if path.suffix != ".pyc"
    }
    assert {f"brief/{path}" for path in tasks} <= names


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("envelope", "told"),
    [({"pipeline": "hallo"}, "unknown-pipeline"), ({"models": {"default": "larg"}}, "unknown-model")],
)
def test_what_an_envelope_names_must_be_there(hello: Path, command: str, envelope: dict[str, Any], told: str) -> None:
    """Told with its place before the seed enters the queue."""
    (hello / "s.json").write_text(json.dumps({"data": {"text": "x"}, **envelope}))
    done = pop(command, hello / "s.json", root=hello)
    assert done.returncode == 3 and told in done.stderr and "s.json:1:" in done.stderr
    assert not [path for path in (hello / "pipeline-pending").iterdir() if path.name != "rejected"]


def test_init_leaves_a_project_its_own(hello: Path) -> None:
    """Only the folders are made again; nothing of a template is put beside the person's tasks."""
    for path in [*(hello / "pipeline-tasks").iterdir(), *(hello / "examples").iterdir()]:
        path.unlink()
    shutil.rmtree(hello / "pipeline-pending")
    assert pop("init", root=hello).returncode == 0
    assert (hello / "pipeline-pending").is_dir() and not list((hello / "pipeline-tasks").iterdir())
    assert pop("doctor", root=hello).stderr == ""


def test_several_runs_at_once_come_one_after_the_other(make_living: Make) -> None:
    """Each serves its own seed, and none is left in the queue."""
    living = one_step(make_living, "def infer(prompt, ctx):\n    return 1\n")
    for number in range(3):
        (living.path / f"s{number}.json").write_text("{}")
    runs = [start(living, "run", living.path / f"s{number}.json", "-q") for number in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert len(living.ledger()) == 3


# -- what models did ------------------------------------------------------------------------------------------------


def run_with_calls(root: Path, usage: dict[str, Any], *calls: dict[str, Any], **about: Any) -> Path:
    """A failed run of one step that asked models."""
    run_dir = root / "pipeline-current" / "20261121-031502-a-aaaa"
    attempt = run_dir / "tasks" / "ask" / "attempts" / "1"
    attempt.mkdir(parents=True)
    (run_dir / "events.jsonl").write_text('{"event": "run.created", "at": "2026-11-21T03:15:02.000Z"}\n')
    (attempt / "calls.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
    task = {"state": "done", "attempt": 1, "seconds": 1.0}
    status = {"run_id": run_dir.name, "name": "a", "state": "failed", "tasks": {"ask": task}, "usage": usage, **about}
    (run_dir / "tasks-status.json").write_text(json.dumps(status))
    return run_dir


def test_show_tells_who_answered_and_who_was_asked_in_vain(hello: Path) -> None:
    """A fallback is no secret of calls.jsonl."""
    tries = [{"model": "large", "error_class": "unavailable"}] * 3
    call = {"model": "fast", "provider_model": "qwen3:8b", "tries": tries}
    run_with_calls(hello, {"calls": 1, "input_tokens": 9, "output_tokens": 4, "cost_usd": 0.00003}, call)
    shown = pop("show", "last", root=hello).stdout
    assert "answered by fast (qwen3:8b), after large: unavailable\n" in shown
    assert "1 model call, 9 tokens in, 4 out, $0.00003; answered by fast (qwen3:8b)\n" in shown


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"calls": 2, "unpriced_calls": 2}, "2 model calls, 0 tokens in, 0 out, price unknown\n"),
        ({"calls": 2, "unpriced_calls": 1, "cost_usd": 0.5}, "$0.5000 and 1 of unknown price\n"),
        ({"calls": 1, "cached_calls": 3, "estimated_calls": 1}, "1 model call and 3 answered from the store, "),
    ],
)
def test_show_calls_nothing_free_whose_price_nobody_knows(hello: Path, usage: dict[str, Any], told: str) -> None:
    """It used to say $0.0000."""
    run_with_calls(hello, usage)
    assert told in pop("show", "last", root=hello).stdout


def test_a_budget_that_is_hit_gives_one_next_move_and_it_is_a_command(hello: Path) -> None:
    """Ours names it itself; an exhausted account has to be filled first."""
    error = {"error_class": "budget", "message": "m", "hint": "pop retry X --budget run_calls=..."}
    run_dir = run_with_calls(hello, {}, error=error)
    shown = pop("show", "last", root=hello).stdout
    assert shown.count("--budget run_calls=...") == 1 and "next       pop retry X --budget" in shown
    shutil.rmtree(run_dir)
    run_with_calls(hello, {}, error={**error, "hint": "the account has no credit left"})
    shown = pop("show", "last", root=hello).stdout
    assert "hint       the account has no credit left\n" in shown
    assert f"next       mend it, then: pop retry {run_dir.name}\n" in shown


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("day_usd=5", "raise it in [budget] of pop.toml"),
        ("run_calls", "--budget run_calls=5"),
        ("run_cals=5", "run_calls"),
    ],
)
def test_a_budget_that_is_none_is_refused_with_the_next_move(hello: Path, budget: str, told: str) -> None:
    """Nothing is ordered."""
    run_dir = run_with_calls(hello, {})
    result = pop("retry", "last", "--budget", budget, root=hello)
    assert result.returncode == 2 and told in result.stderr
    assert not (run_dir / "orders").exists()


def test_a_missing_key_is_told_with_the_keys_file_of_this_root(hello: Path, tmp_path: Path) -> None:
    """By `pop check --json` too, where it is no mistake: the daemon may have it."""
    keys = tmp_path / "keys.env"
    keys.write_text("OTHER_KEY=sk-0123456789\n")
    keys.chmod(0o600)
    model = '[models.large]\nprovider = "openai"\nmodel = "gpt-5"\napi_key_env = "THE_KEY"\n'
    free = "[worker]\nconfine = false\n"  # or tasks may write where the file lies
    (hello / "pop.toml").write_text(f'{free}[gateway]\nkeys_file = "{keys}"\n[models]\ndefault = "large"\n{model}')
    told = json.loads(pop("check", "--json", root=hello).stdout)
    assert told["ok"] and "THE_KEY is not set" in told["notes"][0]
    assert f"write THE_KEY=... into {keys}" in pop("doctor", root=hello).stdout
