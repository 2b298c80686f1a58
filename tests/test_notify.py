"""Persons are told about runs: by real hook commands and a real HTTP server, through a real daemon."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from pop.errors import ConfigErrors
from pop.notices import Notice, notices_in
from pop.notifier import Notifier, NotTold, signature, tell
from pop.outbox import Outbox
from pop.settings import NotifySettings, Root, load_settings
from tests import warm
from tests.living import LivingRoot

TASKS = {
    "one.py": "def infer(prompt, ctx):\n    if ctx.seed.get('fail'):\n        raise ValueError('no such luck')\n    return {}\n"
}
PIPELINE = {"tasks": ["one", {"approve": "ok", "when": "seed.ask | default(false)"}]}


class Receiver:
    """A webhook's server: keeps what came, answers by `answers` and then 204."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def notices(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def until(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def hook_of(path: Path, **more: Any) -> str:
    """A [notify.file] whose command appends each notice to a file."""
    command = ["sh", "-c", 'cat >> "$0"', str(path)]
    lines = [f"command = {json.dumps(command)}"]
    return "\n".join(["[notify.file]", *lines, *(f"{key} = {json.dumps(value)}" for key, value in more.items()), ""])


def notifiers(daemon: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(daemon).children():
        with contextlib.suppress(psutil.Error):
            found += [child] if "pop.notifier" in child.cmdline() else []
    return found


def living(tmp_path: Path, settings: str) -> LivingRoot:
    return LivingRoot(tmp_path / "root", pipeline=PIPELINE, tasks=TASKS, settings=settings)


def test_a_command_is_told_of_finished_failed_and_waiting_runs(tmp_path: Path) -> None:
    """Each once, with the words that `pop show` would use."""
    root = living(tmp_path, hook_of(tmp_path / "told.jsonl"))
    root.up()
    try:
        root.drop("good.json", {"x": 1})
        root.drop("bad.json", {"fail": True})
        root.drop("asks.json", {"ask": True})
        rows = until(lambda: len(found := told(tmp_path / "told.jsonl")) >= 3 and found)
    finally:
        root.close()
    by_name = {row["name"]: row for row in rows}
    assert {name: row["kinds"] for name, row in by_name.items()} == {
        "good": ["finished"], "bad": ["failed"], "asks": ["waiting"],
    }  # fmt: skip
    assert Path(by_name["good"]["path"]).parent == root.root.complete
    assert by_name["asks"]["waiting_for"] == ["ok"]
    assert "no such luck" in by_name["bad"]["text"] and by_name["bad"]["error"]["error_class"] == "bug"
    assert len(rows) == 3 and Path(by_name["bad"]["path"], "events.jsonl").exists()


def test_a_webhook_is_signed_and_tried_again(tmp_path: Path, receiver: Receiver) -> None:
    """503 and 429 are tried again with the same id; the signature is that of Standard Webhooks."""
    receiver.answers = [503, 429]
    root = living(tmp_path, f'[notify.team]\nurl = "{receiver.url}"\nsecret_env = "HOOK_SECRET"\non = ["finished"]\n')
    root.up(env={"HOOK_SECRET": "whsec_" + base64.b64encode(b"a good secret").decode()})
    try:
        root.drop("good.json", {"x": 1})
        until(lambda: len(receiver.got) == 3)
        log = root.path / ".pop" / "log" / "notify.jsonl"
        until(lambda: log.read_bytes().count(b"\n") == 3)
    finally:
        root.close()
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    headers, body = receiver.got[-1]
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"a good secret", content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert [row["error"] for row in told(log)] == ["HTTP status 503", "HTTP status 429", None]


def test_the_signature_of_the_published_example() -> None:
    """The example in the specification of Standard Webhooks."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


def test_a_notice_outlives_kills_and_restarts(tmp_path: Path, receiver: Receiver) -> None:
    """The receiver is down, the notifier is killed, then the daemon: it is told after the next start all the same."""
    receiver.answers = [503] * 1000
    root = living(tmp_path, f'[notify.team]\nurl = "{receiver.url}"\ntries = 20\n')
    daemon = root.up()
    try:
        root.drop("good.json", {"x": 1})
        until(lambda: receiver.got)
        [notifier] = notifiers(daemon.pid)
        notifier.kill()
        root.drop("second.json", {"x": 2})  # the next hint starts it anew
        until(lambda: any(one.pid != notifier.pid for one in notifiers(daemon.pid)))
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
        until(
            lambda: (root.root.pending / "second.json").exists() or root.root.complete.joinpath("runs.jsonl").exists()
        )
        receiver.answers.clear()
        receiver.got.clear()
        root.up()
        until(lambda: {row["name"] for row in receiver.notices()} == {"good", "second"})
    finally:
        root.close()


def test_a_notifier_that_dies_comes_back_by_itself(tmp_path: Path, receiver: Receiver) -> None:
    """Also where nothing more happens in any run."""
    receiver.answers = [503] * 1000
    root = living(tmp_path, f'[notify.team]\nurl = "{receiver.url}"\ntries = 20\n')
    daemon = root.up()
    try:
        root.drop("good.json", {"x": 1})
        until(lambda: receiver.got)
        [notifier] = notifiers(daemon.pid)
        receiver.answers.clear()
        receiver.got.clear()
        notifier.kill()
        until(lambda: [row["name"] for row in receiver.notices()] == ["good"])
    finally:
        root.close()


def test_an_outbox_that_takes_no_change_for_a_while_ends_no_telling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: each notice is told once all the same, and those after it, too."""
    (tmp_path / ".pop" / "log").mkdir(parents=True)
    (tmp_path / "pipeline-current").mkdir()
    monkeypatch.setattr("pop.notifier.AGAIN_S", 0.05)
    (tmp_path / "pop.toml").write_text(hook_of(tmp_path / "told.jsonl"))
    root = Root(tmp_path)
    full = [sqlite3.OperationalError("database or disk is full")] * 3
    drop = Outbox.drop

    def drop_when_there_is_room(self: Outbox, number: int) -> None:
        if full:
            raise full.pop()
        drop(self, number)

    monkeypatch.setattr(Outbox, "drop", drop_when_there_is_room)
    notifier = Notifier(root, load_settings(root).notify)
    for name in ("one", "two"):
        run = tmp_path / "pipeline-current" / name
        run.mkdir()
        rows = [{"event": "run.created", "name": name}, {"event": "run.failed", "at": "9", "error": {}}]
        (run / "events.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    read, write = os.pipe()
    with open(read) as hints:
        serving = threading.Thread(target=notifier.serve, args=(hints,))
        serving.start()
        until(lambda: len(told(tmp_path / "told.jsonl")) >= 2)
        os.close(write)
        serving.join(30)
    assert [row["name"] for row in told(tmp_path / "told.jsonl")] == ["one", "two"] and not full


def test_a_journal_that_was_tampered_with_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Lines that nobody wrote like that are passed over, and stop nothing."""
    lines = [
        '{"event": "run.created", "name": "a", "pipeline": "p"}',
        '{"event": "run.failed", "at": "1", "error": {"message": "\\ud800"}}',
        '{"event": "run.waiting", "at": "2", "for": 5}',
        "[" * 100_000,
        '{"event": "run.failed", "at": "3", "error": 7}',
    ]
    (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    found, _ = notices_in(tmp_path, 0)
    assert [one.at for one in found] == ["3"]
    assert found[0].model_dump_json()


def test_a_hanging_hook_stops_neither_runs_nor_others_nor_the_end(tmp_path: Path) -> None:
    """One command sleeps, the other is told at once; the daemon ends in time and the sleeper with it."""
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(3600)"
    slow = f"[notify.slow]\ncommand = {json.dumps([sys.executable, '-c', sleeper])}\n"
    root = living(tmp_path, slow + "timeout_s = 300\n" + hook_of(tmp_path / "told.jsonl", on=["finished"]))
    daemon = root.up()
    try:
        for number in range(5):
            root.drop(f"s{number}.json", {"x": number})
        until(lambda: len(told(tmp_path / "told.jsonl")) == 5)
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0 and time.monotonic() - began < 10
        until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))
    finally:
        root.close()


def test_what_happened_before_is_not_told_but_what_happened_while_down_is(tmp_path: Path) -> None:
    """History stays silent at the first start; a run that ends through `pop run` is told too."""
    root = living(tmp_path, "")
    root.up()
    root.drop("old.json", {"x": 1})
    until(lambda: root.root.ledger.exists() and root.root.ledger.read_bytes().count(b"\n") == 1)
    root.close()
    (root.path / "pop.toml").write_text(hook_of(tmp_path / "told.jsonl"))
    seed = tmp_path / "new.json"
    seed.write_text('{"x": 2}')
    command = [sys.executable, "-m", "pop", "--root", str(root.path), "run", str(seed), "--quiet"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    assert [row["name"] for row in until(lambda: told(tmp_path / "told.jsonl"))] == ["new"]


def test_a_run_that_went_on_waits_no_more(tmp_path: Path) -> None:
    """Of a wait that is over before anybody was told nothing is said."""
    run = tmp_path / "run"
    run.mkdir()
    rows: list[dict[str, Any]] = [
        {"event": "run.created", "run_id": "run", "name": "a\x1b[31m", "pipeline": "p"},
        {"event": "run.waiting", "for": ["ok"], "at": "t1"},
        {"event": "gate.decided"},
        {"event": "budget.warning", "text": "80 % is spent", "at": "t2"},
        {"event": "run.started"},
        {"event": "run.failed", "error": {"error_class": "budget", "message": "over"}, "at": "t3"},
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (run / "events.jsonl").write_text("".join(lines) + '{"event": "run.comp')
    found, end = notices_in(run, 0)
    assert [notice.kinds for notice in found] == [["budget"], ["failed", "budget"]]
    assert end == len("".join(lines)) and "\x1b" not in found[-1].text
    again, same = notices_in(run, end)
    assert again == [] and same == end


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("on = []", "at least 1"),
        ('on = ["done"]\nurl = "http://x/"', "finished"),
        ("", "either `command` or `url`"),
        ('url = "http://x/"\ncommand = ["a"]', "either `command` or `url`"),
        ('url = "ftp://x/"', "http://"),
        ('url = "https://user:secret@x/"', "no user or password"),
        ('command = ["a"]\nsecret_env = "S"', "signs what goes to a `url`"),
        ('comand = ["a"]', "unknown key 'comand'"),
    ],
)
def test_mistakes_in_the_table(tmp_path: Path, lines: str, message: str) -> None:
    """Each with its line."""
    (tmp_path / "pop.toml").write_text(f"[notify.x]\n{lines}\n")
    with pytest.raises(ConfigErrors) as caught:
        load_settings(Root(tmp_path))
    assert message in str(caught.value) and "pop.toml:" in str(caught.value)


NOTICE = Notice(id="r:1", kinds=["failed"], at="t", text="it failed", run_id="r", name="n", pipeline="p", path="/r")


@pytest.mark.parametrize(
    ("hook", "why", "final"),
    [
        ({"command": ["/no/such/program"]}, "cannot be started", True),
        ({"command": ["sh", "-c", "echo out of order >&2; exit 3"]}, "exit code 3: out of order", False),
        ({"command": ["sleep", "60"], "timeout_s": 0.2}, "no end after 0.2 s", False),
        ({"url": "http://127.0.0.1:9/"}, "ConnectError", False),
        ({"url": "http://127.0.0.1:9/", "secret_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set", True),
    ],
)
def test_what_goes_wrong_is_named(hook: dict[str, Any], why: str, final: bool) -> None:
    """And whether another try may help."""
    with pytest.raises(NotTold, match=why) as caught:
        tell("x", NotifySettings.model_validate(hook), NOTICE)
    assert caught.value.final is final


@pytest.mark.parametrize(("status", "final"), [(302, True), (404, True), (410, True), (429, False), (500, False)])
def test_an_answer_that_is_no_yes(receiver: Receiver, status: int, final: bool) -> None:
    """Redirects are not followed."""
    receiver.answers = [status]
    with pytest.raises(NotTold, match=str(status)) as caught:
        tell("x", NotifySettings(url=receiver.url), NOTICE)
    assert caught.value.final is final and len(receiver.got) == 1


def test_a_command_sees_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of the notice and an allow-list; what it leaves behind is ended."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("WANTED", "yes")
    target = tmp_path / "environment"
    script = f"env > {target}; sleep 600 & exit 0"
    tell("x", NotifySettings(command=["sh", "-c", script], env=["WANTED"]), NOTICE)
    seen = dict(line.split("=", 1) for line in target.read_text().splitlines() if "=" in line)
    assert "OPENAI_API_KEY" not in seen and seen["WANTED"] == "yes" and seen["POP_TEXT"] == "it failed"
    assert seen["POP_NOTICE"] == "failed" and seen["POP_RUN_ID"] == "r" and seen["POP_RUN_DIR"] == "/r"


def pop(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.pop(["--root", root, *arguments])


def test_the_command_lists_and_tries(tmp_path: Path, receiver: Receiver) -> None:
    """`pop notify --test` tells each of them once."""
    broken = '[notify.broken]\ncommand = ["/no/such/program"]\n'
    root = living(tmp_path, f'[notify.team]\nurl = "{receiver.url}"\n' + broken)
    listed = pop(root.path, "notify")
    assert listed.returncode == 0 and f"team: finished, failed, waiting, budget -> {receiver.url}" in listed.stdout
    tried = pop(root.path, "notify", "--test", "--json")
    assert tried.returncode == 4
    rows = {row["name"]: row for row in json.loads(tried.stdout)["hooks"]}
    assert rows["team"]["test"] == "ok" and "cannot be started" in rows["broken"]["test"]
    assert receiver.notices()[0]["text"] == "This is a test by pop notify --test"
    unknown = pop(root.path, "notify", "tem")
    assert unknown.returncode == 2 and "team" in unknown.stderr


def test_a_soft_budget_is_told_while_the_run_goes_on(tmp_path: Path) -> None:
    """It is told when it is passed, not when the run has ended."""
    tasks = {
        "first.md": "Say {{ seed.x }}",
        "second.py": "import time\n\n\ndef infer(prompt, ctx):\n    time.sleep(60)\n",
    }
    settings = f"[budget.warn]\nrun_tokens = 1\n{hook_of(tmp_path / 'told.jsonl', on=['budget'])}"
    root = LivingRoot(tmp_path / "root", pipeline={"tasks": ["first", "second"]}, tasks=tasks, settings=settings)
    root.up()
    try:
        root.drop("dear.json", {"x": "much"})
        (row,) = until(lambda: told(tmp_path / "told.jsonl"))
    finally:
        root.close()
    assert row["kinds"] == ["budget"] and "run_tokens = 1" in row["text"] and "pipeline-current" in row["path"]


def test_the_doctor_tells_who_was_told_in_vain_and_that_there_is_no_dashboard(tmp_path: Path) -> None:
    """A hook that fails is named, and keeps nothing from its work; without a dashboard the reason is told."""
    root = living(tmp_path, '[notify.broken]\ncommand = ["/no/such/program"]\ntries = 1\n')
    root.up()
    try:
        root.drop("good.json", {"x": 1})
        shown = until(lambda: "given up" in (found := pop(root.path, "doctor")).stdout and found)
    finally:
        root.close()
    assert shown.returncode == 0 and "! notify" in shown.stdout and "pop notify broken --test" in shown.stdout
    assert "dashboard none: --no-web" in shown.stdout


@pytest.mark.parametrize("drip", [b"x", b"HTTP/1.1 200 OK\r\nx-a: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_server_that_answers_a_byte_at_a_time_holds_up_nothing(drip: bytes) -> None:
    """`timeout_s` is that of the whole try."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as line, contextlib.suppress(OSError):
                for place in range(1000):
                    line.sendall(drip[place : place + 1] or (drip[-1:] if drip.endswith(b" ") else b"a"))
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        hook = NotifySettings(url=f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout_s=1)
        began = time.monotonic()
        with pytest.raises(NotTold):
            tell("slow", hook, NOTICE)
        assert time.monotonic() - began < 10
