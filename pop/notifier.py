"""Tells persons about runs: a process of its own, beside the supervisor, so that no run ever waits for a hook or a webhook.

Its standard input names runs that came to rest (`*`: look at all); it reads what happened in their journals, keeps what is to
be told in ``.pop/notify.db`` until it was told, and ends when its input does. So a notice outlives a kill of any process,
and comes at least once. What was told before ``.pop`` was deleted is not told again.

A webhook gets a POST with the notice as its body and the headers of Standard Webhooks: ``webhook-id``, ``webhook-timestamp`` and,
with a secret, ``webhook-signature: v1,<base64 of the HMAC-SHA256 of id.timestamp.body>``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from pop import events
from pop.errors import safe
from pop.notices import Notice
from pop.outbox import Outbox
from pop.records import dump_json
from pop.settings import NotifySettings, Root, load_settings

LONGEST_WAIT_S = 60.0
AGAIN_S = 5.0  # until the outbox is tried again
LAST_WORDS_S = 5.0  # for what is being told when the daemon ends
MAX_SAID_BYTES = 2000  # of what a hook prints
MAX_LOG_BYTES = 10_000_000


class NotTold(Exception):
    """A hook did not take a notice; another try may help. `final`: it will not."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(safe(why, MAX_SAID_BYTES, one_line=True))
        self.final = final


# -- telling -----------------------------------------------------------------------------------------------------------


def tell(name: str, hook: NotifySettings, notice: Notice) -> None:
    """One try.

    Raises:
        NotTold: With the reason.
    """
    body = dump_json(notice.model_dump(mode="json"), pretty=False)
    if hook.url:
        _post(hook, notice, body)
    else:
        _run(hook, notice, body)


def signature(secret: str, notice_id: str, timestamp: int, body: bytes) -> str:
    """As Standard Webhooks has it; a secret ``whsec_...`` is base64, any other one counts as it is.

    Source: https://www.standardwebhooks.com
    """
    given = secret.removeprefix("whsec_")
    key = base64.b64decode(given) if given != secret else secret.encode()
    digest = hmac.new(key, f"{notice_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _post(hook: NotifySettings, notice: Notice, body: bytes) -> None:
    import httpx2

    from pop import __version__

    now = int(time.time())
    headers = {"content-type": "application/json", "user-agent": f"pop/{__version__}"}
    headers |= {"webhook-id": notice.id, "webhook-timestamp": str(now)}
    if hook.secret_env:
        secret = os.environ.get(hook.secret_env)
        if not secret:
            raise NotTold(f"the variable {hook.secret_env} is not set in the daemon's environment", final=True)
        try:
            headers["webhook-signature"] = signature(secret, notice.id, now, body)
        except ValueError:
            raise NotTold(f"the secret in {hook.secret_env} is no base64 behind whsec_", final=True) from None
    assert hook.url
    try:
        status = asyncio.run(_sent(hook.url, body, headers, hook.timeout_s))
    except TimeoutError:
        raise NotTold(f"no answer within {hook.timeout_s:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
        raise NotTold(f"{type(error).__name__}: {error}") from None
    if not 200 <= status < 300:
        final = 400 <= status < 500 and status not in (408, 409, 425, 429)
        raise NotTold(f"HTTP status {status}", final=final or 300 <= status < 400)


async def _sent(url: str, body: bytes, headers: dict[str, str], timeout_s: float) -> int:
    """The status of the answer, whose body is not read. The time counts for all of it: one byte a second is no answer.

    Raises:
        TimeoutError: There was none in time.
    """
    import httpx2

    async with (
        asyncio.timeout(timeout_s),
        httpx2.AsyncClient(timeout=timeout_s) as client,
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        return response.status_code


_commands: set[int] = set()  # those that are at work, each with a process group of its own


def _run(hook: NotifySettings, notice: Notice, body: bytes) -> None:
    from pop.executors.local import ALLOWED

    assert hook.command
    names = {*ALLOWED, *hook.env, *(one for one in os.environ if one.startswith("LC_"))}
    told = {"POP_NOTICE": ",".join(notice.kinds), "POP_RUN_ID": notice.run_id, "POP_RUN_DIR": notice.path}
    environment = {one: os.environ[one] for one in names if one in os.environ} | told | {"POP_TEXT": notice.text}
    words = [os.path.expanduser(hook.command[0]), *hook.command[1:]]
    with tempfile.TemporaryFile() as said:  # a pipe would be held open by whatever it leaves behind
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise NotTold(f"{words[0]} cannot be started: {error}", final=True) from None
        _commands.add(process.pid)
        try:
            with suppress(BrokenPipeError):
                process.communicate(body, timeout=hook.timeout_s)
        except subprocess.TimeoutExpired:
            raise NotTold(f"no end after {hook.timeout_s:g} s") from None
        finally:
            _end_group(process.pid)
            _commands.discard(process.pid)
            process.wait()
        if process.returncode:
            raise NotTold(f"exit code {process.returncode}: {_last_of(said)}")


def _end_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _last_of(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_SAID_BYTES))
    return file.read().decode(errors="replace").strip() or "it said nothing"


# -- the process -------------------------------------------------------------------------------------------------------


class Notifier:
    """One thread for each hook, so that a dead one holds up nobody else."""

    def __init__(self, root: Root, hooks: Mapping[str, NotifySettings]) -> None:
        self._root = root
        self._hooks = hooks
        self._outbox = Outbox(root)
        self._news = {name: threading.Event() for name in hooks}
        self._ending = threading.Event()
        self._log_lock = threading.Lock()
        self._missed = False
        self._still_there: dict[str, int] = {}  # by hook: what was told and could not be dropped yet

    def serve(self, hints: IO[str]) -> None:
        """Until the input ends; what is being told then has a moment to come to its end."""
        threads = [threading.Thread(target=self._keep_telling, args=(name,), daemon=True) for name in self._hooks]
        for thread in threads:
            thread.start()
        self._look_at("*")
        self._wake()
        for hint in hints:
            self._look_at(hint.strip())
            self._wake()
        self._outbox.look_at_all(self._hooks)  # a daemon that was killed did not come to name its last run
        self._ending.set()
        self._wake()
        until = time.monotonic() + LAST_WORDS_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for pid in list(_commands):
            _end_group(pid)

    def _look_at(self, hint: str) -> None:
        """At a run, or at all of them (``*``); what could not be kept is looked at with the next hint."""
        try:
            if hint == "*" or self._missed:
                self._missed = False
                self._outbox.look_at_all(self._hooks)
            if hint != "*":
                self._outbox.look_at(hint, self._hooks)
        except sqlite3.Error as error:
            self._missed = True
            self._complain(error)

    def _complain(self, error: sqlite3.Error) -> None:
        print(f".pop/notify.db: {error}", file=sys.stderr, flush=True)

    def _wake(self) -> None:
        for news in self._news.values():
            news.set()

    def _keep_telling(self, name: str) -> None:
        while True:
            self._news[name].clear()
            ending = self._ending.is_set()  # before the look: what was kept until then is seen by it
            try:
                self._tell_all(name)
            except sqlite3.Error as error:  # a full disk: what is told cannot be taken out now
                self._complain(error)
                if not ending:
                    self._ending.wait(AGAIN_S)
                    continue
            if ending:
                return
            self._news[name].wait()

    def _tell_all(self, name: str) -> None:
        while found := self._outbox.next_of(name):
            number, notice = found
            if self._still_there.get(name) != number:
                if not self._told(name, notice):
                    return  # it is told after the next start
                self._still_there[name] = number
            self._outbox.drop(number)
            del self._still_there[name]

    def _told(self, name: str, notice: Notice) -> bool:
        """Tell it, or give it up; False when the process ends meanwhile."""
        hook, tries = self._hooks[name], 0

        def once() -> None:
            nonlocal tries
            tries += 1
            try:
                tell(name, hook, notice)
            except NotTold as error:
                self._say(name, notice, tries, str(error))
                if not error.final:
                    raise _Again(str(error)) from None
                raise

        try:
            Retrying(
                retry=retry_if_exception_type(_Again),
                stop=stop_after_attempt(hook.tries) | stop_when_event_set(self._ending),
                wait=wait_random_exponential(multiplier=1, max=LONGEST_WAIT_S),
                sleep=sleep_using_event(self._ending),
                reraise=True,
            )(once)
        except _Again as error:
            if self._ending.is_set():
                return False
            self._say(name, notice, tries, f"given up: {error}")
        except NotTold as error:
            self._say(name, notice, tries, f"given up: {error}")
        else:
            self._say(name, notice, tries, None)
        return True

    def _say(self, name: str, notice: Notice, tries: int, error: str | None) -> None:
        """A line of ``.pop/log/notify.jsonl`` for each try."""
        path = self._root.machine_room / "log" / "notify.jsonl"
        row = {"at": events.rfc3339(time.time()), "hook": name, "id": notice.id, "kinds": notice.kinds, "tries": tries}
        with self._log_lock, suppress(OSError):
            if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
                os.replace(path, f"{path}.1")
            with open(path, "ab") as file:
                file.write(dump_json({**row, "error": error}, pretty=False))


class _Again(Exception):
    """It may be tried again."""


def main() -> None:
    """``python -m pop.notifier --root DIR``, as the supervisor starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    root = Root(parser.parse_args().root)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # its input ends when the supervisor does
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    Notifier(root, load_settings(root).notify).serve(sys.stdin)
    os._exit(0)  # a hook that still hangs must not hold us


if __name__ == "__main__":
    main()
