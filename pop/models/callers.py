"""Further processes that speak to providers, for when one processor is not enough (``[gateway] processes``).

    python -m pop.models.callers --root DIR --fd N

Limits, budgets, circuits, store and ledger stay in the gateway; a caller gets one request at a time per line, asks the
provider, and sends back what came. Callers inherit the gateway's keys and end with it.

    {"id", "kind", "request", "entry", "origin", "form"} -> {"id", "answer", "rate"} | {"id", "error": {...}}
    {"cancel": id}
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, cast

import orjson
import structlog

from pop.confine import protect_keys
from pop.errors import ErrorClass
from pop.models.entries import ModelEntry, Shared
from pop.models.keys import Keys, RedactingStream
from pop.models.providers import Provider, Setup, open_provider
from pop.models.request import Answer, Form, ModelError, ModelRequest, Origin, RateNews, Tokens, read_line
from pop.settings import Price, Root, load_settings

log = structlog.get_logger()

LIMIT_BYTES = 64 * 2**20
_ERROR_FIELDS = ("error_class", "message", "where", "hint", "retry_after_s", "curable", "code", "wrong_form")


class Callers:
    """The pool, as the gateway sees it; its processes start with the first call.

    Args:
        environ: With the keys; a changed one needs a new pool.
    """

    def __init__(self, count: int, setup: Setup) -> None:
        self._setup = setup
        self._count = count
        self._all: list[_Caller] = []
        self._starting = asyncio.Lock()

    def provider(self, kind: str) -> Provider:
        """A provider of this kind whose work is done in the pool."""
        return _Remote(self, kind)

    async def answer(self, kind: str, *about: Any) -> Answer:
        """Ask through the caller that has the least to do; one that died is replaced."""
        async with self._starting:
            self._all = [caller for caller in self._all if not caller.is_gone]
            while len(self._all) < self._count:
                self._all.append(await _Caller.start(self._setup))
        return await min(self._all, key=lambda caller: len(caller.open)).answer(kind, *about)

    def retire(self) -> None:
        """Take no more; a caller with open calls ends when they have."""
        for caller in self._all:
            caller.retire()


@dataclasses.dataclass(frozen=True)
class _Remote:
    pool: Callers
    kind: str

    async def answer(self, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None) -> Answer:
        return await self.pool.answer(self.kind, request, entry, origin, form)


class _Caller:
    """One process of the pool."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.open: dict[int, asyncio.Future[Answer]] = {}
        self.is_gone = False
        self._process = process
        self._writer = writer
        self._number = 0
        self._retired = False
        self._listening = asyncio.create_task(self._listen(reader))

    @classmethod
    async def start(cls, setup: Setup) -> _Caller:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "pop.models.callers", "--root", str(setup.root)]
        with theirs:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=dict(setup.environ),
                pass_fds=[theirs.fileno()],
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=LIMIT_BYTES)
        return cls(process, reader, writer)

    async def answer(
        self, kind: str, request: ModelRequest, entry: ModelEntry, origin: Origin, form: Form | None
    ) -> Answer:
        self._number += 1
        number = self._number
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.open[number] = future
        line = {
            "id": number,
            "kind": kind,
            "request": orjson.Fragment(request.model_dump_json(by_alias=True)),
            "entry": orjson.Fragment(_entry_json(entry)),
            "origin": orjson.Fragment(origin.model_dump_json()),
            "form": form,
        }
        self._writer.write(orjson.dumps(line) + b"\n")
        try:
            return await future
        except asyncio.CancelledError:
            self._writer.write(orjson.dumps({"cancel": number}) + b"\n")
            raise
        finally:
            self.open.pop(number, None)
            if self._retired and not self.open:
                self._writer.close()

    def retire(self) -> None:
        self._retired = True
        if not self.open:
            self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                reply = read_line(line)
                future = self.open.get(reply["id"])
                if future is not None and not future.done():
                    self._resolve(future, reply)
        except (OSError, ValueError) as error:
            log.error("caller.broken", error=str(error))
        self.is_gone = True
        self._process.kill()
        self._process.wait()
        for future in self.open.values():
            if not future.done():
                future.set_exception(_lost("unavailable", "the process that asked has died", curable=True))

    def _resolve(self, future: asyncio.Future[Answer], reply: dict[str, Any]) -> None:
        rate = RateNews(**reply["rate"]) if reply.get("rate") else None
        if "answer" in reply:
            future.set_result(Answer.model_validate(reply["answer"]).model_copy(update={"rate": rate}))
            return
        error = reply["error"]
        tokens = Tokens.model_validate(error.pop("tokens")) if error.get("tokens") else error.pop("tokens", None)
        future.set_exception(ModelError(**error, tokens=tokens, rate=rate))


def _lost(error_class: ErrorClass, message: str, *, curable: bool = False) -> ModelError:
    """Nobody knows what the provider counts for it: it is counted by the gateway's estimate."""
    return ModelError(error_class, message, curable=curable, tokens=Tokens(estimated=True))


def _entry_json(entry: ModelEntry) -> bytes:
    """An entry as the wire has it; made once, because a catalogue gives the same entries again and again."""
    known = _ENTRIES.get(id(entry))
    if known is None or known[0] is not entry:
        if len(_ENTRIES) >= 1000:
            _ENTRIES.clear()
        plain = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
        known = _ENTRIES[id(entry)] = (entry, orjson.dumps(plain, default=_plain))
    return known[1]


_ENTRIES: dict[int, tuple[ModelEntry, bytes]] = {}


def _plain(value: Any) -> Any:
    if isinstance(value, Price):
        return value.model_dump()
    raise TypeError(type(value).__name__)


# -- the caller's side -----------------------------------------------------------------------------------------


class _Desk:
    """Asks what the gateway sends."""

    def __init__(self, setup: Setup, writer: asyncio.StreamWriter) -> None:
        self._setup = setup
        self._writer = writer
        self._providers: dict[str, Provider] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def take(self, line: bytes) -> None:
        order = read_line(line)
        if "cancel" in order:
            task = self._tasks.get(order["cancel"])
            if task is not None:
                task.cancel()
            return
        task = asyncio.create_task(self._work(order))
        self._tasks[order["id"]] = task
        task.add_done_callback(lambda _: self._tasks.pop(order["id"], None))

    async def _work(self, order: dict[str, Any]) -> None:
        reply: dict[str, Any]
        try:
            answer = await self._ask(order)
            reply = {"answer": orjson.Fragment(answer.model_dump_json()), "rate": answer.rate}
        except ModelError as error:
            told = {name: getattr(error, name) for name in _ERROR_FIELDS}
            tokens = error.tokens.model_dump() if error.tokens else None
            reply = {"error": {**told, "tokens": tokens}, "rate": error.rate}
        except Exception as error:
            told = {"error_class": "bug", "message": f"{type(error).__name__}: {error}"}
            reply = {"error": {**told, "tokens": Tokens(estimated=True).model_dump()}}
        self._writer.write(orjson.dumps({"id": order["id"], **reply}) + b"\n")

    async def _ask(self, order: dict[str, Any]) -> Answer:
        kind = order["kind"]
        if kind not in self._providers:
            self._providers[kind] = open_provider(kind, self._setup)
        request = ModelRequest.model_validate(order["request"])
        entry, origin = _entry(orjson.dumps(order["entry"])), Origin.model_validate(order["origin"])
        return await self._providers[kind].answer(request, entry, origin, order["form"])


@lru_cache(maxsize=1000)
def _entry(data: bytes) -> ModelEntry:
    about = orjson.loads(data)
    about["shared"] = Shared(**about["shared"])
    about["price"] = Price(**about["price"]) if about["price"] else None
    about["command"] = tuple(about["command"])
    return ModelEntry(**about)


async def _serve(root: Path, fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd), limit=LIMIT_BYTES)
    desk = _Desk(Setup(dict(os.environ), root), writer)
    while line := await reader.readline():
        desk.take(line)


def main() -> None:
    """Entry point, started by the gateway."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--fd", required=True, type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    protect_keys()
    keys = Keys(os.environ)
    keys.learn(load_settings(Root(arguments.root)))
    sys.stderr = cast(TextIO, RedactingStream(keys, sys.stderr))
    asyncio.run(_serve(arguments.root, arguments.fd))
    os._exit(0)


if __name__ == "__main__":
    main()
