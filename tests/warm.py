"""`pop` in a process of its own that need not start Python: forked from one that has imported all of it.

Most tests of commands are about what a command says and does, not about how the interpreter starts; half of such a
test's time went into imports. The process is real: its own pid, descriptors, folder, environment and exit code. What is
about starting (`--help` of each command, signals, terminals, options of the interpreter) is started with `exec` all the same.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

OF_THE_INTERPRETER = ("PYTHON", "LC_", "LANG", "TZ")  # variables it reads once, when it starts
BORN = dict(os.environ)  # before any test changed it
HERE = Path(__file__).resolve().parent.parent
MOST_BYTES = 60_000  # of one request; a longer one is started with `exec`
_lock = threading.Lock()
_server: socket.socket | None = None
_process: subprocess.Popen[bytes] | None = None


def pop(
    arguments: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    input: str | None = None,
    stdin: int | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-m", "pop", ...], capture_output=True, text=True, ...)`."""
    command = [sys.executable, "-m", "pop", *map(str, arguments)]
    environment = dict(os.environ if env is None else env)
    size = sum(map(len, [*command, *environment, *environment.values()]))
    if not fits(environment) or size > MOST_BYTES:
        about: dict[str, Any] = {"input": input} if input is not None else {"stdin": stdin}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd, **about
        )
    given, feed = os.pipe() if input is not None else (_stdin(stdin), None)
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    theirs = [given, its_out, its_err]
    try:
        status = _send(command, environment, str(cwd or os.getcwd()), theirs)
    finally:
        for fd in theirs:
            os.close(fd)
    process = _Started(command, status, feed, out, err)
    try:
        said = process.communicate(None if input is None else input.encode(), timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.wait(), *map(_text, said))


def _stdin(stdin: int | None) -> int:
    return os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else os.dup(0 if stdin is None else stdin)


def _text(said: bytes) -> str:
    return said.decode().replace("\r\n", "\n").replace("\r", "\n")


def fits(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter that started with this environment would be as ours is."""
    return _of_interpreter(environment) == _of_interpreter(BORN)


def start(arguments: Sequence[object], *, env: Mapping[str, str], stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    """As `subprocess.Popen([sys.executable, "-m", "pop", ...], start_new_session=True, ...)`, reading nothing."""
    command = [sys.executable, "-m", "pop", *map(str, arguments)]
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        return _Started(command, _send(command, env, os.getcwd(), [null, stdout, stderr], session=True))
    finally:
        os.close(null)


def _send(command: list[str], env: Mapping[str, str], cwd: str, fds: list[int], *, session: bool = False) -> int:
    """Have a command started; from what is returned its pid can be read, and its exit code when it has ended."""
    request = {"argv": command[3:], "env": dict(env), "cwd": cwd, "session": session}
    ours, theirs = os.pipe()
    try:
        with _lock:
            try:
                socket.send_fds(_started(), [json.dumps(request).encode()], [*fds, theirs])
            except (BrokenPipeError, ConnectionResetError):
                warnings.warn(f"the warm process ended: {_forget()}", stacklevel=2)
                socket.send_fds(_started(), [json.dumps(request).encode()], [*fds, theirs])
    finally:
        os.close(theirs)
    return ours


class _Started(subprocess.Popen[bytes]):
    """A process that is no child of ours; whoever waits for it tells its exit code."""

    _child_created = False  # there is nothing to reap here
    _communication_started = False  # of `communicate`, as are the next two
    _input = None
    text_mode = None

    def __init__(
        self, command: list[str], status: int, feed: int | None = None, out: int | None = None, err: int | None = None
    ) -> None:
        self._told = open(status, "rb", buffering=0)
        self.args = command
        self.stdin = None if feed is None else open(feed, "wb")
        self.stdout = None if out is None else open(out, "rb")
        self.stderr = None if err is None else open(err, "rb")
        self.returncode: int | None = None
        self.pid = int(self._line())

    def _line(self) -> bytes:
        return b"".join(iter(lambda: self._told.read(1).strip() or b"", b""))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], None if timeout is None else max(timeout, 0))[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._line())
            self._told.close()
        return self.returncode


def _of_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_THE_INTERPRETER)}


def _started() -> socket.socket:
    """The server of this process; it ends when this process does."""
    global _server, _process
    if _server is None:
        _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
            _process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, cwd=HERE, env=BORN)
        atexit.register(_server.close)
    return _server


def _forget() -> str:
    """Let go of a server that ended; its exit code and last words."""
    global _server
    assert _server and _process
    _server.close()
    _server = None
    _, said = _process.communicate(timeout=10)
    return f"exit code {_process.returncode}; {said.decode(errors='replace')[-2000:] or 'it said nothing'}"


# -- the server ------------------------------------------------------------------------------------------------------


def _serve(control: socket.socket) -> None:
    """Returns in each process that is to become a command; the server itself ends with its only client."""
    package = import_module("pop")
    for module in pkgutil.walk_packages(package.__path__, "pop."):
        if not module.name.endswith("__main__") and ".starters" not in module.name:
            import_module(module.name)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes away those that wait for the commands
    while True:
        data, fds, _, _ = socket.recv_fds(control, 4 * MOST_BYTES, 4)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if _wait_for_command(fds):
                _become(json.loads(data), fds)
                return
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _wait_for_command(fds: list[int]) -> bool:
    """True in the command's process; the other tells its pid and its exit code."""
    pid = os.fork()
    if pid == 0:
        return True
    for fd in (0, 1, 2, *fds[:3]):
        os.close(fd)
    os.write(fds[3], f"{pid}\n".encode())
    os.write(fds[3], f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    return False


def _become(request: dict[str, Any], fds: list[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = open(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)  # type: ignore[misc]
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["argv"]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("pop", run_name="__main__", alter_sys=True)
