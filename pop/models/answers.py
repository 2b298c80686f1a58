"""The store of answers: one SQLite file, in which an answer is durable before anybody sees it.

| column         | meaning                                                        |
|----------------|----------------------------------------------------------------|
| key            | `request.answer_key`: run, step folder, generation, request, n |
| request_sha256 | what was asked                                                 |
| stored_at      | Unix seconds                                                   |
| answer         | JSON of `request.Answer`                                       |

Writing is done by one thread, which commits whatever waits in one transaction.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from pathlib import Path

from pop.models.request import Answer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request_sha256 TEXT NOT NULL, stored_at REAL NOT NULL, answer TEXT NOT NULL
) WITHOUT ROWID
"""
_Waiting = tuple[str, str, Answer, asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class AnswerStore:
    """Owned by the gateway; `get` and `put` are called from its event loop.

    Args:
        durable: False lets the kernel decide when a commit reaches the disk.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path = path
        self._durable = durable
        self._reader = self._connect()
        self._reader.execute(_SCHEMA)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=30.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        return connection

    def get(self, key: str) -> Answer | None:
        """The stored answer, or None."""
        row = self._reader.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer.model_validate_json(row[0]) if row else None

    async def put(self, key: str, request_sha256: str, answer: Answer) -> None:
        """Returns when the answer is durable.

        Raises:
            sqlite3.Error: It is not.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.put((key, request_sha256, answer, loop, done))
        await done

    def _write(self) -> None:
        connection = self._connect()
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while not self._waiting.empty() and len(batch) < 500:
                entry = self._waiting.get()
                if entry is None:
                    self._commit(connection, batch)
                    return
                batch.append(entry)
            self._commit(connection, batch)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: list[_Waiting]) -> None:
        error: sqlite3.Error | None = None
        now = time.time()
        try:
            connection.execute("BEGIN IMMEDIATE")
            rows = [(key, asked, now, answer.model_dump_json()) for key, asked, answer, _, _ in batch]
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        except sqlite3.Error as caught:
            error = caught
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        for _, _, _, loop, done in batch:
            loop.call_soon_threadsafe(_resolve, done, error)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(5.0)
        self._reader.close()


def _resolve(done: asyncio.Future[None], error: sqlite3.Error | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
