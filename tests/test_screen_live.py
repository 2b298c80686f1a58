"""`pop watch` in a real terminal, beside a real daemon: as a person uses it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.events import rfc3339
from pop.settings import Root
from tests.living import LivingRoot
from tests.terminals import terminal
from tests.wizardry import environment

Make = Callable[..., LivingRoot]
DOWN, UP, ESC, ENTER, CTRL_C = "\x1b[B", "\x1b[A", "\x1b", "\r", "\x03"
TASKS = {
    "one.py": "def infer(prompt, ctx):\n    ctx.log.info('one is at work')\n    return [1, 2, 3]\n",
    "item.py": "def infer(prompt, ctx):\n    return 1\n",
    "patient.py": """
import os, time
def infer(prompt, ctx):
    print('waiting for go')
    while not os.path.exists(ctx.letter.tasks_dir + '/../go'):
        time.sleep(0.05)
    return 2
""",
}
PATIENT = {"name": "p", "tasks": ["one", {"each": "inputs.one", "do": "item"}, "patient"]}
GATED = {"name": "p", "tasks": ["one", {"approve": "fine", "text": "Is it as it should be?", "show": ["one"]}]}


def serving(make_living: Make, pipeline: Any, **about: Any) -> LivingRoot:
    living = make_living(pipeline=pipeline, tasks=TASKS, **about)
    living.up()
    return living


def dropped(living: LivingRoot, name: str, state: str = "running") -> Path:
    """A run that is in a state."""
    before = set(living.current())
    living.drop(f"{name}.json", {})
    run_dir: Path = living.wait(lambda: set(living.current()) - before, "its run").pop()
    living.wait_state(state, run_dir)
    return run_dir


def test_a_run_is_seen_to_finish_and_its_steps_are_opened(make_living: Make) -> None:
    """Without a key the board follows; Enter opens the run, its items in one line, a step with its log."""
    living = serving(make_living, PATIENT)
    with terminal(living.path, "watch") as screen:
        screen.see("nothing here yet", "served by pop up")
        living.drop("a.json", {})
        text = screen.see("active (1)", "patient")
        run_id = living.current()[0].name
        assert run_id in text and "1 active" in text
        screen.press(ENTER)
        text = screen.see("one", "3 of 3 done", "patient", "running", "waiting for go", "one is at work")
        assert "item.1" not in text
        screen.press("j" + ENTER)
        screen.see("item.0", "item.1", "item.2")
        screen.press("G" + ENTER)
        screen.see(f"pipeline-current/{run_id}/tasks/patient", "waiting for go", "attempt 1 of 1")
        screen.press(ESC)
        screen.see("3 of 3 done", gone=("attempt 1 of 1",))
        (living.path / "go").touch()
        screen.see("✓ complete", f"pipeline-complete/{run_id}")
        screen.press("h")
        screen.see("complete, the newest (1)", "1 complete", "0 active")
        screen.press("q")
        assert screen.ended() == 0
    assert "\x1b[?1049l" in screen.seen  # the screen of before is back


def test_a_gate_is_read_and_answered(make_living: Make) -> None:
    """Changes need words and the gate opens again; an approval lets the run go on; each tells its file."""
    living = serving(make_living, GATED)
    run_dir = dropped(living, "a", "waiting")
    with terminal(living.path, "watch") as screen:
        screen.see("waiting for a person (1)", run_dir.name, "a approve")
        screen.press(ENTER)
        screen.see("waits for your answer: fine")
        screen.press("j" + ENTER)
        screen.see("Is it as it should be?")
        screen.press("c")
        screen.see("what is to be done otherwise")
        screen.press(ENTER)
        screen.see("request-changes without a word")
        screen.press("c")
        screen.see("Enter does it")
        screen.press("\x1b[200~shorter, \x1b]0;x\x07please\x1b[201~" + ENTER)  # pasted
        screen.see(f"wrote pipeline-current/{run_dir.name}/tasks/fine/decision.json")
        given = living.wait(lambda: list((run_dir / "tasks" / "fine" / "answers").glob("*/decision.json")), "it")[0]
        assert json.loads(given.read_bytes())["text"].startswith("shorter,")
        living.wait_state("waiting", run_dir)
        screen.press(ESC)
        screen.see("? waiting", "attempt 2")
        screen.press("a")
        screen.see("approve fine of")
        screen.press(ENTER)
        screen.see("complete")
        living.wait_complete(1)
        screen.press("q")
        assert screen.ended() == 0


def test_a_run_is_paused_resumed_and_cancelled_after_a_y(make_living: Make) -> None:
    """Any key but y does nothing; the file is told; q while it is asked does not leave."""
    living = serving(make_living, PATIENT)
    run_dir = dropped(living, "a")
    with terminal(living.path, "watch") as screen:
        screen.see(run_dir.name)
        for key in ("n", ESC, "q", ENTER):
            screen.press("x")
            screen.see(f"cancel {run_dir.name}?")
            screen.press(key)
            screen.see("nothing was done", gone=("any other key",))
        assert not list(run_dir.glob("orders/*.json"))
        screen.press("p")
        screen.see(f"pause {run_dir.name}?")
        screen.press("y")
        screen.see(f"wrote pipeline-current/{run_dir.name}/orders/pause.json")
        (living.path / "go").touch()
        living.wait(lambda: living.ledger() or living.status(run_dir)["state"] == "paused", "it")
    (living.path / "go").unlink()
    other = dropped(living, "b")
    with terminal(living.path, "watch") as screen:
        screen.see(other.name)
        screen.press("x")
        screen.see(f"cancel {other.name}?")
        screen.press("y")
        screen.see(f"wrote pipeline-current/{other.name}/orders/cancel.json", "failed (1)")
        living.wait_state("cancelled", other)
        screen.press("u")
        screen.see("only a paused run is resumed")


def test_the_board_is_filtered_as_somebody_types(make_living: Make) -> None:
    """By words and by the names of its parts; Esc takes the filter away; letters of orders are only letters then."""
    living = serving(make_living, GATED)
    first, second = dropped(living, "apple", "waiting"), dropped(living, "pear", "waiting")
    with terminal(living.path, "watch") as screen:
        screen.see(first.name, second.name)
        screen.press("/pea")
        screen.see(second.name, "filter", gone=(first.name,))
        screen.press(ENTER)
        screen.see("filter: pea   (Esc", gone=("Enter keeps it",))
        screen.press(ESC)
        screen.see(first.name, second.name, gone=("filter:",))
        screen.press("/failed")
        screen.see("no run fits the filter")
        screen.press("\x7f" * 6 + "xapq")
        screen.see("no run fits", "xapq")
        screen.press(ESC)
        screen.see(first.name)
        screen.press("q")
        assert screen.ended() == 0
    assert not [*first.glob("orders/*"), *second.glob("orders/*")]


@pytest.mark.parametrize(("columns", "rows"), [(40, 12), (200, 60)])
def test_it_fits_small_and_large_terminals_also_when_they_change(make_living: Make, columns: int, rows: int) -> None:
    """Nothing is wider than the terminal, the keys stand in its last line, and the run is on it."""
    living = serving(make_living, GATED)
    run_dir = dropped(living, "apple", "waiting")
    with terminal(living.path, "watch", columns=100, rows=25) as screen:
        screen.see(run_dir.name)
        screen.resize(columns, rows)
        screen.until(lambda text: "apple" in text and screen.lines()[-1].startswith("? help"), "its new size")
        screen.press(ENTER)
        screen.see("waits for your answer: fine", "Esc back", "a approve", "done")
        screen.press("?")
        screen.see("Moving")
        screen.press(ESC)
        screen.press("x")
        screen.see(f"cancel {run_dir.name}? y does it, any other key does not")
        screen.press("n")
        screen.see("nothing was done")
        screen.resize(100, 25)
        screen.see("waits for your answer: fine", "r reject")


def test_no_colour_and_nothing_hostile_reaches_the_terminal(make_living: Make) -> None:
    """With NO_COLOR only bold and reverse; escape sequences of names, logs, errors and gates are shown as signs."""
    evil = "\x1b]0;evil\x07\x1b[31mred\u202e"
    tasks = {
        "loud.py": f"def infer(prompt, ctx):\n    print({evil!r})\n    ctx.log.info({evil!r})\n    return {evil!r}\n",
        "bad.py": f"def infer(prompt, ctx):\n    raise ValueError({evil!r})\n",
    }
    gate = {"approve": "fine", "text": f"Is it {evil}?", "show": ["loud"]}
    living = make_living(pipeline={"name": "p", "tasks": ["loud", gate, "bad"]}, tasks=tasks)
    living.up()
    living.drop("a.json", {"data": {}, "name": "a name"})
    run_dir: Path = living.wait(living.current, "it")[0]
    living.wait_state("waiting", run_dir)
    with terminal(living.path, "watch", NO_COLOR="1") as screen:
        screen.see(run_dir.name)
        screen.press(ENTER)
        screen.see("waits for your answer", "red")
        screen.press("j" + ENTER)
        screen.see("Is it")
        screen.press("a")
        screen.see("approve fine")
        screen.press("yes" + ENTER)
        living.wait_state("failed", run_dir)
        screen.press(ESC)
        screen.see("✗ failed", "ValueError")
        screen.press("q")
        assert screen.ended() == 0
    assert "\x1b]0;" not in screen.seen and "\u202e" not in screen.seen
    assert not {"31", "36", "32", "33"} & {part for part in _styles(screen.seen)}


def _styles(seen: str) -> list[str]:
    return [part for found in re.findall(r"\x1b\[([\d;]*)m", seen) for part in found.split(";")]


def test_one_run_is_shown_until_it_ends_with_its_exit_code(make_living: Make) -> None:
    """Complete 0, waiting 5 and how to answer, on the screen of before; left before its end 130."""
    living = serving(make_living, PATIENT)
    run_dir = dropped(living, "a")
    for leave in ("q", CTRL_C):
        with terminal(living.path, "watch", "last") as screen:
            screen.see(run_dir.name, "3 of 3 done", "waiting for go")
            screen.press(leave)
            assert screen.ended() == 130
    with terminal(living.path, "watch", "last") as screen:
        screen.see("patient", "running")
        (living.path / "go").touch()
        assert screen.ended() == 0
        screen.see("✓ complete", f"pipeline-complete/{run_dir.name}")
    with terminal(living.path, "watch", "last") as screen:  # it has ended: nothing to look at
        assert screen.ended() == 0 and "\x1b[?1049h" not in screen.seen


def test_a_cancelled_run_ends_its_screen_with_4(make_living: Make) -> None:
    """Cancelled from its own screen."""
    living = serving(make_living, PATIENT)
    dropped(living, "a")
    with terminal(living.path, "watch", "last") as screen:
        screen.see("patient", "running")
        screen.press("x")
        screen.see("y does it")
        screen.press("y")
        assert screen.ended() == 4


def test_without_a_daemon_it_says_so_and_orders_wait(make_living: Make) -> None:
    """What is there is shown; when the daemon ends and comes back the screen tells."""
    living = serving(make_living, GATED)
    run_dir = dropped(living, "a", "waiting")
    with terminal(living.path, "watch") as screen:
        screen.see("served by pop up", run_dir.name)
        living.stop(living.daemons[0])
        screen.see("no daemon is running here", run_dir.name)
        screen.press("a")
        screen.see("approve fine")
        screen.press(ENTER)
        screen.see("it takes effect with the next pop up", "decision.json")
        living.up()
        screen.see("served by pop up", "1 complete")
        psutil.Process(screen.child.pid).send_signal(signal.SIGTERM)
        assert screen.ended() == 130
    assert "\x1b[?1049l" in screen.seen


@pytest.mark.parametrize("controlling", [True, False])
def test_a_terminal_that_vanishes_ends_it(make_living: Make, controlling: bool) -> None:
    """It does not go on in the dark, with a signal from the kernel or without."""
    living = make_living(pipeline=GATED, tasks=TASKS)
    command = [sys.executable, "-m", "pop", "--root", str(living.path), "watch"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def take_terminal() -> None:
        if controlling:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    try:
        os.close(theirs)
        shown = b""
        while b"nothing here yet" not in shown:
            shown += os.read(ours, 65536)
        time.sleep(1.0)
        os.close(ours)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()


def pretended(root: Root, number: int, state: str = "running") -> Path:
    """A run that nobody works on, as the daemon would have left it."""
    run_dir = root.current / f"20261121-{number:06d}-pretended-{number:04x}"
    (run_dir / "tasks").mkdir(parents=True)
    at = rfc3339(time.time())
    created = {"event": "run.created", "at": at, "run_id": run_dir.name, "name": "pretended", "pipeline": "p"}
    (run_dir / "events.jsonl").write_text(json.dumps(created) + "\n")
    put_status(run_dir, state, 0.5)
    return run_dir


def put_status(run_dir: Path, state: str, progress: float) -> None:
    at = rfc3339(time.time())
    task = {"state": "running", "attempt": 1, "started_at": at, "usage": {}}
    status = {
        "schema_version": 1, "run_id": run_dir.name, "name": "pretended", "pipeline": "p", "state": state,
        "created_at": at, "started_at": at, "updated_at": at, "finished_at": None, "progress": progress,
        "current": ["draft"], "waiting_for": None, "error": None, "notes": [], "usage": {}, "tasks": {"draft": task},
    }  # fmt: skip
    draft = run_dir / ".draft"
    draft.write_text(json.dumps(status))
    os.rename(draft, run_dir / "tasks-status.json")


def test_an_idle_screen_costs_next_to_nothing(make_living: Make) -> None:
    """Below 3 % of a core, with 500 runs that rest."""
    living = make_living(pipeline=GATED, tasks=TASKS)
    for number in range(500):
        pretended(living.root, number, "paused")
    with terminal(living.path, "watch", columns=200, rows=60) as screen:
        screen.see("500 active")
        time.sleep(1.0)
        written, before = len(screen.seen), psutil.Process(screen.child.pid).cpu_times()
        time.sleep(10.0)
        after = psutil.Process(screen.child.pid).cpu_times()
        spent = (after.user + after.system - before.user - before.system) / 10.0
        screen.text()
        assert spent < 0.03, f"{100 * spent:.1f} % of a core"
        assert len(screen.seen) == written  # nothing changed, so nothing was drawn


def test_500_active_runs_do_not_hold_up_a_key(make_living: Make) -> None:
    """While their statuses change all the time a key is answered within a second, and nothing is redrawn beyond need."""
    living = make_living(pipeline=GATED, tasks=TASKS)
    runs = [pretended(living.root, number) for number in range(500)]
    with terminal(living.path, "watch", columns=120, rows=40) as screen:
        screen.see("500 active")
        waits: list[float] = []
        for turn in range(5):
            for number, run_dir in enumerate(runs):
                put_status(run_dir, "running", (number + turn) % 100 / 100)
            began = time.monotonic()
            screen.press("?")
            screen.see("Moving")
            waits.append(time.monotonic() - began)
            screen.press("?")
            screen.see("active (500)")
        process = psutil.Process(screen.child.pid)
        before = process.cpu_times()
        time.sleep(3.0)
        after = process.cpu_times()
        assert sorted(waits)[2] < 1.0, waits
        assert after.user + after.system - before.user - before.system < 1.5
