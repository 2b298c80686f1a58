"""The store of answers: durable before anybody sees it, given once, written together."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pop.models.answers import AnswerStore
from pop.models.request import Answer

FULL, OFF = 2, 0


def answer(text: str) -> Answer:
    return Answer(text=text, model="m", provider="p", provider_model="m")


@pytest.mark.parametrize(("durable", "level"), [(True, FULL), (False, OFF)])
def test_every_connection_is_as_durable_as_asked(tmp_path: Path, durable: bool, level: int) -> None:
    """With `safe` SQLite waits for the disk at each commit, with `fast` never; that of the writer's too."""
    store = AnswerStore(tmp_path / "a.db", durable=durable)
    for connection in (store._reader, store._connect()):
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_the_first_answer_to_a_question_stays(tmp_path: Path) -> None:
    """A second one under the same key changes nothing, so a step that is repeated reads what it read before."""
    store = AnswerStore(tmp_path / "a.db")

    async def work() -> None:
        assert store.get("k") is None
        await store.put("k", "q", answer("one"))
        await store.put("k", "q", answer("two"))

    asyncio.run(work())
    found = store.get("k")
    assert found and found.text == "one"
    store.close()


def test_what_put_returned_for_survives_kill_9(tmp_path: Path) -> None:
    """A process that ends the instant after it was told so has lost nothing."""
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "from pop.models.answers import AnswerStore; from pop.models.request import Answer\n"
        "store = AnswerStore(Path(sys.argv[1]))\n"
        "async def work():\n"
        "    a = Answer(text='kept', model='m', provider='p', provider_model='m')\n"
        "    await asyncio.gather(*(store.put(str(n), 'q', a) for n in range(100)))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(work())"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.db")], timeout=60).returncode == -9
    with sqlite3.connect(tmp_path / "a.db") as store:
        assert store.execute("SELECT count(*) FROM answers").fetchone() == (100,)


def test_a_store_that_cannot_write_says_so_to_everybody_who_waits(tmp_path: Path) -> None:
    """And goes on when it can again."""
    store = AnswerStore(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("ALTER TABLE answers RENAME TO elsewhere")

    async def fail() -> list[BaseException | None]:
        waiting = [store.put(str(n), "q", answer("x")) for n in range(3)]
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, sqlite3.Error) for outcome in asyncio.run(fail()))
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("ALTER TABLE elsewhere RENAME TO answers")
    asyncio.run(store.put("k", "q", answer("y")))
    assert store.get("k") is not None and store.get("0") is None
    store.close()
