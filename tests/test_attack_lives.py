"""The dashboard's life cycles: files that are removed under it, kills, ports, restarts, many streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from pop.errorlogs import MOST_BYTES, open_error_log
from tests.living import LivingRoot, living_root
from tests.webbing import free_port

TASKS = {"a.py": "def infer(prompt, ctx):\n    return {}\n"}


@contextlib.contextmanager
def served(path: Path, settings: str = "", port: int | None = None) -> Iterator[tuple[LivingRoot, int]]:
    """A root that `pop up` serves with its dashboard, without a token."""
    number = port or free_port()
    web = f"[web]\nport = {number}\ntoken = false\n"
    with living_root(path, pipeline={"tasks": ["a"]}, tasks=TASKS, settings=web + settings) as living:
        living.up(web=True)
        living.wait(lambda: status(number) == 200, "the dashboard")
        yield living, number


def status(port: int, path: str = "/") -> int:
    """What a request is answered with; 0 when it is not."""
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10).status_code
    return 0


def pids(living: LivingRoot, module: str) -> list[int]:
    return [process.pid for process in living.processes() if module in process.cmdline()]


# -- ports -------------------------------------------------------------------------------------------------------------


def link_of(root: Path) -> tuple[int, str, str]:
    """What `pop web --url` says there."""
    done = subprocess.run(
        [sys.executable, "-m", "pop", "--root", str(root), "web", "--url"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_nobody_is_led_to_the_dashboard_of_another_folder(tmp_path: Path) -> None:
    """Two folders on one port: the second one's link would bring its token to the first one's server."""
    with served(tmp_path / "a") as (living, port):
        code, told, _ = link_of(living.path)
        assert code == 0 and told.startswith(f"http://127.0.0.1:{port}/")
        web = f"[web]\nport = {port}\n"
        with living_root(tmp_path / "b", pipeline={"tasks": ["a"]}, tasks=TASKS, settings=web) as other:
            other.up(web=True)
            other.wait(lambda: "web.not_listening" in other.log() and "daemon.started" in other.log(), "its words")
            code, told, why = link_of(other.path)
            assert (code, told) == (3, "") and "not the dashboard of this folder" in why
            living.stop(living.daemons[0])
            code, told, why = link_of(other.path)
            assert (code, told) == (3, "") and "no dashboard runs there" in why


# -- .pop/log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["gone", "a file"])
def test_processes_come_again_without_a_place_for_their_last_words(tmp_path: Path, harm: str) -> None:
    """Somebody removed .pop/log: dashboard, gateway and workers go on."""
    with served(tmp_path) as (living, port):
        modules = ("pop.web.server", "pop.models.gateway", "pop.executors.forkserver")
        before = {module: pids(living, module) for module in modules}
        assert all(before.values())
        shutil.rmtree(living.root.machine_room / "log")
        if harm == "a file":
            (living.root.machine_room / "log").touch()
        for module in modules:
            for pid in before[module]:
                with contextlib.suppress(psutil.Error):
                    os.kill(pid, signal.SIGKILL)
        living.wait(lambda: status(port) == 200, "the dashboard", 15)
        living.drop("one.json", {})
        living.wait_complete(1, 30)
        for module in modules:
            assert pids(living, module) not in ([], before[module])


def test_last_words_begin_anew_when_there_are_too_many(tmp_path: Path) -> None:
    with open_error_log(tmp_path, "web") as file:
        file.write(b"one\n")
    with open_error_log(tmp_path, "web") as file:
        assert file.tell() == 4
        file.truncate(MOST_BYTES + 1)
    with open_error_log(tmp_path, "web") as file:
        assert file.tell() == 0


def test_a_pipe_in_the_place_of_last_words_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    os.mkfifo(tmp_path / "log" / "web.err")
    with open_error_log(tmp_path, "web") as file:
        file.write(b"one\n")
