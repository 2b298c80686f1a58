"""The store of answers: durable before anybody sees it, given once, written together; and the sums of the ledger."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pop.errors import PopError
from pop.models import answers
from pop.models.answers import AnswerStore, prune
from pop.models.answerwriter import NotStored
from pop.models.calls import LOST, CallLine, Sum, calls_in, day_files
from pop.models.request import Answer, ModelError
from pop.models.spent import Spent
from pop.records import Usage
from pop.store import hold_root
from tests.test_calls import line
from tests.test_cli import pop

FULL, OFF = 2, 0


def answer(text: str, **values: Any) -> Answer:
    return Answer(text=text, model="m", provider="p", provider_model="m", **values)


Open = Callable[..., AnswerStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    """The store of a root; an earlier one is closed first."""
    opened: list[AnswerStore] = []

    def make(*, durable: bool = False, **options: Any) -> AnswerStore:
        while opened:
            opened.pop().close()
        (tmp_path / ".pop").mkdir(exist_ok=True)
        store = AnswerStore(tmp_path / ".pop" / "answers.db", calls=tmp_path / "calls", durable=durable, **options)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def ledger(root: Path) -> list[CallLine]:
    return [call for path in day_files(root / "calls") for _, call in calls_in(path) if call]


HERE = Path(__file__).parent.parent
BEGIN = (
    "import asyncio, os, signal, sys; from pathlib import Path\n"
    "from pop.models.answers import AnswerStore; from pop.models.answerwriter import AnswerWriter; from pop.models.request import Answer\n"
    "from pop.models import answerwriter, calls\n"
    "from tests.test_calls import line\n"
    "root = Path(sys.argv[1]); (root / '.pop').mkdir(exist_ok=True)\n"
    "a = Answer(text='kept', model='m', provider='p', provider_model='m')\n"
    "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    "def open_store(): return AnswerStore(root / '.pop' / 'answers.db', calls=root / 'calls')\n"
)


def run(script: str, root: Path) -> subprocess.CompletedProcess[bytes]:
    """A process that may open the store of a root."""
    command = [sys.executable, "-c", BEGIN + script, str(root)]
    return subprocess.run(command, cwd=HERE, timeout=60, capture_output=True, check=False)


# -- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "level"), [(True, FULL), (False, OFF)])
def test_every_connection_is_as_durable_as_asked(open_store: Open, durable: bool, level: int) -> None:
    """With `safe` SQLite waits for the disk at each commit, with `fast` never; that of the writer's too."""
    store = open_store(durable=durable)
    for connection in (store._reader, store._writer._db):
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_first_answer_to_a_question_stays(open_store: Open) -> None:
    """A second one under the same key changes nothing, so a step that is repeated reads what it read before."""
    store = open_store()

    async def work() -> None:
        assert store.get("k") is None
        await store.put("k", "q", None, answer("one"))
        await store.put("k", "q", None, answer("two"))

    asyncio.run(work())
    found = store.get("k")
    assert found and found.text == "one"


def test_the_newest_answer_is_reused_while_it_is_young_enough(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was stored without a shared key never is."""
    store = open_store()
    start = time.time()
    for age_s, key, shared in ((500, "old", "s"), (100, "new", "s"), (0, "own", None)):
        monkeypatch.setattr(time, "time", lambda age_s=age_s: start - age_s)
        asyncio.run(store.put(key, "q", shared, answer(key)))
    monkeypatch.setattr(time, "time", lambda: start)
    assert [found.text for age_s in (200, 1e10) if (found := store.reusable("s", age_s))] == ["new", "new"]
    assert store.reusable("s", 50) is None and store.reusable("other", 1e10) is None


def test_what_put_returned_for_survives_kill_9(tmp_path: Path) -> None:
    """A process that ends the instant after it was told so has lost neither answers nor the lines of the ledger."""
    script = (
        "store = open_store()\n"
        "async def work():\n"
        "    await asyncio.gather(*(store.put(str(n), 'q', None, a, [line(n)]) for n in range(100)))\n"
        "    die()\n"
        "asyncio.run(work())"
    )
    assert run(script, tmp_path).returncode == -9
    with sqlite3.connect(tmp_path / ".pop" / "answers.db") as store:
        assert store.execute("SELECT count(*) FROM answers").fetchone() == (100,)
        assert store.execute("SELECT sum(calls), sum(nano_usd) FROM spent").fetchone() == (100, 100 * 1_000_000)
    assert len(ledger(tmp_path)) == 100


def test_a_store_that_cannot_write_says_so_to_everybody_who_waits(open_store: Open, tmp_path: Path) -> None:
    """And goes on when it can again; no answer is lost, and lines that stand in the ledger already are not written twice."""
    store = open_store()
    path = tmp_path / ".pop" / "answers.db"
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE answers RENAME TO elsewhere")

    async def fail() -> list[BaseException | None]:
        waiting = [store.put(str(n), "q", None, answer("x"), [line(n)]) for n in range(3)]
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, NotStored) for outcome in asyncio.run(fail()))
    with sqlite3.connect(path) as other:
        other.execute("ALTER TABLE elsewhere RENAME TO answers")
    asyncio.run(store.put("k", "q", None, answer("y"), [line("k")]))
    asyncio.run(store.put("0", "q", None, answer("x"), [line(0)]))
    assert all(store.get(key) is not None for key in ("k", "0", "1", "2"))
    assert sorted(call.id for call in ledger(tmp_path)) == ["c0", "c1", "c2", "ck"]
    assert store.totals(("run", "r")).calls == 4


def test_a_full_disk_is_told_and_when_there_is_room_the_store_works(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is half done: neither an answer nor a line stands."""
    store = open_store(durable=True)
    asyncio.run(store.put("a", "q", None, answer("x"), [line("a")]))

    def full(fd: int, data: bytes) -> None:
        os.write(fd, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pop.store.write_all", full)
    with pytest.raises(NotStored, match="No space left"):
        asyncio.run(store.put("b", "q", None, answer("x"), [line("b")]))
    assert store.get("b") is None and [call.id for call in ledger(tmp_path)] == ["ca"]
    monkeypatch.undo()
    asyncio.run(store.put("b", "q", None, answer("x"), [line("b")]))
    assert [call.id for call in ledger(tmp_path)] == ["ca", "cb"] and store.totals(("run", "r")).calls == 2


def test_the_store_works_again_after_the_kernel_took_no_more_bytes(tmp_path: Path, open_store: Open) -> None:
    """With a limit on the size of files, at whatever write it strikes: SQLite's, the ledger's, the intents'."""
    script = (
        "import resource\n"
        "from pop.models.answerwriter import NotStored\n"
        "big = a.model_copy(update={'text': 'x' * 20000}); told = []\n"
        "store = open_store(); failed = 0\n"
        "async def work():\n"
        "    global failed\n"
        "    for n in range(600):\n"
        "        room = 2**30 if n % 100 > 80 else 40_000 + 3_000 * n\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))\n"
        "        try:\n"
        "            store.begin(line(n))\n"
        "            await store.put(str(n), 'q', None, big, [line(n)])\n"
        "            told.append(n)\n"
        "        except NotStored: failed += 1\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    await store.put('last', 'q', None, big, [line('last')])\n"
        "asyncio.run(work())\n"
        "assert all(store.get(str(n)) for n in told) and failed > 50 and len(told) > 50, (failed, len(told))\n"
        "print(len(told), failed); store.close()\n"
    )
    result = run(script, tmp_path)
    assert result.returncode == 0, result.stderr.decode()
    store = open_store()
    agree(store, tmp_path)
    assert store.get("last") is not None


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_instant_leaves_store_and_ledger_agreed(tmp_path: Path, open_store: Open, seed: int) -> None:
    """What was told as stored is there, each call is counted once, what was under way is counted as lost."""
    script = (
        "store = open_store()\n"
        "async def one(n):\n"
        "    store.begin(line(n)); os.write(1, b'b%d\\n' % n)\n"
        "    if n % 5 == 0: store.forget(f'c{n}'); os.write(1, b'f%d\\n' % n); return\n"
        "    await store.put(str(n), 'q', None, a, [line(n)]); os.write(1, b'd%d\\n' % n)\n"
        "async def lane(first):\n"
        "    for n in range(first, 10**9, 30): await one(n)\n"
        "async def work(): await asyncio.gather(*(lane(base + n) for n in range(30)))\n"
        "base = int(sys.argv[2]); os.write(1, b'go\\n')\n"
        "asyncio.run(work())\n"
    )
    rng = random.Random(seed)
    said: set[str] = set()
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + script, str(tmp_path), str(life * 10**6)],
            cwd=HERE, stdout=(tmp_path / "said").open("wb"),
        )  # fmt: skip
        while (tmp_path / "said").stat().st_size == 0:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.wait()
        said.update((tmp_path / "said").read_text().split()[1:])
    store = open_store()
    agree(store, tmp_path)
    calls = {call.id: call for call in ledger(tmp_path)}
    assert all(store.get(word[1:]) for word in said if word[0] == "d") and len(said) > 100
    assert not {f"c{word[1:]}" for word in said if word[0] == "f"} & calls.keys()
    assert {f"c{word[1:]}" for word in said if word[0] == "b" and int(word[1:]) % 5} <= calls.keys()


def agree(store: AnswerStore, root: Path) -> None:
    """Each call stands once in the ledger, and the sums are those of its lines."""
    total = Sum()
    calls = ledger(root)
    for call in calls:
        total.add(call)
    assert len({call.id for call in calls}) == len(calls) and store.totals(("run", "r")) == total


@pytest.mark.parametrize("text", ["x" * (answers.MAX_ANSWER_BYTES + 1), "half \ud800 a pair"])
def test_an_answer_that_cannot_be_stored_is_refused_and_paid(open_store: Open, tmp_path: Path, text: str) -> None:
    """By an error that lets the step ask again, not by a crash; the provider has billed it."""
    store = open_store()
    with pytest.raises(ModelError) as caught:
        asyncio.run(store.put("k", "q", None, answer(text), [line(1)]))
    assert caught.value.error_class == "invalid_output" and store.get("k") is None
    assert [(call.id, call.outcome) for call in ledger(tmp_path)] == [("c1", "invalid_output")]


def test_an_answer_that_cannot_be_read_any_more_is_asked_for_again(open_store: Open, tmp_path: Path) -> None:
    """And the new one takes its place."""
    store = open_store()
    asyncio.run(store.put("k", "q", None, answer("x")))
    with sqlite3.connect(tmp_path / ".pop" / "answers.db") as other:
        other.execute("UPDATE answers SET answer = '{\"text\": 1}'")
    assert store.get("k") is None
    asyncio.run(store.put("k", "q", None, answer("y")))
    found = store.get("k")
    assert found and found.text == "y"


@pytest.mark.parametrize("damage", ["rubbish", "old"])
def test_a_file_that_is_damaged_or_of_another_version_is_moved_aside(
    open_store: Open, tmp_path: Path, damage: str
) -> None:
    """A new one is made, with the sums of the ledger."""
    asyncio.run(open_store().put("k", "q", None, answer("x"), [line(1)]))
    path = tmp_path / ".pop" / "answers.db"
    open_store().close()
    path.unlink()
    if damage == "rubbish":
        path.write_bytes(b"this is no database" * 1000)
    else:
        with sqlite3.connect(path) as old:
            old.execute("CREATE TABLE answers (key TEXT, request_sha256 TEXT, stored_at REAL, answer TEXT)")
    store = open_store()
    assert store.get("k") is None and store.totals(("run", "r")).calls == 1
    assert (tmp_path / ".pop" / "answers.damaged.db").is_file()


def test_a_file_that_is_damaged_at_work_is_made_anew_too(open_store: Open, tmp_path: Path) -> None:
    """Who reads is told once, and the next answer is stored."""
    store = open_store()
    asyncio.run(store.put("k", "q", None, answer("x" * 100_000), [line(1)]))
    store._writer._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = tmp_path / ".pop" / "answers.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    store._reader.close()
    store._reader = store._writer.connect()
    with pytest.raises(NotStored):
        store.get("k")
    asyncio.run(store.put("l", "q", None, answer("y"), [line(2)]))
    assert store.get("l") is not None and store.get("k") is None
    assert store.totals(("run", "r")).calls == 2


def test_a_second_gateway_waits_for_the_first_and_then_says_so(open_store: Open, tmp_path: Path) -> None:
    """Its open requests are not lost: it may still write them down itself."""
    open_store()
    with pytest.raises(NotStored, match="another gateway"):
        AnswerStore(tmp_path / ".pop" / "answers.db", calls=tmp_path / "calls", patience_s=0.1)


# -- the sums --------------------------------------------------------------------------------------------------------


def test_sums_are_told_by_step_run_pipeline_and_day(open_store: Open) -> None:
    """Of what was billed."""
    store = open_store()
    lines = [
        line(1), line(2, instance="draft.2"), line(3, step="check", instance="check"),
        line(4, run_id="other"), line(5, run_id="third", pipeline="p2"), line(6, at="2026-11-22T00:00:00Z"),
        line(7, billed=False, outcome="rate_limited"),
    ]  # fmt: skip
    asyncio.run(store.note(lines))
    scopes: list[tuple[tuple[str, ...], int]] = [
        (("step", "r", "draft"), 3), (("run", "r"), 4), (("pipeline", "default", "2026-11-21"), 4),
        (("day", "2026-11-21"), 5), (("day", "2026-11-23"), 0),
    ]  # fmt: skip
    for scope, calls in scopes:
        assert store.totals(scope) == Sum(calls, 100 * calls, 10 * calls, nano_usd=1_000_000 * calls), scope


def test_what_a_kill_left_between_ledger_and_sums_is_folded_at_the_next_start(tmp_path: Path, open_store: Open) -> None:
    """The line stands, the transaction never came: the call is counted once."""
    script = (
        "store = open_store()\n"
        "asyncio.run(store.put('1', 'q', None, a, [line(1)]))\n"
        "store._writer._transact = die\n"
        "asyncio.run(store.put('2', 'q', None, a, [line(2)]))\n"
    )
    assert run(script, tmp_path).returncode == -9
    assert (
        len(ledger(tmp_path)) == 2 and Spent(tmp_path / ".pop" / "answers.db").usage_of_run("r")["draft.1"].calls == 1
    )
    for _ in range(2):
        store = open_store()
        assert store.totals(("run", "r")).calls == 2 and store.get("1") and store.get("2") is None


def test_without_pop_everything_but_the_answers_comes_from_the_ledger(tmp_path: Path, open_store: Open) -> None:
    """`.pop` is safe to delete; and where somebody cut the ledger, the sums follow it."""
    asyncio.run(open_store().put("k", "q", None, answer("x"), [line(1), line(2, at="2026-11-22T00:00:00Z")]))
    open_store().close()
    for path in (tmp_path / ".pop").iterdir():
        path.unlink()
    store = open_store()
    assert store.totals(("run", "r")) == Sum(2, 200, 20, nano_usd=2_000_000) and store.get("k") is None
    (tmp_path / "calls" / "2026-11-22.jsonl").unlink()
    assert open_store().totals(("run", "r")).calls == 1


def test_the_sums_are_those_of_the_ledger_whatever_comes(open_store: Open, tmp_path: Path) -> None:
    """Folded in many small transactions or in one go, they are the same to the last digit."""
    store = open_store()

    async def work() -> None:
        waiting = [
            store.note([line(n, instance=f"draft.{n % 7}", model=f"m{n % 3}", cost_usd=n * 1e-9 if n % 5 else None)])
            for n in range(300)
        ]
        await asyncio.gather(*waiting)

    asyncio.run(work())
    told = Spent(tmp_path / ".pop" / "answers.db").usage_of_run("r")
    total = Sum()
    for call in ledger(tmp_path):
        total.add(call)
    assert sum(round(usage.cost_usd * 1e9) for usage in told.values()) == total.nano_usd == sum(
        n for n in range(300) if n % 5
    )  # fmt: skip
    assert sum(usage.unpriced_calls for usage in told.values()) == 60 and sum(u.calls for u in told.values()) == 300


# -- what is under way -------------------------------------------------------------------------------------------------


LOSE = (
    "store = open_store()\n"
    "for n in range(3): store.begin(line(n, input_tokens=7, output_tokens=3))\n"
    "asyncio.run(store.put('0', 'q', None, a, [line(0)]))\n"
    "store.forget('c1')\n"
    "die()"
)


def test_a_request_under_way_at_a_kill_is_counted_once_with_the_tokens_we_expected(
    tmp_path: Path, open_store: Open
) -> None:
    """The provider may have billed it; one that was answered, or reached nobody, is not lost."""
    assert run(LOSE, tmp_path).returncode == -9
    for _ in range(2):
        store = open_store()
        lost = [call for call in ledger(tmp_path) if call.outcome == LOST]
        assert [(call.id, call.billed, call.estimated, call.input_tokens) for call in lost] == [("c2", True, True, 7)]
        assert store.totals(("run", "r")) == Sum(2, 107, 13, nano_usd=2_000_000, estimated=1)


@pytest.mark.parametrize("victim", ["answerwriter.append_calls", "AnswerWriter._catch_up", "calls.InFlight.start"])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_while_lost_requests_are_counted_counts_none_twice(
    tmp_path: Path, open_store: Open, victim: str, before: bool
) -> None:
    """Before or after the lines are written, folded, and the file emptied."""
    assert run(LOSE, tmp_path).returncode == -9
    owner, _, name = victim.rpartition(".")
    script = f"real = {owner}.{name}\n"
    script += "def killed(*args, **options):\n"
    script += "" if before else "    real(*args, **options)\n"
    script += f"    die()\n{owner}.{name} = killed\nopen_store()"
    assert run(script, tmp_path).returncode == -9
    store = open_store()
    assert [call.id for call in ledger(tmp_path)] == ["c0", "c2"] and store.totals(("run", "r")).calls == 2


def test_a_request_is_not_sent_that_cannot_be_noted(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full."""
    store = open_store()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pop.models.calls.write_all", full)
    with pytest.raises(NotStored, match="No space left"):
        store.begin(line(1))


# -- facts, warnings, readers --------------------------------------------------------------------------------------


def test_what_is_remembered_survives_a_restart(open_store: Open) -> None:
    """The value that was given last."""
    store = open_store()
    for value in ("strict", {"form": "object", "n": 2}):
        store.remember("form", "m", value)
        assert store.recall("form", "m") == value
    assert open_store().recall("form", "m") == {"form": "object", "n": 2}
    assert open_store().recall("form", "other") is None


def test_a_warning_to_a_run_is_kept_once(open_store: Open, tmp_path: Path) -> None:
    """However often the gateway starts and gives it again."""
    for _ in range(2):
        store = open_store()
        store.warn("r", "draft.1", "beyond run_usd", "2026-11-21T03:15:02Z")
        asyncio.run(store.note([line(1)]))
    told = Spent(tmp_path / ".pop" / "answers.db").warnings_of_run("r")
    assert told == [{"at": "2026-11-21T03:15:02Z", "instance": "draft.1", "text": "beyond run_usd"}]


def test_spent_reads_beside_the_writer_and_without_a_file(open_store: Open, tmp_path: Path) -> None:
    """It tolerates that the file is not there, comes, and goes."""
    spent = Spent(tmp_path / ".pop" / "answers.db")
    assert (spent.usage_of_run("r"), spent.models_of_run("r"), spent.warnings_of_run("r")) == ({}, [], [])
    store = open_store()
    asyncio.run(
        store.note([line(1), line(2, provider="builtin", model="auto"), line(3, instance="check", cost_usd=None)])
    )
    half = Usage(calls=2, input_tokens=200, output_tokens=20, cost_usd=0.002)
    other = Usage(calls=1, input_tokens=100, output_tokens=10, unpriced_calls=1)
    assert spent.usage_of_run("r") == {"draft.1": half, "check": other}
    assert spent.usage_of("r", "check") == other and spent.usage_of("r", "none") == Usage()
    assert spent.models_of_run("r") == ["builtin", "m"]
    store.close()
    for path in (tmp_path / ".pop").iterdir():
        path.unlink()
    assert spent.usage_of_run("r") == {}
    spent.close()


def test_old_answers_are_pruned_and_sums_stay(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file gets smaller."""
    store = open_store()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000)
    asyncio.run(store.put("old", "q", None, answer("x" * 500_000), [line(1)]))
    monkeypatch.undo()
    asyncio.run(store.put("new", "q", None, answer("y")))
    store.close()
    path = tmp_path / ".pop" / "answers.db"
    assert prune(path, 500, dry_run=True) == 1 and path.stat().st_size > 500_000
    assert prune(path, 500) == 1 and path.stat().st_size < 100_000 and prune(path, 500) == 0
    assert prune(tmp_path / "none.db", 500) == 0
    path.with_name("bad.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(PopError):
        prune(path.with_name("bad.db"), 500)
    store = open_store()
    assert store.get("old") is None and store.get("new") and store.totals(("run", "r")).calls == 1


def test_gc_removes_old_answers_while_no_daemon_runs(open_store: Open, tmp_path: Path) -> None:
    """It says how many; with a daemon at work it is refused, since its gateway may be reading them."""
    (tmp_path / "pipeline.json").write_text("{}")
    store = open_store()
    asyncio.run(store.put("k", "q", None, answer("x"), [line(1)]))
    store.close()
    path = tmp_path / ".pop" / "answers.db"
    with sqlite3.connect(path) as other:
        other.execute("UPDATE answers SET stored_at = stored_at - 86400")
    assert pop("gc", root=tmp_path).returncode == 2
    assert "removed 0 stored" in pop("gc", "--answers-older-than", "2d", root=tmp_path).stderr
    dry = json.loads(pop("gc", "--answers-older-than", "12h", "--dry-run", "--json", root=tmp_path).stdout)
    assert (dry["answers"], dry["dry_run"], dry["runs"]) == (1, True, [])
    with hold_root(tmp_path / ".pop", "pop up"):
        refused = pop("gc", "--answers-older-than", "12h", root=tmp_path)
    assert refused.returncode == 3 and "another daemon" in refused.stderr
    assert pop("gc", "--answers-older-than", "12h", root=tmp_path).stderr == "removed 1 stored answers\n"
    store = open_store()
    assert store.get("k") is None and store.totals(("run", "r")).calls == 1
