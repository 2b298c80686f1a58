"""The gateway process: the only one with API keys and the model SDK.

    python -m pop.models.gateway --root DIR --socket PATH

Workers connect to the Unix socket and send JSON lines; answers come back in any order:

    {"id": n, "request": ModelRequest, "origin": Origin}
    {"id": n, "answer": Answer}   or   {"id": n, "error": {"error_class", "message", "where", "hint"}}

A question that is already under way, or answered, is not asked again. A call goes on when its worker vanishes: it has
been paid for, and the next attempt finds its answer in the store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any, TextIO, cast

import orjson
import structlog
import tenacity
from pydantic import ValidationError

from pop.confine import protect_keys
from pop.errors import ConfigError, PopError
from pop.models.answers import AnswerStore
from pop.models.catalogue import Catalogue, ModelEntry
from pop.models.keys import Keys, RedactingStream, find_keys_file, redacting
from pop.models.prices import cost_usd
from pop.models.providers import Provider, Setup, open_provider
from pop.models.request import Answer, ModelError, ModelRequest, Origin, answer_key, request_hash
from pop.settings import Root, load_settings

log = structlog.get_logger()

MAX_LINE_BYTES = 64 * 2**20
BASE_S, CAP_S = 0.5, 30.0
NEXT_MODEL = frozenset({"unavailable", "rate_limited", "auth", "budget"})  # what another model can cure


class Gateway:
    """Routes, bounds, retries, stores."""

    def __init__(self, root: Root, keys: Keys, store: AnswerStore) -> None:
        self._root = root
        self._keys = keys
        self._environ = keys.environ
        self._store = store
        self._providers: dict[str, Provider] = {}
        self._permits: dict[str, asyncio.Semaphore] = {}
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._settings_mtime_ns = -1
        self._keys.learn(load_settings(root))
        self._catalogue = Catalogue(load_settings(root), self._environ)
        self._rng = random.Random()

    async def ask(self, request: ModelRequest, origin: Origin) -> Answer:
        """The answer to one question, from the store where it is there.

        Raises:
            ModelError: No model of the asked name could answer.
        """
        asked = request_hash(request)
        key = answer_key(origin, asked)
        task = self._under_way.get(key)
        if task is None:
            known = self._store.get(key)
            if known:
                return known.model_copy(update={"cached": True})
            task = asyncio.create_task(self._ask_and_store(request, key, asked))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _ask_and_store(self, request: ModelRequest, key: str, asked: str) -> Answer:
        answer = self._keys.redact_answer(await self._route(request)).model_copy(update={"key": key})
        try:
            await self._store.put(key, asked, answer)
        except sqlite3.Error as error:
            raise ModelError("unavailable", f"the answer could not be stored: {error}", hint="see pop doctor") from None
        return answer

    async def _route(self, request: ModelRequest) -> Answer:
        """Ask the models behind the name, one after the other, as long as the next one may cure the error."""
        entries = self._entries(request.model)
        for number, entry in enumerate(entries, 1):
            try:
                return await self._ask_one(request, entry)
            except ModelError as error:
                if number == len(entries) or error.error_class not in NEXT_MODEL:
                    raise
                log.warning("model.passed_over", model=entry.name, error_class=error.error_class)
        raise AssertionError("a name stands for at least one model")

    def _entries(self, name: str) -> list[ModelEntry]:
        self._reload()
        try:
            return self._catalogue.resolve(name)
        except ConfigError as error:
            raise ModelError("bad_input", error.message, where=error.where, hint=error.hint) from None

    def _reload(self) -> None:
        """Take a changed pop.toml and keys file into account; a broken one leaves things as they are."""
        self._keys.fresh()
        with contextlib.suppress(OSError, PopError):
            mtime_ns = os.stat(self._root.settings_file).st_mtime_ns
            if mtime_ns != self._settings_mtime_ns:
                self._settings_mtime_ns = mtime_ns
                settings = load_settings(self._root)
                self._keys.learn(settings)
                self._catalogue = Catalogue(settings, self._environ)

    async def _ask_one(self, request: ModelRequest, entry: ModelEntry) -> Answer:
        permits = self._permits.setdefault(entry.name, asyncio.Semaphore(entry.concurrency))
        provider = self._provider(entry.provider)
        async with permits:
            try:
                async with asyncio.timeout(entry.timeout_s):
                    answer = await self._with_retries(provider, request, entry)
            except TimeoutError:
                message = f"no answer within {entry.timeout_s:g} s, all tries together"
                raise ModelError("unavailable", message, where=f"model {entry.name!r}") from None
        if answer.cost_usd is None:
            answer = answer.model_copy(update={"cost_usd": cost_usd(answer, entry)})
        return answer

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            self._providers[name] = open_provider(name, Setup(self._environ, self._root.path))
        return self._providers[name]

    async def _with_retries(self, provider: Provider, request: ModelRequest, entry: ModelEntry) -> Answer:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(entry.tries),
            wait=self._wait_s,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ModelError) and error.curable),
            reraise=True,
        )
        answer: Answer = await retrying(
            provider.answer,
            request,
            entry,
            Origin(run_id="", instance="", generation=1, attempt=1),
            "schema" if request.schema_ else None,
        )
        return answer

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        """Full jitter below a doubling bound, or what the server asked for."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ModelError) and error.retry_after_s is not None:
            return error.retry_after_s + self._rng.uniform(0, BASE_S)
        return self._rng.uniform(0, min(CAP_S, BASE_S * 2.0**state.attempt_number))

    # -- the socket --------------------------------------------------------------------------------------------

    async def serve_worker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; every line is a question of its own."""
        tasks: set[asyncio.Task[None]] = set()
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                task = asyncio.create_task(self._serve_line(line, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()
        writer.close()

    async def _serve_line(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        reply = await self._reply(line)
        writer.write(orjson.dumps(reply) + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _reply(self, line: bytes) -> dict[str, Any]:
        number: Any = None
        try:
            value = orjson.loads(line)
            number = value["id"]
            request = ModelRequest.model_validate(value["request"])
            answer = await self.ask(request, Origin.model_validate(value["origin"]))
            return {"id": number, "answer": answer.model_dump(mode="json")}
        except ModelError as error:
            return {"id": number, "error": self._redacted(error)}
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            return {"id": number, "error": self._redacted(ModelError("bug", f"not a request: {error}"))}
        except Exception as error:
            log.exception("gateway.bug")
            return {"id": number, "error": self._redacted(ModelError("bug", f"{type(error).__name__}: {error}"))}

    def _redacted(self, error: ModelError) -> dict[str, Any]:
        clean = self._keys.redact_error(error)
        fields = {"message": clean.message, "where": clean.where, "hint": clean.hint}
        return {"error_class": clean.error_class, **fields}


async def _serve(root: Root, socket_path: Path, keys: Keys) -> None:
    durable = load_settings(root).daemon.durability == "safe"
    store = AnswerStore(root.machine_room / "answers.db", durable=durable)
    gateway = Gateway(root, keys, store)
    server = await asyncio.start_unix_server(
        gateway.serve_worker, path=str(socket_path), limit=MAX_LINE_BYTES, backlog=4096
    )
    print("ready", flush=True)
    log.info("gateway.started", pid=os.getpid(), at=time.time())
    async with server:
        await _parent_gone()
    store.close()


async def _parent_gone() -> None:
    """Returns when standard input closes: the daemon has ended."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()

    def on_input() -> None:
        if not os.read(0, 1024) and not gone.done():
            gone.set_result(None)

    loop.add_reader(0, on_input)
    await gone
    loop.remove_reader(0)


def _configure_logs(keys: Keys) -> None:
    sys.stderr = cast(TextIO, RedactingStream(keys, sys.stderr))
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            redacting(keys),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def main() -> None:
    """Entry point, started by the supervisor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--socket", required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    root = Root(Path(arguments.root))
    try:
        settings = load_settings(root)
        protect_keys(workers_confined=settings.worker.confine)
        keys = Keys(os.environ, find_keys_file(settings))
        _configure_logs(keys)
        asyncio.run(_serve(root, Path(arguments.socket), keys))
    except PopError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    os._exit(0)


if __name__ == "__main__":
    main()
