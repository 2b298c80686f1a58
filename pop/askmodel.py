"""The way to models from outside a run: the gateway of the daemon that serves a root, or one started for this alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pop.errors import PopError
from pop.gatekeeper import socket_path
from pop.settings import Root
from pop.store import hold_root, lock_holder


@contextmanager
def gateway_of(root: Root, command: str) -> Iterator[str]:
    """The socket of the daemon's gateway, or of one of our own, which holds the root meanwhile.

    Args:
        command: What the root is held for, as a second daemon is told: ``pop models --test``.

    Raises:
        PopError: The gateway did not start.
    """
    if lock_holder(root.machine_room):
        yield str(socket_path(root))
        return
    root.machine_room.mkdir(mode=0o700, exist_ok=True)
    with hold_root(root.machine_room, command), tempfile.TemporaryDirectory(prefix="pop-") as folder:
        address = Path(folder) / "gateway.sock"
        arguments = ["-P", "-m", "pop.models.gateway", "--root", str(root.path), "--socket", str(address)]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=root.path,
            ) as process,
        ):
            assert process.stdin and process.stdout
            try:
                if process.stdout.readline().strip() != b"ready":
                    said.seek(0)
                    why = " ".join(said.read(2000).decode(errors="replace").split()) or "it said nothing"
                    raise PopError(f"the gateway did not start: {why}", hint="pop doctor", code="no-gateway")
                yield str(address)
            finally:
                process.stdin.close()
