"""`pop` in a real terminal whose screen the tests read: a pty, and as much of a terminal as prompt_toolkit makes use of."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect

from tests.test_cli import REPOSITORY
from tests.wizardry import environment

PATIENCE_S = 60.0
_SEQUENCE = re.compile(r"\x1b\[([?>]?)([\d;]*)([A-Za-z])|\x1b\](?:[^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b[()]?.")


class Terminal:
    """A command at work in a terminal. `seen` is all that it wrote."""

    def __init__(self, child: pexpect.spawn[str], columns: int, rows: int) -> None:
        self.child = child
        self.seen = ""
        self._rest = ""
        self._size(columns, rows)

    def _size(self, columns: int, rows: int) -> None:
        self._columns, self._rows = columns, rows
        self._cells = [[" "] * columns for _ in range(rows)]
        self._x = self._y = 0

    def resize(self, columns: int, rows: int) -> None:
        self._drain()
        self._size(columns, rows)
        self.child.setwinsize(rows, columns)

    def press(self, keys: str) -> None:
        self.child.send(keys)

    def lines(self) -> list[str]:
        """What stands on the screen now."""
        self._drain()
        return ["".join(row).rstrip() for row in self._cells]

    def text(self) -> str:
        return "\n".join(self.lines())

    def see(self, *words: str, gone: tuple[str, ...] = (), patience_s: float = PATIENCE_S) -> str:
        """Until all words stand on the screen (a line may end within them), and others do no more."""

        def told(text: str) -> bool:
            flat = " ".join(text.split())
            return all(" ".join(word.split()) in flat for word in words) and not any(word in flat for word in gone)

        return self.until(told, f"{words}", patience_s)

    def until(self, condition: Callable[[str], object], what: str, patience_s: float = PATIENCE_S) -> str:
        give_up = time.monotonic() + patience_s
        while time.monotonic() < give_up:
            text = self.text()
            if condition(text):
                return text
            time.sleep(0.02)
        raise AssertionError(f"waited {patience_s} s for {what}; on the screen:\n{self.text()}\n{self.seen[-300:]!r}")

    def ended(self, patience_s: float = PATIENCE_S) -> int:
        """The exit code, when it has ended by itself."""
        give_up = time.monotonic() + patience_s
        while self.child.isalive() and time.monotonic() < give_up:
            self._drain()
            time.sleep(0.02)
        assert not self.child.isalive(), f"it goes on:\n{self.text()}"
        self._drain()
        assert self.child.exitstatus is not None, f"ended by signal {self.child.signalstatus}"
        return self.child.exitstatus

    def _drain(self) -> None:
        try:
            while True:
                data = self.child.read_nonblocking(65536, timeout=0)
                self.seen += data
                self._feed(data)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return

    def _feed(self, data: str) -> None:
        data, place = self._rest + data, 0
        self._rest = ""
        while place < len(data):
            if data[place] == "\x1b":
                found = _SEQUENCE.match(data, place)
                if found is None:
                    self._rest = data[place:]
                    return
                if found[3] and not found[1]:
                    self._obey(found[3], [int(part) for part in found[2].split(";") if part])
                place = found.end()
                continue
            self._put(data[place])
            place += 1

    def _put(self, sign: str) -> None:
        if sign == "\r":
            self._x = 0
        elif sign == "\n":
            self._y = min(self._rows - 1, self._y + 1)
        elif sign == "\b":
            self._x = max(0, self._x - 1)
        elif sign >= " ":
            if self._x < self._columns:
                self._cells[self._y][self._x] = sign
            self._x += 1

    def _obey(self, order: str, numbers: list[int]) -> None:
        count = numbers[0] if numbers else 0
        if order == "H":
            row, column = (*numbers, 1, 1)[:2] if numbers else (1, 1)
            self._y, self._x = min(self._rows, row) - 1, column - 1
        elif order in "ABCD":
            step = count or 1
            self._y = max(0, min(self._rows - 1, self._y + {"A": -step, "B": step}.get(order, 0)))
            self._x = max(0, self._x + {"C": step, "D": -step}.get(order, 0))
        elif order == "K":
            self._cells[self._y][self._x :] = [" "] * max(0, self._columns - self._x)
        elif order == "J":
            first = 0 if count == 2 else self._y + 1
            if count == 0:
                self._cells[self._y][self._x :] = [" "] * max(0, self._columns - self._x)
            for row in range(first, self._rows):
                self._cells[row] = [" "] * self._columns


@contextmanager
def terminal(root: Path, *arguments: str, columns: int = 120, rows: int = 30, **more: str) -> Iterator[Terminal]:
    """`pop` in a terminal, which is closed with the block."""
    environ = environment(**more)
    environ.pop("COLUMNS")
    command = ["-m", "pop", "--root", str(root), *arguments]
    child = pexpect.spawn(
        sys.executable, command, encoding="utf-8", codec_errors="replace", dimensions=(rows, columns), env=environ,
        cwd=str(REPOSITORY),
    )  # fmt: skip
    try:
        yield Terminal(child, columns, rows)
    finally:
        child.close(force=True)
