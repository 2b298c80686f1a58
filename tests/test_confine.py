"""Confinement by the kernel: what a confined process can still reach. Needs a kernel with Landlock."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pop.confine import Hiding, enter, landlock_version, names_of, neighbours, prepare

pytestmark = pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")

SECRET = "sk-hidden-0123456789"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a keys file and things beside it."""
    folder = tmp_path / "home" / "config"
    folder.mkdir(parents=True)
    for name in ("keys.env", "keys.env~", ".keys.env.swp"):
        (folder / name).write_text(f"A_KEY={SECRET}\n")
    (folder / "other.txt").write_text("other")
    (tmp_path / "home" / "notes").mkdir()
    (tmp_path / "home" / "notes" / "a.txt").write_text("a")
    (tmp_path / "own").mkdir()
    return tmp_path


def confined(place: Path, work: Callable[[], Any], hiding: Hiding | None = None) -> Any:
    """What `work` returns (as JSON) in a child that may not read the keys file; its OSError as a text."""
    hiding = hiding or Hiding()
    write, hide = prepare([str(place / "own")]), hiding.ruleset(names_of(str(place / "home" / "config" / "keys.env")))
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            enter(write)
            enter(hide)
            try:
                found = work()
            except OSError as error:
                found = f"refused: {error}"
            os.write(writes, json.dumps(found, default=str).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    os.close(write)
    return json.loads(data)


def test_everything_but_the_file_and_its_copies_is_readable(place: Path) -> None:
    """Neighbours on each level, devices, programs, and what the process writes itself."""

    def work() -> list[Any]:
        folder, own = place / "home" / "config", place / "own"
        (own / "x").write_text("mine")
        (own / "sub").mkdir()
        os.rename(own / "x", own / "sub" / "x")
        echo = subprocess.run(["sh", "-c", "echo hi | cat /dev/stdin"], capture_output=True, text=True).stdout
        return [
            (folder / "other.txt").read_text(),
            (place / "home" / "notes" / "a.txt").read_text(),
            (own / "sub" / "x").read_text(),
            Path("/dev/null").read_text(),
            len(os.urandom(4)),
            Path("/etc/passwd").read_text() != "",
            echo,
            sorted(os.listdir(folder)),
        ]

    names = [".keys.env.swp", "keys.env", "keys.env~", "other.txt"]
    assert confined(place, work) == ["other", "a", "mine", "", 4, True, "hi\n", names]


def test_what_appears_later_is_readable_for_the_next(place: Path) -> None:
    """A kept ruleset is made again when a folder on the way has changed."""
    hiding = Hiding()
    new = place / "home" / "new.txt"
    time.sleep(0.06)
    assert confined(place, lambda: (place / "home" / "notes" / "a.txt").read_text(), hiding) == "a"
    new.write_text("new")
    assert confined(place, new.read_text, hiding) == "new"
    (place / "home" / "config" / "keys.env").rename(place / "home" / "config" / "keys.env.old")
    (place / "home" / "config" / "keys.env").write_text(SECRET)  # another file at the same path
    for name in ("keys.env", "keys.env.old"):
        assert "refused" in confined(place, (place / "home" / "config" / name).read_text, hiding)
    hiding.close()


def by_handle(path: Path) -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + b"\0" * 128)
    root = os.open("/", os.O_RDONLY)
    libc.name_to_handle_at(-100, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0)
    fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
    return os.read(fd, 99).decode() if fd >= 0 else f"refused: {os.strerror(ctypes.get_errno())}"


def by_clone(path: Path) -> Any:
    fd = ctypes.CDLL(None, use_errno=True).syscall(428, -100, b"/", 1 | 0x80000 | 0x8000)  # open_tree
    if fd < 0:
        return f"refused: {os.strerror(ctypes.get_errno())}"
    return os.read(os.open(str(path)[1:], os.O_RDONLY, dir_fd=fd), 99).decode()


def command(text: str) -> Callable[[Path, Path], Any]:
    def work(path: Path, own: Path) -> Any:
        line = text.format(path=path, own=own, top=path.parent)
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        return done.stdout + done.stderr

    return work


def linked(path: Path, own: Path, how: Callable[[Path, Path], None]) -> str:
    how(path, own / "l")
    return (own / "l").read_text()


ATTACKS: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda path, own: path.read_text(),
    "editor's copy": lambda path, own: Path(f"{path}~").read_text(),
    "vim's copy": lambda path, own: (path.parent / ".keys.env.swp").read_text(),
    "read and write": lambda path, own: os.read(os.open(path, os.O_RDWR), 99).decode(),
    "symbolic link": lambda path, own: linked(path, own, lambda a, b: os.symlink(a, b)),
    "hard link": lambda path, own: linked(path, own, lambda a, b: os.link(a, b)),
    "move": lambda path, own: linked(path, own, lambda a, b: os.rename(a, b)),
    "move the folder": command("mv {top} {own}/f && cat {own}/f/keys.env"),
    "proc self root": lambda path, own: Path(f"/proc/self/root{path}").read_text(),
    "proc cwd": lambda path, own: open(f"/proc/self/cwd/{os.path.relpath(path)}").read(),
    "parent's root": lambda path, own: Path(f"/proc/{os.getppid()}/root{path}").read_text(),
    "parent's memory": lambda path, own: str(open(f"/proc/{os.getppid()}/mem", "rb")),
    "an O_PATH descriptor": lambda path, own: Path(f"/proc/self/fd/{os.open(path, os.O_PATH)}").read_text(),
    "a file handle": lambda path, own: by_handle(path),
    "a cloned mount": lambda path, own: by_clone(path),
    "chmod and run": command("chmod 700 {path}; {path}; sh {path}; cat {path}"),
    "own mounts": command("unshare -rm sh -c 'mount --bind {top} {own}; cat {own}/keys.env'"),
    "own namespace": command("unshare -r cat {path}"),
    "chroot": command("chroot / cat {path}"),
    "another user": command("su -c 'cat {path}'"),
    "a child's child": command("setsid sh -c 'cat {path}'"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_file_cannot_be_read_by(place: Path, attack: str) -> None:
    """Every way that was thought of."""
    path = place / "home" / "config" / "keys.env"
    found = str(confined(place, lambda: ATTACKS[attack](path, place / "own")))
    assert "sk-hidden" not in found
    words = ("refused", "denied", "not permitted", "cannot", "not found")  # the last: this machine has no such tool
    assert any(word in found for word in words), found


def test_bare_disks_are_hidden_too(place: Path) -> None:
    """Root could read the file's blocks there."""
    disks = [name for name in names_of(str(place / "home" / "config" / "keys.env")) if name.startswith("/dev/")]
    if not disks:
        pytest.skip("this user can read no disk")
    for disk in disks:
        assert "refused" in confined(place, partial(os.open, disk, os.O_RDONLY))


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """The folder above the keys file, mounted a second time."""
    other = place / "mounted here"
    other.mkdir()
    with ExitStack() as stack:
        if subprocess.run(["mount", "--bind", place / "home", other], capture_output=True).returncode:
            pytest.skip("this user cannot mount")
        stack.callback(lambda: subprocess.run(["umount", other], check=True))
        yield other


def test_the_file_is_hidden_in_other_mounts(place: Path, mounted: Path) -> None:
    """A container's or a chroot's view of the same folder; the rest of it is readable."""
    path = mounted / "config" / "keys.env"
    assert str(path) in names_of(str(place / "home" / "config" / "keys.env"))
    assert "refused" in confined(place, path.read_text)
    assert confined(place, (mounted / "notes" / "a.txt").read_text) == "a"


def test_hiding_costs_little(place: Path) -> None:
    """A ruleset is made in at most 1.5 ms where folders are of the usual size, and kept while nothing changes."""
    names, hiding = names_of(str(place / "home" / "config" / "keys.env")), Hiding()
    made = []
    time.sleep(0.06)
    for _ in range(20):
        hiding.close()
        began = time.thread_time()
        hiding.ruleset(names)
        made.append(time.thread_time() - began)
    assert min(made) < 0.0015 * max(1.0, sum(neighbours(names).values()) / 150)
    began = time.thread_time()
    for _ in range(100):
        hiding.ruleset(names)
    assert (time.thread_time() - began) / 100 < 0.0005
