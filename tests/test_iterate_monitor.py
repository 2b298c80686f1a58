"""`pop iterate monitor`: how far each agent is, who ends, who stands still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from pop.events import rfc3339
from pop.recipes.iterate.alerts import Hook, hook_argv, tell, told
from pop.recipes.iterate.manifest import Manifest
from pop.recipes.iterate.monitor import alerts_of, snapshot
from pop.recipes.iterate.snapshots import Alert, Found, Sight, Signs
from tests.fake_openai import FakeOpenAI
from tests.iterated import install, kill, known, lay_out, manifest, pop, settings, submit
from tests.living import LivingRoot

NOW = 1_800_000_000.0
TARGETS = {"a.txt": "alpha", "b.txt": "beta", "c.txt": "gamma"}
RISKS = {"draft": '- [ ] `*.md` (exists, has "## Risks")\n- [ ] The tone is calm.\n'}


def two(**about: Any) -> list[Manifest]:
    """Two iterations: two writers who make three files, then a critic who makes one."""
    return [
        manifest(
            "draft", {"writer#1": {"a.md": ["a.txt"], "b.md": ["b.txt"]}, "writer#2": {"c.md": ["c.txt"]}}, **about
        ),
        manifest("judge", {"critic": {"verdict.md": []}}, dependencies=("draft",)),
    ]


@pytest.fixture
def served(make_living: Callable[..., LivingRoot], fake_openai: FakeOpenAI) -> Callable[..., tuple[LivingRoot, Path]]:
    """A root with a generated folder in it, which a daemon serves."""

    def make(
        manifests: list[Manifest] | None = None,
        targets: dict[str, str] | None = None,
        criteria: dict[str, str] | None = None,
        more: str = "",
        up: bool = True,
    ) -> tuple[LivingRoot, Path]:
        tasks = {"x.py": "def infer(prompt, ctx):\n    return 1\n"}
        living = make_living(pipeline={"tasks": ["x"]}, tasks=tasks, settings=settings(fake_openai.base_url, more))
        folder = lay_out(living.path, manifests or two(), {**TARGETS, **(targets or {})}, criteria or {})
        install(living, folder)
        if up:
            living.up()
        return living, folder

    return make


def status(state: str = "running", /, **tasks: Any) -> dict[str, Any]:
    """A tasks-status.json; ``draft-writer-1.0@1`` is written ``draft_writer_1__0__1``."""
    named = {}
    for name, task in tasks.items():
        step, _, at = name.partition("__")
        index, _, lap = at.partition("__")
        named[f"{step.replace('_', '-')}.{index}@{lap}"] = {"attempt": 1, **task}
    return {"run_id": "r", "name": "r", "state": state, "started_at": rfc3339(NOW - 100), "tasks": named}


def done(seconds: float = 10.0, at: float = NOW - 50, tokens: int = 100) -> dict[str, Any]:
    usage = {"calls": 1, "input_tokens": tokens, "output_tokens": 0, "cost_usd": 0.5}
    return {
        "state": "done",
        "seconds": seconds,
        "started_at": rfc3339(at - seconds),
        "finished_at": rfc3339(at),
        "usage": usage,
    }


def test_an_agent_is_what_its_deliverables_of_the_newest_lap_are() -> None:
    """Made, tokens, cost, stage and time of an agent come from the status; what has not begun is pending."""
    running = {"state": "running", "stage": "infer", "started_at": rfc3339(NOW - 5)}
    sight = Sight(
        status(draft_writer_1__0__1=done(), draft_writer_1__1__1=running),
        signs={"draft-writer-1.1@1": Signs(NOW - 2, 1, 40, 0.25)},
        found={("draft", "a.md"): Found(120, ('has "## Risks": no such heading',))},
    )
    seen = snapshot(two(), sight, now=NOW)
    (draft, writer), (_, second), (judge, critic) = seen.agents
    assert (writer.state, writer.done, writer.total, writer.bytes) == ("running", 1, 2, 120)
    assert (writer.tokens, writer.calls, writer.cost_usd, writer.stage) == (140, 2, 0.75, "infer")
    assert writer.problems == ['a.md: has "## Risks": no such heading']
    assert writer.last_progress_at == rfc3339(NOW - 2)
    assert (second.state, critic.state, draft.state, judge.state) == ("pending", "pending", "running", "pending")
    assert seen.progress == 0.25


def test_time_left_is_told_from_the_pace_so_far() -> None:
    """One of four was made in a hundred seconds, so three hundred are left; the writer's own is ten a piece."""
    running = {"state": "running", "started_at": rfc3339(NOW - 5)}
    seen = snapshot(two(), Sight(status(draft_writer_1__0__1=done(), draft_writer_1__1__1=running)), now=NOW)
    assert seen.eta_s == 300.0
    assert [agent.eta_s for _, agent in seen.agents] == [10.0, 10.0, 10.0]
    nothing = snapshot(two(), Sight(status(draft_writer_1__0__1=running)), now=NOW)
    assert nothing.eta_s is None and nothing.agents[0][1].eta_s is None


def test_an_agent_stalls_when_nothing_of_it_has_moved() -> None:
    """A line in its trail, or another of its deliverables, is progress; what is over does not stall."""
    old = {"state": "running", "started_at": rfc3339(NOW - 900)}
    manifests = two()
    early = {**status(draft_writer_1__0__1=old), "started_at": rfc3339(NOW - 901)}
    alone = snapshot(manifests, Sight(early), now=NOW, stall_s=600)
    assert alone.agents[0][1].stalled and alone.stalled
    sign = {"draft-writer-1.0@1": Signs(NOW - 30)}
    assert not snapshot(manifests, Sight(status(draft_writer_1__0__1=old), signs=sign), now=NOW).agents[0][1].stalled
    other = status(draft_writer_1__0__1=old, draft_writer_1__1__1=done())
    assert not snapshot(manifests, Sight(other), now=NOW).agents[0][1].stalled
    another = snapshot(manifests, Sight(status(draft_writer_1__0__1=old, draft_writer_2__0__1=done())), now=NOW)
    assert another.agents[0][1].stalled and not another.stalled
    ended = status("failed", draft_writer_1__0__1=old)
    assert not snapshot(manifests, Sight(ended), now=NOW).agents[0][1].stalled


def test_a_new_lap_begins_anew_and_what_is_handed_on_tells_nothing_about_time() -> None:
    """In lap 2 the agent has made what it has made in lap 2; tokens and seconds are those of both."""
    tasks = {"draft_writer_1__0__1": done(), "draft_writer_1__1__1": done(), "draft_check__0__1": done()}
    handed_on = {"state": "done", "seconds": 0.01, "finished_at": rfc3339(NOW - 3), "usage": {}}
    seen = snapshot(two(rounds=2), Sight(status(**tasks, draft_writer_1__0__2=handed_on)), now=NOW)
    writer = seen.agents[0][1]
    assert (writer.lap, writer.done, writer.state, writer.tokens) == (2, 1, "running", 200)
    assert seen.iterations[0].lap == 2 and writer.eta_s == 10.0


def test_an_alert_is_the_same_as_long_as_it_is_the_same_thing() -> None:
    """The second look tells nothing new; a retry that ends is told again."""
    manifests = two()
    sight = Sight(status(draft_writer_2__0__1=done()))
    first = snapshot(manifests, sight, now=NOW)
    assert [(one.event, one.step) for one in first.alerts] == [("agent.ended", "draft-writer-2")]
    assert snapshot(manifests, sight, now=NOW + 60, before=first).alerts == []
    again = snapshot(manifests, Sight(status(draft_writer_2__0__1=done(at=NOW + 5))), now=NOW + 9, before=first)
    assert len(again.alerts) == 1 and again.alerts[0].key != first.alerts[0].key


def test_a_run_that_ended_early_leaves_agents_stopped() -> None:
    """What was under way was stopped, what had not begun is pending, what failed has failed."""
    error = {"error": {"message": "boom"}, "state": "failed", "finished_at": rfc3339(NOW)}
    running = {"state": "running", "started_at": rfc3339(NOW - 5)}
    seen = snapshot(two(), Sight(status("failed", draft_writer_1__0__1=running, draft_writer_2__0__1=error)), now=NOW)
    assert [agent.state for _, agent in seen.agents] == ["stopped", "failed", "pending"]
    assert {one.event for one in alerts_of(seen)} == {"agent.ended", "iteration.ended", "run.ended"}


def test_of_two_monitors_one_tells(tmp_path: Path) -> None:
    """What stands in alerts.jsonl is not told again, and a torn last line does no harm."""
    one, other = (Alert("agent.ended", key, "done", "x is done") for key in ("one", "two"))
    assert tell(tmp_path, "r", "now", [one]) == [one]
    with open(tmp_path / "alerts.jsonl", "ab") as file:
        file.write(b'{"run_id": "r", "key": "tw')
    assert tell(tmp_path, "r", "now", [one, other]) == [other]
    assert tell(tmp_path, "s", "now", [one]) == [one]
    assert [row["key"] for row in told(tmp_path, "r")] == ["one", "two"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/no/such/command"], "cannot be started"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "exit code 3"),
        ([sys.executable, "-c", "import sys, time; sys.stdin.close(); time.sleep(60)"], "did not end within"),
    ],
)
def test_a_bad_hook_is_told_and_stops_nothing(argv: list[str], said: str) -> None:
    """A missing program, an exit code and one that hangs: the next alert has its turn all the same."""
    lines: list[str] = []
    hook = Hook(argv, say=lines.append, timeout_s=0.5)
    began = time.monotonic()
    for key in ("one", "two"):
        hook.call(Alert("agent.ended", key, "done", "x is done", step="x"), {"run_id": "r", "dir": "d"})
    assert time.monotonic() - began < 0.2
    hook.close()
    assert len(lines) == 2 and all(said in line for line in lines), lines


def test_an_alerts_file_that_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    """Nothing is read from a FIFO, or written into one."""
    os.mkfifo(tmp_path / "alerts.jsonl")
    assert told(tmp_path, "r") == []
    with pytest.raises(OSError, match="not a regular file"):
        tell(tmp_path, "r", rfc3339(NOW), [Alert("run.ended", "run.ended", "complete", "the run is complete")])


def test_a_hook_is_split_as_a_shell_would() -> None:
    """No shell runs it, but the words are a shell's."""
    assert hook_argv("notify 'two words' $HOME") == ["notify", "two words", "$HOME"]
    for wrong in ("", "'open"):
        with pytest.raises(Exception, match="--on-end"):
            hook_argv(wrong)


def test_it_follows_a_run_to_its_end(served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI) -> None:
    """Files appear in DIR, each agent's end is told with the criteria it missed, and the hook hears of it."""
    fake_openai.delay_s = 0.3
    living, folder = served(two(rounds=2), criteria=RISKS)
    heard = living.path / "heard.jsonl"
    hook = living.path / "hook.py"
    hook.write_text(
        "import json, os, sys\nheard = json.load(sys.stdin)\n"
        "heard['env'] = {k: v for k, v in os.environ.items() if k.startswith('POP_ITERATE_')}\n"
        f"open({str(heard)!r}, 'a').write(json.dumps(heard) + '\\n')\n"
    )
    run_id = submit(living, folder)
    result = pop(living, "iterate", "monitor", folder, "--on-end", f"{sys.executable} {hook}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "draft-writer-1 is done: 2 of 2 in lap 2; criteria not met: 2" in result.stdout
    assert 'a.md: has "## Risks": no such heading' in result.stdout
    assert "judge-critic is done: 1 of 1" in result.stdout
    assert f"complete   pipeline-complete/{run_id}" in result.stdout
    assert (folder / "draft" / "a.md").read_text() and (folder / "judge" / "verdict.md").read_text()
    rows = [json.loads(line) for line in heard.read_text().splitlines()]
    ends = [row for row in rows if row["event"] == "agent.ended" and row["step"] == "judge-critic"]
    assert ends[0]["run_id"] == run_id and ends[0]["done"] == 1
    assert ends[0]["env"]["POP_ITERATE_STEP"] == "judge-critic" and ends[0]["env"]["POP_ITERATE_STATE"] == "done"
    assert rows[-1]["event"] == "run.ended" and rows[-1]["env"]["POP_ITERATE_DIR"] == str(folder)
    before = heard.read_text()
    again = pop(living, "iterate", "monitor", folder, "--on-end", f"{sys.executable} {hook}")
    assert again.returncode == 0 and "is done: " not in again.stdout
    assert heard.read_text() == before, "an alert is told once"


def test_until_agent_ends_with_each_agent(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """Called again and again it gives one end after the other and misses none, however late it comes."""
    living, folder = served()
    submit(living, folder)
    living.wait_complete(1)
    told_of: list[str] = []
    first = pop(living, "iterate", "monitor", folder, "--until", "agent", "--json")
    for line in first.stdout.splitlines():
        told_of += [alert["step"] for alert in json.loads(line)["alerts"] if alert["event"] == "agent.ended"]
    assert first.returncode == 0
    assert sorted(told_of) == ["draft-writer-1", "draft-writer-2", "judge-critic"]


def test_partial_outputs_are_judged_as_they_appear(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """While one agent sleeps, what the others made lies in DIR and its problems are told; each change is one JSON object."""
    living, folder = served(targets={"c.txt": "SLEEP"}, criteria=RISKS)
    submit(living, folder)
    argv = [sys.executable, "-m", "pop", "iterate", "monitor", str(folder), "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=living.path, text=True) as monitor:
        assert monitor.stdout
        for line in monitor.stdout:
            seen = json.loads(line)
            writer, second = seen["iterations"][0]["agents"]
            if writer["state"] == "done":
                break
        assert seen["state"] == "running" and second["state"] == "running" and second["done"] == 0
        assert len(writer["problems"]) == 2 and writer["bytes"] > 0 and writer["tokens"] > 0
        assert (folder / "draft" / "a.md").exists() and not (folder / "draft" / "c.md").exists()
        (living.path / "go").touch()
        rest = [json.loads(line) for line in monitor.stdout]
    assert monitor.returncode == 0 and rest[-1]["state"] == "complete"
    assert len(rest) < 20, "a snapshot is printed when something has changed"


def test_an_agent_that_stands_still_is_told(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """--until agent ends with 5; --once says so too; and once it moves again it ends well."""
    living, folder = served(two()[:1], targets={"c.txt": "SLEEP"})
    submit(living, folder)
    living.wait(lambda: living.status()["tasks"]["draft-writer-1.1@1"]["state"] == "done", "the others")
    first = pop(living, "iterate", "monitor", folder, "--stall", "60", "--until", "agent")
    assert first.returncode == 0 and "draft-writer-1 is done" in first.stdout
    stalled = pop(living, "iterate", "monitor", folder, "--stall", "1s", "--until", "agent")
    assert stalled.returncode == 5, stalled.stdout + stalled.stderr
    assert "draft-writer-2 has stalled: no progress since" in stalled.stdout
    once = pop(living, "iterate", "monitor", folder, "--stall", "1s", "--once")
    assert once.returncode == 5 and "STALLED" in once.stdout
    fresh = pop(living, "iterate", "monitor", folder, "--once")
    assert fresh.returncode == 0 and "STALLED" not in fresh.stdout
    (living.path / "go").touch()
    assert pop(living, "iterate", "monitor", folder).returncode == 0
    events = [row["event"] for row in map(json.loads, (folder / "alerts.jsonl").read_text().splitlines())]
    assert events.count("agent.stalled") == 1 and "run.ended" in events


def test_a_killed_agent_is_told(served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI) -> None:
    """kill -9 of a worker at each of its attempts: the agent has failed, the run too, exit code 4."""
    living, folder = served(two()[:1], targets={"c.txt": "SLEEP"})
    run_id = submit(living, folder)

    def over() -> bool:
        kill(living, run_id, "draft-writer-2.0@1")
        return bool(living.status()["state"] == "failed")

    living.wait(over, "the end")
    result = pop(living, "iterate", "monitor", folder)
    assert result.returncode == 4
    assert "draft-writer-2 failed: 0 of 1" in result.stdout and "draft-writer-1 is done: 2 of 2" in result.stdout


def test_it_works_while_no_daemon_runs(served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI) -> None:
    """After kill -9 of the daemon it shows what was there, says what is missing, and that the run stands still."""
    living, folder = served(two()[:1], targets={"c.txt": "SLEEP"})
    daemon = living.daemons[0]
    submit(living, folder)
    living.wait(lambda: living.status()["tasks"]["draft-writer-1.1@1"]["state"] == "done", "the others")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    once = pop(living, "iterate", "monitor", folder, "--once")
    assert once.returncode == 0 and "no daemon is running here; pop up serves it" in once.stdout
    assert "draft-writer-1" in once.stdout and "2/2" in once.stdout
    pop(living, "iterate", "monitor", folder, "--until", "agent")
    stalled = pop(living, "iterate", "monitor", folder, "--until", "agent", "--stall", "500ms")
    assert stalled.returncode == 5 and "no daemon is running here: pop up" in stalled.stdout


def test_a_run_that_waits_for_a_person_ends_with_5(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """The criteria were not met and `otherwise` says ask: the gate is named; after the answer it goes on to its end."""
    living, folder = served(two(otherwise="ask"), criteria=RISKS)
    run_id = submit(living, folder)
    result = pop(living, "iterate", "monitor", folder)
    assert result.returncode == 5 and "the run is waiting for draft-rounds@1" in result.stdout, result.stdout
    assert pop(living, "approve", run_id).returncode == 0
    assert pop(living, "iterate", "monitor", folder).returncode == 0


def test_what_a_person_edited_stays(served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI) -> None:
    """The file is left alone, its new version goes beside it, and that is said once."""
    living, folder = served(two()[:1])
    (folder / "draft" / "a.md").write_text("mine\n")
    submit(living, folder)
    result = pop(living, "iterate", "monitor", folder)
    assert result.returncode == 0 and (folder / "draft" / "a.md").read_text() == "mine\n"
    assert result.stderr.count("draft/a.md was edited and stays; the new version is draft/a.new.md") == 1


def test_before_the_first_run_it_waits_and_says_for_what(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """Then it follows that run to its end."""
    living, folder = served(two()[:1])
    command = [sys.executable, "-m", "pop", "iterate", "monitor", str(folder), "--root", str(living.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as monitor:
        assert monitor.stderr
        line = monitor.stderr.readline()
        assert line.startswith("waiting: ") and f"pop iterate run {folder}" in line
        submit(living, folder)
        out, _ = monitor.communicate(timeout=60)
    assert monitor.returncode == 0 and "draft-writer-1" in out


def test_what_is_not_there_is_told_with_the_next_move(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """No folder, no iteration, not run yet, an unknown run, a removed one: each says what to do."""
    living, folder = served()
    empty = living.path / "empty"
    empty.mkdir()
    for place in (living.path / "nowhere", empty):
        result = pop(living, "iterate", "monitor", place)
        assert result.returncode == 2 and "pop iterate generate" in result.stderr, result.stderr
    for option in ("--once", "--json"):
        result = pop(living, "iterate", "monitor", folder, option)
        assert result.returncode == 2 and "not-run: " in result.stderr and f"pop iterate run {folder}" in result.stderr
    run_id = submit(living, folder)
    assert pop(living, "iterate", "monitor", folder, "--run", "2020").returncode == 2
    assert pop(living, "iterate", "monitor", folder, "--run", run_id[:18]).returncode == 0
    living.wait_complete(1)
    living.stop(living.daemons[0])
    assert pop(living, "iterate", "monitor", folder, "--once").returncode == 0
    for path in known(living):
        os.rename(path, living.path / "elsewhere")
    gone = pop(living, "iterate", "monitor", folder)
    assert gone.returncode == 2 and "removed: " in gone.stderr and "pop iterate run" in gone.stderr
    (living.root.ledger).unlink()
    lost = pop(living, "iterate", "monitor", folder)
    assert lost.returncode == 2 and "unknown-run: " in lost.stderr and "--root" in lost.stderr
    for wrong in (["--stall", "soon"], ["--stall", "0"], ["--on-end", "'"], ["--until", "noon"]):
        assert pop(living, "iterate", "monitor", folder, *wrong).returncode == 2


def test_on_a_terminal_it_is_a_live_table(
    served: Callable[..., tuple[LivingRoot, Path]], fake_openai: FakeOpenAI
) -> None:
    """The table shows agents at work; Ctrl-C ends it, also while a hook hangs."""
    living, folder = served(targets={"c.txt": "SLEEP"})
    submit(living, folder)
    argv = ["-m", "pop", "iterate", "monitor", str(folder), "--on-end", "sleep 61.25"]
    child = pexpect.spawn(
        sys.executable, argv, cwd=str(living.path), dimensions=(40, 160), encoding="utf-8", timeout=30
    )
    child.expect("draft-writer-1 is done: 2 of 2")
    child.expect("agent .*state .*made ")
    child.expect("draft-writer-2 .*running")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert not [one for one in psutil.process_iter(["cmdline", "ppid"]) if one.info["cmdline"] == ["sleep", "61.25"]]
    (living.path / "go").touch()
    child = pexpect.spawn(
        sys.executable, argv[:-2], cwd=str(living.path), dimensions=(40, 160), encoding="utf-8", timeout=30
    )
    child.expect("complete   pipeline-complete/")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
