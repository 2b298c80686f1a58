"""The store of answers, in one SQLite file that also holds the sums of the ledger. What is written goes to `answerwriter`.

| table    | a row is                                                                                          |
|----------|---------------------------------------------------------------------------------------------------|
| answers  | an answer by `request.answer_key` and, where it may serve others too, by `shared_key`              |
| spent    | sums, with `ledger`: see pop/models/spent.py                                                       |
| facts    | something small that was learnt and survives a restart                                             |
| warnings | a budget's warning to a run                                                                        |

Answers, facts and warnings are lost with ``.pop``; sums are not. While something cannot be written, `ready` keeps the next
calls from being made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog
from pydantic import ValidationError

from pop.models.answerwriter import AnswerWriter, NotStored, Row, Work, is_damage, not_stored
from pop.models.calls import ANSWER, CallLine, Scope, Sum
from pop.models.request import Answer, ModelError
from pop.models.spent import spent_in, sum_of

log = structlog.get_logger()

MAX_ANSWER_BYTES = 32 * 2**20


class AnswerStore:
    """Owned by the gateway; all methods are called from its event loop. One at a time on a file.

    Args:
        calls: The folder of the ledger.
        durable: False lets the kernel decide when something reaches the disk.
        patience_s: How long to wait for an earlier gateway that is still ending.

    Raises:
        NotStored: The disk is full, or another gateway holds the store.
    """

    def __init__(self, path: Path, *, calls: Path, durable: bool = True, patience_s: float = 10.0) -> None:
        self._unreadable: set[str] = set()
        self._lock = _hold(path.with_suffix(".lock"), patience_s)
        self._writer = AnswerWriter(path, calls, durable=durable)
        self._reader, self._reader_life = self._writer.connect(), self._writer.life
        self._facts = {
            (topic, name): orjson.loads(value)
            for topic, name, value in self._reader.execute("SELECT topic, name, value FROM facts")
        }

    # -- answers -------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> Answer | None:
        """The stored answer, or None.

        Raises:
            NotStored: The file cannot be read.
        """
        row = self._ask("SELECT answer FROM answers WHERE key = ?", (key,))
        return self._answer(key, row[0]) if row else None

    def reusable(self, shared_key: str, younger_than_s: float) -> Answer | None:
        """The newest answer under this shared key, when it is not older than that; `key` is the one it was stored by.

        Raises:
            NotStored: The file cannot be read.
        """
        row = self._ask(
            "SELECT key, answer FROM answers WHERE shared_key = ? AND stored_at >= ? ORDER BY stored_at DESC LIMIT 1",
            (shared_key, time.time() - younger_than_s),
        )
        return self._answer(row[0], row[1]) if row else None

    async def put(
        self, key: str, request_sha256: str, shared_key: str | None, answer: Answer, lines: Sequence[CallLine] = ()
    ) -> None:
        """Returns when the answer and the lines of the ledger are durable. The first answer under a key stays.

        Args:
            shared_key: Under which others may reuse it; None: nobody (so it is for what was itself reused, which would
                otherwise seem young again).

        Raises:
            NotStored: They are not. Lines of the same calls may be given again; they are never written twice.
            ModelError: The answer cannot be stored whoever tries (too large, no text); its lines are in the ledger.
        """
        problem = None
        try:
            data = answer.model_dump_json()
            if len(data) > MAX_ANSWER_BYTES:
                problem = f"the answer has {len(data) / 2**20:.0f} MB, more than {MAX_ANSWER_BYTES / 2**20:.0f}"
        except ValueError:  # half a surrogate pair
            problem = "the answer holds what no text can"
        if problem is not None:
            await self.note([line.model_copy(update={"outcome": "invalid_output"}) if line.outcome == ANSWER else line
                             for line in lines])  # fmt: skip
            raise ModelError("invalid_output", problem, where=f"model {answer.model!r}", code="unstorable")
        row = Row((key, request_sha256, shared_key, time.time(), data), replaces=key in self._unreadable)
        await self._hand_over(Work(answer=row, lines=lines))

    async def note(self, lines: Sequence[CallLine]) -> None:
        """Write calls that brought no answer into the ledger; returns when they are durable.

        Raises:
            NotStored: They are not.
        """
        if lines:
            await self._hand_over(Work(lines=lines))

    @property
    def is_behind(self) -> bool:
        """Whether something could not be written and is kept in memory."""
        return self._writer.is_behind

    async def ready(self) -> None:
        """Return when what could not be written before is.

        Raises:
            NotStored: It still cannot be: nothing more may be spent.
        """
        if self.is_behind:
            await self._hand_over(Work())

    def begin(self, line: CallLine) -> None:
        """Note that a request is about to go out, with the tokens we expect. A line with its `id` ends it, or `forget`.

        Raises:
            NotStored: It cannot be noted, so the request must not go out.
        """
        try:
            self._writer.in_flight.begin(line)
        except OSError as error:
            raise not_stored(error) from None

    def forget(self, call_id: str) -> None:
        """The request that `begin` noted reached nobody who would count it; the ledger needs no line of it."""
        self._writer.in_flight.forget(call_id)

    # -- facts and warnings --------------------------------------------------------------------------------------------

    def recall(self, topic: str, name: str) -> Any | None:
        """What `remember` was given last, or None."""
        return self._facts.get((topic, name))

    def remember(self, topic: str, name: str, value: Any) -> None:
        """Keep a small JSON value; it reaches the disk with the next answer, at the latest when the store is closed."""
        if self._facts.get((topic, name)) != value:
            self._facts[topic, name] = value
            self._writer.facts[topic, name] = orjson.dumps(value).decode()

    def warn(self, run_id: str, instance: str, text: str, at: str) -> None:
        """Leave a warning for a run; the same text to the same run is kept once."""
        self._writer.hand(Work(warning=(run_id, text, instance, at)))

    # -- sums ----------------------------------------------------------------------------------------------------------

    def totals(self, scope: Scope) -> Sum:
        """What was spent within a budget's scope.

        Raises:
            NotStored: The file cannot be read.
        """
        return sum_of(self._ask(spent_in(scope), scope[1:]) or ())

    # -- the reader's side ---------------------------------------------------------------------------------------------

    def _ask(self, query: str, values: Sequence[Any]) -> Any:
        try:
            if self._reader_life != self._writer.life:
                self._reader.close()
                self._reader, self._reader_life = self._writer.connect(), self._writer.life
            return self._reader.execute(query, values).fetchone()
        except sqlite3.Error as error:
            self._writer.is_damaged |= is_damage(error)  # the writer makes it anew before it writes again
            raise not_stored(error, "read") from None

    def _answer(self, key: str, data: str) -> Answer | None:
        try:
            return Answer.model_validate_json(data)
        except ValidationError:
            log.warning("answer.unreadable", key=key)
            self._unreadable.add(key)
            return None

    async def _hand_over(self, work: Work) -> None:
        if self._lock < 0:  # what is under way stands in in-flight.jsonl
            raise NotStored("the store of answers is closed")
        work.done = asyncio.get_running_loop().create_future()
        self._writer.hand(work)
        await work.done

    def close(self) -> None:
        """Write what waits, and end."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        self._writer.close()
        self._reader.close()
        os.close(lock)


def _hold(path: Path, patience_s: float) -> int:
    """An earlier gateway may still be ending; the kernel frees its lock when it has.

    Raises:
        NotStored: It does not end.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(fd)
                raise NotStored("another gateway holds the store of answers", where=path, hint="pop doctor") from None
            time.sleep(0.02)


def prune(path: Path, older_than_s: float, *, dry_run: bool = False) -> int:
    """Remove answers that were stored longer ago than that and give their room back; returns how many.

    No gateway may run on the file. Sums stay.

    Raises:
        NotStored: The file cannot be read or written.
    """
    if not path.is_file():
        return 0
    before = time.time() - older_than_s
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5.0)) as connection:
            row = connection.execute("SELECT count(*) FROM answers WHERE stored_at < ?", (before,)).fetchone()
            if row[0] and not dry_run:
                connection.execute("DELETE FROM answers WHERE stored_at < ?", (before,))
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return int(row[0])
    except sqlite3.Error as error:
        raise not_stored(error) from None
