"""Who does the work while a command follows a run: the daemon that serves the root, else one of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import click

from pop.errors import PopError
from pop.runs import Run
from pop.settings import Root


class Server:
    """The daemon that does the work: the one that serves the root, else one of our own, for this seed or run alone."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None and self._child.poll() is None:  # it never outlives us
            self._child.terminate()
            self._child.wait()

    @property
    def is_own(self) -> bool:
        return self._child is not None

    @property
    def is_gone(self) -> bool:
        return self._child is None or self._child.poll() is not None

    def serve(self, seed: str | None, run: Run | None) -> None:
        """Make sure that somebody serves."""
        from pop.commands.run import _is_served

        if self._child is not None or _is_served(self._root):
            return
        what = ["--only-run", run.run_id] if run is not None else ["--only", str(seed)]
        words = [sys.executable, "-P", "-m", "pop", "--root", str(self._root.path), "up", "--quiet", *what]
        words += ["--parent", str(os.getpid())]
        self._child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self) -> bool:
        """Ask our own daemon to end; False when there is none."""
        if self.is_gone:
            return False
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)
        click.echo("stopping; once more to interrupt at once", err=True)
        return True

    def refuse_gone(self, seed: str) -> None:
        """Raises PopError: the seed was refused, or the daemon ended before it took it."""
        from pop.commands.run import _refusal

        refused = self._root.rejected / f"{seed}.reason.json"
        if refused.exists():
            raise _refusal(refused)
        if self.is_own and self.is_gone:
            hint = f"its words stand above; run this again, or pop up: it takes the seed {seed}"
            raise PopError("the daemon ended before it took the seed", hint=hint, code="not-taken")


def answered(run: Run, status: dict[str, Any]) -> bool:
    """Whether a run that rests has an answer, or an order, that a daemon will take."""
    from pop.display import _has_answer, open_gates

    if {"resume", "retry", "rerun"} & set(run.waiting_orders()):
        return True
    return any(_has_answer(run.step_dir(gate)) for gate in open_gates(status))
