"""A root with a real daemon on it, for the acceptance tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pop.settings import Root
from tests import warm

PATIENCE_S = 60.0


class LivingRoot:
    """A folder POP works in. `tasks` are file names below pipeline-tasks/ with their texts."""

    def __init__(self, path: Path, *, pipeline: Any, tasks: dict[str, str], settings: str = "") -> None:
        self.root = Root(path)
        self.path = path
        self.daemons: list[subprocess.Popen[bytes]] = []
        for folder in (self.root.tasks, self.root.rejected, self.root.current, self.root.complete):
            folder.mkdir(parents=True, exist_ok=True)
        (path / "pipeline.json").write_text(json.dumps(pipeline))
        (path / "pop.toml").write_text(settings)
        for name, text in tasks.items():
            self.task(name, text)

    def task(self, name: str, text: str) -> None:
        target = self.root.tasks / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def drop(self, name: str, value: Any) -> None:
        """Put a seed into the queue the way `mv` does."""
        draft = self.root.pending / f".{name}.draft"
        draft.write_text(value if isinstance(value, str) else json.dumps(value))
        os.rename(draft, self.root.pending / name)

    def up(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        first: Callable[[], object] | None = None,
        web: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start `pop up` in a process group of its own and return at once; `first` is done in the new process.

        Where the environment or the interpreter is what is tested it is started with `exec`.
        """
        words = ["--root", str(self.path), "up", *(() if web else ("--no-web",)), *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"} | (env or {})
        with open(self.path / "daemon.log", "ab") as log:
            if env is None and first is None and warm.fits(environment):
                daemon = warm.start(words, env=environment, stdout=log.fileno(), stderr=log.fileno())
            else:
                daemon = subprocess.Popen(
                    [sys.executable, "-m", "pop", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=first,
                )
        self.daemons.append(daemon)
        return daemon

    def log(self) -> str:
        return (self.path / "daemon.log").read_text(errors="replace")

    def wait(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """Poll until `condition` says yes; fails with the daemon's log when it never does."""
        give_up = time.monotonic() + patience_s
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError, ValueError, LookupError):
                value = condition()
                if value:
                    return value
            time.sleep(0.02)
        raise AssertionError(f"waited {patience_s} s for {what}\n{self.log()[-4000:]}")

    def ledger(self) -> list[dict[str, Any]]:
        if not self.root.ledger.exists():
            return []
        return [json.loads(line) for line in self.root.ledger.read_bytes().splitlines()]

    def wait_complete(self, count: int, patience_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """Until runs.jsonl holds `count` lines."""
        self.wait(lambda: len(self.ledger()) >= count, f"{count} runs", patience_s)
        return self.ledger()

    def current(self) -> list[Path]:
        return sorted(path for path in self.root.current.iterdir() if (path / "tasks-status.json").exists())

    def status(self, run_dir: Path | None = None) -> dict[str, Any]:
        """The status of one run in pipeline-current/ (the only one, when none is named)."""
        chosen = run_dir or self.current()[0]
        value: dict[str, Any] = json.loads((chosen / "tasks-status.json").read_bytes())
        return value

    def wait_state(self, state: str, run_dir: Path | None = None, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Until the run in pipeline-current/ is in `state`."""

        def reached() -> dict[str, Any] | None:
            status = self.status(run_dir)
            return status if status["state"] == state else None

        status: dict[str, Any] = self.wait(reached, f"state {state}", patience_s)
        return status

    def output(self, record: dict[str, Any], step: str) -> Any:
        return json.loads((self.path / record["path"] / "tasks" / step / "output.json").read_bytes())

    def stop(self, daemon: subprocess.Popen[bytes], *, patience_s: float = 30.0) -> int:
        """SIGTERM and wait."""
        daemon.send_signal(signal.SIGTERM)
        return daemon.wait(patience_s)

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to this root: the daemons and all below them."""
        found, daemons = [], {daemon.pid for daemon in self.daemons if daemon.poll() is None}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                named = process.pid in daemons or str(self.path) in " ".join(process.cmdline())
                if named or self._marked(process):
                    found.append(process)
        return [process for process in found if process.pid != os.getpid()]

    def _marked(self, process: psutil.Process) -> bool:
        return process.environ().get("POP_FORKSERVER") == os.path.realpath(self.path)

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def living_root(path: Path, **about: Any) -> Iterator[LivingRoot]:
    """A root whose daemons end with the test."""
    living = LivingRoot(path, **about)
    try:
        yield living
    finally:
        living.close()
